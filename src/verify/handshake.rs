//! The handshakes that providers demand of an endpoint before they send to it, or of one that they look after: which
//! requests are one, and what answers it. Sending the answer, asking for a URL and keeping a secret are left to the caller.
//!
//! What is echoed is short and plain, so that no browser could make anything of it. A MAC is given only for texts that are
//! no deliveries: whoever asks gets it, and [`is_open_to_all`] keeps it from being a signature.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Refusal;
use super::check::Checker;
use super::locate::{Locator, Request};
use crate::clock::Timestamp;
use crate::secret::Secret;

/// No handshake has a larger body.
pub(crate) const BODY_BYTES_MAX: u64 = 16 << 10;
/// Challenges are UUIDs, random texts, or a sentence with one of them.
const ECHO_BYTES_MAX: usize = 1024;
pub(super) const TOKEN_BYTES_MAX: usize = 256;
/// RFC 1035.
const ORIGIN_BYTES_MAX: usize = 253;

const HOOK_SECRET: &str = "x-hook-secret";

/// A handshake, by what a scheme calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// Braintree: a MAC of `bt_challenge`, behind the public key.
    BtChallenge,
    /// monday: a body that is `challenge` and nothing else comes back.
    Challenge,
    /// CloudEvents: `OPTIONS` asks whether an origin may send.
    CloudEventsOptions,
    /// X: a MAC of `crc_token`.
    Crc,
    /// Discord: a body of type 0, or 1 without an event.
    DiscordPing,
    /// Dropbox: `challenge` comes back.
    DropboxChallenge,
    /// Zoom: a MAC of `plainToken`.
    EndpointUrlValidation,
    /// Trello: `HEAD` is answered.
    Head,
    /// Meta: `hub.challenge` comes back, when the verify token is right.
    HubChallenge,
    /// Okta: a header comes back as JSON.
    OktaVerificationChallenge,
    /// Amazon SNS: a URL has to be asked for.
    SubscriptionConfirmation,
    /// Azure Event Grid: a code comes back as JSON.
    SubscriptionValidation,
    /// WooCommerce: a form with the number of the webhook, which is not signed.
    UnsignedPing,
    /// Slack: `challenge` comes back.
    UrlVerification,
    /// Microsoft Graph: `validationToken` comes back.
    ValidationToken,
    /// Notion: the secret, for an operator to paste back.
    VerificationToken,
    /// Twitch: `challenge` comes back.
    WebhookCallbackVerification,
    /// Asana: the secret, which comes back.
    XHookSecret,
}

/// What a handshake is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// The head alone.
    Early,
    /// The body, which nothing proves.
    Unsigned,
    /// The body, which has been verified.
    Signed,
}

impl Handshake {
    pub(super) const NAMES: [(&str, Self); 18] = [
        ("bt-challenge", Self::BtChallenge),
        ("challenge", Self::Challenge),
        ("cloudevents-options", Self::CloudEventsOptions),
        ("crc", Self::Crc),
        ("discord-ping", Self::DiscordPing),
        ("dropbox-challenge", Self::DropboxChallenge),
        ("endpoint-url-validation", Self::EndpointUrlValidation),
        ("head", Self::Head),
        ("hub-challenge", Self::HubChallenge),
        ("okta-verification-challenge", Self::OktaVerificationChallenge),
        ("subscription-confirmation", Self::SubscriptionConfirmation),
        ("subscription-validation", Self::SubscriptionValidation),
        ("unsigned-ping", Self::UnsignedPing),
        ("url-verification", Self::UrlVerification),
        ("validation-token", Self::ValidationToken),
        ("verification-token", Self::VerificationToken),
        ("webhook-callback-verification", Self::WebhookCallbackVerification),
        ("x-hook-secret", Self::XHookSecret),
    ];

    /// Its name in a scheme.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, handshake)| *handshake == self).map_or("", |(name, _)| *name)
    }

    /// Whether the provider proves who asks, so that the request may go on to a backend.
    pub fn is_signed(self) -> bool {
        self.known() == Known::Signed
    }

    /// Whether it hands over the secret of the source, which therefore may be without one until then.
    pub fn hands_over_secret(self) -> bool {
        matches!(self, Self::VerificationToken | Self::XHookSecret)
    }

    /// Whether its answer is made with the source's key.
    pub(super) fn is_answered_with_key(self) -> bool {
        matches!(self, Self::BtChallenge | Self::Crc | Self::EndpointUrlValidation)
    }

    /// Whether the text is one that is answered with its MAC, and so no delivery. Braintree's are hex digits, as its own
    /// libraries demand: its deliveries sign base64, which may be short.
    pub(super) fn is_token(self, text: &[u8]) -> bool {
        match self {
            Self::BtChallenge => {
                let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                (20..=32).contains(&text.len()) && text.iter().all(is_digit)
            }
            _ => is_open_to_all(text),
        }
    }

    fn known(self) -> Known {
        match self {
            Self::BtChallenge
            | Self::CloudEventsOptions
            | Self::Crc
            | Self::DropboxChallenge
            | Self::Head
            | Self::HubChallenge
            | Self::OktaVerificationChallenge => Known::Early,
            Self::Challenge
            | Self::UnsignedPing
            | Self::ValidationToken
            | Self::VerificationToken
            | Self::XHookSecret => Known::Unsigned,
            Self::DiscordPing
            | Self::EndpointUrlValidation
            | Self::SubscriptionConfirmation
            | Self::SubscriptionValidation
            | Self::UrlVerification
            | Self::WebhookCallbackVerification => Known::Signed,
        }
    }
}

/// What a source says about its handshakes.
#[derive(Debug, Clone, Default)]
pub struct HandshakeOptions {
    /// What `hub.verify_token` has to be; anything, when absent.
    pub verify_token: Option<Secret>,
    /// What stands before the MAC that Braintree asks for.
    pub public_key: Option<String>,
    /// The origins that may send, instead of the scheme's own; `*` is all of them.
    pub origins: Vec<String>,
}

/// What answers a handshake.
#[derive(Debug, Clone)]
pub enum HandshakeAnswer {
    /// 200 without a body.
    Empty,
    /// 204.
    NoContent,
    /// Plain text.
    Text(String),
    /// A JSON document.
    Json(String),
    /// The origin may send.
    Granted(HeaderValue),
    /// 200 when this URL has been asked for. It is one of the provider's own.
    Confirm(String),
    /// 200 when the secret has been kept for an operator; with it in `X-Hook-Secret` where there is a value.
    Keep(Secret, Option<HeaderValue>),
}

/// Why a handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeRefusal {
    /// What it wants back is no challenge of any provider's.
    #[error("the handshake is malformed")]
    Malformed,
    /// The origin is not allowed to send.
    #[error("the origin is not allowed")]
    OriginNotAllowed,
    /// It does not prove what it has to.
    #[error(transparent)]
    Unverified(#[from] Refusal),
}

type Answered = Result<HandshakeAnswer, HandshakeRefusal>;

/// The handshakes of a source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handshakes<'a> {
    pub(super) kinds: &'a [Handshake],
    /// The origins that the scheme knows.
    pub(super) origins: &'a [String],
    pub(super) options: &'a HandshakeOptions,
    pub(super) checker: &'a Checker,
}

impl Handshakes<'_> {
    /// The answer to a request that is a handshake by its head alone; `None` when it is not.
    pub(super) fn early(&self, request: &Request<'_>, now: Timestamp) -> Option<Answered> {
        self.first(Known::Early, |kind| self.answer_early(kind, request, now))
    }

    /// Whether a request may turn out to be a handshake once its body has been read, although nothing proves it.
    pub(super) fn may_follow(&self, request: &Request<'_>) -> bool {
        *request.method == Method::POST
            && self.kinds.iter().any(|kind| match kind {
                Handshake::ValidationToken => request.target.contains("validationToken="),
                Handshake::XHookSecret => request.headers.contains_key(HOOK_SECRET),
                other => other.known() == Known::Unsigned,
            })
    }

    /// The answer to a handshake that is not signed.
    pub(super) fn unsigned(&self, request: &Request<'_>) -> Option<Answered> {
        let body = request.body.filter(|body| body.len() as u64 <= BODY_BYTES_MAX)?;
        if *request.method != Method::POST {
            return None;
        }
        self.first(Known::Unsigned, |kind| answer_unsigned(kind, request, body))
    }

    /// The answer to a handshake that has been verified, by the secret of this name.
    pub(super) fn signed(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        secret: Option<&str>,
        now: Timestamp,
    ) -> Option<Answered> {
        if body.len() as u64 > BODY_BYTES_MAX {
            return None;
        }
        self.first(Known::Signed, |kind| self.answer_signed(kind, headers, body, secret, now))
    }

    fn first(&self, known: Known, answer: impl FnMut(Handshake) -> Option<Answered>) -> Option<Answered> {
        self.kinds.iter().copied().filter(|kind| kind.known() == known).find_map(answer)
    }

    fn answer_early(&self, kind: Handshake, request: &Request<'_>, now: Timestamp) -> Option<Answered> {
        let is = |method: Method| *request.method == method;
        match kind {
            Handshake::Head => is(Method::HEAD).then_some(Ok(HandshakeAnswer::Empty)),
            Handshake::CloudEventsOptions if is(Method::OPTIONS) => {
                let origin = value(request, "header:webhook-request-origin")?;
                Some(origin.and_then(|origin| self.grant(&origin)))
            }
            Handshake::DropboxChallenge if is(Method::GET) => {
                Some(value(request, "query:challenge")?.and_then(|text| echo(&text)))
            }
            Handshake::HubChallenge if is(Method::GET) => {
                let challenge = value(request, "query:hub.challenge")?;
                Some(challenge.and_then(|challenge| {
                    self.check_hub(request)?;
                    echo(&challenge)
                }))
            }
            Handshake::OktaVerificationChallenge if is(Method::GET) => {
                let challenge = value(request, "header:x-okta-verification-challenge")?;
                Some(challenge.and_then(|challenge| json("verification", plain(&challenge)?)))
            }
            Handshake::Crc if is(Method::GET) => {
                let challenge = value(request, "query:crc_token")?;
                Some(challenge.and_then(|challenge| {
                    let mac = STANDARD.encode(self.mac(kind, &challenge, None, now)?);
                    json("response_token", &format!("sha256={mac}"))
                }))
            }
            Handshake::BtChallenge if is(Method::GET) => {
                let public_key = self.options.public_key.as_deref()?;
                let challenge = value(request, "query:bt_challenge")?;
                Some(challenge.and_then(|challenge| {
                    let mac = hex::encode(self.mac(kind, &challenge, None, now)?);
                    Ok(HandshakeAnswer::Text(format!("{public_key}|{mac}")))
                }))
            }
            _ => None,
        }
    }

    /// Whether whoever wants a challenge back knows what the operator told the provider.
    fn check_hub(&self, request: &Request<'_>) -> Result<(), HandshakeRefusal> {
        let mode = value(request, "query:hub.mode").ok_or(HandshakeRefusal::Malformed)??;
        if mode != "subscribe" {
            return Err(HandshakeRefusal::Malformed);
        }
        let Some(expected) = &self.options.verify_token else { return Ok(()) };
        let token = value(request, "query:hub.verify_token").ok_or(Refusal::TokenMissing)??;
        // Digests, so that not even its length shows in the time taken.
        let is_same = Sha256::digest(token.as_bytes()).ct_eq(&Sha256::digest(expected.expose()));
        if is_same.into() { Ok(()) } else { Err(Refusal::TokenMismatch.into()) }
    }

    /// CloudEvents, HTTP webhooks §4.2: the whole origin counts, never a part of it.
    fn grant(&self, origin: &str) -> Answered {
        let allowed =
            if self.options.origins.is_empty() { self.origins } else { self.options.origins.as_slice() };
        let is_dns = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        if origin.len() > ORIGIN_BYTES_MAX || !origin.bytes().all(is_dns) {
            return Err(HandshakeRefusal::Malformed);
        }
        if !allowed.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin)) {
            return Err(HandshakeRefusal::OriginNotAllowed);
        }
        let origin = HeaderValue::from_str(origin).map_err(|_| HandshakeRefusal::Malformed)?;
        Ok(HandshakeAnswer::Granted(origin))
    }

    fn answer_signed(
        &self,
        kind: Handshake,
        headers: &HeaderMap,
        body: &[u8],
        secret: Option<&str>,
        now: Timestamp,
    ) -> Option<Answered> {
        match kind {
            Handshake::UrlVerification => {
                let asked: Challenge<'_> = serde_json::from_slice(body).ok()?;
                (asked.kind? == "url_verification").then(|| echo(&asked.challenge))
            }
            Handshake::WebhookCallbackVerification => {
                const TYPE: &str = "twitch-eventsub-message-type";
                if headers.get(TYPE)? != "webhook_callback_verification" {
                    return None;
                }
                let asked: Challenge<'_> = serde_json::from_slice(body).ok()?;
                Some(echo(&asked.challenge))
            }
            Handshake::SubscriptionValidation => {
                if headers.get("aeg-event-type")? != "SubscriptionValidation" {
                    return None;
                }
                let [event]: [Validation<'_>; 1] = serde_json::from_slice(body).ok()?;
                let code = plain(&event.data.validation_code);
                Some(code.and_then(|code| json("validationResponse", code)))
            }
            Handshake::EndpointUrlValidation => {
                let asked: UrlValidation<'_> = serde_json::from_slice(body).ok()?;
                if asked.event != "endpoint.url_validation" {
                    return None;
                }
                let token = &asked.payload.plain_token;
                Some(self.mac(kind, token, secret, now).map(|mac| {
                    let answer =
                        serde_json::json!({ "plainToken": token, "encryptedToken": hex::encode(mac) });
                    HandshakeAnswer::Json(answer.to_string())
                }))
            }
            Handshake::DiscordPing => {
                let asked: Ping = serde_json::from_slice(body).ok()?;
                match (asked.kind, asked.event) {
                    (0, _) => Some(Ok(HandshakeAnswer::NoContent)),
                    (1, None) => Some(Ok(HandshakeAnswer::Json(r#"{"type":1}"#.to_owned()))),
                    _ => None,
                }
            }
            Handshake::SubscriptionConfirmation => {
                let asked: Confirmation<'_> = serde_json::from_slice(body).ok()?;
                if asked.kind != "SubscriptionConfirmation" {
                    return None;
                }
                let confirms = |place: &str| place.starts_with("/?Action=ConfirmSubscription&");
                let place = self.checker.place_at_sender(&asked.url);
                if place.is_some_and(|place| confirms(place) && place.bytes().all(|b| b.is_ascii_graphic())) {
                    Some(Ok(HandshakeAnswer::Confirm(asked.url.into_owned())))
                } else {
                    Some(Err(HandshakeRefusal::Malformed))
                }
            }
            _ => None,
        }
    }

    fn mac(
        &self,
        kind: Handshake,
        challenge: &str,
        secret: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<u8>, HandshakeRefusal> {
        if !kind.is_token(challenge.as_bytes()) {
            return Err(HandshakeRefusal::Malformed);
        }
        Ok(self.checker.mac(challenge.as_bytes(), secret, now).ok_or(Refusal::NoActiveSecret)?)
    }
}

fn answer_unsigned(kind: Handshake, request: &Request<'_>, body: &[u8]) -> Option<Answered> {
    match kind {
        Handshake::Challenge => {
            let asked: Lone<'_> = serde_json::from_slice(body).ok()?;
            Some(plain(&asked.challenge).and_then(|text| json("challenge", text)))
        }
        Handshake::ValidationToken if body.is_empty() => {
            Some(value(request, "query:validationToken")?.and_then(|text| echo(&text)))
        }
        Handshake::VerificationToken => {
            let given: LoneToken<'_> = serde_json::from_slice(body).ok()?;
            let token = is_open_to_all(given.verification_token.as_bytes());
            let secret = Secret::new(given.verification_token.as_bytes()).ok().filter(|_| token);
            Some(secret.map(|secret| HandshakeAnswer::Keep(secret, None)).ok_or(HandshakeRefusal::Malformed))
        }
        Handshake::UnsignedPing => {
            let number = body.strip_prefix(b"webhook_id=")?;
            let is_number = (1..=20).contains(&number.len()) && number.iter().all(u8::is_ascii_digit);
            is_number.then_some(Ok(HandshakeAnswer::Empty))
        }
        Handshake::XHookSecret if matches!(body.trim_ascii(), b"" | b"{}") => {
            let given = value(request, &format!("header:{HOOK_SECRET}"))?;
            Some(given.and_then(|text| {
                let malformed = HandshakeRefusal::Malformed;
                let secret = Secret::new(text.as_bytes()).map_err(|_| malformed)?;
                let mut echoed = HeaderValue::from_str(&text).map_err(|_| malformed)?;
                echoed.set_sensitive(true);
                if is_open_to_all(text.as_bytes()) {
                    Ok(HandshakeAnswer::Keep(secret, Some(echoed)))
                } else {
                    Err(malformed)
                }
            }))
        }
        _ => None,
    }
}

/// Whether the text is one of which anybody may have a MAC. So a MAC of it proves nothing, whatever it is found on: no
/// delivery is so short and without a single quote, brace, line or colon.
fn is_open_to_all(text: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=_-.~".contains(byte);
    (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.iter().all(is_plain)
}

/// The text at a place of the request; `None` when it is not there.
fn value(request: &Request<'_>, at: &str) -> Option<Result<String, HandshakeRefusal>> {
    let at: Locator = at.parse().ok()?;
    let found = request.find(&at).map_err(HandshakeRefusal::from).transpose()?;
    Some(
        found
            .and_then(|bytes| String::from_utf8(bytes.into_owned()).map_err(|_| HandshakeRefusal::Malformed)),
    )
}

/// A challenge as it is, if no reader could take it for anything but text.
fn plain(text: &str) -> Result<&str, HandshakeRefusal> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !b"<>\"'&`\\".contains(&byte);
    if (1..=ECHO_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
        Ok(text)
    } else {
        Err(HandshakeRefusal::Malformed)
    }
}

fn echo(text: &str) -> Answered {
    plain(text).map(|text| HandshakeAnswer::Text(text.to_owned()))
}

fn json(key: &str, text: &str) -> Answered {
    Ok(HandshakeAnswer::Json(serde_json::json!({ key: text }).to_string()))
}

#[derive(Deserialize)]
struct Challenge<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    challenge: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lone<'a> {
    #[serde(borrow)]
    challenge: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoneToken<'a> {
    #[serde(borrow)]
    verification_token: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Validation<'a> {
    #[serde(borrow)]
    data: ValidationData<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ValidationData<'a> {
    #[serde(borrow)]
    validation_code: Cow<'a, str>,
}

#[derive(Deserialize)]
struct UrlValidation<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    payload: UrlValidationPayload<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UrlValidationPayload<'a> {
    #[serde(borrow)]
    plain_token: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Ping {
    #[serde(rename = "type")]
    kind: u64,
    event: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Confirmation<'a> {
    #[serde(borrow, rename = "Type")]
    kind: Cow<'a, str>,
    #[serde(borrow, rename = "SubscribeURL")]
    url: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use bytes::Bytes;
    use http::HeaderName;

    use super::*;
    use crate::delivery::Received;
    use crate::id::Id;
    use crate::verify::{Enforcement, Message, NamedSecret, Signer, Verifier, Window, preset, presets};

    const NOW: i64 = 1_776_871_800;
    const SECRET: &str = "secret-0123456789";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn options() -> HandshakeOptions {
        HandshakeOptions {
            verify_token: Some(Secret::new("v-token").unwrap()),
            public_key: Some("pub".to_owned()),
            origins: Vec::new(),
        }
    }

    fn verifier(of: &str) -> Verifier {
        let secrets = vec![NamedSecret::new("only", Secret::new(SECRET).unwrap())];
        let url = Some("https://hooks.example.com".to_owned());
        let scheme = preset(of).unwrap().scheme.clone();
        let verifier =
            Verifier::new(of.into(), scheme, secrets, Window::default(), Enforcement::Enforce, url).unwrap();
        verifier.with_handshake(options())
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    /// What stands for an answer in a table of expectations.
    fn told(answer: Option<Answered>) -> String {
        match answer {
            None => "no handshake".to_owned(),
            Some(Err(refusal)) => refusal.to_string(),
            Some(Ok(HandshakeAnswer::Empty)) => "empty".to_owned(),
            Some(Ok(HandshakeAnswer::NoContent)) => "no content".to_owned(),
            Some(Ok(HandshakeAnswer::Text(text))) => format!("text {text}"),
            Some(Ok(HandshakeAnswer::Json(document))) => format!("json {document}"),
            Some(Ok(HandshakeAnswer::Granted(origin))) => format!("granted {}", origin.to_str().unwrap()),
            Some(Ok(HandshakeAnswer::Confirm(url))) => format!("confirm {url}"),
            Some(Ok(HandshakeAnswer::Keep(secret, echoed))) => {
                format!("keep {} {}", String::from_utf8_lossy(secret.expose()), echoed.is_some())
            }
        }
    }

    fn early(of: &str, method: &Method, target: &str, pairs: &[(&str, &str)]) -> String {
        told(verifier(of).early_handshake(method, target, &headers(pairs), at(NOW)))
    }

    fn received(headers: HeaderMap, target: &str, body: &str) -> Received {
        Received {
            id: Id::new(at(NOW), [0; 10]),
            source: "source".into(),
            received_at: at(NOW),
            sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
            method: Method::POST,
            target: target.to_owned(),
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    fn unsigned(of: &str, target: &str, pairs: &[(&str, &str)], body: &str) -> String {
        told(verifier(of).unsigned_handshake(&received(headers(pairs), target, body)))
    }

    fn signed(of: &str, pairs: &[(&str, &str)], body: &str) -> String {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let message = Message {
            method: &Method::POST,
            url: "https://hooks.example.com/",
            id: Some("id-1"),
            event: None,
            body: &bytes,
        };
        let signer = Signer::new(preset(of).unwrap().scheme.clone(), &Secret::new(SECRET).unwrap()).unwrap();
        let mut all = signer.sign(&message, at(NOW)).unwrap();
        all.extend(headers(pairs));
        let verifier = verifier(of);
        let verified = verifier.verify(received(all, "/", body)).unwrap();
        told(verifier.signed_handshake(&verified))
    }

    #[test]
    fn challenges_in_the_head_come_back() {
        let get = |of: &str, target: &str| early(of, &Method::GET, target, &[]);
        let good = "/?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=v-token";
        assert_eq!(get("meta", good), "text 1158201444");
        assert_eq!(early("meta", &Method::POST, good, &[]), "no handshake");
        assert_eq!(get("meta", &good.replace("v-token", "v-tokem")), "no token matches");
        assert_eq!(get("meta", &good.replace("v-token", "")), "the token is missing");
        assert_eq!(get("meta", &good.replace("subscribe", "unsubscribe")), "the handshake is malformed");
        assert_eq!(
            get("meta", &format!("{good}&hub.challenge=2")),
            "a value that must be single is there twice"
        );
        assert_eq!(get("meta", "/?a=1"), "no handshake");
        assert_eq!(get("github", good), "no handshake");
        assert_eq!(get("dropbox", "/?challenge=abc%20d"), "text abc d");
        let okta = [("x-okta-verification-challenge", "abc")];
        assert_eq!(early("okta", &Method::GET, "/", &okta), r#"json {"verification":"abc"}"#);
        assert_eq!(early("okta", &Method::GET, "/", &[]), "no handshake");
        assert_eq!(early("trello", &Method::HEAD, "/", &[]), "empty");
        assert_eq!(early("trello", &Method::GET, "/", &[]), "no handshake");
    }

    /// The MACs were made by another program, of the challenges below.
    #[test]
    fn challenges_are_answered_with_the_key() {
        let get = |of: &str, target: &str| early(of, &Method::GET, target, &[]);
        assert_eq!(get("x-twitter", "/?crc_token=foo"), CRC);
        assert_eq!(get("braintree", "/?bt_challenge=20f9f8ed05f77439fe955c977e4c8a53"), BRAINTREE);
        let asked =
            r#"{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}"#;
        assert_eq!(signed("zoom", &[], asked), ZOOM);
        assert_eq!(signed("zoom", &[], r#"{"event":"meeting.started"}"#), "no handshake");
    }

    const CRC: &str = r#"json {"response_token":"sha256=4xN7jVt2SAYRvBgEq4fVetbgIkPwNUsYC7YJFaGtYVQ="}"#;
    const BRAINTREE: &str = "text pub|5812b82fd8817bff6611e2127baf645ff5d89630";
    const ZOOM: &str = r#"json {"encryptedToken":"02bbce8eb1b73cc223a2010dc24afb59845dfc53162a86469039ed253017bb6d","plainToken":"qgg8vlvZRS6UYooatFL8Aw"}"#;

    /// X signs a body as it answers a challenge, so whoever had the right challenge answered would have a signature.
    #[test]
    fn nobody_gets_a_signature_by_a_challenge() {
        let get = |token: &str| early("x-twitter", &Method::GET, &format!("/?crc_token={token}"), &[]);
        for body in ["%7B%7D", "%5B1%5D", "%22a%22", "a%0A", "a%20b", &"a".repeat(257)] {
            assert_eq!(get(body), "the handshake is malformed", "{body}");
        }
        let verifier = verifier("x-twitter");
        let signer = Signer::new(preset("x-twitter").unwrap().scheme.clone(), &Secret::new(SECRET).unwrap());
        let signer = signer.unwrap();
        let check = |body: &str, expected: Result<(), Refusal>| {
            let bytes = Bytes::copy_from_slice(body.as_bytes());
            let message = Message { method: &Method::POST, url: "", id: None, event: None, body: &bytes };
            let headers = signer.sign(&message, at(NOW)).unwrap();
            assert_eq!(verifier.verify(received(headers, "/", body)).map(drop), expected, "{body}");
        };
        check("foo", Err(Refusal::SignatureMismatch));
        check(r#"{"a":1}"#, Ok(()));
    }

    #[test]
    fn an_origin_is_allowed_as_a_whole() {
        let ask = |origin: &str| {
            early("azure-event-grid", &Method::OPTIONS, "/", &[("webhook-request-origin", origin)])
        };
        assert_eq!(ask("eventgrid.azure.net"), "granted eventgrid.azure.net");
        assert_eq!(ask("EventGrid.Azure.Net"), "granted EventGrid.Azure.Net");
        for other in [
            "eventgrid.azure.net.evil.example",
            "evil-eventgrid.azure.net",
            "azure.net",
            "net",
            "x.eventgrid.azure.net",
        ] {
            assert_eq!(ask(other), "the origin is not allowed", "{other}");
        }
        for junk in
            ["*", "a b", "https://eventgrid.azure.net", "eventgrid.azure.net,evil.example", &"a".repeat(254)]
        {
            assert_eq!(ask(junk), "the handshake is malformed", "{junk}");
        }
        assert_eq!(early("azure-event-grid", &Method::OPTIONS, "/", &[]), "no handshake");
        let origins = |origins: &[&str], origin| {
            let origins = origins.iter().map(|&origin| origin.to_owned()).collect();
            let verifier =
                verifier("azure-event-grid").with_handshake(HandshakeOptions { origins, ..options() });
            let asked = headers(&[("webhook-request-origin", origin)]);
            told(verifier.early_handshake(&Method::OPTIONS, "/", &asked, at(NOW)))
        };
        assert_eq!(origins(&["a.example"], "eventgrid.azure.net"), "the origin is not allowed");
        assert_eq!(origins(&["*"], "a.example"), "granted a.example");
    }

    #[test]
    fn what_nothing_proves_has_to_be_a_handshake_and_nothing_else() {
        let post = |of: &str, body: &str| unsigned(of, "/", &[], body);
        assert_eq!(post("monday", r#"{"challenge":"3eZb"}"#), r#"json {"challenge":"3eZb"}"#);
        assert_eq!(post("monday", r#"{"challenge":"3eZb","event":{}}"#), "no handshake");
        assert_eq!(post("woocommerce", "webhook_id=12"), "empty");
        for other in
            ["webhook_id=", "webhook_id=1&a=b", "webhook_id=x", &format!("webhook_id={}", "1".repeat(21))]
        {
            assert_eq!(post("woocommerce", other), "no handshake", "{other}");
        }
        let token = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl";
        assert_eq!(
            post("notion", &format!(r#"{{"verification_token":"{token}"}}"#)),
            format!("keep {token} false")
        );
        assert_eq!(post("notion", r#"{"verification_token":"a b"}"#), "the handshake is malformed");
        let graph = |target: &str, body: &str| unsigned("ms-graph-clientstate", target, &[], body);
        let target =
            "/?validationToken=Validation%3A+Testing+client+application+reachability+Request-Id%3A+8e";
        assert_eq!(
            graph(target, ""),
            "text Validation: Testing client application reachability Request-Id: 8e"
        );
        assert_eq!(graph(target, "{}"), "no handshake");
        assert_eq!(graph("/", ""), "no handshake");
        let hook = [("x-hook-secret", "b537207f20cbfa02357cf448134da559")];
        assert_eq!(unsigned("asana", "/", &hook, "{}"), "keep b537207f20cbfa02357cf448134da559 true");
        assert_eq!(unsigned("asana", "/", &hook, r#"{"events":[]}"#), "no handshake");
        assert_eq!(unsigned("asana", "/", &[("x-hook-secret", "a,b")], ""), "the handshake is malformed");

        let may = |of: &str, target: &str, pairs: &[(&str, &str)]| {
            verifier(of).may_be_handshake(&Method::POST, target, &headers(pairs))
        };
        assert!(
            may("monday", "/", &[]) && may("ms-graph-clientstate", target, &[]) && may("asana", "/", &hook)
        );
        assert!(!may("ms-graph-clientstate", "/", &[]) && !may("asana", "/", &[]) && !may("slack", "/", &[]));
    }

    #[test]
    fn what_is_signed_is_recognised_once_it_is_verified() {
        let slack = r#"{"token":"t","challenge":"3eZbrw1a","type":"url_verification"}"#;
        assert_eq!(signed("slack", &[], slack), "text 3eZbrw1a");
        assert_eq!(signed("slack", &[], r#"{"type":"event_callback","challenge":"a"}"#), "no handshake");
        let twitch = |kind| {
            let headers = [("twitch-eventsub-message-type", kind)];
            signed("twitch", &headers, r#"{"challenge":"pogchamp","subscription":{}}"#)
        };
        assert_eq!(twitch("webhook_callback_verification"), "text pogchamp");
        assert_eq!(twitch("notification"), "no handshake");
        let huge = slack.replace("3eZbrw1a", &"a".repeat(1025));
        assert_eq!(signed("slack", &[], &huge), "the handshake is malformed");

        let validation = r#"[{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"512d38b6"}}]"#;
        let kind = [("aeg-event-type", "SubscriptionValidation")];
        let code = r#"json {"validationResponse":"512d38b6"}"#;
        assert_eq!(unproven("azure-event-grid", &kind, validation), code);
        assert_eq!(unproven("azure-event-grid", &[], validation), "no handshake");
        assert_eq!(unproven("discord", &[], r#"{"version":1,"type":0}"#), "no content");
        assert_eq!(unproven("discord", &[], r#"{"version":1,"type":1}"#), r#"json {"type":1}"#);
        assert_eq!(unproven("discord", &[], r#"{"type":1,"event":{"type":"X"}}"#), "no handshake");
        assert_eq!(unproven("discord", &[], r#"{"type":2}"#), "no handshake");

        let sns = |url: &str, kind: &str| {
            unproven("aws-sns", &[], &format!(r#"{{"Type":"{kind}","SubscribeURL":"{url}"}}"#))
        };
        let good = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:us-east-1:1:t&Token=23";
        assert_eq!(sns(good, "SubscriptionConfirmation"), format!("confirm {good}"));
        assert_eq!(sns(good, "UnsubscribeConfirmation"), "no handshake");
        for bad in [
            good.replace("https:", "http:"),
            good.replace(".com/", ".com.evil.example/"),
            good.replace("sns.us-east-1.amazonaws.com", "169.254.169.254"),
            good.replace("sns.us-east-1", "x@sns.us-east-1"),
            good.replace("ConfirmSubscription", "DeleteTopic"),
            format!("{good} x"),
        ] {
            assert_eq!(sns(&bad, "SubscriptionConfirmation"), "the handshake is malformed", "{bad}");
        }
    }

    /// The same for schemes whose private keys are not ours.
    fn unproven(of: &str, pairs: &[(&str, &str)], body: &str) -> String {
        let checker =
            Checker::new(preset(of).unwrap().scheme.clone(), Vec::new(), Window::default()).unwrap();
        let options = options();
        let handshakes =
            Handshakes { kinds: checker.handshakes(), origins: &[], options: &options, checker: &checker };
        told(handshakes.signed(&headers(pairs), body.as_bytes(), None, at(NOW)))
    }

    #[test]
    fn hostile_challenges_get_nothing_back() {
        let get = |challenge: &str| early("dropbox", &Method::GET, &format!("/?challenge={challenge}"), &[]);
        for bad in [
            "%3Cscript%3E",
            "a%0D%0Ab",
            "a%00",
            "%7F",
            "%FF",
            "%C3%BC",
            "a%22b",
            "a%27b",
            "a%26b",
            "a%5Cb",
            &"a".repeat(1025),
        ] {
            assert_eq!(get(bad), "the handshake is malformed", "{bad}");
        }
        assert_eq!(get(&"a".repeat(1024)), format!("text {}", "a".repeat(1024)));
    }

    #[test]
    fn every_handshake_has_a_provider_and_a_name() {
        for (name, kind) in Handshake::NAMES {
            assert_eq!(kind.name(), name);
            let has = |preset: &super::super::Preset| preset.scheme.handshakes().contains(&kind);
            assert!(presets().iter().any(has), "{name}");
        }
    }
}
