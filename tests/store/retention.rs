//! Retention takes what has been dealt with, and never anything else.

use std::time::Duration;

use countersign::clock::DIFFERENCE_MAX;
use countersign::forward::Progress;
use countersign::id::Id;
use countersign::store::{Accepted, Swept};

use crate::support::{Bench, CLAIM, Draft, at, draft, moment};

/// Seconds of a day.
const DAY: i64 = 86_400;
const KEEP: Duration = Duration::from_secs(100);

pub(crate) async fn delivered_ones_go_after_the_retention(bench: Bench) {
    let id = bench.stored(Draft { to: vec!["a", "b", "c"], ..draft("1") }).await;
    for (lane, next, second) in
        [("a", Progress::Delivered, 1), ("b", Progress::Cancelled, 50), ("c", Progress::Delivered, 20)]
    {
        let lease = bench.leased_one(lane, at(1)).await;
        bench.settle(&lease, next, at(second)).await;
    }
    assert_eq!(swept(&bench, 149).await, Swept::default(), "the last one was settled at 50");
    assert!(bench.store.delivery(id).await.unwrap().is_some());
    assert_eq!(swept(&bench, 151).await, Swept { deliveries: 1, claims: 0 });
    assert!(bench.store.delivery(id).await.unwrap().is_none());
    // The claim outlives its delivery.
    let again = bench.store.accept(Draft { received_at: at(152), ..draft("1") }.arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first: id, conflict: false });
}

pub(crate) async fn pending_and_dead_ones_stay_whatever_their_age(bench: Bench) {
    let both = |id| Draft { to: vec!["a", "b"], ..draft(id) };
    let waits = bench.stored(both("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Delivered, at(0)).await;

    let dies = bench.stored(both("2")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Delivered, at(0)).await;
    for lease in bench.leased("b", at(0)).await {
        let waiting = Progress::Waiting { due_at: at(1), attempts: 1 };
        let next = if lease.delivery.id == dies { Progress::Dead } else { waiting };
        bench.settle(&lease, next, at(0)).await;
    }
    let flies = bench.stored(draft("3")).await;
    bench.leased_one("a", at(0)).await;

    let swept = bench.store.sweep(at(1_000_000), KEEP).await.unwrap();
    assert_eq!(swept, Swept { deliveries: 0, claims: 3 });
    for id in [waits, dies, flies] {
        assert!(bench.store.delivery(id).await.unwrap().is_some());
    }
    assert_eq!((bench.depth("a").pending, bench.depth("b").pending, bench.depth("b").dead), (1, 1, 1));
    assert_eq!(bench.store.revive(dies, at(2)).await.unwrap(), 1);
}

pub(crate) async fn unrouted_ones_go_after_the_retention(bench: Bench) {
    let id = bench.stored(Draft { to: vec![], ..draft("1") }).await;
    assert_eq!(swept(&bench, 99).await.deliveries, 0);
    assert!(bench.store.delivery(id).await.unwrap().is_some());
    assert_eq!(swept(&bench, 101).await.deliveries, 1);
    assert!(bench.store.delivery(id).await.unwrap().is_none());
}

pub(crate) async fn expired_claims_go_and_others_stay(bench: Bench) {
    let end = i64::try_from((CLAIM + DIFFERENCE_MAX).as_secs()).unwrap();
    let mut long = Draft { received_at: at(1), ..draft("2") }.arrival();
    long.claimed_until = at(end + 1);
    let second = long.verified.delivery().id;
    bench.stored(draft("1")).await;
    bench.store.accept(long).await.unwrap();
    assert_eq!(swept(&bench, end - 1).await.claims, 0);
    assert_eq!(swept(&bench, end).await.claims, 1);
    let again = bench.store.accept(Draft { received_at: at(end), ..draft("2") }.arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first: second, conflict: false });
}

/// At a clock that was a day ahead the sweep took the claim, and when the clock was set right again a captured request
/// was fresh, and new.
pub(crate) async fn a_claim_outlives_a_clock_that_was_a_day_ahead(bench: Bench) {
    let first = bench.stored(draft("1")).await;
    assert_eq!(swept(&bench, DAY + 600).await.claims, 0);
    let again = bench.store.accept(Draft { received_at: at(600), ..draft("1") }.arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first, conflict: false });
}

/// Both ways: neither reading alone ends a claim.
pub(crate) async fn a_claim_ends_when_it_has_ended_by_both_readings(bench: Bench) {
    let end = i64::try_from(CLAIM.as_secs()).unwrap();
    let first = bench.stored(draft("1")).await;
    for (wall, steady) in [(end + DAY, end - 1), (end - 1, end + DAY)] {
        let mut arrival = Draft { received_at: at(wall), ..draft("1") }.arrival();
        arrival.at = moment(at(wall), at(steady));
        let again = bench.store.accept(arrival).await.unwrap();
        assert_eq!(again, Accepted::Duplicate { first, conflict: false });
    }
    bench.stored(Draft { received_at: at(end), ..draft("1") }).await;
}

pub(crate) async fn more_than_one_step_is_swept_in_one_go(bench: Bench) {
    bench.lanes.open("a", 2_000);
    let stored: Vec<_> = (0..1_200)
        .map(|index| {
            let to = if index % 2 == 0 { vec!["a"] } else { vec![] };
            let arrival = Draft { id: None, to, ..draft("") }.arrival();
            let store = bench.store.clone();
            tokio::spawn(async move {
                let id: Id = arrival.verified.delivery().id;
                store.accept(arrival).await.unwrap();
                id
            })
        })
        .collect();
    for accepted in stored {
        accepted.await.unwrap();
    }
    for lease in bench.lanes.dispatched(600).await {
        bench.settle(&lease, Progress::Delivered, at(0)).await;
    }
    assert_eq!(swept(&bench, 1_000).await, Swept { deliveries: 1_200, claims: 0 });
}

async fn swept(bench: &Bench, second: i64) -> Swept {
    bench.store.sweep(at(second), KEEP).await.unwrap()
}
