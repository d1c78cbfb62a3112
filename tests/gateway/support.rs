//! A running gateway for a test, and waiting for what happens in its own time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// What a test waits for at most; nothing takes near so long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
        if condition() {
            return;
        }
        thread::sleep(LOOK);
    }
    panic!("did not happen: {what}");
}

/// The built binary.
pub(crate) fn countersign() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.env_remove("RUST_LOG");
    command
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    countersign().args(arguments).output().unwrap()
}

/// A gateway process in a directory of its own, which outlives restarts.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    directory: Arc<TempDir>,
}

impl Gateway {
    /// Starts with `[[source]]` and `[[destination]]` tables, and whatever sections they are preceded by; addresses
    /// and the store are the test's.
    pub(crate) fn start(sections: &str) -> Self {
        Self::start_with(sections, |_| ())
    }

    /// The same, with a command line or an environment that `prepare` has changed.
    pub(crate) fn start_with(sections: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        write_config(directory.path(), sections);
        Self::start_in(directory, prepare)
    }

    /// Starts over a directory that holds a configuration, and perhaps a store.
    pub(crate) fn start_in(directory: Arc<TempDir>, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::try_start_in(directory, prepare)
            .unwrap_or_else(|(code, log)| panic!("ended with {code:?} before it was ready; log: {log}"))
    }

    /// The same; the exit code and the log when it ends before it is ready.
    pub(crate) fn try_start_in(
        directory: Arc<TempDir>,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self, (Option<i32>, String)> {
        let log =
            std::fs::File::options().create(true).append(true).open(directory.path().join("log")).unwrap();
        let mut command = countersign();
        command
            .args(["run", "--log-format", "json", "--config"])
            .arg(directory.path().join("countersign.toml"))
            .env("RUST_LOG", "countersign=debug")
            .stdout(Stdio::piped())
            .stderr(log);
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            return Err((child.wait().unwrap().code(), log_of(directory.path())));
        }
        let address = |name: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name} in {line:?}")).parse().unwrap()
        };
        assert!(line.starts_with("ready listen="), "{line:?}");
        let (listen, admin) = (address("listen"), address("admin"));
        Ok(Self { child, listen, admin, directory })
    }

    /// The directory of configuration, data and log.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.directory().join("countersign.toml")
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        log_of(self.directory())
    }

    /// Replaces the configuration file; takes effect with SIGHUP or a restart.
    pub(crate) fn rewrite(&self, sections: &str) {
        write_config(self.directory(), sections);
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// SIGKILL, then a new process over the same directory.
    pub(crate) fn kill_and_restart(mut self) -> Self {
        self.kill();
        Self::start_in(self.directory_held(), |_| ())
    }

    /// The directory of configuration, data and log, which lives for as long as it is held.
    pub(crate) fn directory_held(&self) -> Arc<TempDir> {
        Arc::clone(&self.directory)
    }

    /// The process's id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that the process holds.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.id())).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the process to end; its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("the process ends", || {
            code = self.ended();
            code.is_some()
        });
        code.unwrap()
    }

    /// The exit code, when the process has ended.
    pub(crate) fn ended(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().unwrap().map(|status| status.code())
    }

    /// The answer of the admin listener: status and body.
    pub(crate) fn admin_get(&self, path: &str) -> (u16, String) {
        self.try_admin_get(path).expect("the admin listener answers")
    }

    /// `None` when the gateway is gone before it has answered.
    pub(crate) fn try_admin_get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().unwrap();
        Some((status, answer.split_once("\r\n\r\n").unwrap().1.to_owned()))
    }

    /// Waits until the answer of the admin listener contains a text.
    #[track_caller]
    pub(crate) fn eventually_admin(&self, path: &str, text: &str) {
        eventually(&format!("{path} contains {text}"), || self.admin_get(path).1.contains(text));
    }

    /// The value of a series, written as on the page; `None` when it is not there.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let (_, page) = self.admin_get("/metrics");
        page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until a series has a value.
    #[track_caller]
    pub(crate) fn eventually_metric(&self, series: &str, value: f64) {
        eventually(&format!("{series} becomes {value}"), || self.metric(series) == Some(value));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// Writes `sections` behind addresses and store of the test's.
pub(crate) fn write_config(directory: &Path, sections: &str) {
    let text = format!(
        "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\n\
         store.path = \"data\"\nstore.disk_reserve = \"1MiB\"\n{sections}"
    );
    std::fs::write(directory.join("countersign.toml"), text).unwrap();
}
