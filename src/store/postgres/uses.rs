//! Keeps how secrets have been used. Each gateway tells what it knows, and what the others have counted meanwhile is not to be
//! written over: of a count only what has been added to it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::error::Trouble;
use super::{Inner, lock};
use crate::clock::{Timestamp, from_milliseconds};
use crate::store::UseOfSecret;

/// What this gateway has last read or written, by source and name.
pub(super) type Counted = Mutex<HashMap<(Arc<str>, Arc<str>), u64>>;

const NOTE: &str = "
    INSERT INTO countersign.secret_use AS known (source, secret, since, uses, last_used)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) ORDER BY 1, 2
    ON CONFLICT (source, secret) DO UPDATE SET since = least(known.since, EXCLUDED.since),
        uses = known.uses + EXCLUDED.uses, last_used = greatest(known.last_used, EXCLUDED.last_used)";
const USES: &str =
    "SELECT source, secret, since, uses, last_used FROM countersign.secret_use ORDER BY source, secret";

impl Inner {
    pub(super) async fn note_uses(&self, uses: &[UseOfSecret]) -> Result<(), Trouble> {
        let key = |used: &UseOfSecret| (Arc::clone(&used.source), Arc::clone(&used.secret));
        let added: Vec<i64> = {
            let counted = lock(&self.counted);
            let before = |used| counted.get(&key(used)).copied().unwrap_or(0);
            let added = uses.iter().map(|used| used.uses.saturating_sub(before(used)));
            added.map(|added| i64::try_from(added).unwrap_or(i64::MAX)).collect()
        };
        let sources: Vec<&str> = uses.iter().map(|used| &*used.source).collect();
        let secrets: Vec<&str> = uses.iter().map(|used| &*used.secret).collect();
        let since: Vec<i64> = uses.iter().map(|used| used.since.as_millisecond()).collect();
        let last: Vec<Option<i64>> =
            uses.iter().map(|used| used.last_used.map(Timestamp::as_millisecond)).collect();
        self.query(NOTE, &[&sources, &secrets, &since, &added, &last]).await?;
        lock(&self.counted).extend(uses.iter().map(|used| (key(used), used.uses)));
        Ok(())
    }

    pub(super) async fn uses(&self) -> Result<Vec<UseOfSecret>, Trouble> {
        let mut uses = Vec::new();
        for row in self.query(USES, &[]).await? {
            uses.push(UseOfSecret {
                source: Arc::from(row.try_get::<_, &str>(0)?),
                secret: Arc::from(row.try_get::<_, &str>(1)?),
                since: from_milliseconds(row.try_get(2)?),
                uses: row.try_get::<_, i64>(3)?.unsigned_abs(),
                last_used: row.try_get::<_, Option<i64>>(4)?.map(from_milliseconds),
            });
        }
        let known = uses.iter().map(|used| ((Arc::clone(&used.source), Arc::clone(&used.secret)), used.uses));
        lock(&self.counted).extend(known);
        Ok(uses)
    }
}
