//! What operators do with a store beside the gateway: check it, copy it, salvage it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::check::{self, Checked};
use super::directory::Held;
use super::salvage::{self, Salvaged};
use super::{DATABASE, OpenError, directory, hold, load, schema, verdict};
use crate::metrics::Metrics;

/// Reads the whole store in `directory` and says what is not as it was written. A gateway may be using it: its log
/// grows meanwhile. Changes nothing.
///
/// # Errors
/// When there is no store, or it is not to be read for another reason than damage.
pub fn check(directory: &Path) -> Result<Checked, OpenError> {
    let file = existing(directory)?;
    match damage(directory)? {
        Some(damage) => Ok(Checked { problems: vec![damage], ..Checked::default() }),
        None => read(&file),
    }
}

/// Why SQLite must not look at the database: it would forget a part of a damaged log only by looking at it. Where a
/// gateway uses it, that has judged already; where none does, one may start as soon as this has judged.
fn damage(directory: &Path) -> Result<Option<String>, OpenError> {
    match hold(directory) {
        Ok(_held) => directory::give_to_owner(directory)
            .and_then(|()| salvage::needed(directory))
            .map_err(|source| unusable(directory, source)),
        Err(OpenError::InUse { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn read(file: &Path) -> Result<Checked, OpenError> {
    let failed = |error| schema::failure(file, error);
    let connection = schema::open_reader(file).map_err(failed)?;
    match schema::identify(&connection, file) {
        Err(OpenError::Damaged { source, .. }) => {
            return Ok(Checked { problems: vec![source.to_string()], ..Checked::default() });
        }
        identified => identified?,
    };
    // One state of the store from the first row to the last.
    let transaction = connection.unchecked_transaction().map_err(failed)?;
    check::all(&transaction).map_err(failed)
}

/// Salvages what the store in `directory` holds, which no gateway may be using. `None` when nothing is damaged.
///
/// # Errors
/// When there is no store, it is in use or another program's, or there is no room for the copy.
pub fn salvage(directory: &Path) -> Result<Option<Salvaged>, OpenError> {
    let refused = |source| unusable(directory, source);
    // Holding it would make it.
    fs::metadata(directory).map_err(refused)?;
    // First: a gateway that starts may be moving the files itself.
    let held = hold(directory)?;
    let salvaged = salvage_held(directory);
    // `sudo` is how operators come by a directory that nobody else can read.
    let given = directory::give_to_owner(directory).map_err(refused);
    drop(held);
    salvaged.and_then(|salvaged| given.map(|()| salvaged))
}

fn salvage_held(directory: &Path) -> Result<Option<Salvaged>, OpenError> {
    let refused = |source| unusable(directory, source);
    salvage::settle(directory).map_err(refused)?;
    let file = directory.join(DATABASE);
    let damage = match salvage::needed(directory).map_err(refused)? {
        Some(damage) => damage,
        None => match read(&existing(directory)?) {
            Ok(checked) if checked.is_sound() => return Ok(None),
            Ok(checked) => checked.problems.into_iter().next().unwrap_or_default(),
            Err(foreign @ OpenError::Foreign { .. }) => return Err(foreign),
            Err(other) => other.to_string(),
        },
    };
    salvage::salvage(directory, true)
        .map(Some)
        .map_err(|source| OpenError::unsalvaged(&file, &damage, source))
}

/// What a backup holds, once it has been read again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Backup {
    /// The directory, fit for `store.path`.
    pub directory: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What is in it.
    pub checked: Checked,
}

/// Copies the store in `directory`, as it is at one moment, into a new directory. A gateway may be using it: its log
/// grows meanwhile.
///
/// # Errors
/// When there is no store, it is damaged, `to` exists and is not empty, or reading or writing fails; an unfinished copy
/// is removed.
pub fn backup(directory: &Path, to: &Path) -> Result<Backup, OpenError> {
    let file = existing(directory)?;
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, "it is not empty");
        return Err(unusable(to, source));
    }
    if let Some(damage) = damage(directory)? {
        return Err(schema::failure(&file, verdict::corrupt(&damage)));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(|source| unusable(to, source))?;
    let unfinished = to.join("unfinished");
    let copied = copy(&file, &unfinished);
    if copied.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    copied?;
    let name = to.join(DATABASE);
    let finish = || {
        let copy = File::open(&unfinished)?;
        copy.sync_all()?;
        fs::rename(&unfinished, &name)?;
        directory::sync(to)?;
        directory::sync(to.canonicalize()?.parent().unwrap_or(Path::new("/")))?;
        copy.metadata()
    };
    let bytes = finish().map_err(|source| unusable(to, source))?.len();
    Ok(Backup { directory: to.to_owned(), bytes, checked: read(&name)? })
}

fn copy(file: &Path, to: &Path) -> Result<(), OpenError> {
    let failed = |error| schema::failure(file, error);
    let connection = schema::connect(file).map_err(failed)?;
    schema::identify(&connection, file)?;
    let name = to
        .to_str()
        .ok_or_else(|| unusable(to, io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8")))?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(failed)?;
    let copied = schema::connect(to).map_err(failed)?;
    schema::seal(&copied).and_then(|()| copied.close().map_err(|(_, error)| error)).map_err(failed)
}

/// A store that nobody else uses. What had been in flight in it waits again.
pub(in crate::store) struct Alone {
    connection: Connection,
    directory: PathBuf,
    _held: Held,
}

impl Alone {
    /// # Errors
    /// When there is no store, a gateway uses it, or it is damaged.
    pub(in crate::store) fn open(directory: &Path) -> Result<Self, OpenError> {
        let file = existing(directory)?;
        let held = hold(directory)?;
        salvage::settle(directory).map_err(|source| unusable(directory, source))?;
        if let Some(damage) = salvage::needed(directory).map_err(|source| unusable(directory, source))? {
            return Err(schema::failure(&file, verdict::corrupt(&damage)));
        }
        let (connection, ..) = load::load_sound(directory, false, &Metrics::new())?;
        // What is sorted may be more than memory.
        connection
            .pragma_update(None, "temp_store", "FILE")
            .map_err(|error| schema::failure(&file, error))?;
        Ok(Self { connection, directory: directory.to_owned(), _held: held })
    }

    pub(in crate::store) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // As after a salvage. Where it cannot be done, its owner is told by the next start.
        let _ = directory::give_to_owner(&self.directory);
    }
}

fn existing(directory: &Path) -> Result<PathBuf, OpenError> {
    let file = directory.join(DATABASE);
    match fs::metadata(&file) {
        Ok(_) => Ok(file),
        Err(source) => Err(unusable(directory, source)),
    }
}

fn unusable(directory: &Path, source: io::Error) -> OpenError {
    OpenError::Directory { directory: directory.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown};

    use super::*;

    /// A gateway starts and is between moving the damaged database away and the new one in its place: the command had
    /// moved files under its hands.
    #[test]
    fn files_that_another_process_moves_are_left_to_it() {
        let root = tempfile::tempdir().unwrap();
        let salvaged = root.path().join("countersign.db-salvaged");
        fs::write(&salvaged, "").unwrap();
        let held = hold(root.path()).unwrap();
        assert!(matches!(salvage(root.path()), Err(OpenError::InUse { .. })));
        assert!(salvaged.exists());
        drop(held);
        assert!(salvage(root.path()).is_ok());
        assert!(!salvaged.exists());
    }

    /// After `sudo countersign store salvage` the gateway could not write the database. Only root sees this test fail.
    #[test]
    fn what_root_salvages_belongs_to_whom_the_directory_belongs_to() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join(DATABASE);
        drop(schema::open_writer(&file).unwrap());
        File::options().write(true).open(&file).unwrap().set_len(8_192).unwrap();
        let foreign = root.path().join("link");
        std::os::unix::fs::symlink("/etc/hostname", &foreign).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(root.path(), Some(65_534), Some(65_534)).unwrap();
        }
        let owner = root.path().metadata().unwrap().uid();
        let damaged = salvage(root.path()).unwrap().unwrap().damaged;
        let made = [file, root.path().join("lock"), damaged.join(DATABASE), damaged];
        for path in made {
            assert_eq!(path.metadata().unwrap().uid(), owner, "{}", path.display());
        }
        assert_eq!(foreign.symlink_metadata().unwrap().uid(), rustix::process::geteuid().as_raw());
    }
}
