//! Keeps the secrets that came with a handshake until an operator is shown them, once.

use super::Inner;
use super::error::Trouble;
use crate::clock::from_milliseconds;
use crate::secret::Secret;
use crate::store::HandedOver;

/// Of a source. Anybody can send one, so the first are kept: none is pushed out by what comes after it.
const KEPT_MAX: i64 = 8;

const KEEP: &str = "
    WITH known AS (
        SELECT 1 FROM countersign.handed_over WHERE source = $1 AND secret = $4
    ), kept AS (
        INSERT INTO countersign.handed_over (source, received_at, sender, secret)
        SELECT $1, $2, $3, $4
        WHERE NOT EXISTS (SELECT 1 FROM known)
            AND (SELECT count(*) FROM countersign.handed_over WHERE source = $1) < $5
        RETURNING 1
    )
    SELECT 1 FROM known UNION ALL SELECT 1 FROM kept";

const SHOW: &str = "
    WITH shown AS (DELETE FROM countersign.handed_over WHERE source = $1 RETURNING received_at, sender, secret)
    SELECT received_at, sender, secret FROM shown ORDER BY received_at";

impl Inner {
    pub(super) async fn hand_over(&self, source: &str, given: &HandedOver) -> Result<bool, Trouble> {
        let HandedOver { received_at, sender, secret } = given;
        let (at, secret) = (received_at.as_millisecond(), secret.expose());
        let rows = self.query(KEEP, &[&source, &at, sender, &secret, &KEPT_MAX]).await?;
        Ok(!rows.is_empty())
    }

    pub(super) async fn show_handed_over(&self, source: &str) -> Result<Vec<HandedOver>, Trouble> {
        let mut shown = Vec::new();
        for row in self.query(SHOW, &[&source]).await? {
            let Ok(secret) = Secret::new(row.try_get::<_, &[u8]>(2)?) else { continue };
            let received_at = from_milliseconds(row.try_get(0)?);
            shown.push(HandedOver { received_at, sender: row.try_get(1)?, secret });
        }
        Ok(shown)
    }
}
