//! Work for the writer: what is done to the tables in a transaction, what follows when that is durable, and how it is
//! queued with whoever waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::Transaction;
use tokio::sync::oneshot;

use super::claims::Claims;
use super::depths::Change;
use crate::clock::Timestamp;
use crate::id::Id;
use crate::metrics::Metrics;
use crate::store::{Lease, Outlet, Slot, StoreError};

/// One thing to do in a transaction.
pub(super) trait Work: Send + 'static {
    /// What the caller gets once it is durable.
    type Output: Send;

    /// Whether it takes new space, and so is what a full disk refuses first.
    const ADDS: bool = false;

    /// Bytes to be written, roughly.
    fn bytes(&self) -> usize {
        0
    }

    /// Does it. May be done again after the transaction has failed and been rolled back.
    fn apply(
        &self,
        transaction: &Transaction<'_>,
        claims: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<Self::Output>;
}

/// What became of a forward, for the books.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum Entry {
    Created,
    Requeued,
    Delivered,
    Dead,
    Cancelled,
}

impl Entry {
    pub(in crate::store) fn count(self, destination: &str, metrics: &Metrics) {
        let settled = |state| metrics.forward_settled.with_label_values(&[destination, state]);
        match self {
            Self::Created => metrics.forward_created.with_label_values(&[destination]),
            Self::Requeued => metrics.forward_requeued.with_label_values(&[destination]),
            Self::Delivered => settled("delivered"),
            Self::Dead => settled("dead"),
            Self::Cancelled => settled("cancelled"),
        }
        .inc();
    }
}

/// What is to happen when the transaction is durable, and not at all when it fails.
pub(super) struct Effects<'o> {
    pub(super) outlet: &'o dyn Outlet,
    pub(super) deliveries: u32,
    pub(super) changes: Vec<Change>,
    pub(super) entries: Vec<(Arc<str>, Entry)>,
    pub(super) dispatches: Vec<(Lease, Slot)>,
    pub(super) wakes: BTreeSet<Arc<str>>,
    /// Forwards that were set aside, and what is wrong with their rows.
    pub(super) corrupt: Vec<(Id, Arc<str>, String)>,
    /// Whether the index of what is pending was seen to contradict its table.
    pub(super) index_damaged: bool,
}

impl<'o> Effects<'o> {
    pub(super) fn new(outlet: &'o dyn Outlet) -> Self {
        Self {
            outlet,
            deliveries: 0,
            changes: Vec::new(),
            entries: Vec::new(),
            dispatches: Vec::new(),
            wakes: BTreeSet::new(),
            corrupt: Vec::new(),
            index_damaged: false,
        }
    }

    pub(super) fn pending(&mut self, destination: &Arc<str>, since: Timestamp) {
        self.change(destination, Entry::Created, (since, 1), 0);
    }

    pub(super) fn delivered(&mut self, destination: &Arc<str>, since: Timestamp) {
        self.change(destination, Entry::Delivered, (since, -1), 0);
    }

    pub(super) fn cancelled(&mut self, destination: &Arc<str>, since: Timestamp) {
        self.change(destination, Entry::Cancelled, (since, -1), 0);
    }

    pub(super) fn died(&mut self, destination: &Arc<str>, since: Timestamp) {
        self.change(destination, Entry::Dead, (since, -1), 1);
    }

    pub(super) fn revived(&mut self, destination: &Arc<str>, since: Timestamp) {
        self.change(destination, Entry::Requeued, (since, 1), -1);
    }

    /// One that was delivered or cancelled is to be delivered again.
    pub(super) fn replayed(&mut self, destination: &Arc<str>, since: Timestamp) {
        self.change(destination, Entry::Requeued, (since, 1), 0);
    }

    /// A dead letter is cancelled. It was settled when it died, and is not settled again.
    pub(super) fn buried(&mut self, destination: &Arc<str>) {
        self.changes.push(Change { destination: Arc::clone(destination), pending: None, dead: -1 });
    }

    fn change(&mut self, destination: &Arc<str>, entry: Entry, pending: (Timestamp, i8), dead: i8) {
        self.entries.push((Arc::clone(destination), entry));
        self.changes.push(Change { destination: Arc::clone(destination), pending: Some(pending), dead });
    }
}

/// Work in the queue, of whatever kind.
pub(super) trait Queued: Send {
    fn adds(&self) -> bool;
    fn bytes(&self) -> usize;
    fn apply(
        &mut self,
        transaction: &Transaction<'_>,
        claims: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Job<W: Work> {
    work: W,
    output: Option<W::Output>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
}

/// Where the answer to work comes.
type Answer<W> = oneshot::Receiver<Result<<W as Work>::Output, StoreError>>;

/// Makes `work` fit for the queue.
pub(super) fn job<W: Work>(work: W) -> (Box<dyn Queued>, Answer<W>) {
    let (reply, answer) = oneshot::channel();
    (Box::new(Job { work, output: None, reply }), answer)
}

impl<W: Work> Queued for Job<W> {
    fn adds(&self) -> bool {
        W::ADDS
    }

    fn bytes(&self) -> usize {
        self.work.bytes()
    }

    fn apply(
        &mut self,
        transaction: &Transaction<'_>,
        claims: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        self.output = Some(self.work.apply(transaction, claims, effects)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { output, reply, .. } = *self;
        // A caller that has stopped waiting changes nothing: what was committed stays.
        let _ = reply.send(outcome.and_then(|()| output.ok_or(StoreError::Closed)));
    }
}
