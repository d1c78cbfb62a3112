//! Servers as processes, and what the operating system tells of them.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::requests::{SECRET, source};

/// The binary of this build.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_countersign");

/// A server that runs for as long as this lives.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Where its counters are.
    counters: (SocketAddr, &'static str),
    /// From its start until it served.
    pub(crate) started_in: Duration,
}

/// How a gateway is set up.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) binary: PathBuf,
    pub(crate) sources: usize,
    /// Where forwards go; `None` holds them back.
    pub(crate) backends: Vec<SocketAddr>,
    /// More lines of the configuration, before the first table.
    pub(crate) top: String,
    /// More lines for each source and each destination.
    pub(crate) source: String,
    pub(crate) destination: String,
    /// The processors that it may use, as `taskset` takes them; all, when empty.
    pub(crate) processors: String,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            binary: BINARY.into(),
            sources: 1,
            backends: Vec::new(),
            top: String::new(),
            source: String::new(),
            // As many as there are senders: the backend is a fast one.
            destination: "concurrency = 64\n".to_owned(),
            processors: String::new(),
        }
    }
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Bytes that it has caused to be written to the disk.
    pub(crate) written: u64,
    pub(crate) resident: u64,
    /// The most that was ever resident.
    pub(crate) peak: u64,
}

impl Server {
    /// Starts one of [`crate::servers`]: `role` is a word of `main`'s.
    pub(crate) fn start_own(role: &str, directory: Option<&Path>, processors: &str) -> Self {
        let mut command = on(processors, &std::env::current_exe().unwrap());
        command.arg("serve").arg(role).args(directory);
        let (child, words, started_in) = start(command);
        let address = address(&words, "listen=");
        Self { child, address, counters: (address, "/"), started_in }
    }

    /// Starts a gateway on `directory`.
    pub(crate) fn start_gateway(directory: &Path, setting: &Setting) -> Self {
        // Nobody listens there, and after one failure nothing is sent for longer than any benchmark takes.
        let held = setting.backends.is_empty();
        let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let backends = if held { vec![nowhere] } else { setting.backends.clone() };
        let mut text = format!(
            "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\nstore.disk_reserve = \"1MiB\"\n\
             limits.connections_per_address = 10000\n{}\n",
            setting.top
        );
        let names: Vec<_> = (0..backends.len()).map(|number| format!("backend-{number}")).collect();
        for number in 0..setting.sources {
            write!(
                text,
                "[[source]]\nname = \"{}\"\nprovider = \"hostwares\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
                 to = {names:?}\n{}\n",
                source(number),
                setting.source
            )
            .unwrap();
        }
        for (name, backend) in names.iter().zip(&backends) {
            write!(
                text,
                "[[destination]]\nname = \"{name}\"\nurl = \"http://{backend}/\"\n{}\n",
                setting.destination
            )
            .unwrap();
            if held {
                text += "breaker = { failures = 1, probe_after = \"1h\", probe_max = \"1h\" }\n";
            }
        }
        let config = directory.join("countersign.toml");
        std::fs::write(&config, text).unwrap();
        let mut command = on(&setting.processors, &setting.binary);
        command.arg("run").arg("--config").arg(&config);
        let (child, words, started_in) = start(command);
        let counters = (address(&words, "admin="), "/metrics");
        let server = Self { child, address: address(&words, "listen="), counters, started_in };
        if held {
            server.hold();
        }
        server
    }

    /// Has the lane stop sending: from then on a forward is stored as waiting, as behind an operator's pause.
    fn hold(&self) {
        let one = crate::requests::Deliveries::sign(1, 256, 1);
        let mut stream = TcpStream::connect(self.address).unwrap();
        for piece in one.pieces(0) {
            stream.write_all(piece).unwrap();
        }
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "the first delivery was refused");
        self.wait_for(
            "the lane to stop",
            "countersign_lane_state{destination=\"backend-0\",state=\"broken\"}",
            1.0,
        );
    }

    /// Waits until every forward has been delivered, and that is on disk.
    pub(crate) fn wait_until_delivered(&self) {
        self.wait_for("the last forward", "countersign_forward_pending", 0.0);
    }

    fn wait_for(&self, what: &str, counter: &str, value: f64) {
        let until = Instant::now() + Duration::from_secs(600);
        while (self.counter(counter) - value).abs() > 0.5 {
            assert!(Instant::now() < until, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The sum of what a counter shows, over all labels that go on from `name`.
    pub(crate) fn counter(&self, name: &str) -> f64 {
        let (address, path) = self.counters;
        let page = get(address, path);
        let lines = page.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// How long a gateway's API takes for the first page of its deliveries.
    pub(crate) fn first_page_in(&self) -> Duration {
        let began = Instant::now();
        let page = get(self.counters.0, "/api/v1/deliveries");
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        began.elapsed()
    }

    /// Group commits so far; each is one fsync of the log.
    pub(crate) fn commits(&self) -> f64 {
        self.counter("countersign_store_commit_duration_seconds_count")
    }

    pub(crate) fn usage(&self) -> Usage {
        usage(self.child.id())
    }

    /// Ends it as a supervisor would.
    pub(crate) fn stop(mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended when this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What process `id` has used so far.
pub(crate) fn usage(id: u32) -> Usage {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{id}/{name}")).unwrap();
    let (status, io) = (read("status"), read("io"));
    let number = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    Usage {
        cpu: times(id).unwrap().0,
        written: number(&io, "write_bytes:"),
        resident: number(&status, "VmRSS:") * 1_024,
        peak: number(&status, "VmHWM:") * 1_024,
    }
}

/// The processor time of process `id`, and of its children that have ended; `None` when it has ended itself.
pub(crate) fn times(id: u32) -> Option<(Duration, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may have spaces.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let sum = |ticks: &[&str]| ticks.iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() as f64;
    let second = rustix::param::clock_ticks_per_second() as f64;
    let time = |fields| Duration::from_secs_f64(sum(fields) / second);
    Some((time(&fields[11..13]), time(&fields[13..15])))
}

fn on(processors: &str, program: &Path) -> Command {
    if processors.is_empty() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", processors]).arg(program);
    command
}

/// Starts a server and waits for the line in which it says where it listens.
fn start(mut command: Command) -> (Child, String, Duration) {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line, began.elapsed())
}

fn address(words: &str, name: &str) -> SocketAddr {
    let address = words.split_whitespace().find_map(|word| word.strip_prefix(name));
    address.unwrap_or_else(|| panic!("no `{name}` in {words:?}")).parse().unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}
