//! A gateway that speaks TLS, and what clients of its HTTP/2 need.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ALL_VERSIONS, ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::backend::Backend;
use crate::sender::{Wire, every_provider};
use crate::support::{Gateway, PATIENCE, write_config};

/// The name in its certificate.
pub(crate) const NAME: &str = "gateway.example";

/// It, its backend, and its clients' configuration.
pub(crate) struct Secure {
    pub(crate) gateway: Gateway,
    pub(crate) backend: Backend,
    pub(crate) client: Arc<ClientConfig>,
}

impl Secure {
    /// With every provider, behind these sections.
    pub(crate) fn start(sections: &str) -> Self {
        let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        // Beside the configuration, where the next start finds it, too.
        let directory = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(directory.path().join("cert.pem"), certified.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
        let backend = Backend::accepting();
        let sections = format!(
            "listen.tls = {{ cert = \"{0}/cert.pem\", key = \"{0}/key.pem\" }}\n{sections}{1}",
            directory.path().display(),
            every_provider(&backend)
        );
        write_config(directory.path(), &sections);
        let gateway = Gateway::start_in(directory, |_| ());
        let client = http2_client(certified.cert.der());
        Self { gateway, backend, client }
    }
}

/// What a client takes that believes this certificate and speaks HTTP/2.
pub(crate) fn http2_client(certificate: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut client = client(&[certificate], None, ALL_VERSIONS);
    client.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(client)
}

/// An authority of a test's own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.0.der()
    }

    pub(crate) fn issue(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }
}

/// A client that believes these roots, and has this certificate.
pub(crate) fn client(
    roots: &[&CertificateDer<'static>],
    own: Option<&Issued>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add((*root).clone()).unwrap();
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(store);
    match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![own.certificate.der().clone()], key).unwrap()
        }
    }
}

/// A connection to the gateway; its handshake is made when it is first used.
pub(crate) fn open(
    client: &Arc<ClientConfig>,
    to: SocketAddr,
) -> Wire<StreamOwned<ClientConnection, TcpStream>> {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(Arc::clone(client), ServerName::try_from(NAME).unwrap()).unwrap();
    Wire::over(StreamOwned::new(connection, stream))
}
