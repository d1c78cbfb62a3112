//! Client certificates: whose they are decides where their holders may send, for as long as somebody vouches for them.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, ClientConfig, HandshakeKind};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::backend::Backend;
use crate::sender::{Answer, Post, every_provider};
use crate::support::{Gateway, write_config};
use crate::tls::{Authority, Issued, NAME, client, open};

/// A certificate with this subject, and perhaps a DNS name.
fn subject(pairs: &[(DnType, &str)], dns_name: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::new(dns_name.map(str::to_owned).as_slice()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in pairs {
        params.distinguished_name.push(kind.clone(), *value);
    }
    params
}

/// Hostwares', which the rule of the source `github` names.
fn named() -> CertificateParams {
    let pairs =
        [(DnType::CountryName, "DE"), (DnType::OrganizationName, "Hostwares"), (DnType::CommonName, "hooks")];
    subject(&pairs, None)
}

/// A gateway that asks for client certificates, and what vouches for whom.
struct Asking {
    gateway: Gateway,
    backend: Backend,
    /// Vouches for the gateway.
    root: Authority,
}

impl Asking {
    /// `github` wants a subject, `owlette` an address that nobody has, the others nothing.
    fn start(client_certificate: &str, ca: &Authority) -> Self {
        let root = Authority::new();
        let directory = Arc::new(TempDir::new().unwrap());
        let Issued { certificate, key } =
            root.issue(&CertificateParams::new([NAME.to_owned()].as_slice()).unwrap());
        std::fs::write(directory.path().join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
        let backend = Backend::accepting();
        let tls = format!(
            "cert = \"cert.pem\", key = \"key.pem\", client_ca = \"ca.pem\", client_certificate = \"{client_certificate}\""
        );
        let sources = every_provider(&backend)
            .replace(
                "name = \"github\"\n",
                "name = \"github\"\nallow_subjects = [\"CN=hooks,O=Hostwares\", \"DNS:client.example\"]\n",
            )
            .replace("name = \"owlette\"\n", "name = \"owlette\"\nallow_addresses = [\"192.0.2.0/24\"]\n");
        write_config(directory.path(), &format!("listen.tls = {{ {tls} }}\n{sources}"));
        Self { gateway: Gateway::start_in(directory, |_| ()), backend, root }
    }

    fn client(&self, own: Option<&Issued>) -> Arc<ClientConfig> {
        Arc::new(client(&[self.root.der()], own, ALL_VERSIONS))
    }

    /// Sends a good delivery to a provider's source; `None` when the connection is refused.
    fn send(&self, client: &Arc<ClientConfig>, provider: &str) -> Option<Answer> {
        let mut wire = open(client, self.gateway.listen);
        wire.write(&post(provider).with("Connection", "close").bytes());
        wire.read()
    }

    /// Its status, and whether the session was resumed.
    fn send_anew(&self, client: &Arc<ClientConfig>) -> Option<(u16, bool)> {
        let mut wire = open(client, self.gateway.listen);
        wire.write(&post("github").with("Connection", "close").bytes());
        let answer = wire.read()?;
        Some((answer.status, wire.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)))
    }

    fn statuses(&self, client: &Arc<ClientConfig>) -> [Option<u16>; 2] {
        ["github", "stripe"].map(|provider| Some(self.send(client, provider)?.status))
    }

    /// Has the gateway believe these authorities from now on.
    fn believe(&self, authorities: &[&Authority]) {
        let pem: String = authorities.iter().map(|authority| authority.pem()).collect();
        std::fs::write(self.gateway.directory().join("ca.pem"), pem).unwrap();
        let series = "countersign_config_reloads_total{outcome=\"succeeded\"}";
        let before = self.gateway.metric(series).unwrap();
        self.gateway.signal("HUP");
        self.gateway.eventually_metric(series, before + 1.0);
    }
}

fn post(provider: &str) -> Post {
    let id = format!("d-{}", fastrand::u64(..));
    Post::signed(provider, &format!("/webhooks/{provider}"), &id, "push", &crate::sender::body(&id))
}

#[test]
fn a_source_takes_only_those_whose_certificate_it_names() {
    let ca = Authority::new();
    let asking = Asking::start("optional", &ca);
    let with = |params: CertificateParams| asking.client(Some(&ca.issue(&params)));
    let (hostwares, nobody) = (with(named()), asking.client(None));
    assert_eq!(asking.statuses(&hostwares), [Some(200); 2]);
    let by_dns = with(subject(&[(DnType::CommonName, "x")], Some("client.example")));
    assert_eq!(asking.statuses(&by_dns), [Some(200); 2]);
    let other = with(subject(
        &[(DnType::OrganizationName, "Another"), (DnType::CommonName, "hooks")],
        Some("other.example"),
    ));
    for refused in [&other, &nobody] {
        assert_eq!(asking.statuses(refused), [Some(403), Some(200)]);
    }
    // A certificate that does not verify is refused wherever it is shown.
    let forged = asking.client(Some(&Authority::new().issue(&named())));
    let mut expired = named();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut server_only = named();
    server_only.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    for unverified in [&forged, &with(expired), &with(server_only)] {
        assert_eq!(asking.statuses(unverified), [None; 2]);
    }

    let series = "countersign_ingest_rejections_total{reason=\"certificate_not_allowed\",source=\"github\"}";
    assert_eq!(asking.gateway.metric(series), Some(2.0));
    assert!(asking.gateway.log().contains("\"reason\":\"certificate_not_allowed\""));
    let undated = |provider| {
        let mut answer = asking.send(&other, provider).unwrap();
        answer.headers.retain(|header| !header.starts_with("date: "));
        answer
    };
    assert_eq!(undated("github"), undated("owlette"), "like an address that is not allowed");
    // Over HTTP/2 as well.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = |client| runtime.block_on(async { Http2::open(&asking.gateway, client).await.send().await });
    assert_eq!([status(&hostwares), status(&other), status(&nobody)], [200, 403, 403]);
    // Two clients over HTTP/1 to two sources, two to one, and one over HTTP/2.
    assert_eq!(asking.backend.eventually_got(7).len(), 7);
}

/// A connection over HTTP/2, and how it ends.
struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    async fn open(gateway: &Gateway, client: &ClientConfig) -> Self {
        let mut client = client.clone();
        client.alpn_protocols = vec![b"h2".to_vec()];
        let socket = tokio::net::TcpStream::connect(gateway.listen).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    async fn send(&mut self) -> u16 {
        let post = post("github");
        let mut request = http::Request::post(format!("https://{NAME}{}", post.target));
        for (name, value) in &post.headers {
            request = request.header(name, value.as_slice());
        }
        let request = request.body(Full::new(Bytes::from(post.body))).unwrap();
        self.sender.send_request(request).await.unwrap().status().as_u16()
    }
}

#[test]
fn a_listener_that_demands_certificates_talks_to_nobody_without() {
    let ca = Authority::new();
    let asking = Asking::start("required", &ca);
    assert_eq!(asking.statuses(&asking.client(Some(&ca.issue(&named())))), [Some(200); 2]);
    let other = asking.client(Some(&ca.issue(&subject(&[(DnType::CommonName, "x")], None))));
    assert_eq!(asking.statuses(&other), [Some(403), Some(200)]);
    assert_eq!(asking.statuses(&asking.client(None)), [None; 2]);
    let failed = "countersign_ingest_connections_refused_total{reason=\"tls_failed\"}";
    asking.gateway.eventually_metric(failed, 2.0);
    assert!(asking.gateway.log().contains("connection refused"), "an operator sees why nobody comes in");
}

/// A session may be resumed, and a connection may go on, long after its handshake.
#[test]
fn an_authority_that_is_not_believed_any_more_ends_its_sessions_and_connections() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for version in [&TLS12, &TLS13] {
        let (first, second) = (Authority::new(), Authority::new());
        let asking = Asking::start("optional", &first);
        let client = |params| Arc::new(client(&[asking.root.der()], Some(&first.issue(&params)), &[version]));
        let (hostwares, other) = (client(named()), client(subject(&[(DnType::CommonName, "x")], None)));
        let mut kept = open(&hostwares, asking.gateway.listen);
        let mut on_the_kept_one = || {
            kept.write(&post("github").bytes());
            kept.read().map(|answer| (answer.status, answer.header("connection") == Some("close")))
        };
        assert_eq!(on_the_kept_one(), Some((200, false)));
        let mut kept_http2 = runtime.block_on(Http2::open(&asking.gateway, &hostwares));
        assert_eq!(runtime.block_on(kept_http2.send()), 200);
        // A resumed session is of whom it was.
        assert_eq!(asking.send_anew(&hostwares), Some((200, true)), "{version:?}");
        assert_eq!(asking.send_anew(&other), Some((403, false)), "{version:?}");
        assert_eq!(asking.send_anew(&other), Some((403, true)), "{version:?}");

        // Still vouched for: what is open goes on, and what is new begins anew.
        asking.believe(&[&second, &first]);
        assert_eq!(on_the_kept_one(), Some((200, false)));
        assert_eq!(asking.send_anew(&hostwares), Some((200, false)), "{version:?}");
        assert_eq!(asking.send_anew(&hostwares), Some((200, true)), "{version:?}");
        assert_eq!(runtime.block_on(kept_http2.send()), 200);

        // Nobody vouches any more.
        asking.believe(&[&second]);
        assert_eq!(asking.send_anew(&hostwares), None, "{version:?}");
        assert_eq!(on_the_kept_one(), Some((403, true)));
        assert_eq!(on_the_kept_one(), None);
        assert_eq!(runtime.block_on(kept_http2.send()), 403);
        runtime.block_on(kept_http2.connection).unwrap().unwrap();
        let series =
            "countersign_ingest_rejections_total{reason=\"certificate_not_allowed\",source=\"unmatched\"}";
        assert_eq!(asking.gateway.metric(series), Some(2.0));
    }
}
