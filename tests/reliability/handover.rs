//! What a gateway is given to follow another with, and what goes wrong with it: the running one serves on until
//! everything that can fail has succeeded.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::backend::Backend;
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, PATIENCE, countersign, eventually, write_config};

/// Has a command run as systemd would, with this as file descriptor 3, and its log appended to a file.
pub(crate) fn activate(command: &mut Command, public: impl Into<OwnedFd>, log: &Path) {
    let mut activated = Command::new("sh");
    activated
        .args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 0</dev/null", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(public.into())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(log).unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => activated.env(name, value),
            None => activated.env_remove(name),
        };
    }
    *command = activated;
}

/// Where a gateway on this data directory is asked to hand over.
fn door(data: &Path) -> SocketAddr {
    let data = data.metadata().unwrap();
    SocketAddr::from_abstract_name(format!("countersign/{}/{}", data.dev(), data.ino())).unwrap()
}

fn deliver(gateway: &Gateway, id: &str) -> u16 {
    Post::signed("stripe", "/webhooks/stripe", id, "x", &body(id)).send(gateway.listen).status
}

/// Runs a gateway that must not start: with this exit code, saying these texts.
#[track_caller]
fn refused(gateway: &Gateway, arguments: &[&str], code: i32, texts: &[&str]) {
    let mut command = countersign();
    command.args(["run", "--config"]).arg(gateway.config_path()).args(arguments);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in texts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn a_take_over_that_cannot_succeed_leaves_the_running_gateway_as_it_was() {
    let backend = Backend::accepting();
    let sections = every_provider(&backend);
    let gateway = Gateway::start(&sections);
    let data = gateway.directory().join("data");

    gateway.rewrite(&sections.replace("provider", "porvider"));
    refused(&gateway, &["--takeover"], 78, &["did you mean `provider`?"]);
    gateway.rewrite(&sections);
    assert_eq!(deliver(&gateway, "d-1"), 200);

    // Whoever asks and then goes away has changed nothing, and keeps nobody else from asking.
    for words in ["", "countersign takeover 1\n", "countersign takeover 2\n"] {
        UnixStream::connect_addr(&door(&data)).unwrap().write_all(words.as_bytes()).unwrap();
    }
    eventually("all are heard", || gateway.log().matches("hand-over broken off").count() == 3);
    assert_eq!(deliver(&gateway, "d-2"), 200);

    // What a version that is too old would find.
    let database = rusqlite::Connection::open(data.join("countersign.db")).unwrap();
    let format: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    database.pragma_update(None, "user_version", 1_000).unwrap();
    refused(
        &gateway,
        &["--takeover"],
        74,
        &["not asking", "has format 1000", "run the version that wrote it"],
    );
    assert_eq!(deliver(&gateway, "d-3"), 200);
    database.pragma_update(None, "user_version", format).unwrap();
    drop(database);

    let mut old = gateway;
    let new = Gateway::start_in(old.directory_held(), |command| {
        command.arg("--takeover");
    });
    assert_eq!((old.wait(), deliver(&new, "d-5")), (Some(0), 200));
}

/// A directory to start a gateway in, and somebody who has the name at which it would be asked.
fn with_the_name_taken(backend: &Backend) -> (Arc<TempDir>, UnixListener) {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    write_config(directory.path(), &every_provider(backend));
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let somebody = UnixListener::bind_addr(&door(&data)).unwrap();
    (directory, somebody)
}

/// As a running version that is too old.
#[test]
fn a_gateway_that_cannot_be_asked_to_hand_over_serves_on() {
    let backend = Backend::accepting();
    let (directory, somebody) = with_the_name_taken(&backend);
    let gateway = Gateway::start_in(directory, |_| ());
    drop(somebody);
    let holder = format!("in use by process {}", gateway.id());
    refused(&gateway, &["--takeover"], 74, &["does not hand over", &holder]);
    assert_eq!(deliver(&gateway, "d-1"), 200);
}

/// Any user can take the name and let nobody in: a start had waited there for ever.
#[test]
fn whoever_takes_the_name_and_accepts_nobody_keeps_no_gateway_from_starting() {
    let backend = Backend::accepting();
    let (directory, somebody) = with_the_name_taken(&backend);
    rustix::net::listen(&somebody, 0).unwrap();
    let _queue_is_full = UnixStream::connect_addr(&door(&directory.path().join("data"))).unwrap();
    let gateway = Gateway::start_in(directory, |command| {
        command.arg("--takeover");
    });
    assert_eq!(deliver(&gateway, "d-1"), 200);
    assert!(gateway.log().contains("lets nobody in"), "{}", gateway.log());
}

#[test]
fn a_store_of_a_newer_format_is_refused_with_what_to_do() {
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&every_provider(&backend));
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let file = gateway.directory().join("data/countersign.db");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 1_000).unwrap();
    let before = std::fs::read(&file).unwrap();
    refused(&gateway, &[], 74, &["has format 1000", "run the version that wrote it, or a later one"]);
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let log = gateway.directory().join("second.log");
    let check = |given: OwnedFd, text: &str| {
        let mut command = countersign();
        command.args(["run", "--config"]).arg(gateway.config_path());
        activate(&mut command, given, &log);
        let status = command.status().unwrap();
        let told = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(status.code(), Some(74), "{told}");
        assert!(told.contains("LISTEN_FDS: file descriptor 3") && told.contains(text), "{told}");
    };
    check(File::open(gateway.config_path()).unwrap().into(), "not a socket");
    check(UdpSocket::bind("127.0.0.1:0").unwrap().into(), "not a valid tcp socket");
    check(TcpStream::connect(gateway.listen).unwrap().into(), "does not listen");
    assert_eq!(deliver(&gateway, "d-1"), 200);
}

#[test]
fn the_units_for_systemd_start_a_gateway_that_tells_how_it_stands() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let unit = |name: &str| std::fs::read_to_string(deploy.join(name)).unwrap();
    let (service, socket) = (unit("countersign.service"), unit("countersign.socket"));
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let arguments: Vec<_> = start.split(' ').skip(1).collect();

    let backend = Backend::accepting();
    let first = Gateway::start(&every_provider(&backend));
    let (directory, config) = (first.directory_held(), first.config_path());
    drop(first);
    let supervisor = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 64];
        let length = supervisor.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let public = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut gateway = Gateway::start_in(directory.clone(), |command| {
        let mut exactly = countersign();
        let path = config.to_str().unwrap();
        exactly.args(arguments.iter().map(|word| if word.ends_with(".toml") { path } else { word }));
        exactly.env("NOTIFY_SOCKET", directory.path().join("notify")).env("LISTEN_FDNAMES", "public");
        activate(&mut exactly, public.try_clone().unwrap(), &directory.path().join("log"));
        *command = exactly;
    });
    assert_eq!((told().as_str(), gateway.listen), ("READY=1", public.local_addr().unwrap()));
    assert_eq!(deliver(&gateway, "d-1"), 200);
    gateway.signal("TERM");
    assert_eq!((told().as_str(), gateway.wait()), ("STOPPING=1", Some(0)));

    // systemd's own judgement, where there is systemd; it looks for the binary and for the other unit.
    let binary = start.split(' ').next().unwrap();
    let verified = directory.path().join("units");
    std::fs::create_dir(&verified).unwrap();
    let service = service.replace(binary, env!("CARGO_BIN_EXE_countersign"));
    std::fs::write(verified.join("countersign.service"), service).unwrap();
    std::fs::write(verified.join("countersign.socket"), socket).unwrap();
    let judge = Command::new("systemd-analyze")
        .arg("verify")
        .args([verified.join("countersign.service"), verified.join("countersign.socket")])
        .output();
    match judge {
        Ok(judged) => {
            let complaints = String::from_utf8_lossy(&judged.stderr);
            assert!(judged.status.success() && !complaints.contains("countersign."), "{complaints}");
        }
        Err(error) => println!("skipped: no systemd-analyze: {error}"),
    }
}

/// Nobody sends the first request of a connection again when the connection is closed under it.
#[test]
fn a_connection_that_was_accepted_before_the_stop_has_its_request_answered() {
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&every_provider(&backend));
    let mut stream = TcpStream::connect(gateway.listen).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    gateway.eventually_metric("countersign_ingest_connections", 1.0);
    gateway.signal("TERM");
    eventually("nothing more is accepted", || TcpStream::connect(gateway.listen).is_err());
    stream.write_all(b"POST /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let answer = answer.to_lowercase();
    assert!(answer.starts_with("http/1.1 404") && answer.contains("connection: close"), "{answer:?}");
    assert_eq!(gateway.wait(), Some(0));
}
