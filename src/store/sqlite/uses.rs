//! Keeps how secrets have been used, so that an operator is told the truth of one that has not been for long, also after a
//! restart.

use rusqlite::{Connection, Transaction, params};

use super::claims::Claims;
use super::work::{Effects, Work};
use crate::clock::{Timestamp, from_milliseconds};
use crate::store::UseOfSecret;

/// Writes how often and when secrets have been used by now.
pub(super) struct NoteUses(pub(super) Vec<UseOfSecret>);

impl Work for NoteUses {
    type Output = ();

    const ADDS: bool = true;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO secret_use VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE
             SET since = excluded.since, uses = excluded.uses, last_used = excluded.last_used",
        )?;
        for used in &self.0 {
            let last_used = used.last_used.map(Timestamp::as_millisecond);
            // Nobody lives to see that many.
            let uses = i64::try_from(used.uses).unwrap_or(i64::MAX);
            insert.execute(params![
                used.source,
                used.secret,
                used.since.as_millisecond(),
                uses,
                last_used
            ])?;
        }
        Ok(())
    }
}

/// All that is known.
pub(super) fn uses(connection: &Connection) -> rusqlite::Result<Vec<UseOfSecret>> {
    let mut select = connection
        .prepare("SELECT source, secret, since, uses, last_used FROM secret_use ORDER BY source, secret")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(UseOfSecret {
            source: row.get::<_, String>(0)?.into(),
            secret: row.get::<_, String>(1)?.into(),
            since: from_milliseconds(row.get(2)?),
            uses: row.get::<_, i64>(3)?.unsigned_abs(),
            last_used: row.get::<_, Option<i64>>(4)?.map(from_milliseconds),
        })
    };
    select.query_map([], read)?.collect()
}
