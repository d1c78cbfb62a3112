//! The model: what was sent, what of it must be stored, and who holds which claim until when. A few maps, and the rule
//! of promise 4 in one function.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use countersign::clock::{Timestamp, later};
use http::HeaderMap;

use crate::setting::{Source, TTL};

/// A request that was sent.
pub(crate) struct Sent {
    pub(crate) source: &'static Source,
    pub(crate) id: Option<String>,
    pub(crate) body: Bytes,
    pub(crate) headers: HeaderMap,
    pub(crate) target: String,
    pub(crate) at: Timestamp,
    /// Where it goes if it is stored.
    pub(crate) to: Vec<&'static str>,
    /// Whether its signature is right.
    pub(crate) genuine: bool,
    pub(crate) stored: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Id(&'static str, String),
    Guard(&'static str, Bytes),
}

impl Sent {
    fn keys(&self) -> impl Iterator<Item = Key> {
        let id = self.id.clone().map(|id| Key::Id(self.source.name, id));
        let guard = self.source.guarded.then(|| Key::Guard(self.source.name, self.body.clone()));
        id.into_iter().chain(guard)
    }
}

/// What one gateway must have counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) stored: u64,
    pub(crate) duplicate: u64,
    pub(crate) rejected: u64,
    pub(crate) conflicts: u64,
    /// Conflicts that may as well have been replays, by the order in which a burst reached the store.
    pub(crate) unclear: u64,
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) sent: Vec<Sent>,
    claims: HashMap<Key, (u32, Timestamp)>,
    /// How often a duplicate of this delivery may have brought dead forwards back.
    pub(crate) revivals: BTreeMap<u32, usize>,
    pub(crate) books: Books,
    /// When retention last ran.
    pub(crate) swept_at: Option<Timestamp>,
}

/// Deliveries whose dead forwards a step has brought back.
#[derive(Default)]
pub(crate) struct Revived {
    /// A duplicate was acknowledged.
    pub(crate) surely: BTreeSet<u32>,
    /// Somebody may have sent one that reached the store before the crash.
    pub(crate) maybe: BTreeSet<u32>,
}

impl Ledger {
    pub(crate) fn number(&mut self, sent: Sent) -> u32 {
        self.sent.push(sent);
        self.sent.len() as u32 - 1
    }

    pub(crate) fn of(&self, number: u32) -> &Sent {
        &self.sent[number as usize]
    }

    /// Judges what has become of requests that were sent at once: `found` are stored, `acked` have been answered with
    /// 2xx, and the others with nothing, because the gateway was gone before.
    pub(crate) fn judge(
        &mut self,
        numbers: &[u32],
        found: &BTreeSet<u32>,
        acked: &[u32],
        now: Timestamp,
    ) -> Revived {
        for number in numbers.iter().filter(|number| found.contains(number)) {
            let sent = &self.sent[*number as usize];
            assert!(sent.genuine, "request {number} was stored and is a forgery");
            let holder = self.holder(sent, now);
            assert!(holder.is_none(), "request {number} was stored beside its first, {holder:?}");
            for key in sent.keys() {
                self.claims.insert(key, (*number, later(now, TTL)));
            }
            self.sent[*number as usize].stored = true;
            self.books.stored += 1;
        }
        let mut revived = Revived::default();
        for number in numbers.iter().filter(|number| !found.contains(number)) {
            let sent = &self.sent[*number as usize];
            let answered = acked.contains(number);
            if !sent.genuine {
                assert!(!answered, "request {number} is a forgery and was acknowledged");
                self.books.rejected += 1;
                continue;
            }
            let holder = self.holder(sent, now);
            assert!(
                !answered || holder.is_some(),
                "request {number} was acknowledged, is not stored, and nobody had claimed its keys"
            );
            self.books.duplicate += u64::from(answered);
            let Some((first, true)) = holder else { continue };
            let (revives, conflict) = (sent.source.revives, sent.body != self.sent[first as usize].body);
            // Before its id was claimed, which was in this burst, it would have been a replay of something else.
            let clear =
                answered && (!numbers.contains(&first) || !self.is_replay_of_another(sent, first, now));
            let count = if clear { &mut self.books.conflicts } else { &mut self.books.unclear };
            *count += u64::from(conflict && answered);
            if revives {
                *self.revivals.entry(first).or_default() += 1;
                if clear { &mut revived.surely } else { &mut revived.maybe }.insert(first);
            }
        }
        revived
    }

    /// Who has claimed a key of this request, and whether it is the id.
    fn holder(&self, sent: &Sent, now: Timestamp) -> Option<(u32, bool)> {
        sent.keys().find_map(|key| {
            let (first, until) = self.claims.get(&key)?;
            (*until > now).then_some((*first, matches!(key, Key::Id(..))))
        })
    }

    fn is_replay_of_another(&self, sent: &Sent, first: u32, now: Timestamp) -> bool {
        let mut guards = sent.keys().filter(|key| matches!(key, Key::Guard(..)));
        let held = guards.find_map(|key| self.claims.get(&key));
        held.is_some_and(|(holder, until)| *until > now && *holder != first)
    }
}
