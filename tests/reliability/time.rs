//! Clocks that somebody sets while the gateway runs, and a process that stands still: no replay is taken for new,
//! retries come as they would have, and nothing dies early or lives on.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use countersign::clock::{Clock, Timestamp};
use jiff::SignedDuration;
use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::sender::{Post, SECRET, Wire, body};
use crate::support::{Gateway, eventually};
use crate::{preload, soak};

/// Between the forwards that wait.
const SPACING: Duration = Duration::from_millis(50);
/// What retries come to while nothing happens.
const STEADY_PER_SECOND: usize = 20;
/// Over which retries are counted: what a busy machine holds up for a moment is not a storm.
const WINDOW: Duration = Duration::from_secs(3);

const STEPS: [i64; 6] = [600, -600, 3_600, -3_600, 86_400, -86_400];

/// The wall clock of a gateway.
struct WallClock {
    path: PathBuf,
    ahead_seconds: i64,
}

impl WallClock {
    fn new(directory: &Path) -> Self {
        let path = directory.join("clock");
        std::fs::write(&path, 0i64.to_ne_bytes()).unwrap();
        Self { path, ahead_seconds: 0 }
    }

    /// Has a process see it.
    fn give_to(&self, command: &mut Command) {
        command.env("LD_PRELOAD", preload::library("clock")).env("COUNTERSIGN_TEST_CLOCK", &self.path);
    }

    /// Sets it so far ahead of the true time.
    fn set(&mut self, ahead_seconds: i64) {
        // In place: a file that is cut off first is nothing to map.
        let file = std::fs::File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&(ahead_seconds * 1_000).to_ne_bytes(), 0).unwrap();
        self.ahead_seconds = ahead_seconds;
    }

    fn now(&self) -> Timestamp {
        Clock::system().now() + SignedDuration::from_secs(self.ahead_seconds)
    }
}

/// When requests came.
#[derive(Clone, Default)]
struct Times(Arc<Mutex<Vec<Instant>>>);

impl Times {
    fn note(&self) {
        self.0.lock().unwrap().push(Instant::now());
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The most in any window that begins at `from` or later.
    fn most_in_a_window(&self, from: Instant) -> usize {
        let mut times = self.0.lock().unwrap().clone();
        times.sort();
        times.retain(|time| *time >= from);
        let within =
            |start: Instant| times.iter().filter(|time| (start..start + WINDOW).contains(time)).count();
        times.iter().map(|start| within(*start)).max().unwrap_or(0)
    }
}

fn source(provider: &str, to: &str) -> String {
    format!(
        "[[source]]\nname = \"{provider}\"\nprovider = \"{provider}\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         to = [\"{to}\"]\n"
    )
}

/// A destination that fails, and whose retries come `pause` after each attempt.
fn failing(name: &str, backend: &Backend, pause: Duration, max_age: &str) -> String {
    let pause_ms = pause.as_millis();
    format!(
        "[[destination]]\nname = \"{name}\"\nurl = \"{}\"\nbreaker = \"off\"\n\
         retry = {{ initial = \"{pause_ms}ms\", factor = 1.0, max = \"{pause_ms}ms\", max_age = \"{max_age}\", jitter = \"none\" }}\n",
        backend.url()
    )
}

/// A backend that never accepts, and when it was asked.
fn failing_backend() -> (Backend, Times) {
    let times = Times::default();
    let seen = times.clone();
    let backend = Backend::start(move |_, _| {
        seen.note();
        Reply::Status(503)
    });
    (backend, times)
}

/// A gateway whose lane `bad` has `count` forwards that wait, one due every [`SPACING`] from soon on, round and round.
fn with_waiting_forwards(sections: &str, count: usize) -> (Gateway, WallClock) {
    let gateway = Gateway::start(sections);
    for number in 0..count {
        let id = format!("waits-{number}");
        let post = Post::signed("owlette", "/webhooks/owlette", &id, "x", &body(&id));
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    let failed = "countersign_forward_attempts_total{destination=\"bad\",outcome=\"retryable_status\"}";
    eventually("all have failed", || gateway.metric(failed) >= Some(count as f64));
    let directory = gateway.directory_held();
    drop(gateway);
    let database = rusqlite::Connection::open(directory.path().join("data/countersign.db")).unwrap();
    let first_ms = Clock::system().now().as_millisecond() + 1_000;
    let spaced = "UPDATE forward SET due_at = ?1 + ?2 * (SELECT count(*) FROM forward f WHERE f.delivery < forward.delivery)";
    let spaced = database.execute(spaced, [first_ms, SPACING.as_millis() as i64]).unwrap();
    assert_eq!(spaced, count);
    drop(database);
    let clock = WallClock::new(directory.path());
    let gateway = Gateway::start_in(directory, |command| clock.give_to(command));
    (gateway, clock)
}

/// What a captured request gets when it is sent again: a duplicate's answer, or none that says more than "no".
#[track_caller]
fn is_no_news(post: &Post, gateway: &Gateway) {
    let status = post.send(gateway.listen).status;
    assert!(status == 200 || status == 401, "{status}");
}

fn stored(gateway: &Gateway) -> f64 {
    ["stripe", "github", "standard-webhooks"]
        .iter()
        .filter_map(|source| {
            gateway.metric(&format!(
                "countersign_ingest_requests_total{{outcome=\"stored\",source=\"{source}\"}}"
            ))
        })
        .sum()
}

#[test]
fn steps_of_the_clock_admit_no_replay_and_bring_no_storm() {
    let good = Backend::accepting();
    let (bad, times) = failing_backend();
    // The shortest time to live that there may be.
    let sections = String::from("dedup.ttl = \"600s\"\n")
        + &["stripe", "github", "standard-webhooks"].map(|provider| source(provider, "good")).concat()
        + &source("owlette", "bad")
        + &source("owlette-legacy", "brief")
        + &failing("bad", &bad, SPACING * 100, "12h")
        + &failing("brief", &bad, Duration::from_secs(1), "2s")
        + &format!("[[destination]]\nname = \"good\"\nurl = \"{}\"\n", good.url());
    let (gateway, mut clock) = with_waiting_forwards(&sections, 100);
    let began = Instant::now();
    let mut honest: Vec<(&str, Post)> = Vec::new();
    let (mut steps, mut repetitions) = ((0.0, 0.0), 0);
    // There and back again, and from one side to the other.
    let settings =
        [0].into_iter().chain(STEPS.into_iter().flat_map(|step| [step, 0])).chain([86_400, -86_400, 0]);
    for (number, ahead_seconds) in settings.enumerate() {
        match ahead_seconds.cmp(&clock.ahead_seconds) {
            std::cmp::Ordering::Less => steps.1 += 1.0,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => steps.0 += 1.0,
        }
        clock.set(ahead_seconds);
        for (direction, count) in [("forward", steps.0), ("backward", steps.1)] {
            gateway.eventually_metric(
                &format!("countersign_clock_steps_total{{direction=\"{direction}\"}}"),
                count,
            );
        }
        // Whoever signs by the same clock is heard.
        for provider in ["stripe", "github", "standard-webhooks"] {
            let id = format!("{provider}-{number}");
            let target = format!("/webhooks/{provider}");
            let post = Post::signed_at(provider, &target, &id, "push", &body(&id), SECRET, clock.now());
            assert_eq!(post.send(gateway.listen).status, 200, "{provider} at {ahead_seconds}");
            honest.push((provider, post));
        }
        assert_eq!(stored(&gateway), honest.len() as f64);
        // Whoever sends again what was accepted is not, whenever that was.
        for (provider, post) in &honest {
            is_no_news(post, &gateway);
            repetitions += 1;
            if *provider == "github" {
                repetitions += 1;
                let renamed = post.clone().without("x-github-delivery").with("X-GitHub-Delivery", "another");
                is_no_news(&renamed, &gateway);
            }
        }
        assert_eq!(stored(&gateway), honest.len() as f64, "a replay was stored at {ahead_seconds}");
        if ahead_seconds == 86_400 {
            // Long enough for retention to look at the claims.
            thread::sleep(Duration::from_secs(soak(0, 35) as u64));
        }
        // Retries go on, neither at once nor in a day.
        let before = times.count();
        eventually("retries go on", || times.count() >= before + STEADY_PER_SECOND / 4);
        assert_eq!(gateway.metric("countersign_forward_dead{destination=\"bad\"}"), Some(0.0));
        let oldest = gateway.metric("countersign_forward_oldest_age_seconds{destination=\"bad\"}").unwrap();
        assert!(oldest < 600.0, "{oldest}");
    }
    let most = times.most_in_a_window(began);
    println!(
        "{} steps, {repetitions} repetitions, {} retries, at most {most} in {WINDOW:?}",
        steps.0 + steps.1,
        times.count()
    );
    assert!(most <= 2 * STEADY_PER_SECOND * WINDOW.as_secs() as usize, "a storm: {most} in {WINDOW:?}");

    // A forward whose time is up dies, whatever the clock says meanwhile.
    let post = Post::signed("owlette-legacy", "/webhooks/owlette-legacy", "brief", "x", &body("brief"));
    assert_eq!(post.send(gateway.listen).status, 200);
    clock.set(-86_400);
    gateway.eventually_metric("countersign_forward_dead{destination=\"brief\"}", 1.0);

    gateway.eventually_metric("countersign_forward_pending{destination=\"good\"}", 0.0);
    let mut forwarded: HashMap<Vec<u8>, usize> = HashMap::new();
    for got in good.got() {
        *forwarded.entry(got.body).or_default() += 1;
    }
    assert_eq!(forwarded.len(), honest.len());
    assert!(forwarded.values().all(|times| *times == 1), "forwarded twice");
    assert!(!gateway.log().contains("panicked"));
}

/// Restarted while the clock is wrong, and after it has been set right.
#[test]
fn a_restart_between_two_steps_admits_no_replay() {
    let good = Backend::accepting();
    let sections = source("stripe", "good").replace("to =", "dedup_ttl = \"600s\"\nto =")
        + &source("github", "good")
        + &format!("[[destination]]\nname = \"good\"\nurl = \"{}\"\n", good.url());
    let directory = Gateway::start(&sections).directory_held();
    let mut clock = WallClock::new(directory.path());
    let start =
        |clock: &WallClock| Gateway::start_in(Arc::clone(&directory), |command| clock.give_to(command));
    let mut honest: Vec<Post> = Vec::new();
    let mut gateway = start(&clock);
    for (number, ahead_seconds) in [0, 86_400, 0, -86_400, 0].into_iter().enumerate() {
        clock.set(ahead_seconds);
        for provider in ["stripe", "github"] {
            let id = format!("{provider}-{number}");
            let target = format!("/webhooks/{provider}");
            let post = Post::signed_at(provider, &target, &id, "push", &body(&id), SECRET, clock.now());
            assert_eq!(post.send(gateway.listen).status, 200);
            honest.push(post);
        }
        honest.iter().for_each(|post| is_no_news(post, &gateway));
        gateway.kill();
        gateway = start(&clock);
        honest.iter().for_each(|post| is_no_news(post, &gateway));
    }
    gateway.eventually_metric("countersign_forward_pending{destination=\"good\"}", 0.0);
    gateway.kill();
    let database = rusqlite::Connection::open(directory.path().join("data/countersign.db")).unwrap();
    let stored: u32 = database.query_row("SELECT count(*) FROM delivery", [], |row| row.get(0)).unwrap();
    assert_eq!(stored as usize, honest.len());
    let bodies: HashSet<_> = good.got().into_iter().map(|got| got.body).collect();
    assert_eq!(bodies.len(), honest.len());
}

/// Stops the process, and returns when none of its threads runs any more.
fn stop(gateway: &Gateway) {
    gateway.signal("STOP");
    eventually("it stands still", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.id())).unwrap();
        tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap()).all(|stat| {
            // The name before it may contain anything.
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
        })
    });
}

#[test]
fn a_process_that_stood_still_makes_up_for_it_without_a_storm() {
    let stopped = Duration::from_secs(soak(8, 30) as u64);
    // Round and round in longer than the stop, so that each falls due in it once at most.
    let (bad, times) = failing_backend();
    let round = stopped * 2;
    let slow = Backend::start(|_, _| {
        thread::sleep(Duration::from_secs(1));
        Reply::Status(200)
    });
    // Limits so short that they run out meanwhile.
    let sections = String::from("limits.head_read = \"2s\"\n")
        + &source("owlette", "bad")
        + &failing("bad", &bad, round, "12h")
        + &source("owlette-legacy", "slow")
        + &format!("[[destination]]\nname = \"slow\"\nurl = \"{}\"\ntimeout = \"3s\"\n", slow.url());
    let count = (round.as_millis() / SPACING.as_millis()) as usize;
    let (gateway, _) = with_waiting_forwards(&sections, count);
    let began = Instant::now();
    let asked = times.count();
    eventually("retries come", || times.count() > asked + STEADY_PER_SECOND);

    // Sent while it stands still on whatever is open, answered when it goes on.
    let requests = ["new", "silent", "half", "used", "slow-body"]
        .map(|id| Post::signed("owlette", "/webhooks/owlette", id, "x", &body(id)).bytes());
    let first = Post::signed("owlette", "/webhooks/owlette", "first", "x", &body("first")).bytes();
    let [mut silent, mut half, mut used, mut slow_body] =
        [(); 4].map(|()| Wire::open(gateway.listen).unwrap());
    half.write(&requests[2][..30]);
    let in_body = requests[4].len() - 1;
    slow_body.write(&requests[4][..in_body]);
    used.write(&first);
    assert_eq!(used.read().unwrap().status, 200);
    gateway.eventually_metric("countersign_ingest_connections", 4.0);
    let asks = Post::signed("owlette-legacy", "/webhooks/owlette-legacy", "asks", "x", &body("asks"));
    assert_eq!(asks.send(gateway.listen).status, 200);
    slow.eventually_got(1);
    stop(&gateway);
    let mut new = Wire::open(gateway.listen).unwrap();
    new.write(&requests[0]);
    silent.write(&requests[1]);
    half.write(&requests[2][30..]);
    used.write(&requests[3]);
    slow_body.write(&requests[4][in_body..]);
    thread::sleep(stopped);
    gateway.signal("CONT");
    let resumed = Instant::now();
    let answers = [&mut new, &mut silent, &mut half, &mut used, &mut slow_body]
        .map(|wire| wire.read().map(|answer| answer.status));
    assert_eq!(answers, [Some(200); 5]);
    // What the backend answered meanwhile is heard.
    gateway.eventually_metric("countersign_forward_pending{destination=\"slow\"}", 0.0);
    assert_eq!(slow.got().len(), 1);
    eventually("it is told", || gateway.metric("countersign_clock_stalls_total") >= Some(1.0));
    eventually("the window is over", || resumed.elapsed() > WINDOW);
    let most = times.most_in_a_window(began);
    let missed = stopped.as_secs() as usize * STEADY_PER_SECOND;
    println!("stopped for {stopped:?}, {missed} fell due meanwhile, at most {most} in {WINDOW:?}");
    // Twice the rate, and half of that for a machine that is busy.
    let most_allowed = 3 * STEADY_PER_SECOND * WINDOW.as_secs() as usize;
    assert!(most <= most_allowed, "a storm: {most} in {WINDOW:?}");
    // Nothing is forgotten either.
    eventually("what it missed is made up for", || times.count() >= asked + STEADY_PER_SECOND + missed);
    assert_eq!(gateway.metric("countersign_forward_dead{destination=\"bad\"}"), Some(0.0));
    assert_eq!(gateway.metric("countersign_forward_pending{destination=\"bad\"}"), Some(count as f64 + 6.0));
    assert!(!gateway.log().contains("panicked"));
}
