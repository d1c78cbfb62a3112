//! The way to a server: a proxy that can fall silent, as a network does that loses everything and says nothing, or be slow.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// Passes on what comes while it is open.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    opened: AtomicUsize,
    passed: AtomicU64,
}

#[derive(Default, Clone, Copy)]
struct State {
    silent: bool,
    delay: Duration,
}

impl Line {
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::<Gate>::default();
        let passing = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming() {
                passing.opened.fetch_add(1, Ordering::Relaxed);
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", port))) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let gate = Arc::clone(&passing);
                    thread::spawn(move || pass(from, to, &gate));
                }
            }
        });
        Self { address, gate }
    }

    /// The URL of a server's that leads over this line.
    pub(crate) fn instead_of(&self, port: u16, url: &str) -> String {
        url.replace(&format!("127.0.0.1:{port}"), &self.address.to_string())
    }

    /// From now on nothing comes through, either way; connections stay.
    pub(crate) fn silence(&self, silent: bool) {
        self.gate.set(|state| state.silent = silent);
    }

    /// From now on everything comes through so much later, either way.
    pub(crate) fn delay(&self, delay: Duration) {
        self.gate.set(|state| state.delay = delay);
    }

    /// How many connections have been made so far.
    pub(crate) fn opened(&self) -> usize {
        self.gate.opened.load(Ordering::Relaxed)
    }

    /// Bytes that have come through, both ways.
    pub(crate) fn passed(&self) -> u64 {
        self.gate.passed.load(Ordering::SeqCst)
    }
}

impl Gate {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let mut buffer = [0; 16_384];
    while let Ok(read) = from.read(&mut buffer) {
        let delay = gate.state.lock().unwrap().delay;
        thread::sleep(delay);
        let held = gate.state.lock().unwrap();
        drop(gate.changed.wait_while(held, |state| state.silent).unwrap());
        gate.passed.fetch_add(read as u64, Ordering::SeqCst);
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
