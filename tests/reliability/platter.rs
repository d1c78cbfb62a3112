//! What a disk may hold after a power cut, by what a process had done to it until then: what was synced, and whatever
//! it pleases of the rest.

use std::collections::BTreeMap;
use std::path::Path;

use fastrand::Rng;

use crate::disk::Record;

/// The unit that is written whole or not at all.
const SECTOR: usize = 512;

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All of it is lost.
    Lost,
    /// All of it had been written in time.
    Kept,
    /// Each write, and each change of a directory, is kept or not.
    Mixed,
    /// The same, and of the last write that is kept each sector is or is not.
    Torn,
}

#[derive(Default)]
pub(crate) struct Platter {
    files: Vec<Content>,
    /// What the process sees.
    names: BTreeMap<String, usize>,
    /// What is on disk; directories are `None`.
    synced: BTreeMap<String, Option<usize>>,
    /// Names that came (with what they are) and went since their directory was synced.
    unsynced: Vec<(String, Option<Option<usize>>)>,
}

#[derive(Default)]
struct Content {
    synced: Vec<u8>,
    /// What came later, in order.
    changes: Vec<(Change, Fate)>,
}

enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Was synced, after something that never will be.
    Synced,
    Unsynced,
    /// An fsync failed: the page cache shows it, and no later fsync writes it.
    Doomed,
}

impl Platter {
    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Create(path) => {
                self.names.insert(path.clone(), self.files.len());
                self.unsynced.push((path.clone(), Some(Some(self.files.len()))));
                self.files.push(Content::default());
            }
            Record::MakeDirectory(path) => self.unsynced.push((path.clone(), Some(None))),
            Record::Unlink(path) => {
                self.names.remove(path);
                self.unsynced.push((path.clone(), None));
            }
            Record::Write(path, offset, data) => self.change(path, Change::Write(*offset, data.clone())),
            Record::Truncate(path, length) => self.change(path, Change::Truncate(*length)),
            Record::Sync(path) => self.sync(path, Fate::Synced),
            Record::FailedSync(path) => self.sync(path, Fate::Doomed),
            Record::SyncDirectory(directory) => {
                for (path, entry) in std::mem::take(&mut self.unsynced) {
                    if parent(&path) == directory {
                        set(&mut self.synced, path, entry);
                    } else {
                        self.unsynced.push((path, entry));
                    }
                }
            }
            Record::Acked(..) => {}
        }
    }

    fn change(&mut self, path: &str, change: Change) {
        if let Some(file) = self.names.get(path) {
            self.files[*file].changes.push((change, Fate::Unsynced));
        }
    }

    fn sync(&mut self, path: &str, fate: Fate) {
        let Some(file) = self.names.get(path) else { return };
        let content = &mut self.files[*file];
        content.changes.iter_mut().filter(|(_, f)| *f == Fate::Unsynced).for_each(|(_, f)| *f = fate);
        let settled = content.changes.iter().take_while(|(_, fate)| *fate == Fate::Synced).count();
        for (change, _) in content.changes.drain(..settled) {
            perform(&mut content.synced, &change);
        }
    }

    /// Writes into `directory` what the disk holds. The map of memory is not kept: it is made anew from the log.
    pub(crate) fn cut(&self, cut: Cut, chance: &mut Rng, directory: &Path) {
        let mut keeps = |fate: Fate| match (fate, cut) {
            (Fate::Synced, _) | (_, Cut::Kept) => true,
            (_, Cut::Lost) => false,
            (_, Cut::Mixed | Cut::Torn) => chance.bool(),
        };
        let mut names = self.synced.clone();
        for (path, entry) in &self.unsynced {
            if keeps(Fate::Unsynced) {
                set(&mut names, path.clone(), *entry);
            }
        }
        let kept: Vec<Vec<&(Change, Fate)>> = self
            .files
            .iter()
            .map(|content| content.changes.iter().filter(|(_, fate)| keeps(*fate)).collect())
            .collect();
        // A name sorts behind that of its directory.
        for (path, entry) in names {
            let target = directory.join(&path);
            if path.ends_with("-shm") || !target.parent().unwrap().exists() {
                continue;
            }
            let Some(file) = entry else {
                std::fs::create_dir(target).unwrap();
                continue;
            };
            let mut bytes = self.files[file].synced.clone();
            let changes = &kept[file];
            let last = changes.iter().rposition(|(_, fate)| *fate != Fate::Synced);
            for (index, (change, _)) in changes.iter().enumerate() {
                if cut == Cut::Torn && last == Some(index) {
                    tear(&mut bytes, change, chance);
                } else {
                    perform(&mut bytes, change);
                }
            }
            std::fs::write(target, bytes).unwrap();
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn set(names: &mut BTreeMap<String, Option<usize>>, path: String, entry: Option<Option<usize>>) {
    match entry {
        Some(entry) => names.insert(path, entry),
        None => names.remove(&path),
    };
}

fn perform(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let offset = usize::try_from(*offset).unwrap();
            let end = offset + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset..end].copy_from_slice(data);
        }
        Change::Truncate(length) => bytes.resize(usize::try_from(*length).unwrap(), 0),
    }
}

/// Performs a write sector by sector, or not.
fn tear(bytes: &mut Vec<u8>, change: &Change, chance: &mut Rng) {
    let Change::Write(offset, data) = change else { return perform(bytes, change) };
    let mut at = 0;
    while at < data.len() {
        let offset = offset + at as u64;
        let end = data.len().min(at + SECTOR - usize::try_from(offset).unwrap() % SECTOR);
        if chance.bool() {
            perform(bytes, &Change::Write(offset, data[at..end].to_vec()));
        }
        at = end;
    }
}
