//! The corners of what headers may hold, as a table: each line is a request to one provider, right in everything but for
//! what is said, and what becomes of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use countersign::clock::Timestamp;
use countersign::secret::Secret;
use countersign::verify::{Enforcement, NamedSecret, Refusal, Verifier, Window, preset};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::Sha256;

const NOW: i64 = 1_776_871_800;

const KEY: &[u8] = b"a secret of some length";
const BODY: &[u8] = br#"{"id":"x"}"#;

fn mac(signed: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY).unwrap();
    mac.update(signed.as_bytes());
    mac.update(BODY);
    mac.finalize().into_bytes().to_vec()
}

/// What becomes of a request to `provider` with these headers.
fn outcome(provider: &str, headers: &[(&str, &str)]) -> &'static str {
    let secret = match provider {
        "standard-webhooks" => format!("whsec_{}", STANDARD.encode(KEY)).into_bytes(),
        _ => KEY.to_vec(),
    };
    let secrets = vec![NamedSecret::new("only", Secret::new(secret).unwrap())];
    let scheme = preset(provider).unwrap().scheme.clone();
    let verifier =
        Verifier::new(provider.into(), scheme, secrets, Window::default(), Enforcement::Enforce, None)
            .unwrap();
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let now = Timestamp::from_second(NOW).unwrap();
    let outcome = verifier.check(&Method::POST, "/in", &map, BODY, now);
    outcome.as_ref().map_or_else(|refusal: &Refusal| refusal.label(), |_| "verified")
}

#[test]
fn lists_of_names_and_values() {
    let signature = hex::encode(mac(&format!("{NOW}.")));
    let wrong = "0".repeat(64);
    for (header, expected) in [
        ("t=NOW,v1=SIG", "verified"),
        ("v1=SIG,t=NOW", "verified"),
        ("t=NOW,v1=WRONG,v1=SIG", "verified"),
        ("t=NOW,v1=SIG,v1=WRONG", "verified"),
        ("t=NOW,v1=SIG,v1=SIG", "verified"),
        ("t=NOW,v0=WRONG,v2=x,v1=SIG,scheme", "verified"),
        (" t=NOW ,\tv1=SIG , ", "verified"),
        (",,t=NOW,,v1=SIG,,", "verified"),
        ("t=NOW,v1=UPPER", "verified"),
        ("t=NOW,v0=SIG", "signature_malformed"),
        ("t=NOW,v1a=SIG", "signature_malformed"),
        ("t=NOW,V1=SIG", "signature_malformed"),
        ("T=NOW,v1=SIG", "timestamp_missing"),
        ("t=NOW,v1 =SIG", "signature_malformed"),
        ("t=NOW,v1= SIG", "signature_malformed"),
        ("t=NOW;v1=SIG", "signature_malformed"),
        ("t=NOW v1=SIG", "signature_malformed"),
        ("t=NOW,v1=\"SIG\"", "signature_malformed"),
        ("t=NOW,v1=0xSIG", "signature_malformed"),
        ("t=NOW,v1=SIG00", "signature_malformed"),
        ("t=NOW,v1=SIG=", "signature_malformed"),
        ("t=NOW,v1=", "signature_malformed"),
        ("t=NOW,v1", "signature_malformed"),
        ("t=NOW", "signature_malformed"),
        ("v1=SIG", "timestamp_missing"),
        ("t=,v1=SIG", "timestamp_malformed"),
        ("t=NOW,t=NOW,v1=SIG", "duplicate_value"),
        ("t=NOW,v1=SIG,t=0", "duplicate_value"),
        ("t=NOW,v1=WRONG", "signature_mismatch"),
        ("SIG", "signature_malformed"),
        ("é", "signature_malformed"),
        ("t=NOW,v1=SIG,é=é", "verified"),
        ("", "signature_missing"),
    ] {
        let text = header.replace("SIG", &signature).replace("WRONG", &wrong);
        let text = text.replace("UPPER", &signature.to_uppercase()).replace("NOW", &NOW.to_string());
        assert_eq!(outcome("stripe", &[("stripe-signature", &text)]), expected, "{header}");
    }
    let many = format!("t={NOW},v1={signature}{}", format!(",v1={wrong}").repeat(16));
    assert_eq!(outcome("stripe", &[("stripe-signature", &many)]), "too_many_signatures");
    let huge = format!("t={NOW},v1={signature},x={}", "y".repeat(30_000));
    assert_eq!(outcome("stripe", &[("stripe-signature", &huge)]), "verified");
    let good = format!("t={NOW},v1={signature}");
    for second in [&good, ""] {
        let twice = [("stripe-signature", &*good), ("stripe-signature", second)];
        assert_eq!(outcome("stripe", &twice), "duplicate_value");
    }
    assert_eq!(outcome("stripe", &[("stripe_signature", &good)]), "duplicate_value");
    assert_eq!(outcome("stripe", &[]), "signature_missing");
}

#[test]
fn signatures_in_base64() {
    // Of this id the signature ends in padding and has a `+` or `/`.
    let id = (0..).map(|number| format!("m{number}")).find(|id| {
        let text = STANDARD.encode(mac(&format!("{id}.{NOW}.")));
        text.contains('+') && text.contains('/')
    });
    let id = id.unwrap();
    let bytes = mac(&format!("{id}.{NOW}."));
    let (padded, bare, url_safe) =
        (STANDARD.encode(&bytes), STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes));
    let check = |signature: &str, expected: &str| {
        let time = NOW.to_string();
        let headers = [("webhook-id", &*id), ("webhook-timestamp", &time), ("webhook-signature", signature)];
        assert_eq!(outcome("standard-webhooks", &headers), expected, "{signature}");
    };
    check(&format!("v1,{padded}"), "verified");
    check(&format!("v1,{bare}"), "verified");
    check(&format!("v1a,{padded} v2,x v1,{padded}"), "verified");
    check(&format!("v1,{url_safe}"), "signature_malformed");
    check(&format!("v1,{padded}="), "signature_malformed");
    check(&format!("v1,{padded},"), "signature_malformed");
    check(&format!("v1,{}", hex::encode(&bytes)), "signature_malformed");
    check(&format!("v1={padded}"), "signature_malformed");
    check(&padded, "signature_malformed");
    check("v1,", "signature_malformed");
}

#[test]
fn times() {
    let check = |provider: &str, time_at: &str, signature_at: &str, time: &str, expected: &str| {
        let signature = STANDARD.encode(mac(time));
        let headers = [(time_at, time), (signature_at, &*signature)];
        assert_eq!(outcome(provider, &headers), expected, "{provider}: {time:?}");
    };
    let zendesk = |time: &str, expected: &str| {
        let (at, signature) = ("x-zendesk-webhook-signature-timestamp", "x-zendesk-webhook-signature");
        check("zendesk", at, signature, time, expected);
    };
    for (time, expected) in [
        ("2026-04-22T15:30:00Z", "verified"),
        ("2026-04-22T17:30:00+02:00", "verified"),
        ("2026-04-22T15:30:00.123456789Z", "verified"),
        ("2026-04-22T15:30:00", "verified"),
        ("2026-04-22T15:25:00Z", "verified"),
        ("2026-04-22T15:35:00Z", "verified"),
        ("2026-04-22T15:24:59Z", "timestamp_too_old"),
        ("2026-04-22T15:35:01Z", "timestamp_too_new"),
        ("2026-04-22T15:30:00+02:00", "timestamp_too_old"),
        ("2026-04-22 15:30:00Z", "timestamp_malformed"),
        ("2026-04-22T15:30:00z", "timestamp_malformed"),
        ("2026-04-22", "timestamp_malformed"),
        ("2026-02-30T15:30:00Z", "timestamp_malformed"),
        ("1776871800", "timestamp_malformed"),
        (" 2026-04-22T15:30:00Z", "timestamp_malformed"),
        ("", "timestamp_missing"),
    ] {
        zendesk(time, expected);
    }
    for (time, expected) in [
        ("1776871800", "verified"),
        ("1776871500", "verified"),
        ("1776872100", "verified"),
        ("1776871499", "timestamp_too_old"),
        ("1776872101", "timestamp_too_new"),
        ("01776871800", "verified"),
        ("1776871800000", "timestamp_malformed"),
        ("-1776871800", "timestamp_malformed"),
        ("+1776871800", "timestamp_malformed"),
        ("1776871800.0", "timestamp_malformed"),
        ("1.7768718e9", "timestamp_malformed"),
        ("0x69E8E4B8", "timestamp_malformed"),
        ("１７７６８７１８００", "timestamp_malformed"),
        ("99999999999999999999999999", "timestamp_malformed"),
        ("999999999999", "timestamp_malformed"),
        ("0", "timestamp_too_old"),
    ] {
        let signature = hex::encode(mac(&format!("v0:{time}:")));
        let headers =
            [("x-slack-request-timestamp", time), ("x-slack-signature", &format!("v0={signature}"))];
        assert_eq!(outcome("slack", &headers), expected, "{time}");
    }
    let time = format!("{NOW}000");
    for (time, expected) in
        [(&*time, "verified"), ("1776871800", "timestamp_too_old"), ("1776872100001", "timestamp_too_new")]
    {
        let signature = hex::encode(mac(&format!("{time}:")));
        let headers = [("x-webflow-timestamp", time), ("x-webflow-signature", &*signature)];
        assert_eq!(outcome("webflow", &headers), expected, "{time}");
    }
}
