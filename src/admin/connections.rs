//! The connections of the admin listener: each address has a share of them, and whoever sends or reads too slowly loses its
//! own, so that nobody takes probes, or files of the process, from anybody else.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pace::network;
use super::shares::Shares;
use crate::patience::Timer;

/// Connections at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 256;
/// Of one address, or of one customer's network.
const OF_ONE_MAX: usize = 64;
/// For how long a head may take, and a connection may be idle: no span after which somebody usually asks again.
const HEAD_MAX: Duration = Duration::from_secs(12);
/// Bytes of a head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Milliseconds for which a reader may take nothing of its answer.
const UNREAD_MAX_MS: u32 = 30_000;
/// After a failed accept: at the limit of open files it fails at once, for ever.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Serves `router`, which finds the peer's address as [`ConnectInfo`], until `ended`; then lets requests in progress finish.
pub async fn serve(socket: TcpListener, router: Router, ended: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shares: Shares<IpAddr> = Shares::default();
    let connections = TaskTracker::new();
    loop {
        // The place is taken before the connection.
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = ended.cancelled() => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(share) = shares.take(network(peer.ip()), OF_ONE_MAX) else {
            tracing::debug!(%peer, "admin connection closed: its address has as many as it may");
            continue;
        };
        let (router, ended) = (router.clone(), ended.clone());
        connections.spawn(async move {
            let _held = (place, share);
            serve_one(stream, peer, router, &ended).await;
        });
    }
    connections.close();
    connections.wait().await;
}

async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router, ended: &CancellationToken) {
    let _ = stream.set_nodelay(true);
    // The kernel knows what the other side has taken; without this it would ask for ever.
    let _ = set_tcp_user_timeout(&stream, UNREAD_MAX_MS);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(Timer)
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "admin connection ended");
    }
}
