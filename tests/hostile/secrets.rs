//! Secrets of every kind and origin, a configuration that holds them all, and requests that carry them.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign::clock::Clock;

use crate::hidden::Hidden;
use crate::sender::Post;
use crate::traps::hmac_sha256;

pub(crate) const GITHUB_OLD: &str = "github-secret-from-environment";
pub(crate) const GITHUB_NEW: &str = "github/secret+from a file";
pub(crate) const STRIPE: &str = "whsec_stripe-secret-by-value";
pub(crate) const STANDARD_WEBHOOKS: &str = "whsec_c3RhbmRhcmQtd2ViaG9va3Mta2V5LTEyMzQ1Njc4";
pub(crate) const ACME: &str = "61636d652d6b65792d696e2d6865782d64696769747321";
pub(crate) const TOKEN: &str = "ownstak-token-from-environment";
pub(crate) const OBSERVED: &str = "secret-of-an-observed-source";
pub(crate) const SIGN: &str = "whsec_c2lnbmluZy1rZXktb2YtYS1kZXN0aW5hdGlvbi0xMg==";
pub(crate) const API_KEY: &str = "api-key-of-the-destination";
pub(crate) const PASSWORD: &str = "Basic dXNlcjpwYXNzd29yZC1vZi10aGUtZGVzdGluYXRpb24=";
pub(crate) const OPERATOR: &str = "admin-token-of-an-operator";
pub(crate) const VIEWER: &str = "admin-token-of-a-viewer";
/// In configurations that are refused.
pub(crate) const REFUSED: &str = "secret-in-a-broken-configuration";
/// What a sender or an operator presents, and is not ours.
pub(crate) const WRONG_TOKEN: &str = "wrong-token-of-a-stranger";
/// In every body.
pub(crate) const MARKER: &str = "marker-in-a-body-4242";
pub(crate) const BODY_MAX: usize = 4_000;

pub(crate) const VARIABLES: [(&str, &str); 6] = [
    ("LEAK_GITHUB", GITHUB_OLD),
    ("LEAK_TOKEN", TOKEN),
    ("LEAK_SIGN", SIGN),
    ("LEAK_OPERATOR", OPERATOR),
    // What the commands take from there.
    ("COUNTERSIGN_ADMIN_TOKEN", OPERATOR),
    ("COUNTERSIGN_SEND_SECRET", STRIPE),
];

pub(crate) fn files() -> [(&'static str, String); 3] {
    [("github", format!("{GITHUB_NEW}\n")), ("viewer", VIEWER.to_owned()), ("password", PASSWORD.to_owned())]
}

pub(crate) fn sections(backend: SocketAddr, closed: SocketAddr) -> String {
    format!(
        r#"
limits = {{ body = "{BODY_MAX}B" }}
admin.tokens = [
    {{ name = "ops", role = "operator", env = "LEAK_OPERATOR" }},
    {{ name = "look", role = "viewer", file = "viewer" }},
]
[[source]]
name = "github"
provider = "github"
body_max = "{BODY_MAX}B"
secrets = [{{ env = "LEAK_GITHUB", not_after = 2999-01-01T00:00:00Z }}, {{ file = "github" }}]
to = ["echo", "garbage", "closed"]
[[source]]
name = "stripe"
provider = "stripe"
secrets = [{{ value = "{STRIPE}" }}]
to = ["echo"]
[[source]]
name = "standard-webhooks"
provider = "standard-webhooks"
secrets = [{{ value = "{STANDARD_WEBHOOKS}" }}]
to = ["echo", "garbage"]
[[source]]
name = "ownstak"
provider = "ownstak"
secrets = [{{ env = "LEAK_TOKEN" }}]
to = ["echo", "garbage"]
[[source]]
name = "observed"
provider = "github"
enforcement = "observe"
secrets = [{{ value = "{OBSERVED}" }}]
to = ["echo"]
[[source]]
name = "acme"
secrets = [{{ value = "{ACME}" }}]
to = ["echo"]
scheme.auth = "signature"
scheme.signed = "{{body}}"
scheme.key = {{ encoding = "hex" }}
scheme.signature = {{ from = ["header:X-Acme-Signature"], algorithm = "hmac-sha256", encoding = "base64url" }}
[[destination]]
name = "echo"
url = "http://{backend}/echo"
sign = {{ scheme = "standard-webhooks", secret = {{ env = "LEAK_SIGN" }} }}
headers = {{ X-Api-Key = {{ value = "{API_KEY}" }}, X-Password = {{ file = "password" }} }}
retry = {{ initial = "100ms" }}
breaker = "off"
[[destination]]
name = "garbage"
url = "http://{backend}/garbage"
headers = {{ X-Api-Key = {{ value = "{API_KEY}" }} }}
[[destination]]
name = "closed"
url = "http://{closed}/"
headers = {{ X-Api-Key = {{ value = "{API_KEY}" }} }}
"#
    )
}

/// All of them.
pub(crate) fn hidden() -> Hidden {
    let mut hidden = Hidden::default();
    for (what, secret) in [
        ("secret of github, rotated out", GITHUB_OLD),
        ("secret of github", GITHUB_NEW),
        ("secret of stripe", STRIPE),
        ("secret of standard-webhooks", STANDARD_WEBHOOKS),
        ("secret of acme", ACME),
        ("token of ownstak", TOKEN),
        ("secret of observed", OBSERVED),
        ("secret of the countersignature", SIGN),
        ("secret header", API_KEY),
        ("secret header in a file", PASSWORD),
        ("token of an operator", OPERATOR),
        ("token of a viewer", VIEWER),
        ("secret in a refused configuration", REFUSED),
        ("wrong token", WRONG_TOKEN),
        ("body", MARKER),
    ] {
        hidden.add(what, secret);
    }
    hidden.add("key of standard-webhooks", standard_key(STANDARD_WEBHOOKS));
    hidden.add("key of the countersignature", standard_key(SIGN));
    hidden.add("key of acme", hex::decode(ACME).unwrap());
    hidden
}

pub(crate) fn standard_key(secret: &str) -> Vec<u8> {
    STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap()
}

pub(crate) fn content(id: &str) -> Vec<u8> {
    format!(r#"{{"id":"{id}","type":"t","event":"e","webhook_event_id":"{id}","note":"{MARKER}"}}"#)
        .into_bytes()
}

/// A request to each source, signed by the gateway's own signer, and the signature as this test computes it.
pub(crate) fn genuine(id: &str) -> Vec<(Post, Option<Vec<u8>>)> {
    let (now, body) = (Clock::system().now(), content(id));
    let timestamp = now.as_second();
    let post = |source: &str, provider: &str, secret: &str| {
        Post::signed_at(provider, &format!("/webhooks/{source}"), id, "push", &body, secret, now)
    };
    let text = |prefix: String| [prefix.as_bytes(), &body].concat();
    let acme = hmac_sha256(&hex::decode(ACME).unwrap(), &body);
    let acme_post =
        Post { method: "POST", target: "/webhooks/acme".to_owned(), headers: Vec::new(), body: body.clone() }
            .with("x-acme-signature", URL_SAFE_NO_PAD.encode(&acme));
    vec![
        (post("github", "github", GITHUB_OLD), Some(hmac_sha256(GITHUB_OLD.as_bytes(), &body))),
        (post("github", "github", GITHUB_NEW), Some(hmac_sha256(GITHUB_NEW.as_bytes(), &body))),
        (
            post("stripe", "stripe", STRIPE),
            Some(hmac_sha256(STRIPE.as_bytes(), &text(format!("{timestamp}.")))),
        ),
        (
            post("standard-webhooks", "standard-webhooks", STANDARD_WEBHOOKS),
            Some(hmac_sha256(&standard_key(STANDARD_WEBHOOKS), &text(format!("{id}.{timestamp}.")))),
        ),
        (post("ownstak", "ownstak", TOKEN), None),
        (post("observed", "github", OBSERVED), Some(hmac_sha256(OBSERVED.as_bytes(), &body))),
        (acme_post, Some(acme)),
    ]
}

/// The same with a signature over something else, or another token; hides what would have been right, too.
pub(crate) fn forged(hidden: &mut Hidden) -> Vec<Post> {
    let others = genuine("other").into_iter().map(|(post, _)| post.headers);
    let posts = genuine("forged").into_iter().zip(others).map(|((post, expected), headers)| {
        if let Some(expected) = expected {
            hidden.add("expected signature", expected);
        }
        Post { headers, ..post }
    });
    let mut posts: Vec<_> = posts.collect();
    for post in &mut posts {
        if post.target.ends_with("ownstak") {
            *post =
                post.clone().without("authorization").with("authorization", format!("Bearer {WRONG_TOKEN}"));
        }
    }
    posts
}

/// Requests that are refused before or after their heads, with secrets where they do not belong.
pub(crate) fn malformed() -> Vec<Vec<u8>> {
    let line = "POST /webhooks/ownstak HTTP/1.1\r\nHost: gateway\r\n";
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let large = "x".repeat(BODY_MAX);
    [
        format!("POST /webhooks/ownstak HTTP/1.1\r\n{token}\r\n"),
        format!("POST /webhooks/ownstak?token={TOKEN} HTTP/1.1 more\r\nHost: gateway\r\n\r\n"),
        format!("POST /webhooks/ownstak/{TOKEN}?{MARKER} HTTP/1.1\r\nHost: gateway\r\n{token}\r\n"),
        format!("{TOKEN} /webhooks/ownstak HTTP/1.1\r\nHost: gateway\r\n{token}\r\n"),
        format!("POST /webhooks/ownstak HTTP/1.1\r\nHost: {TOKEN}@gateway\r\n\r\n"),
        format!("{line}Authorization: Bearer {TOKEN}\0\r\n\r\n"),
        format!("{line}{TOKEN} : x\r\n\r\n"),
        format!("{line}{token}{token}\r\n"),
        format!("{line}{token}Content-Length: {}\r\n\r\n{MARKER}{large}", MARKER.len() + large.len()),
        format!("{line}{token}Content-Length: 900\r\n\r\n{MARKER}"),
        format!("{line}{token}Transfer-Encoding: chunked\r\n\r\n{MARKER}\r\n"),
        format!("{line}{token}Transfer-Encoding: chunked\r\n\r\n1000\r\n{MARKER}{large}"),
        format!("{line}{token}X-Long: {}{TOKEN}\r\n\r\n", "x".repeat(40_000)),
        format!("{line}{token}"),
        format!("Bearer {TOKEN}"),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// Configurations that are refused, each with a secret in it.
pub(crate) fn refused(sections: &str) -> Vec<String> {
    let instead = |from: &str, to: &str| {
        assert!(sections.contains(from), "{from}");
        sections.replace(from, to)
    };
    let value = format!("{{ value = \"{STRIPE}\" }}");
    vec![
        instead(&value, &format!("{{ value = \"{REFUSED} }}")),
        instead(&value, &format!("{{ valeu = \"{REFUSED}\" }}")),
        instead(&value, &format!("\"{REFUSED}\"")),
        instead(&value, &format!("{{ value = \"{REFUSED}\", env = \"LEAK_GITHUB\" }}, {{ value = \" \" }}")),
        instead(STANDARD_WEBHOOKS, &format!("whsec_{REFUSED}")),
        instead("{ env = \"LEAK_SIGN\" }", &format!("{{ value = \"{REFUSED}\" }}")),
        instead("file = \"viewer\"", &format!("value = \"{REFUSED}\", roles = 1")),
        instead(&format!("\"{API_KEY}\""), &format!("\"{REFUSED}\\n\"")),
        instead("url = \"http://", &format!("url = \"http://user:{REFUSED}@")),
    ]
}
