//! A table of what backends do to a TLS handshake: whom no authority vouches for gets not a byte of a delivery.

use std::sync::Arc;
use std::time::Duration;

use countersign::forward::{Outcome, Progress};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::{Gateway, delivery, destination, is_alone, retry_late};

/// What the backend does with a connection.
enum Do {
    /// Sends these bytes instead of its part of a handshake, and closes or not.
    Bytes(&'static [u8], End),
    /// Shakes hands with this; whoever gets through is answered with these bytes, and the end of TCP without one of TLS.
    Shake(Box<ServerConfig>, &'static str),
}

#[derive(PartialEq)]
enum End {
    Close,
    Reset,
    Hang,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// A server's settings, with a certificate for `localhost` that `change` has changed.
fn server(authority: Option<&Authority>, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut parameters);
    let certificate = match authority {
        Some(authority) => parameters.signed_by(&key, authority),
        None => parameters.self_signed(&key),
    };
    let chain = vec![CertificateDer::from(certificate.unwrap())];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
}

fn builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap()
}

/// A server that wants a certificate from its clients.
fn demanding(authority: &Authority) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, authority).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let chain = vec![CertificateDer::from(certificate)];
    builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap()
}

/// Plays the backend; returns what it got over TLS.
async fn play(mut stream: TcpStream, what: Do) -> Vec<u8> {
    let mut request = Vec::new();
    match what {
        Do::Bytes(bytes, end) => {
            let mut hello = [0; 1];
            stream.read_exact(&mut hello).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            match end {
                End::Close => stream.shutdown().await.unwrap(),
                End::Reset => stream.set_zero_linger().unwrap(),
                End::Hang => {
                    stream.read_to_end(&mut Vec::new()).await.ok();
                }
            }
        }
        Do::Shake(config, answer) => {
            let Ok(mut stream) = TlsAcceptor::from(Arc::from(config)).accept(stream).await else {
                return request;
            };
            while !request.ends_with(b"\r\n\r\n{}") {
                let Ok(byte) = stream.read_u8().await else { return request };
                request.push(byte);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            // Not the end that TLS wants: an attacker can cut a connection, but not forge that.
            stream.get_mut().0.shutdown().await.unwrap();
        }
    }
    request
}

async fn check(what: &str, host: &str, action: Do, outcome: Outcome, detail: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut to = destination("legacy", &format!("https://{host}:{}/", listener.local_addr().unwrap().port()));
    to.retry = retry_late();
    to.connect_timeout = Duration::from_secs(if outcome == Outcome::ConnectTimeout { 1 } else { 10 });
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"{}"), "legacy");
    let (stream, _) = listener.accept().await.unwrap();
    let playing = tokio::spawn(play(stream, action));
    let record = gateway.first_record().await;
    assert_eq!(record.outcome, outcome.label(), "{what}: {}", record.detail);
    assert!(record.detail.contains(detail), "{what}: {}", record.detail);
    match gateway.row().progress {
        Progress::Delivered => assert_eq!(outcome, Outcome::Delivered, "{what}"),
        progress => {
            assert!(matches!(progress, Progress::Waiting { attempts: 1, .. }), "{what}: {progress:?}");
        }
    }
    if outcome == Outcome::TlsFailed {
        assert_eq!(playing.await.unwrap(), b"", "{what}: it got something");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_of_tls_has_its_outcome_and_nobody_unproven_gets_a_byte() {
    let directory = tempfile::tempdir().unwrap();
    let authorities = directory.path().join("authorities.pem");
    let prepare = format!("export SSL_CERT_FILE='{}'", authorities.display());
    if !is_alone("tls::every_failure_of_tls_has_its_outcome_and_nobody_unproven_gets_a_byte", &prepare) {
        return;
    }
    let known = authority("known");
    let stranger = authority("stranger");
    std::fs::write(std::env::var_os("SSL_CERT_FILE").unwrap(), known.pem()).unwrap();
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\nfine";
    let shake = |config| Do::Shake(Box::new(config), OK);
    let failed = Outcome::TlsFailed;

    check("a good one", "localhost", shake(server(Some(&known), |_| ())), Outcome::Delivered, "ok").await;
    let cut = Do::Shake(Box::new(server(Some(&known), |_| ())), UNTIL_CLOSE);
    check("cut off by anybody", "localhost", cut, Outcome::ConnectionLost, "the answer broke off").await;
    let expired = server(Some(&known), |certificate| certificate.not_after = date_time_ymd(2001, 1, 1));
    check("expired", "localhost", shake(expired), failed, "xpired").await;
    let early = server(Some(&known), |certificate| certificate.not_before = date_time_ymd(2999, 1, 1));
    check("not yet valid", "localhost", shake(early), failed, "not valid yet").await;
    let other = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    let other = server(Some(&known), |certificate| *certificate = other);
    check("another's", "localhost", shake(other), failed, "not valid for name").await;
    check(
        "a name's, not an address's",
        "127.0.0.1",
        shake(server(Some(&known), |_| ())),
        failed,
        "not valid for name",
    )
    .await;
    check("self-signed", "localhost", shake(server(None, |_| ())), failed, "UnknownIssuer").await;
    check(
        "of an unknown authority",
        "localhost",
        shake(server(Some(&stranger), |_| ())),
        failed,
        "UnknownIssuer",
    )
    .await;
    let purpose = server(Some(&known), |certificate| {
        certificate.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    check("for another purpose", "localhost", shake(purpose), failed, "certificate").await;
    check("wants a certificate of ours", "localhost", shake(demanding(&known)), failed, "ertificateRequired")
        .await;
    let mut other = server(Some(&known), |_| ());
    other.alpn_protocols = vec![b"spdy/3".to_vec()];
    check("speaks another protocol", "localhost", shake(other), failed, "NoApplicationProtocol").await;

    for (what, bytes) in [
        ("answers in the clear", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]),
        ("sends NUL", &[0; 64]),
        ("sends an alert", b"\x15\x03\x03\x00\x02\x02\x28"),
        ("speaks SSL 3", b"\x16\x03\x00\x00\x04\x02\x00\x00\x00"),
        ("promises a record too long", b"\x16\x03\x03\xff\xff"),
    ] {
        check(what, "localhost", Do::Bytes(bytes, End::Hang), failed, "the TLS handshake failed").await;
    }
    check(
        "closes in the handshake",
        "localhost",
        Do::Bytes(b"\x16\x03", End::Close),
        failed,
        "the TLS handshake failed",
    )
    .await;
    check(
        "resets in the handshake",
        "localhost",
        Do::Bytes(b"", End::Reset),
        failed,
        "the TLS handshake failed",
    )
    .await;
    check("says nothing", "localhost", Do::Bytes(b"", End::Hang), Outcome::ConnectTimeout, "longer than 1s")
        .await;
    check(
        "stops in the handshake",
        "localhost",
        Do::Bytes(b"\x16\x03\x03", End::Hang),
        Outcome::ConnectTimeout,
        "longer than 1s",
    )
    .await;
}
