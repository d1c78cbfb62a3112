//! One walk: random steps from a seed, each followed until nothing more can happen, and then by the checks.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use countersign::clock::{Clock, Hand, Timestamp, later};
use countersign::dispatch::LaneState;
use countersign::id::Id;
use countersign::store::{Accepted, Arrival};
use jiff::SignedDuration;

use crate::backend::{Reply, World};
use crate::gateway::{DESTINATIONS, Gateway, Setting, TTL, arrival, directory};
use crate::promises::{Model, Tables, open};

/// How far time moves, in milliseconds.
const MOVES: [u64; 8] = [100, 1_000, 5_000, 10_000, 20_000, 61_000, 300_000, 1_900_000];
/// What retention keeps of the delivered.
const KEEP: Duration = Duration::from_mins(5);
/// Looks, 50 µs apart at least, until a moment that should have come has not.
const LOOKS: usize = 6_000;
/// Looks after which a lane that was just looking when time moved is given the time to look again, which is 30 s at most.
const LOOKS_AGAIN: usize = 300;
/// For what hangs to be cut off by its timeout, and the longest pause to end.
const ROUND: Duration = Duration::from_secs(61);

pub(crate) struct Walk<'a> {
    rng: fastrand::Rng,
    clock: Clock,
    hand: Hand,
    world: World,
    backend: SocketAddr,
    setting: Setting,
    gateway: Option<Gateway>,
    model: Model,
    /// The ids that were sent, with the number and id of each delivery.
    sent: Vec<(String, Id)>,
    /// Whether time has moved in this step.
    moved: bool,
    told: &'a Mutex<Vec<String>>,
}

impl<'a> Walk<'a> {
    /// Walks to the end; panics when a promise is broken.
    pub(crate) async fn go(seed: u64, steps: usize, told: &'a Mutex<Vec<String>>) {
        let (clock, hand) = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
        let world = World::new(clock.clone());
        let backend = world.listen().await;
        let setting = Setting { concurrency: [2, 3, 1] };
        let gateway = Some(Gateway::start(directory(), setting, backend, &clock));
        let mut model = Model::default();
        model.concurrency = setting.concurrency;
        let rng = fastrand::Rng::with_seed(seed);
        let sent = Vec::new();
        let moved = false;
        let mut walk = Self { rng, clock, hand, world, backend, setting, gateway, model, sent, moved, told };
        for _ in 0..steps {
            walk.step().await;
            walk.check().await;
        }
        walk.run_out().await;
        walk.gateway.take().expect("it runs").stop().await;
    }

    async fn step(&mut self) {
        match self.rng.u8(0..100) {
            0..34 => self.send(false).await,
            34..46 => self.change_mood(),
            46..64 => {
                let time = MOVES[self.rng.usize(0..MOVES.len())];
                self.advance(Duration::from_millis(time)).await;
            }
            64..70 => self.release(),
            70..75 => self.pause_or_resume(),
            75..81 => self.reload(),
            81..84 => self.set_clock(),
            84..88 => self.redeliver().await,
            88..91 => self.crash().await,
            91..94 => self.send(true).await,
            94..97 => self.restart().await,
            _ => self.sweep().await,
        }
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("there is one between steps")
    }

    fn tell(&self, step: impl std::fmt::Display) {
        self.told.lock().unwrap().push(format!("{}: {step}", self.clock.steady().time));
    }

    /// A few deliveries, new ones and repetitions, at once; perhaps with a crash in between.
    async fn send(&mut self, crashes: bool) {
        let count = if self.rng.bool() { 1 } else { self.rng.usize(2..6) };
        let first = self.sent.len();
        let mut arrivals = Vec::new();
        for _ in 0..count {
            let known = self.sent.len();
            let key = match self.rng.u8(0..10) {
                0..3 if known > 0 => self.sent[self.rng.usize(0..known)].0.clone(),
                _ => format!("key-{known}"),
            };
            let to: Vec<_> = DESTINATIONS.into_iter().filter(|_| self.rng.u8(0..3) > 0).collect();
            let number = u32::try_from(known).unwrap();
            let arrival = arrival(number, &key, &to, self.rng.bool(), &self.clock);
            self.sent.push((key.clone(), arrival.verified.delivery().id));
            arrivals.push((number, key, to, arrival));
        }
        self.tell(format!("send {:?}", &self.sent[first..].iter().map(|(key, _)| key).collect::<Vec<_>>()));
        let mut waiting = Vec::new();
        for (number, key, to, arrival) in arrivals {
            let store = self.gateway().store.clone();
            let asked: Arrival = arrival.clone();
            let answer = tokio::spawn(async move { store.accept(asked).await });
            waiting.push((number, key, to, arrival, answer));
            // In this order, whatever the runtime does.
            tokio::task::yield_now().await;
        }
        let tables = if crashes {
            for _ in 0..self.rng.u8(0..8) {
                tokio::task::yield_now().await;
            }
            self.crash().await;
            Some(Tables::read(&self.gateway().reader))
        } else {
            None
        };
        for (number, key, to, arrival, answer) in waiting {
            let answer = match &tables {
                None => Some(answer.await.unwrap().unwrap()),
                Some(_) if answer.is_finished() => answer.await.unwrap().ok(),
                Some(_) => None,
            };
            let is_stored = tables.as_ref().map(|tables| tables.deliveries.contains(&number));
            self.judge(number, &key, to, &arrival, answer, is_stored);
        }
    }

    /// Whether an answer is the right one, or, in a crash, what the tables have of it.
    fn judge(
        &mut self,
        number: u32,
        key: &str,
        to: Vec<&'static str>,
        arrival: &Arrival,
        answer: Option<Accepted>,
        is_stored: Option<bool>,
    ) {
        let holder = self.model.claims.get(key).filter(|(_, until)| *until > arrival.at.earliest());
        let holder = holder.map(|(holder, _)| *holder);
        let stored = match (answer, is_stored) {
            // Answered by what ended in the crash, perhaps after the image of it was taken.
            (_, Some(is_stored)) => is_stored,
            (Some(Accepted::Stored), None) => true,
            (Some(Accepted::Duplicate { first, .. }), None) => {
                let holder = holder.unwrap_or_else(|| panic!("{number} is nobody's duplicate"));
                assert_eq!(first, self.sent[holder as usize].1, "{number} is another's duplicate");
                false
            }
            (answer, None) => panic!("{number} was answered {answer:?}"),
        };
        if stored {
            assert_eq!(holder, None, "{number} is stored beside its first");
            let until = later(arrival.at.latest(), TTL);
            self.model.claims.insert(key.to_owned(), (number, until));
            for to in &to {
                self.model.since.insert((number, to), arrival.at.steady.time);
            }
            self.model.stored.insert(number, to);
        } else if let Some(holder) = holder.filter(|_| arrival.revive_dead) {
            self.revive(holder);
        }
    }

    /// The dead forwards of this delivery are pending from now.
    fn revive(&mut self, number: u32) {
        self.model.revived.insert(number);
        for destination in self.model.stored.get(&number).into_iter().flatten() {
            let forward = (number, *destination);
            let before = self.model.before.forwards.get(&forward);
            if before.is_none_or(|row| row.state == "dead") {
                self.model.since.insert(forward, self.clock.steady().time);
            }
            if before.is_some_and(|row| row.state == "dead") {
                self.model.begun.insert(forward, self.model.got);
            }
        }
    }

    async fn redeliver(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let number = self.rng.usize(0..self.sent.len());
        self.tell(format!("redeliver {number}"));
        let now = self.clock.steady().time;
        let before = &self.model.before.forwards;
        let dead = before.iter().filter(|((other, _), row)| *other as usize == number && row.state == "dead");
        let dead = dead.count() as u64;
        let revived = self.gateway().store.revive(self.sent[number].1, now).await.unwrap();
        assert_eq!(revived, dead, "of {number}");
        self.revive(u32::try_from(number).unwrap());
    }

    fn change_mood(&mut self) {
        let index = self.rng.usize(0..DESTINATIONS.len());
        let mood = Reply::ALL[self.rng.usize(0..Reply::ALL.len())];
        self.tell(format!("{} will {mood:?}", DESTINATIONS[index]));
        self.world.0.borrow_mut().moods[index] = mood;
    }

    fn release(&mut self) {
        let destination = DESTINATIONS[self.rng.usize(0..DESTINATIONS.len())];
        let reply = Reply::ALL[self.rng.usize(0..Reply::ALL.len() - 1)];
        self.tell(format!("what hangs at {destination} will {reply:?}"));
        self.world.release(destination, reply);
    }

    fn pause_or_resume(&mut self) {
        let index = self.rng.usize(0..DESTINATIONS.len());
        let (destination, pause) = (DESTINATIONS[index], self.rng.bool());
        self.tell(format!("{} {destination}", if pause { "pause" } else { "resume" }));
        let lanes = &self.gateway().lanes;
        let known = if pause { lanes.pause(destination) } else { lanes.resume(destination) };
        if known && self.setting.concurrency[index] > 0 {
            self.model.paused[index] = pause;
        }
    }

    fn reload(&mut self) {
        let before = self.setting;
        let index = self.rng.usize(0..DESTINATIONS.len());
        self.setting.concurrency[index] = self.rng.usize(0..4);
        self.tell(format!("{:?}", self.setting));
        self.gateway().reload(self.setting, self.backend);
        let open = open(&self.world.0.borrow(), DESTINATIONS[index]);
        let (was, is) = (before.concurrency[index], self.setting.concurrency[index]);
        if is == 0 {
            self.model.retired.extend(open);
            self.model.paused[index] = false;
        } else if is < was {
            self.model.lowered.extend(open);
        }
        self.model.concurrency = self.setting.concurrency;
    }

    /// The wall clock is set; what is due does not follow it.
    fn set_clock(&mut self) {
        let seconds = self.rng.i64(-86_400..86_400);
        self.tell(format!("the clock is set by {seconds} s"));
        self.hand.step(SignedDuration::from_secs(seconds));
    }

    async fn advance(&mut self, time: Duration) {
        self.tell(format!("{time:?} pass"));
        self.moved = true;
        self.hand.advance(time);
        tokio::time::advance(time).await;
    }

    async fn sweep(&mut self) {
        self.tell("retention");
        let now = self.clock.moment().earliest();
        self.gateway().store.sweep(now, KEEP).await.unwrap();
        self.model.swept = true;
    }

    /// The process is gone; the next finds what had been written down.
    async fn crash(&mut self) {
        self.tell("crash");
        let image = self.gateway().image();
        self.model.interrupt(&self.world.0.borrow());
        self.world.cut();
        self.gateway.take().expect("there is one between steps").stop().await;
        self.gateway = Some(Gateway::start(image, self.setting, self.backend, &self.clock));
    }

    async fn restart(&mut self) {
        self.tell("restart");
        self.model.interrupt(&self.world.0.borrow());
        let directory = self.gateway.take().expect("there is one between steps").stop().await;
        self.world.cut();
        self.gateway = Some(Gateway::start(directory, self.setting, self.backend, &self.clock));
    }

    /// Waits, in real time, until nothing more can happen, and checks every promise.
    async fn check(&mut self) {
        for look in 0_usize.. {
            match self.quiet() {
                Ok(tables) => {
                    let outside = self.world.0.clone();
                    self.model.hold(&outside.borrow(), &tables, self.clock.steady().time);
                    self.moved = false;
                    return;
                }
                Err(why) => assert!(look < LOOKS, "it never comes to rest: {why}"),
            }
            if self.moved && look % LOOKS_AGAIN == LOOKS_AGAIN - 1 {
                self.advance(Duration::from_secs(1)).await;
            }
            tokio::task::yield_now().await;
            if look > 20 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// The tables, when nothing can happen without time or another step; or what is still to happen.
    fn quiet(&self) -> Result<Tables, String> {
        let gateway = self.gateway();
        let tables = Tables::read(&gateway.reader);
        let outside = self.world.0.borrow();
        let now = self.clock.steady().time;
        let (lanes, depths) = (gateway.lanes.states(), gateway.store.depths());
        for destination in DESTINATIONS {
            let in_flight = tables.forwards.iter().filter(|((_, to), _)| *to == destination);
            let in_flight = in_flight.filter(|(_, row)| row.state == "in_flight");
            let in_flight: BTreeSet<_> = in_flight.map(|(forward, row)| (*forward, row.attempts)).collect();
            let open = open(&outside, destination);
            if in_flight != open {
                return Err(format!("{in_flight:?} in flight, {open:?} at the backend"));
            }
            let depth = depths.iter().find(|(name, _)| &**name == destination);
            let depth = depth.map_or((0, 0), |(_, depth)| (depth.pending, depth.dead));
            let pending = tables.count(destination, &["waiting", "in_flight"]) as u64;
            let found = (pending, tables.count(destination, &["dead"]) as u64);
            if depth != found {
                return Err(format!(
                    "{destination}: {depth:?} pending and dead, and {found:?} in the tables"
                ));
            }
            let pending = i64::try_from(pending).unwrap();
            gateway.metrics.forward_pending.with_label_values(&[destination]).set(pending);
            let Some(lane) = lanes.iter().find(|lane| &*lane.destination == destination) else { continue };
            let due = tables
                .forwards
                .iter()
                .filter(|((_, to), row)| *to == destination && row.state == "waiting" && row.due_at <= now);
            let moves = match lane.state {
                LaneState::Open => lane.running < lane.concurrency && due.count() > 0,
                LaneState::Probing => lane.running == 0,
                LaneState::Paused | LaneState::Broken => false,
            };
            if moves {
                return Err(format!("{destination} has a free place, and forwards that are due"));
            }
        }
        match gateway.metrics.imbalances() {
            [0, 0] => Ok(tables),
            imbalances => Err(format!("the books do not balance: {imbalances:?}")),
        }
    }

    /// All backends are well, and everything comes to its end.
    async fn run_out(&mut self) {
        self.tell("all is well");
        self.world.0.borrow_mut().moods.fill(Reply::Accept);
        self.setting.concurrency = self.setting.concurrency.map(|at_once| at_once.max(2));
        self.gateway().reload(self.setting, self.backend);
        self.model.concurrency = self.setting.concurrency;
        for (index, destination) in DESTINATIONS.into_iter().enumerate() {
            self.gateway().lanes.resume(destination);
            self.model.paused[index] = false;
        }
        self.check().await;
        for round in 0..20 {
            self.advance(ROUND).await;
            self.check().await;
            // A broken lane may have to hear from a thread of the store before it probes, which takes time of the real kind.
            for _ in 0..=20 * round {
                if self.model.before.forwards.values().all(|row| ["delivered", "dead"].contains(&&*row.state))
                {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
                tokio::task::yield_now().await;
                self.check().await;
            }
        }
        let lanes = self.gateway().lanes.states();
        panic!("not all that is waiting comes to its end: {lanes:?}, {:?}", self.model.before.forwards);
    }
}
