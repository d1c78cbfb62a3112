//! A PostgreSQL server of the tests' own: in a temporary directory, on a free port, gone with the process that started it,
//! however that ends. The binaries are Debian's, or those of COUNTERSIGN_POSTGRES_BIN.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Starting takes a second, on a busy machine a few.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// What a test's server needs besides its place.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=64MB",
    "wal_level=replica",
];
/// Stops what is left of the server and removes its directory once nobody holds the other end of its input.
const JANITOR: &str = r#"
    trap '' INT TERM HUP
    read -r _
    pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
    # Nothing of it is wanted: a checkpoint could take longer than is waited for.
    kill -QUIT "$pid" 2>/dev/null || pid=
    for _ in $(seq 200); do
        { [ -n "$pid" ] && [ -e "$1/data/postmaster.pid" ]; } || break
        sleep 0.05
    done
    # Where the data have a disk of their own.
    umount "$1/data" 2>/dev/null
    rm -rf "$1"
"#;

/// A server that can be stopped, killed and started again.
pub(crate) struct Server {
    directory: PathBuf,
    port: u16,
    settings: Vec<String>,
    postmaster: Option<Child>,
    /// Open for as long as the directory is needed.
    _janitor: ChildStdin,
}

impl Server {
    /// One for all tests of the process that need nothing but a database of their own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// A new one with these settings besides (`name=value`).
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_over(settings, make)
    }

    /// A new one whose data are on a disk of their own, of 192 MiB; `None` where none can be mounted.
    pub(crate) fn on_a_small_disk() -> Option<Self> {
        let mut mounted = false;
        let server = Self::start_over(&["min_wal_size=64MB", "max_wal_size=64MB"], |data| {
            std::fs::create_dir(data).unwrap();
            let mount =
                Command::new("mount").args(["-t", "tmpfs", "-o", "size=192m", "tmpfs"]).arg(data).output();
            mounted = mount.is_ok_and(|mount| mount.status.success());
            if let Some((user, group)) = postgres_user() {
                chown(data, Some(user), Some(group)).unwrap();
            }
            make(data);
        });
        mounted.then_some(server)
    }

    /// Whether these programs know TLS; some are built without.
    pub(crate) fn knows_tls() -> bool {
        let configured = Command::new(binary("pg_config")).arg("--configure").output().unwrap().stdout;
        ["--with-openssl", "--with-ssl"]
            .iter()
            .any(|with| String::from_utf8_lossy(&configured).contains(with))
    }

    /// A new one that repeats what this one does.
    pub(crate) fn standby(&self) -> Self {
        Self::start_over(&[], |data| {
            run(as_postgres(&binary("pg_basebackup"))
                .args(["-R", "-c", "fast", "-X", "stream", "-U", "countersign", "-h", "127.0.0.1"])
                .args(["-p", &self.port.to_string(), "-D"])
                .arg(data));
        })
    }

    /// The same over a data directory that `fill` makes.
    fn start_over(settings: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::Builder::new().prefix("countersign-postgres-").tempdir().unwrap().keep();
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let janitor = janitor.unwrap().stdin.take().unwrap();
        if let Some((user, group)) = postgres_user() {
            chown(&directory, Some(user), Some(group)).unwrap();
        }
        fill(&directory.join("data"));
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let port = free_port();
        let mut server = Self { directory, port, settings, postmaster: None, _janitor: janitor };
        server.up();
        server
    }

    /// Starts it where it was, on the same port.
    pub(crate) fn up(&mut self) {
        let log = File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut command = as_postgres(&binary("postgres"));
        command.arg("-D").arg(self.directory.join("data")).arg("-p").arg(self.port.to_string());
        for setting in SETTINGS.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.postmaster = Some(command.spawn().unwrap());
        let ready = || {
            let port = self.port.to_string();
            let mut command = Command::new(binary("pg_isready"));
            command.args(["-q", "-h", "127.0.0.1", "-p", &port, "-d", "postgres"]).status().unwrap().success()
        };
        let log = self.directory.join("log");
        wait_for("the server is ready", ready, || std::fs::read_to_string(&log).unwrap_or_default());
    }

    /// Ends it: INT stops it in order, QUIT as a crash would, without a checkpoint.
    pub(crate) fn down(&mut self, signal: &str) {
        if let Some(mut postmaster) = self.postmaster.take() {
            run(Command::new("kill").args(["-s", signal, &postmaster.id().to_string()]));
            postmaster.wait().unwrap();
        }
    }

    /// The process's id.
    pub(crate) fn id(&self) -> u32 {
        self.postmaster.as_ref().unwrap().id()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Takes what room its disk has left, but for what the log of changes has set aside already: without that the server
    /// would end itself.
    pub(crate) fn fill_disk(&self) {
        for _ in 0..3 {
            self.sql("postgres", "SELECT pg_switch_wal()");
            self.sql("postgres", "CHECKPOINT");
        }
        let mut file = File::create(self.ballast()).unwrap();
        while file.write_all(&[0; 4_096]).is_ok() {}
    }

    /// Gives it back.
    pub(crate) fn free_disk(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.data().join("ballast")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// A new, empty database; its URL.
    pub(crate) fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://countersign@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// What psql prints: a line for each row, columns apart by `|`.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        query(&self.url(database), sql)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down("INT");
    }
}

/// A data directory as new.
fn make(data: &Path) {
    run(as_postgres(&binary("initdb")).arg("-D").arg(data).args([
        "--no-sync",
        "--no-instructions",
        "--auth=trust",
        "--username=countersign",
        "--encoding=UTF8",
        "--locale=C",
    ]));
}

/// What psql prints of a query to the database of a URL.
pub(crate) fn query(url: &str, sql: &str) -> String {
    let output = Command::new(binary("psql"))
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql])
        .env_remove("PGOPTIONS")
        .output()
        .unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A program of the server's; it refuses to be run by root.
pub(crate) fn as_postgres(program: &Path) -> Command {
    let Some((user, group)) = postgres_user() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()])
        .arg(program)
        // Where that user may look.
        .current_dir("/");
    command
}

/// User and group to run as, where we are root.
pub(crate) fn postgres_user() -> Option<(u32, u32)> {
    let id = |flag| {
        let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().ok()
    };
    rustix::process::geteuid().is_root().then(|| (id("-u").unwrap(), id("-g").unwrap()))
}

/// The newest version that is installed.
pub(crate) fn binary(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("COUNTERSIGN_POSTGRES_BIN") {
        return Path::new(&directory).join(name);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("postgresql is installed; ./test does it");
    let version = |path: &PathBuf| path.file_name().and_then(OsStr::to_str)?.parse::<u32>().ok();
    let versions = versions.map(|entry| entry.unwrap().path());
    let with_server = versions.filter(|path| path.join("bin/postgres").exists());
    with_server.max_by_key(version).expect("a server is installed").join("bin").join(name)
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool, detail: impl FnOnce() -> String) {
    for _ in 0..PATIENCE.as_millis() / LOOK.as_millis() {
        if holds() {
            return;
        }
        thread::sleep(LOOK);
    }
    panic!("did not happen: {what}\n{}", detail());
}
