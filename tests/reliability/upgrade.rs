//! One gateway follows another on one data directory, under load, and no sender notices.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::backend::{Backend, Reply};
use crate::ending::Ending;
use crate::handover::activate;
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, PATIENCE, eventually};

const TARGET: &str = "/webhooks/stripe";
/// How often in each test one gateway follows another.
fn upgrades() -> usize {
    crate::soak(10, 100)
}

/// Senders that write down what they were told.
#[derive(Default)]
struct Load {
    next: AtomicUsize,
    stop: AtomicBool,
    acked: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
    /// Requests that were sent again because a kept connection had been closed between two of them.
    reopened: AtomicUsize,
}

impl Load {
    /// Sends until told to stop, on a connection per request, or on one that is kept. Every tenth delivery is sent
    /// twice.
    fn run(&self, to: SocketAddr, keep: bool) {
        let mut kept = None;
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let id = format!("d-{number}");
            let post = signed(&id);
            let copies = if number.is_multiple_of(10) { 2 } else { 1 };
            let sent = (0..copies).try_for_each(|_| self.send(&post, to, &mut kept));
            match sent {
                Ok(()) => self.acked.lock().unwrap().push(id),
                Err(why) => self.failed.lock().unwrap().push(format!("{id}: {why}")),
            }
            if !keep {
                kept = None;
            }
            // A steady load, not all that the machine can bear.
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// As every HTTP client does: once more when a connection that was kept turns out to have been closed.
    fn send(&self, post: &Post, to: SocketAddr, kept: &mut Option<TcpStream>) -> Result<(), String> {
        if let Some(stream) = kept.take() {
            match exchange(stream, post)? {
                Some(stream) => {
                    *kept = stream;
                    return Ok(());
                }
                None => drop(self.reopened.fetch_add(1, Ordering::Relaxed)),
            }
        }
        let stream = TcpStream::connect(to).map_err(|error| format!("connect: {error}"))?;
        *kept = exchange(stream, post)?.ok_or("closed without an answer")?;
        Ok(())
    }
}

fn signed(id: &str) -> Post {
    Post::signed("stripe", TARGET, id, "x", &body(id))
}

/// Whether the request was answered with 200, and the connection when it may be used again. `None` when it was closed
/// before the first byte of an answer.
fn exchange(mut stream: TcpStream, post: &Post) -> Result<Option<Option<TcpStream>>, String> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Whether it is closed shows when reading.
    let _ = stream.write_all(&post.bytes());
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => answer.extend_from_slice(&buffer[..read]),
            Ok(_) | Err(_) if answer.is_empty() => return Ok(None),
            cut => return Err(format!("{cut:?} after {:?}", String::from_utf8_lossy(&answer))),
        }
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    if !answer.starts_with("http/1.1 200") {
        return Err(answer);
    }
    Ok(Some((!answer.contains("connection: close")).then_some(stream)))
}

/// A backend that takes a moment, and notes when it is given a webhook while it still works on the same one.
fn watchful_backend() -> (Backend, Arc<AtomicUsize>) {
    let (working, twice_at_once) = (Mutex::new(HashSet::new()), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&twice_at_once);
    let backend = Backend::start(move |number, got| {
        let id = got.header("webhook-id").unwrap().to_owned();
        if !working.lock().unwrap().insert(id.clone()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Some take so long that there are always attempts in progress when one gateway follows another.
        thread::sleep(Duration::from_millis(if number.is_multiple_of(10) { 300 } else { 20 }));
        working.lock().unwrap().remove(&id);
        Reply::Status(200)
    });
    (backend, twice_at_once)
}

/// Puts load on a gateway while `upgrade` has others follow it, one after the other, and judges what came of it.
/// Returns the last gateway, and the figures.
fn under_load(
    backend: &Backend,
    mut gateway: Gateway,
    mut upgrade: impl FnMut(Gateway) -> Gateway,
) -> (Gateway, String) {
    let load = Load::default();
    let listen = gateway.listen;
    gateway = thread::scope(|scope| {
        for sender in 0..6 {
            let load = &load;
            scope.spawn(move || load.run(listen, sender % 2 == 0));
        }
        let _ending = Ending(&load.stop);
        let acked = || load.acked.lock().unwrap().len();
        for _ in 0..upgrades() {
            let before = acked();
            eventually("there is load", || acked() >= before + 100);
            gateway = upgrade(gateway);
            assert_eq!(gateway.listen, listen);
        }
        let before = acked();
        eventually("the last one serves", || acked() >= before + 100);
        gateway
    });
    let (acked, failed) = (load.acked.into_inner().unwrap(), load.failed.into_inner().unwrap());
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), acked.len() + failed.len());

    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let mut forwarded: HashMap<Vec<u8>, usize> = HashMap::new();
    for got in backend.got() {
        *forwarded.entry(got.body).or_default() += 1;
    }
    let lost: Vec<_> = acked.iter().filter(|id| !forwarded.contains_key(&body(id))).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acked.len());
    for id in acked.iter().rev().step_by(100) {
        assert_eq!(signed(id).send(gateway.listen).status, 200);
    }
    let figure = format!(
        "{} upgrades, {} requests, 0 failed, {} sent again on a new connection, {} forwarded more than once",
        upgrades(),
        acked.len(),
        load.reopened.into_inner(),
        forwarded.values().filter(|times| **times > 1).count(),
    );
    (gateway, figure)
}

#[test]
fn ten_upgrades_on_the_supervisors_socket_refuse_and_lose_nothing() {
    let (backend, twice_at_once) = watchful_backend();
    let public = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = Gateway::start(&every_provider(&backend));
    let directory = first.directory_held();
    // The admin address is the same for all, as it would be in production.
    let config = std::fs::read_to_string(first.config_path()).unwrap();
    let fixed = format!("admin.address = \"{}\"", first.admin);
    std::fs::write(first.config_path(), config.replace("admin.address = \"127.0.0.1:0\"", &fixed)).unwrap();
    drop(first);

    let start = || {
        let log = directory.path().join("log");
        Gateway::start_in(Arc::clone(&directory), |command| {
            activate(command, public.try_clone().unwrap(), &log);
        })
    };
    let mut waited = 0;
    let (gateway, figure) = under_load(&backend, start(), |mut old| {
        waited += 1;
        thread::scope(|scope| {
            let new = scope.spawn(start);
            let waiting = || old.log().matches("waiting for the gateway before this one").count();
            eventually("the next one waits", || waiting() >= waited);
            old.signal("TERM");
            assert_eq!(old.wait(), Some(0));
            new.join().unwrap()
        })
    });
    assert_eq!(gateway.listen, public.local_addr().unwrap());
    assert_eq!(twice_at_once.load(Ordering::Relaxed), 0);
    println!("{figure}");
}

#[test]
fn ten_take_overs_refuse_and_lose_nothing() {
    let (backend, twice_at_once) = watchful_backend();
    let first = Gateway::start_with(&every_provider(&backend), |command| {
        // Without a gateway to take over from, it starts.
        command.arg("--takeover");
    });
    let (_, figure) = under_load(&backend, first, |mut old| {
        let new = Gateway::start_in(old.directory_held(), |command| {
            command.arg("--takeover");
        });
        assert_eq!((new.admin, old.wait()), (old.admin, Some(0)));
        new
    });
    assert_eq!(twice_at_once.load(Ordering::Relaxed), 0);
    println!("{figure}");
}
