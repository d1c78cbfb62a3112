//! What must hold at every moment between what the tables say, what the backends have seen, and the model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use countersign::clock::{Timestamp, from_milliseconds, later};
use rusqlite::Connection;

use crate::backend::{Got, Outside, Reply};
use crate::gateway::{AGE_MAX, DESTINATIONS, PAUSES};

/// The pause that a busy backend asks for.
const ASKED: Duration = Duration::from_secs(90);

/// A delivery's number, and where it goes.
pub(crate) type Forward = (u32, &'static str);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) state: String,
    pub(crate) due_at: Timestamp,
    pub(crate) attempts: u32,
    pub(crate) replay: bool,
}

impl Row {
    fn is(&self, state: &str) -> bool {
        self.state == state
    }
}

/// What is stored, read at one moment.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tables {
    pub(crate) deliveries: BTreeSet<u32>,
    pub(crate) forwards: BTreeMap<Forward, Row>,
}

impl Tables {
    pub(crate) fn read(connection: &Connection) -> Self {
        let mut select = connection
            .prepare_cached(
                "SELECT cast(d.body AS text), f.destination, f.state, f.due_at, f.attempts, f.replay
                 FROM delivery AS d LEFT JOIN forward AS f ON f.delivery = d.id",
            )
            .unwrap();
        let mut rows = select.query([]).unwrap();
        let mut tables = Self::default();
        while let Some(row) = rows.next().unwrap() {
            let number = row.get_unwrap::<_, String>(0).parse().unwrap();
            tables.deliveries.insert(number);
            let Some(destination) = row.get_unwrap::<_, Option<String>>(1) else { continue };
            let destination = DESTINATIONS.into_iter().find(|name| *name == destination).unwrap();
            let row = Row {
                state: row.get_unwrap(2),
                due_at: from_milliseconds(row.get_unwrap(3)),
                attempts: row.get_unwrap(4),
                replay: row.get_unwrap(5),
            };
            assert!(tables.forwards.insert((number, destination), row).is_none());
        }
        tables
    }

    pub(crate) fn count(&self, destination: &str, states: &[&str]) -> usize {
        let there = self.forwards.iter().filter(|((_, to), _)| *to == destination);
        there.filter(|(_, row)| states.contains(&&*row.state)).count()
    }
}

/// The model: what has been promised, and what earlier checks have seen.
#[derive(Default)]
pub(crate) struct Model {
    /// Where each delivery that was acknowledged goes, by number.
    pub(crate) stored: BTreeMap<u32, Vec<&'static str>>,
    /// Who has claimed an id, and until when.
    pub(crate) claims: HashMap<String, (u32, Timestamp)>,
    /// Since when a forward has been pending, in steady time.
    pub(crate) since: BTreeMap<Forward, Timestamp>,
    /// How many requests had come when a forward was last brought back.
    pub(crate) begun: BTreeMap<Forward, usize>,
    /// Attempts that a crash or stop cut off since then: they count, and another follows at once.
    interrupted: BTreeMap<Forward, u32>,
    /// What a step may have brought back from the dead.
    pub(crate) revived: BTreeSet<u32>,
    /// What retention has removed.
    gone: BTreeSet<u32>,
    /// Whether retention ran.
    pub(crate) swept: bool,
    /// The engine of this era has started in this step.
    pub(crate) restarted: bool,
    pub(crate) paused: [bool; DESTINATIONS.len()],
    /// Attempts at once, by destination; 0 where there is none.
    pub(crate) concurrency: [usize; DESTINATIONS.len()],
    /// Attempts that had begun before a destination was removed, or its concurrency lowered.
    pub(crate) retired: BTreeSet<(Forward, u32)>,
    pub(crate) lowered: BTreeSet<(Forward, u32)>,
    pub(crate) before: Tables,
    /// Requests that earlier checks have seen.
    pub(crate) got: usize,
}

fn index(destination: &str) -> usize {
    DESTINATIONS.iter().position(|name| *name == destination).unwrap()
}

/// The pause after this attempt, while there is one.
fn pause(destination: &str, attempt: u32) -> Option<Duration> {
    let pauses = PAUSES[index(destination)];
    let last = pauses.last().filter(|_| destination == "c");
    pauses.get(attempt as usize - 1).or(last).map(|seconds| Duration::from_secs(*seconds))
}

impl Model {
    /// Checks a moment in which nothing was under way but what hangs, and remembers it.
    pub(crate) fn hold(&mut self, outside: &Outside, tables: &Tables, now: Timestamp) {
        for number in &tables.deliveries {
            assert!(self.stored.contains_key(number), "{number} is stored, and must not be");
        }
        for (number, to) in &self.stored {
            if !tables.deliveries.contains(number) && !self.gone.contains(number) {
                let before = || to.iter().filter_map(|to| self.before.forwards.get(&(*number, *to)));
                let over = before().count() == to.len() && before().all(|row| row.is("delivered"));
                assert!(self.swept && over, "{number} is lost");
                self.gone.insert(*number);
            }
            for to in to.iter().filter(|_| tables.deliveries.contains(number)) {
                assert!(tables.forwards.contains_key(&(*number, *to)), "{number} to {to} is lost");
            }
        }
        let mut attempted: BTreeMap<Forward, u32> = BTreeMap::new();
        for got in &outside.got[self.got..] {
            self.attempt(got, outside, &mut attempted);
        }
        for (forward, row) in &tables.forwards {
            self.settled(*forward, row, outside, now);
        }
        self.at_once(outside);
        self.got = outside.got.len();
        self.before = tables.clone();
        self.revived.clear();
        (self.swept, self.restarted) = (false, false);
    }

    /// One attempt of this step.
    fn attempt(&self, got: &Got, outside: &Outside, attempted: &mut BTreeMap<Forward, u32>) {
        let forward = (got.number, got.destination);
        let to = index(got.destination);
        let told = format!("attempt {} of {forward:?} at {}", got.attempt, got.at);
        assert!(self.stored.contains_key(&got.number), "{told}: nobody has stored it");
        assert!(self.restarted || !self.paused[to], "{told}: the lane is paused");
        assert!(self.restarted || self.concurrency[to] > 0, "{told}: there is no such destination");
        let again = attempted.entry(forward).or_default();
        *again += 1;
        assert!(*again == 1 || self.restarted, "{told}: the second within a moment");
        let before = self.before.forwards.get(&forward);
        let revived = self.revived.contains(&got.number) && before.is_none_or(|row| row.is("dead"));
        // A crash may come between the first attempt of one that was brought back and its end.
        let most = if self.restarted { 2 } else { 1 };
        match before {
            _ if revived && got.replay && got.attempt <= most => {}
            None => assert!(got.attempt == 1 || self.restarted, "{told}: it is new"),
            Some(row) => {
                assert!(!row.is("delivered"), "{told}: it was delivered before");
                assert!(!row.is("dead"), "{told}: it was dead before");
                let next = row.attempts + 1;
                let later = if self.restarted { next + 1 } else { next };
                assert!((next..=later).contains(&got.attempt), "{told}: {row:?} before");
                assert!(self.restarted || row.due_at <= got.at, "{told}: {row:?} was not due");
                assert_eq!(got.replay, row.replay, "{told}: {row:?} before");
            }
        }
        if revived || self.restarted {
            return;
        }
        let since = self.since[&forward];
        let begun = self.begun.get(&forward).copied().unwrap_or(0);
        let earlier = outside.got[begun.min(self.got)..self.got].iter().rev().find(|other| {
            (other.number, other.destination, other.era) == (got.number, got.destination, got.era)
                && other.replay == got.replay
        });
        if let Some(earlier) = earlier.filter(|earlier| earlier.attempt + 1 == got.attempt) {
            let pause = pause(got.destination, earlier.attempt).expect("there was another attempt");
            let mut due_at = later(earlier.at, pause);
            if earlier.reply == Reply::Busy {
                due_at = due_at.max(later(earlier.at, ASKED).min(later(since, AGE_MAX)));
            }
            assert!(due_at <= got.at, "{told}: not before {due_at}");
        }
        let interrupted = self.interrupted.get(&forward).copied().unwrap_or(0);
        let most = PAUSES[to].len() as u32 + 1 + interrupted;
        assert!(got.destination == "c" || got.attempt <= most, "{told}: beyond the list");
    }

    /// Delivered only what the backend has taken, dead only what it refused or what is out of its budget.
    fn settled(&self, forward: Forward, row: &Row, outside: &Outside, now: Timestamp) {
        let begun = self.begun.get(&forward).copied().unwrap_or(0);
        let mut this =
            outside.got[begun..].iter().rev().filter(|got| (got.number, got.destination) == forward);
        let last = this.clone().next();
        let answered = this.find(|got| got.attempt == row.attempts && got.replay == row.replay);
        let answered = answered.map(|got| got.reply);
        let told = format!("{forward:?}, {row:?}, last answer {answered:?}");
        if let Some(before) = self.before.forwards.get(&forward) {
            assert!(!before.is("delivered") || row.is("delivered"), "{told}: it was delivered");
            let revived = self.revived.contains(&forward.0);
            assert!(!before.is("dead") || row.is("dead") || revived, "{told}: it was dead, and nobody asked");
        }
        let seen = last.filter(|got| got.replay == row.replay).map_or(0, |got| got.attempt);
        match &*row.state {
            "waiting" => {
                assert!(row.attempts >= seen, "{told}: attempt {seen} was not counted");
                assert!(answered != Some(Reply::Accept), "{told}: it was accepted");
                assert!(answered != Some(Reply::Refuse), "{told}: it was refused for good");
            }
            "in_flight" => assert!(row.attempts == seen, "{told}: attempt {seen} is open"),
            "delivered" => assert_eq!(answered, Some(Reply::Accept), "{told}"),
            // A redelivery that a crash was ahead of.
            "dead" if self.before.forwards.get(&forward) == Some(row) => {}
            "dead" => {
                let next = pause(forward.1, row.attempts).map(|pause| later(now, pause));
                let spent = next.is_none_or(|next| next > later(self.since[&forward], AGE_MAX));
                assert!(answered == Some(Reply::Refuse) || spent, "{told}: it died early");
                assert!(answered != Some(Reply::Accept), "{told}: it was accepted");
            }
            other => panic!("{forward:?} is {other}"),
        }
    }

    /// What hangs at once is no more than is allowed.
    fn at_once(&self, outside: &Outside) {
        for (destination, concurrency) in DESTINATIONS.into_iter().zip(self.concurrency) {
            let open = open(outside, destination);
            let rest: Vec<_> = open.iter().filter(|attempt| !self.retired.contains(attempt)).collect();
            let begun = rest.iter().all(|attempt| self.lowered.contains(attempt));
            assert!(rest.len() <= concurrency || begun, "{rest:?} at once, not {concurrency}");
        }
    }

    /// The engine ends: what hangs was cut off, and counts.
    pub(crate) fn interrupt(&mut self, outside: &Outside) {
        for destination in DESTINATIONS {
            for (forward, _) in open(outside, destination) {
                *self.interrupted.entry(forward).or_default() += 1;
            }
        }
        self.retired.clear();
        self.lowered.clear();
        self.paused = [false; DESTINATIONS.len()];
        self.restarted = true;
    }
}

/// The attempts that hang at `destination`.
pub(crate) fn open(outside: &Outside, destination: &'static str) -> BTreeSet<(Forward, u32)> {
    let open = outside.got.iter().filter(|got| got.is_open() && got.destination == destination);
    open.map(|got| ((got.number, destination), got.attempt)).collect()
}
