//! `forward::step` decides what becomes of a forward, and an engine decides it a second time when it leases, revives,
//! and starts over. Here both are asked the same, at random, and have to agree.

use std::time::Duration;

use countersign::clock::Timestamp;
use countersign::forward::{Input, Outcome, Progress, RetryPolicy, Schedule, StatusPattern, step};
use countersign::id::Id;
use countersign::store::operators::{Change, Target};
use countersign::store::{Accepted, Lease};

use crate::support::{Bench, Draft, at, draft, moment};

/// One forward at a time, and where `step` says that it stands.
struct Walk {
    bench: Bench,
    rng: fastrand::Rng,
    now: i64,
    id: Id,
    progress: Progress,
    pending_since: Timestamp,
    replay: bool,
    /// The latest one, which may be over.
    lease: Option<Lease>,
}

pub(crate) async fn forwards_move_as_the_state_machine_says(bench: Bench) {
    // The same way each time; it passes every transition many times.
    let rng = fastrand::Rng::with_seed(1);
    let mut walk = Walk {
        bench,
        rng,
        now: 0,
        id: Id::from_bytes([0; 16]),
        progress: Progress::Delivered,
        pending_since: at(0),
        replay: false,
        lease: None,
    };
    for _ in 0..300 {
        match walk.progress {
            Progress::Delivered | Progress::Cancelled if walk.rng.bool() => {
                walk.operate(Change::Requeue).await;
            }
            Progress::Delivered | Progress::Cancelled => walk.accept().await,
            Progress::Waiting { .. } | Progress::InFlight { .. } | Progress::Dead => walk.change().await,
        }
        walk.compare().await;
    }
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        schedule: Schedule::List(vec![Duration::from_secs(5), Duration::from_secs(20)]),
        max_age: Duration::from_mins(2),
        full_jitter: false,
        statuses: vec![StatusPattern::Class(5)],
    }
}

impl Walk {
    fn decide(&self, input: Input) -> Progress {
        step(&policy(), self.pending_since, self.progress, input, at(self.now), 0.0).0
    }

    /// A new forward, in a free place of its lane or waiting.
    async fn accept(&mut self) {
        let now = at(self.now);
        (self.progress, self.pending_since) = (Progress::Waiting { due_at: now, attempts: 0 }, now);
        (self.replay, self.lease) = (false, None);
        let free = self.rng.bool();
        self.bench.lanes.open("a", usize::from(free));
        let arrival = Draft { id: None, received_at: now, ..draft("") }.arrival();
        self.id = arrival.verified.delivery().id;
        assert_eq!(self.bench.store.accept(arrival).await, Ok(Accepted::Stored));
        if free {
            self.progress = self.decide(Input::Begin);
            self.lease = self.bench.lanes.dispatched(1).await.pop();
            self.bench.lanes.open("a", 0);
        }
    }

    async fn change(&mut self) {
        match self.rng.u8(0..12) {
            0 | 1 => self.now += self.rng.i64(0..30),
            2..5 => self.begin().await,
            5..8 => self.end().await,
            8 => self.requeue().await,
            9 => self.operate(Change::Cancel).await,
            10 => self.operate(Change::Purge).await,
            _ => self.start_over().await,
        }
    }

    async fn begin(&mut self) {
        let due = matches!(self.progress, Progress::Waiting { due_at, .. } if due_at <= at(self.now));
        let leases = self.bench.leased("a", at(self.now)).await;
        assert_eq!(leases.len(), usize::from(due));
        if due {
            self.progress = self.decide(Input::Begin);
            self.lease = leases.into_iter().next();
        }
    }

    /// What can be seen of the forward is what `step` says.
    async fn compare(&self) {
        let (next_due, depth) = (self.bench.store.next_due("a").await.unwrap(), self.bench.depth("a"));
        let (due_at, pending, dead) = match self.progress {
            Progress::Waiting { due_at, .. } => (Some(due_at), 1, 0),
            Progress::InFlight { attempt } => {
                let lease = self.lease.as_ref().expect("what is in flight has been leased");
                let leased = (lease.attempt, lease.pending_since, lease.replay);
                assert_eq!(leased, (attempt, self.pending_since, self.replay));
                (None, 1, 0)
            }
            Progress::Dead => (None, 0, 1),
            Progress::Delivered | Progress::Cancelled => (None, 0, 0),
        };
        assert_eq!((next_due, depth.pending, depth.dead), (due_at, pending, dead), "{:?}", self.progress);
    }

    /// Of the attempt under way; and of one that is not, which changes nothing.
    async fn end(&mut self) {
        let Some(lease) = self.lease.clone() else { return };
        let inputs = [
            Input::Answered { outcome: Outcome::Delivered, retry_after: None },
            Input::Answered { outcome: Outcome::Rejected, retry_after: None },
            Input::Answered { outcome: Outcome::RetryableStatus, retry_after: None },
            Input::Answered { outcome: Outcome::GatewayResources, retry_after: None },
            Input::Answered { outcome: Outcome::Timeout, retry_after: Some(Duration::from_secs(50)) },
            Input::Returned,
            Input::Interrupted,
            Input::Cancel,
        ];
        let input = inputs[self.rng.usize(0..inputs.len())];
        let under_way = Progress::InFlight { attempt: lease.attempt };
        let next = step(&policy(), lease.pending_since, under_way, input, at(self.now), 0.0).0;
        self.bench.settle(&lease, next, at(self.now)).await;
        if self.progress == under_way {
            self.progress = next;
        } else if input != Input::Cancel {
            assert_eq!(self.decide(input), self.progress);
        }
    }

    async fn requeue(&mut self) {
        let dead = self.progress == Progress::Dead;
        assert_eq!(self.bench.store.revive(self.id, at(self.now)).await, Ok(u64::from(dead)));
        self.progress = self.decide(Input::Requeue);
        if dead {
            (self.pending_since, self.replay) = (at(self.now), true);
        }
    }

    /// An operator's change, which may not fit.
    async fn operate(&mut self, change: Change) {
        let input = match change {
            Change::Requeue => Input::Requeue,
            Change::Cancel => Input::Cancel,
            Change::Purge => Input::Purge,
        };
        let next = self.decide(input);
        let target: Target = (self.id, "a".into());
        let now = moment(at(self.now), at(self.now));
        let changed = self.bench.store.change(change, vec![target.clone()], now).await.unwrap();
        assert_eq!(changed, if next == self.progress { vec![] } else { vec![target] });
        if change == Change::Requeue && next != self.progress {
            (self.pending_since, self.replay) = (at(self.now), true);
        }
        self.progress = next;
    }

    /// The process ends; what was in flight was cut off.
    async fn start_over(&mut self) {
        self.bench.restart().await;
        if let Progress::Waiting { due_at, attempts } = self.decide(Input::Interrupted)
            && let Progress::InFlight { .. } = self.progress
        {
            // Due at once, whenever that was.
            let found = self.bench.store.next_due("a").await.unwrap();
            assert!(found.is_some_and(|found| found <= due_at), "{found:?}, not {due_at}");
            self.progress = Progress::Waiting { due_at: found.unwrap(), attempts };
        }
    }
}
