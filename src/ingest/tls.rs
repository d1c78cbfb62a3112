//! TLS 1.2 and 1.3 for the public listener, from certificate files that are read again at every reload. HTTP/2 is
//! offered by ALPN, and only here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::config::Tls;

/// Why certificate files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It is not PEM, or does not hold what it should.
    #[error("{} holds no {wanted} in PEM form", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// Why.
        #[source]
        error: pem::Error,
    },
    /// The parts do not fit each other.
    #[error("{} cannot be used with its key", path.display())]
    Unusable {
        /// The certificate file.
        path: PathBuf,
        /// Why.
        #[source]
        error: rustls::Error,
    },
    /// The client authorities cannot be used.
    #[error("{} cannot be used as authorities of client certificates", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: rustls::server::VerifierBuilderError,
    },
}

/// Judges certificate files without using them.
///
/// # Errors
/// When the listener could not use them.
pub fn check_certificate(tls: &Tls) -> Result<(), TlsError> {
    load(tls).map(drop)
}

/// Reads the files.
pub(super) fn load(tls: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable = |error| TlsError::Unusable { path: tls.cert.clone(), error };
    let chain = certificates(&tls.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?).map_err(|error| TlsError::NotPem {
        path: tls.key.clone(),
        wanted: "private key",
        error,
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| TlsError::Unusable { path: path.clone(), error })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| TlsError::Authorities { path: path.clone(), error })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = |error| TlsError::NotPem { path: path.to_owned(), wanted: "certificate", error };
    let pem = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(not_pem)?;
    if chain.is_empty() { Err(not_pem(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error })
}
