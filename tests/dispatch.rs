//! What dispatch promises, against backends that misbehave at the level of TCP, and a store in memory: the seam's
//! other user.
#![allow(clippy::unwrap_used, reason = "helpers of tests are not marked as tests")]

#[path = "dispatch/as_provider.rs"]
mod as_provider;
#[path = "dispatch/backend.rs"]
mod backend;
#[path = "dispatch/kept.rs"]
mod kept;
#[path = "dispatch/lanes.rs"]
mod lanes;
#[path = "dispatch/misbehaviours.rs"]
mod misbehaviours;
#[path = "dispatch/outcomes.rs"]
mod outcomes;
#[path = "reliability/preload.rs"]
mod preload;
#[path = "dispatch/private.rs"]
mod private;
#[path = "dispatch/requests.rs"]
mod requests;
#[path = "dispatch/secure.rs"]
mod secure;
#[path = "dispatch/shape.rs"]
mod shape;
#[path = "dispatch/support.rs"]
mod support;
#[path = "dispatch/tls.rs"]
mod tls;
