//! What the disk needs at least: an append log in segments that have been written before, so that no commit has to wait
//! for the file system's own bookkeeping, and one `fdatasync` for all records that have come meanwhile. Segments are used
//! again in turn, as a log does whose contents have been dealt with. Groups begin on pages, so that none has to be read before
//! it is written. It cannot be read back, nor has it checksums.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use tokio::sync::{mpsc, oneshot};

const SEGMENTS: usize = 4;
const SEGMENT_BYTES: u64 = 64 << 20;
const PAGE: usize = 4_096;
/// As in the gateway's store.
const QUEUE_MAX: usize = 4_096;
const GROUP_MAX: usize = 512;

type Record = (Vec<u8>, oneshot::Sender<()>);

pub(crate) struct Log {
    queue: mpsc::Sender<Record>,
    commits: Arc<AtomicU64>,
}

impl Log {
    /// Opens the log, and writes its segments when they are not there yet.
    pub(crate) fn open(directory: &Path) -> Self {
        let segments: Vec<_> = (0..SEGMENTS).map(|number| segment(directory, number)).collect();
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        let commits = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commits);
        std::thread::spawn(move || write(&segments, records, &counter));
        Self { queue, commits }
    }

    /// Appends a record; durable when it returns.
    pub(crate) async fn append(&self, headers: &HeaderMap, body: &[u8]) {
        let mut record = Vec::with_capacity(1_024 + body.len());
        for (name, value) in headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                record.extend_from_slice(part);
            }
        }
        record.extend_from_slice(b"\r\n");
        record.extend_from_slice(body);
        let (reply, answer) = oneshot::channel();
        self.queue.send((record, reply)).await.unwrap();
        answer.await.unwrap();
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

fn segment(directory: &Path, number: usize) -> File {
    let path = directory.join(format!("segment-{number}"));
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut length = file.metadata().unwrap().len();
    while length < SEGMENT_BYTES {
        file.write_all_at(&zeros, length).unwrap();
        length += zeros.len() as u64;
    }
    file.sync_all().unwrap();
    forget(&file);
    file
}

/// Has the kernel keep nothing of a segment that is on disk: what is cached in large pieces is counted, and looked at, in
/// large pieces when a little of it is written.
fn forget(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn write(segments: &[File], mut records: mpsc::Receiver<Record>, commits: &AtomicU64) {
    let (mut current, mut offset) = (0, 0);
    let mut group = Vec::new();
    let mut waiting = Vec::new();
    while let Some(first) = records.blocking_recv() {
        let mut next = Some(first);
        while let Some((record, reply)) = next {
            group.extend_from_slice(&u32::try_from(record.len()).unwrap().to_le_bytes());
            group.extend_from_slice(&record);
            waiting.push(reply);
            next = if waiting.len() < GROUP_MAX { records.try_recv().ok() } else { None };
        }
        group.resize(group.len().next_multiple_of(PAGE), 0);
        if offset + group.len() as u64 > SEGMENT_BYTES {
            forget(&segments[current]);
            (current, offset) = ((current + 1) % segments.len(), 0);
        }
        segments[current].write_all_at(&group, offset).unwrap();
        segments[current].sync_data().unwrap();
        offset += group.len() as u64;
        commits.fetch_add(1, Ordering::Relaxed);
        for reply in waiting.drain(..) {
            // A sender that has gone away waits no more.
            let _ = reply.send(());
        }
        group.clear();
    }
}
