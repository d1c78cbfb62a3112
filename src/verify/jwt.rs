//! JSON web tokens (RFC 7519, RFC 7515) that prove a request: taken apart strictly, by the algorithms of the scheme and
//! never by what the token says alone, and held to its claims. What is believed of a token is checked by
//! [`super::check`], like any other signature.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Refusal;
use super::algorithm::Algorithm;
use super::encoding::Encoding;
use super::locate::{Locator, Request};
use super::signed::Signed;
use super::window::Window;
use crate::clock::{self, Timestamp};

/// By how much clocks may differ when a token ends.
const LEEWAY: Duration = Duration::from_secs(60);
/// For how long a token of ours is good.
const LIFETIME_SECONDS: i64 = 300;
/// A token stands in a header; what is longer is none.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The names of algorithms in tokens (RFC 7518, RFC 8037).
pub(super) const ALGORITHMS: [(&str, Algorithm); 7] = [
    ("HS256", Algorithm::HmacSha256),
    ("HS384", Algorithm::HmacSha384),
    ("HS512", Algorithm::HmacSha512),
    ("RS256", Algorithm::RsaPkcs1Sha256),
    ("PS256", Algorithm::RsaPssSha256),
    ("ES256", Algorithm::EcdsaP256Sha256Fixed),
    ("EdDSA", Algorithm::Ed25519),
];

/// Where the token is, and what it has to say.
#[derive(Debug, Clone)]
pub(super) struct JwtRule {
    pub(super) at: Locator,
    pub(super) algorithms: Vec<Algorithm>,
    /// Each of these claims is one of its values.
    pub(super) claims: Vec<(String, Vec<ClaimValue>)>,
    /// Claims that must be there.
    pub(super) required: Vec<String>,
    /// The claim that has the SHA-256 of the body.
    pub(super) body_hash: Option<(String, Encoding)>,
    /// The claim that a retry repeats and nothing else has.
    pub(super) id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ClaimValue {
    Text(String),
    /// The URL that the provider was told.
    Url,
    /// What the source's configuration says.
    Config(String),
}

impl ClaimValue {
    pub(super) fn parse(text: &str) -> Self {
        match text.strip_prefix("{config:").and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => Self::Config(name.to_owned()),
            None if text == "{url}" => Self::Url,
            None => Self::Text(text.to_owned()),
        }
    }

    fn text<'a>(&'a self, request: &Request<'_>) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Url => Some(Cow::Owned([request.base_url, request.target].concat())),
            Self::Config(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// A token that is well-formed, and not yet believed.
#[derive(Debug)]
pub(super) struct Token<'a> {
    pub(super) signed: Signed<'a>,
    claims: Map<String, Value>,
}

impl JwtRule {
    pub(super) fn with_config(mut self, values: &BTreeMap<String, String>) -> Self {
        for value in self.claims.iter_mut().flat_map(|(_, values)| values) {
            if let ClaimValue::Config(name) = value
                && let Some(text) = values.get(name)
            {
                *value = ClaimValue::Text(text.clone());
            }
        }
        self
    }

    pub(super) fn config_names(&self) -> impl Iterator<Item = &str> {
        self.claims.iter().flat_map(|(_, values)| values).filter_map(|value| match value {
            ClaimValue::Config(name) => Some(&**name),
            ClaimValue::Text(_) | ClaimValue::Url => None,
        })
    }

    pub(super) fn has_url(&self) -> bool {
        self.claims.iter().any(|(_, values)| values.contains(&ClaimValue::Url))
    }

    /// Whether no token is good for ever.
    pub(super) fn expires(&self) -> bool {
        self.required.iter().any(|claim| claim == "exp")
    }

    /// The token of `request`; `None` when it may still come with the body.
    pub(super) fn token<'a>(&self, request: &Request<'a>) -> Result<Option<Token<'a>>, Refusal> {
        let Some(value) = request.find(&self.at)? else {
            let may_follow = request.may_follow(std::slice::from_ref(&self.at));
            return if may_follow { Ok(None) } else { Err(Refusal::TokenMissing) };
        };
        self.parse(value).map(Some).ok_or(Refusal::SignatureMalformed)
    }

    fn parse<'a>(&self, value: Cow<'a, [u8]>) -> Option<Token<'a>> {
        let bytes = if value.len() <= TOKEN_BYTES_MAX { value.into_owned() } else { return None };
        let token = bytes.strip_prefix(b"Bearer ").unwrap_or(&bytes);
        let mut parts = token.split(|byte| *byte == b'.');
        let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || token.contains(&b'=') {
            return None;
        }
        let decode = |part: &[u8]| Encoding::Base64Url.decode(part);
        let Header { alg, kid, crit: None } = serde_json::from_slice(&decode(header)?).ok()? else {
            // An extension that has to be understood.
            return None;
        };
        let (_, algorithm) = *ALGORITHMS.iter().find(|(name, _)| *name == alg)?;
        let signature = decode(signature)?;
        if !self.algorithms.contains(&algorithm) || !algorithm.may_have_length(signature.len()) {
            return None;
        }
        let claims = serde_json::from_slice(&decode(payload)?).ok()?;
        let input = token[..header.len() + 1 + payload.len()].to_vec();
        let signed =
            Signed { algorithm, key_id: kid, pieces: vec![Cow::Owned(input)], signatures: vec![signature] };
        Some(Token { signed, claims })
    }

    /// Whether the claims are those of this request at this time. Of the body only when it has been read.
    pub(super) fn check(
        &self,
        token: &Token<'_>,
        request: &Request<'_>,
        window: Window,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let time = |claim: &str| match token.claims.get(claim) {
            None => Ok(None),
            Some(value) => {
                let at = value.as_f64().and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
                at.map(Some).ok_or(Refusal::TimestampMalformed)
            }
        };
        if self.required.iter().any(|claim| !token.claims.contains_key(claim)) {
            return Err(Refusal::ValueMissing);
        }
        if time("exp")?.is_some_and(|end| clock::later(end, LEEWAY) < now) {
            return Err(Refusal::TimestampTooOld);
        }
        // One that was not made yet is as strange as one that is not valid yet.
        if time("iat")?.is_some_and(|made| made > clock::later(now, window.future)) {
            return Err(Refusal::TimestampTooNew);
        }
        if time("nbf")?.is_some_and(|begin| begin > clock::later(now, window.future)) {
            return Err(Refusal::TimestampTooNew);
        }
        for (claim, allowed) in &self.claims {
            let given = token.claims.get(claim).ok_or(Refusal::ValueMissing)?;
            if !is_one_of(given, allowed, request) {
                return Err(Refusal::ValueMismatch);
            }
        }
        let (Some((claim, encoding)), Some(body)) = (&self.body_hash, request.body) else { return Ok(()) };
        let hash = token.text(claim).ok_or(Refusal::ValueMissing)?;
        let hash = encoding.decode(hash.as_bytes()).ok_or(Refusal::BodyMismatch)?;
        if Sha256::digest(body).as_slice().ct_eq(&hash).into() { Ok(()) } else { Err(Refusal::BodyMismatch) }
    }

    /// The first claim that has to be there and is not.
    pub(super) fn missing_claim(&self, token: &Token<'_>) -> Option<&str> {
        let demanded = self.required.iter().chain(self.claims.iter().map(|(claim, _)| claim));
        let demanded = demanded.chain(self.body_hash.iter().map(|(claim, _)| claim));
        demanded.map(String::as_str).find(|claim| !token.claims.contains_key(*claim))
    }

    /// The first claim that is none of its values, and whether it should be the URL of the request.
    pub(super) fn other_claim(&self, token: &Token<'_>, request: &Request<'_>) -> Option<(&str, bool)> {
        let is_other = |(claim, allowed): &&(String, Vec<ClaimValue>)| {
            token.claims.get(claim).is_some_and(|given| !is_one_of(given, allowed, request))
        };
        let (claim, allowed) = self.claims.iter().find(is_other)?;
        Some((claim, allowed.contains(&ClaimValue::Url)))
    }

    /// The claims that a sender would make at `now`, in JSON.
    pub(super) fn claims(&self, request: &Request<'_>, id: Option<&str>, now: Timestamp) -> Value {
        let mut claims = Map::new();
        for (claim, values) in &self.claims {
            if let Some(text) = values.first().and_then(|value| value.text(request)) {
                claims.insert(claim.clone(), Value::String(text.into_owned()));
            }
        }
        if let (Some((claim, encoding)), Some(body)) = (&self.body_hash, request.body) {
            claims.insert(claim.clone(), Value::String(encoding.encode(&Sha256::digest(body))));
        }
        if let (Some(claim), Some(id)) = (&self.id, id) {
            claims.insert(claim.clone(), id.into());
        }
        claims.insert("iat".to_owned(), now.as_second().into());
        for (claim, second) in [("nbf", now.as_second()), ("exp", now.as_second() + LIFETIME_SECONDS)] {
            if self.required.iter().any(|required| required == claim) {
                claims.insert(claim.to_owned(), second.into());
            }
        }
        Value::Object(claims)
    }
}

/// Whether a claim has one of the allowed values. An audience may be a list, of which one has to be meant.
fn is_one_of(given: &Value, allowed: &[ClaimValue], request: &Request<'_>) -> bool {
    let is_allowed = |given: &Value| {
        let given = match given {
            Value::String(text) => text.as_str(),
            Value::Bool(true) => "true",
            Value::Bool(false) => "false",
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => return false,
        };
        allowed.iter().any(|value| value.text(request).is_some_and(|text| *text == *given))
    };
    is_allowed(given) || given.as_array().is_some_and(|list| list.iter().any(is_allowed))
}

impl Token<'_> {
    /// A claim that is text.
    pub(super) fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str().filter(|text| !text.is_empty())
    }

    /// A claim that is a time in whole seconds, as digits.
    pub(super) fn seconds(&self, claim: &str) -> Option<String> {
        self.claims.get(claim)?.as_u64().map(|seconds| seconds.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"alg":"HS256"}`, `{}`, and a signature of 32 bytes.
    const HEADER: &str = "eyJhbGciOiJIUzI1NiJ9";
    const SIGNATURE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn is_taken_apart(token: &str) -> bool {
        let rule = JwtRule {
            at: "header:x-token".parse().unwrap(),
            algorithms: vec![Algorithm::HmacSha256],
            claims: Vec::new(),
            required: Vec::new(),
            body_hash: None,
            id: None,
        };
        rule.parse(Cow::Borrowed(token.as_bytes())).is_some()
    }

    #[test]
    fn tokens_are_taken_apart_strictly() {
        let good = format!("{HEADER}.e30.{SIGNATURE}");
        assert!(is_taken_apart(&good));
        assert!(is_taken_apart(&format!("Bearer {good}")));
        for bad in [
            String::new(),
            "Bearer ".to_owned(),
            format!("bearer {good}"),
            format!(" {good}"),
            format!("{good}."),
            format!("{good}="),
            format!("{HEADER}.e30="),
            format!("{HEADER}..{SIGNATURE}"),
            format!("{HEADER}.e30."),
            // The signature has a byte less, and bits that are none.
            format!("{HEADER}.e30.{}", &SIGNATURE[1..]),
            format!("{HEADER}.e30.{}B", &SIGNATURE[1..]),
            // A list, and no JSON.
            format!("{HEADER}.W10.{SIGNATURE}"),
            format!("{HEADER}.e3.{SIGNATURE}"),
            // `{"alg":"hs256"}`, `{"alg":"HS512"}`, `{"typ":"JWT"}`, `{"alg":"HS256","alg":"none"}`.
            format!("eyJhbGciOiJoczI1NiJ9.e30.{SIGNATURE}"),
            format!("eyJhbGciOiJIUzUxMiJ9.e30.{SIGNATURE}"),
            format!("eyJ0eXAiOiJKV1QifQ.e30.{SIGNATURE}"),
            format!("eyJhbGciOiJIUzI1NiIsImFsZyI6Im5vbmUifQ.e30.{SIGNATURE}"),
            format!("{HEADER}.{}.{SIGNATURE}", "e30".repeat(TOKEN_BYTES_MAX / 3)),
        ] {
            assert!(!is_taken_apart(&bad), "{bad}");
        }
    }

    /// Monday's token of a quarter of an hour ahead, and Google's for an address that is not verified, had been accepted.
    #[test]
    fn what_is_issued_in_the_future_or_says_no_is_refused() {
        let rule = JwtRule {
            at: "header:x-token".parse().unwrap(),
            algorithms: vec![Algorithm::HmacSha256],
            claims: vec![("email_verified".to_owned(), vec![ClaimValue::parse("true")])],
            required: Vec::new(),
            body_hash: None,
            id: None,
        };
        let second = 1_776_871_800;
        let now = Timestamp::from_second(second).unwrap();
        let headers = http::HeaderMap::new();
        let method = http::Method::POST;
        let request = Request {
            method: &method,
            base_url: "",
            other_base_url: "",
            target: "/in",
            headers: &headers,
            body: None,
        };
        let check = |claims: Value| {
            let signed = Signed {
                algorithm: Algorithm::HmacSha256,
                key_id: None,
                pieces: Vec::new(),
                signatures: Vec::new(),
            };
            let token = Token { signed, claims: claims.as_object().unwrap().clone() };
            rule.check(&token, &request, Window::default(), now)
        };
        let claims =
            |issued: i64, verified: Value| serde_json::json!({ "iat": issued, "email_verified": verified });
        assert_eq!(check(claims(second + 300, true.into())), Ok(()));
        assert_eq!(check(claims(second - 9_000, true.into())), Ok(()));
        assert_eq!(check(claims(second + 301, true.into())), Err(Refusal::TimestampTooNew));
        for other in [Value::Bool(false), "false".into(), 1.into(), Value::Null] {
            assert_eq!(check(claims(second, other.clone())), Err(Refusal::ValueMismatch), "{other}");
        }
        assert_eq!(check(serde_json::json!({})), Err(Refusal::ValueMissing));
    }
}
