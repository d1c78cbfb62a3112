//! Several gateways on one PostgreSQL server: what they promise together, and what they do when a gateway, the database or the
//! way to it fails. Servers and gateways are real, and the tests' own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/backend.rs"]
mod backend;
#[allow(dead_code, reason = "shared with tests/store, which uses the rest")]
#[path = "shared/line.rs"]
mod line;
#[path = "reliability/preload.rs"]
mod preload;
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/sender.rs"]
mod sender;
#[allow(dead_code, reason = "shared with tests/store, which uses the rest")]
#[path = "shared/postgres.rs"]
mod server;
#[allow(dead_code, reason = "shared with tests/reliability, which uses all of it")]
#[path = "shared/soak.rs"]
mod soak;
#[allow(dead_code, reason = "shared with tests/gateway, which uses all of it")]
#[path = "gateway/support.rs"]
mod support;

#[path = "cluster/backlog.rs"]
mod backlog;
#[path = "cluster/copied.rs"]
mod copied;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/failures.rs"]
mod failures;
#[path = "cluster/group.rs"]
mod group;
#[path = "cluster/limits.rs"]
mod limits;
#[path = "cluster/load.rs"]
mod load;
#[path = "cluster/once.rs"]
mod once;
#[path = "cluster/skew.rs"]
mod skew;
#[path = "cluster/start.rs"]
mod start;
#[path = "cluster/takeover.rs"]
mod takeover;
#[path = "cluster/tls.rs"]
mod tls;
