//! What the store costs by itself, on the disk below target/: `cargo bench --bench store`. A group is what arrives at
//! once and shares commits; each element is one delivery of 1 KiB.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should say where")]

use std::sync::Arc;
use std::time::Duration;

use countersign::forward::Progress;
use countersign::store::sqlite::Sqlite;
use countersign::store::{Lease, Settlement, Store};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

#[path = "shared/arrivals.rs"]
mod arrivals;

use arrivals::{Arrivals, Lanes, open};

const GROUPS: [u64; 4] = [1, 16, 64, 512];

fn store(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let arrivals = Arrivals::new(1 << 10);
    for size in GROUPS {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (lanes, mut leases) = Lanes::new();
        let store = Arc::new(open(directory.path(), lanes));
        let mut group = criterion.benchmark_group("store");
        group.throughput(Throughput::Elements(size)).sample_size(20);
        group.bench_function(BenchmarkId::new("accept", size), |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let mut spent = Duration::ZERO;
                    for _ in 0..times {
                        let group: Vec<_> = (0..size).map(|_| arrivals.arrival()).collect();
                        let began = Instant::now();
                        let mut under_way = JoinSet::new();
                        for arrival in group {
                            let store = Arc::clone(&store);
                            under_way.spawn(async move { store.accept(arrival).await.unwrap() });
                        }
                        under_way.join_all().await;
                        spent += began.elapsed();
                        for _ in 0..size {
                            drop(leases.recv().await.unwrap());
                        }
                    }
                    spent
                })
            });
        });
        group.bench_function(BenchmarkId::new("settle", size), |bencher| {
            bencher.iter_custom(|times| {
                runtime.block_on(async {
                    let mut spent = Duration::ZERO;
                    for _ in 0..times {
                        for _ in 0..size {
                            store.accept(arrivals.arrival()).await.unwrap();
                        }
                        let mut group = Vec::new();
                        for _ in 0..size {
                            group.push(leases.recv().await.unwrap().0);
                        }
                        let began = Instant::now();
                        let mut under_way = JoinSet::new();
                        for lease in group {
                            under_way.spawn(settle(Arc::clone(&store), lease));
                        }
                        under_way.join_all().await;
                        spent += began.elapsed();
                    }
                    spent
                })
            });
        });
        group.finish();
        runtime.block_on(store.close());
    }
}

async fn settle(store: Arc<Sqlite>, lease: Lease) {
    let settlement = Settlement {
        id: lease.delivery.id,
        destination: lease.destination,
        attempt: lease.attempt,
        pending_since: lease.pending_since,
        next: Progress::Delivered,
        record: None,
    };
    store.settle(settlement).await.unwrap();
}

criterion_group!(benches, store);
criterion_main!(benches);
