//! What we sign, we verify, and nothing that is signed may change: properties of every preset.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::verify::{
    Enforcement, Message, NamedSecret, Preset, Refusal, Scheme, Signer, Verified, Verifier, Window, preset,
    presets,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::collection::vec;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

#[expect(dead_code, reason = "the numbers are for other tests")]
#[path = "shared/soak.rs"]
mod soak;

const PAST: i64 = 300;
const FUTURE: i64 = 120;

/// What stands elsewhere than in headers, which is all that is signed here, or takes code; `tests/vectors.rs` has them.
const ELSEWHERE: [&str; 10] = [
    "adyen-payments",
    "aws-sns",
    "azure-event-grid",
    "braintree",
    "contentful",
    "docker-hub",
    "mailgun",
    "mailgun-form",
    "mollie-classic",
    "ms-graph-clientstate",
];

fn known() -> impl Iterator<Item = &'static Preset> {
    assert!(ELSEWHERE.iter().all(|name| preset(name).is_some()));
    presets().iter().filter(|preset| !ELSEWHERE.contains(&&*preset.name))
}

/// The headers of a request without an event type in which no bit may change.
fn signed_headers(preset: &Preset, headers: &HeaderMap) -> Vec<HeaderName> {
    let coverage = preset.scheme.coverage();
    let is_id = |name: &HeaderName| preset.scheme.id_places().contains(&format!("header:{name}"));
    let is_unsigned = |name: &HeaderName| match &*preset.name {
        "hostwares" => name == "x-hostwares-timestamp",
        // Beside its time, where bytes could move; not in its place.
        "twitch" => false,
        _ => is_id(name) && !coverage.id,
    };
    headers.keys().filter(|name| !is_unsigned(name)).cloned().collect()
}

/// The private key made of `bytes`, and its public key, in DER.
fn pair(algorithm: &str, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    static ECDSA: LazyLock<Vec<EcdsaKeyPair>> = LazyLock::new(|| {
        (0..POOL).map(|_| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap()).collect()
    });
    static RSA: LazyLock<Vec<RsaKeyPair>> =
        LazyLock::new(|| (0..POOL).map(|_| RsaKeyPair::generate(KeySize::Rsa2048).unwrap()).collect());
    match algorithm {
        "ed25519" => {
            let key = Ed25519KeyPair::from_seed_unchecked(&Sha256::digest(bytes)).unwrap();
            let private = key.to_pkcs8().unwrap().as_ref().to_vec();
            (private, key.public_key().as_ref().to_vec())
        }
        "ecdsa-p256-sha256" | "ecdsa-p256-sha256-fixed" => {
            let key = &ECDSA[place(bytes)];
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            (key.to_pkcs8v1().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
        }
        "rsa-pkcs1-sha256" => {
            let key = &RSA[place(bytes)];
            let private: Pkcs8V1Der<'_> = key.as_der().unwrap();
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            (private.as_ref().to_vec(), public.as_ref().to_vec())
        }
        other => panic!("say how a key for {other} is made"),
    }
}

/// Making such keys takes long, so there are few.
const POOL: usize = 3;

fn place(bytes: &[u8]) -> usize {
    usize::from(Sha256::digest(bytes)[0]) % POOL
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// What a signer has to know that is made of `bytes`.
fn private(preset: &Preset, bytes: &[u8]) -> Secret {
    match preset.scheme.algorithms().first().copied() {
        Some(public) if !public.starts_with("hmac") && !public.starts_with("digest") => {
            Secret::new(pem("PRIVATE KEY", &pair(public, bytes).0)).unwrap()
        }
        Some(_) | None => secret(preset, bytes),
    }
}

/// A secret made of `bytes` as the preset's provider would show it.
fn secret(preset: &Preset, bytes: &[u8]) -> Secret {
    let places = preset.scheme.places();
    let is_standard = ["header:webhook-signature", "header:svix-signature"].contains(&&*places[0]);
    let text = match (preset.scheme.algorithms().first().copied(), &*preset.name) {
        (Some(algorithm @ "ed25519"), "discord") => hex::encode(pair(algorithm, bytes).1),
        (Some(algorithm @ "ed25519"), "standard-webhooks-v1a") => {
            format!("whpk_{}", STANDARD.encode(pair(algorithm, bytes).1))
        }
        (Some(algorithm @ ("ed25519" | "ecdsa-p256-sha256")), _) => STANDARD.encode(pair(algorithm, bytes).1),
        (Some(algorithm @ ("ecdsa-p256-sha256-fixed" | "rsa-pkcs1-sha256")), _) => {
            pem("PUBLIC KEY", &pair(algorithm, bytes).1)
        }
        (_, "airtable") => STANDARD.encode(bytes),
        (_, "supabase-auth-hooks") => format!("v1,whsec_{}", STANDARD.encode(bytes)),
        (_, name) if is_standard && name != "gocardless" => format!("whsec_{}", STANDARD.encode(bytes)),
        _ => hex::encode(bytes),
    };
    Secret::new(text).unwrap()
}

fn scheme(preset: &Preset) -> Scheme {
    let names = preset.scheme.config_names().into_iter();
    let told = names.map(|name| (name.to_owned(), format!("the-{name}")));
    let told = told.collect();
    preset.scheme.clone().with_config(&told)
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
    let url = Some("https://hooks.example.com".to_owned());
    Verifier::new(preset.name.clone(), scheme(preset), secrets, window, Enforcement::Enforce, url).unwrap()
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
    /// The same for a preset that wants something of its body.
    fn of(&self, preset: &Preset) -> Self {
        let text = STANDARD.encode(&self.body);
        let body = match &*preset.name {
            "linear" => format!(r#"{{"webhookTimestamp":{},"text":"{text}"}}"#, self.second * 1000),
            "fly-extensions" => format!(r#"{{"timestamp":{},"text":"{text}"}}"#, self.second),
            "gitea-form" => format!("payload={text}%20"),
            // What could be a challenge is never a delivery: whoever had it answered would have its signature.
            "x-twitter" => format!(r#"{{"text":"{text}"}}"#),
            _ => return self.clone(),
        };
        Self { body: body.into(), ..self.clone() }
    }

    fn target(&self, preset: &Preset) -> String {
        match &*preset.name {
            "twilio-json" => format!("/in?bodySHA256={}", hex::encode(Sha256::digest(&self.body))),
            _ => "/in".to_owned(),
        }
    }

    fn headers(&self, preset: &Preset, key: &[u8]) -> HeaderMap {
        let message = Message {
            method: &preset.methods[0],
            url: &format!("https://hooks.example.com{}", self.target(preset)),
            id: Some(&self.id),
            event: None,
            body: &self.body,
        };
        let signer = Signer::new(scheme(preset), &private(preset, key)).unwrap();
        let signed = signer.sign(&message, at(self.second));
        signed.unwrap_or_else(|error| panic!("{}: {error}", preset.name))
    }

    fn verify(
        &self,
        preset: &Preset,
        verifier: &Verifier,
        headers: &HeaderMap,
        second: i64,
    ) -> Result<Verified, Refusal> {
        self.verify_body(preset, verifier, headers, &self.body, second)
    }

    fn verify_body(
        &self,
        preset: &Preset,
        verifier: &Verifier,
        headers: &HeaderMap,
        body: &[u8],
        second: i64,
    ) -> Result<Verified, Refusal> {
        verifier.verify(Received {
            id: Id::new(at(second), [0; 10]),
            source: "source".into(),
            received_at: at(second),
            sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
            method: preset.methods[0].clone(),
            target: self.target(preset),
            headers: headers.clone(),
            body: Bytes::copy_from_slice(body),
        })
    }
}

fn is_signature(preset: &Preset) -> bool {
    preset.scheme.auth() != "token"
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

/// Whether keys of these bytes are different ones to `preset`.
fn differ(a: &[u8], b: &[u8]) -> bool {
    // HMAC fills keys up with zeros.
    let unpadded = |key: &[u8]| key.iter().rposition(|byte| *byte != 0).map(|at| key[..=at].to_vec());
    unpadded(a) != unpadded(b) && place(a) != place(b)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(50) })]

    #[test]
    fn what_is_signed_is_verified(
        sent in sent(), old in key(), new in key(), delay in -FUTURE..=PAST,
    ) {
        prop_assume!(differ(&old, &new));
        for preset in known() {
            let (sent, verifier) = (sent.of(preset), verifier(preset, &[&old, &new]));
            for key in [&old, &new] {
                let headers = sent.headers(preset, key);
                let second = sent.second + delay;
                let early = verifier.precheck(&preset.methods[0], &sent.target(preset), &headers, at(second));
                prop_assert_eq!(early, Ok(()), "{}", preset.name);
                let verified = sent.verify(preset, &verifier, &headers, second);
                prop_assert!(verified.is_ok(), "{}: {:?} {:?}", preset.name, verified, headers);
                let verified = verified.unwrap();
                let verification = &verified.delivery().verification;
                let name = hex::encode(key);
                prop_assert_eq!(verification.secret.as_deref(), Some(name.as_str()), "{}", preset.name);
            }
        }
    }

    #[test]
    fn another_secret_is_refused(sent in sent(), key in key(), other in key()) {
        prop_assume!(differ(&key, &other));
        for preset in known() {
            let sent = sent.of(preset);
            let outcome = sent.verify(preset, &verifier(preset, &[&other]), &sent.headers(preset, &key), sent.second);
            let expected = if is_signature(preset) { Refusal::SignatureMismatch } else { Refusal::TokenMismatch };
            prop_assert_eq!(outcome.map(drop), Err(expected), "{}", preset.name);
        }
    }

    #[test]
    fn any_time_outside_the_window_is_refused(
        sent in sent(), key in key(), beyond in 1i64..1_000_000_000,
    ) {
        let timed: Vec<_> = known().filter(|preset| preset.scheme.has_timestamp()).collect();
        prop_assert!(timed.len() > 40);
        for preset in timed {
            let sent = sent.of(preset);
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            let late = sent.verify(preset, &verifier, &headers, sent.second + PAST + beyond);
            prop_assert_eq!(late.map(drop), Err(Refusal::TimestampTooOld), "{}", preset.name);
            let early = sent.verify(preset, &verifier, &headers, sent.second - FUTURE - beyond);
            prop_assert_eq!(early.map(drop), Err(Refusal::TimestampTooNew), "{}", preset.name);
        }
    }
}

proptest! {
    // Every bit is tried in every case.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4) })]

    #[test]
    fn any_changed_bit_of_the_body_is_refused(sent in sent(), key in key()) {
        for preset in known().filter(|preset| preset.scheme.coverage().body) {
            let sent = sent.of(preset);
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            prop_assert!(sent.verify(preset, &verifier, &headers, sent.second).is_ok(), "{}", preset.name);
            let beside = [[&sent.body[..], b"\n"].concat(), [b" ", &sent.body[..]].concat()];
            for body in flips(&sent.body).map(|(_, body)| body).chain(beside) {
                let outcome = sent.verify_body(preset, &verifier, &headers, &body, sent.second);
                prop_assert!(outcome.is_err(), "{}: {}", preset.name, body.escape_ascii());
            }
        }
    }

    #[test]
    fn any_changed_bit_of_a_signed_header_is_refused(sent in sent(), key in key()) {
        for preset in known() {
            let sent = sent.of(preset);
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            prop_assert!(sent.verify(preset, &verifier, &headers, sent.second).is_ok(), "{}", preset.name);
            for name in signed_headers(preset, &headers) {
                let value = headers[&name].as_bytes();
                let hex = value.iter().rev().take_while(|byte| byte.is_ascii_hexdigit()).count();
                for (at, flipped) in flips(value) {
                    // The case of a hex digit is no part of the signature, the shortest of which has 40 of them.
                    let is_digit = is_signature(preset) && hex >= 40 && at + hex >= value.len();
                    if is_digit && flipped.eq_ignore_ascii_case(value) {
                        continue;
                    }
                    // What cannot be a header value does not reach us.
                    let Ok(changed) = HeaderValue::from_bytes(&flipped) else { continue };
                    let mut headers = headers.clone();
                    headers.insert(&name, changed);
                    let outcome = sent.verify(preset, &verifier, &headers, sent.second);
                    prop_assert!(outcome.is_err(), "{} {name}: {}", preset.name, flipped.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn a_missing_or_repeated_signed_header_is_refused(sent in sent(), key in key()) {
        for preset in known() {
            let sent = sent.of(preset);
            let (verifier, headers) = (verifier(preset, &[&key]), sent.headers(preset, &key));
            for name in signed_headers(preset, &headers) {
                let mut repeated = headers.clone();
                repeated.append(&name, headers[&name].clone());
                let outcome = sent.verify(preset, &verifier, &repeated, sent.second).map(drop);
                // A line per secret is how Mollie sends several.
                let expected = if &*preset.name == "mollie" { Ok(()) } else { Err(Refusal::DuplicateValue) };
                prop_assert_eq!(outcome, expected, "{}: {}", preset.name, name);
                let mut without = headers.clone();
                without.remove(&name);
                let outcome = sent.verify(preset, &verifier, &without, sent.second);
                prop_assert!(outcome.is_err(), "{} without {}", preset.name, name);
            }
        }
    }

    /// One provider's headers are nothing to another: each family stands alone.
    #[test]
    fn header_families_are_never_mixed(sent in sent(), key in key()) {
        let (svix, standard) = (preset("svix").unwrap(), preset("standard-webhooks").unwrap());
        let verifiers = [(svix, "svix-"), (standard, "webhook-")].map(|(preset, own)| (verifier(preset, &[&key]), own));
        for (from, to) in [(svix, 1), (standard, 0)] {
            let (verifier, own) = &verifiers[to];
            let foreign = sent.headers(from, &key);
            prop_assert!(sent.verify(from, verifier, &foreign, sent.second).is_err());
            // Even one header of the other family is not taken for that of the own one.
            let theirs = sent.headers(if to == 0 { svix } else { standard }, &key);
            for part in ["id", "timestamp", "signature"] {
                let mut mixed = theirs.clone();
                let name: HeaderName = format!("{own}{part}").parse().unwrap();
                let value = mixed.remove(&name).unwrap();
                let other = if to == 0 { "webhook-" } else { "svix-" };
                mixed.insert(format!("{other}{part}").parse::<HeaderName>().unwrap(), value);
                prop_assert!(sent.verify(from, verifier, &mixed, sent.second).is_err(), "{}", name);
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
        let refused = sent.verify(preset, &verifier, &forged, sent.second);
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
