//! From a data directory to a database that can be worked with, salvaged when it is damaged. A small one is read whole
//! before it is used; of a larger one that is left to the scrub.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::claims::Claims;
use super::depths::Depths;
use super::order::HELD;
use super::salvage::{self, Damage, Finding, Salvaged};
use super::{DATABASE, OpenError, check, schema, verdict};
use crate::id::Id;
use crate::metrics::Metrics;

/// Up to this size a store is read whole before it is used: within half a second on any machine that stores webhooks.
const SMALL: u64 = 64 << 20;
/// How soon a larger one is read, in the background: not while the first lanes fill.
pub(super) const SCRUB_FIRST: Duration = Duration::from_secs(5);

/// The writer's connection, and how full each lane is; what was in flight waits again. Salvages what is damaged.
pub(super) fn load(directory: &Path, metrics: &Metrics) -> Result<(Connection, Depths, Claims), OpenError> {
    let unusable = |source| OpenError::Directory { directory: directory.to_owned(), source };
    let damage = salvage::settle(directory).and_then(|()| salvage::damage(directory)).map_err(unusable)?;
    let suspected = match damage {
        Some(Damage { what, suspected: false }) => return load_salvaged(directory, &what, metrics),
        Some(Damage { what, suspected: true }) => Some(what),
        None => None,
    };
    let marked = salvage::marked(directory);
    // A suspicion may be wrong: of an index that is older than its log, of memory rather than the disk.
    let whole = suspected.is_some() || marked.is_some();
    let loaded = match load_sound(directory, whole, metrics) {
        Err(OpenError::Damaged { source, .. }) => {
            let damage = marked.unwrap_or_else(|| source.to_string());
            return load_salvaged(directory, &damage, metrics);
        }
        loaded => loaded?,
    };
    if let Some(what) = suspected {
        metrics.store_corrupt_rows.inc();
        tracing::warn!(
            "{what}: the log is empty and the database sound without it; this is what a power cut may leave of a \
             stop, but if the log was removed or cut off, deliveries that stood nowhere else are lost"
        );
    }
    if let Some(reason) = marked {
        salvage::unmark(directory).map_err(unusable)?;
        tracing::warn!(
            reason,
            "damage had been met, and the whole store has been read and is sound: not salvaged"
        );
    }
    Ok(loaded)
}

/// Opens a database that has to be sound, read `whole` also when it is large: [`OpenError::Damaged`] when it is not. Single deliveries that are damaged
/// are set aside.
pub(super) fn load_sound(
    directory: &Path,
    whole: bool,
    metrics: &Metrics,
) -> Result<(Connection, Depths, Claims), OpenError> {
    let file = directory.join(DATABASE);
    let failed = |error| schema::failure(&file, error);
    let connection = schema::open_writer(&file)?;
    if whole || is_small(&file) {
        let checked = check::all(&connection).map_err(failed)?;
        if let Some(problem) = checked.problems.first() {
            return Err(failed(verdict::corrupt(problem)));
        }
        for damaged in checked.damaged.iter().filter(|damaged| damaged.lost) {
            set_aside(&connection, damaged).map_err(failed)?;
        }
        report(&checked.damaged, metrics);
    }
    let depths = resume(&connection).and_then(|()| Depths::load(&connection)).map_err(failed)?;
    let claims = Claims::load(&connection).map_err(failed)?;
    salvage::note_created(directory);
    Ok((connection, depths, claims))
}

/// Salvages the database and opens what is left.
fn load_salvaged(
    directory: &Path,
    damage: &str,
    metrics: &Metrics,
) -> Result<(Connection, Depths, Claims), OpenError> {
    let file = directory.join(DATABASE);
    tracing::error!(file = %file.display(), damage, "the store is damaged, salvaging what it holds");
    salvage::salvage(directory, false).map_err(|source| OpenError::unsalvaged(&file, damage, source))?;
    load_sound(directory, false, metrics)
}

/// Tells what the latest salvage found, if nobody has been told yet.
pub(super) fn tell(directory: &Path, metrics: &Metrics) {
    let told = salvage::untold(directory).and_then(|salvaged| {
        let Some(salvaged) = salvaged else { return Ok(()) };
        let Salvaged { deliveries, pending, claims, handed_over, findings, damaged } = &salvaged;
        report(findings, metrics);
        let (damaged, findings) = (damaged.display(), findings.len());
        tracing::error!(deliveries, pending, claims, handed_over, findings, %damaged, "store salvaged; the damaged files are kept");
        salvage::told(directory, &salvaged)
    });
    if let Err(error) = told {
        tracing::error!(%error, "what the latest salvage found cannot be told");
    }
}

pub(super) fn report(findings: &[Finding], metrics: &Metrics) {
    for Finding { delivery, what, lost } in findings {
        metrics.store_corrupt_rows.inc();
        let delivery = delivery.map(|id| id.to_string());
        tracing::error!(delivery, lost, error = what, "damage in the store");
    }
}

/// Makes the forwards of a damaged delivery dead letters: visible, kept, never sent. The provider may send it again.
fn set_aside(connection: &Connection, damaged: &Finding) -> rusqlite::Result<()> {
    let id = damaged.delivery.as_ref().map(Id::as_bytes);
    let changed = connection.execute(
        "UPDATE forward SET state = 'dead', settled_at = due_at % ?2, last_outcome = 'corrupt'
         WHERE delivery = ?1 AND settled_at IS NULL",
        rusqlite::params![id, HELD],
    )?;
    if changed > 0 {
        connection.execute("DELETE FROM claim WHERE delivery = ?1", [id])?;
    }
    Ok(())
}

/// Lets what was in flight wait again.
fn resume(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute(
        "UPDATE forward INDEXED BY forward_pending SET state = 'waiting'
         WHERE settled_at IS NULL AND state = 'in_flight'",
        [],
    )?;
    Ok(())
}

/// Whether it is read whole before it is used.
pub(super) fn is_small(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.len() <= SMALL)
}
