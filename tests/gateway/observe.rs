//! Promise: what a source counts while it observes is what it will refuse once it enforces, for the same reasons, and until
//! then the backend gets all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::{Clock, Timestamp, earlier, later};
use countersign::secret::Secret;
use countersign::verify::{Message, Preset, Refusal, Signer, presets};
use http::{HeaderMap, HeaderName, Method};

use crate::backend::Backend;
use crate::sender::{Post, SECRET, body};
use crate::support::Gateway;

const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const OTHER: &str = "whsec_b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItMTIzNA==";
const OTHER_HEX: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The presets for which a shared secret signs, with one that can be their key and another.
fn known() -> Vec<(&'static Preset, &'static str, &'static str)> {
    let signs = |preset: &Preset, secret: &str| {
        Signer::new(preset.scheme.clone(), &Secret::new(secret).unwrap()).is_ok()
    };
    let with_secret = |preset: &'static Preset| {
        let pairs = [(SECRET, OTHER), (HEX, OTHER_HEX)];
        let fits = pairs.into_iter().find(|(secret, other)| signs(preset, secret) && signs(preset, other));
        let is_shared = |name: &str| ["hmac", "digest", "HS"].iter().any(|kind| name.starts_with(kind));
        let scheme = &preset.scheme;
        let usable = scheme.config_names().is_empty() && scheme.algorithms().into_iter().all(is_shared);
        fits.filter(|_| usable).map(|(secret, other)| (preset, secret, other))
    };
    let known: Vec<_> = presets().iter().filter_map(with_secret).collect();
    assert!(known.len() > 90, "{}", known.len());
    known
}

fn sign(preset: &Preset, path: &str, id: &str, secret: &str, at: Timestamp) -> Post {
    let (url, bytes) = (format!("https://a.example{path}"), Bytes::from(body(id)));
    let message = Message { method: &Method::POST, url: &url, id: Some(id), event: None, body: &bytes };
    let signer = Signer::new(preset.scheme.clone(), &Secret::new(secret).unwrap()).unwrap();
    let signed: HeaderMap = signer.sign(&message, at).unwrap_or_default();
    let pair =
        |(name, value): (&HeaderName, &http::HeaderValue)| (name.to_string(), value.as_bytes().to_vec());
    Post {
        method: "POST",
        target: path.to_owned(),
        headers: signed.iter().map(pair).collect(),
        body: bytes.to_vec(),
    }
}

/// A good request and what can be wrong with one.
fn traffic(preset: &Preset, path: &str, secret: &str, other: &str, now: Timestamp) -> Vec<Post> {
    let day = Duration::from_hours(24);
    let mut count = 0;
    let mut make = |secret: &str, at: Timestamp| {
        count += 1;
        sign(preset, path, &format!("d-{count}"), secret, at)
    };
    let mut all = vec![make(secret, now), make(other, now)];
    all.extend([make(secret, earlier(now, day)), make(secret, later(now, day))]);
    let mut tampered = make(secret, now);
    tampered.body[5] ^= 1;
    all.push(tampered);
    all.push(Post { headers: Vec::new(), ..make(secret, now) });
    for index in 0..make(secret, now).headers.len() {
        let mut without = make(secret, now);
        without.headers.remove(index);
        let mut twice = make(secret, now);
        twice.headers.push(twice.headers[index].clone());
        let mut junk = make(secret, now);
        junk.headers[index].1 = b"junk".to_vec();
        all.extend([without, twice, junk]);
    }
    all
}

#[test]
fn observing_counts_exactly_what_enforcing_refuses() {
    let backend = Backend::accepting();
    let known = known();
    let source = |(preset, secret, _): &(&Preset, &str, &str), suffix: &str, more: &str| {
        format!(
            "[[source]]\nname = \"{}{suffix}\"\nprovider = \"{}\"\nsecrets = [{{ value = \"{secret}\" }}]\n\
             on_missing_id = \"reject\"\nto = [\"legacy\"]\n{more}\n",
            preset.name, preset.name
        )
    };
    let sources: Vec<_> = known
        .iter()
        .flat_map(|known| [source(known, "-e", ""), source(known, "-o", "enforcement = \"observe\"")])
        .collect();
    let gateway = Gateway::start(&format!(
        "listen.public_url = \"https://a.example\"\n{}[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        sources.concat(),
        backend.url()
    ));
    let now = Clock::system().now();
    let (mut sent, mut refused) = (0, 0);
    for (preset, secret, other) in &known {
        let path = |suffix: &str| format!("/webhooks/{}{suffix}", preset.name);
        let enforced = traffic(preset, &path("-e"), secret, other, now);
        let observed = traffic(preset, &path("-o"), secret, other, now);
        for (enforced, observed) in enforced.iter().zip(&observed) {
            sent += 1;
            let status = enforced.send(gateway.listen).status;
            assert!(status == 200 || status == 401, "{status} {enforced:?}");
            refused += usize::from(status == 401);
            assert_eq!(observed.send(gateway.listen).status, 200, "{observed:?}");
        }
    }
    let page = gateway.admin_get("/metrics").1;
    let counts: BTreeMap<&str, &str> = page.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    let mut reasons = BTreeMap::new();
    for (preset, ..) in &known {
        for refusal in Refusal::ALL {
            let count = |name: &str, suffix: &str| {
                let labels = format!("{{reason=\"{}\",source=\"{}{suffix}\"}}", refusal.label(), preset.name);
                counts[&*format!("countersign_ingest_{name}_total{labels}")].parse::<usize>().unwrap()
            };
            let (enforced, observed) = (count("rejections", "-e"), count("observed", "-o"));
            assert_eq!(enforced, observed, "{} {}", preset.name, refusal.label());
            *reasons.entry(refusal.label()).or_insert(0) += enforced;
        }
    }
    assert_eq!(reasons.values().sum::<usize>(), refused);
    assert!(reasons.values().filter(|count| **count > 0).count() >= 10, "{reasons:?}");
    let got = backend.eventually_got(2 * sent - refused);
    let unverified = got.iter().filter(|got| got.header("countersign-verified") == Some("false"));
    let from_observed = |source: &str| source.ends_with("-o");
    let unverified: Vec<_> = unverified.filter_map(|got| got.header("countersign-source")).collect();
    assert_eq!(unverified.len(), refused);
    assert!(unverified.into_iter().all(from_observed));
}
