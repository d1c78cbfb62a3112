//! The seam between the gateway and what makes deliveries durable. Knows nothing of HTTP connections. Engines are
//! [`sqlite`] and [`postgres`], which several gateways share; both pass the same conformance suite (`tests/store.rs`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::clock::{Moment, Timestamp};
use crate::dedup::Keys;
use crate::delivery::Delivery;
use crate::forward::{Order, Progress, Told};
use crate::id::Id;
use crate::secret::Secret;
use crate::verify::Verified;

mod copy;
pub mod operators;
pub mod postgres;
pub mod quarantine;
pub mod sqlite;

pub use copy::{Compared, Content, CopyError, copy};

/// What ingest asks to be stored: a verified delivery, its claims, and where it goes.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The delivery; only `verify` can make one.
    pub verified: Arc<Verified>,
    /// What it claims.
    pub keys: Keys,
    /// When it was received. Earlier claims are judged by the earlier reading, so that none ends before its time
    /// because somebody set the clock; its forwards are due, and pending, from the steady one.
    pub at: Moment,
    /// When the claims expire; counted from the later reading, for the same reason.
    pub claimed_until: Timestamp,
    /// The destinations to forward to; empty for unrouted and dropped deliveries.
    pub destinations: Vec<Arc<str>>,
    /// Whether a duplicate by its id brings the dead forwards of the first back.
    pub revive_dead: bool,
}

/// What became of an [`Arrival`]; durable when it is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is new, and stored.
    Stored,
    /// Its delivery id was claimed by this delivery before. Nothing was stored.
    Duplicate {
        /// The delivery that holds the claim.
        first: Id,
        /// Whether the body differs from the first one's.
        conflict: bool,
    },
    /// Its signed bytes were claimed by this delivery before, under another id or none. Nothing was stored.
    Replay {
        /// The delivery that holds the claim.
        first: Id,
    },
}

/// A forward that a lane may attempt now, its attempt already counted.
#[derive(Debug, Clone)]
pub struct Lease {
    /// What to send.
    pub delivery: Arc<Delivery>,
    /// Where to.
    pub destination: Arc<str>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// Since when the forward has been pending, in steady time: receipt, or the latest requeue.
    pub pending_since: Timestamp,
    /// How long of that it was due and could not be attempted, whatever kept it: this does not count as age.
    pub waited: Duration,
    /// Whether an operator, or a provider's redelivery of a dead one, asked for it again.
    pub replay: bool,
}

/// The end of an attempt.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The forward's delivery.
    pub id: Id,
    /// The forward's destination.
    pub destination: Arc<str>,
    /// The attempt that ended; a settlement of any other attempt than the one in flight changes nothing.
    pub attempt: u32,
    /// Since when the forward had been pending, as it was leased. Cancelled and replayed meanwhile, it has another attempt of
    /// this number.
    pub pending_since: Timestamp,
    /// What becomes of the forward.
    pub next: Progress,
    /// What to remember of the attempt; `None` when it never left the gateway (a drain gave the lease back).
    pub record: Option<AttemptRecord>,
}

/// What is remembered of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The outcome's label.
    pub outcome: &'static str,
    /// The backend's status, when there was an answer.
    pub status: Option<u16>,
    /// The beginning of the backend's answer, or the error's text.
    pub detail: String,
}

/// A secret that came with a handshake.
#[derive(Debug, Clone)]
pub struct HandedOver {
    /// When.
    pub received_at: Timestamp,
    /// The address that it came from.
    pub sender: String,
    /// The secret itself.
    pub secret: Secret,
}

/// How a secret of a source has been used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseOfSecret {
    /// The source.
    pub source: Arc<str>,
    /// The secret's name.
    pub secret: Arc<str>,
    /// When the count began.
    pub since: Timestamp,
    /// How many requests it has verified.
    pub uses: u64,
    /// When it last did.
    pub last_used: Option<Timestamp>,
}

/// How full a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Forwards that are waiting or in flight.
    pub pending: u64,
    /// Dead letters.
    pub dead: u64,
    /// Since when the oldest pending one has been pending, to the second below, in steady time.
    pub oldest: Option<Timestamp>,
}

/// What retention removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Deliveries all of whose forwards had been settled for longer than the retention.
    pub deliveries: u64,
    /// Claims that had expired.
    pub claims: u64,
}

/// Why the store did not do what it was asked. None of these is the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// More is queued than the store will hold in memory.
    #[error("the store's queue is full")]
    Busy,
    /// Less space is left than the reserve, or the disk is full. Passes by itself.
    #[error("the disk is below its reserve")]
    DiskFull,
    /// The database that gateways share cannot be reached. Passes by itself.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// A write or an fsync failed, so that nothing that the operating system says about the file can be believed any
    /// more; or the file is damaged.
    #[error("the store has shut itself: {0}")]
    Latched(String),
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// This one thing cannot be read, or not be stored; the store goes on.
    #[error("the store cannot do this: {0}")]
    Read(String),
}

impl StoreError {
    /// Whether the same may be done a while later.
    pub fn passes(&self) -> bool {
        match self {
            Self::Busy | Self::DiskFull | Self::Unreachable(_) => true,
            Self::Latched(_) | Self::Closed | Self::Read(_) => false,
        }
    }
}

/// What a lane has to tell those of other gateways.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The destination.
    pub destination: Arc<str>,
    /// Attempts that all gateways together may run at once; 0 when this one is to run none any more.
    pub limit: usize,
    /// What has become of its breaker, where the others do not know yet.
    pub news: Option<Told>,
}

/// What a lane may use of what its destination allows all gateways together.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Attempts that it may run at once; of the rate it has as large a part.
    pub places: usize,
    /// Until when it may begin attempts: others may have the places afterwards.
    pub until: Instant,
    /// The breaker, as all know it.
    pub breaker: Told,
    /// Whether the probe is this lane's, when one is due.
    pub probes: bool,
}

/// Takes forwards from the store to their lanes without a second read.
pub trait Outlet: Send + Sync {
    /// A free place in the lane of `destination`, taken for a forward that is about to be committed. `None` when the
    /// lane is full, paused, unknown or has older forwards waiting: then it is stored as waiting.
    fn reserve(&self, destination: &str) -> Option<Slot>;
    /// A place that was taken is not needed after all.
    fn give_back(&self, _destination: &str, slot: Slot) {
        drop(slot);
    }
    /// A forward for which a place was taken has been committed.
    fn dispatch(&self, lease: Lease, slot: Slot);
    /// Forwards have been committed as waiting for `destination`.
    fn wake(&self, destination: &str);
    /// Which forwards of `destination` have to wait for each other; `None` when none has to.
    fn order(&self, _destination: &str) -> Option<Arc<Order>> {
        None
    }
    /// An operator has paused the lane of `destination`, configured or not, or has it go on.
    fn set_paused(&self, _destination: &str, _paused: bool) {}
    /// What the lanes have to tell. A store asks that gateways share; from the first time on they have nothing but what it
    /// gives them.
    fn standings(&self) -> Vec<Standing> {
        Vec::new()
    }
    /// Gives the lane of `destination` its share. Returns the places that it still holds: more, until attempts have ended.
    fn share(&self, _destination: &str, share: Share) -> usize {
        share.places
    }
}

/// A place in a lane; free again when dropped.
pub type Slot = tokio::sync::OwnedSemaphorePermit;

/// A durable store. All times are arguments, so that tests can set them. Those of forwards are steady time.
#[async_trait]
pub trait Store: Send + Sync {
    /// Claims and stores in one transaction; durable when it returns `Ok`. Dropping the future does not undo it.
    async fn accept(&self, arrival: Arrival) -> Result<Accepted, StoreError>;

    /// Brings the dead forwards of a delivery back: waiting, due at once, attempts from 0. Returns how many.
    async fn revive(&self, id: Id, now: Timestamp) -> Result<u64, StoreError>;

    /// Keeps a secret that came with a handshake of `source` until it is shown; durable when it returns `Ok`. False when as
    /// many are kept as may be: anybody can send one.
    async fn hand_over(&self, source: Arc<str>, given: HandedOver) -> Result<bool, StoreError>;

    /// The secrets that were handed over to `source`, which are then kept no more.
    async fn show_handed_over(&self, source: Arc<str>) -> Result<Vec<HandedOver>, StoreError>;

    /// Writes how secrets have been used by now, in the place of what was known of them.
    async fn note_uses(&self, uses: Vec<UseOfSecret>) -> Result<(), StoreError>;

    /// How secrets have been used, as it was last noted; also of some that are configured no more.
    async fn uses(&self) -> Result<Vec<UseOfSecret>, StoreError>;

    /// Leases up to `limit` forwards of `destination` that are due, oldest due first, and counts their attempts. Fewer
    /// when their bodies are large: there is more to lease for as long as [`Store::next_due`] lies in the past.
    /// Rows that fail their checksum are set aside, logged and counted, never returned.
    async fn lease(&self, destination: &str, limit: usize, now: Timestamp) -> Result<Vec<Lease>, StoreError>;

    /// When the next waiting forward of `destination` falls due (possibly in the past).
    async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, StoreError>;

    /// Has what waits for `destination` and is due later than `latest`, where no pause can have put it, fall due between
    /// `now` and `latest` instead, evenly. Returns how many.
    async fn rein_in(&self, destination: &str, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError>;

    /// Has what is pending for `destination` wait by this order from now on, whatever it was accepted under; without one
    /// everything is let go. Until it has been done, nothing may be leased, nor a place given away.
    async fn arrange(&self, destination: &str, order: Option<Arc<Order>>) -> Result<(), StoreError>;

    /// Has the lane of `destination` begin no more attempts, or go on, also after restarts, and those of other gateways as soon
    /// as they look. Written down, and this gateway's lane told, when it returns `Ok`. The destination need not be configured.
    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StoreError>;

    /// Writes the end of an attempt; durable when it returns `Ok`. After an error that
    /// [passes](StoreError::passes) the forward is still in flight, so that the caller has to settle it again.
    async fn settle(&self, settlement: Settlement) -> Result<(), StoreError>;

    /// The delivery with this id.
    async fn delivery(&self, id: Id) -> Result<Option<Delivery>, StoreError>;

    /// How full each lane is, by destination; kept in memory in step with the commits, so cheap.
    fn depths(&self) -> Vec<(Arc<str>, Depth)>;

    /// Removes what retention allows: never anything that is pending or dead, nor a claim that has not been expired for
    /// longer than clocks are believed to be wrong ([`DIFFERENCE_MAX`](crate::clock::DIFFERENCE_MAX)): set back, they
    /// make a request fresh again that the claim is there to recognise.
    async fn sweep(&self, now: Timestamp, keep_delivered: Duration) -> Result<Swept, StoreError>;

    /// Size of the store's files in bytes, of a second ago at most while the file system answers.
    fn bytes(&self) -> u64;

    /// Why the store cannot accept now; `None` when it can.
    fn fault(&self) -> Option<StoreError>;

    /// Finishes what is queued, and closes; gives up after a few seconds when the disk hangs. Later calls answer
    /// [`StoreError::Closed`].
    async fn close(&self);
}
