//! One measurement: a server, a load, and everything that is told of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::machine::{Load as Busy, Machine};
use crate::process::{Server, Setting, Usage, usage};
use crate::requests::Deliveries;
use crate::sender::{Answers, Load, Pace, send};

/// What is measured, by the letters of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Contender {
    /// Bare hyper.
    A,
    /// With HMAC-SHA256.
    B,
    /// With an append log.
    C,
    /// The gateway, its lane held back.
    D,
    /// The gateway with a fast backend.
    E,
    /// `D` of another binary.
    X,
}

impl Contender {
    pub(crate) const ALL: [Self; 6] = [Self::A, Self::B, Self::C, Self::D, Self::E, Self::X];

    pub(crate) fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
            Self::C => 'c',
            Self::D => 'd',
            Self::E => 'e',
            Self::X => 'x',
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "(a) hyper: body, 200",
            Self::B => "(b) + HMAC-SHA256",
            Self::C => "(c) + log, fdatasync",
            Self::D => "(d) Countersign: ack",
            Self::E => "(e) Countersign: whole way",
            Self::X => "(x) ack, other binary",
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Workload {
    pub(crate) pace: Pace,
    pub(crate) connections: usize,
    pub(crate) body_bytes: usize,
    pub(crate) seconds: f64,
    /// Requests a second that a closed loop has deliveries for; 0 when it is to send a number of them, and all count.
    pub(crate) rate_max: f64,
}

impl Workload {
    /// A number of deliveries, as fast as they are answered.
    pub(crate) fn counted() -> Self {
        Self { pace: Pace::Closed, connections: 64, body_bytes: 1 << 10, seconds: 3_600.0, rate_max: 0.0 }
    }

    fn warm_up(&self) -> Duration {
        let is_number = self.pace == Pace::Closed && self.rate_max == 0.0;
        if is_number { Duration::ZERO } else { Duration::from_millis(400) }
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Signs what it takes.
    pub(crate) fn deliveries(&self, sources: usize) -> Deliveries {
        let rate = match self.pace {
            Pace::Closed => self.rate_max,
            Pace::Open(rate) => rate as f64,
        };
        let count = rate * (self.warm_up() + self.window()).as_secs_f64();
        Deliveries::sign(count as usize + 1, self.body_bytes, sources)
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pace {
            Pace::Closed => write!(f, "closed, {} connections", self.connections)?,
            Pace::Open(rate) => write!(f, "open, {rate}/s")?,
        }
        match self.body_bytes {
            small @ ..1_024 => write!(f, ", {small} B"),
            large => write!(f, ", {} KiB", large / 1_024),
        }
    }
}

/// Figures by name; those that a measurement does not have are missing.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// Where measurements take place.
pub(crate) struct Place {
    /// The stores' directory, on the disk that is measured.
    pub(crate) directory: PathBuf,
    pub(crate) machine: Machine,
}

impl Place {
    /// Below Cargo's own, so that `cargo clean` leaves nothing.
    pub(crate) fn new() -> Self {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench");
        std::fs::create_dir_all(&directory).unwrap();
        Self { machine: Machine::here(&directory), directory }
    }

    /// A new directory, removed in the end.
    pub(crate) fn temporary(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(&self.directory).unwrap()
    }

    /// Lets the disk finish what was written before, so that nobody pays for another's writes.
    pub(crate) fn settle(&self) {
        rustix::fs::syncfs(std::fs::File::open(&self.directory).unwrap()).unwrap();
    }

    /// Measures a contender from an empty store.
    pub(crate) fn contend(&self, contender: Contender, workload: &Workload, setting: &Setting) -> Figures {
        let directory = self.temporary();
        let logs = self.directory.join("log");
        let processors = &*setting.processors;
        let mut backend = None;
        let server = match contender {
            Contender::A => Server::start_own("http", None, processors),
            Contender::B => Server::start_own("hmac", None, processors),
            Contender::C => {
                std::fs::create_dir_all(&logs).unwrap();
                Server::start_own("log", Some(&logs), processors)
            }
            Contender::D | Contender::X => Server::start_gateway(directory.path(), setting),
            Contender::E => {
                let started = Server::start_own("http", None, processors);
                let setting = Setting { backends: vec![started.address], ..setting.clone() };
                backend = Some(started);
                Server::start_gateway(directory.path(), &setting)
            }
        };
        let deliveries = workload.deliveries(setting.sources);
        self.measure(&server, backend.as_ref(), workload, &deliveries).0
    }

    /// Sends a load to a server, whose forwards go to `backend`, and waits for the last of them.
    pub(crate) fn measure(
        &self,
        server: &Server,
        backend: Option<&Server>,
        workload: &Workload,
        deliveries: &Deliveries,
    ) -> (Figures, Answers) {
        self.settle();
        let load = Load {
            address: server.address,
            connections: workload.connections,
            deliveries,
            pace: workload.pace,
            warm_up: workload.warm_up(),
            window: workload.window(),
        };
        let before = (server.usage(), server.commits());
        let mut snapshots = Vec::new();
        let answers = send(&load, || snapshots.push(Snapshot::take(server, backend)));
        let [begin, end] = &snapshots[..] else { panic!("a window has a beginning and an end") };
        let mut rate = answers.accepted as f64 / answers.window.as_secs_f64();
        let mut cpu_us =
            (end.server.cpu - begin.server.cpu).as_secs_f64() * 1e6 / answers.accepted.max(1) as f64;
        let all = answers.accepted_in_all.max(1) as f64;
        if backend.is_some() {
            // Work that was put off is work all the same: everything from the first request to the last forward.
            server.wait_until_delivered();
            rate = all / answers.began.elapsed().as_secs_f64();
            cpu_us = (server.usage().cpu - before.0.cpu).as_secs_f64() * 1e6 / all;
        }
        let after = (server.usage(), server.commits());
        let (others, stolen) =
            end.busy.since(begin.busy, end.ours - begin.ours, end.at - begin.at, self.machine.processors);
        let latency = &answers.latency;
        let quantile = |q: f64| latency.value_at_quantile(q) as f64 / 1e3;
        let figures = Figures::from([
            ("requests_per_second", rate),
            ("cpu_us", cpu_us),
            ("p50_ms", quantile(0.5)),
            ("p99_ms", quantile(0.99)),
            ("p999_ms", quantile(0.999)),
            ("max_ms", latency.max() as f64 / 1e3),
            ("resident_mib", end.server.resident as f64 / 1_048_576.0),
            ("written_bytes", (after.0.written - before.0.written) as f64 / all),
            ("fsyncs", (after.1 - before.1) / all),
            ("failed", answers.failed as f64),
            ("others", others),
            ("stolen", stolen),
            (
                "sender_cpu_us",
                (end.sender - begin.sender).as_secs_f64() * 1e6 / answers.accepted.max(1) as f64,
            ),
        ]);
        (figures, answers)
    }
}

struct Snapshot {
    at: Instant,
    busy: Busy,
    server: Usage,
    /// The sender's processor time.
    sender: Duration,
    /// That of all processes of the measurement.
    ours: Duration,
}

impl Snapshot {
    fn take(server: &Server, backend: Option<&Server>) -> Self {
        let sender = usage(std::process::id()).cpu;
        let of = server.usage();
        let ours = sender + of.cpu + backend.map_or(Duration::ZERO, |backend| backend.usage().cpu);
        Self { at: Instant::now(), busy: Busy::now(), server: of, sender, ours }
    }
}

/// The middle value; of an even number the lower of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    if values.is_empty() { f64::NAN } else { values[(values.len() - 1) / 2] }
}
