//! The traps that other gateways and SDKs fell into when they verified and deduplicated, each sent to the built binary.
//! What is refused is the same empty 401 and leaves nothing behind; what looks odd but is genuine is accepted.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign::clock::{Clock, Timestamp};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::Sha256;

use crate::backend::Backend;
use crate::sender::{Post, SECRET, body, every_provider};
use crate::support::Gateway;

/// A running gateway, and what it may have stored.
struct Trial {
    gateway: Gateway,
    backend: Backend,
    genuine: BTreeSet<Vec<u8>>,
    refusals: BTreeSet<Vec<String>>,
}

impl Trial {
    fn new(more: &str) -> Self {
        let backend = Backend::accepting();
        let gateway = Gateway::start(&(every_provider(&backend) + more));
        Self { gateway, backend, genuine: BTreeSet::new(), refusals: BTreeSet::new() }
    }

    #[track_caller]
    fn accepts(&mut self, what: &str, post: &Post) {
        assert_eq!(post.send(self.gateway.listen).status, 200, "{what}");
        self.genuine.insert(post.body.clone());
    }

    #[track_caller]
    fn refuses(&mut self, what: &str, post: &Post) {
        let answer = post.send(self.gateway.listen);
        assert_eq!((answer.status, answer.body.len()), (401, 0), "{what}");
        let headers = answer.headers.into_iter().filter(|line| !line.starts_with("date: "));
        self.refusals.insert(headers.collect());
    }

    /// All of what was accepted has arrived, and nothing else; the refusals look the same.
    fn end(self) {
        let stored: f64 = ["github", "stripe", "standard-webhooks", "ownstak"]
            .map(|source| {
                let series =
                    format!("countersign_ingest_requests_total{{outcome=\"stored\",source=\"{source}\"}}");
                self.gateway.metric(&series).unwrap()
            })
            .into_iter()
            .sum();
        assert_eq!(stored, self.genuine.len() as f64);
        let got = self.backend.eventually_got(self.genuine.len());
        assert_eq!(got.into_iter().map(|got| got.body).collect::<BTreeSet<_>>(), self.genuine);
        assert!(self.refusals.len() <= 1, "refusals can be told apart: {:?}", self.refusals);
    }
}

fn now() -> Timestamp {
    Clock::system().now()
}

pub(crate) fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn github(id: &str) -> Post {
    Post::signed("github", "/webhooks/github", id, "push", format!("{{\"n\":\"{id}\"}}").as_bytes())
}

/// A GitHub request with any signature header.
fn github_signed_as(signature: impl AsRef<[u8]>) -> Post {
    github("forged").without("x-hub-signature-256").with("X-Hub-Signature-256", signature)
}

/// A Stripe request that signs `timestamp` as it stands.
fn stripe_at(timestamp: &str, body: &[u8]) -> Post {
    let message = [timestamp.as_bytes(), b".", body].concat();
    let signature = hex::encode(hmac_sha256(SECRET.as_bytes(), &message));
    stripe_signed_as(&format!("t={timestamp},v1={signature}"), body)
}

fn stripe_signed_as(signature: &str, body: &[u8]) -> Post {
    Post { method: "POST", target: "/webhooks/stripe".to_owned(), headers: Vec::new(), body: body.to_vec() }
        .with("Stripe-Signature", signature)
}

/// The good value of a Stripe signature, now: `(timestamp, hex)`.
fn stripe_parts(body: &[u8]) -> (String, String) {
    let timestamp = now().as_second().to_string();
    let message = [timestamp.as_bytes(), b".", body].concat();
    let signature = hex::encode(hmac_sha256(SECRET.as_bytes(), &message));
    (timestamp, signature)
}

/// A Standard Webhooks request; the signature header is made of the good signature by `spoil`.
fn standard(id: &str, spoil: impl Fn(&str) -> String) -> Post {
    let (body, timestamp) = (format!("{{\"s\":\"{id}\"}}"), now().as_second());
    let key = STANDARD.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let good = STANDARD.encode(hmac_sha256(&key, format!("{id}.{timestamp}.{body}").as_bytes()));
    let target = "/webhooks/standard-webhooks".to_owned();
    Post { method: "POST", target, headers: Vec::new(), body: body.into_bytes() }
        .with("webhook-id", id)
        .with("webhook-timestamp", timestamp.to_string())
        .with("webhook-signature", spoil(&good))
}

#[test]
fn a_signature_is_a_whole_value_in_one_header_by_the_configured_algorithm() {
    let mut trial = Trial::new("");
    let forged = github("forged");
    let good = hex::encode(hmac_sha256(SECRET.as_bytes(), &forged.body));
    for (what, signature) in [
        ("empty", String::new()),
        ("prefix only", "sha256=".to_owned()),
        ("no prefix", good.clone()),
        ("one byte", "sha256=00".to_owned()),
        ("first half of the good one", format!("sha256={}", &good[..32])),
        ("good one and more", format!("sha256={good}00")),
        ("odd number of digits", format!("sha256={}", &good[..63])),
        ("right length, all zero", format!("sha256={}", "0".repeat(64))),
        ("not hex", format!("sha256={}zz", &good[..62])),
        ("quoted", format!("sha256=\"{good}\"")),
        ("in a list", format!("sha256={good}, sha256={good}")),
        ("in a list with a forged one first", format!("sha256={}, sha256={good}", "0".repeat(64))),
        ("inner space", format!("sha256= {good}")),
        ("prefix in capitals", format!("SHA256={good}")),
        ("base64 of the right bytes", format!("sha256={}", STANDARD.encode(hex::decode(&good).unwrap()))),
        ("algorithm of the sender's choice", {
            let mut mac = Hmac::<Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
            mac.update(&forged.body);
            format!("sha1={}", hex::encode(mac.finalize().into_bytes()))
        }),
        ("no algorithm", format!("none={good}")),
        ("plain digest without a key", {
            use sha2::Digest as _;
            format!("sha256={}", hex::encode(Sha256::digest(&forged.body)))
        }),
        ("an empty key", format!("sha256={}", hex::encode(hmac_sha256(b"", &forged.body)))),
        ("the secret itself", SECRET.to_owned()),
    ] {
        trial.refuses(what, &github_signed_as(signature));
    }
    let good = format!("sha256={good}");
    trial.refuses("bytes that are not text", &github_signed_as(b"sha256=\xff\xfe"));
    trial.refuses("twice, both good", &forged.clone().with("X-Hub-Signature-256", &good));
    trial.refuses("twice, the second forged", &forged.clone().with("x-hub-signature-256", "sha256=00"));
    trial.refuses("its twin beside it", &forged.clone().with("x_hub_signature_256", &good));
    let renamed = |name: &str| forged.clone().without("x-hub-signature-256").with(name, &good);
    trial.refuses("its twin alone", &renamed("X_Hub_Signature_256"));
    trial.refuses("another header", &renamed("X-Hub-Signature"));
    trial.refuses("another provider's header", &renamed("Stripe-Signature"));
    let mut mac = Hmac::<Sha1>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(&forged.body);
    let legacy = format!("sha1={}", hex::encode(mac.finalize().into_bytes()));
    trial.refuses(
        "a good legacy sha1 header beside a bad one",
        &github_signed_as("sha256=00").with("X-Hub-Signature", &legacy),
    );
    trial.refuses(
        "a good legacy sha1 header alone",
        &forged.clone().without("x-hub-signature-256").with("X-Hub-Signature", &legacy),
    );
    trial.accepts("hex in capitals", &{
        let post = github("capitals");
        let hex = hex::encode_upper(hmac_sha256(SECRET.as_bytes(), &post.body));
        post.without("x-hub-signature-256").with("X-Hub-Signature-256", format!("sha256={hex}"))
    });
    trial.end();
}

#[test]
fn all_signatures_are_tried_strictly_decoded_and_capped_in_number() {
    let mut trial = Trial::new("");
    let forged = STANDARD.encode([0; 32]);
    trial
        .accepts("the last of several", &standard("m1", |good| format!("v1,{forged} v1,{forged} v1,{good}")));
    trial.accepts("the first of several", &standard("m2", |good| format!("v1,{good} v1,{forged}")));
    trial.accepts("versions of the future", &standard("m3", |good| format!("v2,{forged} v1a,xyz v1,{good}")));
    let unpadded = |good: &str| format!("v1,{}", good.trim_end_matches('='));
    trial.accepts("without its padding, which providers leave out", &standard("m0", unpadded));
    let many = |count: usize, good: &str| format!("{}v1,{good}", format!("v1,{forged} ").repeat(count - 1));
    trial.accepts("sixteen", &standard("m4", |good| many(16, good)));
    trial.refuses("seventeen", &standard("m5", |good| many(17, good)));
    trial.refuses("a thousand", &standard("m5", |good| many(500, good)));
    for (what, spoil) in [
        ("padded twice", (|good| format!("v1,{good}=")) as fn(&str) -> String),
        ("junk behind", |good| format!("v1,{good}junk")),
        ("quoted", |good| format!("v1,\"{good}\"")),
        ("a tab inside", |good| format!("v1,{}\t{}", &good[..10], &good[10..])),
        ("in hex", |good| format!("v1,{}", hex::encode(STANDARD.decode(good).unwrap()))),
        ("another alphabet", |good| format!("v1,{}", good.replace('+', "-").replace('/', "_") + "-")),
        ("no version", str::to_owned),
        ("only a version", |_| "v1,".to_owned()),
        ("another version", |good| format!("v2,{good}")),
    ] {
        trial.refuses(what, &standard("m5", spoil));
    }
    let content = br#"{"id":"evt_all","type":"x"}"#;
    let (timestamp, good) = stripe_parts(content);
    for (what, signature) in [
        ("two timestamps", format!("t={timestamp},t={timestamp},v1={good}")),
        ("another scheme", format!("t={timestamp},v0={good}")),
        ("no timestamp", format!("v1={good}")),
        ("no signature", format!("t={timestamp}")),
    ] {
        trial.refuses(what, &stripe_signed_as(&signature, content));
    }
    let both = format!("t={timestamp},v1={},v1={good},v0=abc", "0".repeat(64));
    trial.accepts("a forged one before the good one", &stripe_signed_as(&both, content));
    trial.end();
}

#[test]
fn a_timestamp_is_plain_digits_within_a_window_with_two_sides() {
    let mut trial = Trial::new("");
    let content = |n: i64| format!("{{\"id\":\"evt_t{n}\",\"type\":\"x\"}}").into_bytes();
    let second = now().as_second();
    // Margins, so that a slow machine does not move them over the edge.
    trial.accepts("four minutes old", &stripe_at(&(second - 240).to_string(), &content(1)));
    trial.accepts("four minutes ahead", &stripe_at(&(second + 240).to_string(), &content(2)));
    let odd: String =
        second.to_string().chars().map(|digit| char::from_u32(u32::from(digit) + 0xfee0).unwrap()).collect();
    for (what, timestamp) in [
        ("too old", (second - 301).to_string()),
        ("too new", (second + 330).to_string()),
        ("a day ahead", (second + 86_400).to_string()),
        ("milliseconds", (second * 1_000).to_string()),
        ("a fraction", format!("{second}.0")),
        ("an exponent", format!("{second}e0")),
        ("hexadecimal", format!("0x{second:x}")),
        ("a plus sign", format!("+{second}")),
        ("a minus sign", format!("-{second}")),
        ("a space before", format!(" {second}")),
        ("an underscore", format!("1_{second}")),
        ("thirteen digits", format!("000{second}")),
        ("more than 64 bits", "9".repeat(30)),
        ("the largest of 64 bits", i64::MAX.to_string()),
        ("nothing", String::new()),
        ("not a number", "now".to_owned()),
        ("full-width digits", odd),
    ] {
        trial.refuses(what, &stripe_at(&timestamp, &content(3)));
    }
    trial.end();
}

#[test]
fn only_the_raw_bytes_are_verified_and_any_bytes_may_be() {
    let mut trial = Trial::new("");
    let pretty = Post::signed("github", "/webhooks/github", "p", "push", br#"{ "a" : 1.0, "b" : "\u00e9" }"#);
    for re_encoded in [&br#"{"a":1.0,"b":"\u00e9"}"#[..], "{ \"a\" : 1.0, \"b\" : \"é\" }".as_bytes()] {
        trial.refuses("the same JSON in other bytes", &Post { body: re_encoded.to_vec(), ..pretty.clone() });
    }
    trial.refuses("a line end more", &Post { body: [&pretty.body[..], b"\n"].concat(), ..pretty.clone() });
    trial.refuses("no body", &Post { body: Vec::new(), ..pretty.clone() });
    trial.accepts("as it was signed", &pretty);
    let bytes: Vec<u8> = (0..=255).collect();
    trial
        .accepts("bytes that are not text", &Post::signed("github", "/webhooks/github", "b", "push", &bytes));
    trial.accepts("no bytes at all", &Post::signed("github", "/webhooks/github", "e", "push", b""));
    // Never inflated, never looked into beyond what its bytes cost.
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    trial.accepts("200,000 arrays", &Post::signed("stripe", "/webhooks/stripe", "", "", &deep));
    let digits = [&br#"{"id":"#[..], &vec![b'9'; 900_000], b"}"].concat();
    trial.accepts(
        "a number of 900,000 digits",
        &Post::signed("github", "/webhooks/github", "n", "x", &digits),
    );
    let squeezed = github("gz").with("Content-Encoding", "gzip");
    trial.accepts("a coding that is not the gateway's business", &squeezed);
    trial.end();
}

#[test]
fn an_id_becomes_seen_only_when_its_delivery_is_stored_and_only_the_verified_one_counts() {
    let mut trial = Trial::new("");
    for _ in 0..3 {
        let poison = github("first").without("x-hub-signature-256").with("X-Hub-Signature-256", "sha256=00");
        trial.refuses("a forged request with an id", &poison);
    }
    trial.accepts("the genuine one, later", &github("first"));
    trial.accepts("an idempotency key", &github("k1").with("Idempotency-Key", "same"));
    trial.accepts(
        "the same idempotency key on another delivery",
        &github("k2").with("Idempotency-Key", "same"),
    );
    // The signed id is the key, whatever else calls itself one.
    let captured = standard("s1", |good| format!("v1,{good}"));
    trial.accepts("an id of another family beside", &captured.clone().with("svix-id", "s2"));
    trial.accepts("captured, with another such id", &captured.clone().with("svix-id", "s3"));
    trial.accepts("captured, without", &captured);
    trial.refuses(
        "captured, its signed id changed",
        &captured.clone().without("webhook-id").with("webhook-id", "s4").with("svix-id", "s1"),
    );
    // `{id}.{timestamp}.{body}`: an id with a dot could move its border.
    for id in ["a.b", "a.1700000000", "", "a b", &"x".repeat(129)] {
        trial.refuses("an ambiguous id", &standard(id, |good| format!("v1,{good}")));
    }
    trial.end();
}

#[test]
fn key_parts_do_not_run_together() {
    let backend = Backend::accepting();
    let source = |name: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n"
        )
    };
    let destination = format!("[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n", backend.url());
    let gateway = Gateway::start(&(source("a") + &source("ab") + &destination));
    for (name, id) in [("a", "bc"), ("ab", "c")] {
        let post = Post::signed("github", &format!("/webhooks/{name}"), id, "push", &body(name));
        assert_eq!(post.send(gateway.listen).status, 200);
    }
    backend.eventually_got(2);
}

#[test]
fn a_stranger_cannot_choose_its_own_address() {
    let backend = Backend::accepting();
    let sections = every_provider(&backend)
        .replace("name = \"github\"\n", "name = \"github\"\nallow_addresses = [\"203.0.113.0/24\"]\n");
    let gateway = Gateway::start(&sections);
    for (name, value) in [
        ("X-Forwarded-For", "203.0.113.7"),
        ("Forwarded", "for=203.0.113.7"),
        ("X-Real-IP", "203.0.113.7"),
        ("X_Forwarded_For", "203.0.113.7"),
        ("True-Client-IP", "203.0.113.7"),
    ] {
        let answer = github("d-1").with(name, value).send(gateway.listen);
        assert_eq!(answer.status, 403, "{name}");
    }
    assert!(backend.got().is_empty());
}
