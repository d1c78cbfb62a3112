//! A gateway that speaks TLS, and what clients of its HTTP/2 need.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::backend::Backend;
use crate::sender::every_provider;
use crate::support::{Gateway, write_config};

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
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        Self { gateway, backend, client: Arc::new(client) }
    }
}
