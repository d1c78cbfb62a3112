//! Tells the supervisor how the gateway stands, as systemd's `Type=notify` wants it.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use countersign::config::environment;

/// Says `state`, such as `READY=1`, to whoever listens at NOTIFY_SOCKET.
pub(super) fn notify(state: &str) {
    if let Some(path) = environment("NOTIFY_SOCKET")
        && let Err(error) = send(&path, state)
    {
        tracing::warn!(%error, state, "the supervisor cannot be told");
    }
}

fn send(path: &str, state: &str) -> io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}
