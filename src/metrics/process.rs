//! The process's own figures under the names that every Prometheus client uses, read from `/proc` at each scrape.
//! Where there is no `/proc`, they are absent.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts};

#[derive(Clone, Debug)]
pub(super) struct ProcessCollector {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    start_time: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let gauge = |name: &str, help: &str| {
            Gauge::with_opts(Opts::new(name, help)).expect("names in this file are valid")
        };
        Self {
            cpu_seconds: Counter::new("process_cpu_seconds_total", "User and system CPU time in seconds.")
                .expect("the name is valid"),
            resident_bytes: gauge("process_resident_memory_bytes", "Resident memory in bytes."),
            virtual_bytes: gauge("process_virtual_memory_bytes", "Virtual memory in bytes."),
            start_time: gauge("process_start_time_seconds", "Start of the process, Unix time."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
            max_fds: gauge("process_max_fds", "Limit of open file descriptors."),
            threads: gauge("process_threads", "Threads."),
        }
    }

    fn parts(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.resident_bytes,
            &self.virtual_bytes,
            &self.start_time,
            &self.open_fds,
            &self.max_fds,
            &self.threads,
        ]
    }

    /// Field numbers are those of proc(5), section /proc/pid/stat, counted from the state (field 3).
    fn read(&self) -> Option<()> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let cpu_seconds = (field(14)? + field(15)?) / ticks;
        // Two scrapes at once may read in one order and count in the other; a counter never goes back.
        self.cpu_seconds.inc_by((cpu_seconds - self.cpu_seconds.get()).max(0.0));
        self.threads.set(field(20)?);
        self.virtual_bytes.set(field(23)?);
        self.resident_bytes.set(field(24)? * rustix::param::page_size() as f64);
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
        self.start_time.set(boot + field(22)? / ticks);
        self.open_fds.set(std::fs::read_dir("/proc/self/fd").ok()?.count() as f64);
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        self.max_fds.set(limit.split_whitespace().next()?.parse().unwrap_or(f64::INFINITY));
        Some(())
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        match self.read() {
            Some(()) => self.parts().into_iter().flat_map(Collector::collect).collect(),
            None => Vec::new(),
        }
    }
}
