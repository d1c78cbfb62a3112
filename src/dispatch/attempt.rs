//! One attempt: sends a leased forward, has `forward::step` judge what came of it, and writes that down. Whatever
//! happens in between (shutdown, a panic) the lease ends and the lane gets its place back.

use std::num::NonZeroU64;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use super::client::{Endpoint, KEPT_BYTES_MAX};
use super::failure::{Failure, readable, retry_after};
use super::lane::Lane;
use super::{passing, request};
use crate::clock::{elapsed, later};
use crate::config::Destination;
use crate::forward::{Action, Fault, Input, Outcome, Progress, RESOURCES_PAUSE, step};
use crate::replies::{ANSWER_BYTES_MAX, Reply};
use crate::store::{AttemptRecord, Lease, Settlement, Slot, Store};

/// The first and the longest pause while the store cannot write the end of an attempt: soon after it can, it should have.
const SETTLE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What came of sending.
#[derive(Debug)]
struct End {
    outcome: Outcome,
    status: Option<u16>,
    detail: String,
    retry_after: Option<Duration>,
    /// For a sender that waits.
    reply: Reply,
}

impl End {
    fn without_answer(outcome: Outcome, detail: impl Into<String>) -> Self {
        Self { outcome, status: None, detail: detail.into(), retry_after: None, reply: Reply::Failed }
    }
}

/// Attempts `lease` after `wait`. Its place is free when the backend has answered and the end is among those that wait to be
/// written down: so many that a store that cannot write slows the lane down.
pub(super) async fn run(lane: Arc<Lane>, store: Arc<dyn Store>, lease: Lease, slot: Slot, wait: Duration) {
    if !wait.is_zero() {
        tokio::select! {
            () = lane.stop.cancelled() => {}
            () = sleep(wait) => {}
        }
    }
    // It may have been leased by a look into the store that began before a pause.
    if !lane.may_begin() {
        lane.record(Fault::Gateway, Duration::ZERO);
        let destination = lane.destination();
        let _slot = slot;
        let id = lease.delivery.id;
        conclude(&lane, &*store, &destination, lease, Input::Returned, None).await;
        lane.shared.replies.tell(id, Reply::Failed);
        return;
    }
    let (destination, endpoint) = lane.begin();
    let started_at = lane.shared.clock.now();
    let started = Instant::now();
    let (end, cut) = tokio::select! {
        biased;
        end = guarded(send(&lane, &destination, &endpoint, &lease)) => (end, false),
        () = lane.shared.cut.cancelled() => {
            (End::without_answer(Outcome::Interrupted, "the gateway was stopped"), true)
        }
    };
    let duration = started.elapsed();
    let End { outcome, status, detail, retry_after, reply } = end;
    lane.record(outcome.fault(), duration);
    let metrics = &lane.shared.metrics;
    metrics.forward_attempts.with_label_values(&[&*lane.name, outcome.label()]).inc();
    metrics.forward_attempt_duration.with_label_values(&[&*lane.name]).observe(duration.as_secs_f64());
    tracing::debug!(
        destination = %lane.name, delivery = %lease.delivery.id, attempt = lease.attempt,
        outcome = outcome.label(), status, ?duration, "attempt ended",
    );
    // A cut attempt is due again at once; otherwise the backend's state of health decides.
    let input = if cut { Input::Interrupted } else { Input::Answered { outcome, retry_after } };
    let record = AttemptRecord { started_at, duration, outcome: outcome.label(), status, detail };
    let id = lease.delivery.id;
    let _end = lane.ends.acquire().await;
    let conclusion = conclude(&lane, &*store, &destination, lease, input, Some(record));
    if outcome == Outcome::GatewayResources {
        conclusion.await;
        lane.shared.replies.tell(id, reply);
        // Its place rests too: what else waits would fare no better, at the price of two commits each.
        tokio::select! {
            () = lane.stop.cancelled() => {}
            () = sleep(RESOURCES_PAUSE) => {}
        }
        lane.end(slot);
    } else {
        lane.end(slot);
        conclusion.await;
        // Once it is on disk: a refusal that the sender repeats at once must find the forward dead, to bring it back.
        lane.shared.replies.tell(id, reply);
    }
}

async fn send(lane: &Lane, destination: &Destination, endpoint: &Endpoint, lease: &Lease) -> End {
    let clock = &lane.shared.clock;
    let span = NonZeroU64::new(fastrand::u64(..)).unwrap_or(NonZeroU64::MIN);
    let request = match request::build(lease, destination, clock.now(), span) {
        Ok(request) => request,
        Err(error) => return End::without_answer(error.outcome(), error.to_string()),
    };
    let is_expected = lane.shared.replies.is_expected(lease.delivery.id);
    let kept_max = if is_expected { ANSWER_BYTES_MAX } else { KEPT_BYTES_MAX };
    let (limit, connect_limit) = (destination.timeout, destination.connect_timeout);
    match endpoint.exchange(request, limit, connect_limit, kept_max).await {
        Ok(mut answer) => {
            let outcome = Outcome::of_status(answer.status.as_u16(), &destination.retry);
            let secrets: Vec<_> = destination.secrets().collect();
            let reply = match is_expected {
                true => passing::reply(outcome, &answer, &secrets),
                false => Reply::Failed,
            };
            answer.body.truncate(KEPT_BYTES_MAX);
            End {
                outcome,
                status: Some(answer.status.as_u16()),
                detail: readable(answer.body, &secrets),
                retry_after: retry_after(&answer.headers, clock.now()),
                reply,
            }
        }
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> End {
    End {
        outcome: failure.outcome(),
        status: failure.status().map(|status| status.as_u16()),
        detail: failure.describe(),
        retry_after: None,
        reply: Reply::Failed,
    }
}

/// A bug in sending one delivery must cost neither that delivery nor the lane's place.
async fn guarded(sending: impl Future<Output = End>) -> End {
    AssertUnwindSafe(sending)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| End::without_answer(Outcome::Interrupted, "a bug in the gateway stopped it"))
}

/// Decides what becomes of the forward, writes it down, and performs the decision's actions.
async fn conclude(
    lane: &Lane,
    store: &dyn Store,
    destination: &Destination,
    lease: Lease,
    input: Input,
    record: Option<AttemptRecord>,
) {
    let progress = Progress::InFlight { attempt: lease.attempt };
    let steady = lane.shared.clock.steady();
    let (mut next, actions) = step(
        &destination.retry,
        later(lease.pending_since, lease.waited),
        progress,
        input,
        steady.time,
        fastrand::f64(),
    );
    // A pause that begins now is a real one, also while steady time runs twice as fast.
    if let Progress::Waiting { due_at, .. } = &mut next {
        *due_at = steady.after(elapsed(steady.time, *due_at));
    }
    let id = lease.delivery.id;
    let outcome = record.as_ref().map(|record| record.outcome);
    let (attempt, pending_since) = (lease.attempt, lease.pending_since);
    // What does not count as an attempt is not remembered as one: the next has the same number.
    let uncounted = matches!(next, Progress::Waiting { attempts, .. } if attempts < attempt);
    let record = record.filter(|_| !uncounted);
    let destination = Arc::clone(&lane.name);
    let settlement = Settlement { id, destination, attempt, pending_since, next, record };
    // The body is let go before a wait for the store, which may be long.
    drop(lease);
    if !settle(lane, store, settlement).await {
        return;
    }
    for action in actions {
        match action {
            Action::Wake(_) => lane.wake(),
            Action::Mourn => {
                tracing::warn!(destination = %lane.name, delivery = %id, attempt, outcome, "forward is dead");
            }
        }
    }
}

/// Writes the end down, as often as it takes; false when only a restart can help, which finds the attempt interrupted.
async fn settle(lane: &Lane, store: &dyn Store, settlement: Settlement) -> bool {
    let mut pause = SETTLE_PAUSE.0;
    loop {
        match store.settle(settlement.clone()).await {
            Ok(()) => return true,
            Err(error) if error.passes() => {
                tracing::debug!(destination = %lane.name, delivery = %settlement.id, %error, "settling again");
                sleep(pause).await;
                pause = (pause * 2).min(SETTLE_PAUSE.1);
            }
            Err(error) => {
                tracing::warn!(destination = %lane.name, delivery = %settlement.id, %error, "attempt not settled");
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_interrupted_attempt() {
        let end = guarded(async { panic!("on purpose") }).await;
        assert_eq!((end.outcome, end.status), (Outcome::Interrupted, None));
    }
}
