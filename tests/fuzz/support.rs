//! What the properties share: inputs that can be read and written by hand, and a request to be verified.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::reader::{Problems, read_document};
use countersign::secret::Secret;
use countersign::verify::{Enforcement, NamedSecret, Scheme, Verifier, Window};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Method};
use sha2::Sha256;

pub(super) const NOW: i64 = 1_776_871_800;
pub(super) const WINDOW_SECONDS: i64 = 300;
pub(super) const SECRET: &str = "secret-0123456789";
pub(super) const BASE_URL: &str = "https://hooks.example.com";

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

/// The first line as text, and what follows it.
pub(super) fn line(input: &[u8]) -> Option<(&str, &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&input[..end]).ok()?, &input[end + 1..]))
}

/// A TOML string that is `text`.
pub(super) fn toml_string(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\U{:08x}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

/// The scheme that `text` describes without a mistake.
pub(super) fn scheme(text: &str) -> Option<Scheme> {
    let problems = Problems::default();
    let scheme = read_document(text, &problems, |table| Scheme::read(&table));
    scheme.filter(|_| !problems.has_errors())
}

pub(super) fn secret() -> Secret {
    Secret::new(SECRET).unwrap()
}

pub(super) fn verifier(scheme: Scheme) -> Verifier {
    let side = Duration::from_secs(WINDOW_SECONDS.unsigned_abs());
    let window = Window { past: side, future: side };
    let secrets =
        vec![NamedSecret { name: "only".into(), secret: secret(), not_before: None, not_after: None }];
    let url = Some(BASE_URL.to_owned());
    Verifier::new("custom".into(), scheme, secrets, window, Enforcement::Enforce, url).unwrap()
}

pub(super) fn received(target: &str, headers: HeaderMap, body: &[u8]) -> Received {
    Received {
        id: Id::new(now(), [0; 10]),
        source: "source".into(),
        received_at: now(),
        sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
        method: Method::POST,
        target: target.to_owned(),
        headers,
        body: Bytes::copy_from_slice(body),
    }
}

/// Made apart from the code under test.
pub(super) fn signature(signed: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(signed);
    hex::encode(mac.finalize().into_bytes())
}

/// The second that a text of digits tells, when it is fresh.
pub(super) fn is_fresh(timestamp: &str) -> bool {
    let is_strict =
        (1..=12).contains(&timestamp.len()) && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    is_strict && (timestamp.parse::<i64>().unwrap() - NOW).abs() <= WINDOW_SECONDS
}
