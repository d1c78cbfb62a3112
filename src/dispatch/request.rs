//! Makes the request that a backend gets out of a delivery: the provider's method, query, headers and body, plus what
//! the gateway says about them. Pure: time and chance are arguments.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, FORWARDED, HOST};
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::Full;

use super::trace;
use crate::clock::Timestamp;
use crate::config::{Countersign, Destination};
use crate::delivery::{Delivery, begins_to_cgi, is_same_to_cgi};
use crate::forward::Outcome;
use crate::shape::{PathError, Shape, TemplateError};
use crate::store::Lease;
use crate::verify::{KeyError, Message, preset};

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const SOURCE: HeaderName = HeaderName::from_static("countersign-source");
const EVENT: HeaderName = HeaderName::from_static("countersign-event");
const DELIVERY_ID: HeaderName = HeaderName::from_static("countersign-delivery-id");
const ATTEMPT: HeaderName = HeaderName::from_static("countersign-attempt");
const RECEIVED_AT: HeaderName = HeaderName::from_static("countersign-received-at");
const VERIFIED: HeaderName = HeaderName::from_static("countersign-verified");
const REPLAY: HeaderName = HeaderName::from_static("countersign-replay");

/// What a backend acts on and may find under another name. (A name without a dash, as `forwarded`, has no twin;
/// `countersign-…` is removed whole.)
const OURS: [HeaderName; 4] = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE, IDEMPOTENCY_KEY];

/// An event or id whose header value would be longer is left out: many servers refuse the whole request instead.
const VALUE_BYTES_MAX: usize = 1024;

/// Why no request can be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the destination's URL with the sender's query is not valid: {0}")]
    Url(#[from] http::uri::InvalidUri),
    #[error("it cannot be signed: {0}")]
    Sign(#[from] KeyError),
    #[error("{0}")]
    Template(#[from] TemplateError),
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("it cannot be signed as its provider does: there is no source `{0}` any more")]
    NoFormat(Arc<str>),
}

impl RequestError {
    /// What it is for the forward.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Template(_) | Self::Path(_) => Outcome::TemplateFailed,
            Self::Url(_) | Self::Sign(_) | Self::NoFormat(_) => Outcome::Unsendable,
        }
    }
}

/// The request of one attempt, at `now`; `span` names it in the sender's trace.
///
/// A signature is made anew for each attempt, so that a backend's own freshness check holds however late it is.
///
/// `webhook-id` is our delivery's id, and `webhook-timestamp` and `webhook-signature` are ours or not there: backends
/// tell duplicates apart by that id, so a sender must not choose it. The one exception is a delivery that was verified
/// by the preset of a provider which signs in `webhook-signature`, and goes to a destination without `sign`: those of the
/// three headers that the preset reads stay as they came, the id only where the signature covers it, since the backend may
/// want to check that again. A `custom` scheme is no exception; its backends check a countersignature, by `sign`.
pub(super) fn build(
    lease: &Lease,
    destination: &Destination,
    now: Timestamp,
    span: NonZeroU64,
) -> Result<Request<Full<Bytes>>, RequestError> {
    let delivery = &lease.delivery;
    let shape = &destination.shape;
    let target = match &shape.path {
        Some(path) => with_query(path.fill(delivery)?, delivery.query())?,
        None => target(&destination.url, delivery.query())?,
    };
    let method = shape.method.as_ref().unwrap_or(&delivery.method);
    let body = match &shape.body {
        Some(made) => made.template.render(delivery, lease.attempt, lease.replay, now)?,
        None => delivery.body.clone(),
    };
    let host = host(&destination.url);
    let id = delivery.id.to_string();
    let id_value = header_value(&id);

    let mut headers = delivery.headers.clone();
    let forwarded = forwarded(delivery);
    remove_connection_headers(&mut headers);
    shape_headers(&mut headers, shape);
    headers.insert(FORWARDED, forwarded);
    trace::continue_trace(&mut headers, delivery.id, span);
    if !headers.contains_key(IDEMPOTENCY_KEY) {
        headers.insert(IDEMPOTENCY_KEY, id_value.clone());
    }
    // Their own headers, where the scheme by which they were verified reads them.
    let proven = (destination.sign.is_none() && delivery.verification.verified)
        .then(|| preset(&delivery.verification.scheme))
        .flatten()
        .map(|preset| &preset.scheme)
        .filter(|scheme| scheme.reads(&WEBHOOK_SIGNATURE));
    for name in [WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE] {
        if !proven.is_some_and(|scheme| scheme.reads(&name)) {
            headers.remove(name);
        }
    }
    if !proven.is_some_and(|scheme| scheme.reads(&WEBHOOK_ID) && scheme.coverage().id) {
        headers.insert(WEBHOOK_ID, id_value);
    }
    let mut signed = HeaderMap::new();
    if let Some(sign) = &destination.sign {
        let url = format!("{}://{host}{target}", destination.url.scheme_str().unwrap_or("http"));
        let message = Message { method, url: &url, id: Some(&id), event: None, body: &body };
        signed = match sign {
            Countersign::Uniform(signer) => signer.sign(&message, now)?,
            // A backend takes this for the provider's word, and it is nobody's.
            Countersign::AsProvider(_) if !delivery.verification.verified => HeaderMap::new(),
            Countersign::AsProvider(signers) => {
                let signer = signers.iter().find(|(source, _)| *source == delivery.source);
                let (_, signer) =
                    signer.ok_or_else(|| RequestError::NoFormat(Arc::clone(&delivery.source)))?;
                // Its backends know the provider's id.
                let id = delivery.delivery_id.as_deref().or(message.id);
                let again = signer.sign_again(&delivery.headers, &Message { id, ..message }, now)?;
                for name in again.gone {
                    headers.remove(name);
                }
                again.new
            }
        };
    }
    let configured = destination.headers.iter().map(|(name, _)| name);
    remove_twins(&mut headers, &OURS.iter().chain(signed.keys()).chain(configured).collect::<Vec<_>>());
    replace(&mut headers, signed);
    headers.insert(SOURCE, header_value(&delivery.source));
    for (name, text) in [(EVENT, &delivery.event), (DELIVERY_ID, &delivery.delivery_id)] {
        if let Some(value) = text.as_deref().map(header_value).filter(|value| value.len() <= VALUE_BYTES_MAX)
        {
            headers.insert(name, value);
        }
    }
    headers.insert(ATTEMPT, HeaderValue::from(lease.attempt));
    headers.insert(RECEIVED_AT, header_value(&delivery.received_at.to_string()));
    headers.insert(
        VERIFIED,
        HeaderValue::from_static(if delivery.verification.verified { "true" } else { "false" }),
    );
    if lease.replay {
        headers.insert(REPLAY, HeaderValue::from_static("true"));
    }
    headers.insert(HOST, header_value(&host));
    for (name, value) in &destination.headers {
        headers.insert(name, value.clone());
    }
    headers.remove(CONTENT_LENGTH);
    if body.is_empty() {
        // hyper would not tell the length of nothing, and some servers answer 411 then (RFC 9110 §8.6).
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }

    let method = method.clone();
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Renames and removes what the provider sent; what we say ourselves is set afterwards.
fn shape_headers(headers: &mut HeaderMap, shape: &Shape) {
    for name in &shape.remove_headers {
        headers.remove(name);
    }
    for (old, new) in &shape.rename_headers {
        let values: Vec<_> = headers.get_all(old).iter().cloned().collect();
        if !values.is_empty() {
            headers.remove(old);
            headers.remove(new);
        }
        for value in values {
            headers.append(new, value);
        }
    }
    if let Some(made) = &shape.body {
        // They tell of the body that came.
        for name in ["content-encoding", "content-md5", "content-digest", "repr-digest", "digest"] {
            headers.remove(name);
        }
        headers.insert(CONTENT_TYPE, made.content_type.clone());
    }
}

/// A target with the sender's query after its own.
fn with_query(target: String, query: Option<&str>) -> Result<Uri, http::uri::InvalidUri> {
    let Some(query) = query else { return Uri::try_from(target) };
    let between = if target.contains('?') { '&' } else { '?' };
    Uri::try_from(format!("{target}{between}{query}"))
}

/// The origin-form target: the destination's path and query, then the sender's query.
fn target(url: &Uri, query: Option<&str>) -> Result<Uri, http::uri::InvalidUri> {
    let path = url.path();
    Uri::try_from(match (url.query().filter(|own| !own.is_empty()), query) {
        (None, None) => path.to_owned(),
        (Some(own), None) => format!("{path}?{own}"),
        (None, Some(query)) => format!("{path}?{query}"),
        (Some(own), Some(query)) => format!("{path}?{own}&{query}"),
    })
}

/// `Host` without user information and without the scheme's own port.
fn host(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    let usual = if url.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    match url.port_u16().filter(|port| *port != usual) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Headers that belong to the sender's connection, not to its message, and our own names, which only we may set.
/// Ingest has removed them; a delivery from an older store or another gateway may still have them.
fn remove_connection_headers(headers: &mut HeaderMap) {
    const CONNECTION: [&str; 9] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let removed: Vec<_> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            CONNECTION.contains(&name) || name.starts_with("proxy-") || begins_to_cgi(name, "countersign-")
        })
        .cloned()
        .collect();
    for name in removed {
        headers.remove(name);
    }
}

/// Removes headers that a backend may take for one of `ours`, though they have another name.
fn remove_twins(headers: &mut HeaderMap, ours: &[&HeaderName]) {
    let is_twin = |name: &HeaderName| {
        ours.iter().any(|our| is_same_to_cgi(our.as_str(), name.as_str())) && !ours.contains(&name)
    };
    let removed: Vec<_> = headers.keys().filter(|name| is_twin(name)).cloned().collect();
    for name in removed {
        headers.remove(name);
    }
}

/// Replaces in `headers` every header that is in `new`.
fn replace(headers: &mut HeaderMap, new: HeaderMap) {
    for name in new.keys() {
        headers.remove(name);
    }
    // A name comes with the first of its values only.
    let mut current = None;
    for (name, value) in new {
        current = name.or(current);
        if let Some(name) = &current {
            headers.append(name, value);
        }
    }
}

/// `Forwarded` (RFC 7239): the sender, the host that it asked for, and the scheme, which is what ingest leaves of the
/// header that came from outside: it has judged which proxies to believe.
fn forwarded(delivery: &Delivery) -> HeaderValue {
    let mut text = match delivery.sender {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    if let Some(host) = delivery.headers.get(HOST).and_then(|host| host.to_str().ok()) {
        let host = host.replace('\\', "\\\\").replace('"', "\\\"");
        text.push_str(&format!(";host=\"{host}\""));
    }
    for scheme in ["proto=https", "proto=http"] {
        if delivery.headers.get(FORWARDED).is_some_and(|left| left == scheme) {
            text.push_str(&format!(";{scheme}"));
        }
    }
    header_value(&text)
}

/// `text` as a header value: bytes that are not visible ASCII, and percent signs, are percent-encoded, so that any
/// text can be read back and none can break the header. (Spaces stay where they are inside the value.)
fn header_value(text: &str) -> HeaderValue {
    let inside = text.trim_matches(' ').len() == text.len();
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            b'!'..=b'~' => encoded.push(char::from(byte)),
            b' ' if inside => encoded.push(' '),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).expect("only visible ASCII and spaces are left")
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::clock::from_milliseconds;
    use crate::delivery::Verification;
    use crate::dispatch::lane::tests::destination;
    use crate::id::Id;

    fn lease(headers: &[(&str, &[u8])]) -> Lease {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap())
            })
            .collect();
        let delivery = Delivery {
            id: Id::from_bytes([1; 16]),
            source: "shop".into(),
            delivery_id: Some("evt_1".to_owned()),
            event: Some("order.paid".to_owned()),
            received_at: from_milliseconds(1_500),
            sender: "192.0.2.7".parse().unwrap(),
            method: Method::PUT,
            target: "/webhooks/shop?b=%20&b=2".to_owned(),
            headers,
            body: Bytes::from_static(b"\xff\x00{"),
            verification: Verification {
                verified: true,
                scheme: "custom".into(),
                secret: None,
                skew_seconds: None,
            },
        };
        Lease {
            delivery: Arc::new(delivery),
            destination: "legacy".into(),
            attempt: 3,
            pending_since: from_milliseconds(0),
            waited: std::time::Duration::ZERO,
            replay: false,
        }
    }

    fn built(lease: &Lease) -> Request<Full<Bytes>> {
        build(
            lease,
            &destination("http://user:pw@Backend:8080/in?a=1"),
            Timestamp::UNIX_EPOCH,
            NonZeroU64::MIN,
        )
        .unwrap()
    }

    fn header<'a>(request: &'a Request<Full<Bytes>>, name: &str) -> Option<&'a str> {
        request.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn the_message_goes_on_and_the_connection_does_not() {
        let request = built(&lease(&[
            ("host", b"hooks.example.com"),
            ("content-length", b"99"),
            ("transfer-encoding", b"chunked"),
            ("connection", b"keep-alive"),
            ("expect", b"100-continue"),
            ("proxy-authorization", b"x"),
            ("countersign-verified", b"forged"),
            ("x-list", b"1"),
            ("x-list", b"2"),
            ("x-latin", b"caf\xe9"),
        ]));
        assert_eq!(request.method(), Method::PUT);
        assert_eq!(request.uri(), "/in?a=1&b=%20&b=2");
        assert_eq!(header(&request, "host"), Some("Backend:8080"));
        for gone in ["content-length", "transfer-encoding", "connection", "expect", "proxy-authorization"] {
            assert_eq!(header(&request, gone), None, "{gone}");
        }
        assert_eq!(request.headers().get_all("x-list").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(request.headers()["x-latin"].as_bytes(), b"caf\xe9");
        assert_eq!(header(&request, "countersign-verified"), Some("true"));
    }

    /// `Countersign_Verified: true` came through, and PHP or Rack showed it to the backend as `HTTP_COUNTERSIGN_VERIFIED`,
    /// the variable of our own header.
    #[test]
    fn names_that_a_backend_takes_for_ours_do_not_go_on() {
        let mut destination = destination("http://backend/");
        destination.headers.push((HeaderName::from_static("x_api_key"), HeaderValue::from_static("k")));
        let lease = lease(&[
            ("countersign_verified", b"forged"),
            ("countersign.replay", b"forged"),
            ("countersign~anything", b"forged"),
            ("webhook_id", b"forged"),
            ("webhook.timestamp", b"forged"),
            ("webhook_signature", b"forged"),
            ("idempotency_key", b"forged"),
            ("x-api-key", b"forged"),
            ("countersigned-by", b"kept"),
            ("webhooks_id", b"kept"),
            ("x_list", b"kept"),
            ("x-list", b"kept"),
        ]);
        let request = build(&lease, &destination, Timestamp::UNIX_EPOCH, NonZeroU64::MIN).unwrap();
        let with = |wanted: &str| request.headers().values().filter(|value| *value == wanted).count();
        assert_eq!(with("forged"), 0, "{:?}", request.headers());
        assert_eq!(with("kept"), 4, "{:?}", request.headers());
        assert_eq!(header(&request, "x_api_key"), Some("k"));
    }

    #[test]
    fn the_gateway_says_what_it_knows() {
        let id = Id::from_bytes([1; 16]).to_string();
        let request = built(&lease(&[("host", b"hooks.example.com:8443"), ("forwarded", b"for=10.0.0.1")]));
        for (name, value) in [
            ("webhook-id", id.as_str()),
            ("idempotency-key", &id),
            ("countersign-source", "shop"),
            ("countersign-event", "order.paid"),
            ("countersign-delivery-id", "evt_1"),
            ("countersign-attempt", "3"),
            ("countersign-received-at", "1970-01-01T00:00:01.5Z"),
            ("forwarded", "for=192.0.2.7;host=\"hooks.example.com:8443\""),
            ("traceparent", "00-01010101010101010101010101010101-0000000000000001-01"),
        ] {
            assert_eq!(header(&request, name), Some(value), "{name}");
        }
        assert_eq!(header(&request, "countersign-replay"), None);
        let replay = Lease { replay: true, ..lease(&[]) };
        assert_eq!(header(&built(&replay), "countersign-replay"), Some("true"));
    }

    /// Any sender that added a `webhook-signature` had its own `webhook-id` sent on, from sources that never looked at
    /// either: a backend that tells duplicates apart by that id could be made to drop somebody else's delivery.
    #[test]
    fn the_senders_webhook_headers_stay_only_where_they_were_verified() {
        let ours = Id::from_bytes([1; 16]).to_string();
        let check = |scheme: &str, verified, stay| {
            let mut lease = lease(&[
                ("webhook-id", b"msg_1"),
                ("webhook-timestamp", b"1"),
                ("webhook-signature", b"v1,x"),
            ]);
            let verification = &mut Arc::make_mut(&mut lease.delivery).verification;
            (verification.scheme, verification.verified) = (scheme.into(), verified);
            let request = built(&lease);
            let expected =
                if stay { [Some("msg_1"), Some("1"), Some("v1,x")] } else { [Some(&*ours), None, None] };
            let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
            assert_eq!(names.map(|name| header(&request, name)), expected, "{scheme} {verified}");
        };
        // The providers that have the scheme of another had lost all three, and GoCardless its only one.
        for scheme in
            ["standard-webhooks", "standard-webhooks-v1a", "openai", "anthropic", "gitlab-signing-token"]
        {
            check(scheme, true, true);
            check(scheme, false, false);
        }
        let mut gocardless = lease(&[("webhook-id", b"msg_1"), ("webhook-signature", b"x")]);
        Arc::make_mut(&mut gocardless.delivery).verification.scheme = "gocardless".into();
        let request = built(&gocardless);
        assert_eq!(header(&request, "webhook-signature"), Some("x"));
        assert_eq!(header(&request, "webhook-id"), Some(&*ours));
        for scheme in ["github", "custom", "none"] {
            check(scheme, true, false);
            check(scheme, false, false);
        }
    }

    #[test]
    fn the_length_of_nothing_is_told() {
        let mut lease = lease(&[]);
        assert_eq!(header(&built(&lease), "content-length"), None, "hyper's to tell");
        Arc::make_mut(&mut lease.delivery).body = Bytes::new();
        assert_eq!(header(&built(&lease), "content-length"), Some("0"));
    }

    #[test]
    fn the_providers_own_idempotency_key_stays() {
        let request = built(&lease(&[("idempotency-key", b"theirs")]));
        assert_eq!(header(&request, "idempotency-key"), Some("theirs"));
    }

    #[test]
    fn the_destinations_own_headers_win() {
        let mut destination = destination("http://backend/");
        for (name, value) in [("host", "inner"), ("x-api-key", "k"), ("content-length", "7")] {
            destination.headers.push((HeaderName::from_static(name), HeaderValue::from_static(value)));
        }
        let lease = lease(&[("x-api-key", b"theirs")]);
        let request = build(&lease, &destination, Timestamp::UNIX_EPOCH, NonZeroU64::MIN).unwrap();
        assert_eq!(header(&request, "host"), Some("inner"));
        assert_eq!(request.headers().get_all("x-api-key").iter().collect::<Vec<_>>(), ["k"]);
        assert_eq!(header(&request, "content-length"), None);
    }

    #[test]
    fn targets_join_both_queries() {
        let check = |url: &str, query, expected: &str| {
            assert_eq!(target(&url.parse().unwrap(), query).unwrap(), expected, "{url} {query:?}");
        };
        check("http://h", None, "/");
        check("http://h/p", Some("a=1"), "/p?a=1");
        check("http://h/p?x", None, "/p?x");
        check("http://h/p?x", Some("a=1&b"), "/p?x&a=1&b");
        check("http://h/p?", Some("a"), "/p?a");
        let endless = "q".repeat(70_000);
        assert!(target(&"http://h/p".parse().unwrap(), Some(&endless)).is_err());
    }

    #[test]
    fn hosts_are_named_as_http_wants() {
        let check = |url: &str, expected| assert_eq!(host(&url.parse().unwrap()), expected, "{url}");
        check("http://u:p@h:80/", "h");
        check("https://h:80/", "h:80");
        check("https://h:443/", "h");
        check("http://[::1]:3000/", "[::1]:3000");
    }

    #[test]
    fn any_text_fits_into_a_header() {
        let check = |text, expected: &str| assert_eq!(header_value(text), expected, "{text:?}");
        check("order.paid", "order.paid");
        check("two words", "two words");
        check(" led", "%20led");
        check("50%\r\nX: é", "50%25%0D%0AX: %C3%A9");
        let mut long = lease(&[]);
        Arc::make_mut(&mut long.delivery).event = Some("e".repeat(2_000));
        assert_eq!(header(&built(&long), "countersign-event"), None);
    }

    #[test]
    fn senders_are_quoted_as_rfc_7239_wants() {
        let mut six = lease(&[("host", b"a\"b")]);
        Arc::make_mut(&mut six.delivery).sender = "2001:db8::1".parse().unwrap();
        assert_eq!(forwarded(&six.delivery), "for=\"[2001:db8::1]\";host=\"a\\\"b\"");
        assert_eq!(forwarded(&lease(&[("forwarded", b"proto=https")]).delivery), "for=192.0.2.7;proto=https");
    }
}
