//! Whether a store is what was written: its pages and indexes, each delivery by its checksum, and that each delivery
//! has its forwards. Finds; mends nothing.

use rusqlite::Connection;

use super::claims;
use super::row::{self, LoadError};
use super::salvage::Finding;
use super::verdict;
use crate::id::Id;

/// Problems that are told one by one; where there are more, it is the file that is the problem.
const PROBLEMS_MAX: u32 = 100;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Deliveries that are intact.
    pub deliveries: u64,
    /// Forwards that are waiting or in flight.
    pub pending: u64,
    /// Dead letters.
    pub dead: u64,
    /// Claims.
    pub claims: u64,
    /// Deliveries that are damaged, each by itself, or, when not lost, could not be read this time.
    pub damaged: Vec<Finding>,
    /// What is wrong with the file as such: to be salvaged.
    pub problems: Vec<String>,
}

impl Checked {
    /// Whether everything is what was written.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.problems.is_empty()
    }
}

/// Reads the whole store. It may be in use.
///
/// # Errors
/// When it cannot be read for another reason than damage.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Checked> {
    let mut checked = Checked::default();
    let read = structure(connection, &mut checked).and_then(|()| contents(connection, &mut checked));
    match read {
        Err(error) if verdict::is_damage(&error) => checked.problems.push(error.to_string()),
        // A bad sector that the first pass has met as well.
        Err(_) if !checked.problems.is_empty() => {}
        read => read?,
    }
    Ok(checked)
}

fn structure(connection: &Connection, checked: &mut Checked) -> rusqlite::Result<()> {
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({PROBLEMS_MAX})"))?;
    let mut rows = check.query([])?;
    while let Some(row) = rows.next()? {
        let problem = String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned();
        if problem != "ok" {
            checked.problems.push(problem);
        }
    }
    Ok(())
}

fn contents(connection: &Connection, checked: &mut Checked) -> rusqlite::Result<()> {
    let mut deliveries = connection.prepare(
        "SELECT id, forwards > (SELECT count(*) FROM forward WHERE delivery = id), source || ' ' || delivery_id
         FROM delivery NOT INDEXED",
    )?;
    let mut rows = deliveries.query([])?;
    while let Some(row) = rows.next()? {
        let id = Id::from_bytes(row.get(0)?);
        if row.get(1)? {
            checked.problems.push(format!("{}: {id}", verdict::OTHER_FORWARDS));
        }
        match row::load(connection, id) {
            Ok(Some(_)) => checked.deliveries += 1,
            Ok(None) => checked.problems.push(format!("{}: {id}", verdict::MISPLACED)),
            Err(LoadError::Damaged(what)) => {
                // As the provider knows it, as far as it can be read.
                let what = row.get::<_, String>(2).map_or(what.clone(), |name| format!("{what}: {name}"));
                checked.damaged.push(Finding { delivery: Some(id), what, lost: true });
            }
            // It may be, another time.
            Err(LoadError::Unreadable(what)) => {
                checked.damaged.push(Finding { delivery: Some(id), what, lost: false });
            }
            Err(LoadError::Sqlite(error)) => return Err(error),
        }
    }
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::unsigned_abs));
    checked.pending = count("SELECT count(*) FROM forward WHERE settled_at IS NULL")?;
    checked.dead = count("SELECT count(*) FROM forward WHERE state = 'dead'")?;
    checked.claims = count("SELECT count(*) FROM claim")?;
    checked.problems.extend(claims::contradiction(connection)?);
    Ok(())
}
