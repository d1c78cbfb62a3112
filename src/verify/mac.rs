//! The cryptography of a scheme: how a secret's text becomes a key, which MAC is computed, and how its bytes are
//! written. Decoding is strict: of every signature there is one text only, apart from the case of hex digits and
//! the padding of base64.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use super::KeyError;
use crate::secret::Secret;

/// Shorter secrets can be found by trying: seven random letters take a day of a desktop's time.
pub(crate) const SECRET_BYTES_MIN: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    HmacSha1,
    HmacSha256,
    HmacSha512,
}

impl Algorithm {
    /// The MAC of all `pieces` together.
    pub(super) fn mac(self, key: &Key, pieces: &[Cow<'_, [u8]>]) -> Vec<u8> {
        match self {
            Self::HmacSha1 => hmac::<Hmac<Sha1>>(key, pieces),
            Self::HmacSha256 => hmac::<Hmac<Sha256>>(key, pieces),
            Self::HmacSha512 => hmac::<Hmac<Sha512>>(key, pieces),
        }
    }

    pub(super) fn mac_bytes(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
            Self::HmacSha512 => 64,
        }
    }
}

fn hmac<M: Mac + KeyInit>(key: &Key, pieces: &[Cow<'_, [u8]>]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
    for piece in pieces {
        mac.update(piece);
    }
    mac.finalize().into_bytes().to_vec()
}

/// How the bytes of a signature are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Hex,
    Base64,
    Base64Url,
}

impl Encoding {
    pub(super) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => hex::encode(bytes),
            Self::Base64 => STANDARD.encode(bytes),
            Self::Base64Url => URL_SAFE_NO_PAD.encode(bytes),
        }
    }

    pub(super) fn decode(self, text: &str) -> Option<Vec<u8>> {
        match (self, text.ends_with('=')) {
            (Self::Hex, _) => hex::decode(text).ok(),
            (Self::Base64, true) => STANDARD.decode(text).ok(),
            (Self::Base64, false) => STANDARD_NO_PAD.decode(text).ok(),
            (Self::Base64Url, true) => URL_SAFE.decode(text).ok(),
            (Self::Base64Url, false) => URL_SAFE_NO_PAD.decode(text).ok(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyEncoding {
    Utf8,
    Base64,
    Hex,
}

/// How a secret's text becomes a key. Belongs to the scheme: the same `whsec_` stands before base64 with Standard
/// Webhooks, and is part of the key with Stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyRule {
    pub(super) encoding: KeyEncoding,
    /// The first of these that the text begins with is removed.
    pub(super) strip: Vec<String>,
    /// The key is the SHA-1 of the secret.
    pub(super) derive_sha1: bool,
}

impl Default for KeyRule {
    fn default() -> Self {
        Self { encoding: KeyEncoding::Utf8, strip: Vec::new(), derive_sha1: false }
    }
}

/// A MAC key, ready to use.
#[derive(Clone)]
pub(super) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    pub(super) fn new(rule: &KeyRule, secret: &Secret) -> Result<Self, KeyError> {
        let text = secret.expose();
        let text = rule.strip.iter().find_map(|prefix| text.strip_prefix(prefix.as_bytes())).unwrap_or(text);
        let decode =
            |encoding: Encoding| std::str::from_utf8(text).ok().and_then(|text| encoding.decode(text));
        let bytes = match rule.encoding {
            KeyEncoding::Utf8 => text.to_vec(),
            KeyEncoding::Base64 => {
                decode(Encoding::Base64).ok_or_else(|| KeyError(not_encoded("base64", &rule.strip)))?
            }
            KeyEncoding::Hex => {
                decode(Encoding::Hex).ok_or_else(|| KeyError(not_encoded("hex digits", &rule.strip)))?
            }
        };
        let bytes = Zeroizing::new(bytes);
        long_enough(&bytes)?;
        Ok(Self(if rule.derive_sha1 { Zeroizing::new(Sha1::digest(&bytes).to_vec()) } else { bytes }))
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

    #[test]
    fn decoding_is_strict() {
        let check = |encoding: Encoding, text: &str, expected: Option<&[u8]>| {
            assert_eq!(encoding.decode(text).as_deref(), expected, "{encoding:?} {text:?}");
        };
        check(Encoding::Hex, "00fF", Some(&[0, 255]));
        check(Encoding::Base64, "+/8=", Some(&[251, 255]));
        check(Encoding::Base64, "+/8", Some(&[251, 255]));
        check(Encoding::Base64, "/w==", Some(&[255]));
        check(Encoding::Base64Url, "-_8=", Some(&[251, 255]));
        check(Encoding::Base64Url, "-_8", Some(&[251, 255]));
        for junk in ["0", "0g", " 00", "00 ", "0x00", "０0", "+00"] {
            check(Encoding::Hex, junk, None);
        }
        // The last character's unused bits must be zero, and padding whole: `/x==` and `+/9=` would be second texts.
        for junk in
            ["/w=", "/x==", "+/9=", "+/9", "-_8=", "+/8=\t", "+/8= ", "\"+/8=\"", "+/8==", "+\n/8=", "A"]
        {
            check(Encoding::Base64, junk, None);
        }
        for junk in ["+/8=", "-_9", "-_8= "] {
            check(Encoding::Base64Url, junk, None);
        }
    }

    #[test]
    fn a_secret_becomes_a_key_as_its_scheme_says() {
        let check = |rule: &KeyRule, secret: &str, expected: Result<&[u8], &str>| {
            let key = Key::new(rule, &Secret::new(secret).unwrap());
            let key = key.as_ref().map(|key| key.0.as_slice()).map_err(|error| error.0.as_str());
            assert_eq!(key, expected, "{secret}");
        };
        let rule = |encoding, strip: &[&str], derive_sha1| KeyRule {
            encoding,
            strip: strip.iter().map(|&prefix| prefix.to_owned()).collect(),
            derive_sha1,
        };
        let text = rule(KeyEncoding::Utf8, &[], false);
        check(&text, "whsec_abc", Ok(b"whsec_abc"));
        check(&text, "seven_7", Err("the secret has 7 bytes; fewer than 8 can be guessed"));
        let base64 = rule(KeyEncoding::Base64, &["v1,whsec_", "whsec_"], false);
        check(&base64, "whsec_c2VjcmV0LTE=", Ok(b"secret-1"));
        check(&base64, "v1,whsec_c2VjcmV0LTE=", Ok(b"secret-1"));
        check(&base64, "c2VjcmV0LTE", Ok(b"secret-1"));
        check(&base64, "whsec_", Err("the secret has 0 bytes; fewer than 8 can be guessed"));
        let help = "the secret must be base64, with or without `v1,whsec_` or `whsec_` before it";
        check(&base64, "not base64 at all", Err(help));
        check(&base64, "c2VjcmV0LTE=\n", Err(help));
        let hex = rule(KeyEncoding::Hex, &[], false);
        check(&hex, "7365637265742d31", Ok(b"secret-1"));
        check(&hex, "secret-1", Err("the secret must be hex digits"));
        let derived = rule(KeyEncoding::Utf8, &[], true);
        check(&derived, "secret-1", Ok(&Sha1::digest(b"secret-1")[..]));
    }

    #[test]
    fn macs_are_those_of_rfc_4231_and_rfc_2202() {
        let key = Key(Zeroizing::new(b"Jefe".to_vec()));
        let pieces = [Cow::Borrowed(&b"what do ya want "[..]), Cow::Borrowed(b"for nothing?")];
        let check = |algorithm: Algorithm, begin: &str| {
            let mac = algorithm.mac(&key, &pieces);
            assert_eq!(mac.len(), algorithm.mac_bytes());
            assert!(hex::encode(mac).starts_with(begin));
        };
        check(Algorithm::HmacSha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        check(Algorithm::HmacSha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        check(Algorithm::HmacSha512, "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554");
    }
}
