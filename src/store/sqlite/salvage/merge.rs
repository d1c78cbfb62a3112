//! Makes one consistent store of the rows that were found: several versions of one, rows whose index entry is all that
//! is left, forwards without their delivery. The tables in which they are compared live in the new database, so that
//! memory is not a limit.

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::page::{NEWEST, Value};
use super::{DELIVERY, Finding, Salvaged};
use crate::dedup;
use crate::id::Id;
use crate::store::sqlite::order::HELD;
use crate::store::sqlite::row;

const FORWARDS: &str = include_str!("forwards.sql");
/// Findings that are told one by one, the losses first.
const FINDINGS_MAX: u32 = 10_000;
const CLAIMS: &str = include_str!("claims.sql");

pub(super) struct Staging<'c> {
    connection: &'c Connection,
}

impl<'c> Staging<'c> {
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.execute_batch(
            "CREATE TABLE found_forward (delivery, destination, state, due_at, attempts, pending_since, replay,
                 settled_at, last_outcome, waited, rank);
             CREATE TABLE found_entry (delivery, destination, state, due_at, pending_since, settled_at, rank);
             CREATE TABLE found_claim (key, delivery, body_digest, expires_at, rank);
             CREATE TABLE held_claim (key PRIMARY KEY, delivery, body_digest, expires_at) WITHOUT ROWID;
             CREATE TABLE due_claim (key, delivery, body_digest, received_at);
             CREATE TABLE known (id PRIMARY KEY, certain, name) WITHOUT ROWID;
             CREATE TABLE wanted (id PRIMARY KEY) WITHOUT ROWID;
             CREATE TABLE finding (delivery, what, lost)",
        )?;
        Ok(Self { connection })
    }

    /// Takes a row for what its shape says it is. Columns behind those that we know are an operator's.
    pub(super) fn take(&self, row: &[Value], rank: i64) -> rusqlite::Result<()> {
        use Value::{Blob, Integer, Null, Text};
        match row {
            [Blob(id), Text(_), ..] if id.len() == 16 && row.len() >= DELIVERY.0 => {
                self.take_delivery(&row[..DELIVERY.0], rank)
            }
            [
                Blob(id),
                Text(destination),
                Text(state),
                Integer(due_at),
                Integer(attempts),
                Integer(since),
                Integer(replay),
                settled_at @ (Integer(_) | Null),
                last_outcome @ (Text(_) | Null),
                rest @ ..,
            ] if id.len() == 16 => {
                // Since format 3.
                let waited = match rest {
                    [Integer(waited @ 0..), ..] => *waited,
                    _ => 0,
                };
                let pending = matches!(state.as_str(), "waiting" | "in_flight");
                let ended = matches!(state.as_str(), "delivered" | "dead" | "cancelled");
                self.know(id, rank)?;
                if (pending && *settled_at == Null || ended && *settled_at != Null)
                    && (0..=i64::from(u32::MAX)).contains(attempts)
                    && (0..=1).contains(replay)
                {
                    self.insert(
                        "INSERT INTO found_forward VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                        params![
                            id,
                            destination,
                            state,
                            due_at % HELD,
                            attempts,
                            since,
                            replay,
                            settled_at,
                            last_outcome,
                            waited,
                            rank
                        ],
                    )?;
                }
                Ok(())
            }
            [Text(destination), Text(state), Integer(due_at), Blob(id), Integer(since), Null]
                if id.len() == 16 && matches!(state.as_str(), "waiting" | "in_flight") =>
            {
                self.know(id, rank)?;
                self.insert(
                    "INSERT INTO found_entry VALUES (?1, ?2, ?3, ?4, ?5, NULL, ?6)",
                    params![id, destination, state, due_at % HELD, since, rank],
                )
            }
            [Text(destination), Blob(id)] if id.len() == 16 => {
                self.know(id, rank)?;
                let since = received_at(id);
                self.insert(
                    "INSERT INTO found_entry VALUES (?1, ?2, 'dead', ?3, ?3, ?3, ?4)",
                    params![id, destination, since, rank],
                )
            }
            [Integer(settled_at), Blob(id), Text(destination)] if id.len() == 16 => {
                self.know(id, rank)?;
                self.insert(
                    "INSERT INTO found_entry VALUES (?1, ?2, 'delivered', ?3, ?3, ?3, ?4)",
                    params![id, destination, settled_at, rank],
                )
            }
            [Text(destination), Text(key), Integer(arrival), Blob(id)] if id.len() == 16 => self.insert(
                "INSERT OR IGNORE INTO ordered VALUES (?1, ?2, ?3, ?4)",
                params![destination, key, arrival, id],
            ),
            // In format 1 a guard had a row of its own.
            [key @ Blob(_), Blob(id), Blob(digest), Integer(until), ..] => {
                self.take_claim(key, id, digest, *until, rank)
            }
            [Null, key, Blob(id), Blob(digest), Integer(until), guard, ..] => {
                self.take_claim(key, id, digest, *until, rank)?;
                self.take_claim(guard, id, digest, *until, rank)
            }
            [
                Blob(id),
                Text(destination),
                Integer(attempt),
                Integer(started_at),
                Integer(duration),
                Text(outcome),
                status @ (Integer(_) | Null),
                Text(detail),
                ..,
            ] if id.len() == 16 && rank == NEWEST => {
                self.know(id, rank)?;
                self.insert(
                    "INSERT INTO attempt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![id, destination, attempt, started_at, duration, outcome, status, detail],
                )
            }
            // What an older page has may have been shown, or counted on, since.
            [Text(source), Integer(received_at), Text(sender), Blob(secret), ..] if rank == NEWEST => self
                .insert(
                    "INSERT INTO handed_over VALUES (?1, ?2, ?3, ?4)",
                    params![source, received_at, sender, secret],
                ),
            [
                Text(source),
                Text(secret),
                Integer(since),
                Integer(uses),
                last_used @ (Integer(_) | Null),
                ..,
            ] if rank == NEWEST => self.insert(
                "INSERT OR IGNORE INTO secret_use VALUES (?1, ?2, ?3, ?4, ?5)",
                params![source, secret, since, uses, last_used],
            ),
            // An entry of an index that leads to a delivery or to its attempts.
            [Blob(id), Integer(_)] if id.len() == 16 => self.know(id, rank),
            _ => Ok(()),
        }
    }

    /// Takes the claim on a key, if it is one.
    fn take_claim(
        &self,
        key: &Value,
        id: &[u8],
        digest: &[u8],
        until: i64,
        rank: i64,
    ) -> rusqlite::Result<()> {
        match key {
            Value::Blob(key) if (key.len(), id.len(), digest.len()) == (32, 16, 32) => self.insert(
                "INSERT INTO found_claim VALUES (?1, ?2, ?3, ?4, ?5)",
                params![key, id, digest, until, rank],
            ),
            _ => Ok(()),
        }
    }

    /// Takes a delivery that may have been removed, if it is wanted.
    pub(super) fn take_wanted(&self, row: &[Value]) -> rusqlite::Result<()> {
        let Some(Value::Blob(id)) = row.first() else { return Ok(()) };
        let mut wanted =
            self.connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM wanted WHERE id = ?1)")?;
        if wanted.query_row([id], |row| row.get(0))? {
            self.take_delivery(&row[..DELIVERY.0], NEWEST)
        } else {
            Ok(())
        }
    }

    /// Whether there are deliveries that must be somewhere and have not been found.
    pub(super) fn wants(&self) -> rusqlite::Result<bool> {
        self.connection.execute_batch(
            "INSERT OR IGNORE INTO wanted SELECT id FROM known WHERE certain;
             INSERT OR IGNORE INTO wanted SELECT delivery FROM found_forward WHERE settled_at IS NULL;
             INSERT OR IGNORE INTO wanted SELECT delivery FROM found_entry WHERE settled_at IS NULL;
             DELETE FROM wanted WHERE id IN (SELECT id FROM delivery)",
        )?;
        self.connection.query_row("SELECT EXISTS (SELECT 1 FROM wanted)", [], |row| row.get(0))
    }

    /// Stores a delivery, and removes it again when it does not match its checksum.
    fn take_delivery(&self, row: &[Value], rank: i64) -> rusqlite::Result<()> {
        let mut insert = self.connection.prepare_cached(
            "INSERT OR IGNORE INTO delivery
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?;
        let Value::Blob(id) = &row[0] else { return Ok(()) };
        self.know(id, rank)?;
        let loaded = match insert.execute(rusqlite::params_from_iter(row)) {
            Ok(0) => return Ok(()),
            Ok(_) => <[u8; 16]>::try_from(id.as_slice())
                .ok()
                .and_then(|id| row::load(self.connection, Id::from_bytes(id)).ok().flatten()),
            // Of another type than was written.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => None,
            Err(error) => return Err(error),
        };
        let Some(delivery) = loaded else {
            self.insert("DELETE FROM delivery WHERE id = ?1", params![id])?;
            // As the provider knows it, as far as it can be read.
            let (Value::Text(source), Value::Text(name)) = (&row[1], &row[2]) else { return Ok(()) };
            return self
                .insert("UPDATE known SET name = ?2 || ' ' || ?3 WHERE id = ?1", params![id, source, name]);
        };
        if let Some(key) = dedup::id_key(&delivery) {
            let digest: [u8; 32] = Sha256::digest(&delivery.body).into();
            let received_at = delivery.received_at.as_millisecond();
            self.insert(
                "INSERT INTO due_claim VALUES (?1, ?2, ?3, ?4)",
                params![key.as_bytes(), id, digest, received_at],
            )?;
        }
        Ok(())
    }

    /// Remembers that a delivery is or was there.
    fn know(&self, id: &[u8], rank: i64) -> rusqlite::Result<()> {
        self.insert("INSERT OR IGNORE INTO known VALUES (?1, ?2, NULL)", params![id, rank == NEWEST])
    }

    fn insert(&self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    /// Settles what contradicts itself, and tells what was found.
    pub(super) fn merge(&self) -> rusqlite::Result<Salvaged> {
        self.connection.execute_batch(
            "CREATE INDEX found_forward_key ON found_forward (delivery, destination);
             CREATE INDEX found_entry_key ON found_entry (delivery, destination)",
        )?;
        self.connection.execute_batch(FORWARDS)?;
        self.complete_forwards()?;
        self.connection.execute_batch(CLAIMS)?;
        let salvaged = self.report()?;
        self.connection.execute_batch(
            "DROP TABLE found_forward; DROP TABLE found_entry; DROP TABLE found_claim; DROP TABLE held_claim;
             DROP TABLE due_claim;
             DROP TABLE known; DROP TABLE wanted; DROP TABLE finding",
        )?;
        Ok(salvaged)
    }

    /// Deliveries that had more forwards than are found get those of the latest one like it; where there is none like
    /// it, operators have to be told.
    fn complete_forwards(&self) -> rusqlite::Result<()> {
        let mut short = self.connection.prepare(
            "SELECT id, source, event, received_at FROM delivery
             WHERE forwards > (SELECT count(*) FROM forward WHERE delivery = id)",
        )?;
        let mut like = self.connection.prepare(
            "SELECT id FROM delivery AS other
             WHERE source = ?1 AND event IS ?2 AND id <> ?3
                 AND forwards = (SELECT forwards FROM delivery WHERE id = ?3)
                 AND forwards = (SELECT count(*) FROM forward WHERE delivery = other.id)
             ORDER BY abs(received_at - ?4) LIMIT 1",
        )?;
        let short = short.query_map([], |row| {
            Ok((
                row.get::<_, Vec<u8>>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, i64>(3)?,
            ))
        })?;
        for (id, source, event, received_at) in short.collect::<rusqlite::Result<Vec<_>>>()? {
            let other: Option<Vec<u8>> =
                like.query_row(params![source, event, id, received_at], |row| row.get(0)).optional()?;
            let mut made = 0;
            if let Some(other) = other {
                made = self.connection.execute(
                    "INSERT OR IGNORE INTO forward
                     SELECT ?1, destination, 'waiting', ?3, 0, ?3, 1, NULL, NULL, 0 FROM forward WHERE delivery = ?2",
                    params![id, other, received_at],
                )?;
            }
            let (what, lost) = if made > 0 {
                ("its forward was lost, and is made anew as those of the latest delivery like it", false)
            } else {
                ("its forward is lost, and where it was to go is not known", true)
            };
            self.insert("INSERT INTO finding VALUES (?1, ?2, ?3)", params![id, what, lost])?;
        }
        self.connection.execute_batch(
            "UPDATE delivery SET forwards = (SELECT count(*) FROM forward WHERE delivery = id)
             WHERE forwards <> (SELECT count(*) FROM forward WHERE delivery = id)",
        )
    }

    fn report(&self) -> rusqlite::Result<Salvaged> {
        self.insert(
            "INSERT INTO finding SELECT NULL, 'more of the same: ' || count(*), max(lost) FROM (
                 SELECT lost FROM finding ORDER BY lost DESC, rowid LIMIT -1 OFFSET ?1
             ) HAVING count(*) > 0",
            [FINDINGS_MAX],
        )?;
        let count =
            |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::unsigned_abs));
        let mut findings =
            self.connection.prepare("SELECT delivery, what, lost FROM (
                 SELECT * FROM (SELECT rowid AS number, * FROM finding ORDER BY delivery IS NOT NULL, lost DESC, rowid
                 LIMIT ?1)
             ) ORDER BY number")?;
        let findings = findings.query_map([FINDINGS_MAX + 1], |row| {
            let id: Option<[u8; 16]> = row.get(0)?;
            Ok(Finding { delivery: id.map(Id::from_bytes), what: row.get(1)?, lost: row.get(2)? })
        })?;
        Ok(Salvaged {
            deliveries: count("SELECT count(*) FROM delivery")?,
            pending: count("SELECT count(*) FROM forward WHERE settled_at IS NULL")?,
            claims: count("SELECT count(*) FROM claim")?,
            handed_over: count("SELECT count(*) FROM handed_over")?,
            findings: findings.collect::<rusqlite::Result<_>>()?,
            ..Salvaged::default()
        })
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Milliseconds since the epoch, which a UUIDv7 begins with.
fn received_at(id: &[u8]) -> i64 {
    id.iter().take(6).fold(0, |time, byte| time << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema;
    use Value::{Blob, Integer, Null, Text};

    const TABLES: [&str; 6] =
        ["found_forward", "found_entry", "found_claim", "attempt", "handed_over", "secret_use"];

    fn text(text: &str) -> Value {
        Text(text.to_owned())
    }

    fn blob(length: usize) -> Value {
        Blob(vec![7; length])
    }

    /// Takes the row, found on the newest page, and says what it was taken for: a table, whether its delivery counts as
    /// known, and what the merged store holds then.
    fn taken(row: &[Value]) -> (Vec<&'static str>, bool, Salvaged) {
        let root = tempfile::tempdir().unwrap();
        let connection = schema::create(&root.path().join("any.db")).unwrap();
        let staging = Staging::new(&connection).unwrap();
        staging.take(row, NEWEST).unwrap();
        let has = |table: &&str| {
            let sql = format!("SELECT EXISTS (SELECT 1 FROM {table})");
            connection.query_row(&sql, [], |row| row.get::<_, bool>(0)).unwrap()
        };
        let found = TABLES.into_iter().filter(|table| has(table)).collect();
        (found, has(&"known"), staging.merge().unwrap())
    }

    fn check(row: &[Value], table: Option<&str>, known: bool) {
        let (found, knows, _) = taken(row);
        assert_eq!((found, knows), (table.into_iter().collect(), known));
    }

    #[test]
    fn a_row_is_taken_for_what_its_shape_says_or_not_at_all() {
        let forward = |id, state: &str, attempts, replay, settled_at, outcome| {
            let (due_at, since) = (Integer(5), Integer(5));
            [
                blob(id),
                text("a"),
                text(state),
                due_at,
                Integer(attempts),
                since,
                Integer(replay),
                settled_at,
                outcome,
            ]
        };
        let forwards = Some("found_forward");
        for state in ["waiting", "in_flight"] {
            check(&forward(16, state, 0, 0, Null, Null), forwards, true);
            check(&forward(16, state, 0, 0, Integer(1), Null), None, true);
        }
        for state in ["delivered", "dead", "cancelled"] {
            check(&forward(16, state, u32::MAX.into(), 1, Integer(1), text("x")), forwards, true);
            check(&forward(16, state, 1, 1, Null, text("x")), None, true);
        }
        check(&forward(16, "lost", 0, 0, Null, Null), None, true);
        check(&forward(16, "waiting", -1, 0, Null, Null), None, true);
        check(&forward(16, "waiting", 1 << 32, 0, Null, Null), None, true);
        check(&forward(16, "waiting", 0, 2, Null, Null), None, true);
        check(&forward(15, "waiting", 0, 0, Null, Null), None, false);

        let entry = |id, state: &str| [text("a"), text(state), Integer(5), blob(id), Integer(5), Null];
        check(&entry(16, "waiting"), Some("found_entry"), true);
        check(&entry(16, "in_flight"), Some("found_entry"), true);
        check(&entry(16, "dead"), None, false);
        check(&entry(15, "waiting"), None, false);
        for (id, table) in [(16, Some("found_entry")), (15, None)] {
            check(&[text("a"), blob(id)], table, table.is_some());
            check(&[Integer(5), blob(id), text("a")], table, table.is_some());
            check(&[blob(id), Integer(5)], None, table.is_some());
        }

        let claim = |key, id, digest| [blob(key), blob(id), blob(digest), Integer(5)];
        check(&claim(32, 16, 32), Some("found_claim"), false);
        for (key, id, digest) in [(31, 16, 32), (32, 15, 32), (32, 16, 31)] {
            check(&claim(key, id, digest), None, false);
        }
        // Format 2: the row's number, the id's key, and behind the rest the guard's.
        let claim = |key, id, digest, guard| [Null, key, blob(id), blob(digest), Integer(5), guard];
        check(&claim(blob(32), 16, 32, Null), Some("found_claim"), false);
        check(&claim(Null, 16, 32, blob(32)), Some("found_claim"), false);
        for row in [
            claim(Null, 16, 32, Null),
            claim(blob(31), 16, 32, Null),
            claim(blob(32), 15, 32, Null),
            claim(blob(32), 16, 31, Null),
        ] {
            check(&row, None, false);
        }

        // A secret may be as long as an id.
        check(&[text("s"), Integer(5), text("192.0.2.1"), blob(16)], Some("handed_over"), false);
        for last_used in [Integer(7), Null] {
            let used = [text("s"), text("old"), Integer(5), Integer(6), last_used];
            check(&used, Some("secret_use"), false);
        }

        let attempt = |id, status| {
            [blob(id), text("a"), Integer(1), Integer(5), Integer(5), text("x"), status, text("")]
        };
        check(&attempt(16, Integer(200)), Some("attempt"), true);
        check(&attempt(16, Null), Some("attempt"), true);
        check(&attempt(15, Null), None, false);
    }

    fn delivery(body: Value) -> Vec<Value> {
        let mut row = vec![blob(16), text("source"), text("name"), Null, Integer(5)];
        row.extend([text("sender"), text("method"), text("target"), Integer(1), text("scheme"), Null, Null]);
        row.extend([Integer(0), blob(16), blob(0), body]);
        row
    }

    #[test]
    fn a_delivery_of_another_shape_is_lost_and_told() {
        // The body has another type than was written.
        let mut row = delivery(text("body"));
        let (_, known, salvaged) = taken(&row);
        assert!(known);
        assert_eq!((salvaged.deliveries, salvaged.findings.len()), (0, 1));
        assert!(
            salvaged.findings[0].lost && salvaged.findings[0].what.contains("source name"),
            "{salvaged:?}"
        );
        check(&row[..DELIVERY.0 - 1], None, false);
        row[0] = blob(15);
        check(&row, None, false);
    }

    /// What a full disk has not taken would be told as lost, and be set aside with the damaged files.
    #[test]
    fn a_salvage_that_finds_no_room_takes_no_delivery_for_damaged() {
        let root = tempfile::tempdir().unwrap();
        let connection = schema::create(&root.path().join("any.db")).unwrap();
        let staging = Staging::new(&connection).unwrap();
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        let error = staging.take(&delivery(blob(1 << 16)), NEWEST).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DiskFull), "{error}");
    }

    /// Only an operator can know where a delivery was to go when there is none like it.
    #[test]
    fn a_lost_forward_is_made_like_others_or_told_as_lost() {
        for (others, made) in [(0, true), (1, false)] {
            let root = tempfile::tempdir().unwrap();
            let connection = schema::create(&root.path().join("any.db")).unwrap();
            let staging = Staging::new(&connection).unwrap();
            let insert = |id: u8, forwards: u8| {
                let sql = "INSERT INTO delivery
                    VALUES (?1, 's', NULL, NULL, 5, 'x', 'x', 'x', 1, 'x', NULL, NULL, ?2, x'', x'', x'')";
                connection.execute(sql, params![[id; 16], forwards]).unwrap();
            };
            insert(1, 1);
            insert(2, 1 + others);
            let forward = "INSERT INTO forward VALUES (?1, 'a', 'delivered', 5, 1, 5, 0, 5, NULL, 0)";
            connection.execute(forward, [[2_u8; 16]]).unwrap();
            staging.complete_forwards().unwrap();
            let lost = "SELECT lost FROM finding WHERE delivery = ?1";
            let lost: bool = connection.query_row(lost, [[1_u8; 16]], |row| row.get(0)).unwrap();
            let waiting = "SELECT count(*) FROM forward WHERE delivery = ?1 AND state = 'waiting'";
            let waiting: u8 = connection.query_row(waiting, [[1_u8; 16]], |row| row.get(0)).unwrap();
            assert_eq!((lost, waiting), (!made, u8::from(made)), "{others}");
        }
    }

    #[test]
    fn what_was_merged_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let connection = schema::create(&root.path().join("any.db")).unwrap();
        let staging = Staging::new(&connection).unwrap();
        let sql = "INSERT INTO forward VALUES (x'01', 'a', 'waiting', 5, 0, 5, 0, NULL, NULL, 0),
                (x'02', 'a', 'waiting', 5, 0, 5, 0, NULL, NULL, 0), (x'03', 'a', 'dead', 5, 1, 5, 0, 5, NULL, 0);
            INSERT INTO claim VALUES (NULL, x'01', x'01', x'01', 5, NULL);
            WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 10010)
                INSERT INTO finding SELECT zeroblob(16), 'x', 0 FROM i";
        connection.execute_batch(sql).unwrap();
        let salvaged = staging.report().unwrap();
        assert_eq!((salvaged.pending, salvaged.claims), (2, 1));
        assert_eq!(salvaged.findings.len(), 10_001);
        assert!(salvaged.findings.iter().any(|finding| finding.what == "more of the same: 10"));
    }

    #[test]
    fn an_id_says_when_its_delivery_was_received() {
        let id = Id::new(crate::clock::from_milliseconds(1_800_000_000_123), [0xff; 10]);
        assert_eq!(received_at(id.as_bytes()), 1_800_000_000_123);
    }
}
