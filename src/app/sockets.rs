//! Which sockets a gateway was given instead of addresses to bind: by its supervisor (systemd's socket activation), or
//! by the gateway that it follows ([`super::handover`]). Their queues outlive each process, so that what connects
//! while one gateway makes way for the next waits instead of being refused.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use super::handover::{self, HandoverError};
use crate::config::{StoreConfig, environment};

/// Listening sockets that a gateway was given; what is missing is bound.
#[derive(Debug, Default)]
pub struct Sockets {
    pub(super) public: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
}

/// Why sockets of the supervisor's cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// One of them is no TCP socket that listens.
    #[error("LISTEN_FDS: file descriptor {descriptor} cannot be listened on")]
    Unusable {
        /// Its number.
        descriptor: usize,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There are more than listeners.
    #[error(
        "LISTEN_FDS: file descriptor {descriptor} ({name:?}) is one too many: there is a public listener and an admin \
         listener, by the names `public` and `admin` of LISTEN_FDNAMES or in this order"
    )]
    Surplus {
        /// Its number.
        descriptor: usize,
        /// Its name in LISTEN_FDNAMES, or nothing.
        name: String,
    },
}

impl Sockets {
    /// Those of systemd's protocol (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES): the one that is named `public`, or the
    /// first, for senders; the one that is named `admin`, or the second, for operators. Changes the environment, so
    /// that no other process takes them for its own: to be called before there are threads.
    ///
    /// # Errors
    /// When one is no listening TCP socket, or there are too many.
    pub fn of_supervisor() -> Result<Self, SocketError> {
        let names = environment("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut given = ListenFd::from_env();
        let mut sockets = Self::default();
        for index in 0..given.len() {
            let descriptor = index + FIRST_DESCRIPTOR;
            let unusable = |error| SocketError::Unusable { descriptor, error };
            let name = names.next().unwrap_or_default();
            let place = match name {
                "public" => &mut sockets.public,
                "admin" => &mut sockets.admin,
                _ if sockets.public.is_none() => &mut sockets.public,
                _ => &mut sockets.admin,
            };
            if place.is_some() {
                return Err(SocketError::Surplus { descriptor, name: name.to_owned() });
            }
            *place = given.take_tcp_listener(index).map_err(unusable)?;
            if let Some(socket) = place {
                prepare(socket).map_err(unusable)?;
            }
        }
        Ok(sockets)
    }

    /// Asks the gateway that holds the data directory to hand over its sockets, and to stop. Where the supervisor gave
    /// sockets, these stay. Nothing changes when no gateway runs. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// When a gateway runs and does not hand over; it serves on.
    pub fn take_over(self, store: &StoreConfig) -> Result<Self, HandoverError> {
        let Some([public, admin]) = handover::ask(store)? else { return Ok(self) };
        Ok(Self { public: self.public.or(Some(public)), admin: self.admin.or(Some(admin)) })
    }

    /// Whether another gateway may still be about, which will make way.
    pub(super) fn is_given(&self) -> bool {
        self.public.is_some()
    }
}

/// By systemd's protocol.
const FIRST_DESCRIPTOR: usize = 3;

/// Judges a socket of another process, and readies it for the runtime.
pub(super) fn prepare(socket: &TcpListener) -> io::Result<()> {
    if !socket_acceptconn(socket)? {
        let not_listening = "it does not listen (a socket unit needs Accept=no)";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, not_listening));
    }
    // Whoever made it may have asked for a short queue, and all that connects during an upgrade waits there. The
    // kernel takes net.core.somaxconn when asked for more.
    rustix::net::listen(socket, i32::MAX)?;
    socket.set_nonblocking(true)
}
