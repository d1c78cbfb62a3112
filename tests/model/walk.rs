//! One walk: random steps from a seed, and the checks after each. The seed decides what is done; when threads run is
//! not decided by it, so a failure that depends on that may take a few runs to come again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::{Clock, Hand, Timestamp};
use http::HeaderMap;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backend::{Got, Mood, Reply, World};
use crate::gateway::Gateway;
use crate::ledger::{Books, Ledger, Sent};
use crate::promises::{self, Memory, Tables};
use crate::sender;
use crate::setting::{DESTINATIONS, KEEP, SOURCES, Setting, Source, signed};

const BODIES: [usize; 5] = [0, 1, 90, 3_000, 60_000];
/// How far a hand moves the clock, in seconds.
const MOVES: [u64; 7] = [1, 5, 20, 61, 240, 660, 1_860];
/// Nothing takes near so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// What has happened in a walk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Story {
    requests: usize,
    stored: usize,
    attempts: usize,
    delivered: u64,
    dead: u64,
    revivals: usize,
    crashes: usize,
    restarts: usize,
    refused: usize,
}

impl std::ops::AddAssign for Story {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.stored += other.stored;
        self.attempts += other.attempts;
        self.delivered += other.delivered;
        self.dead += other.dead;
        self.revivals += other.revivals;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.refused += other.refused;
    }
}

pub(crate) struct Walk<'a> {
    rng: fastrand::Rng,
    world: World,
    clock: Clock,
    hand: Hand,
    setting: Setting,
    /// None while it is being restarted.
    gateway: Option<Gateway>,
    backend: (SocketAddr, JoinHandle<()>),
    ledger: Ledger,
    memory: Memory,
    /// Requests of a step that were answered 503.
    refused: Vec<u32>,
    story: Story,
    /// Gateways that have crashed, on their way out.
    ghosts: Vec<JoinHandle<()>>,
    steps: &'a Mutex<Vec<String>>,
}

impl<'a> Walk<'a> {
    /// Walks to the end; panics when a promise is broken.
    pub(crate) async fn go(seed: u64, steps: usize, told: &'a Mutex<Vec<String>>) -> Story {
        let (clock, hand) = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
        let world = World::new(seed, clock.clone());
        let setting = Setting { with_b: true, hasty: false };
        let backend = world.backend().await;
        let directory = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(directory, &setting.text(backend.0), clock.clone()).await;
        let mut walk = Walk {
            rng: fastrand::Rng::with_seed(seed),
            world,
            clock,
            hand,
            setting,
            gateway: Some(gateway),
            backend,
            ledger: Ledger::default(),
            memory: Memory::default(),
            refused: Vec::new(),
            story: Story::default(),
            ghosts: Vec::new(),
            steps: told,
        };
        for _ in 0..steps {
            walk.step().await;
        }
        walk.run_out().await;
        walk.gateway.expect("it runs").stop(Duration::ZERO).await;
        for ghost in walk.ghosts {
            ghost.await.unwrap();
        }
        walk.story
    }

    async fn step(&mut self) {
        let era = self.world.lock().era;
        let sent = match self.rng.u8(0..100) {
            0..48 => self.send().await,
            48..58 => self.change_mood(),
            58..70 => self.advance(),
            70..74 => self.pause_or_resume(),
            74..79 => self.reload(),
            79..85 => self.sweep().await,
            85..90 => self.crash(false).await,
            90..94 => self.crash(true).await,
            94..98 => self.restart().await,
            98 if self.rng.bool() => self.send_in_vain().await,
            _ => self.rest().await,
        };
        let ended = self.world.lock().era != era;
        self.check(&sent, ended).await;
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("there is one between steps")
    }

    fn tell(&self, step: impl std::fmt::Display) {
        self.steps.lock().unwrap().push(format!("{}: {step}", self.clock.now()));
    }

    /// Posts requests at once and waits for all answers.
    async fn send(&mut self) -> Vec<u32> {
        let numbers = self.draft();
        let posts = numbers.iter().map(|number| self.post(*number));
        let posts: Vec<_> = posts.collect();
        for (number, post) in numbers.iter().zip(posts) {
            let genuine = self.ledger.of(*number).genuine;
            match post.await.unwrap() {
                Some(200) if genuine => {}
                Some(401) if !genuine => {}
                // Refused by the store, or our own deadline on a slow machine, after which it may yet be stored.
                Some(503) if genuine => self.refused.push(*number),
                answer => panic!("request {number} was answered {answer:?}"),
            }
        }
        numbers
    }

    /// An operator's `sqlite3` holds the write lock for longer than a commit waits for it.
    async fn send_in_vain(&mut self) -> Vec<u32> {
        self.tell("locked");
        let operator = Connection::open(self.gateway().file()).unwrap();
        operator.execute_batch("BEGIN IMMEDIATE").unwrap();
        let numbers = self.send().await;
        operator.execute_batch("ROLLBACK").unwrap();
        numbers
    }

    fn post(&self, number: u32) -> JoinHandle<Option<u16>> {
        let bytes = sender::request(self.ledger.of(number));
        sender::post(self.world.clone(), self.gateway().address, number, bytes)
    }

    /// A few requests: something new, copies of it, and variations on what was sent before.
    fn draft(&mut self) -> Vec<u32> {
        let count = if self.rng.u8(0..3) == 0 { self.rng.usize(2..6) } else { 1 };
        let first = self.ledger.sent.len();
        for _ in 0..count {
            // Within a burst mostly variations on its first request: that is what collides.
            let known = self.ledger.sent.len();
            let base = if known > first && self.rng.bool() { Some(first) } else { None };
            let base = base.or_else(|| (known > 0 && self.rng.bool()).then(|| self.rng.usize(0..known)));
            self.vary(base);
        }
        let numbers: Vec<_> = (first as u32..self.ledger.sent.len() as u32).collect();
        let told = numbers.iter().map(|number| {
            let sent = self.ledger.of(*number);
            let what = if sent.genuine { "" } else { " forged" };
            format!("{number} {}/{:?} {} B{what}", sent.source.name, sent.id, sent.body.len())
        });
        self.tell(format!("send {}", told.collect::<Vec<_>>().join(", ")));
        self.story.requests += numbers.len();
        numbers
    }

    fn vary(&mut self, base: Option<usize>) {
        let new_id = format!("id-{}", self.ledger.sent.len());
        let size = BODIES[self.rng.usize(0..BODIES.len())];
        let new_body: Bytes = (0..size).map(|_| self.rng.u8(b' '..b'~')).collect();
        let (mut genuine, chance) = (true, self.rng.u8(0..10));
        let (source, id, body) = match base.map(|base| &self.ledger.sent[base]) {
            Some(base) => {
                let (id, body) = (base.id.clone(), base.body.clone());
                match chance {
                    0 => (base.source, id, new_body),
                    1 | 2 => (base.source, Some(new_id), body),
                    // Ids are their source's own.
                    3 => (&SOURCES[self.rng.usize(0..SOURCES.len())], id.or(Some(new_id)), body),
                    _ => (base.source, id, body),
                }
            }
            None => {
                genuine = chance != 0;
                let source = &SOURCES[self.rng.usize(0..SOURCES.len())];
                let id = (chance != 1 || !source.id_may_be_missing).then_some(new_id);
                (source, id, new_body)
            }
        };
        self.enter(source, id, body, genuine);
    }

    fn enter(&mut self, source: &'static Source, id: Option<String>, body: Bytes, genuine: bool) {
        let at = self.clock.now();
        let number = self.ledger.sent.len();
        let mut headers: HeaderMap = signed(source, id.as_deref(), &body, at);
        headers.insert("x-request", number.into());
        let body = if genuine { body } else { Bytes::from([&body[..], b"!"].concat()) };
        let target = format!("/webhooks/{}?number={number}&odd=%20;", source.name);
        let to = self.setting.to(source);
        self.ledger.number(Sent { source, id, body, headers, target, at, to, genuine, stored: false });
    }

    fn change_mood(&mut self) -> Vec<u32> {
        let (index, mood) = (self.rng.usize(0..DESTINATIONS.len()), Mood::any(&mut self.rng));
        self.tell(format!("{} is {mood:?}", DESTINATIONS[index]));
        self.world.lock().moods[index] = mood;
        Vec::new()
    }

    fn advance(&mut self) -> Vec<u32> {
        let seconds = MOVES[self.rng.usize(0..MOVES.len())];
        self.tell(format!("{seconds} s pass"));
        self.hand.advance(Duration::from_secs(seconds));
        self.gateway().wake();
        Vec::new()
    }

    fn pause_or_resume(&mut self) -> Vec<u32> {
        let destination = DESTINATIONS[self.rng.usize(0..DESTINATIONS.len())];
        let pause = self.rng.bool();
        self.tell(format!("{} {destination}", if pause { "pause" } else { "resume" }));
        let lanes = &self.gateway().lanes;
        let known = if pause { lanes.pause(destination) } else { lanes.resume(destination) };
        assert!(known || !self.setting.has(destination));
        Vec::new()
    }

    fn reload(&mut self) -> Vec<u32> {
        self.setting = Setting { with_b: self.rng.bool(), hasty: self.rng.bool() };
        self.tell(format!("{:?}", self.setting));
        self.gateway().reload(&self.setting.text(self.backend.0), &self.clock);
        Vec::new()
    }

    async fn sweep(&mut self) -> Vec<u32> {
        if self.rng.bool() {
            self.hand.advance(KEEP + Duration::from_secs(1));
        }
        let swept = self.gateway().store.sweep(self.clock.now(), KEEP).await.unwrap();
        self.tell(format!("{swept:?}"));
        self.ledger.swept_at = Some(self.clock.now());
        Vec::new()
    }

    /// Lets what is under way go on for a moment.
    async fn rest(&mut self) -> Vec<u32> {
        self.tell("rest");
        tokio::time::sleep(Duration::from_millis(self.rng.u64(0..20))).await;
        Vec::new()
    }

    /// The process is gone, and the next finds what had been written down; perhaps with requests on their way.
    async fn crash(&mut self, busy: bool) -> Vec<u32> {
        let numbers = if busy { self.draft() } else { Vec::new() };
        let posts: Vec<_> = numbers.iter().map(|number| self.post(*number)).collect();
        if busy {
            tokio::time::sleep(Duration::from_micros(self.rng.u64(0..4_000))).await;
        }
        self.tell("crash");
        let image = {
            let mut outside = self.world.lock();
            let image = self.gateway().image();
            outside.cut();
            image
        };
        // Cut off from everything, it only has to give up what it holds.
        let ghost = self.gateway.take().expect("there is one between steps");
        self.ghosts.push(tokio::spawn(async move { drop(ghost.stop(Duration::ZERO).await) }));
        self.start(image).await;
        for post in posts {
            post.abort();
        }
        self.story.crashes += 1;
        numbers
    }

    async fn restart(&mut self) -> Vec<u32> {
        let patience = Duration::from_millis(self.rng.u64(0..60));
        self.tell(format!("restart within {patience:?}"));
        let directory = self.gateway.take().expect("there is one between steps").stop(patience).await;
        self.world.lock().cut();
        self.start(directory).await;
        self.story.restarts += 1;
        Vec::new()
    }

    /// Starts the next gateway, with backends of its own.
    async fn start(&mut self, directory: TempDir) {
        self.backend.1.abort();
        self.backend = self.world.backend().await;
        let text = self.setting.text(self.backend.0);
        self.gateway = Some(Gateway::start(directory, &text, self.clock.clone()).await);
    }

    /// Judges what was sent, and checks every promise. When the gateway's era has `ended`, nobody has counted the last.
    async fn check(&mut self, sent: &[u32], ended: bool) {
        if !ended {
            let Books { stored, duplicate, rejected, .. } = self.ledger.books;
            let total = stored + duplicate + rejected + sent.len() as u64;
            eventually("everything is counted", || {
                let counted = self.counted();
                counted.stored + counted.duplicate + counted.rejected == total
            })
            .await;
        }
        let (file, now) = (self.gateway().file(), self.clock.now());
        {
            let outside = self.world.lock();
            let tables = Tables::read(&file);
            let mut found: BTreeSet<u32> = tables.deliveries.keys().copied().collect();
            found.extend(outside.got.iter().map(Got::number));
            let revived = self.ledger.judge(sent, &found, &outside.acked, now);
            self.story.revivals += revived.surely.len();
            promises::hold(&mut self.memory, &outside, &tables, &self.ledger, &revived, now);
        }
        if ended {
            self.ledger.books = Books::default();
        }
        self.count_refused();
        let (counted, books) = (self.counted(), &self.ledger.books);
        let conflicts = books.conflicts..=books.conflicts + books.unclear;
        assert!(conflicts.contains(&counted.conflicts), "{counted:?}, not {books:?}");
        assert_eq!(
            (counted.stored, counted.duplicate, counted.rejected),
            (books.stored, books.duplicate, books.rejected)
        );
        // Each count follows its commit by a moment.
        eventually("depths are those of the tables", || {
            let tables = Tables::read(&file);
            let depths = self.gateway().store.depths();
            DESTINATIONS.iter().all(|name| {
                let depth = depths.iter().find(|(lane, _)| &**lane == *name);
                let depth = depth.map(|(_, depth)| *depth).unwrap_or_default();
                depth.pending == tables.count(name, &["waiting", "in_flight"])
                    && depth.dead == tables.count(name, &["dead"])
            })
        })
        .await;
    }

    /// Whether what was answered 503 was refused, or was a duplicate and late, only the gateway can tell.
    fn count_refused(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        let unknown = refused.iter().filter(|number| !self.ledger.of(**number).stored).count() as u64;
        let rejected = self.counted().rejected.saturating_sub(self.ledger.books.rejected).min(unknown);
        self.ledger.books.rejected += rejected;
        self.ledger.books.duplicate += unknown - rejected;
        self.ledger.books.unclear += unknown - rejected;
        self.story.refused += refused.len();
    }

    /// What the gateway has counted.
    fn counted(&self) -> Books {
        let metrics = &self.gateway().metrics;
        let requests = |outcome: &str| {
            let each = SOURCES
                .iter()
                .map(|source| metrics.ingest_requests.with_label_values(&[source.name, outcome]).get());
            each.sum()
        };
        Books {
            stored: requests("stored"),
            duplicate: requests("duplicate"),
            rejected: requests("rejected"),
            conflicts: SOURCES
                .iter()
                .map(|source| metrics.ingest_conflicts.with_label_values(&[source.name]).get())
                .sum(),
            unclear: 0,
        }
    }

    /// All backends are well, and everything comes to its end.
    async fn run_out(&mut self) {
        self.tell("all is well");
        self.world.lock().moods.fill(Mood::Always(Reply::Accept));
        self.setting = Setting { with_b: true, hasty: false };
        self.gateway().reload(&self.setting.text(self.backend.0), &self.clock);
        for destination in DESTINATIONS {
            self.gateway().lanes.resume(destination);
        }
        let started = Instant::now();
        while self.gateway().store.depths().iter().any(|(_, depth)| depth.pending > 0) {
            assert!(started.elapsed() < PATIENCE, "not all that is waiting comes to its end");
            // Long enough for the longest pause and `Retry-After`, a little each: attempts under way go on meanwhile.
            self.hand.advance(Duration::from_secs(10));
            self.gateway().wake();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.check(&[], false).await;
        let outside = self.world.lock();
        let tables = Tables::read(&self.gateway().file());
        self.story.attempts = outside.got.len();
        self.story.stored = self.ledger.sent.iter().filter(|sent| sent.stored).count();
        self.story.delivered = DESTINATIONS.iter().map(|to| tables.count(to, &["delivered"])).sum::<u64>();
        self.story.dead = DESTINATIONS.iter().map(|to| tables.count(to, &["dead"])).sum::<u64>();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it never happened: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
