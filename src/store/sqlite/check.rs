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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema;

    /// A bad sector, or a file that somebody locks, is no damage: the store would be salvaged, and set aside, for nothing.
    #[test]
    fn what_cannot_be_read_is_no_damage_unless_the_structure_is_damaged_as_well() {
        let none = Connection::open_in_memory().unwrap();
        assert!(all(&none).is_err());
        // SQLite is made to find a value where there must be one and is none.
        none.execute_batch(
            "CREATE TABLE x (n); INSERT INTO x VALUES (NULL); PRAGMA writable_schema = 1;
             UPDATE sqlite_schema SET sql = 'CREATE TABLE x (n NOT NULL)'; PRAGMA writable_schema = RESET",
        )
        .unwrap();
        let checked = all(&none).unwrap();
        assert_eq!((checked.problems.len(), checked.is_sound()), (1, false), "{checked:?}");
    }

    /// A delivery whose id is none cannot be looked for.
    #[test]
    fn a_value_that_was_never_written_is_damage() {
        let root = tempfile::tempdir().unwrap();
        let connection = schema::create(&root.path().join("any.db")).unwrap();
        assert!(all(&connection).unwrap().is_sound());
        connection
            .execute_batch(
                "INSERT INTO delivery VALUES (x'07', 's', NULL, NULL, 1, '::1', 'POST', '/', 1, 'x', NULL, NULL, 0,
                     zeroblob(16), x'', x'')",
            )
            .unwrap();
        let checked = all(&connection).unwrap();
        assert_eq!((checked.problems.len(), checked.is_sound()), (1, false), "{checked:?}");
    }
}
