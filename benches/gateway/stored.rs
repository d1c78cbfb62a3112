//! What the gateway is like when its store is full: accepting beside an empty one, its start, and its API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign::forward::Progress;
use countersign::store::{AttemptRecord, Settlement, Store};
use tokio::time::Instant;

use crate::arrivals::{Arrivals, Lanes, open};
use crate::measure::{Contender, Place, Workload};
use crate::options::Options;
use crate::process::Server;
use crate::report::{Goal, Report};
use crate::rounds::{Sample, rate_guess};
use crate::sender::Pace;

/// Deliveries that are being stored at once: full groups.
const AT_ONCE: usize = 1_024;

/// Measures with `count` deliveries stored, all of them delivered.
pub(crate) fn run(options: &Options) {
    let place = Place::new();
    let count = options.count.unwrap_or(5_000_000);
    let full = place.directory.join(format!("stored-{count}"));
    // Filling takes many times longer than measuring: what is there is used again.
    if !full.join("complete").exists() {
        let _ = std::fs::remove_dir_all(&full);
        fill(&full.join("data"), count);
        std::fs::write(full.join("complete"), "").unwrap();
    }
    let workload = Workload {
        pace: Pace::Closed,
        connections: 64,
        body_bytes: 1 << 10,
        seconds: options.seconds,
        rate_max: rate_guess(Contender::D, 1 << 10),
    };
    let deliveries = || workload.deliveries(1);
    let (mut samples, mut starts, mut pages, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let mut rates = Vec::new();
        for (name, stored) in [("empty", None), ("full", Some(&full))] {
            let temporary = place.temporary();
            let directory = stored.map_or(temporary.path(), |full| full);
            let server = Server::start_gateway(directory, &options.setting);
            if stored.is_some() {
                starts.push(server.started_in.as_secs_f64());
                pages.push(server.first_page_in().as_secs_f64() * 1e3);
            }
            let (figures, _) = place.measure(&server, None, &workload, &deliveries());
            server.stop();
            rates.push(figures["requests_per_second"]);
            let stored = if stored.is_some() { count } else { 0 };
            eprintln!("round {}: {name}: {:.0}/s", round + 1, figures["requests_per_second"]);
            let workload = format!("{workload}, {stored} stored");
            samples.push(Sample { contender: Contender::D, workload, round, figures });
        }
        ratios.push(rates[1] / rates[0]);
    }
    let goals = [
        Goal::new(&format!("accepting with {count} stored by an empty store, requests/s"), ratios, true, 0.8),
        Goal::new(&format!("start with {count} stored, s"), starts, false, 2.0),
        Goal::new(&format!("the API's first page with {count} stored, ms"), pages, false, 100.0),
    ];
    Report::new(options, &place.machine, samples, goals).publish(options);
}

/// Stores deliveries and settles their forwards, through the store itself: what is on disk is what the gateway writes.
fn fill(directory: &Path, count: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (lanes, mut leases) = Lanes::new();
        let store = Arc::new(open(directory, lanes));
        let arrivals = Arc::new(Arrivals::new(1 << 10));
        let settling = Arc::clone(&store);
        let settled = tokio::spawn(async move {
            let mut under_way = tokio::task::JoinSet::new();
            for _ in 0..count {
                let (lease, slot) = leases.recv().await.unwrap();
                if under_way.len() >= AT_ONCE {
                    under_way.join_next().await;
                }
                let store = Arc::clone(&settling);
                under_way.spawn(async move {
                    let record = AttemptRecord {
                        started_at: lease.pending_since,
                        duration: Duration::from_millis(1),
                        outcome: "delivered",
                        status: Some(200),
                        detail: String::new(),
                    };
                    let settlement = Settlement {
                        id: lease.delivery.id,
                        destination: lease.destination,
                        attempt: lease.attempt,
                        pending_since: lease.pending_since,
                        next: Progress::Delivered,
                        record: Some(record),
                    };
                    store.settle(settlement).await.unwrap();
                    drop(slot);
                });
            }
            under_way.join_all().await;
        });
        let began = Instant::now();
        let mut under_way = tokio::task::JoinSet::new();
        for number in 0..count {
            if under_way.len() >= AT_ONCE {
                under_way.join_next().await;
            }
            let (store, arrivals) = (Arc::clone(&store), Arc::clone(&arrivals));
            under_way.spawn(async move { store.accept(arrivals.arrival()).await.unwrap() });
            if number % 250_000 == 0 {
                eprintln!("{number} of {count} stored after {:.0?}", began.elapsed());
            }
        }
        under_way.join_all().await;
        settled.await.unwrap();
        store.close().await;
    });
}
