//! TLS 1.2 and 1.3 for the public listener, from certificate files that are read again at every reload, and what clients
//! prove by certificates of their own. HTTP/2 is offered by ALPN, and only here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::answer::Rejection;
use crate::clock::{Timestamp, later};
use crate::config::{ClientCa, Tls};
use crate::identity::{Identity, not_after};

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
    /// A certificate in it cannot be read.
    #[error("{} holds a certificate that cannot be read", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: x509_cert::der::Error,
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

/// When what a file holds ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Which file: [`Expiry::CERT`] or [`Expiry::CLIENT_CA`].
    pub file: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// The last moment of the gateway's own certificate, or of the first authority to expire.
    pub not_after: Timestamp,
}

impl Expiry {
    /// The chain that is served.
    pub const CERT: &'static str = "cert";
    /// The authorities of client certificates.
    pub const CLIENT_CA: &'static str = "client_ca";
    /// So long before the end an operator is told of it: after a renewal that failed there is time for others.
    pub const AHEAD: Duration = Duration::from_hours(24 * 14);

    /// The key of the configuration that names the file.
    pub fn key(&self) -> String {
        format!("listen.tls.{}", self.file)
    }

    /// Whether the end is near enough to be told, or past.
    pub fn is_near(&self, now: Timestamp) -> bool {
        self.not_after < later(now, Self::AHEAD)
    }

    /// Whether the end is past.
    pub fn is_past(&self, now: Timestamp) -> bool {
        self.not_after < now
    }
}

/// Judges certificate files without using them, and tells when they end.
///
/// # Errors
/// When the listener could not use them.
pub fn check_certificate(tls: &Tls) -> Result<Vec<Expiry>, TlsError> {
    Terms::load(tls).map(|terms| terms.expiries.clone())
}

/// What the files say: on which terms connections are taken.
pub(super) struct Terms {
    /// Has sessions of its own to resume: those that began on other terms are not among them.
    pub(super) config: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) expiries: Vec<Expiry>,
}

impl Terms {
    /// Reads the files.
    pub(super) fn load(tls: &Tls) -> Result<Arc<Self>, TlsError> {
        let unusable = |error| TlsError::Unusable { path: tls.cert.clone(), error };
        let (chain, expiry) = certificates(&tls.cert, Expiry::CERT)?;
        let mut expiries = vec![expiry];
        let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?).map_err(|error| TlsError::NotPem {
            path: tls.key.clone(),
            wanted: "private key",
            error,
        })?;
        let builder =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(unusable)?;
        let (builder, clients) = match &tls.client_ca {
            None => (builder.with_no_client_auth(), None),
            Some(ca) => {
                let (authorities, expiry) = certificates(&ca.path, Expiry::CLIENT_CA)?;
                expiries.push(expiry);
                let verifier = verifier(ca, authorities)?;
                (builder.with_client_cert_verifier(Arc::clone(&verifier)), Some(verifier))
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(Self { config: Arc::new(config), clients, expiries }))
    }

    /// What the client of a connection that was taken on these terms has proven.
    pub(super) fn proven(
        &self,
        connection: &ServerConnection,
    ) -> Result<Option<Arc<Proven>>, x509_cert::der::Error> {
        let (Some(by), Some(chain)) = (&self.clients, connection.peer_certificates()) else {
            return Ok(None);
        };
        let Some(own) = chain.first() else { return Ok(None) };
        let identity = Identity::of(own)?;
        Ok(Some(Arc::new(Proven::new(identity, chain, Arc::clone(by)))))
    }

    /// Whether a connection, which may have begun on other terms, or before its client's certificate expired, is still
    /// good for a request: who was taken off the list must not go on for as long as a connection or a session lasts.
    pub(super) fn admit(&self, proven: Option<&Proven>, now: Timestamp) -> Result<(), Rejection> {
        let Some(clients) = &self.clients else { return Ok(()) };
        let admitted = match proven {
            None => !clients.client_auth_mandatory(),
            Some(proven) if Arc::ptr_eq(&proven.by, clients) && now <= proven.unchanged_until => true,
            Some(proven) => proven.is_vouched_for(clients.as_ref(), now),
        };
        if admitted { Ok(()) } else { Err(Rejection::CertificateNotAllowed) }
    }
}

/// The certificate that a client has proven to hold.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) identity: Identity,
    /// Its own certificate first.
    chain: Vec<CertificateDer<'static>>,
    /// When the first of them to expire does. It may be one that nobody needs, so from then on it is verified anew.
    unchanged_until: Timestamp,
    /// Who has verified it.
    by: Arc<dyn ClientCertVerifier>,
}

impl Proven {
    fn new(identity: Identity, chain: &[CertificateDer<'_>], by: Arc<dyn ClientCertVerifier>) -> Self {
        // One that only the TLS library can read may expire at any time.
        let ends = chain.iter().map(|certificate| not_after(certificate).unwrap_or(Timestamp::MIN));
        let unchanged_until = ends.min().unwrap_or(Timestamp::MIN);
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Self { identity, chain, unchanged_until, by }
    }

    fn is_vouched_for(&self, verifier: &dyn ClientCertVerifier, now: Timestamp) -> bool {
        let now = Duration::from_millis(now.as_millisecond().try_into().unwrap_or(0));
        let now = UnixTime::since_unix_epoch(now);
        let verified = |(own, others): (&_, &[_])| verifier.verify_client_cert(own, others, now).is_ok();
        self.chain.split_first().is_some_and(verified)
    }
}

fn verifier(
    ca: &ClientCa,
    authorities: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots.add(certificate).map_err(|error| TlsError::Unusable { path: ca.path.clone(), error })?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if ca.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| TlsError::Authorities { path: ca.path.clone(), error })
}

/// The certificates of a file, and when what it is there for ends.
fn certificates(path: &Path, file: &'static str) -> Result<(Vec<CertificateDer<'static>>, Expiry), TlsError> {
    let not_pem = |error| TlsError::NotPem { path: path.to_owned(), wanted: "certificate", error };
    let pem = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(not_pem)?;
    // Behind the gateway's own there may be some that no sender needs, such as an old cross-signed root.
    let judged = if file == Expiry::CERT { 1 } else { chain.len() };
    let ends = chain.iter().take(judged).map(|certificate| not_after(certificate));
    let ends: Vec<Timestamp> = ends
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Malformed { path: path.to_owned(), error })?;
    match ends.into_iter().min() {
        Some(not_after) => Ok((chain, Expiry { file, path: path.to_owned(), not_after })),
        None => Err(not_pem(pem::Error::NoItemsFound)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa,
        KeyPair,
    };

    use super::*;
    use crate::clock::from_milliseconds;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn ending_in(year: i32) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params
    }

    fn authority_of(mut params: CertificateParams) -> Authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn authority() -> Authority {
        authority_of(CertificateParams::default())
    }

    fn terms(clients: Option<(&Authority, bool)>) -> Arc<Terms> {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::default().self_signed(&key).unwrap().pem();
        load(cert, &key, clients.map(|(ca, required)| (ca.pem(), required)))
    }

    fn load(cert: String, key: &KeyPair, clients: Option<(String, bool)>) -> Arc<Terms> {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let client_ca = clients.map(|(ca, required)| ClientCa { path: write("ca.pem", ca), required });
        let key = write("key.pem", key.serialize_pem());
        Terms::load(&Tls { cert: write("cert.pem", cert), key, client_ca }).unwrap()
    }

    fn proven(chain: &[&Certificate], terms: &Terms) -> Proven {
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.der().clone()).collect();
        let identity = Identity::of(&chain[0]).unwrap();
        Proven::new(identity, &chain, Arc::clone(terms.clients.as_ref().unwrap()))
    }

    #[test]
    fn a_connection_is_good_for_as_long_as_somebody_vouches_for_its_client() {
        let (first, second) = (authority(), authority());
        let (begun, same, other) =
            (terms(Some((&first, true))), terms(Some((&first, true))), terms(Some((&second, false))));
        let own = ending_in(2027).signed_by(&KeyPair::generate().unwrap(), &first).unwrap();
        let proven = proven(&[&own], &begun);
        let ends = not_after(own.der()).unwrap();
        let late = from_milliseconds(ends.as_millisecond() + 1_000);
        let check = |terms: &Terms, proven, now, expected| {
            assert_eq!(terms.admit(proven, now).is_ok(), expected, "{proven:?} at {now}");
        };
        for vouching in [&begun, &same] {
            check(vouching, Some(&proven), ends, true);
            check(vouching, Some(&proven), late, false);
            check(vouching, None, ends, false);
        }
        check(&other, Some(&proven), ends, false);
        check(&other, None, ends, true);
        // Nobody is asked any more.
        check(&terms(None), Some(&proven), late, true);
    }

    #[test]
    fn an_intermediate_that_has_expired_vouches_for_nobody_and_one_that_is_not_needed_harms_nobody() {
        let root = authority();
        let terms = terms(Some((&root, true)));
        let mut params = ending_in(2027);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        let between = Authority::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
        let ends = not_after(between.der()).unwrap();
        let late = from_milliseconds(ends.as_millisecond() + 1_000);
        let key = KeyPair::generate().unwrap();
        let own = |issuer: &Authority| CertificateParams::default().signed_by(&key, issuer).unwrap();
        let admitted = |own: &Certificate, now| {
            terms.admit(Some(&proven(&[own, between.as_ref()], &terms)), now).is_ok()
        };
        assert_eq!([ends, late].map(|now| admitted(&own(&between), now)), [true, false]);
        assert_eq!([ends, late].map(|now| admitted(&own(&root), now)), [true, true]);
    }

    #[test]
    fn what_ends_is_the_own_certificate_and_the_first_authority() {
        let key = KeyPair::generate().unwrap();
        let own = ending_in(2030).self_signed(&key).unwrap();
        let old = authority_of(ending_in(2020));
        let mut strange = ending_in(2028);
        // An alternative name of no known kind, which is not for us to judge.
        let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 2, 5, 0]);
        strange.custom_extensions.push(names);
        let strange = authority_of(strange);
        assert!(Identity::of(strange.der()).is_err());
        let authorities = strange.pem() + &authority_of(ending_in(2029)).pem();
        let terms = load(own.pem() + &old.pem(), &key, Some((authorities, true)));
        let ends = terms.expiries.iter().map(|expiry| (expiry.key(), expiry.not_after));
        let expected = [("listen.tls.cert", own.der()), ("listen.tls.client_ca", strange.der())]
            .map(|(key, certificate)| (key.to_owned(), not_after(certificate).unwrap()));
        assert_eq!(ends.collect::<Vec<_>>(), expected);
    }
}
