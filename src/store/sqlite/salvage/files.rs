//! The files of a salvage: the marks by which one process tells the next what it met and what it has done, and the
//! moves by which a salvaged database takes the damaged one's place. A crash between any two is made good by the next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::super::directory::beside;
use super::super::{DATABASE, directory, schema};
use super::{SalvageError, Salvaged};

/// A database that is complete and durable, and waits to take the damaged one's place.
const SALVAGED: &str = "countersign.db-salvaged";
/// One that is being written.
const UNFINISHED: &str = "countersign.db-unfinished";
/// Its being there says that the database has been more than an empty file.
pub(super) const CREATED: &str = "created";
/// Left by a process that met damage, for the next one: the file says what it met.
const DAMAGE: &str = "damage";
/// What a salvage found, until a gateway has told of it: whoever salvaged may not have been one.
const REPORT: &str = "salvaged.json";
/// Everything that belongs to a database that is moved aside; the database last, so that a crash between two leaves it.
const MOVED: [&str; 4] = ["-wal", "-shm", "-journal", ""];

/// Has the next start read the whole database first, and salvage it unless it is sound.
pub(in crate::store::sqlite) fn mark(directory: &Path, reason: &str) {
    let written = fs::write(directory.join(DAMAGE), reason).and_then(|()| directory::sync(directory));
    if let Err(error) = written {
        tracing::error!(%error, "the damage could not be noted for the next start");
    }
}

/// What a process met that marked the database.
pub(in crate::store::sqlite) fn marked(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join(DAMAGE)).ok()
}

/// Forgets it: the database is sound.
///
/// # Errors
/// When the mark cannot be removed.
pub(in crate::store::sqlite) fn unmark(directory: &Path) -> io::Result<()> {
    remove_file(&directory.join(DAMAGE))?;
    directory::sync(directory)
}

/// Finishes what a crash interrupted: a salvaged database takes its place.
///
/// # Errors
/// When a file cannot be moved.
pub(in crate::store::sqlite) fn settle(directory: &Path) -> io::Result<()> {
    let salvaged = directory.join(SALVAGED);
    if !salvaged.try_exists()? {
        return Ok(());
    }
    let aside = aside(directory)?;
    fs::create_dir_all(&aside)?;
    directory::sync(directory)?;
    for suffix in MOVED {
        let name = format!("{DATABASE}{suffix}");
        move_file(&directory.join(&name), &aside.join(&name))?;
    }
    move_file(&directory.join(DAMAGE), &aside.join(DAMAGE))?;
    directory::sync(&aside)?;
    // Not the new database beside the old log.
    directory::sync(directory)?;
    fs::rename(salvaged, directory.join(DATABASE))?;
    directory::sync(directory)
}

/// Where the damaged files go: the first directory that has none.
pub(super) fn aside(directory: &Path) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let aside = directory.join(format!("damaged-{number}"));
        if !aside.join(DATABASE).try_exists()? {
            return Ok(aside);
        }
        number += 1;
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}

/// Remembers that there is a database, so that one that is empty is known to be damaged. Not being able to is no reason
/// not to use it.
pub(in crate::store::sqlite) fn note_created(directory: &Path) {
    let path = directory.join(CREATED);
    if path.exists() {
        return;
    }
    if let Err(error) = fs::File::create(path).and_then(|_| directory::sync(directory)) {
        tracing::debug!(%error, "not noted that there is a database");
    }
}

pub(super) fn write_report(directory: &Path, salvaged: &Salvaged) -> io::Result<()> {
    let mut file = fs::File::create(directory.join(REPORT))?;
    serde_json::to_writer_pretty(&mut file, salvaged)?;
    file.sync_all()
}

/// What the latest salvage found, when nobody has been told yet.
///
/// # Errors
/// When it cannot be read.
pub(in crate::store::sqlite) fn untold(directory: &Path) -> io::Result<Option<Salvaged>> {
    match fs::read(directory.join(REPORT)) {
        Ok(text) => {
            let salvaged: Salvaged = serde_json::from_slice(&text)?;
            // It is written before the files are moved: where none have been, the salvage came to nothing.
            let aside = directory.join(salvaged.damaged.file_name().unwrap_or_default());
            Ok(aside.join(DATABASE).try_exists()?.then_some(salvaged))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Remembers that the log and the metrics have been told.
///
/// # Errors
/// When the report cannot be moved to the damaged files.
pub(in crate::store::sqlite) fn told(directory: &Path, salvaged: &Salvaged) -> io::Result<()> {
    // By its name: whoever salvaged may have called the data directory otherwise.
    let aside = directory.join(salvaged.damaged.file_name().unwrap_or_default());
    move_file(&directory.join(REPORT), &aside.join(REPORT))
}

/// A new database that nobody knows of yet.
pub(super) fn begin(directory: &Path) -> Result<(PathBuf, Connection), SalvageError> {
    let path = directory.join(UNFINISHED);
    let connection = schema::create(&path)?;
    Ok((path, connection))
}

/// Removes one that has not been finished.
pub(super) fn discard(directory: &Path) -> io::Result<()> {
    MOVED.iter().try_for_each(|suffix| remove_file(&beside(&directory.join(UNFINISHED), suffix)))
}

/// Makes it durable, and then known.
pub(super) fn complete(directory: &Path, path: &Path, connection: Connection) -> Result<(), SalvageError> {
    schema::seal(&connection)?;
    connection.close().map_err(|(_, error)| error)?;
    fs::File::open(path)?.sync_all()?;
    for suffix in &MOVED[..3] {
        remove_file(&beside(path, suffix))?;
    }
    fs::rename(path, directory.join(SALVAGED))?;
    directory::sync(directory)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_remembered_until_it_is_mended() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(marked(root.path()), None);
        unmark(root.path()).unwrap();
        mark(root.path(), "a page that was met");
        assert_eq!(marked(root.path()).as_deref(), Some("a page that was met"));
        unmark(root.path()).unwrap();
        assert_eq!(marked(root.path()), None);
        // One that stays would have every start read the whole store.
        fs::create_dir(root.path().join(DAMAGE)).unwrap();
        assert!(unmark(root.path()).is_err());
    }

    #[test]
    fn what_a_salvage_found_is_told_if_it_came_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(untold(root.path()).unwrap(), None);
        let aside = aside(root.path()).unwrap();
        let salvaged = Salvaged { deliveries: 3, damaged: aside.clone(), ..Salvaged::default() };
        write_report(root.path(), &salvaged).unwrap();
        assert_eq!(untold(root.path()).unwrap(), None, "nothing has been moved");
        fs::create_dir(&aside).unwrap();
        fs::write(aside.join(DATABASE), "").unwrap();
        assert_eq!(untold(root.path()).unwrap(), Some(salvaged.clone()));
        // Told and not moved, it would be told again by each start, and nobody would know why.
        fs::create_dir(aside.join(REPORT)).unwrap();
        assert!(told(root.path(), &salvaged).is_err());
        fs::remove_dir(aside.join(REPORT)).unwrap();
        told(root.path(), &salvaged).unwrap();
        assert_eq!(untold(root.path()).unwrap(), None);
        assert!(aside.join(REPORT).exists());
        told(root.path(), &salvaged).unwrap();
        fs::create_dir(root.path().join(REPORT)).unwrap();
        assert!(untold(root.path()).is_err());
    }

    /// The directory of an earlier salvage is never written over, also when one between has been removed.
    #[test]
    fn damaged_files_go_where_there_are_none() {
        let root = tempfile::tempdir().unwrap();
        for number in [1, 2, 3] {
            let aside = aside(root.path()).unwrap();
            assert_eq!(aside, root.path().join(format!("damaged-{number}")));
            fs::create_dir(&aside).unwrap();
            fs::write(aside.join(DATABASE), "").unwrap();
        }
        fs::remove_dir_all(root.path().join("damaged-2")).unwrap();
        assert_eq!(aside(root.path()).unwrap(), root.path().join("damaged-2"));
    }
}
