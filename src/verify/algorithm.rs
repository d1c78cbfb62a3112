//! The algorithms of signatures: what makes one of the signed bytes, and what tells whether one is right. MACs and
//! digests are compared in constant time.

use std::borrow::Cow;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, RsaParameters, VerificationAlgorithm,
};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

use super::key::Key;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    HmacSha1,
    HmacSha256,
    HmacSha384,
    HmacSha512,
    /// A plain digest; the secret is among the signed bytes.
    DigestSha1,
    DigestSha256,
    Ed25519,
    /// The signature is DER.
    EcdsaP256Sha256,
    /// The signature is the two numbers, as in JWS.
    EcdsaP256Sha256Fixed,
    RsaPkcs1Sha1,
    RsaPkcs1Sha256,
    RsaPssSha256,
}

/// An algorithm whose receivers have a public key.
#[derive(Clone, Copy)]
pub(super) enum PublicKeyAlgorithm {
    Rsa(&'static RsaParameters),
    Other(&'static dyn VerificationAlgorithm),
}

impl PublicKeyAlgorithm {
    pub(super) fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rsa(parameters) => parameters,
            Self::Other(algorithm) => algorithm,
        }
    }
}

impl Algorithm {
    /// The names in a configuration.
    pub(super) const NAMES: [(&str, Self); 12] = [
        ("hmac-sha1", Self::HmacSha1),
        ("hmac-sha256", Self::HmacSha256),
        ("hmac-sha384", Self::HmacSha384),
        ("hmac-sha512", Self::HmacSha512),
        ("digest-sha1", Self::DigestSha1),
        ("digest-sha256", Self::DigestSha256),
        ("ed25519", Self::Ed25519),
        ("ecdsa-p256-sha256", Self::EcdsaP256Sha256),
        ("ecdsa-p256-sha256-fixed", Self::EcdsaP256Sha256Fixed),
        ("rsa-pkcs1-sha1", Self::RsaPkcs1Sha1),
        ("rsa-pkcs1-sha256", Self::RsaPkcs1Sha256),
        ("rsa-pss-sha256", Self::RsaPssSha256),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, algorithm)| *algorithm == self).map_or("", |(name, _)| *name)
    }

    /// `None` for those whose key both sides share.
    pub(super) fn public_key(self) -> Option<PublicKeyAlgorithm> {
        match self {
            Self::HmacSha1
            | Self::HmacSha256
            | Self::HmacSha384
            | Self::HmacSha512
            | Self::DigestSha1
            | Self::DigestSha256 => None,
            Self::Ed25519 => Some(PublicKeyAlgorithm::Other(&ED25519)),
            Self::EcdsaP256Sha256 => Some(PublicKeyAlgorithm::Other(&ECDSA_P256_SHA256_ASN1)),
            Self::EcdsaP256Sha256Fixed => Some(PublicKeyAlgorithm::Other(&ECDSA_P256_SHA256_FIXED)),
            Self::RsaPkcs1Sha1 => {
                Some(PublicKeyAlgorithm::Rsa(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY))
            }
            Self::RsaPkcs1Sha256 => Some(PublicKeyAlgorithm::Rsa(&RSA_PKCS1_2048_8192_SHA256)),
            Self::RsaPssSha256 => Some(PublicKeyAlgorithm::Rsa(&RSA_PSS_2048_8192_SHA256)),
        }
    }

    /// Whether the secret has to be among the signed bytes, since nothing else proves the sender.
    pub(super) fn is_digest(self) -> bool {
        matches!(self, Self::DigestSha1 | Self::DigestSha256)
    }

    /// Whether a signature may have so many bytes.
    pub(super) fn may_have_length(self, bytes: usize) -> bool {
        match self {
            Self::HmacSha1 | Self::DigestSha1 => bytes == 20,
            Self::HmacSha256 | Self::DigestSha256 => bytes == 32,
            Self::HmacSha384 => bytes == 48,
            Self::HmacSha512 | Self::Ed25519 | Self::EcdsaP256Sha256Fixed => bytes == 64,
            // Two numbers of 1 to 33 bytes in DER.
            Self::EcdsaP256Sha256 => (8..=72).contains(&bytes),
            // Keys of 2048 to 8192 bits.
            Self::RsaPkcs1Sha1 | Self::RsaPkcs1Sha256 | Self::RsaPssSha256 => (256..=1024).contains(&bytes),
        }
    }

    /// Whether one of `signatures` is that of all `pieces` together.
    pub(super) fn verify(self, key: &Key, pieces: &[Cow<'_, [u8]>], signatures: &[Vec<u8>]) -> bool {
        match key {
            Key::Shared(bytes) => {
                let expected = self.mac(bytes, pieces);
                signatures.iter().any(|signature| bool::from(expected.ct_eq(signature)))
            }
            Key::Public(key) => match self.digest(pieces) {
                Some(digest) => {
                    signatures.iter().any(|signature| key.verify_digest_sig(&digest, signature).is_ok())
                }
                None => {
                    let message = pieces.concat();
                    signatures.iter().any(|signature| key.verify_sig(&message, signature).is_ok())
                }
            },
        }
    }

    /// The digest that is signed with a private key; `None` where the message itself is.
    pub(super) fn digest(self, pieces: &[Cow<'_, [u8]>]) -> Option<aws_lc_rs::digest::Digest> {
        let algorithm = match self {
            Self::RsaPkcs1Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            Self::EcdsaP256Sha256
            | Self::EcdsaP256Sha256Fixed
            | Self::RsaPkcs1Sha256
            | Self::RsaPssSha256 => &SHA256,
            Self::HmacSha1
            | Self::HmacSha256
            | Self::HmacSha384
            | Self::HmacSha512
            | Self::DigestSha1
            | Self::DigestSha256
            | Self::Ed25519 => return None,
        };
        let mut context = Context::new(algorithm);
        for piece in pieces {
            context.update(piece);
        }
        Some(context.finish())
    }

    /// The MAC, or digest, of all `pieces` together; nothing for the algorithms of public keys.
    pub(super) fn mac(self, key: &[u8], pieces: &[Cow<'_, [u8]>]) -> Vec<u8> {
        match self {
            Self::HmacSha1 => hmac::<Hmac<Sha1>>(key, pieces),
            Self::HmacSha256 => hmac::<Hmac<Sha256>>(key, pieces),
            Self::HmacSha384 => hmac::<Hmac<Sha384>>(key, pieces),
            Self::HmacSha512 => hmac::<Hmac<Sha512>>(key, pieces),
            Self::DigestSha1 => digest::<Sha1>(pieces),
            Self::DigestSha256 => digest::<Sha256>(pieces),
            Self::Ed25519
            | Self::EcdsaP256Sha256
            | Self::EcdsaP256Sha256Fixed
            | Self::RsaPkcs1Sha1
            | Self::RsaPkcs1Sha256
            | Self::RsaPssSha256 => Vec::new(),
        }
    }
}

fn hmac<M: Mac + KeyInit>(key: &[u8], pieces: &[Cow<'_, [u8]>]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    for piece in pieces {
        mac.update(piece);
    }
    mac.finalize().into_bytes().to_vec()
}

fn digest<D: Digest>(pieces: &[Cow<'_, [u8]>]) -> Vec<u8> {
    let mut digest = D::new();
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_those_of_rfc_4231_and_rfc_2202() {
        let pieces = [Cow::Borrowed(&b"what do ya want "[..]), Cow::Borrowed(b"for nothing?")];
        let check = |algorithm: Algorithm, begin: &str| {
            let mac = algorithm.mac(b"Jefe", &pieces);
            assert!(algorithm.may_have_length(mac.len()));
            assert!(hex::encode(mac).starts_with(begin), "{algorithm:?}");
        };
        check(Algorithm::HmacSha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        check(Algorithm::HmacSha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        check(
            Algorithm::HmacSha384,
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        );
        check(Algorithm::HmacSha512, "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554");
        // FIPS 180-4's own example, in two pieces.
        let abc = [Cow::Borrowed(&b"a"[..]), Cow::Borrowed(b"bc")];
        let sha1 = Algorithm::DigestSha1.mac(b"unused", &abc);
        assert_eq!(hex::encode(sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        let sha256 = hex::encode(Algorithm::DigestSha256.mac(b"unused", &abc));
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn every_algorithm_has_its_name() {
        for (name, algorithm) in Algorithm::NAMES {
            assert_eq!(algorithm.name(), name);
        }
    }
}
