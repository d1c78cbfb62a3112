//! Each way in which a backend can fail is told apart, and retried only where that may help.

use std::sync::Arc;
use std::time::Duration;

use countersign::clock::{Timestamp, elapsed};
use countersign::dispatch::LaneState;
use countersign::forward::{BreakerPolicy, Outcome, Progress, Schedule};
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::backend::{Backend, Reply};
use crate::support::{Gateway, delivery, destination, eventually, is_alone, retry_late};

/// Sends one delivery to `url`; returns the first attempt's outcome, status and detail, and what became of the forward.
async fn attempt(url: &str, timeout: Duration) -> (String, Option<u16>, String, Progress) {
    let mut to = destination("legacy", url);
    to.timeout = timeout;
    to.retry = retry_late();
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"{}"), "legacy");
    let record = gateway.first_record().await;
    (record.outcome.to_owned(), record.status, record.detail, gateway.row().progress)
}

/// `reply` has this outcome, and whether the forward is tried again follows from it.
async fn check(reply: Reply, outcome: Outcome, status: Option<u16>) {
    let backend = Backend::always(reply.clone()).await;
    // A time limit only where it is the point: nothing else may depend on how busy the machine is.
    let timeout = Duration::from_millis(if outcome == Outcome::Timeout { 100 } else { 10_000 });
    let (found, found_status, detail, progress) = attempt(&backend.url("/"), timeout).await;
    let reply = format!("{reply:?}").chars().take(200).collect::<String>();
    assert_eq!((found.as_str(), found_status), (outcome.label(), status), "{reply}: {detail}");
    match progress {
        Progress::Delivered => assert_eq!(outcome, Outcome::Delivered, "{reply}"),
        Progress::Dead => assert!(!outcome.is_retried(), "{reply}"),
        Progress::Waiting { .. } => assert!(outcome.is_retried(), "{reply}"),
        Progress::InFlight { .. } | Progress::Cancelled => panic!("{reply}: {progress:?}"),
    }
    assert_eq!(backend.count(), 1, "{reply}: sent once");
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

#[tokio::test]
async fn any_2xx_is_delivered() {
    for status in [200, 201, 202, 299] {
        check(Reply::status(status), Outcome::Delivered, Some(status)).await;
    }
    let no_content = bytes("HTTP/1.1 204 No Content\r\n\r\n");
    check(Reply::Send(no_content), Outcome::Delivered, Some(204)).await;
    let until_close = bytes("HTTP/1.0 200 OK\r\n\r\nfine");
    check(Reply::SendAndClose(until_close), Outcome::Delivered, Some(200)).await;
    let chunked = bytes("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n");
    check(Reply::Send(chunked), Outcome::Delivered, Some(200)).await;
    let after_hints = bytes(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    );
    check(Reply::Send(after_hints), Outcome::Delivered, Some(200)).await;
}

#[tokio::test]
async fn a_4xx_is_dead_at_once_and_a_busy_backend_is_not() {
    for status in [400, 401, 404, 410, 422] {
        check(Reply::status(status), Outcome::Rejected, Some(status)).await;
    }
    for status in [408, 425, 429, 500, 502, 503, 599, 999] {
        check(Reply::status(status), Outcome::RetryableStatus, Some(status)).await;
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let elsewhere = Backend::always(Reply::status(200)).await;
    for status in [300, 301, 302, 303, 307, 308] {
        let location = format!("location: {}", elsewhere.url("/"));
        check(Reply::with_header(status, &location), Outcome::Redirected, Some(status)).await;
    }
    let own = Reply::with_header(307, "location: /again");
    check(own, Outcome::Redirected, Some(307)).await;
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test]
async fn a_backend_that_takes_too_long_is_told_from_one_that_is_gone() {
    check(Reply::hang(), Outcome::Timeout, None).await;
    check(Reply::SendAndHang(bytes("HTTP/1.1 200")), Outcome::Timeout, None).await;
    let stuck = bytes("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    check(Reply::SendAndHang(stuck), Outcome::Timeout, Some(200)).await;
    check(Reply::SendAndClose(Vec::new()), Outcome::ConnectionLost, None).await;
    check(Reply::SendAndReset(Vec::new()), Outcome::ConnectionLost, None).await;
    check(Reply::SendAndClose(bytes("HTTP/1.1 200 OK\r\ncontent-le")), Outcome::ConnectionLost, None).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_acceptance() {
    let short = bytes("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf");
    check(Reply::SendAndClose(short.clone()), Outcome::ConnectionLost, Some(200)).await;
    check(Reply::SendAndReset(short), Outcome::ConnectionLost, Some(200)).await;
    let chunks = bytes("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
    check(Reply::SendAndClose(chunks), Outcome::ConnectionLost, Some(200)).await;
    let refusal = bytes("HTTP/1.1 400 No\r\ncontent-length: 9\r\n\r\nhalf");
    check(Reply::SendAndClose(refusal), Outcome::Rejected, Some(400)).await;
}

#[tokio::test]
async fn what_is_not_http_is_an_invalid_response() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let status = garbage.contains(" 101 ").then_some(101);
        check(Reply::SendAndClose(bytes(garbage)), Outcome::InvalidResponse, status).await;
    }
    for chunk in ["zz\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "5\r\nhelloXX0\r\n\r\n"] {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        check(Reply::SendAndHang(bytes(&format!("{head}{chunk}"))), Outcome::InvalidResponse, Some(200))
            .await;
    }
    let endless_head = Reply::Endless(bytes("HTTP/1.1 200 OK\r\nx: "), vec![b'x'; 4096]);
    check(endless_head, Outcome::InvalidResponse, None).await;
}

#[tokio::test]
async fn an_answer_without_end_is_cut_and_judged_by_its_status() {
    let head = |status| bytes(&format!("HTTP/1.1 {status} X\r\ntransfer-encoding: chunked\r\n\r\n"));
    let more = [bytes("1000\r\n"), vec![b'x'; 4096], bytes("\r\n")].concat();
    check(Reply::Endless(head(200), more.clone()), Outcome::Delivered, Some(200)).await;
    check(Reply::Endless(head(500), more.clone()), Outcome::RetryableStatus, Some(500)).await;
    let backend = Backend::always(Reply::Endless(head(404), more)).await;
    let (_, _, detail, _) = attempt(&backend.url("/"), Duration::from_secs(10)).await;
    assert_eq!(detail, "x".repeat(4096), "the beginning is kept");
}

#[tokio::test]
async fn failures_to_connect_are_told_apart() {
    let (outcome, ..) = attempt("http://backend.invalid/", Duration::from_secs(10)).await;
    assert_eq!(outcome, "dns_failed");

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (outcome, _, detail, progress) = attempt(&format!("http://{closed}/"), Duration::from_secs(10)).await;
    assert_eq!(outcome, "connect_failed");
    assert!(detail.contains("refused"), "{detail}");
    assert!(matches!(progress, Progress::Waiting { attempts: 1, .. }));

    // The kernel takes the connection; nobody answers the handshake.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut to = destination("legacy", &format!("https://{}/", silent.local_addr().unwrap()));
    to.connect_timeout = Duration::from_millis(100);
    to.retry = retry_late();
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"{}"), "legacy");
    assert_eq!(gateway.first_record().await.outcome, "connect_timeout");
}

/// A server's end of TLS with this certificate.
fn acceptor(certificate: &Certificate, key: &KeyPair) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_backend_that_the_systems_authorities_vouch_for_is_delivered_to_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let authorities = directory.path().join("authorities.pem");
    let prepare = format!("export SSL_CERT_FILE='{}'", authorities.display());
    let name = "outcomes::a_backend_that_the_systems_authorities_vouch_for_is_delivered_to_over_tls";
    if !is_alone(name, &prepare) {
        return;
    }
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(std::env::var_os("SSL_CERT_FILE").unwrap(), authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let acceptor = acceptor(&parameters.signed_by(&key, &authority).unwrap(), &key);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n{}") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream.flush().await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let (outcome, status, detail, progress) =
        attempt(&format!("https://localhost:{port}/hooks"), Duration::from_secs(10)).await;
    assert_eq!(
        (outcome.as_str(), status, progress),
        ("delivered", Some(200), Progress::Delivered),
        "{detail}"
    );
    let request = served.await.unwrap();
    assert!(request.starts_with("POST /hooks HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nhost: localhost:{port}\r\n")), "{request}");
}

#[tokio::test]
async fn a_backend_whose_certificate_nobody_vouches_for_gets_nothing() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let acceptor = acceptor(&made.cert, &made.signing_key);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let shaken = acceptor.accept(stream).await;
        assert!(shaken.is_err(), "the gateway hangs up");
    });
    let (outcome, _, detail, _) =
        attempt(&format!("https://localhost:{port}/"), Duration::from_secs(10)).await;
    assert_eq!(outcome, "tls_failed", "{detail}");
}

#[tokio::test]
async fn a_backend_that_answers_a_handshake_in_the_clear_gets_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let (outcome, _, detail, _) = attempt(&format!("https://{address}/"), Duration::from_secs(10)).await;
    assert_eq!(outcome, "tls_failed", "{detail}");
}

/// At the limit of open files every attempt failed to resolve or to connect. It was counted as the backend's failure:
/// breakers opened, attempts were used up, and healthy backends got dead letters.
#[tokio::test]
async fn a_gateway_that_is_out_of_files_waits_and_blames_no_backend() {
    if !is_alone("outcomes::a_gateway_that_is_out_of_files_waits_and_blames_no_backend", "ulimit -n 64") {
        return;
    }
    let backend = Backend::always(Reply::status(200)).await;
    let destinations = ["127.0.0.1", "localhost"].map(|host| {
        let mut to = destination(host, &format!("http://{host}:{}/", backend.address.port()));
        let pause = Duration::from_secs(60);
        to.breaker = Some(BreakerPolicy { failures: 1, probe_after: pause, probe_max: pause });
        to.retry.schedule = Schedule::List(Vec::new());
        to
    });
    let gateway = Gateway::start(destinations);
    let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    assert!(!files.is_empty());
    for name in ["127.0.0.1", "localhost"] {
        gateway.forward(delivery(b"{}"), name);
        eventually("it cannot be attempted", || gateway.attempts(name, Outcome::GatewayResources) > 1).await;
    }
    assert!(gateway.lanes.states().iter().all(|lane| lane.state == LaneState::Open));
    assert!(gateway.store.rows().iter().all(|row| row.records.is_empty()));

    drop(files);
    eventually("both are delivered", || gateway.delivered() == 2).await;
    assert!(backend.seen().iter().all(|seen| seen.one("countersign-attempt") == "1"));
    assert!(gateway.store.rows().iter().all(|row| row.records.len() == 1));
}

#[tokio::test]
async fn retry_after_is_honoured_and_capped() {
    for (asked, seconds) in [("120", 120), ("1000000000", 3_600), ("99999999999999999999999", 3_600)] {
        let backend = Backend::always(Reply::with_header(503, &format!("retry-after: {asked}"))).await;
        let mut to = destination("legacy", &backend.url("/"));
        to.retry.max_age = Duration::from_secs(7_200);
        let gateway = Gateway::start([to]);
        gateway.forward(delivery(b"{}"), "legacy");
        let record = gateway.first_record().await;
        let Progress::Waiting { due_at, attempts: 1 } = gateway.row().progress else { panic!("it waits") };
        let pause = elapsed(record.started_at, due_at);
        let expected = Duration::from_secs(seconds);
        assert!(pause >= expected && pause < expected + Duration::from_secs(10), "{asked}: {pause:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_dead_and_harms_nobody() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    let mut endless = delivery(b"{}");
    endless.target = format!("/?{}", "q".repeat(70_000));
    gateway.forward(endless, "legacy");
    assert_eq!(gateway.first_record().await.outcome, "unsendable");
    assert_eq!(gateway.row().progress, Progress::Dead);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("the next one is delivered", || gateway.delivered() == 1).await;
}

#[tokio::test]
async fn every_attempt_is_recorded_with_its_time() {
    let backend =
        Backend::first(vec![Reply::Send(bytes("HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\noops"))]).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    let sent = delivery(b"{}");
    let before: Timestamp = sent.received_at;
    gateway.forward(sent, "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;
    let records = gateway.row().records;
    assert_eq!(
        records.iter().map(|record| record.outcome).collect::<Vec<_>>(),
        ["retryable_status", "delivered"]
    );
    assert_eq!((records[0].status, records[0].detail.as_str()), (Some(500), "oops"));
    assert!(records[0].started_at >= before && records[1].started_at >= records[0].started_at);
    assert_eq!(gateway.attempts("legacy", Outcome::RetryableStatus), 1);
    assert_eq!(gateway.attempts("legacy", Outcome::Delivered), 1);
}
