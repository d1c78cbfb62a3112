//! The machine: what it is, and what else it was doing meanwhile.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

/// What a reader of the figures needs to know.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
}

/// Processor time of the whole machine, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Of all processes, in user and system.
    used: f64,
    /// Taken by the hypervisor for others.
    stolen: f64,
}

impl Machine {
    /// This one; `directory` is where the stores are.
    pub(crate) fn here(directory: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(directory),
        }
    }

    /// Whether nothing that is written there reaches a disk.
    pub(crate) fn has_no_disk(&self) -> bool {
        matches!(&*self.file_system, "tmpfs" | "ramfs")
    }
}

impl Load {
    pub(crate) fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let ticks: Vec<f64> =
            stat.lines().next().unwrap().split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect();
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        Self { used: (ticks[0] + ticks[1] + ticks[2]) / per_second, stolen: ticks[7] / per_second }
    }

    /// Shares of the machine that others than `ours` used since `earlier`, and that the hypervisor took.
    pub(crate) fn since(
        self,
        earlier: Self,
        ours: Duration,
        elapsed: Duration,
        processors: usize,
    ) -> (f64, f64) {
        let all = elapsed.as_secs_f64() * processors as f64;
        let others = (self.used - earlier.used - ours.as_secs_f64()).max(0.0);
        (others / all, (self.stolen - earlier.stolen) / all)
    }
}

/// The type of the file system that is mounted closest above `directory`.
fn file_system(directory: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        directory.starts_with(point).then_some((point.len(), kind))
    });
    mounts.max().map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}
