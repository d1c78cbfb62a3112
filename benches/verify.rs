//! What verification costs by itself: `cargo bench --bench verify`, by provider and size of body.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should say where")]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use countersign::clock::Clock;
use countersign::delivery::Received;
use countersign::id::Id;
use countersign::secret::Secret;
use countersign::verify::{Enforcement, Message, NamedSecret, Signer, Verifier, Window, preset};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::Method;

/// A key of every preset.
const SECRET: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";

fn verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    for provider in ["hostwares", "owlette", "github", "stripe", "standard-webhooks"] {
        for body_bytes in [1 << 10, 16 << 10, 256 << 10] {
            let (verifier, received) = request(provider, body_bytes);
            group.throughput(Throughput::Bytes(body_bytes as u64));
            group.bench_function(BenchmarkId::new(provider, body_bytes), |bencher| {
                bencher.iter_batched(
                    || received.clone(),
                    |received| verifier.verify(black_box(received)).unwrap(),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

/// A signed request, and who verifies it.
fn request(provider: &str, body_bytes: usize) -> (Verifier, Received) {
    let scheme = preset(provider).unwrap().scheme.clone();
    let secret = Secret::new(SECRET).unwrap();
    let signer = Signer::new(scheme.clone(), &secret).unwrap();
    let secret = NamedSecret { name: "bench".into(), secret, not_before: None, not_after: None };
    let hour = Duration::from_hours(1);
    let window = Window { past: hour, future: hour };
    let verifier =
        Verifier::new(provider.into(), scheme, vec![secret], window, Enforcement::Enforce, None).unwrap();
    let element = r#"{"site":"s-4711","status":"live","at":1776871800,"url":"https://example.com/a/b?c=d"},"#;
    let filling = element.repeat(body_bytes / element.len());
    let body = Bytes::from(format!(r#"{{"id":"d-1","event":"deploy","data":[{filling}""]}}"#));
    let message = Message { method: &Method::POST, url: "/", id: Some("d-1"), event: None, body: &body };
    let now = Clock::system().now();
    let received = Received {
        id: Id::new(now, [7; 10]),
        source: provider.into(),
        received_at: now,
        sender: [127, 0, 0, 1].into(),
        method: Method::POST,
        target: "/webhooks/source".to_owned(),
        headers: signer.sign(&message, now).unwrap(),
        body,
    };
    (verifier, received)
}

criterion_group!(benches, verify);
criterion_main!(benches);
