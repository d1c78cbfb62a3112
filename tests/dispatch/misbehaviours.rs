//! A table of what backends do to those who call them, byte for byte: each row has one outcome, one connection, no
//! second request, and takes no more memory than any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use countersign::forward::{Outcome, Progress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Gateway, delivery, destination, is_alone, retry_late};
use Do::{Close, Drip, Hang, Read, ReadAll, Repeat, Reset, Send};
use Outcome::{ConnectionLost, Delivered, InvalidResponse, Redirected, Rejected, RetryableStatus, Timeout};

/// More than both ends' systems buffer together when the other does not read.
pub(crate) const LARGE_BYTES: usize = 12 << 20;
/// Of a case whose outcome is that it takes too long.
const SHORT: Duration = Duration::from_secs(1);
/// Of any other; nothing may depend on how busy the machine is.
const LONG: Duration = Duration::from_secs(60);

/// What the backend does on the only connection that it should get.
#[derive(Debug, Clone)]
pub(crate) enum Do {
    /// Reads so many bytes.
    Read(usize),
    /// Reads the whole request.
    ReadAll,
    Send(Vec<u8>),
    /// One byte at a time, for ever.
    Drip(u8),
    /// For ever.
    Repeat(Vec<u8>),
    Close,
    Reset,
    /// Keeps silent and reads nothing, with the connection open.
    Hang,
}

struct Case {
    what: &'static str,
    script: Vec<Do>,
    /// Whether the request's body is a large one.
    large: bool,
    outcome: Outcome,
    status: Option<u16>,
}

fn scripted(what: &'static str, script: Vec<Do>, outcome: Outcome, status: Option<u16>) -> Case {
    Case { what, script, large: false, outcome, status }
}

/// The backend has a large request coming.
fn large(what: &'static str, script: Vec<Do>, outcome: Outcome, status: Option<u16>) -> Case {
    Case { what, script, large: true, outcome, status }
}

/// The backend reads the request, sends `text` and goes on with `end`.
fn answered(what: &'static str, text: &str, end: Do, outcome: Outcome, status: Option<u16>) -> Case {
    scripted(what, vec![ReadAll, Send(text.as_bytes().to_vec()), end], outcome, status)
}

/// The same, where a status line and headers come before `body`.
fn with_head(
    what: &'static str,
    head: &str,
    body: &str,
    end: Do,
    outcome: Outcome,
    status: impl Into<Option<u16>>,
) -> Case {
    answered(what, &format!("HTTP/1.1 {head}\r\n\r\n{body}"), end, outcome, status.into())
}

fn silence() -> Vec<Case> {
    let ok = || Send(b"HTTP/1.1 200 OK\r\n".to_vec());
    vec![
        scripted("takes the connection and nothing else", vec![Hang], Timeout, None),
        scripted("reads and says nothing", vec![ReadAll, Hang], Timeout, None),
        scripted("closes at once", vec![Close], ConnectionLost, None),
        scripted("resets after the first byte", vec![Read(1), Reset], ConnectionLost, None),
        scripted("closes after the first byte", vec![Read(1), Close], ConnectionLost, None),
        scripted("closes after the request", vec![ReadAll, Close], ConnectionLost, None),
        scripted("resets after the request", vec![ReadAll, Reset], ConnectionLost, None),
        answered("stops in the status line", "HTTP/1.1 2", Hang, Timeout, None),
        answered("closes in the status line", "HTTP/1.1 2", Close, ConnectionLost, None),
        answered("stops in the head", "HTTP/1.1 200 OK\r\nx: y\r\n", Hang, Timeout, None),
        answered("closes in the head", "HTTP/1.1 200 OK\r\nx: y\r\n", Close, ConnectionLost, None),
        answered("resets in the head", "HTTP/1.1 200 OK\r\nx: y\r\n", Reset, ConnectionLost, None),
        scripted("drips a head", vec![ReadAll, ok(), Send(b"x: ".to_vec()), Drip(b'x')], Timeout, None),
        with_head("drips a 200's body", "200 OK\r\ncontent-length: 99999", "", Drip(b'x'), Timeout, 200),
        with_head("drips a 503's", "503 X\r\ncontent-length: 99999", "", Drip(b'x'), RetryableStatus, 503),
        with_head("drips a 400's", "400 X\r\ncontent-length: 99999", "", Drip(b'x'), Rejected, 400),
        with_head("drips without a length", "200 OK", "", Drip(b'x'), Timeout, 200),
    ]
}

fn bodies() -> Vec<Case> {
    const CHUNKED: &str = "200 OK\r\ntransfer-encoding: chunked";
    let chunk = || Repeat([b"1000\r\n".to_vec(), vec![b'x'; 4096], b"\r\n".to_vec()].concat());
    let extension = format!("1;{}\r\n", "x".repeat(20_000));
    let trailers = format!("0\r\n{}\r\n", format!("x: {}\r\n", "y".repeat(1_000)).repeat(70));
    vec![
        with_head(
            "promises more and closes",
            "200 OK\r\ncontent-length: 9",
            "half",
            Close,
            ConnectionLost,
            200,
        ),
        with_head(
            "promises more and resets",
            "200 OK\r\ncontent-length: 9",
            "half",
            Reset,
            ConnectionLost,
            200,
        ),
        with_head("promises more and waits", "200 OK\r\ncontent-length: 9", "half", Hang, Timeout, 200),
        with_head("answers as to HEAD", "200 OK\r\ncontent-length: 9", "", Close, ConnectionLost, 200),
        with_head("refuses with half a body", "404 X\r\ncontent-length: 9", "half", Close, Rejected, 404),
        with_head(
            "fails with half a body",
            "500 X\r\ncontent-length: 9",
            "half",
            Reset,
            RetryableStatus,
            500,
        ),
        with_head(
            "promises the most",
            "200 OK\r\ncontent-length: 9223372036854775807",
            "x",
            Close,
            ConnectionLost,
            200,
        ),
        with_head(
            "sends more than it promised",
            "200 OK\r\ncontent-length: 2",
            "okHTTP/1.1 500 X\r\n",
            Hang,
            Delivered,
            200,
        ),
        with_head(
            "sends a body of no length",
            "200 OK\r\ncontent-length: 0",
            "surplus",
            Hang,
            Delivered,
            200,
        ),
        with_head("204 with a body", "204 X", "a body", Hang, Delivered, 204),
        with_head("204 with a length", "204 X\r\ncontent-length: 9", "", Hang, Delivered, 204),
        with_head(
            "204 with chunks",
            "204 X\r\ntransfer-encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
            Hang,
            Delivered,
            204,
        ),
        with_head("304 with a length", "304 X\r\ncontent-length: 9", "", Hang, Redirected, 304),
        with_head("ends with the connection", "200 OK", "fine", Close, Delivered, 200),
        with_head("would end with the connection", "200 OK", "fine", Hang, Timeout, 200),
        with_head("ends with a reset", "200 OK", "fine", Reset, ConnectionLost, 200),
        with_head("chunks and trailers", CHUNKED, "2\r\nok\r\n0\r\nx: y\r\n\r\n", Hang, Delivered, 200),
        with_head("closes after a chunk", CHUNKED, "5\r\nhello\r\n", Close, ConnectionLost, 200),
        with_head("closes in a chunk", CHUNKED, "5\r\nhe", Close, ConnectionLost, 200),
        with_head("stops after a chunk", CHUNKED, "5\r\nhello\r\n", Hang, Timeout, 200),
        with_head("stops in the trailers", CHUNKED, "0\r\nx: y\r\n", Hang, Timeout, 200),
        with_head("a chunk of no size", CHUNKED, "zz\r\nhello\r\n", Hang, InvalidResponse, 200),
        with_head("a chunk of a negative size", CHUNKED, "-1\r\n", Hang, InvalidResponse, 200),
        with_head(
            "a chunk of too large a size",
            CHUNKED,
            "fffffffffffffffff\r\n",
            Hang,
            InvalidResponse,
            200,
        ),
        with_head(
            "a chunk longer than it says",
            CHUNKED,
            "5\r\nhelloXX0\r\n\r\n",
            Hang,
            InvalidResponse,
            200,
        ),
        with_head("an endless chunk extension", CHUNKED, &extension, Hang, InvalidResponse, 200),
        with_head("trailers without measure", CHUNKED, &trailers, Hang, InvalidResponse, 200),
        with_head("chunks for ever", CHUNKED, "", chunk(), Delivered, 200),
        with_head("500 for ever", "500 X\r\ntransfer-encoding: chunked", "", chunk(), RetryableStatus, 500),
        with_head("404 for ever", "404 X\r\ntransfer-encoding: chunked", "", chunk(), Rejected, 404),
        with_head("bytes for ever", "200 OK", "", Repeat(vec![b'x'; 65_536]), Delivered, 200),
        with_head(
            "chunks of one byte for ever",
            CHUNKED,
            "",
            Repeat(b"1\r\nx\r\n".repeat(1_000)),
            Delivered,
            200,
        ),
        with_head(
            "a length beside chunks",
            "200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n",
            Hang,
            Delivered,
            200,
        ),
        with_head(
            "a coding that is not chunked",
            "200 OK\r\ntransfer-encoding: gzip",
            "\x1f",
            Close,
            Delivered,
            200,
        ),
    ]
}

fn heads() -> Vec<Case> {
    let invalid = |what, text: &str| answered(what, text, Hang, InvalidResponse, None);
    let header = |what, line: &str| invalid(what, &format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n"));
    let many = "x: y\r\n".repeat(150);
    vec![
        answered("HTTP/0.9", "<html>fine</html>\n", Close, InvalidResponse, None),
        invalid("another protocol", "SSH-2.0-OpenSSH_9.2\r\n"),
        invalid("an alert of TLS", "\x15\x03\x01\x00\x02\x02\x46"),
        invalid("a frame of HTTP/2", "\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        invalid("HTTP/2 in words", "HTTP/2.0 200 OK\r\n\r\n"),
        invalid("HTTP in small letters", "http/1.1 200 OK\r\n\r\n"),
        invalid("a request", "POST / HTTP/1.1\r\nhost: a\r\n\r\n"),
        invalid("a status of letters", "HTTP/1.1 abc OK\r\n\r\n"),
        invalid("a status of two digits", "HTTP/1.1 20 OK\r\n\r\n"),
        invalid("a status of four digits", "HTTP/1.1 2000 OK\r\n\r\n"),
        invalid("a status of nought", "HTTP/1.1 000 OK\r\n\r\n"),
        invalid("nothing but NUL", &"\0".repeat(100)),
        header("a header without a colon", "no colon"),
        header("a space before the colon", "x : y"),
        header("a folded header", "x: y\r\n z: 1"),
        header("NUL in a header", "x: \0"),
        header("a header of no name", ": y"),
        header("lengths that differ", "content-length: 1\r\ncontent-length: 2"),
        header("a negative length", "content-length: -1"),
        header("a length with a sign", "content-length: +1"),
        header("a length that is none", "content-length: 1e3"),
        header("a length beyond all numbers", "content-length: 99999999999999999999999"),
        header("a large header", &format!("x: {}", "y".repeat(200_000))),
        header("too many headers", many.trim_end()),
        answered("a status line for ever", "HTTP/1.1 200 ", Repeat(vec![b'O'; 4096]), InvalidResponse, None),
        answered(
            "a header for ever",
            "HTTP/1.1 200 OK\r\nx: ",
            Repeat(vec![b'x'; 4096]),
            InvalidResponse,
            None,
        ),
        answered(
            "headers for ever",
            "HTTP/1.1 200 OK\r\n",
            Repeat(b"x: y\r\n".repeat(500)),
            InvalidResponse,
            None,
        ),
        answered(
            "lines that end in LF",
            "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
            Hang,
            Delivered,
            Some(200),
        ),
        with_head(
            "a length said twice",
            "200 OK\r\ncontent-length: 2\r\ncontent-length: 2",
            "ok",
            Hang,
            Delivered,
            200,
        ),
        with_head("no reason", "200", "", Close, Delivered, 200),
        with_head("a reason that is not ASCII", "200 \u{e9}", "", Close, Delivered, 200),
    ]
}

fn interim() -> Vec<Case> {
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(20);
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let flood = |text: &str| Repeat(text.repeat(100).into_bytes());
    vec![
        answered("100, unasked", &format!("{CONTINUE}{last}"), Hang, Delivered, Some(200)),
        answered("a few hints", &format!("{hints}{last}"), Hang, Delivered, Some(200)),
        answered("100 and no more", CONTINUE, Hang, Timeout, None),
        answered("100 and the end", CONTINUE, Close, ConnectionLost, None),
        answered("100 for ever", "", flood(CONTINUE), InvalidResponse, None),
        answered("hints for ever", "", flood(&hints), InvalidResponse, None),
        with_head(
            "a switch of protocols",
            "101 X\r\nconnection: upgrade\r\nupgrade: h2c",
            "",
            Hang,
            InvalidResponse,
            101,
        ),
        with_head("a switch and a flood", "101 X", "", Repeat(vec![b'x'; 4096]), InvalidResponse, 101),
    ]
}

/// `elsewhere` is where redirects lead; nobody may go there.
fn statuses(elsewhere: &str) -> Vec<Case> {
    let to = |status: u16, outcome| {
        let head =
            format!("{status} X\r\ncontent-length: 0\r\nlocation: {elsewhere}\r\nrefresh: 0;url={elsewhere}");
        with_head("leads elsewhere", &head, "", Hang, outcome, status)
    };
    let plain = |status: u16, outcome| {
        let head = format!(
            "{status} X\r\ncontent-length: 0\r\nwww-authenticate: Basic\r\nproxy-authenticate: Basic"
        );
        with_head("a status", &head, "", Hang, outcome, status)
    };
    let mut cases: Vec<_> =
        [300, 301, 302, 303, 304, 305, 307, 308].map(|status| to(status, Redirected)).into();
    cases.extend([200, 201, 299].map(|status| to(status, Delivered)));
    cases.extend([400, 401, 403, 404, 407, 409, 410, 413, 421, 451].map(|status| plain(status, Rejected)));
    cases.extend([408, 425, 429, 500, 501, 503, 599, 600, 999].map(|status| plain(status, RetryableStatus)));
    cases
}

fn early() -> Vec<Case> {
    let say = |status: &str| Send(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").into_bytes());
    let say_close = || Send(b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n".to_vec());
    vec![
        large("stops reading", vec![Read(1_000), Hang], Timeout, None),
        large("resets in the middle of a request", vec![Read(1_000), Reset], ConnectionLost, None),
        large(
            "accepts before it has it all, and stops reading",
            vec![Read(1_000), say("200"), Hang],
            Timeout,
            Some(200),
        ),
        large(
            "accepts before it has it all, and closes",
            vec![Read(1_000), say("200"), Close],
            ConnectionLost,
            Some(200),
        ),
        large("accepts early and for good", vec![Read(1_000), say_close(), Close], ConnectionLost, Some(200)),
        large(
            "accepts early, and reads on",
            vec![Read(1_000), say("200"), ReadAll, Hang],
            Delivered,
            Some(200),
        ),
        large("refuses early and closes", vec![Read(1_000), say("413"), Close], Rejected, Some(413)),
        large("refuses early and stops reading", vec![Read(1_000), say("413"), Hang], Rejected, Some(413)),
        large(
            "refuses early and reads on",
            vec![Read(1_000), say("413"), ReadAll, Hang],
            Rejected,
            Some(413),
        ),
        large("is busy, and closes", vec![Read(1), say("503"), Close], RetryableStatus, Some(503)),
        large("redirects early", vec![Read(1_000), say("307"), Hang], Redirected, Some(307)),
    ]
}

/// Runs the script on the first connection, and counts any other.
async fn serve(listener: TcpListener, script: Vec<Do>, length: usize, whole: Arc<AtomicUsize>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    whole.fetch_add(1, Ordering::SeqCst);
    let run = async move {
        let mut request = Vec::new();
        for step in script {
            if perform(&mut stream, step, &mut request, length).await.is_none() {
                return;
            }
        }
    };
    tokio::join!(run, async {
        while listener.accept().await.is_ok() {
            whole.fetch_add(1, Ordering::SeqCst);
        }
    });
}

/// `None` when the connection has ended.
pub(crate) async fn perform(
    stream: &mut TcpStream,
    step: Do,
    request: &mut Vec<u8>,
    length: usize,
) -> Option<()> {
    match step {
        Read(bytes) => {
            let mut part = vec![0; bytes];
            stream.read_exact(&mut part).await.ok()?;
            request.extend(part);
        }
        ReadAll => {
            let mut part = vec![0; 65_536];
            let end = |request: &[u8]| request.windows(4).position(|four| four == b"\r\n\r\n");
            while end(&request[..request.len().min(8_192)]).is_none_or(|end| request.len() < end + 4 + length)
            {
                let read = stream.read(&mut part).await.ok().filter(|read| *read > 0)?;
                request.extend(&part[..read]);
            }
        }
        Send(bytes) => stream.write_all(&bytes).await.ok()?,
        Drip(byte) => loop {
            stream.write_all(&[byte]).await.ok()?;
            sleep(Duration::from_millis(5)).await;
        },
        Repeat(bytes) => loop {
            stream.write_all(&bytes).await.ok()?;
        },
        Close => {
            // What the other side still sends is refused, as by a process that has ended.
            stream.shutdown().await.ok()?;
            return None;
        }
        Reset => {
            stream.set_zero_linger().ok()?;
            return None;
        }
        Hang => {
            std::future::pending::<()>().await;
        }
    }
    Some(())
}

/// A listener whose connections buffer little of what is not read.
pub(crate) fn listen() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(65_536).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(16).unwrap()
}

/// Runs one case, and says what was otherwise than in its row.
async fn check(case: Case, body: Bytes) -> Option<String> {
    let Case { what, script, large, outcome, status } = case;
    let listener = listen();
    let mut to = destination("legacy", &format!("http://{}/hooks", listener.local_addr().unwrap()));
    let drips = script.iter().any(|step| matches!(step, Drip(_)));
    to.timeout = if outcome == Timeout || drips { SHORT } else { LONG };
    to.connect_timeout = to.timeout;
    to.retry = retry_late();
    let mut sent = delivery(b"{}");
    if large {
        sent.body = body;
    }
    let connections = Arc::new(AtomicUsize::new(0));
    let backend = tokio::spawn(serve(listener, script, sent.body.len(), Arc::clone(&connections)));
    let gateway = Gateway::start([to]);
    gateway.forward(sent, "legacy");
    let record = tokio::time::timeout(LONG, async {
        while gateway.row().records.is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        gateway.row().records[0].clone()
    });
    let Ok(record) = record.await else { return Some(format!("{what}: no end")) };
    let progress = gateway.row().progress;
    let retried = matches!(progress, Progress::Waiting { attempts: 1, .. });
    let fine = (record.outcome, record.status) == (outcome.label(), status)
        && (progress == Progress::Delivered) == (outcome == Delivered)
        && retried == outcome.is_retried()
        && connections.load(Ordering::SeqCst) == 1
        && record.detail.chars().count() <= 4096
        && (status.is_some() || !record.detail.is_empty());
    backend.abort();
    (!fine).then(|| {
        let detail: String = record.detail.chars().take(100).collect();
        let connections = connections.load(Ordering::SeqCst);
        format!(
            "{what}: {} {:?} {progress:?}, {connections} connections, for {} {status:?}: {detail:?}",
            record.outcome,
            record.status,
            outcome.label()
        )
    })
}

/// The most memory that this process has had, in KiB.
fn memory_peak_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_misbehaviour_has_its_outcome_and_none_costs_memory() {
    if !is_alone("misbehaviours::every_misbehaviour_has_its_outcome_and_none_costs_memory", "true") {
        return;
    }
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", elsewhere.local_addr().unwrap());
    let body = Bytes::from(vec![b'x'; LARGE_BYTES]);
    let tables = [silence(), bodies(), heads(), interim(), statuses(&url), early()];
    let mut cases: Vec<_> = tables.into_iter().flatten().collect();
    let count = cases.len();
    assert!(count >= 75, "{count}");
    // A usual exchange of each kind has been done before memory is looked at.
    for warm in [
        answered("warm", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Hang, Delivered, Some(200)),
        large(
            "warm",
            vec![ReadAll, Send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()), Hang],
            Delivered,
            Some(200),
        ),
    ] {
        assert_eq!(check(warm, body.clone()).await, None);
    }
    let before = memory_peak_kib();
    let mut wrong = Vec::new();
    let mut running = JoinSet::new();
    while let Some(case) = cases.pop() {
        running.spawn(check(case, body.clone()));
        if running.len() >= 24 {
            wrong.extend(running.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(found) = running.join_next().await {
        wrong.extend(found.unwrap());
    }
    let grown = memory_peak_kib() - before;
    println!("{count} misbehaviours, peak of memory +{grown} KiB");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(grown < 64 << 10, "{grown} KiB");
    let nobody = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(nobody.is_err(), "a redirect was followed");
}
