//! Promise: a sender in sync mode gets its backend's answer when that comes in time, and the ack when it does not; it is one
//! delivery either way.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use crate::backend::{Backend, Reply};
use crate::sender::{Answer, Post, SECRET};
use crate::support::{Gateway, eventually};

const YES: &str = "HTTP/1.1 201 Made\r\nContent-Type: application/json\r\nX-Order: 7\r\nSet-Cookie: a=b\r\n\
    Server: legacy/1.0\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n";
const NO: &str = "HTTP/1.1 422 No\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno";

/// A source in sync mode, whose ack is a 202.
fn sections(url: &str, deadline: &str, destination: &str) -> String {
    format!(
        "listen.ack_deadline = \"4900ms\"\nlimits.drain = \"4s\"\n\
         [[source]]\nname = \"sync\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         mode = \"sync\"\nsync_deadline = \"{deadline}\"\nack = {{ status = 202, body = \"later\" }}\nmethods = [\"POST\", \"HEAD\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{url}\"\nretry = {{ initial = \"100ms\" }}\n{destination}\n"
    )
}

fn start(backend: &Backend, deadline: &str) -> Gateway {
    Gateway::start(&sections(&backend.url(), deadline, ""))
}

fn post(id: &str) -> Post {
    Post::signed("github", "/webhooks/sync", id, "push", id.as_bytes())
}

fn send(gateway: &Gateway, id: &str) -> (u16, String) {
    said(&post(id).send(gateway.listen))
}

fn said(answer: &Answer) -> (u16, String) {
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

fn answers(gateway: &Gateway, outcome: &str) -> f64 {
    let series = format!("countersign_ingest_sync_answers_total{{outcome=\"{outcome}\",source=\"sync\"}}");
    gateway.metric(&series).unwrap()
}

fn later() -> (u16, String) {
    (202, "later".to_owned())
}

/// What a backend waits for before it answers.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }

    /// A backend that answers when the gate is open.
    fn backend(&self, answer: &'static str) -> Backend {
        let gate = self.clone();
        Backend::start(move |_, _| {
            gate.pass();
            Reply::Raw(answer)
        })
    }
}

fn settled(gateway: &Gateway, state: &str, count: f64) {
    let series = format!("countersign_forward_settled_total{{destination=\"legacy\",state=\"{state}\"}}");
    gateway.eventually_metric(&series, count);
}

#[test]
fn an_answer_in_time_is_passed_through_and_duplicates_get_the_same() {
    let backend = Backend::start(|_, _| Reply::Raw(YES));
    let gateway = start(&backend, "4s");
    let answer = post("1").send(gateway.listen);
    assert_eq!(said(&answer), (201, "yes".to_owned()));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-order"), Some("7"));
    for removed in ["set-cookie", "server", "transfer-encoding"] {
        assert_eq!(answer.header(removed), None, "{removed}");
    }
    let again = post("1").send(gateway.listen);
    assert_eq!((again.status, &again.body, again.header("x-order")), (201, &answer.body, Some("7")));
    assert_eq!(answers(&gateway, "passed"), 1.0);
    assert_eq!(answers(&gateway, "repeated"), 1.0);
    settled(&gateway, "delivered", 1.0);
    assert_eq!(backend.got().len(), 1);
    // It was in the books before the answer was there.
    assert_eq!(gateway.metric("countersign_conservation_imbalance{equation=\"requests\"}"), Some(0.0));
}

#[test]
fn a_late_answer_is_the_ack_and_the_same_forward_carries_on() {
    let gate = Gate::default();
    let backend = gate.backend(YES);
    let gateway = start(&backend, "300ms");
    assert_eq!(send(&gateway, "1"), later());
    assert_eq!(answers(&gateway, "late"), 1.0);
    assert_eq!(gateway.metric("countersign_forward_pending{destination=\"legacy\"}"), Some(1.0));
    gate.open();
    settled(&gateway, "delivered", 1.0);
    assert_eq!(send(&gateway, "1"), later(), "the same that the first was told");
    let got = backend.got();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].header("countersign-attempt"), Some("1"));
}

#[test]
fn concurrent_duplicates_wait_for_the_first_and_get_its_answer() {
    let gate = Gate::default();
    let backend = gate.backend(YES);
    let gateway = start(&backend, "4s");
    let found: Vec<_> = thread::scope(|scope| {
        let copies: Vec<_> = (0..8).map(|_| scope.spawn(|| send(&gateway, "1"))).collect();
        let duplicates = "countersign_ingest_requests_total{outcome=\"duplicate\",source=\"sync\"}";
        gateway.eventually_metric(duplicates, 7.0);
        gate.open();
        copies.into_iter().map(|copy| copy.join().unwrap()).collect()
    });
    assert!(found.iter().all(|found| *found == (201, "yes".to_owned())), "{found:?}");
    assert_eq!(backend.got().len(), 1);
    assert_eq!((answers(&gateway, "passed"), answers(&gateway, "repeated")), (1.0, 7.0));
}

#[test]
fn a_final_refusal_is_passed_and_a_repetition_asks_the_backend_again() {
    let backend = Backend::start(|number, _| Reply::Raw(if number == 0 { NO } else { YES }));
    let gateway = start(&backend, "4s");
    assert_eq!(send(&gateway, "1"), (422, "no".to_owned()));
    settled(&gateway, "dead", 1.0);
    assert_eq!(send(&gateway, "1"), (201, "yes".to_owned()));
    assert_eq!(send(&gateway, "1"), (201, "yes".to_owned()));
    settled(&gateway, "delivered", 1.0);
    assert_eq!(backend.got().len(), 2);
    assert_eq!((answers(&gateway, "passed"), answers(&gateway, "repeated")), (2.0, 1.0));
}

#[test]
fn what_is_tried_again_is_the_ack_at_once() {
    let backend = Backend::start(|number, _| Reply::Status(if number == 0 { 503 } else { 200 }));
    let gateway = start(&backend, "4s");
    assert_eq!(send(&gateway, "1"), later());
    assert_eq!(answers(&gateway, "failed"), 1.0);
    settled(&gateway, "delivered", 1.0);
    assert_eq!(backend.got().len(), 2);
}

#[test]
fn a_lane_that_attempts_nothing_is_the_ack_at_once() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let gateway =
        Gateway::start(&sections(&nobody, "4s", "breaker = { failures = 1, probe_after = \"5m\" }"));
    assert_eq!(send(&gateway, "1"), later());
    assert_eq!(answers(&gateway, "failed"), 1.0);
    gateway.eventually_metric("countersign_lane_state{destination=\"legacy\",state=\"broken\"}", 1.0);
    assert_eq!(send(&gateway, "2"), later());
    assert_eq!(answers(&gateway, "not_tried"), 1.0);
    assert_eq!(gateway.metric("countersign_forward_pending{destination=\"legacy\"}"), Some(2.0));
}

#[test]
fn whatever_a_backend_says_the_sender_is_answered_well_and_in_time() {
    const LARGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n";
    let body = String::leak(format!("{LARGE}{}", "x".repeat(70_000)));
    let bare = (204, String::new());
    let cases: [(Reply, (u16, String)); 9] = [
        (Reply::Raw("HTTP/1.1 204 X\r\nX-A: b\r\n\r\n"), bare),
        (Reply::Raw("HTTP/1.1 302 X\r\nLocation: http://inside/\r\nContent-Length: 0\r\n\r\n"), later()),
        (Reply::Last("HTTP/1.1 304 X\r\n\r\n"), later()),
        (Reply::Raw(body), later()),
        (Reply::Last("HTTP/1.1 404 X\r\nContent-Length: 9\r\n\r\nbroken"), later()),
        (Reply::Last("not HTTP at all\r\n\r\n"), later()),
        (Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow"), later()),
        (Reply::Hang, later()),
        (Reply::Raw("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"), (404, String::new())),
    ];
    let replies = cases.clone().map(|(reply, _)| reply);
    let backend = Backend::start(move |_, got| {
        let number: usize = got.header("countersign-delivery-id").unwrap().parse().unwrap();
        replies[number % replies.len()]
    });
    let gateway = start(&backend, "1s");
    for (number, (reply, expected)) in cases.into_iter().enumerate() {
        let answer = post(&number.to_string()).send(gateway.listen);
        assert_eq!(said(&answer), expected, "{reply:?}");
    }
    let head = Post { method: "HEAD", ..post("9") };
    assert_eq!(said(&head.send(gateway.listen)), (204, String::new()));
    assert_eq!(gateway.metric("countersign_ingest_late_total{source=\"sync\"}"), Some(0.0));
}

#[test]
fn a_sender_that_hangs_up_finds_the_answer_when_it_comes_back() {
    let gate = Gate::default();
    let backend = gate.backend(YES);
    let gateway = start(&backend, "4s");
    let mut sender = TcpStream::connect(gateway.listen).unwrap();
    sender.write_all(&post("1").bytes()).unwrap();
    backend.eventually_got(1);
    drop(sender);
    gate.open();
    eventually("the answer is kept", || answers(&gateway, "passed") == 1.0);
    assert_eq!(send(&gateway, "1"), (201, "yes".to_owned()));
    assert_eq!(backend.got().len(), 1);
}

#[test]
fn a_crash_forgets_the_answer_and_never_the_delivery() {
    let gate = Gate::default();
    let backend = gate.backend(YES);
    let gateway = start(&backend, "4s");
    let mut sender = TcpStream::connect(gateway.listen).unwrap();
    sender.write_all(&post("1").bytes()).unwrap();
    backend.eventually_got(1);
    let gateway = gateway.kill_and_restart();
    gate.open();
    settled(&gateway, "delivered", 1.0);
    assert_eq!(send(&gateway, "1"), later());
    assert_eq!(answers(&gateway, "forgotten"), 1.0);
}

#[test]
fn a_drain_does_not_wait_for_the_backend_longer_than_it_may() {
    let backend = Backend::start(|_, _| Reply::Hang);
    let mut gateway = start(&backend, "4s");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| said(&post("1").send(gateway.listen)));
        backend.eventually_got(1);
        gateway.signal("TERM");
        assert_eq!(waiting.join().unwrap(), later());
    });
    assert_eq!(gateway.wait(), Some(0));
}
