//! What we sign, we verify, and nothing that is signed may change: properties of every preset.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::verify::{
    Enforcement, Message, NamedSecret, Preset, Refusal, Signer, Verified, Verifier, Window, presets,
};
use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;

#[expect(dead_code, reason = "the numbers are for other tests")]
#[path = "shared/soak.rs"]
mod soak;

const PAST: i64 = 300;
const FUTURE: i64 = 120;

/// The headers of a preset in which no bit may change.
fn signed_headers(preset: &Preset) -> &'static [&'static str] {
    match &*preset.name {
        "github" => &["x-hub-signature-256"],
        "hostwares" => &["x-hostwares-signature"],
        "owlette" => &["roost-signature"],
        "owlette-legacy" => &["x-owlette-signature"],
        "ownstak" => &["authorization"],
        "standard-webhooks" => &["webhook-id", "webhook-timestamp", "webhook-signature"],
        "stripe" => &["stripe-signature"],
        other => panic!("say which headers of {other} are signed"),
    }
}

/// A secret made of `bytes` as the preset's provider would show it.
fn secret(preset: &Preset, bytes: &[u8]) -> Secret {
    let text = match &*preset.name {
        "standard-webhooks" => format!("whsec_{}", STANDARD.encode(bytes)),
        _ => hex::encode(bytes),
    };
    Secret::new(text).unwrap()
}

fn verifier(preset: &Preset, secrets: &[&[u8]]) -> Verifier {
    let named = |bytes: &&[u8]| NamedSecret {
        name: hex::encode(bytes).into(),
        secret: secret(preset, bytes),
        not_before: None,
        not_after: None,
    };
    let window =
        Window { past: Duration::from_secs(PAST as u64), future: Duration::from_secs(FUTURE as u64) };
    let secrets = secrets.iter().map(named).collect();
    let scheme = preset.scheme.clone();
    Verifier::new(preset.name.clone(), scheme, secrets, window, Enforcement::Enforce, None).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[derive(Debug, Clone)]
struct Sent {
    id: String,
    body: Bytes,
    second: i64,
}

impl Sent {
    fn headers(&self, preset: &Preset, key: &[u8]) -> HeaderMap {
        let message = Message {
            method: &preset.methods[0],
            url: "https://hooks.example.com/in",
            id: Some(&self.id),
            event: Some("deployment.succeeded"),
            body: &self.body,
        };
        let signer = Signer::new(preset.scheme.clone(), &secret(preset, key)).unwrap();
        signer.sign(&message, at(self.second)).unwrap()
    }
}

fn verify(verifier: &Verifier, headers: &HeaderMap, body: &[u8], second: i64) -> Result<Verified, Refusal> {
    verifier.verify(Received {
        id: Id::new(at(second), [0; 10]),
        source: "source".into(),
        received_at: at(second),
        sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
        method: Method::POST,
        target: "/in".to_owned(),
        headers: headers.clone(),
        body: Bytes::copy_from_slice(body),
    })
}

fn is_signature(preset: &Preset) -> bool {
    preset.scheme.auth() == "signature"
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 8..80)
}

fn body() -> impl Strategy<Value = Bytes> {
    let json = "[a-z0-9_]{1,20}".prop_map(|id| format!(r#"{{"id":"{id}","type":"t"}}"#).into_bytes());
    prop_oneof![vec(any::<u8>(), 0..60), json].prop_map(Bytes::from)
}

fn sent() -> impl Strategy<Value = Sent> {
    let id = "[A-Za-z0-9_:-]{1,40}";
    (id, body(), 1_000_000i64..4_000_000_000).prop_map(|(id, body, second)| Sent { id, body, second })
}

/// `bytes` with each single bit flipped in turn, and where.
fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit / 8, flipped)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_signed_is_verified(
        sent in sent(), old in key(), new in key(), delay in -FUTURE..=PAST,
    ) {
        for preset in presets() {
            let verifier = verifier(preset, &[&old, &new]);
            for key in [&old, &new] {
                let headers = sent.headers(preset, key);
                let second = sent.second + delay;
                prop_assert_eq!(verifier.precheck(&Method::POST, "/in", &headers, at(second)), Ok(()));
                let verified = verify(&verifier, &headers, &sent.body, second).unwrap();
                let verification = &verified.delivery().verification;
                let name = hex::encode(key);
                prop_assert_eq!(verification.secret.as_deref(), Some(name.as_str()), "{}", preset.name);
            }
        }
    }

    #[test]
    fn another_secret_is_refused(sent in sent(), key in key(), other in key()) {
        // HMAC fills keys up with zeros.
        let unpadded = |key: &[u8]| key.iter().rposition(|byte| *byte != 0).map(|at| key[..=at].to_vec());
        prop_assume!(unpadded(&key) != unpadded(&other));
        for preset in presets() {
            let outcome = verify(&verifier(preset, &[&other]), &sent.headers(preset, &key), &sent.body, sent.second);
            let expected = if is_signature(preset) { Refusal::SignatureMismatch } else { Refusal::TokenMismatch };
            prop_assert_eq!(outcome.map(drop), Err(expected), "{}", preset.name);
        }
    }

    #[test]
    fn any_time_outside_the_window_is_refused(
        sent in sent(), key in key(), beyond in 1i64..1_000_000_000,
    ) {
        for preset in presets().iter().filter(|preset| preset.scheme.has_timestamp()) {
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            let late = verify(&verifier, &headers, &sent.body, sent.second + PAST + beyond);
            prop_assert_eq!(late.map(drop), Err(Refusal::TimestampTooOld), "{}", preset.name);
            let early = verify(&verifier, &headers, &sent.body, sent.second - FUTURE - beyond);
            prop_assert_eq!(early.map(drop), Err(Refusal::TimestampTooNew), "{}", preset.name);
        }
    }
}

proptest! {
    // Every bit is tried in every case.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) })]

    #[test]
    fn any_changed_bit_of_the_body_is_refused(sent in sent(), key in key()) {
        for preset in presets().iter().filter(|preset| preset.scheme.coverage().body) {
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            for (_, body) in flips(&sent.body) {
                let outcome = verify(&verifier, &headers, &body, sent.second);
                prop_assert_eq!(outcome.map(drop), Err(Refusal::SignatureMismatch), "{}", preset.name);
            }
            for body in [[&sent.body[..], b"\n"].concat(), [b" ", &sent.body[..]].concat()] {
                let outcome = verify(&verifier, &headers, &body, sent.second);
                prop_assert_eq!(outcome.map(drop), Err(Refusal::SignatureMismatch), "{}", preset.name);
            }
        }
    }

    #[test]
    fn any_changed_bit_of_a_signed_header_is_refused(sent in sent(), key in key()) {
        for preset in presets() {
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            prop_assert!(verify(&verifier, &headers, &sent.body, sent.second).is_ok());
            for name in signed_headers(preset) {
                let value = headers[*name].as_bytes();
                for (at, flipped) in flips(value) {
                    // The case of a hex digit is no part of the signature; its last 64 characters are digits.
                    let is_digit = is_signature(preset) && at + 64 >= value.len();
                    let is_hex = !name.starts_with("webhook-");
                    if is_hex && is_digit && flipped.eq_ignore_ascii_case(value) {
                        continue;
                    }
                    // What cannot be a header value does not reach us.
                    let Ok(changed) = HeaderValue::from_bytes(&flipped) else { continue };
                    let mut headers = headers.clone();
                    headers.insert(*name, changed);
                    let outcome = verify(&verifier, &headers, &sent.body, sent.second);
                    prop_assert!(outcome.is_err(), "{} {name}: {}", preset.name, flipped.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn a_missing_or_repeated_signed_header_is_refused(sent in sent(), key in key()) {
        for preset in presets() {
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            for name in signed_headers(preset) {
                let mut repeated = headers.clone();
                repeated.append(*name, headers[*name].clone());
                let outcome = verify(&verifier, &repeated, &sent.body, sent.second);
                prop_assert_eq!(outcome.map(drop), Err(Refusal::DuplicateValue), "{}", preset.name);
                let mut without = headers.clone();
                without.remove(*name);
                prop_assert!(verify(&verifier, &without, &sent.body, sent.second).is_err(), "{}", preset.name);
            }
        }
    }
}

/// Bytes of a signature that are changed one at a time: the first, one in the middle, and the last.
const WRONG_BYTES: [usize; 3] = [0, 15, 31];

/// Which byte is wrong may come from outside: the test below counts the instructions of one such call.
#[test]
fn a_signature_is_refused_whichever_of_its_bytes_is_wrong() {
    let preset = presets().iter().find(|preset| &*preset.name == "github").unwrap();
    let sent = Sent { id: "d-1".to_owned(), body: Bytes::from_static(b"{}"), second: 1_800_000_000 };
    let verifier = verifier(preset, &[b"a key of some length"]);
    let good = sent.headers(preset, b"a key of some length");
    let signature = good["x-hub-signature-256"].to_str().unwrap().strip_prefix("sha256=").unwrap();
    let chosen =
        std::env::var_os("COUNTERSIGN_WRONG_BYTE").map(|byte| byte.to_str().unwrap().parse().unwrap());
    for byte in chosen.map_or(WRONG_BYTES.to_vec(), |byte| vec![byte]) {
        // A digit for a digit and a letter for a letter: decoding what the sender wrote may tell them apart.
        let mut hex = signature.as_bytes().to_vec();
        hex[2 * byte] = match hex[2 * byte] {
            b'0' => b'1',
            b'1'..=b'9' => b'0',
            b'a' => b'b',
            _ => b'a',
        };
        let mut forged = good.clone();
        let value = format!("sha256={}", String::from_utf8(hex).unwrap());
        forged.insert("x-hub-signature-256", HeaderValue::from_str(&value).unwrap());
        let refused = verify(&verifier, &forged, &sent.body, sent.second);
        assert_eq!(refused.unwrap_err(), Refusal::SignatureMismatch, "byte {byte}");
    }
}

/// In the long mode, and where valgrind is installed.
#[test]
fn the_place_of_a_wrong_byte_changes_no_instruction_count() {
    if !soak::is_long() || std::process::Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: it takes COUNTERSIGN_SOAK=1 and valgrind");
        return;
    }
    let counts = WRONG_BYTES.map(|byte| {
        let output = std::process::Command::new("valgrind")
            .args([
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                "--toggle-collect=*Verifier*verify*",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_signature_is_refused_whichever_of_its_bytes_is_wrong"])
            .env("COUNTERSIGN_WRONG_BYTE", byte.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let count = text.lines().find_map(|line| line.split("Collected : ").nth(1));
        count.unwrap_or_else(|| panic!("{text}")).trim().parse::<u64>().unwrap()
    });
    assert!(counts[0] > 1_000, "nothing was counted: {counts:?}");
    assert_eq!(counts, [counts[0]; 3], "instructions for wrong byte {WRONG_BYTES:?}");
}
