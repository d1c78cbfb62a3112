//! Backends that take every connection and never answer: what hangs there delays no answer, and no other backend.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Backend, Reply};
use crate::limits::more_files;
use crate::sender::{Post, SECRET, Wire, body};
use crate::soak;
use crate::support::{Gateway, eventually};

const HANGING: usize = 10;
const SENDERS: usize = 4;
/// An answer comes within `ack_deadline`, 2.5 s; a machine that is busy with other tests may be behind with sending, too.
const IN_TIME: Duration = Duration::from_secs(5);

/// When each body came to the backend.
type Arrivals = Arc<Mutex<HashMap<Vec<u8>, Instant>>>;

fn sections(hanging: &TcpListener, healthy: &Backend) -> String {
    let name = |n: usize| format!("hanging-{n}");
    let source = |name: &str, to: &[String]| {
        format!(
            "[[source]]\nname = \"{name}\"\nprovider = \"hostwares\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = {to:?}\n"
        )
    };
    let hanging = hanging.local_addr().unwrap();
    let destinations = (0..HANGING).map(|n| {
        format!(
            "[[destination]]\nname = \"{}\"\nurl = \"http://{hanging}/\"\nconcurrency = 1024\ntimeout = \"10m\"\n",
            name(n)
        )
    });
    [
        source("slow", &(0..HANGING).map(name).collect::<Vec<_>>()),
        source("quick", &["healthy".to_owned()]),
        format!("[[destination]]\nname = \"healthy\"\nurl = \"{}\"\n", healthy.url()),
        destinations.collect(),
    ]
    .concat()
}

fn delivery(source: &str, id: &str) -> Post {
    Post::signed("hostwares", &format!("/webhooks/{source}"), "", "x", &body(id))
}

/// Sends at a steady rate: the 99th percentiles of the time to an answer, and to the backend.
fn p99(gateway: &Gateway, arrivals: &Arrivals, round: &str, each: usize) -> [Duration; 2] {
    // 500 a second of all senders in the long mode, and 80.
    let pause = Duration::from_millis(soak(50, 8) as u64);
    let sent: Vec<_> = thread::scope(|scope| {
        let send = |sender: usize| {
            let mut wire = Wire::open(gateway.listen).unwrap();
            let began = Instant::now();
            (0..each)
                .map(|n| {
                    let post = delivery("quick", &format!("{round}-{sender}-{n}"));
                    // From when it was due: a gateway that falls behind must not hide it.
                    let due = began + pause * u32::try_from(n).unwrap();
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    wire.write(&post.bytes());
                    assert_eq!(wire.read().unwrap().status, 200);
                    (post.body, due, due.elapsed())
                })
                .collect::<Vec<_>>()
        };
        let senders: Vec<_> = (0..SENDERS).map(|sender| scope.spawn(move || send(sender))).collect();
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    });
    let came = |body: &Vec<u8>| arrivals.lock().unwrap().get(body).copied();
    eventually("all are forwarded", || sent.iter().all(|(body, ..)| came(body).is_some()));
    let p99 = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    [
        p99(sent.iter().map(|(_, _, answered)| *answered).collect()),
        p99(sent.iter().map(|(body, due, _)| came(body).unwrap().duration_since(*due)).collect()),
    ]
}

#[test]
fn ten_thousand_hanging_forwards_delay_no_answer_and_no_other_backend() {
    more_files();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = listener.try_clone().unwrap();
    thread::spawn(move || listener.incoming().flatten().collect::<Vec<_>>());
    let arrivals = Arrivals::default();
    let noted = Arc::clone(&arrivals);
    let healthy = Backend::start(move |_, got| {
        noted.lock().unwrap().insert(got.body.clone(), Instant::now());
        Reply::Status(200)
    });
    let gateway = Gateway::start_with(&sections(&hanging, &healthy), |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    let (each, forwards) = (soak(40, 900), soak(50, 1_000));
    let [answered, came] = p99(&gateway, &arrivals, "before", each);
    for n in 0..forwards {
        assert_eq!(delivery("slow", &format!("slow-{n}")).send(gateway.listen).status, 200);
    }
    let in_flight = || {
        let status: serde_json::Value = serde_json::from_str(&gateway.admin_get("/api/v1/status").1).unwrap();
        let destinations = status["destinations"].as_array().unwrap().iter();
        let hanging = destinations.filter(|destination| destination["name"] != "healthy");
        hanging.map(|destination| destination["running"].as_u64().unwrap()).sum::<u64>()
    };
    let count = (HANGING * forwards) as u64;
    eventually("all of them hang", || in_flight() == count);
    let resident = gateway.resident_bytes() >> 20;
    let [answered_then, came_then] = p99(&gateway, &arrivals, "then", each);
    let grown = (gateway.resident_bytes() >> 20).saturating_sub(resident);
    println!(
        "{count} forwards hang: answers p99 {answered_then:?} ({answered:?} before), forwarded p99 {came_then:?} ({came:?} \
         before), {resident} MiB resident, {grown} MiB more after {} deliveries",
        SENDERS * each
    );
    assert_eq!(in_flight(), count);
    assert!(answered_then < IN_TIME && came_then < IN_TIME);
    assert!(resident < 300 && grown < 16);
}
