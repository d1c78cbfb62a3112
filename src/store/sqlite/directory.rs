//! The data directory: made durably, and held by one process at a time. Knows nothing of what is in the database.

use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::space;

/// The right to use a data directory; given up when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Held {
    _directory: File,
    _lock: File,
}

/// Why the directory is not ours to use.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another process holds it; its id, when it could be read.
    InUse(Option<u32>),
    /// It cannot be made, opened or written.
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Creates `directory` when it is missing, readable by nobody else, and locks it.
pub(super) fn hold(directory: &Path) -> Result<Held, Refused> {
    let missing: Vec<PathBuf> =
        directory.ancestors().map(named).take_while(|path| !path.exists()).map(Path::to_owned).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;

    let path = directory.join("lock");
    let mut lock = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    // The directory as well as the file: the file can be removed, and a new one would be nobody's.
    let itself = File::open(directory)?;
    for locked in [&itself, &lock] {
        match locked.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Refused::InUse(named_in(&lock))),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    // Over the last one's, which needs no space; a full disk must not keep the store from opening.
    let holder = format!("{}\n", std::process::id());
    match lock.write_all(holder.as_bytes()).and_then(|()| lock.set_len(holder.len() as u64)) {
        Err(error) if !space::is_want_of_room(&error) => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }

    // A new name is durable only when the directory that holds it has been synced.
    for path in &missing {
        sync(named(path.parent().unwrap_or(path)))?;
    }
    sync(directory)?;
    Ok(Held { _directory: itself, _lock: lock })
}

/// Whether another process holds `directory` now; its id, when it could be read.
pub(super) fn holder(directory: &Path) -> Option<Option<u32>> {
    match File::open(directory).ok()?.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            Some(File::open(directory.join("lock")).ok().and_then(|lock| named_in(&lock)))
        }
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// The process that the lock's file names.
fn named_in(mut lock: &File) -> Option<u32> {
    let mut holder = String::new();
    lock.read_to_string(&mut holder).ok()?;
    holder.trim().parse().ok()
}

/// Gives what root has made in `directory` to its owner, whose gateway could not write it.
pub(super) fn give_to_owner(directory: &Path) -> io::Result<()> {
    let owner = directory.metadata()?;
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    give(directory, &owner)
}

fn give(directory: &Path, owner: &Metadata) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        let is_damaged = entry.file_name().as_encoded_bytes().starts_with(b"damaged-");
        let kind = entry.file_type()?;
        if !(kind.is_file() || kind.is_dir() && is_damaged) {
            continue;
        }
        // The owner may put another name of a file of root's here: neither a link nor a second name is followed.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(entry.path())?;
        let found = file.metadata()?;
        if found.uid() == 0 && (found.is_dir() || found.is_file() && found.nlink() == 1) {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        if found.is_dir() {
            give(&entry.path(), owner)?;
        }
    }
    Ok(())
}

/// Makes the names in `directory` durable.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The name that SQLite gives to what belongs to a database.
pub(super) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The parent of a relative path with one component is the empty path, which means the current directory.
fn named(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_made_private_and_held_once() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        let held = hold(&directory).unwrap();
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let refused = hold(&directory).unwrap_err();
        assert!(matches!(refused, Refused::InUse(Some(pid)) if pid == std::process::id()), "{refused:?}");
        assert_eq!(holder(&directory), Some(Some(std::process::id())));
        // Somebody who tidied up had two gateways run over one store.
        std::fs::remove_file(directory.join("lock")).unwrap();
        let refused = hold(&directory).unwrap_err();
        assert!(matches!(refused, Refused::InUse(None)), "{refused:?}");
        drop(held);
        assert_eq!(holder(&directory), None);
        hold(&directory).unwrap();
    }

    #[test]
    fn a_full_disk_keeps_no_gateway_from_starting_and_a_broken_one_does() {
        let held_with_lock = |lock: &str| {
            let root = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(lock, root.path().join("lock")).unwrap();
            hold(root.path())
        };
        // Whoever runs this test at the same moment has locked the same device.
        while let Err(refused) = held_with_lock("/dev/full") {
            assert!(matches!(refused, Refused::InUse(_)), "{refused:?}");
        }
        // The one file that fails with EIO everywhere: nothing is mapped at 0.
        let refused = held_with_lock("/proc/self/mem").unwrap_err();
        assert!(matches!(refused, Refused::Io(_)), "{refused:?}");
    }

    /// What an operator or another program keeps here is theirs: a file with a second name would be given away elsewhere, too.
    /// Only root sees this test fail.
    #[test]
    fn only_what_root_made_for_the_store_is_given_to_its_owner() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["damaged-1", "other"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["made", "damaged-1/made", "other/made", "linked", "of-somebody"] {
            std::fs::write(path(name), "").unwrap();
        }
        std::fs::hard_link(path("linked"), path("other/link")).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path("of-somebody"), Some(1_234), None).unwrap();
            std::os::unix::fs::chown(root.path(), Some(65_534), None).unwrap();
        }
        let owner = |name: &str| path(name).metadata().unwrap().uid();
        let (made, ours, somebody) = (owner(""), owner("made"), owner("of-somebody"));
        give_to_owner(root.path()).unwrap();
        for name in ["made", "damaged-1", "damaged-1/made"] {
            assert_eq!(owner(name), made, "{name}");
        }
        for name in ["other", "other/made", "linked"] {
            assert_eq!(owner(name), ours, "{name}");
        }
        assert_eq!(owner("of-somebody"), somebody);
    }
}
