//! At least once to every destination, and never more often than counted.

use std::sync::Arc;

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::forward::Progress;
use countersign::store::{Accepted, Depth, Lease, StoreError};

use crate::support::{Bench, Draft, at, draft, moment, settlement};

pub(crate) async fn what_is_due_is_leased_oldest_first_up_to_the_limit(bench: Bench) {
    let mut ids = Vec::new();
    for (id, second) in [("3", 30), ("1", 10), ("2", 20), ("4", 40)] {
        ids.push((second, bench.stored(Draft { received_at: at(second), ..draft(id) }).await));
    }
    ids.sort_unstable();
    let order = |leases: Vec<Lease>| leases.iter().map(|lease| lease.delivery.id).collect::<Vec<_>>();
    let first = bench.store.lease("a", 2, at(30)).await.unwrap();
    assert_eq!(order(first), [ids[0].1, ids[1].1]);
    let second = bench.store.lease("a", 2, at(30)).await.unwrap();
    assert_eq!(order(second), [ids[2].1], "the fourth is not due yet");
    assert!(bench.leased("b", at(100)).await.is_empty());
}

pub(crate) async fn a_lease_counts_the_attempt(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(5)).await;
    assert_eq!((lease.delivery.id, lease.attempt, lease.replay), (id, 1, false));
    assert_eq!((&*lease.destination, lease.pending_since), ("a", at(0)));
    assert_eq!(lease.waited.as_secs(), 5, "it was due all the time");
    bench.settle(&lease, waiting(at(16), 1), at(5)).await;
    let lease = bench.leased_one("a", at(16)).await;
    assert_eq!((lease.attempt, lease.pending_since), (2, at(0)));
    assert_eq!(lease.waited.as_secs(), 5, "the pause of a retry is its own");
    bench.settle(&lease, waiting(at(20), 2), at(16)).await;
    assert_eq!(bench.leased_one("a", at(27)).await.waited.as_secs(), 12);
}

pub(crate) async fn a_forward_is_leased_once_at_a_time(bench: Bench) {
    for _ in 0..50 {
        bench.stored(Draft { id: None, ..draft("") }).await;
    }
    let (one, other) = tokio::join!(bench.leased("a", at(0)), bench.leased("a", at(0)));
    let mut ids: Vec<_> = one.iter().chain(&other).map(|lease| lease.delivery.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    assert_eq!(one.len() + other.len(), 50);
}

pub(crate) async fn large_bodies_are_leased_in_parts(bench: Bench) {
    let body = Bytes::from(vec![b'x'; 4 << 20]);
    for _ in 0..10 {
        bench.stored(Draft { id: None, body: body.clone(), ..draft("") }).await;
    }
    let mut parts = Vec::new();
    while bench.store.next_due("a").await.unwrap().is_some() {
        parts.push(bench.leased("a", at(0)).await.len());
    }
    assert!(parts.iter().all(|part| (1..=4).contains(part)), "16 MiB at once: {parts:?}");
    assert_eq!(parts.iter().sum::<usize>(), 10);
}

pub(crate) async fn a_settlement_of_another_attempt_changes_nothing(bench: Bench) {
    bench.stored(draft("1")).await;
    let first = bench.leased_one("a", at(0)).await;
    bench.settle(&first, waiting(at(1), 1), at(0)).await;
    bench.settle(&first, Progress::Delivered, at(0)).await;
    assert_eq!(bench.depth("a").pending, 1, "it was waiting, not in flight");
    let second = bench.leased_one("a", at(1)).await;
    bench.settle(&first, Progress::Dead, at(1)).await;
    assert_eq!(bench.depth("a"), Depth { pending: 1, dead: 0, oldest: Some(at(0)) });
    bench.settle(&second, Progress::Delivered, at(1)).await;
    bench.settle(&second, Progress::Dead, at(1)).await;
    assert_eq!(bench.depth("a"), Depth::default());
}

pub(crate) async fn a_failed_attempt_waits_until_it_is_due_again(bench: Bench) {
    bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, waiting(at(60), 1), at(0)).await;
    bench.lanes.woken("a").await;
    assert!(bench.leased("a", at(59)).await.is_empty());
    assert_eq!(bench.leased_one("a", at(60)).await.attempt, 2);
}

pub(crate) async fn a_lease_that_is_given_back_costs_no_attempt(bench: Bench) {
    bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.store.settle(settlement(&lease, waiting(at(2), 0), None)).await.unwrap();
    let lease = bench.leased_one("a", at(2)).await;
    assert_eq!((lease.attempt, lease.replay), (1, false));
}

pub(crate) async fn the_next_due_time_is_known(bench: Bench) {
    let next = async || bench.store.next_due("a").await.unwrap();
    assert_eq!(next().await, None);
    bench.stored(Draft { received_at: at(20), ..draft("2") }).await;
    bench.stored(Draft { received_at: at(10), ..draft("1") }).await;
    bench.stored(Draft { to: vec!["b"], ..draft("0") }).await;
    assert_eq!(next().await, Some(at(10)));
    let lease = bench.leased_one("a", at(10)).await;
    assert_eq!(next().await, Some(at(20)), "what is in flight is not waiting");
    bench.settle(&lease, waiting(at(15), 1), at(10)).await;
    assert_eq!(next().await, Some(at(15)));
    for lease in bench.leased("a", at(20)).await {
        bench.settle(&lease, Progress::Delivered, at(20)).await;
    }
    assert_eq!(next().await, None);
}

/// The clock stood a day ahead until a restart: what waited then would have waited for a day.
pub(crate) async fn due_times_that_no_pause_can_explain_are_reined_in(bench: Bench) {
    for (id, due) in [("1", 50), ("2", 100), ("3", 86_400 + 130), ("4", 86_400 + 170)] {
        bench.stored(Draft { received_at: at(-1), ..draft(id) }).await;
        let lease = bench.leased_one("a", at(0)).await;
        bench.settle(&lease, waiting(at(due), 1), at(0)).await;
    }
    bench.stored(Draft { to: vec!["b"], received_at: at(86_400), ..draft("0") }).await;
    assert_eq!(bench.store.rein_in("a", at(0), at(100)).await.unwrap(), 2);
    let mut due = Vec::new();
    for second in 0..=100 {
        due.extend(bench.leased("a", at(second)).await.iter().map(|_| second));
    }
    assert_eq!(due, [30, 50, 70, 100], "apart as they were, and others as they were");
    assert_eq!(bench.store.next_due("b").await.unwrap(), Some(at(86_400)), "another lane's own concern");
    assert_eq!(bench.store.rein_in("a", at(0), at(0)).await.unwrap(), 0);
}

/// While the wall clock says something else.
pub(crate) async fn forwards_are_due_and_pending_by_steady_time(bench: Bench) {
    for (id, wall) in [("1", 86_400), ("2", -86_400)] {
        let mut arrival = Draft { received_at: at(wall), ..draft(id) }.arrival();
        arrival.at = moment(at(wall), at(10));
        bench.store.accept(arrival).await.unwrap();
    }
    assert_eq!(bench.depth("a").oldest, Some(at(10)));
    assert!(bench.leased("a", at(9)).await.is_empty());
    let leases = bench.leased("a", at(10)).await;
    assert_eq!(leases.iter().map(|lease| lease.pending_since).collect::<Vec<_>>(), [at(10), at(10)]);
}

pub(crate) async fn a_place_in_the_lane_needs_no_lease(bench: Bench) {
    bench.lanes.open("a", 1);
    let arrival = draft("1").arrival();
    let delivery = Arc::clone(arrival.verified.delivery());
    assert_eq!(bench.store.accept(arrival).await.unwrap(), Accepted::Stored);
    let lease = bench.lanes.dispatched(1).await.remove(0);
    assert!(Arc::ptr_eq(&lease.delivery, &delivery), "it is not read again");
    assert_eq!((&*lease.destination, lease.attempt, lease.replay), ("a", 1, false));
    assert_eq!(lease.pending_since, at(0));
    assert!(bench.leased("a", at(100)).await.is_empty(), "it is in flight");
    bench.settle(&lease, Progress::Delivered, at(1)).await;
    assert_eq!(bench.depth("a"), Depth::default());
}

pub(crate) async fn a_full_lane_is_woken(bench: Bench) {
    bench.lanes.open("a", 1);
    bench.stored(Draft { to: vec!["a", "b"], ..draft("1") }).await;
    bench.lanes.woken("b").await;
    assert_eq!(bench.leased("b", at(0)).await.len(), 1);
    // The place in `a` is still taken by the first.
    let second = bench.stored(draft("2")).await;
    bench.lanes.woken("a").await;
    assert_eq!(bench.leased_one("a", at(0)).await.delivery.id, second);
    // A duplicate takes no place.
    bench.lanes.dispatched(1).await;
    bench.store.accept(draft("1").arrival()).await.unwrap();
    bench.stored(draft("3")).await;
    assert_eq!(bench.lanes.dispatched(1).await.len(), 1);
}

pub(crate) async fn a_crash_in_flight_keeps_the_attempt_counted(mut bench: Bench) {
    bench.lanes.open("a", 1);
    bench.stored(draft("1")).await;
    bench.lanes.dispatched(1).await;
    bench.stored(Draft { to: vec!["b"], ..draft("2") }).await;
    let leased = bench.leased_one("b", at(0)).await;
    bench.restart().await;
    assert_eq!(bench.store.next_due("a").await.unwrap(), Some(at(0)));
    assert_eq!(bench.leased_one("a", at(0)).await.attempt, 2);
    assert_eq!(bench.leased_one("b", at(0)).await.attempt, 2);
    // What the former process may still say is not believed.
    bench.settle(&leased, Progress::Delivered, at(0)).await;
    assert_eq!(bench.depth("b").pending, 1);
}

pub(crate) async fn a_destination_named_twice_gets_one_forward(bench: Bench) {
    bench.stored(Draft { to: vec!["a", "b", "a"], ..draft("1") }).await;
    assert_eq!((bench.depth("a").pending, bench.depth("b").pending), (1, 1));
}

pub(crate) async fn dead_forwards_are_revived_as_replays(bench: Bench) {
    let id = bench.stored(Draft { to: vec!["a", "b"], ..draft("1") }).await;
    let dead = bench.leased_one("a", at(0)).await;
    bench.settle(&dead, Progress::Dead, at(0)).await;
    let delivered = bench.leased_one("b", at(0)).await;
    bench.settle(&delivered, Progress::Delivered, at(0)).await;

    assert_eq!(bench.store.revive(id, at(50)).await.unwrap(), 1);
    bench.lanes.woken("a").await;
    assert_eq!(bench.store.revive(id, at(50)).await.unwrap(), 0, "it is no longer dead");
    let lease = bench.leased_one("a", at(50)).await;
    assert_eq!((lease.attempt, lease.replay, lease.pending_since), (1, true, at(50)));
    assert!(bench.leased("b", at(50)).await.is_empty());
}

pub(crate) async fn a_duplicate_revives_dead_forwards_only_when_asked(bench: Bench) {
    bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Dead, at(0)).await;
    bench.store.accept(Draft { received_at: at(10), ..draft("1") }.arrival()).await.unwrap();
    assert_eq!(bench.depth("a").dead, 1);

    let redelivery = Draft { received_at: at(20), revive_dead: true, ..draft("1") };
    bench.store.accept(redelivery.clone().arrival()).await.unwrap();
    bench.lanes.woken("a").await;
    assert_eq!(bench.depth("a"), Depth { pending: 1, dead: 0, oldest: Some(at(20)) });
    let lease = bench.leased_one("a", at(20)).await;
    assert_eq!((lease.attempt, lease.replay, lease.pending_since), (1, true, at(20)));
    assert_eq!(lease.delivery.received_at, at(0), "the first one is sent, not the copy");
    bench.settle(&lease, Progress::Delivered, at(20)).await;

    bench.store.accept(redelivery.arrival()).await.unwrap();
    assert_eq!(bench.depth("a"), Depth::default(), "what has been delivered stays delivered");
}

pub(crate) async fn depths_follow_every_transition_and_survive_a_restart(mut bench: Bench) {
    let depth = |pending, dead, oldest: Option<i64>| Depth { pending, dead, oldest: oldest.map(at) };
    bench.lanes.open("a", 1);
    for (id, second) in [("1", 1), ("2", 2), ("3", 3), ("4", 4)] {
        bench.stored(Draft { received_at: at(second), ..draft(id) }).await;
    }
    assert_eq!(bench.depth("a"), depth(4, 0, Some(1)));
    let first = bench.lanes.dispatched(1).await.remove(0);
    let leases = bench.leased("a", at(4)).await;
    assert_eq!(bench.depth("a"), depth(4, 0, Some(1)), "in flight is pending");
    bench.settle(&first, Progress::Delivered, at(5)).await;
    assert_eq!(bench.depth("a"), depth(3, 0, Some(2)));
    bench.settle(&leases[0], Progress::Dead, at(5)).await;
    assert_eq!(bench.depth("a"), depth(2, 1, Some(3)));
    bench.settle(&leases[1], waiting(at(9), 1), at(5)).await;
    assert_eq!(bench.depth("a"), depth(2, 1, Some(3)));
    bench.settle(&leases[2], Progress::Cancelled, at(5)).await;
    assert_eq!(bench.depth("a"), depth(1, 1, Some(3)));
    bench.restart().await;
    assert_eq!(bench.depth("a"), depth(1, 1, Some(3)));
    bench.store.revive(leases[0].delivery.id, at(7)).await.unwrap();
    assert_eq!(bench.depth("a"), depth(2, 0, Some(3)));
    bench.restart().await;
    assert_eq!(bench.depth("a"), depth(2, 0, Some(3)));
    for lease in bench.leased("a", at(9)).await {
        bench.settle(&lease, Progress::Delivered, at(9)).await;
    }
    assert_eq!(bench.depth("a"), depth(0, 0, None));
}

pub(crate) async fn a_closed_store_says_so(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    bench.store.close().await;
    let store = &bench.store;
    let done = settlement(&lease, Progress::Delivered, None);
    assert_eq!(store.fault(), Some(StoreError::Closed));
    assert_eq!(store.accept(draft("2").arrival()).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.revive(id, at(0)).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.lease("a", 1, at(0)).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.next_due("a").await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.settle(done).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.delivery(id).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.sweep(at(0), std::time::Duration::ZERO).await.unwrap_err(), StoreError::Closed);
    store.close().await;
}

fn waiting(due_at: Timestamp, attempts: u32) -> Progress {
    Progress::Waiting { due_at, attempts }
}
