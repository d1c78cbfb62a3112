//! Which destinations an operator has paused, kept in a file of the data directory: a backend that is being mended must
//! not be met by its whole backlog because a gateway was upgraded meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::store::{Outlet, StoreError};

/// One name a line.
const FILE: &str = "paused";

/// The paused destinations. Those that are in no configuration stay paused, should they come back.
#[derive(Debug)]
pub(super) struct Paused {
    file: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

impl Paused {
    /// What the file says, told to the lanes; one that cannot be read is told of, and pauses nothing.
    pub(super) fn load(directory: &Path, outlet: &dyn Outlet) -> Self {
        let file = directory.join(FILE);
        let names = read(directory).unwrap_or_else(|error| {
            tracing::error!(file = %file.display(), %error, "no destination is paused: the file cannot be read");
            BTreeSet::new()
        });
        for name in &names {
            outlet.set_paused(name, true);
        }
        Self { file, names: Mutex::new(names) }
    }

    /// Changes the file, and then the lane; one change after the other.
    pub(super) async fn set(&self, name: &str, paused: bool, outlet: &dyn Outlet) -> Result<(), StoreError> {
        let mut names = self.names.lock().await;
        let mut changed = names.clone();
        if paused {
            changed.insert(name.to_owned())
        } else {
            changed.remove(name)
        };
        if changed != *names {
            let file = self.file.clone();
            let text: String = changed.iter().map(|name| format!("{name}\n")).collect();
            let written = spawn_blocking(move || write(&file, &text)).await.map_err(io::Error::other);
            written.flatten().map_err(|error| StoreError::Read(format!("`{FILE}`: {error}")))?;
            *names = changed;
        }
        outlet.set_paused(name, paused);
        Ok(())
    }
}

/// What is paused in a data directory.
///
/// # Errors
/// When the file is there and cannot be read.
pub(in crate::store) fn read(directory: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_to_string(directory.join(FILE)) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the file; whole and on disk when it returns.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut written = File::create(&new)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(&new, file)?;
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}
