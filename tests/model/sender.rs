//! Sends what a provider sends, on a connection of its own, and writes down what it is answered.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::backend::World;
use crate::ledger::Sent;

/// The bytes of a request.
pub(crate) fn request(sent: &Sent) -> Vec<u8> {
    let mut bytes = format!("POST {} HTTP/1.1\r\nHost: gateway\r\n", sent.target).into_bytes();
    for (name, value) in &sent.headers {
        bytes.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    let length = sent.body.len();
    bytes.extend_from_slice(format!("Content-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes());
    bytes.extend_from_slice(&sent.body);
    bytes
}

/// Sends it to the gateway of this era: the status of the answer; `None` when there is none, or the era has ended.
pub(crate) fn post(world: World, to: SocketAddr, number: u32, bytes: Vec<u8>) -> JoinHandle<Option<u16>> {
    let era = world.lock().era;
    tokio::spawn(async move {
        let status = exchange(to, &bytes).await;
        let mut outside = world.lock();
        if outside.era != era {
            return None;
        }
        if status.is_some_and(|status| (200..300).contains(&status)) {
            outside.acked.push(number);
        }
        status
    })
}

async fn exchange(to: SocketAddr, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    stream.write_all(request).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    std::str::from_utf8(&answer).ok()?.split(' ').nth(1)?.parse().ok()
}
