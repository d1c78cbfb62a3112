//! Nothing acknowledged is lost, whatever happens to the process, the disk and the clock. The rows of
//! `docs/reliability.md` name these tests; COUNTERSIGN_SOAK=1 has them do more.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/backend.rs"]
mod backend;
#[path = "shared/ending.rs"]
mod ending;
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/sender.rs"]
mod sender;
#[path = "shared/soak.rs"]
mod soak;
#[allow(dead_code, reason = "shared with tests/store, which uses all of it")]
#[path = "store/support.rs"]
mod store_support;
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/support.rs"]
mod support;
#[allow(dead_code, reason = "shared with tests/hostile, which uses all of it")]
#[path = "shared/tls.rs"]
mod tls;

use soak::soak;

#[path = "reliability/backlog.rs"]
mod backlog;
#[path = "reliability/certificate.rs"]
mod certificate;
#[path = "reliability/corrupt.rs"]
mod corrupt;
#[path = "reliability/disk.rs"]
mod disk;
#[path = "reliability/document.rs"]
mod document;
#[path = "reliability/drain.rs"]
mod drain;
#[path = "reliability/faults.rs"]
mod faults;
#[path = "reliability/full.rs"]
mod full;
#[path = "reliability/handover.rs"]
mod handover;
#[path = "reliability/http2.rs"]
mod http2;
#[path = "reliability/killed.rs"]
mod killed;
#[path = "reliability/platter.rs"]
mod platter;
#[path = "reliability/power.rs"]
mod power;
#[path = "reliability/preload.rs"]
mod preload;
#[path = "reliability/reload.rs"]
mod reload;
#[path = "reliability/store_commands.rs"]
mod store_commands;
#[path = "reliability/suspicion.rs"]
mod suspicion;
#[path = "reliability/time.rs"]
mod time;
#[path = "reliability/upgrade.rs"]
mod upgrade;

/// What chance starts from: COUNTERSIGN_SEED, or another each time. A test that fails prints it.
#[expect(clippy::print_stdout, reason = "shown when the test fails")]
pub(crate) fn seed() -> u64 {
    let given = std::env::var_os("COUNTERSIGN_SEED");
    let seed = given.map_or_else(
        || fastrand::u64(..),
        |seed| seed.to_str().and_then(|seed| seed.parse().ok()).expect("COUNTERSIGN_SEED is a number"),
    );
    println!("COUNTERSIGN_SEED={seed}");
    seed
}
