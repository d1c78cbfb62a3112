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
    let (mut seen, mut fetched) = (HashSet::new(), HashSet::new());
    for vector in &vectors {
        let text = |key: &str| vector[key].as_str();
        let (name, provider) = (text("name").unwrap(), text("preset").unwrap());
        let expected = text("expected").unwrap();
        seen.insert((provider, expected == "verified"));

        // HMAC fills a key up with zeros, so that keys of published vectors which are too short for us stay the same.
        let mut secret = text("secret").unwrap().as_bytes().to_vec();
        secret.resize(secret.len().max(8), 0);
        let secret = Secret::new(secret).unwrap();
        let document = secret.expose().to_vec();
        let named = NamedSecret { name: "only".into(), secret, not_before: None, not_after: None };
        let config = vector["config"].as_object().into_iter().flatten();
        let config = config.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
        let scheme = preset(provider).unwrap().scheme.clone().with_config(&config);
        let url = text("url").unwrap_or("https://hooks.example.com/webhooks/source");
        let path = url.find("://").map_or(0, |at| at + 3);
        let path = url[path..].find('/').map_or(url.len(), |at| path + at);
        let (base_url, target) = url.split_at(path);
        let minutes = Duration::from_mins(5);
        let window = Window { past: minutes, future: minutes };
        let (secrets, base_url) = (vec![named], Some(base_url.to_owned()));
        let keyless = scheme.publishes_keys().then(|| {
            let (scheme, url) = (scheme.clone(), base_url.clone());
            Verifier::new(provider.into(), scheme, Vec::new(), window, Enforcement::Enforce, url).unwrap()
        });
        let verifier =
            Verifier::new(provider.into(), scheme, secrets, window, Enforcement::Enforce, base_url).unwrap();

        let mut headers = HeaderMap::new();
        for (name, value) in vector["headers"].as_object().unwrap() {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
        }
        let body = match text("body_hex") {
            Some(digits) => hex::decode(digits).unwrap(),
            None => text("body").unwrap().as_bytes().to_vec(),
        };
        let now = (vector["now"].as_f64().unwrap() * 1e3).round() as i64;
        let now = Timestamp::from_millisecond(now).unwrap();
        let received = Received {
            id: Id::new(now, [0; 10]),
            source: "source".into(),
            received_at: now,
            sender: IpAddr::V4(Ipv4Addr::LOCALHOST),
            method: text("method").unwrap().parse().unwrap(),
            target: target.to_owned(),
            headers,
            body: Bytes::from(body),
        };

        // The same with the keys where their owner publishes them, as far as the request says where.
        if let Some(keyless) = keyless
            && let Ok(Some(url)) = keyless.keys_url(&received)
        {
            assert!(url.starts_with("https://"), "{url}");
            let published = keyless.read_published(&document).unwrap();
            let outcome = keyless.verify_with(received.clone(), Some(&published));
            let label = outcome.as_ref().map_or_else(|refusal| refusal.label(), |_| "verified");
            assert_eq!(label, expected, "{provider}: {name}, with published keys");
            fetched.insert(provider);
            let early = keyless.precheck(&received.method, &received.target, &received.headers, now);
            assert!(early.is_ok() || expected != "verified", "{provider}: {name}");
            let without = keyless.verify(received.clone());
            assert!(without.is_err(), "{provider}: {name}, without any key");
        }
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
    assert_eq!(fetched, HashSet::from(["aws-sns", "google-pubsub", "paypal"]));
    for preset in presets() {
        assert!(seen.contains(&(&*preset.name, true)), "nothing to accept for {}", preset.name);
        assert!(seen.contains(&(&*preset.name, false)), "nothing to refuse for {}", preset.name);
    }
}
