//! Forwards of one key go out one after the other, in the order of their arrival, whatever happens in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::{Timestamp, later};
use countersign::forward::{By, OnDead, Order, Progress};
use countersign::id::Id;
use countersign::store::{Accepted, Lease};

use crate::support::{Bench, Draft, at, draft};

const KEYS: [&str; 4] = ["1", "2", "3", ""];

fn strict(on_dead: OnDead) -> Option<Arc<Order>> {
    Some(Arc::new(Order::new(By::Strict, on_dead)))
}

fn keyed(place: &str, on_dead: OnDead) -> Option<Arc<Order>> {
    Some(Arc::new(Order::new(By::Value(place.parse().unwrap()), on_dead)))
}

/// A delivery of the key `site`, or without one.
async fn stored(bench: &Bench, site: &str, second: i64) -> Id {
    bench.stored(Draft { id: None, body: body(site), received_at: at(second), ..draft("") }).await
}

fn body(site: &str) -> Bytes {
    Bytes::from(if site.is_empty() { "{}".to_owned() } else { format!("{{\"site\":\"{site}\"}}") })
}

async fn arranged(bench: &Bench, order: Option<Arc<Order>>) {
    bench.lanes.set_order("a", order.clone());
    bench.store.arrange("a", order).await.unwrap();
}

fn ids(leases: &[Lease]) -> Vec<Id> {
    leases.iter().map(|lease| lease.delivery.id).collect()
}

fn retry(second: i64, attempts: u32) -> Progress {
    Progress::Waiting { due_at: at(second), attempts }
}

pub(crate) async fn one_key_waits_for_its_first_and_others_flow_on(bench: Bench) {
    arranged(&bench, keyed("json:/site", OnDead::Park)).await;
    let mut first = Vec::new();
    for n in 0..9 {
        first.push(stored(&bench, KEYS[n % 3], 0).await);
    }
    let leases = bench.leased("a", at(0)).await;
    let mut found = ids(&leases);
    found.sort_unstable();
    assert_eq!(found, first[..3], "the first of each key");
    assert_eq!(bench.store.next_due("a").await.unwrap(), None, "the others are not due before their turn");
    assert_eq!(bench.depth("a").pending, 9);
    // A retry keeps those behind it waiting.
    let of = |site: &str| leases.iter().find(|lease| lease.delivery.body == body(site)).unwrap();
    bench.settle(of("1"), retry(60, 1), at(0)).await;
    bench.settle(of("2"), Progress::Delivered, at(0)).await;
    bench.lanes.woken("a").await;
    assert_eq!(ids(&bench.leased("a", at(59)).await), [first[4]]);
    assert_eq!(ids(&bench.leased("a", at(60)).await), [first[0]]);
}

pub(crate) async fn a_place_in_the_lane_is_given_to_nobody_out_of_turn(bench: Bench) {
    bench.lanes.open("a", 10);
    arranged(&bench, strict(OnDead::Park)).await;
    let first = stored(&bench, "1", 0).await;
    let second = stored(&bench, "2", 0).await;
    let leases = bench.lanes.dispatched(1).await;
    assert_eq!(ids(&leases), [first], "there were ten places");
    assert!(bench.leased("a", at(9)).await.is_empty());
    bench.settle(&leases[0], Progress::Delivered, at(9)).await;
    bench.lanes.woken("a").await;
    assert_eq!(bench.leased_one("a", at(9)).await.delivery.id, second);
}

pub(crate) async fn a_dead_letter_parks_its_key_or_lets_it_go_on(bench: Bench) {
    arranged(&bench, keyed("json:/site", OnDead::Park)).await;
    let (first, second) = (stored(&bench, "1", 0).await, stored(&bench, "1", 0).await);
    let lease = bench.leased_one("a", at(0)).await;
    bench.settle(&lease, Progress::Dead, at(0)).await;
    assert!(bench.leased("a", at(100)).await.is_empty(), "parked");
    let parked = async |id| bench.store.history(id).await.unwrap().forwards[0].parked;
    assert!(!parked(first).await && parked(second).await);
    bench.store.revive(first, at(100)).await.unwrap();
    let lease = bench.leased_one("a", at(100)).await;
    assert_eq!((lease.delivery.id, lease.replay), (first, true), "it has kept its place");
    bench.settle(&lease, Progress::Dead, at(100)).await;
    // The policy is changed by a reload.
    arranged(&bench, keyed("json:/site", OnDead::Continue)).await;
    assert!(!parked(second).await);
    let lease = bench.leased_one("a", at(100)).await;
    assert_eq!(lease.delivery.id, second);
    // Its key has gone on without it: it is behind all others now.
    let third = stored(&bench, "1", 100).await;
    bench.store.revive(first, at(101)).await.unwrap();
    assert!(bench.leased("a", at(101)).await.is_empty(), "one at a time");
    bench.settle(&lease, Progress::Dead, at(101)).await;
    for expected in [third, first] {
        let lease = bench.leased_one("a", at(101)).await;
        assert_eq!(lease.delivery.id, expected);
        bench.settle(&lease, Progress::Delivered, at(101)).await;
    }
}

pub(crate) async fn what_waits_is_brought_into_a_new_order(mut bench: Bench) {
    let mut all = Vec::new();
    for n in 0..6 {
        all.push(stored(&bench, KEYS[n % 2], i64::try_from(n).unwrap()).await);
    }
    let under_way = bench.store.lease("a", 1, at(9)).await.unwrap().remove(0);
    arranged(&bench, strict(OnDead::Park)).await;
    assert!(bench.leased("a", at(9)).await.is_empty(), "one is under way");
    let last = stored(&bench, "1", 9).await;
    bench.settle(&under_way, Progress::Delivered, at(9)).await;
    let second = bench.leased_one("a", at(9)).await;
    assert_eq!(second.delivery.id, all[1]);
    bench.settle(&second, retry(30, 1), at(9)).await;
    assert!(bench.leased("a", at(29)).await.is_empty());
    arranged(&bench, keyed("json:/site", OnDead::Park)).await;
    assert_eq!(
        ids(&bench.leased("a", at(29)).await),
        [all[2]],
        "of the other key the first is to be retried"
    );
    bench.restart().await;
    arranged(&bench, keyed("json:/site", OnDead::Park)).await;
    assert_eq!(ids(&bench.leased("a", at(30)).await).len(), 2, "the first of each key, as before");
    bench.restart().await;
    // Without an order nobody waits for anybody.
    arranged(&bench, None).await;
    let mut found = ids(&bench.leased("a", at(30)).await);
    found.sort_unstable();
    assert_eq!(found, [&all[1..], &[last]].concat());
}

/// Each lease would have walked through all that wait behind the one key.
pub(crate) async fn ten_thousand_behind_one_key_delay_neither_it_nor_others(bench: Bench) {
    use futures_util::StreamExt;
    use futures_util::stream::FuturesUnordered;
    arranged(&bench, keyed("json:/site", OnDead::Park)).await;
    const COUNT: usize = 10_000;
    for _ in 0..COUNT / 1_000 {
        let mut waiting: FuturesUnordered<_> = (0..1_000).map(|_| stored(&bench, "1", 0)).collect();
        while waiting.next().await.is_some() {}
    }
    let mut others = 0;
    for _ in 0..300 {
        stored(&bench, "2", 0).await;
        for lease in bench.leased("a", at(0)).await {
            others += usize::from(lease.delivery.body == body("2"));
            bench.settle(&lease, Progress::Delivered, at(0)).await;
        }
    }
    assert_eq!((others, bench.depth("a").pending), (300, COUNT as u64 - 300));
}

/// Where a forward of the model stands.
struct Held {
    id: Id,
    site: &'static str,
    progress: Progress,
    /// It was brought back after its key had gone on: its place is not told here.
    revived: bool,
}

pub(crate) async fn keys_keep_their_order_at_random(bench: Bench) {
    let mut bench = bench;
    for seed in 0..8 {
        bench = Walk::new(bench, seed).run().await;
    }
}

struct Walk {
    bench: Bench,
    rng: fastrand::Rng,
    now: i64,
    order: Option<Arc<Order>>,
    by: &'static str,
    parks: bool,
    forwards: Vec<Held>,
    leases: BTreeMap<Id, Lease>,
    seed: u64,
}

impl Walk {
    fn new(bench: Bench, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let now = i64::try_from(seed).unwrap() * 100_000;
        let (forwards, leases) = (Vec::new(), BTreeMap::new());
        Self { bench, rng, now, order: None, by: "none", parks: true, forwards, leases, seed }
    }

    async fn run(mut self) -> Bench {
        self.reload().await;
        for _ in 0..150 {
            match self.rng.u8(0..20) {
                0..7 => self.accept().await,
                7..11 => self.lease().await,
                11..15 => self.settle().await,
                15 | 16 => self.now += self.rng.i64(0..20),
                17 => self.revive().await,
                18 => self.start_over().await,
                _ => self.reload().await,
            }
        }
        self.finish().await;
        self.bench
    }

    /// A millisecond later with each forward: of two that came in one, with different keys, none is the first when all get
    /// one key.
    fn time(&self) -> Timestamp {
        later(at(self.now), Duration::from_millis(self.forwards.len() as u64))
    }

    fn site_of(&self, site: &'static str) -> &'static str {
        if self.by == "strict" { "all" } else { site }
    }

    async fn accept(&mut self) {
        let site = KEYS[self.rng.usize(0..KEYS.len())];
        let free = self.rng.bool();
        self.bench.lanes.open("a", usize::from(free));
        let received_at = self.time();
        let arrival = Draft { id: None, body: body(site), received_at, ..draft("") }.arrival();
        let id = arrival.verified.delivery().id;
        assert_eq!(self.bench.store.accept(arrival).await, Ok(Accepted::Stored));
        self.bench.lanes.open("a", 0);
        // What the store does next comes after what it had to tell the lanes.
        self.bench.store.revive(Id::from_bytes([0; 16]), at(0)).await.unwrap();
        let leases = self.bench.lanes.dispatched(0).await;
        let progress = Progress::Waiting { due_at: received_at, attempts: 0 };
        self.forwards.push(Held { id, site, progress, revived: false });
        let earlier = self.forwards[..self.forwards.len() - 1].iter();
        let of_key =
            earlier.filter(|other| self.order.is_some() && self.site_of(other.site) == self.site_of(site));
        let is_told = |other: &&Held| !other.revived || !matches!(other.progress, Progress::Waiting { .. });
        let (told, not_told): (Vec<_>, Vec<_>) = of_key.partition(is_told);
        let in_the_way = told.iter().any(|other| self.is_in_the_way(other));
        if not_told.is_empty() {
            assert_eq!(leases.len(), usize::from(free && !in_the_way), "seed {}", self.seed);
        }
        self.began(leases);
    }

    /// Whether those of its key that came later have to wait for it.
    fn is_in_the_way(&self, forward: &Held) -> bool {
        match forward.progress {
            Progress::Waiting { .. } => !forward.revived,
            Progress::InFlight { .. } => true,
            Progress::Dead => self.parks && !forward.revived,
            Progress::Delivered | Progress::Cancelled => false,
        }
    }

    async fn lease(&mut self) {
        let limit = self.rng.usize(1..4);
        let leases = self.bench.store.lease("a", limit, self.time()).await.unwrap();
        self.began(leases);
    }

    fn began(&mut self, leases: Vec<Lease>) {
        for lease in leases {
            let at = self.forwards.iter().position(|forward| forward.id == lease.delivery.id).unwrap();
            let site = self.site_of(self.forwards[at].site);
            let of_key = |other: &&Held| self.order.is_some() && self.site_of(other.site) == site;
            let running = self.forwards.iter().filter(of_key);
            let running = running.filter(|other| matches!(other.progress, Progress::InFlight { .. })).count();
            assert_eq!(running, 0, "seed {}: two of one key at once", self.seed);
            let earlier = self.forwards[..at].iter().filter(of_key).any(|other| self.is_in_the_way(other));
            assert!(!earlier || self.forwards[at].revived, "seed {}: out of turn", self.seed);
            self.forwards[at].progress = Progress::InFlight { attempt: lease.attempt };
            self.leases.insert(lease.delivery.id, lease);
        }
    }

    async fn settle(&mut self) {
        let running: Vec<_> = self.leases.keys().copied().collect();
        let Some(id) = self.rng.choice(running) else { return };
        let lease = self.leases.remove(&id).unwrap();
        let next = match self.rng.u8(0..8) {
            0..4 => Progress::Delivered,
            4 | 5 => retry(self.now + self.rng.i64(0..15), lease.attempt),
            6 => Progress::Dead,
            _ => Progress::Cancelled,
        };
        self.bench.settle(&lease, next, self.time()).await;
        self.forward(id).progress = next;
        if next == Progress::Dead && (!self.parks || self.order.is_none()) {
            self.forward(id).revived = true;
        }
    }

    fn forward(&mut self, id: Id) -> &mut Held {
        self.forwards.iter_mut().find(|forward| forward.id == id).unwrap()
    }

    async fn revive(&mut self) {
        let dead = self.forwards.iter().filter(|forward| forward.progress == Progress::Dead);
        let dead: Vec<_> = dead.map(|forward| forward.id).collect();
        let Some(id) = self.rng.choice(dead) else { return };
        assert_eq!(self.bench.store.revive(id, self.time()).await, Ok(1));
        self.forward(id).progress = retry(self.now, 0);
    }

    /// The process ends; what was in flight was cut off.
    async fn start_over(&mut self) {
        self.bench.restart().await;
        self.leases.clear();
        let now = self.now;
        for forward in &mut self.forwards {
            if let Progress::InFlight { attempt } = forward.progress {
                forward.progress = retry(now, attempt);
            }
        }
        arranged(&self.bench, self.order.clone()).await;
    }

    /// With everything under way settled, so that what runs began under the order that it is judged by.
    async fn reload(&mut self) {
        while !self.leases.is_empty() {
            self.settle().await;
        }
        let on_dead = if self.rng.bool() { OnDead::Park } else { OnDead::Continue };
        let before = self.by;
        (self.by, self.order) = match self.rng.u8(0..6) {
            0 => ("none", None),
            1 | 2 => ("strict", strict(on_dead)),
            _ => ("site", keyed("json:/site", on_dead)),
        };
        self.parks = on_dead == OnDead::Park;
        // Dead letters of another order, or that others have passed, hold up nothing any more.
        for forward in &mut self.forwards {
            forward.revived |= forward.progress == Progress::Dead && (!self.parks || before != self.by);
        }
        // Who has been brought back takes a place when it is looked at: at the end, or by its receipt.
        arranged(&self.bench, self.order.clone()).await;
    }

    /// Nothing has been forgotten: with a backend that accepts everything, all of it is delivered.
    async fn finish(&mut self) {
        loop {
            self.now += 20;
            self.lease().await;
            let running: Vec<_> = self.leases.keys().copied().collect();
            for id in &running {
                let lease = self.leases.remove(id).unwrap();
                self.bench.settle(&lease, Progress::Delivered, at(self.now)).await;
                self.forward(*id).progress = Progress::Delivered;
            }
            self.revive().await;
            let open =
                |forward: &Held| !matches!(forward.progress, Progress::Delivered | Progress::Cancelled);
            if !self.forwards.iter().any(open) {
                break;
            }
            assert!(
                self.now < (i64::try_from(self.seed).unwrap() + 1) * 100_000,
                "seed {}: stuck",
                self.seed
            );
        }
        assert_eq!((self.bench.depth("a").pending, self.bench.depth("a").dead), (0, 0));
    }
}
