//! Whole requests as providers send them: signature, token, timestamp and id wherever they stand, also in the query and in the
//! body, and the signatures that take code to find.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::{Credential, Message, Signer, header_value, split, unsignable};
use crate::clock::Timestamp;
use crate::verify::KeyError;
use crate::verify::algorithm::Algorithm;
use crate::verify::code::Code;
use crate::verify::encoding::Encoding;
use crate::verify::locate::{Locator, Request};
use crate::verify::scheme::{SignatureRule, TimestampPlace};
use crate::verify::template::Template;

use super::key::SigningKey;

/// A request that is ready to be sent.
#[derive(Debug, Clone)]
pub struct SignedRequest {
    /// The headers that the provider would send.
    pub headers: HeaderMap,
    /// The URL, with what the provider puts into its query.
    pub url: String,
    /// The body, with what the provider puts into it.
    pub body: Bytes,
    /// Whether the body is a form.
    pub is_form: bool,
}

impl Signer {
    /// The request that the provider would send at `now`. Where it has its signature in headers, URL and body are those of
    /// `message`.
    ///
    /// # Errors
    /// When the message lacks something that the scheme signs, or cannot take what has to be put into it.
    pub fn sign_whole(&self, message: &Message<'_>, now: Timestamp) -> Result<SignedRequest, KeyError> {
        let mut whole = SignedRequest {
            headers: HeaderMap::new(),
            url: message.url.to_owned(),
            body: message.body.clone(),
            is_form: false,
        };
        match &self.credential {
            Credential::Token(at, token) => {
                whole.put_values(self, message, now)?;
                whole.headers = self.headers(HeaderMap::new(), message, now)?;
                let text = String::from_utf8_lossy(token.as_bytes()).into_owned();
                whole.put(at, &text)?;
            }
            Credential::Key(rule, key) if !rule.from.iter().any(|at| matches!(at, Locator::Header(_))) => {
                whole.put_values(self, message, now)?;
                whole.put_signed_fields(rule, message)?;
                let body = whole.body.clone();
                let message = Message { body: &body, ..message.clone() };
                whole.headers = self.headers(HeaderMap::new(), &message, now)?;
                let text = self.signature(rule, key, &message, &whole.headers, now)?;
                let at = rule
                    .from
                    .first()
                    .ok_or_else(|| KeyError("there is no place for a signature".to_owned()))?;
                whole.put(at, &text)?;
            }
            Credential::Key(rule, _) => {
                whole.put_signed_fields(rule, message)?;
                let body = whole.body.clone();
                whole.headers = self.sign(&Message { body: &body, ..message.clone() }, now)?;
            }
            Credential::Jwt(..) => whole.headers = self.sign(message, now)?,
            Credential::Code(code, key) => {
                whole.headers = self.headers(HeaderMap::new(), message, now)?;
                match code {
                    Code::AdyenPayments => whole.sign_items(key, message)?,
                    Code::Contentful => whole.sign_headers(key, message)?,
                    Code::Sns => return Err(KeyError(SNS.to_owned())),
                }
            }
        }
        Ok(whole)
    }
}

pub(super) const SNS: &str = "Amazon signs with keys of its own; publish to a topic to try it (`aws sns publish`), or try the \
                              source with a scheme of your own";

impl SignedRequest {
    /// Timestamp and id, where they stand in the body or the query.
    fn put_values(&mut self, signer: &Signer, message: &Message<'_>, now: Timestamp) -> Result<(), KeyError> {
        if let Some(rule) = &signer.scheme.timestamp
            && let TimestampPlace::At(places) = &rule.at
            && let Some(place) = places.first().filter(|place| !matches!(place, Locator::Header(_)))
        {
            self.put(place, &rule.unit.format(now))?;
        }
        let places = [(&signer.scheme.delivery_id, message.id), (&signer.scheme.event, message.event)];
        for (places, value) in places {
            if let (Some(place), Some(value)) = (places.first(), value)
                && !matches!(place, Locator::Header(_))
            {
                self.put(place, value)?;
            }
        }
        Ok(())
    }

    /// A field of a form that is signed holds the message, in base64 as Braintree has it, where the message is no form.
    fn put_signed_fields(&mut self, rule: &SignatureRule, message: &Message<'_>) -> Result<(), KeyError> {
        let fields =
            rule.signed.iter().flat_map(Template::places).filter(|at| matches!(at, Locator::Form(_)));
        for at in fields.collect::<Vec<_>>() {
            if self.find(at).is_none() {
                let is_json = matches!(at, Locator::Form(name) if name == "payload");
                let text = if is_json {
                    String::from_utf8_lossy(message.body).into_owned()
                } else {
                    Encoding::Base64.encode(message.body)
                };
                self.put(at, &text)?;
            }
        }
        Ok(())
    }

    fn find(&self, at: &Locator) -> Option<String> {
        let (base_url, target) = split(&self.url);
        let request = Request {
            method: &http::Method::POST,
            base_url,
            other_base_url: base_url,
            target,
            headers: &self.headers,
            body: Some(&self.body),
        };
        let found = request.find(at).ok().flatten()?;
        Some(String::from_utf8_lossy(&found).into_owned())
    }

    fn put(&mut self, at: &Locator, text: &str) -> Result<(), KeyError> {
        let escaped = || utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        match at {
            Locator::Header(name) => {
                let mut value = header_value(name, text)?;
                value.set_sensitive(true);
                self.headers.insert(name.clone(), value);
            }
            Locator::Query(name) => {
                let mark = if self.url.contains('?') { '&' } else { '?' };
                self.url = format!("{}{mark}{name}={}", self.url, escaped());
            }
            Locator::Form(name) => {
                let body =
                    std::str::from_utf8(&self.body).ok().filter(|_| self.is_form || is_form(&self.body));
                let before =
                    body.filter(|body| !body.is_empty()).map_or(String::new(), |body| format!("{body}&"));
                self.body = format!("{before}{name}={}", escaped()).into();
                self.is_form = true;
            }
            Locator::Json(pointer) => {
                let mut document = if self.body.is_empty() {
                    Value::Object(Map::new())
                } else {
                    let not_json =
                        |_| KeyError("the body has to be JSON: the signature stands in it".to_owned());
                    serde_json::from_slice(&self.body).map_err(not_json)?
                };
                put_json(&mut document, pointer.as_str(), text);
                self.body = document.to_string().into();
            }
        }
        Ok(())
    }

    /// Adyen: each item by itself.
    fn sign_items(&mut self, key: &SigningKey, message: &Message<'_>) -> Result<(), KeyError> {
        const SIGNATURE: &str = "NotificationRequestItem/additionalData/hmacSignature";
        let mut document: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        if document["notificationItems"].as_array().is_none_or(Vec::is_empty) {
            let item = serde_json::json!({ "NotificationRequestItem": {
                "pspReference": message.id.unwrap_or("id"), "merchantAccountCode": "countersign", "merchantReference": "send",
                "amount": { "value": 100, "currency": "EUR" },
                "eventCode": message.event.unwrap_or("AUTHORISATION"), "success": "true",
            } });
            document = serde_json::json!({ "live": "false", "notificationItems": [item] });
        }
        let count = document["notificationItems"].as_array().map_or(0, Vec::len);
        let place = |index: usize| format!("/notificationItems/{index}/{SIGNATURE}");
        for index in 0..count {
            put_json(&mut document, &place(index), &Encoding::Base64.encode(&[0; 32]));
        }
        self.body = document.to_string().into();
        for (index, signature) in self.code_signatures(Code::AdyenPayments, key, message)?.iter().enumerate()
        {
            put_json(&mut document, &place(index), &Encoding::Base64.encode(signature));
        }
        self.body = document.to_string().into();
        Ok(())
    }

    /// Contentful: the list of headers first.
    fn sign_headers(&mut self, key: &SigningKey, message: &Message<'_>) -> Result<(), KeyError> {
        let list = "x-contentful-signed-headers,x-contentful-timestamp";
        let signature = HeaderName::from_static("x-contentful-signature");
        self.headers.insert("x-contentful-signed-headers", HeaderValue::from_static(list));
        self.headers.insert(signature.clone(), header_value(&signature, &"0".repeat(64))?);
        let made = self.code_signatures(Code::Contentful, key, message)?;
        let made = made.first().ok_or_else(|| KeyError("nothing is signed".to_owned()))?;
        self.headers.insert(signature.clone(), header_value(&signature, &Encoding::Hex.encode(made))?);
        Ok(())
    }

    /// The signatures of what the code finds in the request, which has others in their place.
    fn code_signatures(
        &self,
        code: Code,
        key: &SigningKey,
        message: &Message<'_>,
    ) -> Result<Vec<Vec<u8>>, KeyError> {
        let (base_url, target) = split(&self.url);
        let request = Request {
            method: message.method,
            base_url,
            other_base_url: base_url,
            target,
            headers: &self.headers,
            body: Some(&self.body),
        };
        let signed = code.signed(&request).map_err(unsignable)?;
        signed.iter().map(|signed| key.sign(Algorithm::HmacSha256, &signed.pieces)).collect()
    }
}

/// Whether the text can be gone on with as a form.
fn is_form(body: &[u8]) -> bool {
    body.contains(&b'=')
        && !body.trim_ascii_start().starts_with(b"{")
        && !body.trim_ascii_start().starts_with(b"[")
}

/// Puts a text at a JSON pointer, with the objects and lists on the way there; at `*` into the first element.
fn put_json(document: &mut Value, pointer: &str, text: &str) {
    let mut place = document;
    for step in pointer.split('/').skip(1) {
        let step: Cow<'_, str> = if step == "*" { "0".into() } else { step.into() };
        place = match step.parse::<usize>() {
            Ok(index) => {
                if !place.is_array() {
                    *place = Value::Array(Vec::new());
                }
                if let Some(list) = place.as_array_mut() {
                    while list.len() <= index.min(16) {
                        list.push(Value::Null);
                    }
                }
                &mut place[index.min(16)]
            }
            Err(_) => {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                &mut place[&*step]
            }
        };
    }
    *place = text.into();
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::delivery::Received;
    use crate::id::Id;
    use crate::secret::Secret;
    use crate::verify::{Enforcement, NamedSecret, Refusal, Verifier, Window, preset};

    const HEX: &str = "7365637265742d307365637265742d307365637265742d307365637265742d30";

    fn verified(
        provider: &str,
        body: &'static str,
        change: impl FnOnce(&mut SignedRequest),
    ) -> Result<(), Refusal> {
        let now = Timestamp::from_second(1_776_871_800).unwrap();
        let scheme = preset(provider).unwrap().scheme.clone();
        let secret = || Secret::new(HEX).unwrap();
        let base = "https://hooks.example.com";
        let message = Message {
            method: &Method::POST,
            url: &format!("{base}/in"),
            id: Some("id-1"),
            event: Some("push"),
            body: &Bytes::from_static(body.as_bytes()),
        };
        let signer = Signer::new(scheme.clone(), &secret()).unwrap();
        let mut whole =
            signer.sign_whole(&message, now).unwrap_or_else(|error| panic!("{provider}: {error}"));
        change(&mut whole);
        let secrets = vec![NamedSecret::new("only", secret())];
        let verifier = Verifier::new(
            provider.into(),
            scheme,
            secrets,
            Window::default(),
            Enforcement::Enforce,
            Some(base.to_owned()),
        );
        let received = Received {
            id: Id::new(now, [0; 10]),
            source: "source".into(),
            received_at: now,
            sender: std::net::Ipv4Addr::LOCALHOST.into(),
            method: Method::POST,
            target: whole.url[base.len()..].to_owned(),
            headers: whole.headers,
            body: whole.body,
        };
        verifier.unwrap().verify(received).map(drop)
    }

    /// `send` had refused all of them.
    #[test]
    fn what_is_signed_outside_of_the_headers_verifies() {
        for provider in [
            "adyen-payments",
            "azure-event-grid",
            "braintree",
            "contentful",
            "docker-hub",
            "gitea-form",
            "github",
            "mailgun",
            "mailgun-form",
            "mollie-classic",
            "ms-graph-clientstate",
        ] {
            assert_eq!(verified(provider, r#"{"a":1}"#, |_| ()), Ok(()), "{provider}");
            let stripped = verified(provider, r#"{"a":1}"#, |whole| {
                whole.headers.clear();
                (whole.url, whole.body) =
                    ("https://hooks.example.com/in".to_owned(), Bytes::from_static(b"{}"));
            });
            assert!(stripped.is_err(), "{provider}");
        }
        let two = r#"{"notificationItems":[{"NotificationRequestItem":{"pspReference":"1"}},{"NotificationRequestItem":{"pspReference":"2"}}]}"#;
        assert_eq!(verified("adyen-payments", two, |_| ()), Ok(()));
        let tampered = verified("adyen-payments", two, |whole| {
            let text = String::from_utf8(whole.body.to_vec()).unwrap();
            whole.body = text.replace(r#""2""#, r#""3""#).into();
        });
        assert_eq!(tampered, Err(Refusal::SignatureMismatch));
    }

    #[test]
    fn what_only_the_provider_can_sign_says_what_to_do() {
        let error = |provider: &str| {
            Signer::new(preset(provider).unwrap().scheme.clone(), &Secret::new(HEX).unwrap()).unwrap_err().0
        };
        assert!(error("aws-sns").contains("publish to a topic"), "{}", error("aws-sns"));
        for provider in ["sendgrid", "highlevel", "plaid", "google-pubsub"] {
            let text = error(provider);
            assert!(
                text.contains("private key") && text.contains("a key pair of your own"),
                "{provider}: {text}"
            );
        }
    }
}
