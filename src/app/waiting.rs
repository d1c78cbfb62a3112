//! How a gateway that was given its sockets waits for the one before it to go.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::dispatch::Lanes;
use crate::store::sqlite::{self, Directory, OpenError, Options, Sqlite};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// How often it tells that it waits.
const TELL: Duration = Duration::from_secs(10);
/// For how long a gateway that has closed its store may take to end.
const RELEASE: Duration = Duration::from_secs(10);

/// Opens the store; where a gateway may go before this one, as soon as that has closed it.
pub(super) async fn open_store(
    options: Options,
    lanes: &Arc<Lanes>,
    follows: bool,
) -> Result<Sqlite, OpenError> {
    wait(follows, || {
        let (options, outlet) = (options.clone(), Arc::clone(lanes));
        move || sqlite::open(options, outlet)
    })
    .await
}

/// Takes the data directory of a gateway whose store is elsewhere.
pub(super) async fn hold(directory: &Path, follows: bool) -> Result<Directory, OpenError> {
    wait(follows, || {
        let directory = directory.to_owned();
        move || Directory::hold(&directory)
    })
    .await
}

async fn wait<T: Send + 'static, O>(follows: bool, attempt: impl Fn() -> O) -> Result<T, OpenError>
where
    O: FnOnce() -> Result<T, OpenError> + Send + 'static,
{
    let mut told = None;
    loop {
        let opened = tokio::task::spawn_blocking(attempt()).await;
        match opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            // However long it takes: were this process to give up, what waits in its sockets might be refused.
            Err(in_use @ OpenError::InUse { .. }) if follows => {
                if told.is_none_or(|told: Instant| told.elapsed() >= TELL) {
                    tracing::info!(reason = %in_use, "waiting for the gateway before this one");
                    told = Some(Instant::now());
                }
                sleep(LOOK).await;
            }
            opened => return opened,
        }
    }
}

/// Binds the address of a process that is ending.
pub(super) async fn bind_when_free(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + RELEASE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                sleep(LOOK).await;
            }
            bound => return bound,
        }
    }
}
