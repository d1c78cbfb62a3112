//! The disk of `tests/preload/disk.c`: which rules it follows, and what it has written down.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::preload;
use crate::support::Gateway;

/// A disk for the files below a gateway's directory.
pub(crate) struct Disk {
    /// Rules and journal, which are not on it.
    beside: TempDir,
    root: Arc<TempDir>,
}

impl Disk {
    /// An empty one, with `sections` as the gateway's configuration.
    pub(crate) fn new(sections: &str) -> Self {
        let root = Arc::new(tempfile::tempdir().unwrap());
        crate::support::write_config(root.path(), sections);
        Self { beside: tempfile::tempdir().unwrap(), root }
    }

    /// The same, without a setting of how much of it is kept free.
    pub(crate) fn with_default_reserve(sections: &str) -> Self {
        let disk = Self::new(sections);
        let file = disk.root.path().join("countersign.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let (before, after) = text.split_once("store.disk_reserve = \"1MiB\"\n").unwrap();
        std::fs::write(file, [before, after].concat()).unwrap();
        disk
    }

    /// A gateway on this disk, or the exit code and the log of one that did not start.
    pub(crate) fn start(&self) -> Result<Gateway, (Option<i32>, String)> {
        Gateway::try_start_in(Arc::clone(&self.root), |command| self.prepare(command))
    }

    /// The same, on what the disk shows to one who asks nothing more of it: without rules or journal.
    pub(crate) fn start_plain(&self) -> Gateway {
        Gateway::start_in(Arc::clone(&self.root), |_| ())
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", preload::library("disk"))
            .env("DISK_ROOT", self.root.path())
            .env("DISK_JOURNAL", self.journal())
            .env("DISK_CONTROL", self.control());
    }

    /// Puts rules in force, and counts anew.
    pub(crate) fn rule(&self, rules: &str) {
        let new = self.beside.path().join("new");
        std::fs::write(&new, rules).unwrap();
        std::fs::rename(new, self.control()).unwrap();
    }

    /// Whether a rule has failed an operation.
    pub(crate) fn has_failed(&self) -> bool {
        self.control().with_extension("used").exists()
    }

    /// Writes down that a delivery has been acknowledged: whatever it stands on is in the journal already.
    pub(crate) fn note_acked(&self, id: &str, body: &[u8]) {
        let mut record = vec![b'A', 0];
        record.extend_from_slice(&u16::try_from(id.len()).unwrap().to_le_bytes());
        record.extend_from_slice(&0_i64.to_le_bytes());
        record.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        record.extend_from_slice(id.as_bytes());
        record.extend_from_slice(body);
        File::options().append(true).open(self.journal()).unwrap().write_all(&record).unwrap();
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.beside.path().join("journal")
    }

    fn control(&self) -> PathBuf {
        self.beside.path().join("control")
    }
}

/// What a process did to its disk, or a sender was told.
#[derive(Debug)]
pub(crate) enum Record {
    Create(String),
    Write(String, u64, Vec<u8>),
    Truncate(String, u64),
    Sync(String),
    FailedSync(String),
    SyncDirectory(String),
    Unlink(String),
    MakeDirectory(String),
    Acked(String, Vec<u8>),
}

/// Reads a journal to its end.
pub(crate) fn read_journal(path: &std::path::Path) -> Vec<Record> {
    let bytes = std::fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(16);
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let offset = u64::from_le_bytes(head[4..12].try_into().unwrap());
        let size = u32::from_le_bytes(head[12..16].try_into().unwrap()) as usize;
        let path = String::from_utf8(tail[..length].to_vec()).unwrap();
        let data = tail[length..length + size].to_vec();
        records.push(match head[0] {
            b'C' => Record::Create(path),
            b'W' => Record::Write(path, offset, data),
            b'T' => Record::Truncate(path, offset),
            b'S' => Record::Sync(path),
            b'F' => Record::FailedSync(path),
            b'D' => Record::SyncDirectory(path),
            b'U' => Record::Unlink(path),
            b'M' => Record::MakeDirectory(path),
            b'A' => Record::Acked(path, data),
            other => panic!("{other} is no operation"),
        });
        rest = &tail[length + size..];
    }
    records
}
