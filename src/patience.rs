//! Limits on how long the other side may take. A process that stood still finds, when it goes on, that its timers have
//! run out before it is told what has come in meanwhile: SIGCONT interrupts the wait for both. So whoever seems to be
//! late is looked at once more, a moment later, before it is given up.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

/// Until the second look: a turn of the runtime and whatever a busy machine adds, and nobody notices it.
const MOMENT: Duration = Duration::from_millis(50);

/// Waits for `future`, for no longer than `limit` and a moment.
///
/// # Errors
/// When it takes longer.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    match tokio::time::timeout(limit, future.as_mut()).await {
        Ok(output) => Ok(output),
        Err(_) => tokio::time::timeout(MOMENT, future).await,
    }
}

/// Waits for `future`, until `deadline` and a moment.
///
/// # Errors
/// When it takes longer.
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    timeout(deadline.saturating_duration_since(Instant::now()), future).await
}

/// Sleeps until `deadline` and a moment.
pub async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline).await;
    tokio::time::sleep(MOMENT).await;
}

/// The timer of HTTP connections.
#[derive(Debug, Clone, Copy)]
pub struct Timer;

struct Sleep(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(rt::Timer::now(self) + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Sleep(Box::pin(sleep_until(deadline.into()))))
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

impl rt::Sleep for Sleep {}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}
