//! Signs as a provider would, from the same data that verifies: for `countersign send`, for the countersignature that
//! backends get, and for tests.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::KeyError;
use super::algorithm::Algorithm;
use super::check::is_unambiguous;
use super::code::Code;
use super::encoding::Encoding;
use super::jwt::{self, JwtRule};
use super::key::{KeyRule, long_enough};
use super::locate::{Locator, Request, other_port};
use super::scheme::{Auth, Scheme, SignatureRule, TimestampPlace};
use super::template::Template;
use super::token::basic;
use crate::clock::Timestamp;
use crate::secret::Secret;

mod again;
mod key;
mod sample;
mod whole;

pub use again::SignedAgain;
pub use whole::SignedRequest;

use key::SigningKey;

/// Signs as a provider would.
#[derive(Debug, Clone)]
pub struct Signer {
    scheme: Scheme,
    credential: Credential,
    /// As it was given.
    secret: Secret,
}

#[derive(Debug, Clone)]
enum Credential {
    Key(SignatureRule, SigningKey),
    Token(Locator, HeaderValue),
    Code(Code, SigningKey),
    Jwt(JwtRule, Algorithm, SigningKey),
}

/// What is to be signed.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URL as the receiver knows it, with its query.
    pub url: &'a str,
    /// The delivery id, for schemes that carry it in a header; others have it in the body. It is the nonce, too, where
    /// one is signed.
    pub id: Option<&'a str>,
    /// The event type, for schemes that carry it in a header; others have it in the body.
    pub event: Option<&'a str>,
    /// The exact bytes of the body.
    pub body: &'a Bytes,
}

impl Signer {
    /// Decodes the secret: the one that both sides share, or the sender's private key.
    ///
    /// # Errors
    /// When it is not a key of the scheme, or too short.
    pub fn new(scheme: Scheme, secret: &Secret) -> Result<Self, KeyError> {
        let credential = match &scheme.auth {
            Auth::Signature(rule) => {
                let key = SigningKey::new(rule.algorithm, &rule.key, secret)?;
                Credential::Key(rule.clone(), key)
            }
            Auth::Code(Code::Sns) => return Err(KeyError(whole::SNS.to_owned())),
            Auth::Code(code) => {
                let key = SigningKey::new(Algorithm::HmacSha256, &code.key_rule(), secret)?;
                Credential::Code(*code, key)
            }
            Auth::Jwt(rule) => {
                let algorithms = rule.algorithms.iter();
                let keys = algorithms.map(|algorithm| {
                    SigningKey::new(*algorithm, &KeyRule::default(), secret).map(|key| (*algorithm, key))
                });
                // The first that the secret is a key of, or why it is none of the last.
                let no_algorithm = Err(KeyError("the tokens have no algorithm".to_owned()));
                let (algorithm, key) = keys.fold(no_algorithm, Result::or)?;
                Credential::Jwt(rule.clone(), algorithm, key)
            }
            Auth::Token(rule) => {
                long_enough(secret.expose())?;
                let text = if rule.basic { basic(secret.expose()) } else { secret.expose().to_vec() };
                let mut token = HeaderValue::from_bytes(&text)
                    .map_err(|_| KeyError("the secret cannot stand in a request".to_owned()))?;
                token.set_sensitive(true);
                Credential::Token(rule.at.clone(), token)
            }
        };
        Ok(Self { scheme, credential, secret: secret.clone() })
    }

    /// The secret that it signs with, as it was given.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The headers that the provider would send at `now`, where it has its proof in them: signature or token, timestamp, delivery id, event type, as
    /// far as the scheme has them in headers.
    ///
    /// # Errors
    /// When the message lacks something that the scheme signs, or a value cannot stand in its header.
    pub fn sign(&self, message: &Message<'_>, now: Timestamp) -> Result<HeaderMap, KeyError> {
        self.complete(HeaderMap::new(), message, now)
    }

    /// `headers` with what the provider would add to them at `now`.
    fn complete(
        &self,
        headers: HeaderMap,
        message: &Message<'_>,
        now: Timestamp,
    ) -> Result<HeaderMap, KeyError> {
        let mut headers = self.headers(headers, message, now)?;
        let elsewhere = || {
            KeyError("its proof does not stand in a header: `sign_whole` puts it where it does".to_owned())
        };
        let (name, value) = match &self.credential {
            Credential::Token(Locator::Header(name), token) => (name.clone(), token.clone()),
            Credential::Key(rule, key) => {
                let name = header_of(&rule.from).ok_or_else(elsewhere)?;
                let text = self.signature(rule, key, message, &headers, now)?;
                (name.clone(), header_value(name, &text)?)
            }
            Credential::Jwt(rule, algorithm, key) => token(rule, *algorithm, key, message, now)?,
            Credential::Token(..) | Credential::Code(..) => return Err(elsewhere()),
        };
        headers.insert(name, value);
        Ok(headers)
    }

    /// All but the proof itself.
    fn headers(
        &self,
        mut headers: HeaderMap,
        message: &Message<'_>,
        now: Timestamp,
    ) -> Result<HeaderMap, KeyError> {
        for (places, value) in [(&self.scheme.delivery_id, message.id), (&self.scheme.event, message.event)] {
            if let (Some(name), Some(value)) = (header_of(places), value) {
                headers.insert(name.clone(), header_value(name, value)?);
            }
        }
        for (place, text) in &self.scheme.require {
            if let Locator::Header(name) = place {
                headers.insert(name.clone(), header_value(name, text)?);
            }
        }
        if let Some(rule) = &self.scheme.timestamp
            && let TimestampPlace::At(places) = &rule.at
            && let Some(name) = header_of(places)
        {
            headers.insert(name.clone(), header_value(name, &rule.unit.format(now))?);
        }
        if let (Credential::Key(rule, _), Some(nonce)) = (&self.credential, message.id) {
            for name in rule.signed.iter().flat_map(Template::headers) {
                if !headers.contains_key(name) {
                    headers.insert(name.clone(), header_value(name, nonce)?);
                }
            }
        }
        Ok(headers)
    }

    /// The text that holds the signature.
    fn signature(
        &self,
        rule: &SignatureRule,
        key: &SigningKey,
        message: &Message<'_>,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<String, KeyError> {
        let (base_url, target) = split(message.url);
        let body = Some(message.body.as_ref());
        let other_base_url = other_port(base_url);
        let request = Request {
            method: message.method,
            base_url,
            other_base_url: &other_base_url,
            target,
            headers,
            body,
        };
        let timestamp = match &self.scheme.timestamp {
            None => None,
            Some(rule) => match &rule.at {
                TimestampPlace::Signature | TimestampPlace::Claim(_) => Some(rule.unit.format(now)),
                TimestampPlace::At(places) => found(request.find_first(places))?,
            },
        };
        let signed = rule.signed.first().ok_or_else(|| KeyError("nothing is signed".to_owned()))?;
        let id = if signed.has_id() {
            let id = found(request.find_first(&self.scheme.delivery_id))?;
            if id.as_deref().is_some_and(|id| !is_unambiguous(id)) {
                return Err(KeyError(
                    "the delivery id may only have letters, digits, `_`, `:` and `-`".to_owned(),
                ));
            }
            id
        } else {
            None
        };
        let pieces =
            signed.pieces(&request, timestamp.as_deref(), id.as_deref(), key.shared()).map_err(unsignable)?;
        let signature = rule.encoding.encode(&key.sign(rule.algorithm, &pieces)?);
        Ok(rule.grammar.format(&signature, timestamp.as_deref()))
    }
}

/// The header with a token for `message`.
fn token(
    rule: &JwtRule,
    algorithm: Algorithm,
    key: &SigningKey,
    message: &Message<'_>,
    now: Timestamp,
) -> Result<(HeaderName, HeaderValue), KeyError> {
    let Locator::Header(name) = &rule.at else {
        return Err(KeyError("a token outside of the headers cannot be made".to_owned()));
    };
    let (base_url, target) = split(message.url);
    let (headers, body) = (HeaderMap::new(), Some(message.body.as_ref()));
    let request =
        Request { method: message.method, base_url, other_base_url: "", target, headers: &headers, body };
    let alg = jwt::ALGORITHMS.iter().find(|(_, known)| *known == algorithm).map_or("", |(name, _)| *name);
    let part = |json: serde_json::Value| Encoding::Base64Url.encode(json.to_string().as_bytes());
    let header = part(serde_json::json!({ "alg": alg, "typ": "JWT" }));
    let input = format!("{header}.{}", part(rule.claims(&request, message.id, now)));
    let signature = key.sign(algorithm, &[Cow::Borrowed(input.as_bytes())])?;
    let token = format!("{input}.{}", Encoding::Base64Url.encode(&signature));
    Ok((name.clone(), header_value(name, &token)?))
}

fn header_of(places: &[Locator]) -> Option<&HeaderName> {
    places.iter().find_map(|place| match place {
        Locator::Header(name) => Some(name),
        Locator::Query(_) | Locator::Json(_) | Locator::Form(_) => None,
    })
}

fn header_value(name: &HeaderName, text: &str) -> Result<HeaderValue, KeyError> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| KeyError(format!("`{name}` cannot have this value")))
}

fn found(value: Result<Option<Cow<'_, [u8]>>, super::Refusal>) -> Result<Option<String>, KeyError> {
    Ok(value.map_err(unsignable)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn unsignable(refusal: super::Refusal) -> KeyError {
    KeyError(format!("the message cannot be signed: {refusal}"))
}

/// Splits a URL before its path.
fn split(url: &str) -> (&str, &str) {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let path = url[authority..].find(['/', '?']).map_or(url.len(), |at| authority + at);
    url.split_at(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::{Problems, read_document};
    use crate::verify::preset;

    const NOW: i64 = 1_776_871_800;

    fn signed(scheme: Scheme, id: Option<&str>, body: &'static str) -> Result<Vec<(String, String)>, String> {
        let signer = Signer::new(scheme, &Secret::new("secret-0123456789").unwrap()).unwrap();
        let message = Message {
            method: &Method::POST,
            url: "https://hooks.example.com/in",
            id,
            event: Some("push"),
            body: &Bytes::from_static(body.as_bytes()),
        };
        let headers = signer.sign(&message, Timestamp::from_second(NOW).unwrap()).map_err(|error| error.0)?;
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        headers.sort();
        Ok(headers)
    }

    fn known(name: &str) -> Scheme {
        preset(name).unwrap().scheme.clone()
    }

    #[test]
    fn headers_are_those_that_the_provider_sends() {
        let check = |name: &str, expected: &[(&str, &str)]| {
            let headers = signed(known(name), Some("id-1"), "{}").unwrap();
            let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(headers, expected);
        };
        check(
            "owlette",
            &[
                ("roost-delivery", "id-1"),
                ("roost-event", "push"),
                (
                    "roost-signature",
                    "t=1776871800,v1=39b9eefb173f9a5c4601e2f17a4bd324d323cc6aeec0d0b0e0d71514505e8889",
                ),
            ],
        );
        check(
            "hostwares",
            &[
                (
                    "x-hostwares-signature",
                    "sha256=3d11fdec7fa0a7f9dc37462f9deb2666340f9d89f761d0b40939d83c580dfa34",
                ),
                ("x-hostwares-timestamp", "1776871800"),
            ],
        );
        check("ownstak", &[("authorization", "secret-0123456789"), ("x-own-webhook-event-id", "id-1")]);
    }

    #[test]
    fn what_cannot_be_signed_is_said() {
        let webhooks = || {
            let text = "auth = 'signature'\n\
                signature = { from = ['header:webhook-signature'], algorithm = 'hmac-sha256', encoding = 'base64' }\n\
                signed = '{id}.{timestamp}.{body}'\n\
                timestamp = { at = 'header:webhook-timestamp', unit = 's' }\n\
                delivery_id = ['header:webhook-id']";
            read_document(text, &Problems::default(), |table| Scheme::read(&table)).unwrap()
        };
        assert!(signed(webhooks(), Some("id-1"), "").is_ok());
        let error = signed(webhooks(), None, "").unwrap_err();
        assert_eq!(error, "the message cannot be signed: the delivery id is missing");
        assert!(signed(webhooks(), Some("a.b"), "").unwrap_err().contains("letters, digits"));
        let error = signed(known("github"), Some("a\nb"), "").unwrap_err();
        assert_eq!(error, "`x-github-delivery` cannot have this value");
    }

    #[test]
    fn a_url_is_split_before_its_path() {
        let check = |url: &str, base: &str, target: &str| assert_eq!(split(url), (base, target));
        check("https://a.example:8443/in/?x=/y", "https://a.example:8443", "/in/?x=/y");
        check("https://a.example", "https://a.example", "");
        check("http://a.example?x", "http://a.example", "?x");
        check("http://a/b", "http://a", "/b");
        check("/in", "", "/in");
    }
}
