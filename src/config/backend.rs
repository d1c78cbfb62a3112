//! `destination.auth` and `destination.tls`: how the gateway proves itself to a backend, and a backend to the gateway. The
//! files are read with the configuration, so that a reload takes new ones, or none at all when one of them is wrong.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::secrets;
use super::values::{Context, read_file, unreadable};
use crate::reader::{Table, Value};

/// Chains and bundles of authorities have some hundred KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// `destination.tls`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendTls {
    /// The authorities that the backend's certificate may be from; empty: those of the system.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Shown to a backend that asks for a certificate.
    pub identity: Option<Arc<ClientIdentity>>,
}

/// A certificate of the gateway's own, and its key.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Its chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// `auth`, as the header that it is.
pub(super) fn read_auth(
    table: &Table<'_>,
    headers: &mut Vec<(HeaderName, HeaderValue)>,
    context: &Context<'_>,
) {
    const HELP: &str =
        "a table such as { basic = { user = \"countersign\", password = { env = \"LEGACY_PASSWORD\" } } }";
    let Some(value) = table.get("auth") else { return };
    value.conceal(&["user", "env", "file"]);
    let basic =
        value.table(HELP).and_then(|auth| auth.require("basic", HELP)).and_then(|basic| basic.table(HELP));
    let Some(basic) = basic else { return };
    let user = basic.require("user", HELP).and_then(|user| {
        let text = user.text()?;
        let fits = !text.contains(':') && !text.chars().any(char::is_control);
        if !fits {
            user.wrong("a user name has neither a colon nor control characters", HELP);
        }
        fits.then_some(text)
    });
    let password = basic.require("password", HELP).and_then(|password| {
        password.conceal(&["env", "file"]);
        secrets::find(&password.table(HELP)?, context)
    });
    let (Some(user), Some(password)) = (user, password) else { return };
    if password.secret.expose().iter().any(u8::is_ascii_control) {
        password.at.wrong("the password has control characters", "text without line breaks");
        return;
    }
    if headers.iter().any(|(name, _)| *name == AUTHORIZATION) {
        value.wrong("`headers` sets `Authorization` as well", "leave one of them out");
        return;
    }
    let pair = Zeroizing::new([user.as_bytes(), b":", password.secret.expose()].concat());
    let header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(&*pair)));
    let mut header = header.expect("letters, digits, `+`, `/`, `=` and a space may be in a header");
    header.set_sensitive(true);
    headers.push((AUTHORIZATION, header));
}

/// `tls`; of a URL that is not https it is a mistake.
pub(super) fn read_tls(table: &Table<'_>, url: Option<&Uri>, context: &Context<'_>) -> BackendTls {
    const HELP: &str = "a table such as { ca = \"ca.pem\", cert = \"client.pem\", key = \"client.key\" }";
    let Some(value) = table.get("tls") else { return BackendTls::default() };
    let Some(tls) = value.table(HELP) else { return BackendTls::default() };
    if url.is_some_and(|url| url.scheme() != Some(&Scheme::HTTPS)) {
        value.wrong(
            "`tls` has no effect: the URL does not begin with `https://`",
            "an https URL, or no `tls`",
        );
    }
    let authorities = tls.get("ca").and_then(|ca| {
        let authorities = certificates(&ca, context)?;
        let added = authorities.iter().map(|authority| RootCertStore::empty().add(authority.clone()));
        if let Some(Err(error)) = added.into_iter().find(Result::is_err) {
            ca.wrong(
                format!("a certificate in it cannot be an authority: {error}"),
                "certificates of authorities",
            );
            return None;
        }
        Some(authorities)
    });
    let (cert, key) = (tls.get("cert"), tls.get("key"));
    if let (Some(alone), None) | (None, Some(alone)) = (&cert, &key) {
        alone.wrong("a client certificate is `cert` and `key`", HELP);
    }
    let chain = cert.as_ref().and_then(|cert| certificates(cert, context));
    let key = key.and_then(|value| Some((private_key(&value, context)?, value)));
    let identity = chain.zip(key).and_then(|(chain, (key, at))| {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
            Ok(_) => Some(Arc::new(ClientIdentity { chain, key })),
            Err(error) => {
                at.wrong(
                    format!("the key cannot be used with `cert`: {error}"),
                    "the key of the certificate",
                );
                None
            }
        }
    });
    BackendTls { authorities: authorities.unwrap_or_default(), identity }
}

fn certificates(value: &Value<'_>, context: &Context<'_>) -> Option<Vec<CertificateDer<'static>>> {
    const HELP: &str = "a file with certificates in PEM";
    let pem = read(value, HELP, context)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Some(found),
        Ok(_) | Err(_) => {
            value.wrong("it holds no certificate in PEM form", HELP);
            None
        }
    }
}

fn private_key(value: &Value<'_>, context: &Context<'_>) -> Option<PrivateKeyDer<'static>> {
    const HELP: &str = "a file with the private key in PEM, without a passphrase";
    let pem = read(value, HELP, context)?;
    let key = PrivateKeyDer::from_pem_slice(&pem);
    if key.is_err() {
        value.wrong("it holds no private key in PEM form", HELP);
    }
    key.ok()
}

fn read(value: &Value<'_>, help: &str, context: &Context<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let path = context.directory.join(value.text()?);
    match read_file(&path, FILE_BYTES_MAX) {
        Ok(bytes) => Some(Zeroizing::new(bytes)),
        Err(error) => {
            value.wrong(unreadable(&path, &error), help);
            None
        }
    }
}
