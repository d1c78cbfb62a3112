//! Group commit: what waits while a commit is under way goes into the next one, so that however many wait pay for one
//! round trip and one flush.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::dedup::Key;

/// Work in one batch. More would not save flushes worth mentioning, and the first would wait for the last.
const WORK_MAX: usize = 128;
/// Bytes in one batch, for the same reason.
const BYTES_MAX: usize = 8 << 20;

/// Work that can share a commit with others of its kind.
pub(super) trait Job: Send + 'static {
    /// Bytes that are sent, roughly.
    fn bytes(&self) -> usize;
    /// What no other work of the same batch may have: a statement cannot meet the same row twice.
    fn keys(&self) -> [Option<Key>; 2];
}

struct Batch<J> {
    jobs: Vec<J>,
    bytes: usize,
    keys: HashSet<Key>,
}

impl<J: Job> Batch<J> {
    fn is_full(&self) -> bool {
        self.jobs.len() >= WORK_MAX || self.bytes >= BYTES_MAX
    }

    /// Gives the job back when it has to wait for the next batch.
    fn add(&mut self, job: J) -> Option<J> {
        let keys = job.keys();
        if self.is_full() || keys.iter().flatten().any(|key| self.keys.contains(key)) {
            return Some(job);
        }
        self.keys.extend(keys.into_iter().flatten());
        self.bytes += job.bytes();
        self.jobs.push(job);
        None
    }
}

/// Has `process` work on batches of what comes, `places` of them at once, until nobody can send any more.
pub(super) async fn run<J: Job, F: Future<Output = ()> + Send + 'static>(
    mut queue: mpsc::Receiver<J>,
    places: usize,
    tasks: TaskTracker,
    process: impl Fn(Vec<J>) -> F + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(places));
    // What had to wait; it goes first.
    let mut aside: VecDeque<J> = VecDeque::new();
    loop {
        if aside.is_empty() {
            let Some(first) = queue.recv().await else { return };
            aside.push_back(first);
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let mut batch = Batch { jobs: Vec::new(), bytes: 0, keys: HashSet::new() };
        let waiting = std::mem::take(&mut aside);
        aside.extend(waiting.into_iter().filter_map(|job| batch.add(job)));
        while !batch.is_full()
            && aside.len() < WORK_MAX
            && let Ok(job) = queue.try_recv()
        {
            aside.extend(batch.add(job));
        }
        let work = process(batch.jobs);
        tasks.spawn(async move {
            work.await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Numbered(usize, Option<u8>);

    impl Job for Numbered {
        fn bytes(&self) -> usize {
            1
        }

        fn keys(&self) -> [Option<Key>; 2] {
            [self.1.map(|key| Key::from_bytes([key; 32])), None]
        }
    }

    /// The batches that come of these jobs when all of them wait.
    async fn batches(jobs: Vec<Numbered>) -> Vec<Vec<usize>> {
        let (sender, queue) = mpsc::channel(1_000);
        for job in jobs {
            sender.send(job).await.unwrap_or_else(|_| panic!("there is room"));
        }
        drop(sender);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tasks = TaskTracker::new();
        let note = Arc::clone(&seen);
        let process = move |batch: Vec<Numbered>| {
            let note = Arc::clone(&note);
            async move { note.lock().unwrap().push(batch.iter().map(|job| job.0).collect()) }
        };
        run(queue, 1, tasks.clone(), process).await;
        tasks.close();
        tasks.wait().await;
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    }

    #[tokio::test]
    async fn what_waits_shares_a_commit() {
        let jobs = (0..WORK_MAX + 2).map(|n| Numbered(n, None)).collect();
        let batches = batches(jobs).await;
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [WORK_MAX, 2]);
    }

    #[tokio::test]
    async fn copies_are_never_in_one_batch_and_keep_their_order() {
        let jobs = [(0, Some(1)), (1, Some(2)), (2, Some(1)), (3, None), (4, Some(1))];
        let batches = batches(jobs.map(|(n, key)| Numbered(n, key)).into()).await;
        assert_eq!(batches, [vec![0, 1, 3], vec![2], vec![4]]);
    }
}
