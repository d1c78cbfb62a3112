//! Nothing acknowledged is lost, whatever happens to the process, the disk and the clock. The rows of
//! `docs/reliability.md` name these tests; COUNTERSIGN_SOAK=1 has them do more.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/backend.rs"]
mod backend;
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/sender.rs"]
mod sender;
#[allow(dead_code, reason = "shared with tests/store, which uses all of it")]
#[path = "store/support.rs"]
mod store_support;
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/support.rs"]
mod support;

#[path = "reliability/backlog.rs"]
mod backlog;
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
#[path = "reliability/time.rs"]
mod time;
#[path = "reliability/upgrade.rs"]
mod upgrade;

/// How much a bounded test does: `usual` in `./test`, `long` where COUNTERSIGN_SOAK=1 asks for more.
pub(crate) fn soak(usual: usize, long: usize) -> usize {
    if std::env::var_os("COUNTERSIGN_SOAK").is_some_and(|value| value == "1") { long } else { usual }
}
