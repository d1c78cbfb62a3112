//! Countersign, a receiver-side webhook gateway: it verifies what providers send, stores each delivery once, answers
//! when the delivery is on disk, and forwards it to slow backends under one uniform signature.
//!
//! The binary is the product; of the library, [`verify`] is public API for other programs: the declarative signing
//! schemes, the provider presets, and [`verify::sign`]. Layers are listed in `ARCHITECTURE.md`, and a test holds them.

pub mod address;
pub mod causes;
pub mod clock;
pub mod id;
pub mod identity;
pub mod json;
mod pages;
pub mod rate;
pub mod reader;
pub mod secret;
pub mod units;

pub mod dedup;
pub mod delivery;
pub mod forward;
pub mod route;
pub mod shape;
pub mod verify;

pub mod config;
pub mod metrics;
pub mod patience;
pub mod replies;

pub mod store;

pub mod admin;
pub mod dispatch;
pub mod ingest;

pub mod app;
