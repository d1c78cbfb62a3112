//! Who has claimed a key. Claims stand in a table in the order of their arrival, which costs an acceptance next to
//! nothing; they are found by runs that are made of them afterwards, many claims at once, and until then by an index in
//! memory. A filter over the runs answers "never" without a read. Runs, filter and index say only where to look: a claim
//! is what stands in the table, and everything else can be made anew from it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use self::filter::Filter;
use crate::clock::Timestamp;
use crate::dedup::{Key, Keys};
use crate::id::Id;

mod filter;

/// Keys of which a run is made: 4 MiB in memory before, 1.5 MiB on the disk after.
const RUN_KEYS: usize = 1 << 17;
/// A run is divided by as many bits of its keys, so that a key is found by reading one page.
const CHUNK_BITS: u32 = 9;
/// Bytes of a key, and of the distance of its claim from the run's last.
const ENTRY: usize = 8 + 4;

/// What a claim says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) delivery: Id,
    pub(super) body_digest: [u8; 32],
}

/// The beginnings of keys with their claims' rows.
#[derive(Debug, Default)]
struct Recent {
    latest: HashMap<u64, i64, BuildHasherDefault<AsItIs>>,
    /// Those for whose keys there is a later one: expired, or rolled back.
    before: BTreeSet<(u64, i64)>,
}

/// Beginnings of digests need no hashing.
#[derive(Default)]
struct AsItIs(u64);

/// Where claims stand.
#[derive(Debug)]
pub(super) struct Claims {
    /// The row of the next claim. None is used twice: a place that is remembered in vain leads nowhere.
    next: i64,
    /// What is in no run yet.
    recent: Recent,
    /// How many recent keys the next run waits for.
    run_at: usize,
    /// The last rows of the runs, oldest first.
    runs: Vec<i64>,
    filter: Filter,
}

impl Claims {
    /// Reads where the claims are, and makes runs of those for which that has been left undone.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut claims = Self {
            next: 1,
            recent: Recent::default(),
            run_at: RUN_KEYS,
            runs: Vec::new(),
            filter: Filter::default(),
        };
        let mut select = connection.prepare("SELECT run, keys FROM claim_run ORDER BY run, chunk")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let run = row.get(0)?;
            if claims.runs.last() != Some(&run) {
                claims.runs.push(run);
                claims.filter.add(run);
            }
            claims.filter.insert(run, entries(row.get_ref(1)?.as_blob()?, run).map(|(start, _)| start));
        }
        let indexed = claims.runs.last().copied().unwrap_or(0);
        claims.next = indexed + 1;
        let mut select =
            connection.prepare("SELECT row, key, guard FROM claim WHERE row > ?1 ORDER BY row")?;
        let mut rows = select.query([indexed])?;
        while let Some(row) = rows.next()? {
            let at: i64 = row.get(0)?;
            for column in [1, 2] {
                let key: Option<[u8; 32]> = row.get(column)?;
                key.iter().for_each(|key| claims.recent.insert(start_of(key), at));
            }
            claims.next = at + 1;
            if claims.recent.len() >= claims.run_at {
                // Full and busy pass, and the claims can be found as they are.
                match claims.make_run(connection) {
                    Ok(()) => {}
                    Err(error) if is_passing(&error) => claims.run_at = usize::MAX,
                    Err(error) => return Err(error),
                }
            }
        }
        claims.run_at =
            if claims.recent.len() < RUN_KEYS { RUN_KEYS } else { claims.recent.len() + RUN_KEYS / 8 };
        Ok(claims)
    }

    /// The claim on `key` that holds at `now`.
    pub(super) fn find(
        &self,
        connection: &Connection,
        key: Key,
        now: Timestamp,
    ) -> rusqlite::Result<Option<Claim>> {
        let start = start_of(key.as_bytes());
        for row in self.recent.rows(start) {
            if let Some(claim) = claim_at(connection, row, key, now)? {
                return Ok(Some(claim));
            }
        }
        for run in self.filter.candidates(start) {
            let mut select =
                connection.prepare_cached("SELECT keys FROM claim_run WHERE run = ?1 AND chunk = ?2")?;
            let keys: Option<Vec<u8>> =
                select.query_row(params![run, chunk_of(start)], |row| row.get(0)).optional()?;
            let keys = keys.unwrap_or_default();
            for (_, row) in entries(&keys, run).filter(|(of, _)| *of == start) {
                if let Some(claim) = claim_at(connection, row, key, now)? {
                    return Ok(Some(claim));
                }
            }
        }
        Ok(None)
    }

    /// Claims the keys for a delivery. When the transaction is rolled back, what is remembered here leads nowhere.
    pub(super) fn add(
        &mut self,
        connection: &Connection,
        keys: Keys,
        claim: &Claim,
        expires_at: Timestamp,
    ) -> rusqlite::Result<()> {
        if keys.first().is_none() {
            return Ok(());
        }
        let mut insert = connection.prepare_cached(
            "INSERT INTO claim (row, key, delivery, body_digest, expires_at, guard) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let row = self.next;
        self.next += 1;
        insert.execute(params![
            row,
            keys.id.as_ref().map(Key::as_bytes),
            claim.delivery.as_bytes(),
            claim.body_digest,
            expires_at.as_millisecond(),
            keys.guard.as_ref().map(Key::as_bytes),
        ])?;
        for key in keys.id.iter().chain(&keys.guard) {
            self.recent.insert(start_of(key.as_bytes()), row);
        }
        Ok(())
    }

    /// Makes a run when there is enough for one, in a transaction of its own. When that fails, not again at once.
    pub(super) fn tend(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.recent.len() < self.run_at {
            return Ok(());
        }
        self.run_at = self.recent.len() + RUN_KEYS / 8;
        self.make_run(connection)?;
        self.run_at = RUN_KEYS;
        Ok(())
    }

    /// Makes a run of what is recent, and forgets those of which no claim is left.
    fn make_run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let run = self.next - 1;
        let transaction = connection.unchecked_transaction()?;
        let mut insert = transaction.prepare_cached("INSERT INTO claim_run VALUES (?1, ?2, ?3)")?;
        let mut keys = Vec::new();
        let recent = self.recent.sorted();
        let mut recent = recent.iter().peekable();
        while let Some((start, row)) = recent.next() {
            keys.extend_from_slice(&start.to_be_bytes());
            // A run is far from being so long.
            keys.extend_from_slice(&u32::try_from(run - row).unwrap_or(u32::MAX).to_be_bytes());
            if recent.peek().is_none_or(|(next, _)| chunk_of(*next) != chunk_of(*start)) {
                insert.execute(params![run, chunk_of(*start), keys])?;
                keys.clear();
            }
        }
        drop(insert);
        let gone = self.emptied(&transaction)?;
        for run in &gone {
            transaction.execute("DELETE FROM claim_run WHERE run = ?1", [run])?;
        }
        transaction.commit()?;
        self.runs.retain(|run| !gone.contains(run));
        gone.into_iter().for_each(|run| self.filter.remove(run));
        self.runs.push(run);
        self.filter.add(run);
        self.filter.insert(run, self.recent.latest.keys().copied());
        self.recent.latest.clear();
        self.recent.before.clear();
        Ok(())
    }

    /// Runs of which no claim is left.
    fn emptied(&self, connection: &Connection) -> rusqlite::Result<Vec<i64>> {
        let mut held =
            connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM claim WHERE row > ?1 AND row <= ?2)")?;
        let mut gone = Vec::new();
        let mut before = i64::MIN;
        for run in &self.runs {
            if !held.query_row([before, *run], |row| row.get(0))? {
                gone.push(*run);
            }
            before = *run;
        }
        Ok(gone)
    }
}

impl Recent {
    fn len(&self) -> usize {
        self.latest.len() + self.before.len()
    }

    fn insert(&mut self, start: u64, row: i64) {
        if let Some(before) = self.latest.insert(start, row) {
            self.before.insert((start, before));
        }
    }

    /// The rows of claims whose keys begin like this, the latest first.
    fn rows(&self, start: u64) -> impl Iterator<Item = i64> {
        let before = self.before.range((start, i64::MIN)..=(start, i64::MAX)).rev();
        self.latest.get(&start).into_iter().chain(before.map(|(_, row)| row)).copied()
    }

    fn sorted(&self) -> Vec<(u64, i64)> {
        let mut all: Vec<_> = self.latest.iter().map(|(start, row)| (*start, *row)).collect();
        all.extend(&self.before);
        all.sort_unstable();
        all
    }
}

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed")
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

fn is_passing(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy))
}

/// The claim in this row, when it is one on `key` that holds at `now`.
fn claim_at(connection: &Connection, row: i64, key: Key, now: Timestamp) -> rusqlite::Result<Option<Claim>> {
    let mut select = connection.prepare_cached(
        "SELECT delivery, body_digest FROM claim WHERE row = ?1 AND (key = ?2 OR guard = ?2) AND expires_at > ?3",
    )?;
    select
        .query_row(params![row, key.as_bytes(), now.as_millisecond()], |row| {
            Ok(Claim { delivery: Id::from_bytes(row.get(0)?), body_digest: row.get(1)? })
        })
        .optional()
}

/// How claims and their runs contradict each other, if they do.
pub(super) fn contradiction(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut runs = connection.prepare("SELECT DISTINCT run FROM claim_run ORDER BY run")?;
    let runs = runs.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
    let mut chunks = connection.prepare("SELECT chunk, keys FROM claim_run WHERE run = ?1")?;
    let mut claims = connection.prepare("SELECT row, key, guard FROM claim WHERE row > ?1 AND row <= ?2")?;
    let mut before = i64::MIN;
    for run in runs {
        let mut listed = HashSet::new();
        let mut rows = chunks.query([run])?;
        while let Some(row) = rows.next()? {
            let chunk: i64 = row.get(0)?;
            let entries = entries(row.get_ref(1)?.as_blob()?, run);
            listed.extend(entries.filter(|(start, _)| chunk_of(*start) == chunk));
        }
        let mut rows = claims.query([before, run])?;
        while let Some(row) = rows.next()? {
            let at: i64 = row.get(0)?;
            for column in [1, 2] {
                let key: Option<[u8; 32]> = row.get(column)?;
                if key.is_some_and(|key| !listed.contains(&(start_of(&key), at))) {
                    return Ok(Some(format!("a claim is not where its key leads to: row {at}")));
                }
            }
        }
        before = run;
    }
    Ok(None)
}

/// The beginnings of the keys in a chunk, and the rows of their claims.
fn entries(keys: &[u8], run: i64) -> impl Iterator<Item = (u64, i64)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    keys.chunks_exact(ENTRY).map(move |entry| (number(&entry[..8]), run - number(&entry[8..]).cast_signed()))
}

fn start_of(key: &[u8; 32]) -> u64 {
    key[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn chunk_of(start: u64) -> i64 {
    (start >> (u64::BITS - CHUNK_BITS)).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::clock::from_milliseconds;
    use crate::store::sqlite::{schema, writer};

    fn key(number: u64) -> Key {
        Key::from_bytes(Sha256::digest(number.to_be_bytes()).into())
    }

    fn claim(number: u64) -> Claim {
        Claim { delivery: Id::from_bytes(u128::from(number).to_be_bytes()), body_digest: [7; 32] }
    }

    fn add(claims: &mut Claims, connection: &Connection, number: u64, until: i64) {
        // Every third has no guard, and every third no id.
        let keys = Keys {
            id: (number % 3 != 1).then(|| key(number)),
            guard: (number % 3 != 2).then(|| key(number + 1_000_000)),
        };
        claims.add(connection, keys, &claim(number), from_milliseconds(until)).unwrap();
    }

    /// The delivery of that number holds both of its keys at `now`, or neither.
    fn holds(claims: &Claims, connection: &Connection, number: u64, now: i64) -> bool {
        let find = |key| claims.find(connection, key, from_milliseconds(now)).unwrap();
        let found = [
            (number % 3 != 1).then(|| find(key(number))),
            (number % 3 != 2).then(|| find(key(number + 1_000_000))),
        ];
        let held = found.iter().flatten().all(Option::is_some);
        for found in found.into_iter().flatten() {
            assert_eq!(found, held.then(|| claim(number)), "{number}");
        }
        held
    }

    fn open(root: &tempfile::TempDir) -> (Connection, Claims) {
        let connection = schema::open_writer(&root.path().join("countersign.db")).unwrap();
        let claims = Claims::load(&connection).unwrap();
        (connection, claims)
    }

    fn runs(connection: &Connection) -> u32 {
        connection.query_row("SELECT count(DISTINCT run) FROM claim_run", [], |row| row.get(0)).unwrap()
    }

    /// Claims, rollbacks, expiry, runs and restarts in any order, beside a map that says who holds what.
    #[test]
    fn a_claim_holds_from_its_commit_to_its_end_wherever_it_stands() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let root = tempfile::tempdir().unwrap();
        let (mut connection, mut claims) = open(&root);
        let mut until: HashMap<u64, i64> = HashMap::new();
        for now in 0..400 {
            let transaction = connection.unchecked_transaction().unwrap();
            let mut batch = HashMap::new();
            for _ in 0..random.usize(..20) {
                let (number, end) = (random.u64(..600), now + random.i64(1..200));
                if until.get(&number).is_none_or(|until| *until <= now) && !batch.contains_key(&number) {
                    add(&mut claims, &transaction, number, end);
                    batch.insert(number, end);
                }
            }
            if random.u8(..5) == 0 {
                transaction.rollback().unwrap();
            } else {
                transaction.commit().unwrap();
                until.extend(batch);
            }
            claims.run_at = 64;
            claims.tend(&connection).unwrap();
            if random.u8(..10) == 0 {
                connection.execute("DELETE FROM claim WHERE expires_at <= ?1", [now]).unwrap();
                drop(connection);
                (connection, claims) = open(&root);
            }
            for number in (0..20).map(|_| random.u64(..700)) {
                let expected = until.get(&number).is_some_and(|until| *until > now);
                assert_eq!(holds(&claims, &connection, number, now), expected, "{number} at {now}");
            }
        }
        let made = runs(&connection);
        assert!((5..100).contains(&made), "{made} runs: too few were made, or none was forgotten");
        assert_eq!(contradiction(&connection).unwrap(), None);
        // With everything that is made of the table gone, it is made anew.
        connection.execute("DELETE FROM claim_run", []).unwrap();
        let claims = Claims::load(&connection).unwrap();
        for number in 0..700 {
            let expected = until.get(&number).is_some_and(|until| *until > 399);
            assert_eq!(holds(&claims, &connection, number, 399), expected, "{number}");
        }
    }

    /// An operator's VACUUM gives the rows of a table new numbers, unless they are a column.
    #[test]
    fn a_store_that_was_compacted_finds_its_claims() {
        let root = tempfile::tempdir().unwrap();
        let (connection, mut claims) = open(&root);
        (0..30).for_each(|number| add(&mut claims, &connection, number, i64::try_from(number).unwrap()));
        claims.run_at = 1;
        claims.tend(&connection).unwrap();
        connection.execute("DELETE FROM claim WHERE expires_at < 9", []).unwrap();
        drop(connection);
        Connection::open(root.path().join("countersign.db")).unwrap().execute_batch("VACUUM").unwrap();
        let (connection, claims) = open(&root);
        assert_eq!((contradiction(&connection).unwrap(), runs(&connection)), (None, 1));
        for number in 0..30 {
            assert_eq!(holds(&claims, &connection, number, 0), number >= 9, "{number}");
        }
    }

    /// What format 1 or a salvage left is as much as a store has.
    #[test]
    fn runs_are_made_at_the_start_of_as_many_claims_as_there_are() {
        let root = tempfile::tempdir().unwrap();
        let (connection, _) = open(&root);
        let count = RUN_KEYS as u64 + 5;
        let transaction = connection.unchecked_transaction().unwrap();
        let mut insert = transaction.prepare("INSERT INTO claim VALUES (NULL, ?1, ?2, ?3, 9, NULL)").unwrap();
        for number in 0..count {
            let claim = claim(number);
            insert
                .execute(params![key(number).as_bytes(), claim.delivery.as_bytes(), claim.body_digest])
                .unwrap();
        }
        drop(insert);
        transaction.commit().unwrap();
        // Without room for a run they are found as they are: a start on a full disk has to deliver what waits.
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let limit = |pages: i64| {
            connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        };
        limit(pages);
        let claims = Claims::load(&connection).unwrap();
        assert_eq!((runs(&connection), claims.recent.len()), (0, RUN_KEYS + 5));
        let found = claims.find(&connection, key(count - 1), from_milliseconds(0)).unwrap();
        assert_eq!(found, Some(claim(count - 1)));
        limit(pages + 10_000);
        let claims = Claims::load(&connection).unwrap();
        assert_eq!((runs(&connection), claims.recent.len()), (1, 5));
        let longest: u32 =
            connection.query_row("SELECT max(length(keys)) FROM claim_run", [], |row| row.get(0)).unwrap();
        assert!((2_048..8_192).contains(&longest), "{longest} bytes read to find a key");
        for number in [0, 1, 1_000, count - 6, count - 5, count - 1, count] {
            let found = claims.find(&connection, key(number), from_milliseconds(0)).unwrap();
            assert_eq!(found, (number < count).then(|| claim(number)), "{number}");
        }
    }

    /// On a full disk every batch would try again, and fail again.
    #[test]
    fn a_run_that_cannot_be_made_waits_for_more_claims_and_loses_none() {
        let root = tempfile::tempdir().unwrap();
        let (connection, mut claims) = open(&root);
        (0..30).for_each(|number| add(&mut claims, &connection, number, 9));
        claims.run_at = claims.recent.len();
        connection.pragma_update(None, "query_only", true).unwrap();
        assert!(claims.tend(&connection).is_err());
        connection.pragma_update(None, "query_only", false).unwrap();
        claims.tend(&connection).unwrap();
        assert_eq!(runs(&connection), 0);
        assert!(claims.run_at < RUN_KEYS, "{} is never reached", claims.run_at);
        assert!((0..30).all(|number| holds(&claims, &connection, number, 0)));
        claims.run_at = claims.recent.len();
        claims.tend(&connection).unwrap();
        assert_eq!((runs(&connection), claims.recent.len(), claims.run_at), (1, 0, RUN_KEYS));
        assert!((0..30).all(|number| holds(&claims, &connection, number, 0)));
    }

    /// They are in memory as well, however often the same key comes.
    #[test]
    fn claims_that_were_rolled_back_count_towards_a_run() {
        let root = tempfile::tempdir().unwrap();
        let (connection, mut claims) = open(&root);
        let transaction = connection.unchecked_transaction().unwrap();
        add(&mut claims, &transaction, 0, 9);
        transaction.rollback().unwrap();
        add(&mut claims, &connection, 0, 9);
        claims.run_at = 4;
        claims.tend(&connection).unwrap();
        assert_eq!((runs(&connection), claims.recent.len()), (1, 0));
        assert!(holds(&claims, &connection, 0, 0));
    }

    /// All claims since the start would be kept in memory.
    #[test]
    fn the_writer_makes_runs_as_it_goes() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer::tests::writer(&root);
        add(&mut writer.claims, &writer.connection, 0, 9);
        writer.claims.run_at = 1;
        writer::tests::process(&mut writer, &[("UPDATE meter SET n = n + 1", false)]);
        assert_eq!((runs(&writer.connection), writer.claims.recent.len()), (1, 0));
        assert!(holds(&writer.claims, &writer.connection, 0, 0));
    }

    /// Runs of which nothing is left would be read, and their filters asked, for ever.
    #[test]
    fn a_run_is_forgotten_when_the_last_of_its_claims_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let (connection, mut claims) = open(&root);
        let mut run = |numbers: std::ops::Range<u64>, remove: &str| {
            numbers.for_each(|number| add(&mut claims, &connection, number, 9));
            connection.execute(remove, []).unwrap();
            claims.run_at = 1;
            claims.tend(&connection).unwrap();
            let mut runs = connection.prepare("SELECT DISTINCT run FROM claim_run ORDER BY run").unwrap();
            let stored: Vec<i64> =
                runs.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            assert_eq!(stored, claims.runs);
            stored
        };
        assert_eq!(run(0..10, "DELETE FROM claim WHERE rowid = 0"), [10]);
        assert_eq!(run(10..20, "DELETE FROM claim WHERE rowid <= 9"), [10, 20]);
        assert_eq!(run(20..30, "DELETE FROM claim WHERE rowid <= 10"), [20, 30]);
        assert_eq!(run(30..40, "DELETE FROM claim WHERE rowid BETWEEN 21 AND 30"), [20, 40]);
    }

    #[test]
    fn a_key_that_leads_astray_is_a_contradiction() {
        for damage in [
            "UPDATE claim SET key = zeroblob(32) WHERE row = 3",
            "UPDATE claim SET guard = zeroblob(32) WHERE row = 3",
            "DELETE FROM claim_run WHERE chunk < 256",
            "UPDATE claim_run SET keys = zeroblob(length(keys))",
            "UPDATE claim_run SET chunk = -chunk - 1",
        ] {
            let root = tempfile::tempdir().unwrap();
            let (connection, mut claims) = open(&root);
            (0..30).for_each(|number| add(&mut claims, &connection, number, 9));
            claims.run_at = 1;
            claims.tend(&connection).unwrap();
            assert_eq!((contradiction(&connection).unwrap(), runs(&connection)), (None, 1));
            connection.execute(damage, []).unwrap();
            assert!(contradiction(&connection).unwrap().is_some(), "{damage}");
        }
    }
}
