//! SIGTERM in the middle of HTTP/2: what is in progress is answered, and GOAWAY says that nothing more is taken.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use crate::sender::{Post, body};
use crate::support::{Gateway, PATIENCE, eventually};
use crate::tls::{NAME, Secure};

const GOAWAY: u8 = 7;

#[test]
fn http2_requests_in_progress_are_answered_and_goaway_ends_their_connection() {
    let Secure { mut gateway, backend, client: tls } = Secure::start("limits.drain = \"60s\"\n");
    let name = ServerName::try_from(NAME).unwrap();

    // One connection frame by frame, without a request.
    let socket = TcpStream::connect(gateway.listen).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut idle = StreamOwned::new(ClientConnection::new(Arc::clone(&tls), name.clone()).unwrap(), socket);
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = move || {
        let mut head = [0; 9];
        idle.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        idle.read_exact(&mut payload).unwrap();
        (head[3], payload)
    };
    frame();

    // And one with half a body.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(gateway.listen).await.unwrap();
        let stream = TlsConnector::from(tls).connect(name, socket).await.unwrap();
        let (mut sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let post = Post::signed("stripe", "/webhooks/stripe", "d-1", "x", &body("d-1"));
        let (pieces, taken) = mpsc::channel::<Bytes>(1);
        let pieces_of = stream::unfold(taken, |mut taken| async {
            let piece = taken.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(piece)), taken))
        });
        let mut request = Request::post(format!("https://{NAME}/webhooks/stripe"));
        for (name, value) in &post.headers {
            request = request.header(name, value.as_slice());
        }
        let answer = sender.send_request(request.body(StreamBody::new(Box::pin(pieces_of))).unwrap());
        let answer = tokio::spawn(answer);
        let (half, rest) = post.body.split_at(20);
        pieces.send(Bytes::copy_from_slice(half)).await.unwrap();
        let held = "countersign_ingest_in_flight_bytes";
        eventually("the body is being read", || gateway.metric(held).unwrap() > 0.0);

        gateway.signal("TERM");
        let goaway = std::iter::repeat_with(&mut frame).find(|(kind, _)| *kind == GOAWAY).unwrap().1;
        assert_eq!(goaway[4..8], [0; 4], "without an error");
        pieces.send(Bytes::copy_from_slice(rest)).await.unwrap();
        drop(pieces);
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
        connection.await.unwrap().unwrap();
        assert!(sender.is_closed(), "no more requests on it");
    });
    assert_eq!(gateway.wait(), Some(0));
    let gateway = Gateway::start_in(gateway.directory_held(), |_| ());
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    assert_eq!(backend.eventually_got(1)[0].body, body("d-1"));
}
