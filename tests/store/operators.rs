//! What operators look for is found, and what they change is changed, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::forward::{Progress, State};
use countersign::id::Id;
use countersign::store::operators::{Change, DeadGroup, Filter, Listed, Page, Target, Wanted};
use countersign::store::{AttemptRecord, Depth};

use crate::support::{Bench, Draft, at, draft, moment, settlement};

impl Bench {
    /// All pages, in steps of `limit`.
    async fn listed(&self, filter: Filter, limit: usize) -> Vec<Listed> {
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            let page = self.store.list(filter.clone(), from, limit).await.unwrap();
            assert!(page.found.len() <= limit);
            all.extend(page.found);
            from = page.next;
            if from.is_none() {
                return all;
            }
        }
    }

    async fn ids(&self, filter: Filter) -> Vec<Id> {
        self.listed(filter, 2).await.into_iter().map(|listed| listed.id).collect()
    }

    /// All pages.
    async fn targeted(&self, filter: Filter, change: Change) -> Vec<Target> {
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            let page = self.store.targets(filter.clone(), change, from).await.unwrap();
            all.extend(page.found);
            from = page.next;
            if from.is_none() {
                return all;
            }
        }
    }

    async fn changed(&self, change: Change, targets: &[(Id, &str)], now: Timestamp) -> usize {
        let targets = targets.iter().map(|(id, destination)| (*id, Arc::from(*destination))).collect();
        self.store.change(change, targets, moment(now, now)).await.unwrap().len()
    }

    /// Ends the attempt at the one forward that is due.
    async fn ended(&self, destination: &str, next: Progress, outcome: &'static str, now: Timestamp) {
        let lease = self.leased_one(destination, now).await;
        let record = AttemptRecord {
            started_at: now,
            duration: Duration::from_millis(7),
            outcome,
            status: Some(418),
            detail: "said the backend".to_owned(),
        };
        self.store.settle(settlement(&lease, next, Some(record))).await.unwrap();
    }
}

fn state(state: State) -> Filter {
    Filter { state: Some(Wanted::Forward(state)), ..Filter::default() }
}

pub(crate) async fn deliveries_are_listed_newest_first_page_by_page(bench: Bench) {
    let mut ids = Vec::new();
    for second in 0..5 {
        ids.push(bench.stored(Draft { id: None, received_at: at(second), ..draft("") }).await);
    }
    ids.reverse();
    for limit in [1, 2, 5, 100] {
        let found = bench.listed(Filter::default(), limit).await;
        assert_eq!(found.iter().map(|listed| listed.id).collect::<Vec<_>>(), ids, "{limit} a page");
    }
    let page = bench.store.list(Filter::default(), None, 5).await.unwrap();
    assert_eq!(page.next, None, "there is no sixth");

    let one = &page.found[0];
    let summary = one.summary.as_ref().unwrap();
    assert_eq!((&*summary.source, summary.event.as_deref()), ("source", Some("push")));
    assert_eq!((summary.received_at, summary.body_bytes), (at(4), 4));
    assert_eq!(summary.sender, Some("2001:db8::1".parse().unwrap()));
    assert!(summary.verification.verified);
    let forward = &one.forwards[0];
    assert_eq!((&*forward.destination, forward.state, forward.attempts), ("a", State::Waiting, 0));
    assert_eq!((forward.due_at, forward.replay, forward.settled_at), (at(4), false, None));
}

pub(crate) async fn every_part_of_a_filter_has_to_hold(bench: Bench) {
    let first = bench.stored(Draft { to: vec!["a", "b"], ..draft("1") }).await;
    bench.ended("a", Progress::Dead, "rejected", at(0)).await;
    bench.ended("b", Progress::Delivered, "delivered", at(0)).await;
    let second = bench.stored(Draft { source: "other", received_at: at(10), ..draft("2") }).await;

    let all = vec![second, first];
    let check = async |filter: Filter, expected: &[Id]| {
        assert_eq!(bench.ids(filter.clone()).await, expected, "{filter:?}");
    };
    let none = Filter::default;
    check(none(), &all).await;
    check(Filter { source: Some("other".to_owned()), ..none() }, &[second]).await;
    check(Filter { event: Some("push".to_owned()), ..none() }, &all).await;
    check(Filter { event: Some("pus".to_owned()), ..none() }, &[]).await;
    check(Filter { since: Some(at(0)), ..none() }, &all).await;
    check(Filter { since: Some(at(1)), ..none() }, &[second]).await;
    check(Filter { until: Some(at(10)), ..none() }, &[first]).await;
    check(Filter { until: Some(at(11)), ..none() }, &all).await;
    check(Filter { destination: Some("b".to_owned()), ..none() }, &[first]).await;
    check(Filter { outcome: Some("rejected".to_owned()), ..none() }, &[first]).await;
    check(state(State::Waiting), &[second]).await;
    check(state(State::InFlight), &[]).await;
    check(state(State::Dead), &[first]).await;
    check(state(State::Delivered), &[first]).await;
    // One forward has to be all of it.
    let to_b = Some("b".to_owned());
    check(Filter { destination: to_b.clone(), ..state(State::Dead) }, &[]).await;
    check(Filter { destination: to_b, ..state(State::Delivered) }, &[first]).await;
    check(Filter { source: Some("other".to_owned()), ..state(State::Dead) }, &[]).await;
    check(Filter { since: Some(at(1)), ..state(State::Dead) }, &[]).await;
    check(Filter { since: Some(at(1)), ..state(State::Waiting) }, &[second]).await;
    check(Filter { until: Some(at(10)), ..state(State::Waiting) }, &[]).await;
}

pub(crate) async fn a_text_is_looked_for_where_nothing_is_masked(bench: Bench) {
    let headers = [("x-token".parse().unwrap(), "needle".parse().unwrap())].into_iter().collect();
    bench.stored(Draft { headers, ..draft("1") }).await;
    let by_body = Draft { body: Bytes::from_static(b"\xff a needle \x00"), ..draft("2") };
    let by_body = bench.stored(Draft { received_at: at(1), ..by_body }).await;
    let by_id = bench.stored(Draft { received_at: at(2), ..draft("needle-3") }).await;
    let text = |text: &str| Filter { text: Some(text.to_owned()), ..Filter::default() };
    assert_eq!(bench.ids(text("needle")).await, [by_id, by_body]);
    assert_eq!(bench.ids(text("Needle")).await, []);
    assert_eq!(bench.ids(text("pus")).await.len(), 3);
}

/// Past the bytes that one page reads, each page had moved on by one delivery, and had read two hundred.
pub(crate) async fn a_search_goes_on_where_its_bytes_ended(bench: Bench) {
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    let mut found = Vec::new();
    for second in 0..40 {
        let has_it = second % 20 == 3;
        let body = if has_it { Bytes::from_static(b"a needle") } else { large.clone() };
        let id = bench.stored(Draft { id: None, received_at: at(second), body, ..draft("") }).await;
        found.extend(has_it.then_some(id));
    }
    found.reverse();
    let filter = Filter { text: Some("needle".to_owned()), ..Filter::default() };
    let (mut pages, mut from, mut listed) = (0, None, Vec::new());
    loop {
        let page = bench.store.list(filter.clone(), from, 100).await.unwrap();
        listed.extend(page.found.into_iter().map(|listed| listed.id));
        pages += 1;
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(listed, found);
    assert_eq!(pages, 3, "38 MiB, 16 a page");
}

pub(crate) async fn a_delivery_without_a_forward_is_unrouted(bench: Bench) {
    let unrouted = bench.stored(Draft { to: Vec::new(), ..draft("1") }).await;
    let late = bench.stored(Draft { to: Vec::new(), received_at: at(9), ..draft("2") }).await;
    bench.stored(Draft { received_at: at(5), ..draft("3") }).await;
    let filter = Filter { state: Some(Wanted::Unrouted), ..Filter::default() };
    assert_eq!(bench.ids(filter.clone()).await, [late, unrouted]);
    assert_eq!(bench.ids(Filter { since: Some(at(1)), ..filter.clone() }).await, [late]);
    assert_eq!(bench.ids(Filter { destination: Some("a".to_owned()), ..filter }).await, []);
}

pub(crate) async fn a_delivery_id_is_found_by_its_claim_and_its_elders_after_it(bench: Bench) {
    let elder = bench.stored(draft("1")).await;
    // Its claim has ended, so that the same id is new.
    let again = bench.stored(Draft { received_at: at(2_000), ..draft("1") }).await;
    let other = bench.stored(Draft { source: "other", received_at: at(1_500), ..draft("1") }).await;
    bench.stored(Draft { received_at: at(3_000), ..draft("2") }).await;
    let id = Filter { delivery_id: Some("1".to_owned()), ..Filter::default() };
    let in_source = Filter { source: Some("source".to_owned()), ..id.clone() };

    let page = bench.store.list(in_source.clone(), None, 10).await.unwrap();
    assert_eq!((page.found[0].id, page.found.len(), page.next), (again, 1, Some(again)), "by its claim");
    assert_eq!(bench.ids(in_source.clone()).await, [again, elder]);
    // Nobody has said whose claims to look through.
    assert_eq!(bench.ids(id.clone()).await, [again, other, elder]);
    let claimed = Filter { claimed_by: vec!["source".into(), "other".into()], ..id };
    let page = bench.store.list(claimed.clone(), None, 10).await.unwrap();
    assert_eq!(page.found.iter().map(|listed| listed.id).collect::<Vec<_>>(), [again, other]);
    assert_eq!(bench.ids(claimed).await, [again, other, elder]);

    let targets = bench.targeted(in_source, Change::Cancel).await;
    assert_eq!(targets.iter().map(|target| target.0).collect::<Vec<_>>(), [again, elder]);
}

pub(crate) async fn a_history_tells_of_forwards_and_attempts(bench: Bench) {
    let id = bench.stored(Draft { to: vec!["b", "a"], ..draft("1") }).await;
    bench.ended("a", Progress::Waiting { due_at: at(5), attempts: 1 }, "timeout", at(1)).await;
    bench.ended("a", Progress::Dead, "rejected", at(5)).await;
    let history = bench.store.history(id).await.unwrap();
    let states: Vec<_> =
        history.forwards.iter().map(|forward| (&*forward.destination, forward.state)).collect();
    assert_eq!(states, [("a", State::Dead), ("b", State::Waiting)]);
    assert_eq!(history.forwards[0].outcome.as_deref(), Some("rejected"));
    assert!(history.forwards[0].settled_at.is_some());
    let attempts: Vec<_> = history
        .attempts
        .iter()
        .map(|attempt| (attempt.number, attempt.outcome.as_str(), attempt.started_at))
        .collect();
    assert_eq!(attempts, [(1, "timeout", at(1)), (2, "rejected", at(5))]);
    let last = &history.attempts[1];
    assert_eq!((last.status, last.detail.as_str()), (Some(418), "said the backend"));
    assert_eq!((&*last.destination, last.duration), ("a", Duration::from_millis(7)));
    assert_eq!(bench.store.history(Id::from_bytes([9; 16])).await.unwrap(), Default::default());
}

/// Three dead at `a`, of two causes, and one at `b`.
async fn four_dead(bench: &Bench) -> [Id; 4] {
    let mut ids = Vec::new();
    for (second, destination, outcome) in
        [(0, "a", "rejected"), (1, "b", "rejected"), (2, "a", "timeout"), (3, "a", "rejected")]
    {
        let draft = Draft { id: None, received_at: at(second), to: vec![destination], ..draft("") };
        ids.push(bench.stored(draft).await);
        bench.ended(destination, Progress::Dead, outcome, at(second)).await;
    }
    ids.try_into().unwrap()
}

pub(crate) async fn dead_letters_are_counted_by_destination_and_outcome(bench: Bench) {
    assert_eq!(bench.store.dead_letters().await.unwrap().groups, []);
    four_dead(&bench).await;
    let mut dead = bench.store.dead_letters().await.unwrap();
    dead.groups.sort();
    let group = |destination: &str, outcome: &str, count| DeadGroup {
        destination: destination.into(),
        outcome: Some(outcome.to_owned()),
        count,
    };
    assert_eq!(dead.groups, [group("a", "rejected", 2), group("a", "timeout", 1), group("b", "rejected", 1)]);
    assert!(dead.complete);
}

pub(crate) async fn dead_letters_are_listed_across_destinations(bench: Bench) {
    let [one, two, three, four] = four_dead(&bench).await;
    bench.stored(Draft { received_at: at(9), ..draft("5") }).await;
    assert_eq!(bench.ids(state(State::Dead)).await, [four, three, two, one]);
    let rejected = Filter { outcome: Some("rejected".to_owned()), ..state(State::Dead) };
    assert_eq!(bench.ids(rejected.clone()).await, [four, two, one]);
    let at_a = Filter { destination: Some("a".to_owned()), ..rejected };
    assert_eq!(bench.ids(at_a).await, [four, one]);
}

pub(crate) async fn targets_are_what_a_change_fits_in_the_order_of_arrival(bench: Bench) {
    let [one, two, three, four] = four_dead(&bench).await;
    let waiting = bench.stored(Draft { received_at: at(4), to: vec!["a", "b"], ..draft("5") }).await;
    bench.ended("b", Progress::Delivered, "delivered", at(4)).await;
    let target = |id, destination: &str| (id, Arc::from(destination));
    let (a, b) = ("a", "b");
    let dead = [target(one, a), target(two, b), target(three, a), target(four, a)];
    let all = Filter::default;
    let requeued = bench.targeted(all(), Change::Requeue).await;
    assert_eq!(requeued, [&dead[..], &[target(waiting, b)]].concat());
    assert_eq!(bench.targeted(all(), Change::Purge).await, dead);
    assert_eq!(bench.targeted(all(), Change::Cancel).await, [target(waiting, a)]);
    let at_b = Filter { destination: Some("b".to_owned()), ..all() };
    assert_eq!(bench.targeted(at_b, Change::Requeue).await, [target(two, b), target(waiting, b)]);
    let late = Filter { since: Some(at(3)), ..state(State::Dead) };
    assert_eq!(bench.targeted(late, Change::Requeue).await, [target(four, a)]);
    // What has been purged is not brought back by who asks for everything.
    assert_eq!(bench.changed(Change::Purge, &[(one, a)], at(5)).await, 1);
    assert_eq!(bench.targeted(all(), Change::Requeue).await, requeued[1..]);
    assert_eq!(bench.targeted(state(State::Cancelled), Change::Requeue).await, [target(one, a)]);
}

pub(crate) async fn a_replay_to_one_destination_leaves_the_others_alone(bench: Bench) {
    let id = bench.stored(Draft { to: vec!["a", "b"], ..draft("1") }).await;
    for destination in ["a", "b"] {
        bench.ended(destination, Progress::Delivered, "delivered", at(0)).await;
    }
    assert_eq!(bench.changed(Change::Requeue, &[(id, "a"), (id, "c")], at(50)).await, 1);
    bench.lanes.woken("a").await;
    let lease = bench.leased_one("a", at(50)).await;
    assert_eq!((lease.attempt, lease.replay, lease.pending_since), (1, true, at(50)));
    assert_eq!(lease.delivery.id, id, "it keeps its id");
    assert!(bench.leased("b", at(100)).await.is_empty());
    assert_eq!(bench.store.history(id).await.unwrap().forwards[1].state, State::Delivered);
}

pub(crate) async fn what_waits_is_not_doubled(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    assert_eq!(bench.changed(Change::Requeue, &[(id, "a")], at(1)).await, 0);
    let lease = bench.leased_one("a", at(1)).await;
    assert_eq!(bench.changed(Change::Requeue, &[(id, "a")], at(1)).await, 0, "nor what is in flight");
    assert!(bench.leased("a", at(1)).await.is_empty());
    assert!(!lease.replay);
    bench.settle(&lease, Progress::Delivered, at(1)).await;
    assert_eq!(bench.changed(Change::Requeue, &[(id, "a"), (id, "a")], at(2)).await, 1);
}

pub(crate) async fn a_purged_one_can_be_replayed_until_retention_takes_it(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    bench.ended("a", Progress::Dead, "rejected", at(0)).await;
    let day = Duration::from_hours(24);
    bench.store.sweep(at(1_000_000), day).await.unwrap();
    assert_eq!(bench.changed(Change::Purge, &[(id, "a")], at(1_000_000)).await, 1);
    assert_eq!(bench.depth("a"), Depth::default());
    assert_eq!(bench.store.dead_letters().await.unwrap().groups, []);
    bench.store.sweep(at(1_000_000), day).await.unwrap();
    assert_eq!(bench.changed(Change::Requeue, &[(id, "a")], at(1_000_001)).await, 1);
    bench.ended("a", Progress::Dead, "rejected", at(1_000_001)).await;
    assert_eq!(bench.changed(Change::Purge, &[(id, "a")], at(1_000_002)).await, 1);
    assert_eq!(bench.store.sweep(at(1_200_000), day).await.unwrap().deliveries, 1);
    assert!(bench.store.delivery(id).await.unwrap().is_none());
}

pub(crate) async fn what_is_cancelled_is_not_leased_and_not_settled(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    let lease = bench.leased_one("a", at(0)).await;
    assert_eq!(bench.changed(Change::Cancel, &[(id, "a")], at(1)).await, 1);
    assert_eq!(bench.depth("a"), Depth::default());
    bench.settle(&lease, Progress::Dead, at(2)).await;
    let other = bench.stored(Draft { received_at: at(3), ..draft("2") }).await;
    assert_eq!(bench.changed(Change::Cancel, &[(other, "a")], at(3)).await, 1);
    assert!(bench.leased("a", at(100)).await.is_empty());
    assert_eq!(bench.ids(state(State::Cancelled)).await, [other, id]);
    assert_eq!(bench.depth("a"), Depth::default());
}

/// The attempt of before was under way when an operator cancelled its forward and then replayed it. It had the same number as
/// the first attempt of the replay, and its end was taken for that one's: "delivered", while it was being sent.
pub(crate) async fn the_end_of_an_attempt_before_a_replay_changes_nothing(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    let before = bench.leased_one("a", at(0)).await;
    assert_eq!(bench.changed(Change::Cancel, &[(id, "a")], at(1)).await, 1);
    assert_eq!(bench.changed(Change::Requeue, &[(id, "a")], at(2)).await, 1);
    bench.settle(&before, Progress::Delivered, at(3)).await;
    let after = bench.leased_one("a", at(3)).await;
    assert_eq!((before.attempt, after.attempt), (1, 1));
    bench.settle(&before, Progress::Delivered, at(4)).await;
    bench.settle(&before, Progress::Waiting { due_at: at(5), attempts: 0 }, at(4)).await;
    let forward = bench.store.history(id).await.unwrap().forwards.remove(0);
    assert_eq!((forward.state, forward.attempts, forward.outcome), (State::InFlight, 1, None));
    assert_eq!(bench.depth("a"), Depth { pending: 1, dead: 0, oldest: Some(at(2)) });
    bench.settle(&after, Progress::Delivered, at(6)).await;
    assert_eq!(bench.store.history(id).await.unwrap().forwards[0].state, State::Delivered);
}

pub(crate) async fn depths_follow_what_operators_change(mut bench: Bench) {
    let [one, _, three, _] = four_dead(&bench).await;
    let check = |bench: &Bench, pending, dead, oldest: Option<i64>| {
        assert_eq!(bench.depth("a"), Depth { pending, dead, oldest: oldest.map(at) });
    };
    check(&bench, 0, 3, None);
    bench.changed(Change::Purge, &[(one, "a")], at(9)).await;
    check(&bench, 0, 2, None);
    bench.changed(Change::Requeue, &[(three, "a")], at(20)).await;
    check(&bench, 1, 1, Some(20));
    bench.changed(Change::Requeue, &[(one, "a")], at(30)).await;
    check(&bench, 2, 1, Some(20));
    bench.changed(Change::Cancel, &[(three, "a")], at(40)).await;
    check(&bench, 1, 1, Some(30));
    bench.restart().await;
    check(&bench, 1, 1, Some(30));
    let page: Page<Target> = bench.store.targets(Filter::default(), Change::Cancel, None).await.unwrap();
    assert_eq!(page.found, [(one, Arc::from("a"))]);
}
