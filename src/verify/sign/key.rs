//! Keys that make signatures: a shared secret, or the private key that belongs to what the receiver has.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::verify::KeyError;
use crate::verify::algorithm::Algorithm;
use crate::verify::encoding::Encoding;
use crate::verify::key::{Key, KeyRule};

/// Standard Webhooks' prefix of a private key for `v1a`.
const ED25519_PREFIX: &[u8] = b"whsk_";

#[derive(Clone)]
pub(super) enum SigningKey {
    Shared(Zeroizing<Vec<u8>>),
    Ed25519(Arc<Ed25519KeyPair>),
    Ecdsa(Arc<EcdsaKeyPair>),
    Rsa(Arc<RsaKeyPair>),
}

impl SigningKey {
    /// Private keys are PKCS#8, as PEM or base64; those of Ed25519 also a seed, with or without the public key after it.
    pub(super) fn new(algorithm: Algorithm, rule: &KeyRule, secret: &Secret) -> Result<Self, KeyError> {
        if algorithm.public_key().is_none() {
            return match Key::new(algorithm, rule, secret)? {
                Key::Shared(bytes) => Ok(Self::Shared(bytes)),
                Key::Public(_) => Err(unusable(algorithm)),
            };
        }
        let private = private(secret.expose()).ok_or_else(|| unusable(algorithm))?;
        let key = match algorithm {
            Algorithm::Ed25519 => match private.len() {
                32 => Ed25519KeyPair::from_seed_unchecked(&private),
                64 => Ed25519KeyPair::from_seed_and_public_key(&private[..32], &private[32..]),
                _ => Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private),
            }
            .map(|key| Self::Ed25519(Arc::new(key))),
            Algorithm::EcdsaP256Sha256 => EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &private)
                .map(|key| Self::Ecdsa(Arc::new(key))),
            Algorithm::EcdsaP256Sha256Fixed => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private)
                    .map(|key| Self::Ecdsa(Arc::new(key)))
            }
            Algorithm::RsaPkcs1Sha256 | Algorithm::RsaPssSha256 => {
                RsaKeyPair::from_pkcs8(&private).map(|key| Self::Rsa(Arc::new(key)))
            }
            // New signatures are not made with SHA-1.
            _ => return Err(unusable(algorithm)),
        };
        key.map_err(|_| unusable(algorithm))
    }

    /// The shared secret, which some schemes have among the signed bytes.
    pub(super) fn shared(&self) -> Option<&[u8]> {
        match self {
            Self::Shared(bytes) => Some(bytes),
            Self::Ed25519(_) | Self::Ecdsa(_) | Self::Rsa(_) => None,
        }
    }

    pub(super) fn sign(&self, algorithm: Algorithm, pieces: &[Cow<'_, [u8]>]) -> Result<Vec<u8>, KeyError> {
        let failed = |_| KeyError("the message cannot be signed".to_owned());
        match self {
            Self::Shared(key) => Ok(algorithm.mac(key, pieces)),
            Self::Ed25519(key) => Ok(key.sign(&pieces.concat()).as_ref().to_vec()),
            Self::Ecdsa(key) => {
                let signature = key.sign(&SystemRandom::new(), &pieces.concat()).map_err(failed)?;
                Ok(signature.as_ref().to_vec())
            }
            Self::Rsa(key) => {
                let encoding =
                    if algorithm == Algorithm::RsaPssSha256 { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &SystemRandom::new(), &pieces.concat(), &mut signature).map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

fn private(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if text.trim_ascii().starts_with(b"-----BEGIN ") {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).ok()?;
        return Some(Zeroizing::new(der.secret_pkcs8_der().to_vec()));
    }
    let text = text.strip_prefix(ED25519_PREFIX).unwrap_or(text);
    Encoding::Hex.decode(text).or_else(|| Encoding::Base64.decode(text)).map(Zeroizing::new)
}

fn unusable(algorithm: Algorithm) -> KeyError {
    KeyError(format!(
        "signing takes the private key for {} (PKCS#8, as PEM or base64; of Ed25519 also the seed): the provider keeps its \
         own, so make a key pair of your own, and let the source have the public key as its secret",
        algorithm.name()
    ))
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}
