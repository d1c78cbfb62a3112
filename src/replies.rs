//! What a backend said to a sender that still waits for it: the one thing that passes from `dispatch` to `ingest`. Kept by
//! delivery, for as long as somebody expects it, and in memory only: whoever is gone learns nothing, and nothing durable
//! depends on it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;

use crate::id::Id;

/// Bytes of an answer, headers included, that are passed on at most: none is cut, so a larger one is not passed on.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A backend's answer, fit for a sender: without what belongs to the backend's connection, and without cookies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 2xx, or a refusal that is final.
    pub status: StatusCode,
    /// Its end-to-end headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

impl Answer {
    /// Headers and body together.
    pub fn bytes(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
            + self.body.len()
    }
}

/// How the attempt ended that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The backend has the last word on the delivery, which is on disk, and this is it.
    Answered(Answer),
    /// It has, and it cannot be passed on: a redirect, too large, broken off, or with a secret of ours in it.
    Unfit,
    /// There was no last word: another attempt follows, or none could be made.
    Failed,
}

/// Those who attempt forwards, as `ingest` sees them.
pub trait Backends: Send + Sync {
    /// Expects the end of the next attempt of a forward, which may not be stored yet. `None` when none is going to begin:
    /// the lane is paused, broken, or gone.
    fn expect(&self, id: Id, destination: &str) -> Option<Expected>;
}

/// Who waits.
#[derive(Debug, Default)]
pub struct Replies(Mutex<HashMap<Id, oneshot::Sender<Reply>>>);

impl Replies {
    /// Waits for the next attempt of this delivery, in place of whoever did before.
    pub fn expect(self: &Arc<Self>, id: Id) -> Expected {
        let (sender, reply) = oneshot::channel();
        self.waiting().insert(id, sender);
        Expected { id, reply, replies: Arc::clone(self) }
    }

    /// Whether anybody waits, so that an answer is worth keeping.
    pub fn is_expected(&self, id: Id) -> bool {
        self.waiting().contains_key(&id)
    }

    /// Tells whoever waits.
    pub fn tell(&self, id: Id, reply: Reply) {
        if let Some(waiting) = self.waiting().remove(&id) {
            // Gone meanwhile: nobody's loss.
            let _ = waiting.send(reply);
        }
    }

    /// A map is whole whatever happened to whom.
    fn waiting(&self) -> MutexGuard<'_, HashMap<Id, oneshot::Sender<Reply>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits; dropped, nobody does.
#[derive(Debug)]
pub struct Expected {
    id: Id,
    reply: oneshot::Receiver<Reply>,
    replies: Arc<Replies>,
}

impl Future for Expected {
    type Output = Reply;

    /// An attempt that ends without a word has failed.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        Pin::new(&mut self.reply).poll(context).map(|reply| reply.unwrap_or(Reply::Failed))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.reply.close();
        let mut waiting = self.replies.waiting();
        // It may be somebody else's by now.
        if waiting.get(&self.id).is_some_and(oneshot::Sender::is_closed) {
            waiting.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Id {
        Id::from_bytes(number.to_be_bytes())
    }

    #[tokio::test]
    async fn a_reply_reaches_who_waits_and_only_them() {
        let replies = Arc::new(Replies::default());
        replies.tell(id(1), Reply::Unfit);
        let (one, two) = (replies.expect(id(1)), replies.expect(id(2)));
        replies.tell(id(2), Reply::Unfit);
        assert_eq!(two.await, Reply::Unfit);
        assert!(replies.is_expected(id(1)) && !replies.is_expected(id(2)));
        drop(one);
        assert!(!replies.is_expected(id(1)), "nothing is kept for who is gone");
    }

    #[tokio::test]
    async fn who_comes_later_waits_in_place_of_who_came_before() {
        let replies = Arc::new(Replies::default());
        let (before, after) = (replies.expect(id(1)), replies.expect(id(1)));
        assert_eq!(before.await, Reply::Failed);
        replies.tell(id(1), Reply::Unfit);
        assert_eq!(after.await, Reply::Unfit);
    }
}
