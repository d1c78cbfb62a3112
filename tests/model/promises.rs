//! What must hold at every moment between what the tables say, what the outside has seen, and the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use countersign::clock::{Timestamp, later};
use countersign::forward::PAUSE_MIN;
use rusqlite::{Connection, Row};

use crate::backend::{Got, Outside, Reply};
use crate::ledger::{Ledger, Revived, Sent};
use crate::setting::{ASKED, DESTINATIONS, KEEP, concurrency, patience};

/// A forward: the request's number, and where it goes.
type Forward = (u32, String);

pub(crate) struct Stored {
    target: String,
    headers: Vec<u8>,
    body: Vec<u8>,
    forwards: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) state: String,
    attempts: u32,
    replay: bool,
    outcome: Option<String>,
}

/// Everything that is stored, read at one moment.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) deliveries: BTreeMap<u32, Stored>,
    pub(crate) forwards: BTreeMap<Forward, State>,
    /// The outcomes of attempts that are remembered, and when they began.
    attempts: BTreeMap<(Forward, u32), (String, Timestamp)>,
}

impl Tables {
    pub(crate) fn read(file: &Path) -> Self {
        let mut connection = Connection::open(file).unwrap();
        let transaction = connection.transaction().unwrap();
        let rows = |sql: &str, each: &mut dyn FnMut(&Row<'_>)| {
            let mut statement = transaction.prepare(sql).unwrap();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                each(row);
            }
        };
        let mut tables = Self::default();
        let mut numbers = BTreeMap::new();
        rows("SELECT id, target, headers, body, forwards FROM delivery", &mut |row| {
            let headers: Vec<u8> = row.get_unwrap(2);
            let number = String::from_utf8_lossy(&headers)
                .lines()
                .find_map(|line| line.strip_prefix("x-request: ")?.parse().ok())
                .expect("what we sent has a number");
            numbers.insert(row.get_unwrap::<_, Vec<u8>>(0), number);
            let stored = Stored {
                target: row.get_unwrap(1),
                headers,
                body: row.get_unwrap(3),
                forwards: row.get_unwrap::<_, u32>(4) as usize,
            };
            assert!(tables.deliveries.insert(number, stored).is_none(), "request {number} is stored twice");
        });
        let forward = |row: &Row<'_>| -> Forward {
            let number = numbers.get(&row.get_unwrap::<_, Vec<u8>>(0)).expect("a forward has its delivery");
            (*number, row.get_unwrap(1))
        };
        let columns = "SELECT delivery, destination, state, attempts, replay, last_outcome FROM forward";
        rows(columns, &mut |row| {
            let state = State {
                state: row.get_unwrap(2),
                attempts: row.get_unwrap(3),
                replay: row.get_unwrap(4),
                outcome: row.get_unwrap(5),
            };
            tables.forwards.insert(forward(row), state);
        });
        rows("SELECT delivery, destination, attempt, outcome, started_at FROM attempt", &mut |row| {
            let began = Timestamp::from_millisecond(row.get_unwrap(4)).unwrap();
            tables.attempts.insert((forward(row), row.get_unwrap(2)), (row.get_unwrap(3), began));
        });
        tables
    }

    /// When the attempt began, if it has timed out: a busy machine closes its connection only when it gets to it, and
    /// until then the backend may read it and answer, at a time when the gateway has long given it up.
    fn timed_out(&self, forward: &Forward, attempt: u32) -> Option<Timestamp> {
        let (outcome, began) = self.attempts.get(&(forward.clone(), attempt))?;
        (outcome == "timeout").then_some(*began)
    }

    /// Forwards in these states, by destination.
    pub(crate) fn count(&self, destination: &str, states: &[&str]) -> u64 {
        let there = self.forwards.iter().filter(|((_, to), _)| to == destination);
        there.filter(|(_, row)| states.contains(&&*row.state)).count() as u64
    }
}

/// What earlier checks have seen.
#[derive(Default)]
pub(crate) struct Memory {
    /// Requests that had reached a backend.
    got: usize,
    forwards: BTreeMap<Forward, State>,
    /// Since when a forward has been pending, at the earliest.
    since: BTreeMap<Forward, Timestamp>,
}

/// Checks everything; `outside` is held, so that nothing is read or answered by a backend meanwhile.
pub(crate) fn hold(
    memory: &mut Memory,
    outside: &Outside,
    tables: &Tables,
    ledger: &Ledger,
    revived: &Revived,
    now: Timestamp,
) {
    for (number, destination, attempt) in &outside.overlaps {
        let forward = (*number, (*destination).to_owned());
        assert!(
            tables.timed_out(&forward, *attempt).is_some(),
            "{forward:?} came again during attempt {attempt}"
        );
    }
    let mut sequences: BTreeMap<Forward, Vec<&Got>> = BTreeMap::new();
    let mut attempted = BTreeSet::new();
    for (index, got) in outside.got.iter().enumerate() {
        let forward = (got.number(), got.destination.to_owned());
        if index >= memory.got {
            exact(got, ledger.of(got.number()));
            let before = memory.forwards.get(&forward);
            let delivered = before.is_some_and(|row| row.state == "delivered");
            assert!(!delivered, "{forward:?} came again after it was settled as delivered");
            attempted.insert(forward.clone());
        }
        sequences.entry(forward).or_default().push(got);
    }
    let none = Vec::new();
    let sequence = |forward: &Forward| sequences.get(forward).unwrap_or(&none);

    for (number, sent) in (0..).zip(&ledger.sent) {
        match tables.deliveries.get(&number) {
            Some(stored) => {
                assert!(sent.stored, "request {number} is stored, and must not be");
                kept(number, stored, sent, tables);
            }
            None if sent.stored => {
                let old = ledger.swept_at.is_some_and(|swept_at| later(sent.at, KEEP) < swept_at);
                let accepted = |to: &&str| {
                    sequence(&(number, (*to).to_owned())).iter().any(|got| got.reply == Reply::Accept)
                };
                assert!(old && sent.to.iter().all(accepted), "request {number} is lost");
            }
            None => {}
        }
    }
    for (forward, row) in &tables.forwards {
        let sequence = sequence(forward);
        let sent = ledger.of(forward.0);
        let before = memory.forwards.get(forward);
        if before.is_some_and(|before| before.state == "dead") {
            let back = row.state != "dead" || attempted.contains(forward);
            if revived.surely.contains(&forward.0) {
                assert!(back && row.replay, "{forward:?} is as dead as before its redelivery: {row:?}");
                memory.since.insert(forward.clone(), now);
            } else if !revived.maybe.contains(&forward.0) {
                assert!(!back, "{forward:?} came back from the dead unasked: {row:?}");
            }
        }
        let since = *memory.since.entry(forward.clone()).or_insert(sent.at);
        let revivals = ledger.revivals.get(&forward.0).copied().unwrap_or(0);
        attempts(forward, row, sequence, revivals, since, tables);
        settled(forward, row, sequence, since, now);
    }
    // Looked at after the tables: what is still open has not been settled when they were read.
    let open: Vec<_> = outside.got.iter().filter(|got| got.is_open()).collect();
    for destination in DESTINATIONS {
        let at_once = open.iter().filter(|got| got.destination == destination).count();
        assert!(at_once <= concurrency(destination), "{at_once} at once at {destination}");
    }
    for got in open {
        let forward = (got.number(), got.destination.to_owned());
        let row = tables.forwards.get(&forward).expect("what is under way is stored");
        let under_way = row.state == "in_flight" && row.attempts == got.attempt;
        let over = tables.timed_out(&forward, got.attempt).is_some();
        assert!(under_way || over, "attempt {} of {forward:?} is under way: {row:?}", got.attempt);
    }
    memory.got = outside.got.len();
    memory.forwards.clone_from(&tables.forwards);
}

/// Byte for byte what was sent.
fn exact(got: &Got, sent: &Sent) {
    let number = got.number();
    assert!(sent.stored, "request {number} was forwarded, and must not be");
    assert_eq!(got.body, sent.body, "request {number}");
    let query = |target: &str| target.split_once('?').map(|(_, query)| query.to_owned());
    assert_eq!(query(&got.target), query(&sent.target), "request {number}");
    for (name, value) in &sent.headers {
        assert_eq!(got.header(name.as_str()), Some(value.as_bytes()), "{name} of request {number}");
    }
}

/// Stored as it was sent, with a forward for each destination.
fn kept(number: u32, stored: &Stored, sent: &Sent, tables: &Tables) {
    assert_eq!(stored.body, sent.body, "request {number}");
    assert_eq!(stored.target, sent.target, "request {number}");
    for (name, value) in &sent.headers {
        let line = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat();
        let found = stored.headers.windows(line.len()).any(|window| window == line);
        assert!(found, "{name} of request {number}");
    }
    assert_eq!(stored.forwards, sent.to.len(), "request {number}");
    let to = tables.forwards.range((number, String::new())..(number + 1, String::new()));
    let to: BTreeSet<_> = to.map(|((_, to), _)| to.as_str()).collect();
    assert_eq!(to, sent.to.iter().copied().collect(), "request {number}");
}

/// Counted before sending, by one, and never twice: numbers at the backend grow, but for a redelivery of a dead one.
fn attempts(
    forward: &Forward,
    row: &State,
    sequence: &[&Got],
    revivals: usize,
    since: Timestamp,
    tables: &Tables,
) {
    let mut redelivered = 0;
    for pair in sequence.windows(2) {
        let [before, after] = pair else { continue };
        if after.attempt > before.attempt {
            // Within one era what the backend has not seen is remembered as having failed before it got there.
            let missing = (before.attempt + 1..after.attempt).filter(|_| before.era == after.era);
            for missing in missing.filter(|_| !row.replay) {
                let known = tables.attempts.contains_key(&(forward.clone(), missing));
                assert!(known, "{forward:?}: attempt {missing} was counted and never made");
            }
            if before.era == after.era && !row.replay {
                let given_up = tables.timed_out(forward, before.attempt);
                let due_at = due(&forward.1, before, given_up, since);
                assert!(due_at <= after.at, "{forward:?}: attempt {} came early", after.attempt);
            }
        } else {
            assert!(after.replay, "{forward:?}: {} after {}", after.attempt, before.attempt);
            redelivered += 1;
        }
    }
    assert!(redelivered <= revivals, "{forward:?} came {redelivered} times from the start, {revivals} asked");
    if let Some(last) = sequence.last()
        && last.replay == row.replay
        && redelivered == revivals
    {
        assert!(row.attempts >= last.attempt, "{forward:?}: {row:?}, the backend has seen {}", last.attempt);
    }
}

/// The earliest time of the attempt after `before`, which the gateway may have given up, under whatever policy. What the
/// backend asked for only delays it, and never beyond the age at which the forward would be given up.
fn due(destination: &str, before: &Got, given_up: Option<Timestamp>, since: Timestamp) -> Timestamp {
    let at = given_up.map_or(before.at, |began| before.at.min(began));
    let pauses = patience(destination).into_iter().filter_map(|patience| patience.pause(before.attempt));
    // `c` has full jitter.
    let least = pauses.min().filter(|_| destination != "c").unwrap_or(PAUSE_MIN);
    let due_at = later(at, least);
    if before.reply != Reply::Busy || given_up.is_some() {
        return due_at;
    }
    let ages = patience(destination).map(|patience| later(since, patience.max_age));
    due_at.max(ages.into_iter().fold(later(at, ASKED), Timestamp::min))
}

/// Delivered only what the backend has taken, dead only what it refused or what is too old.
fn settled(forward: &Forward, row: &State, sequence: &[&Got], since: Timestamp, now: Timestamp) {
    let this_attempt = || sequence.iter().rev().find(|got| got.attempt == row.attempts);
    match &*row.state {
        "waiting" => {}
        "in_flight" => assert!(row.attempts > 0, "{forward:?}: {row:?}"),
        "delivered" => {
            let accepted = this_attempt().is_some_and(|got| got.reply == Reply::Accept);
            assert!(accepted, "{forward:?} was not accepted: {row:?}");
        }
        "dead" => {
            let reply = this_attempt().map(|got| got.reply);
            let given_up = patience(&forward.1).iter().any(|patience| {
                let pause = patience.pause(row.attempts);
                pause.is_none_or(|pause| later(now, pause) > later(since, patience.max_age))
            });
            assert_ne!(row.outcome.as_deref(), Some("corrupt"), "{forward:?}");
            assert!(reply == Some(Reply::Refuse) || given_up, "{forward:?} died early: {row:?}, {reply:?}");
        }
        other => panic!("{forward:?} is {other}"),
    }
}
