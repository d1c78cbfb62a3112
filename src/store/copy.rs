//! Moves what an SQLite store holds into a PostgreSQL database, as it stands, so that a gateway can become one of several.
//! Nobody uses either meanwhile. A batch of rows is a transaction, so that the rows that are there tell where to go on after
//! an interruption; a mark in the database keeps gateways out of it until both sides have been found to hold the same.

use std::path::Path;
use std::pin::pin;

use futures_util::TryStreamExt as _;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::{postgres, sqlite};
use crate::config::Database;
use crate::id::Id;

/// A transaction ends after so many rows, or bytes of them.
const ROWS_MAX: usize = 1_000;
const BYTES_MAX: usize = 8 << 20;

/// No statement here is one that a sender waits for.
const SESSION: &str = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0";
/// By whom the database is being filled.
const MARK: &str = "CREATE TABLE countersign.copy (origin text NOT NULL)";

const PAUSE: &str = "
    INSERT INTO countersign.lane (destination, paused) SELECT d, true FROM unnest($1::text[]) d
    ON CONFLICT (destination) DO UPDATE SET paused = true";

/// A table that both engines have.
struct Table {
    name: &'static str,
    /// In PostgreSQL.
    columns: &'static [(&'static str, Kind)],
    /// The same columns in SQLite, and the rows always in the same order.
    rows: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Id,
    /// When the id beside it was made.
    TimeOfId,
    Text,
    Bytes,
    /// Bytes that are compared by their digest.
    Body,
    Long,
    Integer,
    Flag,
}

use Kind::{Body, Bytes, Flag, Integer, Long, Text, TimeOfId};

const TABLES: [Table; 7] = [
    Table {
        name: "delivery",
        columns: &[
            ("id", Kind::Id),
            ("source", Text),
            ("delivery_id", Text),
            ("event", Text),
            ("received_at", Long),
            ("sender", Text),
            ("method", Text),
            ("target", Text),
            ("verified", Flag),
            ("scheme", Text),
            ("secret", Text),
            ("skew", Long),
            ("forwards", Integer),
            ("checksum", Bytes),
            ("headers", Bytes),
            ("body", Body),
        ],
        rows: "SELECT id, source, delivery_id, event, received_at, sender, method, target, verified, scheme, secret, skew,
                   forwards, checksum, headers, body
               FROM delivery ORDER BY id",
    },
    Table {
        name: "forward",
        columns: &[
            ("delivery", Kind::Id),
            ("destination", Text),
            ("state", Text),
            ("due_at", Long),
            ("attempts", Integer),
            ("pending_since", Long),
            ("replay", Flag),
            ("settled_at", Long),
            ("last_outcome", Text),
            ("waited", Long),
        ],
        rows: "SELECT delivery, destination, state, due_at, attempts, pending_since, replay, settled_at, last_outcome, waited
               FROM forward ORDER BY delivery, destination",
    },
    Table {
        name: "ordered",
        columns: &[("destination", Text), ("order_key", Text), ("arrival", Long), ("delivery", Kind::Id)],
        rows: "SELECT destination, order_key, arrival, delivery
               FROM ordered ORDER BY destination, order_key, arrival, delivery",
    },
    Table {
        name: "attempt",
        columns: &[
            ("delivery", Kind::Id),
            ("destination", Text),
            ("attempt", Integer),
            ("started_at", Long),
            ("duration_ms", Long),
            ("outcome", Text),
            ("status", Integer),
            ("detail", Text),
        ],
        rows: "SELECT delivery, destination, attempt, started_at, duration_ms, outcome, status, detail
               FROM attempt ORDER BY rowid",
    },
    Table {
        name: "claim",
        columns: &[
            ("key", Bytes),
            ("delivery", Kind::Id),
            ("body_digest", Bytes),
            ("claimed_at", TimeOfId),
            ("expires_at", Long),
        ],
        // The latest of a key: those before it have expired.
        rows: "SELECT key, delivery, body_digest, delivery, expires_at FROM (
                   SELECT key, delivery, body_digest, expires_at, max(row) FROM (
                       SELECT row, key, delivery, body_digest, expires_at FROM claim WHERE key IS NOT NULL
                       UNION ALL SELECT row, guard, delivery, body_digest, expires_at FROM claim WHERE guard IS NOT NULL)
                   GROUP BY key)
               ORDER BY key",
    },
    Table {
        name: "handed_over",
        columns: &[("source", Text), ("received_at", Long), ("sender", Text), ("secret", Bytes)],
        rows: "SELECT source, received_at, sender, secret FROM handed_over ORDER BY rowid",
    },
    Table {
        name: "secret_use",
        columns: &[("source", Text), ("secret", Text), ("since", Long), ("uses", Long), ("last_used", Long)],
        rows: "SELECT source, secret, since, uses, last_used FROM secret_use ORDER BY source, secret",
    },
];

/// Why a store cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The store cannot be opened, or a gateway uses it.
    #[error(transparent)]
    Source(#[from] sqlite::OpenError),
    /// The database cannot be opened.
    #[error(transparent)]
    Target(#[from] postgres::OpenError),
    /// Reading failed.
    #[error("the store cannot be read")]
    Read(#[from] rusqlite::Error),
    /// So did reading which destinations are paused.
    #[error("which destinations are paused in the store cannot be read")]
    Paused(#[from] std::io::Error),
    /// Writing failed, or reading what was written.
    #[error("the database {database} has failed: {reason}")]
    Write {
        /// Its hosts and name.
        database: String,
        /// What it said.
        reason: String,
    },
    /// It holds something else.
    #[error(
        "the database {database} holds {rows} rows of `{table}` that are not of this copy: drop its schema \
         `countersign`, if nothing in it is needed"
    )]
    NotEmpty {
        /// Its hosts and name.
        database: String,
        /// The first table with any.
        table: &'static str,
        /// How many.
        rows: u64,
    },
    /// Another store was being copied into it.
    #[error(
        "a copy of {origin} into the database {database} has been begun and not finished; drop its schema `countersign` \
             to begin anew"
    )]
    Another {
        /// Its hosts and name.
        database: String,
        /// The directory of that store.
        origin: String,
    },
    /// A gateway uses it.
    #[error("{gateways} gateways run on the database {database}; stop them first")]
    InUse {
        /// Its hosts and name.
        database: String,
        /// How many.
        gateways: u64,
    },
}

/// Both sides of a table, after the copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Its name.
    pub table: &'static str,
    /// Of the store.
    pub from: Content,
    /// Of the database.
    pub to: Content,
}

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Content {
    /// How many rows.
    pub rows: u64,
    /// Of all of them, in whatever order; hexadecimal.
    pub digest: String,
}

impl Compared {
    /// Whether both sides hold the same.
    pub fn is_same(&self) -> bool {
        self.from == self.to
    }
}

/// Copies the store in `directory`, which no gateway may be using, into `database`, and compares both. Begun before and
/// interrupted, it goes on where it was. `progress` gets a table, how many of its rows are there, and how many there are to be.
///
/// # Errors
/// When a side cannot be used, reading or writing fails, or the database has rows that are not of this copy.
pub async fn copy(
    directory: &Path,
    database: &Database,
    mut progress: impl FnMut(&'static str, u64, u64),
) -> Result<Vec<Compared>, CopyError> {
    let store = sqlite::Alone::open(directory)?;
    let (mut client, _connection) = postgres::connect(database).await?;
    let failed = |error| write_failed(database, &error);
    client.batch_execute(SESSION).await.map_err(failed)?;
    mark(&client, directory, database).await?;
    for table in &TABLES {
        fill(table, store.connection(), &mut client, database, &mut progress).await?;
    }
    let paused: Vec<_> = sqlite::paused(directory)?.into_iter().collect();
    client.execute(PAUSE, &[&paused]).await.map_err(failed)?;
    let mut compared = Vec::new();
    for table in &TABLES {
        let from = table.content_of_store(store.connection())?;
        let to = table.content_of_database(&client).await.map_err(failed)?;
        compared.push(Compared { table: table.name, from, to });
    }
    if !compared.iter().all(Compared::is_same) {
        // What it has accepted must not be dropped for the copy.
        nobody_runs(&client, database).await?;
    } else {
        // What is planned without knowing that there are rows walks through all of them.
        client.batch_execute("ANALYZE; DROP TABLE countersign.copy").await.map_err(failed)?;
    }
    Ok(compared)
}

/// Takes the database for this copy.
async fn mark(client: &Client, directory: &Path, database: &Database) -> Result<(), CopyError> {
    let failed = |error| write_failed(database, &error);
    let shown = || database.shown();
    let origin = directory.canonicalize().unwrap_or_else(|_| directory.to_owned()).display().to_string();
    nobody_runs(client, database).await?;
    if postgres::is_being_filled(client).await.map_err(failed)? {
        let begun = client.query_opt("SELECT origin FROM countersign.copy", &[]).await.map_err(failed)?;
        let begun: String = begun.map_or(Ok(String::new()), |row| row.try_get(0)).map_err(failed)?;
        if begun != origin {
            return Err(CopyError::Another { database: shown(), origin: begun });
        }
    } else {
        for table in &TABLES {
            match table.count(client).await.map_err(failed)? {
                0 => {}
                rows => return Err(CopyError::NotEmpty { database: shown(), table: table.name, rows }),
            }
        }
        let quoted = origin.replace('\'', "''");
        let noted = format!("BEGIN; {MARK}; INSERT INTO countersign.copy VALUES ('{quoted}'); COMMIT");
        client.batch_execute(&noted).await.map_err(failed)?;
    }
    Ok(())
}

/// No gateway has been heard of for as long as one may be silent.
async fn nobody_runs(client: &Client, database: &Database) -> Result<(), CopyError> {
    let living = "SELECT count(*) FROM countersign.gateway WHERE expires_at > clock_timestamp()";
    let living = client.query_one(living, &[]).await.and_then(|row| row.try_get::<_, i64>(0));
    match living.map_err(|error| write_failed(database, &error))?.unsigned_abs() {
        0 => Ok(()),
        gateways => Err(CopyError::InUse { database: database.shown(), gateways }),
    }
}

/// Adds the rows that are not there yet.
async fn fill(
    table: &Table,
    store: &Connection,
    client: &mut Client,
    database: &Database,
    progress: &mut impl FnMut(&'static str, u64, u64),
) -> Result<(), CopyError> {
    let failed = |error| write_failed(database, &error);
    let total: i64 =
        store.query_row(&format!("SELECT count(*) FROM ({})", table.rows), [], |row| row.get(0))?;
    let mut done = table.count(client).await.map_err(failed)?;
    let mut select = store.prepare(&format!("{} LIMIT -1 OFFSET ?1", table.rows))?;
    let mut rows = select.query([i64::try_from(done).unwrap_or(i64::MAX)])?;
    loop {
        progress(table.name, done, total.unsigned_abs());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < ROWS_MAX && bytes < BYTES_MAX {
            let Some(row) = rows.next()? else { break };
            let row = table.read(row)?;
            bytes += row.iter().map(Value::bytes).sum::<usize>();
            batch.push(row);
        }
        if batch.is_empty() {
            return Ok(());
        }
        table.write(client, &batch).await.map_err(failed)?;
        done += batch.len() as u64;
    }
}

fn write_failed(database: &Database, error: &tokio_postgres::Error) -> CopyError {
    CopyError::Write { database: database.shown(), reason: postgres::explain(error) }
}

impl Table {
    async fn count(&self, client: &Client) -> Result<u64, tokio_postgres::Error> {
        let sql = format!("SELECT count(*) FROM countersign.{}", self.name);
        Ok(client.query_one(&sql, &[]).await?.try_get::<_, i64>(0)?.unsigned_abs())
    }

    fn read(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Vec<Value>> {
        let kinds = self.columns.iter().map(|(_, kind)| *kind);
        kinds.enumerate().map(|(column, kind)| Ok(Value::of_store(kind, row.get_ref(column)?))).collect()
    }

    async fn write(&self, client: &mut Client, rows: &[Vec<Value>]) -> Result<(), tokio_postgres::Error> {
        let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
        let types: Vec<_> = self.columns.iter().map(|(_, kind)| kind.in_database()).collect();
        let transaction = client.transaction().await?;
        let copy =
            format!("COPY countersign.{} ({}) FROM STDIN (FORMAT binary)", self.name, names.join(", "));
        let mut writer = pin!(BinaryCopyInWriter::new(transaction.copy_in(&copy).await?, &types));
        for row in rows {
            let values = row.iter().zip(self.columns).map(|(value, (_, kind))| value.for_database(*kind));
            let values: Vec<_> = values.collect();
            writer.as_mut().write_raw(values.iter().map(|value| &**value)).await?;
        }
        writer.finish().await?;
        transaction.commit().await
    }

    fn content_of_store(&self, store: &Connection) -> rusqlite::Result<Content> {
        let mut select = store.prepare(self.rows)?;
        let (mut rows, mut sum) = (select.query([])?, Sum::default());
        while let Some(row) = rows.next()? {
            let mut row = self.read(row)?;
            for (value, (_, kind)) in row.iter_mut().zip(self.columns) {
                if let (Value::Bytes(body), Body) = (&mut *value, kind) {
                    *body = Sha256::digest(&*body).to_vec();
                }
            }
            sum.add(&row);
        }
        Ok(sum.content())
    }

    async fn content_of_database(&self, client: &Client) -> Result<Content, tokio_postgres::Error> {
        let columns = self.columns.iter().map(|(name, kind)| match kind {
            Body => format!("sha256({name})"),
            _ => (*name).to_owned(),
        });
        let select =
            format!("SELECT {} FROM countersign.{}", columns.collect::<Vec<_>>().join(", "), self.name);
        let none: [&(dyn ToSql + Sync); 0] = [];
        let (mut rows, mut sum) = (pin!(client.query_raw(&select, none).await?), Sum::default());
        while let Some(row) = rows.try_next().await? {
            let kinds = self.columns.iter().map(|(_, kind)| *kind).enumerate();
            sum.add(
                &kinds
                    .map(|(column, kind)| Value::of_database(kind, &row, column))
                    .collect::<Result<Vec<_>, _>>()?,
            );
        }
        Ok(sum.content())
    }
}

impl Kind {
    fn in_database(self) -> Type {
        match self {
            Self::Id => Type::UUID,
            Text => Type::TEXT,
            Bytes | Body => Type::BYTEA,
            Long | TimeOfId => Type::INT8,
            Integer => Type::INT4,
            Flag => Type::BOOL,
        }
    }
}

/// A value, as either side has it.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Nothing,
    Number(i64),
    Bytes(Vec<u8>),
}

impl Value {
    fn of_store(kind: Kind, value: ValueRef<'_>) -> Self {
        match (kind, value) {
            (TimeOfId, ValueRef::Blob(id)) => {
                let id = <[u8; 16]>::try_from(id).map(Id::from_bytes);
                id.map_or(Self::Nothing, |id| Self::Number(id.time().as_millisecond()))
            }
            (_, ValueRef::Null) => Self::Nothing,
            (_, ValueRef::Integer(number)) => Self::Number(number),
            // As it would have been written there.
            (_, ValueRef::Text(text)) => {
                Self::Bytes(postgres::text(&String::from_utf8_lossy(text)).into_owned().into_bytes())
            }
            (_, ValueRef::Blob(bytes)) => Self::Bytes(bytes.to_vec()),
            // The tables have none.
            (_, ValueRef::Real(number)) => Self::Bytes(number.to_be_bytes().to_vec()),
        }
    }

    fn of_database(kind: Kind, row: &Row, column: usize) -> Result<Self, tokio_postgres::Error> {
        let number = |number: Option<i64>| number.map_or(Self::Nothing, Self::Number);
        let bytes = |bytes: Option<&[u8]>| bytes.map_or(Self::Nothing, |bytes| Self::Bytes(bytes.to_vec()));
        Ok(match kind {
            Kind::Id => bytes(row.try_get::<_, Option<Uuid>>(column)?.as_ref().map(|id| &id.as_bytes()[..])),
            Text => bytes(row.try_get::<_, Option<&str>>(column)?.map(str::as_bytes)),
            Bytes | Body => bytes(row.try_get(column)?),
            Long | TimeOfId => number(row.try_get(column)?),
            Integer => number(row.try_get::<_, Option<i32>>(column)?.map(i64::from)),
            Flag => number(row.try_get::<_, Option<bool>>(column)?.map(i64::from)),
        })
    }

    fn for_database(&self, kind: Kind) -> Box<dyn ToSql + Sync + '_> {
        let number = match self {
            Self::Number(number) => Some(*number),
            Self::Nothing | Self::Bytes(_) => None,
        };
        let bytes = match self {
            Self::Bytes(bytes) => Some(&bytes[..]),
            Self::Nothing | Self::Number(_) => None,
        };
        match kind {
            Kind::Id => Box::new(bytes.and_then(|id| Uuid::from_slice(id).ok())),
            Text => Box::new(bytes.map(String::from_utf8_lossy)),
            Bytes | Body => Box::new(bytes),
            Long | TimeOfId => Box::new(number),
            Integer => Box::new(number.map(|number| i32::try_from(number).unwrap_or(i32::MAX))),
            Flag => Box::new(number.map(|number| number != 0)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Nothing | Self::Number(_) => 8,
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The rows of a table, whatever their order: databases do not sort texts alike.
#[derive(Default)]
struct Sum {
    rows: u64,
    digest: [u64; 4],
}

impl Sum {
    fn add(&mut self, row: &[Value]) {
        let mut digest = Sha256::new();
        for value in row {
            match value {
                Value::Nothing => digest.update([0]),
                Value::Number(number) => {
                    digest.update([1]);
                    digest.update(number.to_be_bytes());
                }
                Value::Bytes(bytes) => {
                    digest.update([2]);
                    digest.update((bytes.len() as u64).to_be_bytes());
                    digest.update(bytes);
                }
            }
        }
        for (sum, part) in self.digest.iter_mut().zip(digest.finalize().chunks_exact(8)) {
            *sum = part.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)).wrapping_add(*sum);
        }
        self.rows += 1;
    }

    fn content(&self) -> Content {
        let digest = self.digest.iter().map(|word| format!("{word:016x}")).collect();
        Content { rows: self.rows, digest }
    }
}
