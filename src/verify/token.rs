//! Secrets that are presented as they are, in a header of HTTP authentication or anywhere else.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::KeyError;
use super::encoding::Encoding;
use super::key::long_enough;
use super::scheme::TokenRule;
use crate::secret::Secret;

const BEARER: &[u8] = b"Bearer ";
const BASIC: &[u8] = b"Basic ";

/// A secret that is presented as it is. Digests are compared, so that not even its length shows in the time taken.
pub(super) struct Token {
    digest: [u8; 32],
    /// Then the secret is the header's whole value, and without it `Bearer ` may stand in front.
    has_bearer: bool,
}

impl Token {
    pub(super) fn new(rule: &TokenRule, secret: &Secret) -> Result<Self, KeyError> {
        let text = secret.expose();
        let has_bearer = text.starts_with(BEARER);
        long_enough(text.strip_prefix(BEARER).unwrap_or(text))?;
        let digest =
            if rule.basic && !has_bearer { Sha256::digest(basic(text)) } else { Sha256::digest(text) };
        Ok(Self { digest: digest.into(), has_bearer })
    }

    pub(super) fn matches(&self, presented: &[u8]) -> bool {
        let digest = match split_scheme(presented) {
            Some((BEARER, rest)) if !self.has_bearer => Sha256::digest(rest),
            Some((word, rest)) => Sha256::new().chain_update(word).chain_update(rest).finalize(),
            None => Sha256::digest(presented),
        };
        digest.as_slice().ct_eq(&self.digest).into()
    }
}

/// The scheme of HTTP authentication, whose case says nothing (RFC 9110 §11.1), and what follows it.
fn split_scheme(presented: &[u8]) -> Option<(&'static [u8], &[u8])> {
    [BEARER, BASIC].into_iter().find_map(|word| {
        let (head, rest) = presented.split_at_checked(word.len())?;
        head.eq_ignore_ascii_case(word).then_some((word, rest))
    })
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The header of basic authentication (RFC 7617) for `name:password`, for that in base64, or for the header itself.
pub(super) fn basic(secret: &[u8]) -> Vec<u8> {
    if secret.starts_with(BASIC) {
        return secret.to_vec();
    }
    let is_encoded = !secret.contains(&b':');
    let credentials = if is_encoded { secret.to_vec() } else { Encoding::Base64.encode(secret).into_bytes() };
    [BASIC, &credentials].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_secret_or_what_authentication_makes_of_it() {
        let check = |basic: bool, secret: &str, presented: &str, expected: bool| {
            let rule = TokenRule { at: "header:authorization".parse().unwrap(), basic };
            let token = Token::new(&rule, &Secret::new(secret).unwrap()).unwrap();
            assert_eq!(token.matches(presented.as_bytes()), expected, "{secret}: {presented}");
        };
        let bearer = |presented, expected| check(false, "secret-0123", presented, expected);
        bearer("secret-0123", true);
        bearer("Bearer secret-0123", true);
        bearer("bearer secret-0123", true);
        bearer("BEARER Secret-0123", false);
        bearer("Basic secret-0123", false);
        bearer("Bearer ", false);
        bearer("", false);
        bearer("secret-0124", false);
        check(false, "Bearer secret-0123", "Bearer secret-0123", true);
        check(false, "Bearer secret-0123", "secret-0123", false);
        // RFC 7617's own example, as a name with its password, encoded, and with the scheme.
        for secret in
            ["Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]
        {
            check(true, secret, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", true);
            check(true, secret, "basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", true);
            check(true, secret, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZR==", false);
            check(true, secret, "QWxhZGRpbjpvcGVuIHNlc2FtZQ==", false);
            check(true, secret, "Aladdin:open sesame", false);
        }
    }
}
