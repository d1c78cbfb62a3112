//! Promise: nothing unverified is stored as accepted or forwarded, and no refusal tells why.

use countersign::clock::{Clock, Timestamp, earlier, later};
use std::time::Duration;

use crate::backend::Backend;
use crate::sender::{ALL, Answer, Post, SECRET, body, every_provider};
use crate::support::Gateway;

const SIGNED: [&str; 5] = ["owlette", "hostwares", "github", "stripe", "standard-webhooks"];

fn path(provider: &str) -> String {
    format!("/webhooks/{provider}")
}

#[test]
fn every_provider_is_accepted_and_forwarded_and_says_who_it_is() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    for provider in ALL {
        let answer = Post::signed(provider, &path(provider), "d-1", "deployment.completed", &body("d-1"))
            .send(gateway.listen);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{provider}");
    }
    let got = backend.eventually_got(ALL.len());
    for provider in ALL {
        let got = got.iter().find(|got| got.header("countersign-source") == Some(provider)).unwrap();
        assert_eq!(got.body, body("d-1"));
        assert_eq!(got.header("countersign-verified"), Some("true"));
        if provider != "owlette-legacy" {
            assert_eq!(got.header("countersign-delivery-id"), Some("d-1"), "{provider}");
        }
    }
}

#[test]
fn forged_requests_reach_neither_store_nor_backend() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let now = Clock::system().now();
    let refused: Answer =
        Post::signed_at("github", &path("github"), "x", "push", b"{}", "another-secret-entirely", now)
            .send(gateway.listen);
    assert_eq!((refused.status, refused.body.len()), (401, 0));
    let sign = |provider: &str, secret: &str, at: Timestamp| {
        Post::signed_at(provider, &path(provider), "d-1", "x", &body("d-1"), secret, at)
    };
    // Base64, so that it is a key of every preset.
    let other = "whsec_b3RoZXItb3RoZXItb3RoZXItb3RoZXItb3RoZXItMTIzNA==";
    let mut forged = Vec::new();
    for provider in ALL {
        forged.push(sign(provider, other, now));
        let unsigned = Post { headers: Vec::new(), ..sign(provider, SECRET, now) };
        forged.push(unsigned);
    }
    for provider in SIGNED {
        let mut changed = sign(provider, SECRET, now);
        changed.body[5] ^= 1;
        forged.push(changed);
    }
    for provider in ["owlette", "hostwares", "stripe", "standard-webhooks"] {
        forged.push(sign(provider, SECRET, earlier(now, Duration::from_secs(330))));
        forged.push(sign(provider, SECRET, later(now, Duration::from_secs(330))));
    }
    for (number, forged) in forged.iter().enumerate() {
        let answer = forged.send(gateway.listen);
        assert_eq!(answer.status, 401, "{number}: {forged:?}");
        let constant = |answer: &Answer| {
            let mut headers = answer.headers.clone();
            headers.retain(|line| !line.starts_with("date:"));
            (answer.status, headers, answer.body.clone())
        };
        assert_eq!(constant(&answer), constant(&refused), "{number}: refusals must not differ");
    }
    // What comes through afterwards shows that nothing came before it, and that no forged id has been remembered.
    assert_eq!(sign("github", SECRET, now).send(gateway.listen).status, 200);
    let got = backend.eventually_got(1);
    assert_eq!((got.len(), got[0].header("countersign-source")), (1, Some("github")));
    let stored: f64 = ALL
        .iter()
        .filter_map(|source| {
            gateway.metric(&format!(
                "countersign_ingest_requests_total{{outcome=\"stored\",source=\"{source}\"}}"
            ))
        })
        .sum();
    assert_eq!(stored, 1.0);
}

#[test]
fn a_duplicated_signature_header_is_refused() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let good = Post::signed("github", &path("github"), "d-1", "push", b"{}");
    let signature =
        good.headers.iter().find(|(name, _)| name == "x-hub-signature-256").map(|(_, value)| value.clone());
    assert_eq!(good.with("X-Hub-Signature-256", signature.unwrap()).send(gateway.listen).status, 401);
}

#[test]
fn observed_requests_are_forwarded_as_unverified_and_counted() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"gh\"\nprovider = \"github\"\nenforcement = \"observe\"\n\
         secrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n\
         [[source]]\nname = \"open\"\nverify = \"none\"\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    ));
    let forged = Post::signed("github", "/webhooks/gh", "d-1", "push", b"{}").without("x-hub-signature-256");
    assert_eq!(forged.with("Countersign-Verified", "true").send(gateway.listen).status, 200);
    assert_eq!(
        Post::signed("github", "/webhooks/open", "d-2", "push", b"{}").send(gateway.listen).status,
        200
    );
    for got in backend.eventually_got(2) {
        assert_eq!(got.header("countersign-verified"), Some("false"), "{got:?}");
    }
    gateway.eventually_metric(
        "countersign_ingest_observed_total{reason=\"signature_missing\",source=\"gh\"}",
        1.0,
    );
}
