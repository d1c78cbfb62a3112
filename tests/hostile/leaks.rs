//! Nothing that is secret is to be read anywhere: a sweep over everything that the gateway writes and answers, at trace
//! level, while it is used, misused, and misconfigured.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustls::ClientConfig;

use crate::hidden::Hidden;
use crate::secrets::{
    OPERATOR, REFUSED, TOKEN, VARIABLES, VIEWER, WRONG_TOKEN, files, forged, genuine, malformed, refused,
    sections,
};
use crate::support::{Gateway, PATIENCE, countersign, eventually, write_config};
use crate::tls::{NAME, http2_client};
use crate::{http2, secrets};

/// Of what was refused, so many are looked at.
const REJECTIONS_MAX: usize = 25;

/// A backend that repeats the head of each request in its reason phrase, in a header and in its body; at `/garbage` as
/// something that is no HTTP.
fn echoing_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
    address
}

fn echo(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    reader.read_exact(&mut vec![0; length.unwrap_or(0)]).ok()?;
    let line = head.replace("\r\n", " | ");
    let answer = if head.contains(" /garbage") {
        head
    } else {
        let length = head.len();
        format!(
            "HTTP/1.1 500 {line}\r\nX-Echo: {line}\r\nRetry-After: {line}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{head}"
        )
    };
    stream.write_all(answer.as_bytes()).ok()
}

/// A gateway with all of these secrets, and everything that could be read of it.
struct Sweep {
    gateway: Gateway,
    hidden: Hidden,
    seen: Vec<(String, String)>,
    sections: String,
    /// Of a gateway over TLS.
    client: Option<Arc<ClientConfig>>,
}

impl Sweep {
    fn start(log_format: &str, over_tls: bool) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let path = directory.path().to_owned();
        let mut hidden = secrets::hidden();
        for (name, content) in files() {
            std::fs::write(path.join(name), content).unwrap();
        }
        let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let key = certified.signing_key.serialize_pem();
        std::fs::write(path.join("cert.pem"), certified.cert.pem()).unwrap();
        std::fs::write(path.join("key.pem"), &key).unwrap();
        hidden.add("TLS key", certified.signing_key.serialize_der());
        for line in key.lines().filter(|line| !line.starts_with('-')) {
            hidden.add("TLS key", line);
        }
        let backend = echoing_backend();
        // Nobody listens there any more.
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let tls = if over_tls { "listen.tls = { cert = \"cert.pem\", key = \"key.pem\" }\n" } else { "" };
        let sections = tls.to_owned() + &sections(backend, closed);
        write_config(&path, &sections);
        let gateway = Gateway::start_in(Arc::clone(&directory), |command| {
            let log = std::fs::File::options().append(true).open(path.join("log")).unwrap();
            let format = |argument| if argument == "json" { log_format.as_ref() } else { argument };
            let mut traced = Command::new(command.get_program());
            traced.args(command.get_args().map(format));
            traced.envs(VARIABLES).env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(log);
            *command = traced;
        });
        let client = over_tls.then(|| http2_client(certified.cert.der()));
        Self { gateway, hidden, seen: Vec::new(), sections, client }
    }

    fn see(&mut self, place: &str, text: impl AsRef<[u8]>) {
        self.seen.push((place.to_owned(), String::from_utf8_lossy(text.as_ref()).into_owned()));
    }

    /// Sends bytes as they are, with nothing behind them.
    fn send(&mut self, to: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        self.see("answer", &answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn admin(&mut self, request: &str, token: &str) {
        let authorization =
            if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
        let bytes = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{authorization}\r\n",
            self.gateway.admin
        );
        self.send(self.gateway.admin, bytes.as_bytes());
    }

    /// Runs a command to its end; its exit code.
    fn run(&mut self, arguments: &[&str]) -> Option<i32> {
        let admin = format!("http://{}", self.gateway.admin);
        let output = countersign()
            .args(arguments)
            .current_dir(self.gateway.directory())
            .envs(VARIABLES)
            .env("COUNTERSIGN_ADMIN", admin)
            .env("RUST_LOG", "trace")
            .output()
            .unwrap();
        self.see(&arguments.join(" "), output.stdout);
        self.see(&arguments.join(" "), output.stderr);
        output.status.code()
    }

    /// Looks for everything that is hidden; tells in how much.
    fn end(mut self) -> String {
        let id = self.gateway.id();
        let command_line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap();
        self.see("command line", command_line);
        self.gateway.signal("TERM");
        assert_eq!(self.gateway.wait(), Some(0));
        let log = self.gateway.log();
        self.see("log", &log);
        let bytes: usize = self.seen.iter().map(|(_, text)| text.len()).sum();
        let size =
            format!("{} texts, {} KiB, of them {} KiB of log", self.seen.len(), bytes >> 10, log.len() >> 10);
        // What is no secret is found: so would be what is one.
        let mut shown = Hidden::default();
        shown.add("name of a source", "standard-webhooks");
        shown.add("configuration", "countersign.toml");
        for place in ["log", "answer", "status", "command line"] {
            let mut texts = self.seen.iter().filter(|(seen, _)| seen == place);
            assert!(texts.any(|(_, text)| !shown.find(text).is_empty()), "nothing was seen of {place}");
        }
        for (place, text) in &self.seen {
            if let Some((what, form)) = self.hidden.find(text).first() {
                let line = text.lines().find(|line| line.contains(form)).unwrap_or(text);
                panic!("{what} in {place}, as {form}: {line}");
            }
        }
        size
    }
}

impl Sweep {
    fn look_at_admin(&mut self) {
        for (request, token) in [
            ("GET /metrics", String::new()),
            ("GET /readyz", String::new()),
            ("GET /api/v1/status", format!("Bearer {OPERATOR}")),
            ("GET /api/v1/status", format!("Bearer {VIEWER}")),
            ("GET /api/v1/status", format!("Bearer {WRONG_TOKEN}")),
            ("GET /api/v1/status", format!("Basic {OPERATOR}")),
            ("GET /api/v1/status", String::new()),
            ("POST /api/v1/reload", format!("Bearer {VIEWER}")),
            ("GET /api/v1/nothing", format!("Bearer {OPERATOR}")),
            ("BAD REQUEST", format!("Bearer {OPERATOR}")),
        ] {
            self.admin(request, &token);
        }
        self.admin(&format!("GET /api/v1/{OPERATOR}?token={VIEWER}"), OPERATOR);
        self.admin(&format!("GET /{OPERATOR} bad"), OPERATOR);
    }

    fn run_commands(&mut self) {
        let listen = format!("http://{}/webhooks/stripe", self.gateway.listen);
        for (arguments, code) in [
            (&["status"][..], Some(0)),
            (&["status", "--json"], Some(0)),
            (&["healthcheck"], Some(0)),
            (&["check", "--config", "countersign.toml"], Some(0)),
            (&["reload"], Some(0)),
            (&["reload", "--json"], Some(0)),
            (&["providers"], Some(0)),
            (&["providers", "stripe"], Some(0)),
            (&["store", "check", "--config", "countersign.toml"], Some(0)),
            (&["store", "check", "--path", "data", "--json"], Some(0)),
            (&["store", "backup", "--path", "data", "--to", "copy"], Some(0)),
            (&["store", "salvage", "--path", "data"], Some(74)),
            (&["run", "--config", "countersign.toml"], Some(74)),
            (&["run", "--help"], Some(0)),
            (&["status", "--help"], Some(0)),
            (&["send", "--help"], Some(0)),
            (&["send", "--provider", "github", "--to", &listen], Some(1)),
            (&["send", "--provider", "standard-webhooks", "--to", &listen], Some(64)),
            (&["send", "--provider", "stripe", "--to", "/nowhere"], Some(64)),
        ] {
            assert_eq!(self.run(arguments), code, "{arguments:?}: {:?}", self.seen.last());
        }
    }

    /// What was refused is explained without what it was refused for.
    fn look_at_rejections(&mut self) {
        assert_eq!(self.run(&["rejections", "list", "--limit", "1000", "--json"]), Some(0));
        let (_, list) = &self.seen[self.seen.len() - 2];
        let list: serde_json::Value = serde_json::from_str(list).unwrap();
        let ids =
            list["rejections"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned());
        let ids: Vec<_> = ids.take(REJECTIONS_MAX).collect();
        assert!(!ids.is_empty());
        for id in &ids {
            assert_eq!(self.run(&["rejections", "explain", id]), Some(0));
            self.admin(&format!("GET /api/v1/rejections/{id}"), &format!("Bearer {VIEWER}"));
            assert_eq!(self.run(&["rejections", "reverify", id]), Some(1));
            self.admin(&format!("POST /api/v1/rejections/{id}/reverify"), &format!("Bearer {VIEWER}"));
        }
        assert_eq!(self.run(&["rejections", "list"]), Some(0));
        assert_eq!(self.run(&["rejections", "reverify", "--all"]), Some(1));
        assert_eq!(self.run(&["handed-over", "stripe"]), Some(0));
        assert_eq!(self.run(&["handed-over", OPERATOR]), Some(1));
        for (request, token) in [
            ("GET /api/v1/rejections?source=stripe&cursor=x", OPERATOR),
            ("GET /api/v1/rejections", WRONG_TOKEN),
            ("POST /api/v1/rejections/reverify?limit=1", VIEWER),
            ("POST /api/v1/sources/stripe/handed-over", VIEWER),
            ("POST /api/v1/sources/stripe/handed-over", OPERATOR),
        ] {
            self.admin(request, &format!("Bearer {token}"));
        }
    }

    fn misconfigure(&mut self) {
        let sections = self.sections.clone();
        for text in refused(&sections) {
            self.gateway.rewrite(&text);
            assert_eq!(self.run(&["check", "--config", "countersign.toml"]), Some(78), "{text}");
            assert_eq!(self.run(&["reload"]), Some(78));
            assert_eq!(self.run(&["run", "--config", "countersign.toml"]), Some(78));
        }
        self.gateway.rewrite(&sections);
    }
}

#[test]
fn no_secret_is_to_be_read_anywhere() {
    let mut sweep = Sweep::start("json", false);
    let listen = sweep.gateway.listen;
    for (post, signature) in genuine("genuine") {
        if let Some(signature) = signature {
            sweep.hidden.add("good signature", signature);
        }
        let answer = sweep.send(listen, &post.with("Connection", "close").bytes());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    for post in forged(&mut sweep.hidden) {
        let status = if post.target.ends_with("observed") { 200 } else { 401 };
        let answer = sweep.send(listen, &post.with("Connection", "close").bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    for bytes in malformed() {
        let answer = sweep.send(listen, &bytes);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{}: {answer}", String::from_utf8_lossy(&bytes));
    }
    sweep.look_at_admin();
    sweep.look_at_rejections();
    sweep.run_commands();
    sweep.misconfigure();
    for outcome in ["retryable_status", "invalid_response", "connect_failed"] {
        eventually(outcome, || sweep.gateway.log().contains(outcome));
    }
    for line in sweep.gateway.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    }
    println!("{}", sweep.end());
}

#[test]
fn no_secret_is_to_be_read_over_tls_and_http2_either() {
    let mut sweep = Sweep::start("text", true);
    let (listen, client) = (sweep.gateway.listen, sweep.client.clone().unwrap());
    for (post, signature) in genuine("genuine") {
        if let Some(signature) = signature {
            sweep.hidden.add("good signature", signature);
        }
        assert_eq!(http2::send(listen, &client, &post), http2::Answer::Status(200));
    }
    for post in forged(&mut sweep.hidden) {
        let status = if post.target.ends_with("observed") { 200 } else { 401 };
        assert_eq!(http2::send(listen, &client, &post), http2::Answer::Status(status));
        let bad = [
            post.clone().with("connection", TOKEN),
            post.clone().with("x y", TOKEN),
            post.with("X-Upper", TOKEN),
        ];
        for post in bad {
            assert_ne!(http2::send(listen, &client, &post), http2::Answer::Status(200));
        }
    }
    // In the clear, where TLS is spoken.
    for bytes in malformed() {
        sweep.send(listen, &bytes);
    }
    sweep.look_at_admin();
    for key in
        [format!("-----BEGIN PRIVATE KEY-----\n{REFUSED}\n-----END PRIVATE KEY-----\n"), REFUSED.to_owned()]
    {
        std::fs::write(sweep.gateway.directory().join("key.pem"), key).unwrap();
        assert_eq!(sweep.run(&["check", "--config", "countersign.toml"]), Some(78));
        assert_eq!(sweep.run(&["reload"]), Some(78));
    }
    assert_eq!(sweep.run(&["status"]), Some(0));
    println!("{}", sweep.end());
}
