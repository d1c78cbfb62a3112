//! Lines of a template, as in `signed`, a delivery id and a target; from the fourth on, the body. A template is read if
//! and only if another reading of it finds tokens, what is signed is what that reading puts together, byte for byte,
//! and where a signature is good for two ids, both have the same second claim.

use bytes::Bytes;
use countersign::verify::{Message, Refusal, Signer, Verified, Verifier};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::{Digest as _, Sha256};

use super::support::{BASE_URL, NOW, line, now, received, scheme, secret, signature, toml_string, verifier};

const NONCE: &str = "n-1.2";

pub(super) fn check(input: &[u8]) {
    let Some((template, rest)) = line(input) else { return };
    let Some((id, rest)) = line(rest) else { return };
    let Some((target, body)) = line(rest) else { return };
    let text = format!(
        "auth = \"signature\"\nsigned = {}\ntimestamp = {{ at = \"header:x-time\", unit = \"s\" }}\n\
         delivery_id = [\"header:x-id\"]\n[signature]\nfrom = [\"header:x-signature\"]\n\
         algorithm = \"hmac-sha256\"\nencoding = \"hex\"",
        toml_string(template)
    );
    let (scheme, parts) = (scheme(&text), parts(template));
    assert_eq!(scheme.is_some(), parts.is_some(), "{template:?}");
    let (Some(scheme), Some(parts)) = (scheme, parts) else { return };
    if !scheme.config_names().is_empty() {
        return;
    }
    if HeaderValue::from_str(id).is_err() || !target.starts_with('/') {
        return;
    }

    let verifier = verifier(scheme.clone());
    let request = Request { id, target, body };
    let Some(signed) = request.signed(&parts) else { return };
    let signature = signature(&signed);
    let outcome = request.outcome(&verifier, &signature);
    assert_eq!(outcome.is_ok(), request.has_good_id(&parts), "{outcome:?} of {template:?} and {id:?}");
    if let Ok(verified) = &outcome {
        assert_eq!(verified.delivery().body, body);
        assert!(verified.delivery().verification.verified);
        if let Some(digest) = verified.signed_digest() {
            assert_eq!(digest[..], Sha256::digest(&signed)[..], "{template:?}");
        }
        for changed in [[body, b"x"].concat(), [b"x", body].concat()] {
            let changed = Request { body: &changed, ..request };
            let expected = changed.signed(&parts).as_deref() == Some(&signed[..]);
            assert_eq!(changed.outcome(&verifier, &signature).is_ok(), expected, "{template:?}");
        }
        no_other_id_is_signed(&request, &parts, &verifier, verified, &signature);
    }

    // The provider's side of it, whose nonce is the id.
    if parts.contains(&Part::Header("x-nonce".to_owned())) {
        return;
    }
    let url = format!("{BASE_URL}{target}");
    let body = Bytes::copy_from_slice(body);
    let message = Message { method: &Method::POST, url: &url, id: Some(id), event: None, body: &body };
    if let Ok(headers) = Signer::new(scheme, &secret()).unwrap().sign(&message, now()) {
        assert_eq!(headers["x-signature"], signature, "what we sign by {template:?}");
    }
}

/// Moves bytes between the id and what is beside it: what is still signed then must be known for the same delivery.
fn no_other_id_is_signed(
    request: &Request<'_>,
    parts: &[Part],
    verifier: &Verifier,
    verified: &Verified,
    signature: &str,
) {
    let is_id = |part: &Part| *part == Part::Id || *part == Part::Header("x-id".to_owned());
    let places = |is_wanted: &dyn Fn(&Part) -> bool| {
        (0..parts.len()).filter(|at| is_wanted(&parts[*at])).collect::<Vec<_>>()
    };
    let ([id_at], [body_at]) = (&places(&is_id)[..], &places(&|part| *part == Part::Body)[..]) else {
        return;
    };
    let Some(between) = request.signed(&parts[id_at.min(body_at) + 1..*id_at.max(body_at)]) else { return };
    let (id, body) = (request.id.as_bytes(), request.body);
    let whole = if id_at < body_at { [id, &between, body].concat() } else { [body, &between, id].concat() };
    for end in (0..=whole.len()).filter(|end| end + between.len() <= whole.len()) {
        let (front, back) = (&whole[..end], &whole[end + between.len()..]);
        if whole[end..end + between.len()] != between[..] {
            continue;
        }
        let (id, body) = if id_at < body_at { (front, back) } else { (back, front) };
        let Some(id) = std::str::from_utf8(id).ok().filter(|id| HeaderValue::from_str(id).is_ok()) else {
            continue;
        };
        let other = Request { id, target: request.target, body };
        if id == request.id {
            continue;
        }
        if let Ok(other) = other.outcome(verifier, signature) {
            let (one, other) = (verified.signed_digest(), other.signed_digest());
            assert!(
                one.is_some() && one == other,
                "{:?} and {id:?} have one signature by {parts:?}",
                request.id
            );
        }
    }
}

#[derive(Clone, Copy)]
struct Request<'a> {
    id: &'a str,
    target: &'a str,
    body: &'a [u8],
}

impl Request<'_> {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-id", self.id), ("x-time", &NOW.to_string()), ("x-nonce", NONCE)] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn outcome(&self, verifier: &Verifier, signature: &str) -> Result<Verified, Refusal> {
        let mut headers = self.headers();
        headers.insert("x-signature", HeaderValue::from_str(signature).unwrap());
        verifier.verify(received(self.target, headers, self.body))
    }

    fn has_good_id(&self, parts: &[Part]) -> bool {
        let is_strict = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte);
        if parts.contains(&Part::Id) {
            !self.id.is_empty() && self.id.len() <= 128 && self.id.bytes().all(is_strict)
        } else {
            self.id.len() <= 256 && !self.id.chars().any(char::is_control)
        }
    }

    /// What is signed; `None` where something is missing, or looked up in a way that is not for this test.
    fn signed(&self, parts: &[Part]) -> Option<Vec<u8>> {
        let headers = self.headers();
        let path = self.target.split('?').next().unwrap();
        let mut signed = Vec::new();
        for part in parts {
            match part {
                Part::Text(text) => signed.extend_from_slice(text.as_bytes()),
                Part::Body => signed.extend_from_slice(self.body),
                Part::Time => signed.extend_from_slice(NOW.to_string().as_bytes()),
                Part::Id => signed.extend_from_slice(self.id.as_bytes()),
                Part::Url => signed.extend_from_slice(format!("{BASE_URL}{}", self.target).as_bytes()),
                Part::UrlOtherPort => {
                    signed.extend_from_slice(format!("{BASE_URL}:443{}", self.target).as_bytes());
                }
                Part::BodyDigest => {
                    signed.extend_from_slice(hex::encode(Sha256::digest(self.body)).as_bytes());
                }
                Part::Config => return None,
                Part::UrlWithoutQuery => signed.extend_from_slice(format!("{BASE_URL}{path}").as_bytes()),
                Part::Method => signed.extend_from_slice(b"POST"),
                Part::Target => signed.extend_from_slice(self.target.as_bytes()),
                Part::Header(name) => {
                    let value = headers.get(name).filter(|value| !value.is_empty())?;
                    signed.extend_from_slice(value.as_bytes());
                }
                Part::Elsewhere => return None,
            }
        }
        Some(signed)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Body,
    Time,
    Id,
    Url,
    UrlOtherPort,
    UrlWithoutQuery,
    BodyDigest,
    Method,
    Target,
    Config,
    /// In lower case.
    Header(String),
    /// In query, form or JSON, or made of the body in a way that has tests of its own.
    Elsewhere,
}

/// Another reading of a template, by its braces.
fn parts(template: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['\\', '{', '}']) {
        parts.push(Part::Text(rest[..at].to_owned()));
        let (sign, after) = rest[at..].split_at(1);
        rest = match sign {
            "\\" => {
                let escaped = after.chars().next().filter(|c| "n\\{}".contains(*c))?;
                let text = if escaped == 'n' { '\n' } else { escaped };
                parts.push(Part::Text(text.to_string()));
                &after[1..]
            }
            "{" => {
                let (name, after) = after.split_once('}')?;
                parts.push(token(name)?);
                after
            }
            _ => return None,
        };
    }
    parts.push(Part::Text(rest.to_owned()));
    let is_text = |part: &Part| matches!(part, Part::Text(_) | Part::Config);
    if parts.iter().all(is_text) {
        return None;
    }
    parts.retain(|part| *part != Part::Text(String::new()));
    Some(parts)
}

fn token(name: &str) -> Option<Part> {
    Some(match name {
        "body" => Part::Body,
        "timestamp" => Part::Time,
        "id" => Part::Id,
        "url" => Part::Url,
        "url_port" => Part::UrlOtherPort,
        "body_sha256_hex" => Part::BodyDigest,
        "url_decoded" | "form_sorted" | "body_crc32" => Part::Elsewhere,
        "url_nq" => Part::UrlWithoutQuery,
        "method" => Part::Method,
        "path_query" => Part::Target,
        _ => match name.split_once(':')? {
            ("header", header) => Part::Header(header.parse::<HeaderName>().ok()?.as_str().to_owned()),
            ("query" | "form", field) => (!field.is_empty()).then_some(Part::Elsewhere)?,
            ("config", name) => (!name.is_empty()).then_some(Part::Config)?,
            ("json", pointer) => pointer.starts_with('/').then_some(Part::Elsewhere)?,
            _ => return None,
        },
    })
}
