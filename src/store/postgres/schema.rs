//! The tables: made and migrated by whichever gateway comes first, under a lock of the database's, while the others wait.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::connect::Session;
use super::error::{OpenError, explain};
use crate::config::Database;

/// What leads from each format to the next.
const MIGRATIONS: &[&str] =
    &[include_str!("format-1.sql"), include_str!("format-2.sql"), include_str!("format-3.sql")];
/// Of the advisory lock; the beginning of a digest of our name, so that no other program takes the same.
const LOCK: i64 = 0x636f_756e_7465_7273;
const TABLES: &[&str] = &[
    "meta",
    "delivery",
    "forward",
    "attempt",
    "claim",
    "handed_over",
    "gateway",
    "ordered",
    "secret_use",
    "lane",
    "share",
];

/// Judges the server, and has it hold tables of the format that this version writes.
pub(super) async fn prepare(client: &mut Client, database: &Database) -> Result<(), OpenError> {
    let shown = database.shown();
    let failed = |error: Error| failure(&error, &shown, database);
    Session::begin(client).await.map_err(failed)?.judge(&shown)?;
    let transaction = client.transaction().await.map_err(failed)?;
    // Another gateway may be about to make them; it may take as long as it takes.
    let wait = format!(
        "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({LOCK})"
    );
    transaction.batch_execute(&wait).await.map_err(failed)?;
    let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    let found = format(&transaction).await.map_err(failed)?;
    if found > known {
        return Err(OpenError::Newer { database: shown.clone(), found, known });
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.batch_execute(migration).await.map_err(failed)?;
    }
    if found < known {
        let note =
            format!("DELETE FROM countersign.meta; INSERT INTO countersign.meta (format) VALUES ({known})");
        transaction.batch_execute(&note).await.map_err(failed)?;
        tracing::info!(database = %shown, format = known, "tables made or migrated");
    }
    transaction.commit().await.map_err(failed)?;
    may_use(client, database).await
}

async fn format(transaction: &tokio_postgres::Transaction<'_>) -> Result<i32, Error> {
    let known = transaction.query_one("SELECT to_regclass('countersign.meta') IS NOT NULL", &[]).await?;
    if !known.try_get(0)? {
        return Ok(0);
    }
    let format = transaction.query_opt("SELECT format FROM countersign.meta", &[]).await?;
    format.map_or(Ok(0), |row| row.try_get(0))
}

/// Whether somebody has begun to fill it with the contents of another store, and has not come to the end.
pub(in crate::store) async fn is_being_filled(client: &Client) -> Result<bool, Error> {
    client.query_one("SELECT to_regclass('countersign.copy') IS NOT NULL", &[]).await?.try_get(0)
}

/// Refuses a user who could only find out later what it may not do.
async fn may_use(client: &Client, database: &Database) -> Result<(), OpenError> {
    let failed = |error: Error| failure(&error, &database.shown(), database);
    for table in TABLES {
        for right in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
            let table = format!("countersign.{table}");
            let asked = client.query_one("SELECT has_table_privilege($1::text, $2)", &[&table, &right]).await;
            if !asked.and_then(|row| row.try_get::<_, bool>(0)).map_err(failed)? {
                return Err(lacks(database, format!("{right} on {table}")));
            }
        }
    }
    let asked =
        client.query_one("SELECT has_sequence_privilege('countersign.attempt_order', 'USAGE')", &[]).await;
    if !asked.and_then(|row| row.try_get::<_, bool>(0)).map_err(failed)? {
        return Err(lacks(database, "USAGE on countersign.attempt_order".to_owned()));
    }
    Ok(())
}

fn lacks(database: &Database, what: String) -> OpenError {
    let user = database.settings.get_user().unwrap_or_default().to_owned();
    OpenError::Rights { database: database.shown(), user, what }
}

pub(super) fn failure(error: &Error, shown: &str, database: &Database) -> OpenError {
    let reason = explain(error);
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => lacks(database, reason),
        Some(_) if error.is_closed() => OpenError::Unreachable { database: shown.to_owned(), reason },
        Some(code) if ["08", "28", "3D", "53", "57"].contains(&code.code().get(..2).unwrap_or_default()) => {
            OpenError::Unreachable { database: shown.to_owned(), reason }
        }
        Some(_) => OpenError::Database { database: shown.to_owned(), reason },
        None => OpenError::Unreachable { database: shown.to_owned(), reason },
    }
}
