//! A real gateway (listener, pipeline, store, lanes) beside a simple model of it, under random requests, answers,
//! failures, crashes and restarts. After every step the promises of ARCHITECTURE.md hold. Each walk has a seed: a walk
//! that fails prints it, with its steps, and COUNTERSIGN_SEED runs the same walk again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "model/backend.rs"]
mod backend;
#[path = "model/gateway.rs"]
mod gateway;
#[path = "model/ledger.rs"]
mod ledger;
#[path = "model/promises.rs"]
mod promises;
#[path = "model/sender.rs"]
mod sender;
#[path = "model/setting.rs"]
mod setting;
#[path = "shared/soak.rs"]
mod soak;
#[path = "model/walk.rs"]
mod walk;

use soak::soak;
use walk::{Story, Walk};

const STEPS: usize = 50;
/// Walks at once: most of a walk is waiting for fsyncs.
const ABREAST: usize = 6;

#[test]
fn the_promises_hold_after_every_random_step() {
    let seeds: Vec<u64> = match std::env::var_os("COUNTERSIGN_SEED") {
        Some(seed) => {
            vec![seed.to_str().and_then(|seed| seed.parse().ok()).expect("COUNTERSIGN_SEED is a number")]
        }
        None => (0..soak(40, 2_000)).map(|_| fastrand::u64(..)).collect(),
    };
    let (next, ended) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let walked = walk(*seed);
                    if walked.is_err() {
                        next.store(seeds.len(), Ordering::Relaxed);
                    }
                    ended.lock().unwrap().push(walked);
                }
            });
        }
    });
    let mut total = Story::default();
    for walked in ended.into_inner().unwrap() {
        match walked {
            Ok(story) => total += story,
            Err(steps) => panic!("a promise was broken (see above) by these steps:\n{steps}"),
        }
    }
    println!("{} walks of {STEPS} steps: {total:?}", seeds.len());
}

/// One walk; its steps and its seed when it fails.
fn walk(seed: u64) -> Result<Story, String> {
    let steps = Mutex::new(Vec::new());
    let walked = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.unwrap().block_on(Walk::go(seed, STEPS, &steps))
    }));
    walked.map_err(|_| {
        let steps = steps.into_inner().unwrap().join("\n");
        format!("{steps}\nrun it again: COUNTERSIGN_SEED={seed} cargo test --test model")
    })
}
