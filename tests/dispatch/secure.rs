//! Backends behind TLS that are believed by an authority of their own, want to see a certificate, and speak HTTP/2.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use countersign::config::{BackendTls, ClientIdentity, Destination};
use countersign::forward::{Outcome, Progress};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Gateway, delivery, destination, eventually, retry_late};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

fn issue(authority: &Authority) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, authority).unwrap();
    (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// A request as a backend saw it.
#[derive(Debug)]
struct Seen {
    version: Version,
    host: Option<String>,
    authorization: Option<String>,
    certified: bool,
    body: usize,
    connection: usize,
}

struct Backend {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    /// With these protocols; shows a certificate of `authority`, and wants one of `clients`.
    async fn start(
        authority: &Authority,
        clients: Option<&Authority>,
        protocols: &[&str],
        status: impl Fn(usize) -> u16 + Send + Sync + 'static,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (chain, key) = issue(authority);
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (acceptor, all, status) =
            (TlsAcceptor::from(Arc::new(config)), Arc::clone(&seen), Arc::new(status));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (acceptor, all, status) = (acceptor.clone(), Arc::clone(&all), Arc::clone(&status));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    let http2 = session.alpn_protocol() == Some(b"h2");
                    let certified = session.peer_certificates().is_some();
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (all, status) = (Arc::clone(&all), Arc::clone(&status));
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes().len();
                            let text = |name: &str| {
                                head.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
                            };
                            let host = head.uri.authority().map(ToString::to_string).or(text("host"));
                            let authorization = text("authorization");
                            let version = head.version;
                            let number = {
                                let mut all = all.lock().unwrap();
                                all.push(Seen { version, host, authorization, certified, body, connection });
                                all.len() - 1
                            };
                            let mut answer = Response::new(Full::new(Bytes::from_static(b"done")));
                            *answer.status_mut() = StatusCode::from_u16(status(number)).unwrap();
                            Ok::<_, Infallible>(answer)
                        }
                    });
                    let stream = TokioIo::new(stream);
                    if http2 {
                        http2::Builder::new(TokioExecutor::new())
                            .serve_connection(stream, service)
                            .await
                            .ok();
                    } else {
                        http1::Builder::new().serve_connection(stream, service).await.ok();
                    }
                });
            }
        });
        Self { port, seen }
    }

    fn destination(&self, authorities: &[&Authority], identity: Option<&Authority>) -> Destination {
        let mut to = destination("legacy", &format!("https://localhost:{}/hooks", self.port));
        let identity = identity.map(|authority| {
            let (chain, key) = issue(authority);
            Arc::new(ClientIdentity { chain, key })
        });
        let authorities = authorities.iter().map(|authority| authority.der().clone()).collect();
        to.tls = BackendTls { authorities, identity };
        to
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

#[tokio::test]
async fn a_backend_that_chooses_http2_gets_it_with_bodies_of_any_size_over_one_connection() {
    let known = authority();
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let backend = Backend::start(&known, None, protocols, |n| if n == 0 { 503 } else { 200 }).await;
        let gateway = Gateway::start([backend.destination(&[&known], None)]);
        let mut large = delivery(b"");
        large.body = Bytes::from(vec![b'x'; 5 << 20]);
        let sizes = [(delivery(b"{}"), 2), (large, 5 << 20), (delivery(b""), 0)];
        for (before, (sent, bytes)) in sizes.into_iter().enumerate() {
            gateway.forward(sent, "legacy");
            eventually("it is delivered", || gateway.delivered() == before + 1).await;
            let seen = backend.seen.lock().unwrap();
            let last = seen.last().unwrap();
            assert_eq!((last.version, last.body, last.connection), (version, bytes, 0), "{protocols:?}");
            assert_eq!(last.host.as_deref(), Some(&*format!("localhost:{}", backend.port)));
        }
        assert_eq!(gateway.attempts("legacy", Outcome::RetryableStatus), 1);
        assert_eq!(gateway.store.rows()[0].records[1].detail, "done");
    }
}

/// The authorities of the system are not asked where a destination names its own.
#[tokio::test]
async fn a_backend_is_believed_by_the_authorities_of_its_destination_alone() {
    let (known, other) = (authority(), authority());
    let backend = Backend::start(&known, None, &["h2"], |_| 200).await;
    for (authorities, outcome) in [
        (&[&known][..], Outcome::Delivered),
        (&[&other, &known], Outcome::Delivered),
        (&[&other], Outcome::TlsFailed),
        (&[], Outcome::TlsFailed),
    ] {
        let mut to = backend.destination(authorities, None);
        to.retry = retry_late();
        let gateway = Gateway::start([to]);
        gateway.forward(delivery(b"{}"), "legacy");
        let record = gateway.first_record().await;
        assert_eq!(record.outcome, outcome.label(), "{} authorities: {}", authorities.len(), record.detail);
    }
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn a_certificate_is_shown_to_a_backend_that_wants_one_and_a_reload_takes_a_new_one() {
    let (known, clients, strangers) = (authority(), authority(), authority());
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let backend = Backend::start(&known, Some(&clients), protocols, |_| 200).await;
        let to = |identity| Destination { retry: retry_late(), ..backend.destination(&[&known], identity) };
        let gateway = Gateway::start([to(None)]);
        let mut failed = 0;
        for identity in [None, Some(&strangers)] {
            gateway.lanes.apply(&[Arc::new(to(identity))]);
            gateway.forward(delivery(b"{}"), "legacy");
            failed += 1;
            let settled = || gateway.store.rows().last().is_some_and(|row| !row.records.is_empty());
            eventually("it is settled", settled).await;
            let record = gateway.store.rows().last().unwrap().records[0].clone();
            assert_eq!(record.outcome, "tls_failed", "{protocols:?}: {}", record.detail);
        }
        assert_eq!(backend.count(), 0);
        gateway.lanes.apply(&[Arc::new(to(Some(&clients)))]);
        gateway.forward(delivery(b"{}"), "legacy");
        eventually("it is delivered", || gateway.delivered() == 1).await;
        assert!(backend.seen.lock().unwrap()[0].certified);
        // Nothing of the connection that was made with it is used after it has been withdrawn.
        gateway.lanes.apply(&[Arc::new(to(None))]);
        gateway.forward(delivery(b"{}"), "legacy");
        eventually("it is refused", || gateway.attempts("legacy", Outcome::TlsFailed) == failed + 1).await;
        assert_eq!(backend.count(), 1);
    }
}

#[tokio::test]
async fn credentials_arrive_over_http2_and_no_answer_that_repeats_them_is_kept() {
    let known = authority();
    let backend = Backend::start(&known, None, &["h2"], |_| 200).await;
    let mut to = backend.destination(&[&known], None);
    let mut value = http::HeaderValue::from_static("Basic Z2F0ZTp3YXk=");
    value.set_sensitive(true);
    to.headers.push((http::header::AUTHORIZATION, value));
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;
    assert_eq!(backend.seen.lock().unwrap()[0].authorization.as_deref(), Some("Basic Z2F0ZTp3YXk="));
}

/// What a backend does on a connection of HTTP/2 after the handshake, with its outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misbehaviour_over_http2_has_its_outcome() {
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    // `:status: 200` by the static table, the head of stream 1 with and without more to come.
    const OK_AND_MORE: &[u8] = b"\0\0\x01\x01\x04\0\0\0\x01\x88";
    let ping = b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0".repeat(1_000);
    let interim = [&b"\0\0\x05\x01\x04\0\0\0\x01"[..], b"\x08\x03103"].concat().repeat(1_000);
    let half = [OK_AND_MORE, b"\0\0\x02\0\0\0\0\0\x01ha"].concat();
    let reset = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x02".to_vec();
    let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b".to_vec();
    for (what, bytes, forever, ends, outcome) in [
        ("says nothing", Vec::new(), false, false, Outcome::Timeout),
        ("closes", Vec::new(), false, true, Outcome::ConnectionLost),
        ("half an answer", half.clone(), false, false, Outcome::Timeout),
        ("half an answer and the end", half, false, true, Outcome::ConnectionLost),
        ("resets the stream", reset, false, false, Outcome::ConnectionLost),
        ("turns the connection away", goaway, false, true, Outcome::ConnectionLost),
        (
            "HTTP/1.1",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
            false,
            false,
            Outcome::InvalidResponse,
        ),
        ("pings for ever", ping, true, false, Outcome::InvalidResponse),
        ("interim answers for ever", interim, true, false, Outcome::InvalidResponse),
    ] {
        let known = authority();
        let (chain, key) = issue(&known);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = Backend { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
        let mut to = backend.destination(&[&known], None);
        to.retry = retry_late();
        to.timeout = std::time::Duration::from_secs(if outcome == Outcome::Timeout { 1 } else { 60 });
        let gateway = Gateway::start([to]);
        gateway.forward(delivery(b"{}"), "legacy");
        let playing = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
            // The preface, settings, and the head and body of the request.
            let mut got = Vec::new();
            while !got.ends_with(b"{}") {
                if tokio::io::AsyncReadExt::read_buf(&mut stream, &mut got).await.unwrap() == 0 {
                    return;
                }
            }
            let first = if bytes.starts_with(b"HTTP") { &bytes[..] } else { SETTINGS };
            stream.write_all(first).await.ok();
            if first == SETTINGS {
                stream.write_all(&bytes).await.ok();
            }
            stream.flush().await.ok();
            while forever && stream.write_all(&bytes).await.is_ok() {}
            if ends {
                stream.shutdown().await.ok();
                return;
            }
            while tokio::io::AsyncReadExt::read_buf(&mut stream, &mut got).await.is_ok_and(|bytes| bytes > 0)
            {
            }
        });
        let record = gateway.first_record().await;
        assert_eq!(record.outcome, outcome.label(), "{what}: {}", record.detail);
        assert!(matches!(gateway.row().progress, Progress::Waiting { attempts: 1, .. }), "{what}");
        playing.abort();
    }
}
