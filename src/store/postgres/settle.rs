//! Writing the ends of attempts, many in one statement. Only the attempt that is under way, of the gateway that has it, can
//! end: what was taken over meanwhile is another's.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use deadpool_postgres::Object;
use tokio::sync::oneshot;

use super::batch::Job;
use super::error::Trouble;
use super::row::{text, uuid};
use super::{Inner, connect};
use crate::clock::{Timestamp, later};
use crate::dedup::Key;
use crate::forward::Progress;
use crate::store::sqlite::{DepthChange, Entry};
use crate::store::{Settlement, StoreError};

const SETTLE: &str = "
    WITH ended AS MATERIALIZED (
        SELECT *, $1::uuid AS gateway, 'in_flight' AS was FROM unnest($2::uuid[], $3::text[], $4::integer[], $5::text[], $6::bigint[], $7::integer[],
            $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::integer[], $13::text[], $14::bigint[])
            WITH ORDINALITY AS e(delivery, destination, attempt, state, due_at, attempts, ended_at, outcome, started_at,
                duration_ms, status, detail, pending_since, n)
    ), settled AS (
        UPDATE countersign.forward f
        SET state = e.state, due_at = coalesce(e.due_at, f.due_at), attempts = e.attempts,
            settled_at = CASE WHEN e.state = 'waiting' THEN NULL ELSE coalesce(e.ended_at, f.due_at) END,
            last_outcome = coalesce(e.outcome, f.last_outcome), held_by = NULL, held_since = NULL
        FROM ended e
        WHERE f.delivery = e.delivery AND f.destination = e.destination AND f.state = e.was
            AND f.attempts = e.attempt AND f.pending_since = e.pending_since AND f.held_by = e.gateway
        RETURNING e.n, f.replay
    ), remembered AS (
        INSERT INTO countersign.attempt (delivery, destination, attempt, started_at, duration_ms, outcome, status, detail)
        SELECT e.delivery, e.destination, e.attempt, e.started_at, e.duration_ms, e.outcome, e.status, e.detail
        FROM settled s JOIN ended e ON e.n = s.n
        WHERE e.outcome IS NOT NULL AND NOT (e.state = 'delivered' AND e.attempt = 1 AND NOT s.replay)
    )
    SELECT s.n, EXISTS (
        SELECT 1 FROM countersign.ordered o WHERE o.delivery = e.delivery AND o.destination = e.destination)
    FROM settled s JOIN ended e ON e.n = s.n";

/// An end that waits to be written.
pub(super) struct Settle {
    pub(super) settlement: Settlement,
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Job for Settle {
    fn bytes(&self) -> usize {
        self.settlement.record.as_ref().map_or(0, |record| record.detail.len())
    }

    fn keys(&self) -> [Option<Key>; 2] {
        // An update that finds its row twice takes either, and both are the same attempt's.
        [None, None]
    }
}

impl Inner {
    pub(super) async fn settle(self: Arc<Self>, jobs: Vec<Settle>) {
        let changing = self.activity.begin();
        let settled = loop {
            let (inner, jobs) = (&self, &jobs);
            match inner.write(jobs).await {
                Err(Trouble::Again(_)) => {}
                done => break done,
            }
        };
        match settled {
            Ok((settled, released)) => {
                let mut changes = Vec::new();
                for destination in released {
                    self.outlet.wake(&destination);
                }
                for (n, job) in jobs.iter().enumerate() {
                    let settlement = &job.settlement;
                    self.held.remove(
                        settlement.id,
                        &settlement.destination,
                        settlement.attempt,
                        settlement.pending_since,
                    );
                    let Some(change) = settled.contains(&n).then(|| change(settlement)).flatten() else {
                        continue;
                    };
                    if let Some(entry) = entry(settlement.next) {
                        entry.count(&settlement.destination, &self.metrics);
                    }
                    changes.push(change);
                }
                self.depths.apply(changes);
                for Settle { settlement, reply } in jobs {
                    let _ = reply.send(Ok(()));
                    if let Progress::Waiting { .. } = settlement.next {
                        self.outlet.wake(&settlement.destination);
                    }
                }
                drop(changing);
            }
            Err(Trouble::Own(reason)) if jobs.len() > 1 => {
                tracing::debug!(reason, "settling a batch one by one");
                drop(changing);
                for one in jobs {
                    Box::pin(Arc::clone(&self).settle(vec![one])).await;
                }
            }
            Err(trouble) => {
                let final_ = matches!(trouble, Trouble::Own(_));
                let error = StoreError::from(trouble);
                for Settle { settlement, reply } in jobs {
                    if final_ {
                        // Nobody tries that again: whoever looks next finds that nobody has it.
                        self.held.remove(
                            settlement.id,
                            &settlement.destination,
                            settlement.attempt,
                            settlement.pending_since,
                        );
                    }
                    let _ = reply.send(Err(error.clone()));
                }
                drop(changing);
                self.look.notify_one();
            }
        }
    }
}

impl Inner {
    /// Writes them, and has the turn of those come that waited for one that is over: of these lanes.
    async fn write(&self, jobs: &[Settle]) -> Result<(HashSet<usize>, BTreeSet<Arc<str>>), Trouble> {
        connect::transaction(&self.pool, |client| async move {
            let (settled, placed) = send(&client, jobs, self.id).await?;
            let over = placed.into_iter().filter_map(|n| {
                let Settlement { id, destination, next, .. } = &jobs.get(n)?.settlement;
                entry(*next).map(|_| (*id, destination, *next == Progress::Dead))
            });
            Ok::<_, Trouble>((settled, self.end_turns(&client, over).await?))
        })
        .await
    }
}

fn entry(next: Progress) -> Option<Entry> {
    match next {
        Progress::Delivered => Some(Entry::Delivered),
        Progress::Dead => Some(Entry::Dead),
        Progress::Cancelled => Some(Entry::Cancelled),
        Progress::Waiting { .. } | Progress::InFlight { .. } => None,
    }
}

/// What it does to the depth of its lane.
fn change(settlement: &Settlement) -> Option<DepthChange> {
    let dead = match settlement.next {
        Progress::Waiting { .. } | Progress::InFlight { .. } => return None,
        Progress::Delivered | Progress::Cancelled => 0,
        Progress::Dead => 1,
    };
    let pending = Some((settlement.pending_since, -1));
    Some(DepthChange { destination: Arc::clone(&settlement.destination), pending, dead })
}

/// Those that were settled, by their place among the jobs, and of these those that have a place in a destination's order.
async fn send(
    client: &Object,
    jobs: &[Settle],
    holder: uuid::Uuid,
) -> Result<(HashSet<usize>, Vec<usize>), Trouble> {
    let statement = client.prepare_cached(SETTLE).await?;
    let settlements: Vec<&Settlement> = jobs.iter().map(|job| &job.settlement).collect();
    let records: Vec<_> = settlements.iter().map(|settlement| settlement.record.as_ref()).collect();
    let ids: Vec<_> = settlements.iter().map(|settlement| uuid(settlement.id)).collect();
    let destinations: Vec<&str> = settlements.iter().map(|settlement| &*settlement.destination).collect();
    let attempt: Vec<i32> = settlements.iter().map(|settlement| signed(settlement.attempt)).collect();
    let mut states = Vec::new();
    let mut due: Vec<Option<i64>> = Vec::new();
    let mut attempts: Vec<i32> = Vec::new();
    for settlement in &settlements {
        let (state, due_at, counted) = match settlement.next {
            Progress::Waiting { due_at, attempts } => ("waiting", Some(due_at), attempts),
            Progress::Delivered => ("delivered", None, settlement.attempt),
            Progress::Dead => ("dead", None, settlement.attempt),
            Progress::Cancelled => ("cancelled", None, settlement.attempt),
            Progress::InFlight { attempt } => {
                debug_assert!(false, "an attempt does not end in flight");
                ("in_flight", None, attempt)
            }
        };
        states.push(state);
        due.push(due_at.map(Timestamp::as_millisecond));
        attempts.push(signed(counted));
    }
    let started: Vec<Option<i64>> =
        records.iter().map(|record| record.map(|record| record.started_at.as_millisecond())).collect();
    // Without a record the time of the decision is not known; it was not before the forward fell due.
    let ended: Vec<Option<i64>> = records
        .iter()
        .map(|record| record.map(|record| later(record.started_at, record.duration).as_millisecond()))
        .collect();
    let durations: Vec<Option<i64>> = records
        .iter()
        .map(|record| record.map(|record| i64::try_from(record.duration.as_millis()).unwrap_or(i64::MAX)))
        .collect();
    let outcomes: Vec<Option<&str>> =
        records.iter().map(|record| record.map(|record| record.outcome)).collect();
    let statuses: Vec<Option<i32>> =
        records.iter().map(|record| record.and_then(|record| record.status).map(i32::from)).collect();
    let details: Vec<_> = records.iter().map(|record| record.map(|record| text(&record.detail))).collect();
    let details: Vec<Option<&str>> = details.iter().map(|detail| detail.as_deref()).collect();
    let since: Vec<i64> =
        settlements.iter().map(|settlement| settlement.pending_since.as_millisecond()).collect();
    let rows = client
        .query(
            &statement,
            &[
                &holder,
                &ids,
                &destinations,
                &attempt,
                &states,
                &due,
                &attempts,
                &ended,
                &outcomes,
                &started,
                &durations,
                &statuses,
                &details,
                &since,
            ],
        )
        .await?;
    let (mut settled, mut placed) = (HashSet::new(), Vec::new());
    for row in &rows {
        let n = usize::try_from(row.try_get::<_, i64>(0)? - 1).unwrap_or(usize::MAX);
        settled.insert(n);
        if row.try_get(1)? {
            placed.push(n);
        }
    }
    Ok((settled, placed))
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
