//! Hostile input: what attackers and neighbours send gets nothing, and honest senders notice nothing. One file per
//! kind; COUNTERSIGN_SOAK=1 has them do more.
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
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/support.rs"]
mod support;
#[path = "shared/tls.rs"]
mod tls;

use soak::soak;

#[path = "hostile/bodies.rs"]
mod bodies;
#[path = "hostile/certificates.rs"]
mod certificates;
#[path = "hostile/flood.rs"]
mod flood;
#[path = "hostile/forged.rs"]
mod forged;
#[path = "hostile/hanging.rs"]
mod hanging;
#[path = "hostile/heads.rs"]
mod heads;
#[path = "hostile/hidden.rs"]
mod hidden;
#[path = "hostile/http2.rs"]
mod http2;
#[path = "hostile/labels.rs"]
mod labels;
#[path = "hostile/leaks.rs"]
mod leaks;
#[path = "hostile/limits.rs"]
mod limits;
#[path = "hostile/logs.rs"]
mod logs;
#[path = "hostile/proxied.rs"]
mod proxied;
#[path = "hostile/secrets.rs"]
mod secrets;
#[path = "hostile/suites.rs"]
mod suites;
#[path = "hostile/traps.rs"]
mod traps;
