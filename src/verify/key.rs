//! How a secret's text becomes a key. Belongs to the scheme: the same `whsec_` stands before base64 with Standard
//! Webhooks, and is part of the key with Stripe. Public keys may be raw, base64, hex, PEM, a JWK or an X.509
//! certificate.

use std::sync::Arc;

use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use sha1::{Digest, Sha1};
use x509_cert::der::{Decode, Encode};
use zeroize::Zeroizing;

use super::KeyError;
use super::algorithm::{Algorithm, PublicKeyAlgorithm};
use super::encoding::Encoding;
use crate::clock::Timestamp;
use crate::secret::Secret;

/// Shorter secrets can be found by trying: seven random letters take a day of a desktop's time.
pub(crate) const SECRET_BYTES_MIN: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyEncoding {
    /// The text is the key; of a public key, PEM or a JWK.
    Utf8,
    Base64,
    Hex,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyRule {
    pub(super) encoding: KeyEncoding,
    /// The first of these that the text begins with is removed.
    pub(super) strip: Vec<String>,
    /// The encoding of a text that begins with none of them; the same, when absent.
    pub(super) unprefixed: Option<KeyEncoding>,
    /// The key is the SHA-1 of the secret.
    pub(super) derive_sha1: bool,
}

impl Default for KeyRule {
    fn default() -> Self {
        Self { encoding: KeyEncoding::Utf8, strip: Vec::new(), unprefixed: None, derive_sha1: false }
    }
}

impl KeyRule {
    fn decode(&self, text: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let stripped = self.strip.iter().find_map(|prefix| text.strip_prefix(prefix.as_bytes()));
        let encoding = match (stripped, self.unprefixed) {
            (None, Some(unprefixed)) => unprefixed,
            (Some(_), _) | (None, None) => self.encoding,
        };
        let text = stripped.unwrap_or(text);
        let bytes = match encoding {
            KeyEncoding::Utf8 => text.to_vec(),
            KeyEncoding::Base64 => {
                Encoding::Base64.decode(text).ok_or_else(|| KeyError(not_encoded("base64", &self.strip)))?
            }
            KeyEncoding::Hex => {
                Encoding::Hex.decode(text).ok_or_else(|| KeyError(not_encoded("hex digits", &self.strip)))?
            }
        };
        Ok(Zeroizing::new(bytes))
    }
}

/// A key that tells whether a signature is right.
#[derive(Clone)]
pub(super) enum Key {
    /// Of a MAC.
    Shared(Zeroizing<Vec<u8>>),
    Public(Arc<ParsedPublicKey>),
}

impl Key {
    pub(super) fn new(algorithm: Algorithm, rule: &KeyRule, secret: &Secret) -> Result<Self, KeyError> {
        match algorithm.public_key() {
            None => Self::shared(rule, secret),
            Some(public) => Self::public(algorithm, public, rule, secret.expose()),
        }
    }

    /// `None` when it is no key for `algorithm`.
    pub(super) fn of_jwk(jwk: &Jwk, algorithm: Algorithm) -> Option<Self> {
        jwk.parse(algorithm).map(|key| Self::Public(Arc::new(key)))
    }

    fn shared(rule: &KeyRule, secret: &Secret) -> Result<Self, KeyError> {
        let bytes = rule.decode(secret.expose())?;
        long_enough(&bytes)?;
        Ok(Self::Shared(if rule.derive_sha1 { Zeroizing::new(Sha1::digest(&bytes).to_vec()) } else { bytes }))
    }

    fn public(
        algorithm: Algorithm,
        public: PublicKeyAlgorithm,
        rule: &KeyRule,
        text: &[u8],
    ) -> Result<Self, KeyError> {
        let unusable = || {
            let help = "raw, base64, hex, PEM, a certificate or a JWK";
            KeyError(format!("the secret must be the sender's public key for {}: {help}", algorithm.name()))
        };
        let text = text.trim_ascii();
        let parsed = if text.starts_with(b"{") {
            serde_json::from_slice::<Jwk>(text).ok().and_then(|jwk| jwk.parse(algorithm))
        } else {
            let bytes = match pem(text) {
                Some(der) => der,
                None => rule.decode(text)?.to_vec(),
            };
            ParsedPublicKey::new(public.verification(), bytes).ok()
        };
        parsed.map(|key| Self::Public(Arc::new(key))).ok_or_else(unusable)
    }
}

/// The public key of a PEM section, or of the certificate in it.
fn pem(text: &[u8]) -> Option<Vec<u8>> {
    if !text.starts_with(b"-----BEGIN ") {
        return None;
    }
    let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(text).ok()?;
    match kind {
        SectionKind::Certificate => {
            let certificate = x509_cert::Certificate::from_der(&der).ok()?;
            certificate.tbs_certificate().subject_public_key_info().to_der().ok()
        }
        _ => Some(der),
    }
}

/// From when until when the certificate in `text` is good; nothing for what is no certificate.
pub(super) fn validity(text: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(text).ok()?;
    if kind != SectionKind::Certificate {
        return None;
    }
    let certificate = x509_cert::Certificate::from_der(&der).ok()?;
    let validity = certificate.tbs_certificate().validity();
    let at = |time: x509_cert::time::Time| {
        let second = i64::try_from(time.to_unix_duration().as_secs()).ok()?;
        Timestamp::from_second(second).ok()
    };
    Some((at(validity.not_before)?, at(validity.not_after)?))
}

/// A public key as JSON (RFC 7517, RFC 8037).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Jwk {
    kty: String,
    pub(super) kid: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Jwk {
    fn parse(&self, algorithm: Algorithm) -> Option<ParsedPublicKey> {
        let public = algorithm.public_key()?;
        let number = |field: &Option<String>| Encoding::Base64Url.decode(field.as_deref()?.as_bytes());
        match (&*self.kty, self.crv.as_deref(), public) {
            ("RSA", None, PublicKeyAlgorithm::Rsa(parameters)) => {
                let components = RsaPublicKeyComponents { n: number(&self.n)?, e: number(&self.e)? };
                components.to_parsed_public_key(parameters).ok()
            }
            ("EC", Some("P-256"), PublicKeyAlgorithm::Other(algorithm)) => {
                let point = [vec![4], number(&self.x)?, number(&self.y)?].concat();
                ParsedPublicKey::new(algorithm, point).ok()
            }
            ("OKP", Some("Ed25519"), PublicKeyAlgorithm::Other(algorithm)) => {
                ParsedPublicKey::new(algorithm, number(&self.x)?).ok()
            }
            _ => None,
        }
    }
}

/// Refuses secrets that could be guessed.
pub(super) fn long_enough(bytes: &[u8]) -> Result<(), KeyError> {
    if bytes.len() >= SECRET_BYTES_MIN {
        return Ok(());
    }
    Err(KeyError(format!(
        "the secret has {} bytes; fewer than {SECRET_BYTES_MIN} can be guessed",
        bytes.len()
    )))
}

fn not_encoded(what: &str, strip: &[String]) -> String {
    match strip {
        [] => format!("the secret must be {what}"),
        prefixes => {
            format!("the secret must be {what}, with or without `{}` before it", prefixes.join("` or `"))
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(algorithm: Algorithm, rule: &KeyRule, secret: &str) -> Result<Vec<u8>, String> {
        let key = Key::new(algorithm, rule, &Secret::new(secret).unwrap()).map_err(|error| error.0)?;
        Ok(match key {
            Key::Shared(bytes) => bytes.to_vec(),
            Key::Public(key) => key.as_ref().as_ref().to_vec(),
        })
    }

    #[test]
    fn a_secret_becomes_a_key_as_its_scheme_says() {
        let check = |rule: &KeyRule, secret: &str, expected: Result<&[u8], &str>| {
            let key = key(Algorithm::HmacSha256, rule, secret);
            assert_eq!(key.as_deref().map_err(String::as_str), expected, "{secret}");
        };
        let rule = |encoding, strip: &[&str]| KeyRule {
            encoding,
            strip: strip.iter().map(|&prefix| prefix.to_owned()).collect(),
            ..KeyRule::default()
        };
        let text = rule(KeyEncoding::Utf8, &[]);
        check(&text, "whsec_abc", Ok(b"whsec_abc"));
        check(&text, "seven_7", Err("the secret has 7 bytes; fewer than 8 can be guessed"));
        let base64 = rule(KeyEncoding::Base64, &["v1,whsec_", "whsec_"]);
        check(&base64, "whsec_c2VjcmV0LTE=", Ok(b"secret-1"));
        check(&base64, "v1,whsec_c2VjcmV0LTE=", Ok(b"secret-1"));
        check(&base64, "c2VjcmV0LTE", Ok(b"secret-1"));
        check(&base64, "whsec_", Err("the secret has 0 bytes; fewer than 8 can be guessed"));
        let help = "the secret must be base64, with or without `v1,whsec_` or `whsec_` before it";
        check(&base64, "not base64 at all", Err(help));
        check(&base64, "c2VjcmV0LTE=\n", Err(help));
        let hex = rule(KeyEncoding::Hex, &[]);
        check(&hex, "7365637265742d31", Ok(b"secret-1"));
        check(&hex, "secret-1", Err("the secret must be hex digits"));
        let derived = KeyRule { derive_sha1: true, ..text };
        check(&derived, "secret-1", Ok(&Sha1::digest(b"secret-1")[..]));
        let either =
            KeyRule { unprefixed: Some(KeyEncoding::Utf8), ..rule(KeyEncoding::Base64, &["whsec_"]) };
        check(&either, "whsec_c2VjcmV0LTE=", Ok(b"secret-1"));
        check(&either, "c2VjcmV0LTE=", Ok(b"c2VjcmV0LTE="));
    }

    /// The public key of RFC 8032's first test, and that of RFC 7515's example of ES256, in all their forms.
    #[test]
    fn a_public_key_is_read_in_any_of_its_forms() {
        let text = KeyRule::default();
        let (base64, hex) = (
            KeyRule { encoding: KeyEncoding::Base64, ..KeyRule::default() },
            KeyRule { encoding: KeyEncoding::Hex, ..KeyRule::default() },
        );
        let raw = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let spki = format!("302a300506032b6570032100{raw}");
        let spki_base64 = Encoding::Base64.encode(&Encoding::Hex.decode(spki.as_bytes()).unwrap());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{spki_base64}\n-----END PUBLIC KEY-----\n");
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let ed25519 = |rule: &KeyRule, text: &str| key(Algorithm::Ed25519, rule, text);
        let expected = Encoding::Hex.decode(raw.as_bytes()).unwrap();
        for (rule, form) in
            [(&hex, raw), (&hex, &*spki), (&base64, &spki_base64), (&text, &pem), (&hex, &pem), (&text, jwk)]
        {
            assert!(ed25519(rule, form).unwrap().ends_with(&expected), "{form}");
        }
        let ec = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        assert!(key(Algorithm::EcdsaP256Sha256, &text, ec).is_ok());
        assert!(key(Algorithm::EcdsaP256Sha256Fixed, &text, ec).is_ok());
        for (algorithm, wrong) in [
            (Algorithm::Ed25519, ec),
            (Algorithm::EcdsaP256Sha256, jwk),
            (Algorithm::RsaPkcs1Sha256, ec),
            (Algorithm::Ed25519, "{}"),
            (Algorithm::EcdsaP256Sha256, &pem),
            (Algorithm::Ed25519, "-----BEGIN PUBLIC KEY-----\n"),
            (Algorithm::Ed25519, "a secret of some length"),
        ] {
            let error = key(algorithm, &text, wrong).unwrap_err();
            assert!(error.contains(algorithm.name()), "{error}");
            assert!(!error.contains(wrong));
        }
    }
}
