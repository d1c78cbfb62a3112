//! Requests that were signed by others (published vectors, and values made with another HMAC), each with what becomes
//! of it: `verified`, or the label of its refusal.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::verify::{Enforcement, NamedSecret, Verifier, Window, preset, presets};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

#[test]
fn published_and_foreign_signatures_are_judged_as_expected() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let mut seen = HashSet::new();
    for vector in &vectors {
        let text = |key: &str| vector[key].as_str();
        let (name, provider) = (text("name").unwrap(), text("preset").unwrap());
        let expected = text("expected").unwrap();
        seen.insert((provider, expected == "verified"));

        let secret = Secret::new(text("secret").unwrap()).unwrap();
        let named = NamedSecret { name: "only".into(), secret, not_before: None, not_after: None };
        let scheme = preset(provider).unwrap().scheme.clone();
        let minutes = Duration::from_mins(5);
        let window = Window { past: minutes, future: minutes };
        let verifier =
            Verifier::new(provider.into(), scheme, vec![named], window, Enforcement::Enforce, None).unwrap();

        let mut headers = HeaderMap::new();
        for (name, value) in vector["headers"].as_object().unwrap() {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
        }
        let body = match text("body_hex") {
            Some(digits) => hex::decode(digits).unwrap(),
            None => text("body").unwrap().as_bytes().to_vec(),
        };
        let now = Timestamp::from_second(vector["now"].as_i64().unwrap()).unwrap();
        let received = Received {
            id: Id::new(now, [0; 10]),
            source: "source".into(),
            received_at: now,
            sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
            method: text("method").unwrap().parse().unwrap(),
            target: "/webhooks/source".to_owned(),
            headers,
            body: Bytes::from(body),
        };

        let early = verifier.precheck(&received.method, &received.target, &received.headers, now);
        let outcome = verifier.verify(received);
        let label = outcome.as_ref().map_or_else(|refusal| refusal.label(), |_| "verified");
        assert_eq!(label, expected, "{provider}: {name}");
        if let Ok(verified) = outcome {
            assert_eq!(early, Ok(()), "{provider}: {name}");
            let delivery = verified.delivery();
            assert_eq!(delivery.delivery_id.as_deref(), text("id"), "{provider}: {name}");
            assert_eq!(delivery.event.as_deref(), text("event"), "{provider}: {name}");
            assert!(delivery.verification.verified, "{provider}: {name}");
        }
    }
    for preset in presets() {
        assert!(seen.contains(&(&*preset.name, true)), "nothing to accept for {}", preset.name);
        assert!(seen.contains(&(&*preset.name, false)), "nothing to refuse for {}", preset.name);
    }
}
