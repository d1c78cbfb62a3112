//! Senders that go on whatever happens, and what has to be true of what they were told.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::group::{post, stored};
use crate::server::query;
use crate::support::{Gateway, eventually};

/// No provider waits longer; the deadline is 2.5 s.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What senders have got a 2xx for.
type Acknowledged = Mutex<BTreeSet<String>>;

/// Sends to these gateways in turn, as four providers do that try again elsewhere, while `disturb` does its worst.
pub(crate) fn under_load(gateways: &[&Gateway], disturb: impl FnOnce(&AtomicUsize)) -> BTreeSet<String> {
    let acknowledged = Acknowledged::default();
    let (stop, number, count) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let n = number.fetch_add(1, Ordering::Relaxed);
                    let id = format!("d-{n:05}");
                    for gateway in gateways.iter().cycle().skip(n).take(gateways.len()) {
                        let asked = Instant::now();
                        let answer = post(&id).try_send(gateway.listen);
                        assert!(asked.elapsed() < ANSWER_MAX, "{:?}", asked.elapsed());
                        match answer {
                            Some(answer) if answer.status == 200 => {
                                acknowledged.lock().unwrap().insert(id.clone());
                                count.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                            Some(answer) => {
                                assert_eq!(answer.status, 503);
                                assert!(answer.header("retry-after").is_some());
                            }
                            None => {}
                        }
                    }
                }
            });
        }
        disturb(&count);
        stop.store(true, Ordering::Relaxed);
    });
    acknowledged.into_inner().unwrap()
}

/// Waits until so many more have been acknowledged.
pub(crate) fn go_on(count: &AtomicUsize, more: usize) {
    let until = count.load(Ordering::Relaxed) + more;
    eventually("deliveries are accepted", || count.load(Ordering::Relaxed) >= until);
}

/// Acknowledged ⊆ stored, each stored once, and each forwarded.
pub(crate) fn judge(url: &str, backend: &Backend, acknowledged: &BTreeSet<String>) {
    let stored = stored(url);
    let known: BTreeSet<String> = stored.iter().cloned().collect();
    assert_eq!(known.len(), stored.len(), "one is stored twice");
    let lost: Vec<_> = acknowledged.difference(&known).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    eventually("everything is forwarded", || {
        query(url, "SELECT count(*) FROM countersign.forward WHERE state <> 'delivered'") == "0"
    });
    let got = backend.got();
    let forwarded: BTreeSet<String> =
        got.iter().map(|got| got.header("countersign-delivery-id").unwrap().to_owned()).collect();
    assert_eq!(forwarded, known);
}
