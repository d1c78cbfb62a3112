//! Reloads under load, good and bad files in turn: no valid request is refused, a retired secret is, and a bad file
//! changes nothing.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use countersign::clock::Clock;

use crate::backend::{Backend, Reply};
use crate::ending::Ending;
use crate::sender::{Answer, Post, SECRET, Wire, body, exchange};
use crate::soak;
use crate::support::{Gateway, countersign, eventually};

const A: &str = "whsec_YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=";
const B: &str = "whsec_YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI=";

/// Stripe keeps its secret, GitHub's are rotated.
fn sections(backend: &Backend, rotating: &[&str]) -> String {
    let secrets: Vec<_> = rotating.iter().map(|secret| format!("{{ value = \"{secret}\" }}")).collect();
    format!(
        "[[source]]\nname = \"stripe\"\nprovider = \"stripe\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         [[source]]\nname = \"github\"\nprovider = \"github\"\nsecrets = [{}]\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        secrets.join(", "),
        backend.url(),
    )
}

/// Files that are no configuration, and what is to be said of each.
fn bad(backend: &Backend, number: usize) -> (String, &'static str) {
    let good = sections(backend, &[A, B]);
    match number % 5 {
        0 => (good.replace("name = \"legacy\"", "name = \"legacy"), "invalid basic string"),
        1 => (good.replace(SECRET, ""), "secret"),
        2 => (good.replace("provider", "porvider"), "did you mean `provider`?"),
        3 => (format!("listen.tls = {{ cert = \"gone.pem\", key = \"gone.pem\" }}\n{good}"), "gone.pem"),
        _ => (good.replace("to = [\"legacy\"]", "to = [\"elsewhere\"]"), "elsewhere"),
    }
}

fn post_reload(gateway: &Gateway) -> Answer {
    let request =
        format!("POST /api/v1/reload HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", gateway.admin);
    exchange(gateway.admin, request.as_bytes()).unwrap()
}

fn reloads(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("countersign_config_reloads_total{{outcome=\"{outcome}\"}}")).unwrap()
}

/// Has the file that stands there loaded, and sees to it that log, metric and, if there is one, answer tell what came of it.
fn reload(gateway: &Gateway, by_signal: bool, refused_for: Option<&str>) {
    let outcome = if refused_for.is_some() { "refused" } else { "succeeded" };
    let (before, logged) = (reloads(gateway, outcome), gateway.log().len());
    if by_signal {
        gateway.signal("HUP");
        eventually("it is counted", || reloads(gateway, outcome) == before + 1.0);
    } else {
        let answer = post_reload(gateway);
        let text = String::from_utf8(answer.body.clone()).unwrap();
        match refused_for {
            None => assert_eq!(
                (answer.status, &*text),
                (200, r#"{"reloaded":true,"warnings":[],"needs_restart":[]}"#)
            ),
            Some(reason) => {
                assert_eq!(answer.status, 422, "{text}");
                assert_eq!(answer.header("content-type"), Some("application/problem+json"));
                assert!(text.contains(reason), "{reason} is not in {text}");
                assert!([SECRET, A, B].iter().all(|secret| !text.contains(secret)), "a secret in {text}");
            }
        }
        assert_eq!(reloads(gateway, outcome), before + 1.0);
    }
    let success = f64::from(u8::from(refused_for.is_none()));
    assert_eq!(gateway.metric("countersign_config_last_reload_success"), Some(success));
    let said = refused_for.unwrap_or("configuration reloaded");
    eventually("it is logged", || gateway.log()[logged..].contains(&said.replace('"', "\\\"")));
}

/// What the senders share.
struct Load {
    to: SocketAddr,
    next: AtomicUsize,
    stop: AtomicBool,
    /// Which of GitHub's secrets is in use; held while a request is signed with it and until that has been answered.
    rotating: Mutex<&'static str>,
    acked: Mutex<Vec<String>>,
}

impl Load {
    fn id(&self) -> String {
        format!("r-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn ack(&self, id: String) {
        self.acked.lock().unwrap().push(id);
    }

    fn rotated(&self, id: &str, secret: &str) -> Answer {
        let now = Clock::system().now();
        Post::signed_at("github", "/webhooks/github", id, "push", &body(id), secret, now).send(self.to)
    }

    fn steady(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.id();
            let answer = Post::signed("stripe", "/webhooks/stripe", &id, "x", &body(&id)).send(self.to);
            assert_eq!(answer.status, 200, "{id}");
            self.ack(id);
        }
    }

    fn on_one_connection(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut wire = Wire::open(self.to).unwrap();
            // The thousandth request of a connection would be its last.
            for _ in 0..900 {
                let id = self.id();
                wire.write(&Post::signed("stripe", "/webhooks/stripe", &id, "x", &body(&id)).bytes());
                let answer = wire.read().expect("a reload closes no connection");
                assert_eq!((answer.status, answer.header("connection")), (200, None), "{id}");
                self.ack(id);
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    fn with_the_secret_in_use(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.id();
            let secret = self.rotating.lock().unwrap();
            assert_eq!(self.rotated(&id, *secret).status, 200, "{id}");
            drop(secret);
            self.ack(id);
        }
    }
}

#[test]
fn a_hundred_reloads_under_load_refuse_no_valid_request_and_retire_secrets_at_once() {
    let wanted = soak(100, 1000);
    let backend = Backend::accepting();
    let gateway = Gateway::start_with(&sections(&backend, &[A]), |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    let load = Load {
        to: gateway.listen,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        rotating: Mutex::new(A),
        acked: Mutex::default(),
    };
    let (mut done, mut retired) = (0, 0);
    thread::scope(|scope| {
        let _ending = Ending(&load.stop);
        scope.spawn(|| load.steady());
        scope.spawn(|| load.on_one_connection());
        scope.spawn(|| load.on_one_connection());
        scope.spawn(|| load.with_the_secret_in_use());
        let mut once = |secrets: Option<&[&str]>| {
            let (text, reason) = match secrets {
                Some(secrets) => (sections(&backend, secrets), None),
                None => {
                    let (text, reason) = bad(&backend, done / 4);
                    (text, Some(reason))
                }
            };
            gateway.rewrite(&text);
            reload(&gateway, done % 3 == 0, reason);
            done += 1;
            done
        };
        let (mut old, mut new) = (A, B);
        // Both are valid, the senders change over, the old one is retired; bad files come in between.
        while once(None) < wanted {
            once(Some(&[old, new]));
            *load.rotating.lock().unwrap() = new;
            once(None);
            once(Some(&[new]));
            let late = load.id();
            assert_eq!(load.rotated(&late, old).status, 401, "the retired secret");
            retired += 1;
            (old, new) = (new, old);
        }
    });
    let acked = load.acked.into_inner().unwrap();
    assert!(acked.len() >= 4 * retired, "the senders were at it throughout");
    let rejected = |source| {
        let series = format!("countersign_ingest_requests_total{{outcome=\"rejected\",source=\"{source}\"}}");
        gateway.metric(&series).unwrap()
    };
    assert_eq!((rejected("stripe"), rejected("github")), (0.0, retired as f64));
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let got: HashSet<Vec<u8>> = backend.got().into_iter().map(|got| got.body).collect();
    let lost: Vec<_> = acked.iter().filter(|id| !got.contains(&body(id))).collect();
    assert!(lost.is_empty(), "{lost:?}");
    println!("{done} reloads, {} acknowledged, 0 refused, 0 lost; {retired} secrets retired", acked.len());
}

/// Each reload used to fill a source's rate up again.
#[test]
fn a_reload_gives_back_no_rate_and_closes_no_breaker() {
    let backend = Backend::start(|_, _| Reply::Status(500));
    let sections = sections(&backend, &[A])
        .replace("provider = \"stripe\"", "provider = \"stripe\"\nrate = \"3/h\"")
        + "breaker.failures = 2\nretry.initial = \"50ms\"\nretry.max = \"50ms\"\n";
    let gateway = Gateway::start(&sections);
    let send =
        |id: &str| Post::signed("stripe", "/webhooks/stripe", id, "x", &body(id)).send(gateway.listen).status;
    assert_eq!(["d-1", "d-2", "d-3", "d-4"].map(send), [200, 200, 200, 429]);
    let broken = "countersign_lane_state{destination=\"legacy\",state=\"broken\"}";
    gateway.eventually_metric(broken, 1.0);
    gateway.rewrite(&sections.replace(A, B));
    reload(&gateway, false, None);
    assert_eq!(send("d-5"), 429);
    assert_eq!(gateway.metric(broken), Some(1.0));
}

#[test]
fn the_command_prints_what_check_prints_and_needs_an_operator() {
    let backend = Backend::accepting();
    let tokens = "admin.tokens = [{ name = \"ops\", role = \"operator\", value = \"a-token-for-operators\" }, \
                  { name = \"eyes\", role = \"viewer\", value = \"a-token-for-viewers\" }]\n";
    let good = format!("{tokens}{}", sections(&backend, &[A]));
    let gateway = Gateway::start(&good);
    let admin = format!("http://{}", gateway.admin);
    let run = |token: &str, more: &[&str]| {
        let arguments = ["reload", "--admin", &admin, "--token", token];
        countersign().args(arguments).args(more).output().unwrap()
    };
    let code_and_text = |output: Output| {
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = code_and_text(run("a-token-for-operators", &[]));
    assert_eq!((code, &*text), (Some(0), "reloaded\n"));
    let (code, text) = code_and_text(run("a-token-for-viewers", &[]));
    assert!(code == Some(1) && text.contains("operator"), "{text}");
    assert_eq!(run("nobody's", &[]).status.code(), Some(1));

    gateway.rewrite(&format!("limits.connections = 5\nlimits.drain = \"7s\"\n{good}"));
    let (code, text) = code_and_text(run("a-token-for-operators", &[]));
    assert_eq!(code, Some(0));
    assert!(
        text.starts_with("limits differs from what is running; takes effect at the next start only"),
        "{text}"
    );
    gateway.rewrite(&format!("limits.drain = \"7s\"\n{good}"));
    let document = run("a-token-for-operators", &["--json"]);
    let document: serde_json::Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document["needs_restart"], serde_json::json!([]), "the time for a drain is in force");

    gateway.rewrite(&good.replace("provider", "porvider"));
    let checked = countersign().arg("check").arg("--config").arg(gateway.config_path()).output().unwrap();
    let refused = run("a-token-for-operators", &[]);
    assert_eq!(refused.status.code(), Some(78));
    assert_eq!(refused.stderr, checked.stderr);
    let refused = run("a-token-for-operators", &["--json"]);
    let problem: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((refused.status.code(), &problem["status"]), (Some(78), &422.into()));

    let nobody = countersign().args(["reload", "--admin", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(69));
}

/// A file that could not be read at once held up its reload, and all after it, without a word to anybody.
#[test]
fn a_file_that_cannot_be_read_is_a_refused_reload_and_the_next_is_put_in_force() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&sections(&backend, &[A]));
    let file = gateway.config_path();
    std::fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let answers: Vec<_> = thread::scope(|scope| {
        let asking = [(); 3].map(|()| scope.spawn(|| post_reload(&gateway)));
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    for answer in answers {
        let text = String::from_utf8(answer.body).unwrap();
        assert!(answer.status == 422 && text.contains("could not be read within 10 s"), "{text}");
    }
    assert_eq!((reloads(&gateway, "refused"), reloads(&gateway, "succeeded")), (3.0, 0.0));
    assert!(gateway.log().contains("could not be read within 10 s"));
    let post = |id: &str| Post::signed("stripe", "/webhooks/stripe", id, "x", &body(id));
    assert_eq!(post("d-1").send(gateway.listen).status, 200);

    // Whoever still reads it gets what makes no configuration, and the next a good one.
    std::fs::write(&file, "nonsense = 1").unwrap();
    std::fs::remove_file(&file).unwrap();
    gateway.rewrite(&sections(&backend, &[B]));
    reload(&gateway, false, None);
    let signed = |secret: &str| {
        let now = Clock::system().now();
        Post::signed_at("github", "/webhooks/github", secret, "x", b"{}", secret, now)
            .send(gateway.listen)
            .status
    };
    assert_eq!((signed(A), signed(B)), (401, 200));
}
