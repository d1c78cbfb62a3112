//! Keeps the secrets that came with a handshake until an operator is shown them, once.

use std::sync::Arc;

use rusqlite::{Transaction, params};

use super::claims::Claims;
use super::work::{Effects, Work};
use crate::clock::from_milliseconds;
use crate::secret::Secret;
use crate::store::HandedOver;

/// Of a source. Anybody can send one, so the first are kept: none is pushed out by what comes after it.
const KEPT_MAX: u32 = 8;

/// Keeps one, unless there are as many as may be.
pub(super) struct HandOver {
    pub(super) source: Arc<str>,
    pub(super) given: HandedOver,
}

impl Work for HandOver {
    type Output = bool;

    const ADDS: bool = true;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<bool> {
        let HandedOver { received_at, sender, secret } = &self.given;
        let (at, secret) = (received_at.as_millisecond(), secret.expose());
        let known = "SELECT count(*) FROM handed_over WHERE source = ?1 AND secret = ?2";
        if transaction.query_row(known, params![self.source, secret], |row| row.get::<_, u32>(0))? > 0 {
            return Ok(true);
        }
        let inserted = transaction.execute(
            "INSERT INTO handed_over SELECT ?1, ?2, ?3, ?4
             WHERE (SELECT count(*) FROM handed_over WHERE source = ?1) < ?5",
            params![self.source, at, sender, secret, KEPT_MAX],
        )?;
        Ok(inserted > 0)
    }
}

/// Gives those of a source, which are then gone.
pub(super) struct Show {
    pub(super) source: Arc<str>,
}

impl Work for Show {
    type Output = Vec<HandedOver>;

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        _: &mut Effects<'_>,
    ) -> rusqlite::Result<Vec<HandedOver>> {
        let mut select = transaction.prepare(
            "SELECT received_at, sender, secret FROM handed_over WHERE source = ?1 ORDER BY received_at",
        )?;
        let read = |row: &rusqlite::Row<'_>| {
            let secret: Vec<u8> = row.get(2)?;
            let given = Secret::new(secret).ok();
            Ok(given.map(|secret| (row.get(0), row.get(1), secret)))
        };
        let mut shown = Vec::new();
        for found in select.query_map([&self.source], read)? {
            let Some((received_at, sender, secret)) = found? else { continue };
            shown.push(HandedOver { received_at: from_milliseconds(received_at?), sender: sender?, secret });
        }
        transaction.execute("DELETE FROM handed_over WHERE source = ?1", [&self.source])?;
        Ok(shown)
    }
}
