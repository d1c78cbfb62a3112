//! What a configuration file may say, what is refused, and how the refusal reads.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod edge;
mod example;
mod report;
mod rules;
mod secrets;
mod support;
