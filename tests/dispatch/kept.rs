//! What a backend does to a connection after its answer harms no later delivery, and nothing is sent twice that may
//! have been acted on.

use bytes::Bytes;
use countersign::forward::{Outcome, Progress};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::misbehaviours::Do::{self, Close, Read, ReadAll, Reset, Send};
use crate::misbehaviours::{LARGE_BYTES, listen, perform};
use crate::support::{Gateway, delivery, destination, eventually};

fn ok() -> Do {
    Send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec())
}

/// Performs these steps; what the last `ReadAll` or `Read` has read is returned.
async fn run(stream: &mut TcpStream, steps: Vec<Do>, body_bytes: usize) -> Vec<u8> {
    let mut request = Vec::new();
    for step in steps {
        perform(stream, step, &mut request, body_bytes).await;
    }
    request
}

fn gateway_for(listener: &TcpListener) -> Gateway {
    Gateway::start([destination("legacy", &format!("http://{}/", listener.local_addr().unwrap()))])
}

/// A gateway that has delivered once, to the other end of a connection that it keeps.
async fn delivered_once() -> (TcpListener, Gateway, TcpStream) {
    let listener = listen();
    let gateway = gateway_for(&listener);
    gateway.forward(delivery(b"{}"), "legacy");
    let (mut kept, _) = listener.accept().await.unwrap();
    run(&mut kept, vec![ReadAll, ok()], 2).await;
    eventually("the first is delivered", || gateway.delivered() == 1).await;
    (listener, gateway, kept)
}

/// After a first delivery the backend does `after` to the connection; the second comes on another and is no failure.
async fn check(after: Vec<Do>) {
    let (listener, gateway, mut first) = delivered_once().await;
    let kept_open = !after.iter().any(|step| matches!(step, Close | Reset));
    run(&mut first, after.clone(), 2).await;
    let first = Some(first).filter(|_| kept_open);

    gateway.forward(delivery(b"[]"), "legacy");
    let (mut second, _) = listener.accept().await.unwrap();
    let request = run(&mut second, vec![ReadAll, ok()], 2).await;
    assert!(request.ends_with(b"[]"));
    eventually("the second is delivered", || gateway.delivered() == 2).await;
    assert_eq!(gateway.attempts("legacy", Outcome::Delivered), 2, "{after:?}");
    assert!(gateway.store.rows().iter().all(|row| row.records.len() == 1), "{after:?}");
    drop(first);
}

#[tokio::test]
async fn a_kept_connection_that_has_ended_or_said_more_is_not_used() {
    check(vec![Close]).await;
    check(vec![Reset]).await;
    check(vec![Send(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n".to_vec())]).await;
    check(vec![Send(b"\0".to_vec())]).await;
    check(vec![Send(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n".to_vec()), Close]).await;
}

/// The backend cannot have acted on half a request: that is sent again at once, within the same attempt.
#[tokio::test]
async fn half_a_request_on_a_kept_connection_is_sent_again_and_blames_nobody() {
    let (listener, gateway, mut kept) = delivered_once().await;

    let mut large = delivery(b"");
    large.body = Bytes::from(vec![b'x'; LARGE_BYTES]);
    gateway.forward(large, "legacy");
    run(&mut kept, vec![Read(1_000), Reset], 0).await;
    drop(kept);
    let (mut fresh, _) = listener.accept().await.unwrap();
    let request = run(&mut fresh, vec![ReadAll, ok()], LARGE_BYTES).await;
    let head = String::from_utf8_lossy(&request[..1_000]).into_owned();
    assert!(head.contains("\r\ncountersign-attempt: 1\r\n"), "{head}");
    eventually("it is delivered", || gateway.delivered() == 2).await;
    assert_eq!(gateway.attempts("legacy", Outcome::Delivered), 2);
    assert_eq!(gateway.attempts("legacy", Outcome::ConnectionLost), 0);
}

/// On a fresh connection the same is a failure, and so is silence after a whole request on a kept one: that may have
/// been acted on, so the next request has another number.
#[tokio::test]
async fn a_whole_request_without_an_answer_is_a_counted_attempt() {
    let (listener, gateway, mut kept) = delivered_once().await;
    gateway.forward(delivery(b"[]"), "legacy");
    run(&mut kept, vec![ReadAll, Close], 2).await;
    drop(kept);
    let (mut fresh, _) = listener.accept().await.unwrap();
    let request = String::from_utf8(run(&mut fresh, vec![ReadAll, ok()], 2).await).unwrap();
    assert!(request.contains("\r\ncountersign-attempt: 2\r\n"), "{request}");
    eventually("it is delivered", || gateway.delivered() == 2).await;
    assert_eq!(gateway.attempts("legacy", Outcome::ConnectionLost), 1);
}

/// A backend that had answered and read no more kept the connection, the body and a task for as long as it liked.
#[tokio::test]
async fn a_connection_ends_with_its_attempt_even_half_way_through_a_request() {
    let listener = listen();
    let gateway = gateway_for(&listener);
    let mut large = delivery(b"");
    large.body = Bytes::from(vec![b'x'; LARGE_BYTES]);
    gateway.forward(large, "legacy");
    let (mut stream, _) = listener.accept().await.unwrap();
    let refusal = Send(b"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n".to_vec());
    run(&mut stream, vec![Read(1_000), refusal], 0).await;
    eventually("it is dead", || gateway.count(|progress| progress == Progress::Dead) == 1).await;
    let mut rest = Vec::new();
    // An end or a reset, whichever.
    stream.read_to_end(&mut rest).await.ok();
    assert!(rest.len() < LARGE_BYTES / 2, "{} bytes came", rest.len());
}
