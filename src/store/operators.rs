//! What operators ask of a store, apart from what the way of a delivery needs: a part of the seam that every engine
//! has. Whatever is asked is bounded in work, and stands in nobody's way: a page ends where enough has been looked at,
//! and says where to go on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::clock::{Moment, Timestamp};
use crate::delivery::Verification;
use crate::forward::State;
use crate::id::Id;

/// Which deliveries are wanted, and which of their forwards. Everything that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this source.
    pub source: Option<String>,
    /// Of this event type.
    pub event: Option<String>,
    /// With this provider's identifier. It is found by its claim where there is one, however many deliveries there are.
    pub delivery_id: Option<String>,
    /// The sources whose claims are looked through for `delivery_id`, when `source` is not given.
    pub claimed_by: Vec<Arc<str>>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
    /// Received before this time.
    pub until: Option<Timestamp>,
    /// With these bytes in the delivery id, the event type or the body. Headers and query are not looked into: they hold
    /// what is masked when it is shown, and could be guessed piece by piece.
    pub text: Option<String>,
    /// With a forward, or without any.
    pub state: Option<Wanted>,
    /// With a forward to this destination.
    pub destination: Option<String>,
    /// With a forward whose latest attempt ended so.
    pub outcome: Option<String>,
}

/// What a delivery is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A forward in this state.
    Forward(State),
    /// No forward: nothing matched, or the event is one that its source drops.
    Unrouted,
}

impl Wanted {
    /// The state with this name, or `unrouted`.
    pub fn of_label(label: &str) -> Option<Self> {
        if label == "unrouted" { Some(Self::Unrouted) } else { State::of_label(label).map(Self::Forward) }
    }
}

impl Filter {
    /// Whether anything is said about forwards; deliveries that have none do not match then.
    pub(super) fn is_about_forwards(&self) -> bool {
        self.destination.is_some() || self.outcome.is_some() || matches!(self.state, Some(Wanted::Forward(_)))
    }

    /// Whether a forward is among those that are wanted.
    pub(super) fn wants(&self, forward: &ForwardStatus) -> bool {
        let state = match self.state {
            Some(Wanted::Forward(state)) => forward.state == state,
            Some(Wanted::Unrouted) => false,
            None => true,
        };
        state
            && self.destination.as_deref().is_none_or(|wanted| *forward.destination == *wanted)
            && self.outcome.as_deref().is_none_or(|wanted| forward.outcome.as_deref() == Some(wanted))
    }

    /// Whether `change` is to be made to a forward. What was cancelled or purged was meant to be: only a filter that names this
    /// state brings it back.
    pub(super) fn targets(&self, forward: &ForwardStatus, change: Change) -> bool {
        let is_meant = self.state.is_some() || forward.state != State::Cancelled;
        is_meant && self.wants(forward) && change.fits(forward.state)
    }
}

/// A part of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What was found, in order of the deliveries' ids.
    pub found: Vec<T>,
    /// Where to go on; `None` at the end. A page may be short, or empty, and not the last.
    pub next: Option<Id>,
}

/// A delivery without its headers and body, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The gateway's own id.
    pub id: Id,
    /// What is known of it besides; `None` when its row is lost or damaged, and only its forwards are left.
    pub summary: Option<Summary>,
    /// In the order of their destinations' names.
    pub forwards: Vec<ForwardStatus>,
}

/// What a delivery is, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The source that it came in by.
    pub source: Arc<str>,
    /// The provider's identifier.
    pub delivery_id: Option<String>,
    /// The event type.
    pub event: Option<String>,
    /// When its last byte had been read.
    pub received_at: Timestamp,
    /// The sender's address.
    pub sender: Option<IpAddr>,
    /// The method.
    pub method: String,
    /// How it was verified.
    pub verification: Verification,
    /// Bytes of its body.
    pub body_bytes: u64,
}

/// How a forward stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardStatus {
    /// Where to.
    pub destination: Arc<str>,
    /// Where it stands.
    pub state: State,
    /// Whether it waits behind a dead letter of its key.
    pub parked: bool,
    /// Attempts that have been counted since it became pending.
    pub attempts: u32,
    /// When the next attempt is due, in steady time, while it waits.
    pub due_at: Timestamp,
    /// Since when it is, or was, pending, in steady time.
    pub pending_since: Timestamp,
    /// Whether it was asked for again.
    pub replay: bool,
    /// When it was settled; `None` while it is pending.
    pub settled_at: Option<Timestamp>,
    /// How the latest attempt ended.
    pub outcome: Option<String>,
}

/// An attempt that there was something to tell of: a failure, a retry or a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// Where to.
    pub destination: Arc<str>,
    /// Its number, from 1; a replay begins anew.
    pub number: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The outcome's label.
    pub outcome: String,
    /// The backend's status.
    pub status: Option<u16>,
    /// The beginning of the backend's answer, or the error's text.
    pub detail: String,
}

/// What became of a delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// In the order of their destinations' names.
    pub forwards: Vec<ForwardStatus>,
    /// In the order in which they ended; at most [`ATTEMPTS_MAX`], the latest.
    pub attempts: Vec<Attempted>,
}

/// Attempts that are shown of a delivery.
pub const ATTEMPTS_MAX: u32 = 1_000;

/// Dead letters that have died of the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadGroup {
    /// Where to.
    pub destination: Arc<str>,
    /// How the last attempt ended, or `corrupt` when the delivery could not be read.
    pub outcome: Option<String>,
    /// How many.
    pub count: u64,
}

/// The dead letters in groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetters {
    /// By destination and outcome.
    pub groups: Vec<DeadGroup>,
    /// Whether all were counted, or there were too many: then the groups are those of the newest.
    pub complete: bool,
}

/// What an operator can do to a forward. What does not fit the state that it is in changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// One that was settled, however, is waiting again, as a replay, its attempts counted from 0.
    Requeue,
    /// One that is pending is cancelled. An attempt that is under way goes on, and changes nothing any more.
    Cancel,
    /// A dead one is cancelled, and so goes when retention says so. Until then it can be requeued.
    Purge,
}

impl Change {
    /// Whether it would change a forward in this state.
    pub fn fits(self, state: State) -> bool {
        match state {
            State::Waiting | State::InFlight => self == Self::Cancel,
            State::Delivered | State::Cancelled => self == Self::Requeue,
            State::Dead => self == Self::Requeue || self == Self::Purge,
        }
    }
}

/// A forward, by its delivery and its destination.
pub type Target = (Id, Arc<str>);

/// What operators ask of a store. Times are arguments, as in [`Store`](super::Store).
#[async_trait]
pub trait Operators: Send + Sync {
    /// Up to `limit` deliveries that match, the newest first, from the one before `from` on.
    async fn list(&self, filter: Filter, from: Option<Id>, limit: usize) -> Result<Page<Listed>, StoreError>;

    /// The forwards of a delivery and what is known of their attempts; empty when there is no such delivery.
    async fn history(&self, id: Id) -> Result<History, StoreError>;

    /// The dead letters, counted.
    async fn dead_letters(&self) -> Result<DeadLetters, StoreError>;

    /// Forwards that match and that `change` would change, in the order of arrival, from the one after `from` on.
    async fn targets(
        &self,
        filter: Filter,
        change: Change,
        from: Option<Id>,
    ) -> Result<Page<Target>, StoreError>;

    /// Does it to these forwards, in one transaction; durable when it returns `Ok`. Returns those that have been changed:
    /// others are not there, or stand where it does not fit.
    async fn change(
        &self,
        change: Change,
        targets: Vec<Target>,
        at: Moment,
    ) -> Result<Vec<Target>, StoreError>;
}
