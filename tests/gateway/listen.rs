//! Promise: whoever develops a receiver sees each delivery of a provider, and why one is refused, with one command.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::backend::{Backend, Reply};
use crate::sender::{Post, SECRET};
use crate::support::{countersign, eventually, run};

/// A running `listen`, and what it has printed.
struct Listening {
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Listening {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let printed = Arc::<Mutex<String>>::default();
        let kept = Arc::clone(&printed);
        thread::spawn(move || {
            for line in stdout.lines() {
                *kept.lock().unwrap() += &format!("{}\n", line.unwrap());
            }
        });
        Self { child, printed }
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// What follows `before` up to the next blank, once it has been printed.
    #[track_caller]
    fn eventually_prints(&self, before: &str) -> String {
        eventually(&format!("{before:?} is printed"), || {
            self.printed().split_once(before).is_some_and(|(_, after)| after.contains('\n'))
        });
        self.printed().split_once(before).unwrap().1.split_whitespace().next().unwrap_or("").to_owned()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn listen_prints_deliveries_explains_refusals_and_ends_without_a_trace() {
    let backend = Backend::start(|_, got| {
        let seen_once = got.header("countersign-attempt") == Some("1");
        Reply::Status(if seen_once && got.header("countersign-event") == Some("ssl.issued") {
            503
        } else {
            200
        })
    });
    let temporary = tempfile::tempdir().unwrap();
    let to = format!("http://{}/in?a=1", backend.address);
    let mut listening = Listening::start(countersign().env("TMPDIR", temporary.path()).args([
        "listen",
        "--provider",
        "hostwares",
        "--secret",
        SECRET,
        "--forward-to",
        &to,
    ]));
    let url = listening.eventually_prints("for hostwares    ");
    let send = |secret: &str, event: &str, id: &str| {
        let arguments =
            ["--provider", "hostwares", "--secret", secret, "--to", &url, "--event", event, "--id", id];
        run(&[&["send"], arguments.as_slice()].concat()).status.code()
    };
    assert_eq!(send(SECRET, "credits.low", "evt_1"), Some(0));
    listening.eventually_prints("evt_1");
    let got = backend.eventually_got(1);
    assert_eq!((got[0].target.as_str(), got[0].header("x-hostwares-event")), ("/in?a=1", None));
    assert!(String::from_utf8_lossy(&got[0].body).contains("\"remaining\":93"), "{got:?}");
    let line = listening.printed().lines().find(|line| line.contains("evt_1")).unwrap().to_owned();
    assert!(line.contains("credits.low") && line.contains(" 200 OK in "), "{line}");

    assert_eq!(send(SECRET, "credits.low", "evt_1"), Some(0));
    listening.eventually_prints("a duplicate");
    assert_eq!(send(SECRET, "ssl.issued", "evt_2"), Some(0));
    listening.eventually_prints("(attempt 2)");
    assert!(listening.printed().contains("503 Service Unavailable"), "{}", listening.printed());

    assert_eq!(send(&format!("{SECRET} "), "credits.low", "evt_3"), Some(1));
    listening.eventually_prints("refused: signature mismatch");
    listening.eventually_prints("to do: ");
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().parse().unwrap();
    assert_eq!(Post::signed("hostwares", "/elsewhere", "evt_4", "x", b"{}").send(address).status, 404);
    listening.eventually_prints("the URL has to end in /webhooks/hostwares");

    let id = listening.child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    assert_eq!(listening.child.wait().unwrap().code(), Some(0));
    listening.eventually_prints("accepted 2, duplicates 1, refused 2, handshakes 0; none is waiting");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn listen_says_what_is_wrong_with_its_arguments() {
    let refused = |arguments: &[&str], text: &str| {
        let output = run(&[&["listen"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(text), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    };
    let to = "http://127.0.0.1:3000";
    refused(&["--provider", "hostwears", "--forward-to", to], "countersign providers");
    refused(&["--provider", "hostwares", "--secret", SECRET, "--forward-to", "localhost"], "--forward-to");
    refused(&["--provider", "hostwares", "--forward-to", to], "secrets");
    refused(&["--provider", "standard-webhooks", "--secret", "hunter2", "--forward-to", to], "secrets[0]");
}

#[test]
fn send_fires_what_the_provider_would_send() {
    let backend = Backend::accepting();
    let to = format!("http://{}/", backend.address);
    let send = |provider: &str, event: &[&str]| {
        let arguments = ["send", "--provider", provider, "--secret", SECRET, "--to", &to, "--id", "id-1"];
        let output = run(&[arguments.as_slice(), event].concat());
        assert_eq!(output.status.code(), Some(0), "{provider}: {}", String::from_utf8_lossy(&output.stderr));
    };
    send("github", &["--event", "workflow_run"]);
    send("owlette", &[]);
    send("stripe", &["--event", "no.such.event"]);
    let got = backend.eventually_got(3);
    let body = |number: usize| serde_json::from_slice::<serde_json::Value>(&got[number].body).unwrap();
    assert_eq!(
        (body(0)["workflow_run"]["conclusion"].as_str(), got[0].header("x-github-event")),
        (Some("success"), Some("workflow_run"))
    );
    assert_eq!(
        (body(1)["event"].as_str(), body(1)["id"].as_str()),
        (Some("version.published"), Some("id-1"))
    );
    assert_eq!(
        body(2),
        serde_json::json!({"id": "id-1", "type": "no.such.event", "sent_by": "countersign send"})
    );
    let listed = run(&["providers", "ownstak"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("deployment_in_progress"));
}
