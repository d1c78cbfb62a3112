//! Which destinations an operator has paused, kept in a file of the data directory: a backend that is being mended must
//! not be met by its whole backlog because a gateway was upgraded meanwhile.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::Parts;
use crate::admin::{DestinationStatus, Gateway as _, Refused};
use crate::dispatch::Lanes;

/// One name a line.
const FILE: &str = "paused";

/// The paused destinations. Those that are in no configuration stay paused, should they come back.
#[derive(Debug)]
pub(super) struct Paused {
    file: PathBuf,
    names: Arc<Mutex<BTreeSet<String>>>,
}

impl Paused {
    /// What the file says; one that cannot be read is told of, and pauses nothing.
    pub(super) fn load(directory: &Path) -> Self {
        let file = directory.join(FILE);
        let names = match fs::read_to_string(&file) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "no destination is paused: the file cannot be read");
                BTreeSet::new()
            }
        };
        Self { file, names: Arc::new(Mutex::new(names)) }
    }

    /// Has the lanes as they are to be.
    pub(super) fn apply(&self, lanes: &Lanes) {
        // Being changed at this moment, whoever does it has the last word.
        let Ok(names) = self.names.try_lock() else { return };
        for name in names.iter() {
            if lanes.pause(name) {
                tracing::warn!(destination = name, "paused by an operator, until resumed");
            }
        }
    }
}

impl Parts {
    pub(super) async fn pause(&self, name: &str, paused: bool) -> Result<DestinationStatus, Refused> {
        let is_known =
            |config: &crate::config::Config| config.destinations.iter().any(|known| &*known.name == name);
        if !is_known(&self.config.load()) {
            return Err(Refused::NotFound("there is no such destination".to_owned()));
        }
        // One change after the other, and the file before the lane.
        let mut names = Arc::clone(&self.paused.names).lock_owned().await;
        let mut changed = names.clone();
        if paused {
            changed.insert(name.to_owned())
        } else {
            changed.remove(name)
        };
        if changed != *names {
            let file = self.paused.file.clone();
            let text: String = changed.iter().map(|name| format!("{name}\n")).collect();
            let written = spawn_blocking(move || write(&file, &text)).await;
            let failed = |error: &dyn std::fmt::Display| {
                Refused::Unavailable(format!("it cannot be written down, and has not been done: {error}"))
            };
            written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
            *names = changed;
        }
        if paused {
            self.lanes.pause(name)
        } else {
            self.lanes.resume(name)
        };
        drop(names);
        let status = self.status().destinations.into_iter().find(|status| status.name == name);
        status.ok_or_else(|| Refused::NotFound("the destination has just gone".to_owned()))
    }
}

/// Has what is paused in the data directory `from` be paused in `to`, too, which is made when it is missing.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_paused(from: &Path, to: &Path) -> io::Result<()> {
    let read = |directory: &Path| match fs::read_to_string(directory.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    let (paused, known) = (read(from)?, read(to)?);
    let names: BTreeSet<_> = paused.lines().chain(known.lines()).collect();
    if names.len() == known.lines().count() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    write(&to.join(FILE), &names.iter().map(|name| format!("{name}\n")).collect::<String>())
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
