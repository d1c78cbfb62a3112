//! The sessions of browsers. A session keeps the token that it was begun with, so that each request is judged as the same
//! request to the API would be: a token that a reload takes away, or gives another role, counts at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use crate::secret::Secret;

/// Sessions at a time; one more ends the one that has been idle for longest.
const SESSIONS_MAX: usize = 256;
/// Those of one operator: who logs in again and again ends sessions of its own.
const OF_ONE_MAX: usize = 32;
/// For how long a session lasts.
pub(super) const LASTS: Duration = Duration::from_hours(12);
/// After how long without a request it is over before that.
const IDLE: Duration = Duration::from_hours(1);

/// What is to be said on the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice(pub(super) String);

/// A browser that has been let in.
#[derive(Debug)]
pub(super) struct Session {
    /// Absent where no tokens are configured.
    pub(super) token: Option<Secret>,
    /// Stands in every form of ours, where no other site can read it.
    csrf: String,
    notice: Mutex<Option<Notice>>,
}

impl Session {
    fn new(token: Option<Secret>) -> Self {
        Self { token, csrf: random(), notice: Mutex::default() }
    }

    /// What a form must send.
    pub(super) fn csrf(&self) -> &str {
        &self.csrf
    }

    /// Whether a form has sent it.
    pub(super) fn is_ours(&self, sent: &str) -> bool {
        self.csrf.as_bytes().ct_eq(sent.as_bytes()).into()
    }

    pub(super) fn say(&self, notice: String) {
        *lock(&self.notice) = Some(Notice(notice));
    }

    /// Once.
    pub(super) fn take_notice(&self) -> Option<Notice> {
        lock(&self.notice).take()
    }
}

struct Entry {
    session: Arc<Session>,
    operator: String,
    began: Instant,
    used: Instant,
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.began) >= LASTS || now.duration_since(self.used) >= IDLE
    }
}

/// Those that there are, by the digest of their ids, so that looking one up tells nothing by the time that it takes.
pub(super) struct Sessions {
    entries: Mutex<HashMap<[u8; 32], Entry>>,
    /// Whoever sits on this machine, where no tokens are configured.
    pub(super) local: Arc<Session>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self { entries: Mutex::default(), local: Arc::new(Session::new(None)) }
    }

    /// Begins one of this operator; its id, which only the browser keeps.
    pub(super) fn begin(&self, operator: &str, token: Secret, now: Instant) -> String {
        let id = random();
        let session = Arc::new(Session::new(Some(token)));
        let mut entries = lock(&self.entries);
        entries.retain(|_, entry| !entry.is_over(now));
        let of_one = entries.values().filter(|entry| entry.operator == operator).count();
        if of_one >= OF_ONE_MAX || entries.len() >= SESSIONS_MAX {
            let counts = |entry: &Entry| of_one < OF_ONE_MAX || entry.operator == operator;
            let counted = entries.iter().filter(|(_, entry)| counts(entry));
            if let Some(oldest) = counted.min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id) {
                entries.remove(&oldest);
            }
        }
        entries.insert(digest(&id), Entry { session, operator: operator.to_owned(), began: now, used: now });
        id
    }

    /// The one with this id, unless it is over.
    pub(super) fn find(&self, id: &str, now: Instant) -> Option<Arc<Session>> {
        let mut entries = lock(&self.entries);
        let entry = entries.get_mut(&digest(id)).filter(|entry| !entry.is_over(now))?;
        entry.used = now;
        Some(Arc::clone(&entry.session))
    }

    pub(super) fn end(&self, id: &str) {
        lock(&self.entries).remove(&digest(id));
    }
}

/// 32 bytes that nobody can guess.
pub(super) fn random() -> String {
    let mut bytes = [0; 32];
    // It fails only where the system has no randomness at all; then nobody may log in with what could be guessed.
    aws_lc_rs::rand::fill(&mut bytes)
        .expect("aws-lc ends the process itself when the system gives no randomness");
    hex::encode(bytes)
}

fn digest(id: &str) -> [u8; 32] {
    Sha256::digest(id).into()
}

/// Nothing that holds these locks leaves a half-made change when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Secret {
        Secret::new("a-token").unwrap()
    }

    #[test]
    fn a_session_ends_by_itself_when_idle_and_in_any_case_after_its_time() {
        let (sessions, start) = (Sessions::new(), Instant::now());
        let id = sessions.begin("a", token(), start);
        assert!(sessions.find(&id, start).is_some());
        assert!(sessions.find("x", start).is_none());
        let mut now = start;
        while now + IDLE / 2 < start + LASTS {
            now += IDLE / 2;
            assert!(sessions.find(&id, now).is_some());
        }
        assert!(sessions.find(&id, start + LASTS).is_none());
        let id = sessions.begin("a", token(), start);
        assert!(sessions.find(&id, start + IDLE).is_none());
    }

    #[test]
    fn there_are_so_many_at_most_and_the_longest_idle_goes() {
        let (sessions, start) = (Sessions::new(), Instant::now());
        let at = |n: usize| start + Duration::from_millis(n as u64);
        let ids: Vec<_> = (0..=SESSIONS_MAX)
            .map(|n| sessions.begin(&(n / OF_ONE_MAX).to_string(), token(), at(n)))
            .collect();
        assert!(sessions.find(&ids[0], at(SESSIONS_MAX)).is_none());
        assert!(ids[1..].iter().all(|id| sessions.find(id, at(SESSIONS_MAX)).is_some()));
        sessions.end(&ids[1]);
        assert!(sessions.find(&ids[1], at(SESSIONS_MAX)).is_none());
    }

    /// With a viewer's token one could log in until nobody else was.
    #[test]
    fn who_logs_in_again_and_again_ends_sessions_of_its_own() {
        let (sessions, start) = (Sessions::new(), Instant::now());
        let other = sessions.begin("other", token(), start);
        let later = start + Duration::from_secs(1);
        let ids: Vec<_> = (0..2 * SESSIONS_MAX).map(|_| sessions.begin("one", token(), later)).collect();
        assert!(sessions.find(&other, later).is_some());
        assert_eq!(ids.iter().filter(|id| sessions.find(id, later).is_some()).count(), OF_ONE_MAX);
    }

    #[test]
    fn a_form_has_to_send_what_its_page_was_given() {
        let (one, other) = (Session::new(None), Session::new(None));
        assert!(one.is_ours(one.csrf()));
        assert!(!one.is_ours(other.csrf()) && !one.is_ours(""));
        one.say("done".to_owned());
        assert_eq!((one.take_notice(), one.take_notice()), (Some(Notice("done".to_owned())), None));
    }
}
