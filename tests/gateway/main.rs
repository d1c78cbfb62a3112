//! The gateway as its users meet it: the built binary, real sockets, signed requests, backends that misbehave. One
//! file per promise; each test starts what it needs on free ports and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod backend;
mod sender;
mod support;

mod admin;
mod bounded;
mod browser;
mod commands;
mod console;
mod durable;
mod exact;
mod handshakes;
mod limits;
mod listen;
mod observe;
mod once;
mod operate;
mod order;
mod readme;
mod rejections;
mod replays;
mod routes;
mod sync;
mod trust;
mod verified;
