//! The way to a server: a proxy that can fall silent, as a network does that loses everything and says nothing.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes on what comes while it is open.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    silent: Mutex<bool>,
    changed: Condvar,
    passed: AtomicU64,
}

impl Line {
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::<Gate>::default();
        let passing = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming() {
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

    /// From now on nothing comes through, either way; connections stay.
    pub(crate) fn silence(&self, silent: bool) {
        *self.gate.silent.lock().unwrap() = silent;
        self.gate.changed.notify_all();
    }

    /// Bytes that have come through, both ways.
    pub(crate) fn passed(&self) -> u64 {
        self.gate.passed.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let mut buffer = [0; 16_384];
    while let Ok(read) = from.read(&mut buffer) {
        let held = gate.silent.lock().unwrap();
        drop(gate.changed.wait_while(held, |silent| *silent).unwrap());
        gate.passed.fetch_add(read as u64, Ordering::SeqCst);
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
