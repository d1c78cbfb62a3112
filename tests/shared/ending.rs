//! The end of a load that other threads put on a gateway.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells the senders to stop when it is dropped: also where a test fails, so that it fails and does not hang.
pub(crate) struct Ending<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
