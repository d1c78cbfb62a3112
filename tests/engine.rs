//! The engine (the embedded store and the lanes) beside a small model of it, under random deliveries, duplicates, answers,
//! hangs, crashes, restarts, pauses, reloads, steps of the clock and redeliveries, over simulated time: minutes pass when a
//! walk says so, once nothing more can happen without. After every step the promises hold. A thousand walks by default,
//! COUNTERSIGN_SEEDS=N for more; a walk that fails prints its steps and how to run it again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[path = "engine/backend.rs"]
mod backend;
#[path = "engine/gateway.rs"]
mod gateway;
#[path = "engine/promises.rs"]
mod promises;
#[path = "engine/walk.rs"]
mod walk;

use walk::Walk;

const STEPS: usize = 20;
const SEEDS: u64 = 1_000;
/// Walks at once: they wait for threads of the store.
const ABREAST: usize = 16;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var_os(name)?;
    Some(value.to_str().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is a number")))
}

#[test]
fn the_engine_keeps_its_promises_over_simulated_time() {
    let seeds = match number("COUNTERSIGN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("COUNTERSIGN_SEEDS").unwrap_or(SEEDS),
    };
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || !failed.lock().unwrap().is_empty() {
                        return;
                    }
                    if let Err(steps) = walk(seed) {
                        failed.lock().unwrap().push(steps);
                    }
                }
            });
        }
    });
    if let Some(steps) = failed.into_inner().unwrap().first() {
        panic!("a promise was broken (see above) by these steps:\n{steps}");
    }
}

/// One walk; its steps and its seed when it fails.
fn walk(seed: u64) -> Result<(), String> {
    let told = Mutex::new(Vec::new());
    let walked = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.unwrap();
        // While a task blocks, the runtime does not let time pass by itself.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || held.recv());
        // The jitter of pauses is drawn on this thread.
        fastrand::seed(seed);
        runtime.block_on(tokio::task::LocalSet::new().run_until(Walk::go(seed, STEPS, &told)));
        drop(hold);
        runtime.shutdown_background();
    }));
    walked.map_err(|_| {
        let steps = told.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).join("\n");
        format!("{steps}\nrun it again: COUNTERSIGN_SEED={seed} cargo test --test engine")
    })
}
