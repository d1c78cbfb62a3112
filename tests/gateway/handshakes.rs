//! Promise: a handshake is answered by the gateway itself, once the provider has proven what it can, and no backend hears
//! of it unless its operator wants that.

use crate::backend::Backend;
use crate::sender::{Answer, Post, SECRET};
use crate::support::{Gateway, run};

fn sources(backend: &Backend, each: &[(&str, &str)]) -> String {
    let source = |(provider, more): &(&str, &str)| {
        format!(
            "[[source]]\nname = \"{provider}\"\nprovider = \"{provider}\"\n\
             secrets = [{{ value = \"{SECRET}\" }}]\nto = [\"legacy\"]\n{more}\n"
        )
    };
    let sources: Vec<_> = each.iter().map(source).collect();
    format!("{}[[destination]]\nname = \"legacy\"\nurl = \"{}\"\n", sources.concat(), backend.url())
}

fn ask(method: &'static str, target: &str) -> Post {
    Post { method, target: target.to_owned(), headers: Vec::new(), body: Vec::new() }
}

#[track_caller]
fn check(answer: &Answer, status: u16, content_type: Option<&str>, body: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), content_type, "{answer:?}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
    assert_eq!(String::from_utf8_lossy(&answer.body), body);
}

const TEXT: Option<&str> = Some("text/plain; charset=utf-8");
const JSON: Option<&str> = Some("application/json");

#[test]
fn handshakes_are_answered_and_no_backend_hears_of_them() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&sources(
        &backend,
        &[
            ("meta", "handshake = { verify_token = { value = \"v-token\" } }"),
            ("slack", ""),
            ("monday", "public_url = \"https://a.example\""),
            ("azure-event-grid", ""),
            ("ms-graph-clientstate", ""),
            ("trello", "public_url = \"https://a.example\""),
            ("x-twitter", ""),
            ("asana", ""),
            ("woocommerce", ""),
        ],
    ));
    let to = gateway.listen;
    let hub = "/webhooks/meta?hub.mode=subscribe&hub.challenge=115820&hub.verify_token=v-token";
    check(&ask("GET", hub).send(to), 200, TEXT, "115820");
    assert_eq!(ask("GET", &hub.replace("v-token", "other")).send(to).status, 401);
    assert_eq!(ask("GET", &hub.replace("115820", "%3Cb%3E")).send(to).status, 400);
    assert_eq!(ask("GET", "/webhooks/meta").send(to).status, 405);
    check(&ask("HEAD", "/webhooks/trello").send(to), 200, None, "");
    assert_eq!(ask("HEAD", "/webhooks/meta").send(to).status, 405);
    let crc = ask("GET", "/webhooks/x-twitter?crc_token=abc").send(to);
    assert!(crc.body.starts_with(br#"{"response_token":"sha256="#), "{crc:?}");

    let asks = |origin: &str| {
        ask("OPTIONS", "/webhooks/azure-event-grid").with("WebHook-Request-Origin", origin).send(to)
    };
    let granted = asks("eventgrid.azure.net");
    check(&granted, 200, None, "");
    assert_eq!(granted.header("webhook-allowed-origin"), Some("eventgrid.azure.net"));
    assert_eq!(granted.header("webhook-allowed-rate"), Some("*"));
    let refused = asks("eventgrid.azure.net.evil.example");
    assert_eq!((refused.status, refused.header("webhook-allowed-origin")), (403, None));

    let slack = br#"{"type":"url_verification","challenge":"3eZbrw1a"}"#;
    let signed = Post::signed("slack", "/webhooks/slack", "d-1", "x", slack);
    check(&signed.send(to), 200, TEXT, "3eZbrw1a");
    assert_eq!(signed.clone().without("x-slack-signature").send(to).status, 401);
    let lone = Post { body: br#"{"challenge":"abc"}"#.to_vec(), ..ask("POST", "/webhooks/monday") };
    check(&lone.send(to), 200, JSON, r#"{"challenge":"abc"}"#);
    let event = Post { body: br#"{"challenge":"abc","event":{}}"#.to_vec(), ..lone };
    assert_eq!(event.send(to).status, 401);
    let long = Post { body: vec![b' '; 20 << 10], ..event };
    assert_eq!(long.send(to).status, 401, "as without a handshake");
    check(&ask("POST", "/webhooks/ms-graph-clientstate?validationToken=a%3A+b").send(to), 200, TEXT, "a: b");
    let ping = Post { body: b"webhook_id=7".to_vec(), ..ask("POST", "/webhooks/woocommerce") };
    check(&ping.send(to), 200, None, "");
    let hook = ask("POST", "/webhooks/asana").with("X-Hook-Secret", "b537207f20cb").send(to);
    check(&hook, 200, None, "");
    assert_eq!(hook.header("x-hook-secret"), Some("b537207f20cb"));

    // What comes through afterwards shows that nothing came before it.
    let event = br#"{"type":"event_callback","event_id":"e-1"}"#;
    assert_eq!(Post::signed("slack", "/webhooks/slack", "d-2", "x", event).send(to).status, 200);
    assert_eq!(backend.eventually_got(1).len(), 1);
    assert!(backend.eventually_got(1)[0].body.starts_with(br#"{"type":"event_callback""#));
    let metric = |name: &str| gateway.metric(&format!("countersign_ingest_{name}"));
    assert_eq!(metric("requests_total{outcome=\"handshake\",source=\"meta\"}"), Some(1.0));
    assert_eq!(metric("requests_total{outcome=\"handshake\",source=\"slack\"}"), Some(1.0));
    assert_eq!(metric("rejections_total{reason=\"handshake_malformed\",source=\"meta\"}"), Some(1.0));
    assert!(metric("handshake_last_timestamp_seconds{source=\"meta\"}").unwrap() > 1e9);
}

#[test]
fn a_signed_handshake_is_forwarded_where_the_operator_wants_it() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&sources(&backend, &[("slack", "forward_handshake = true")]));
    let slack = br#"{"type":"url_verification","challenge":"3eZbrw1a"}"#;
    let signed = Post::signed("slack", "/webhooks/slack", "d-1", "x", slack);
    check(&signed.send(gateway.listen), 200, TEXT, "3eZbrw1a");
    assert_eq!(backend.eventually_got(1)[0].body, slack);
    gateway.eventually_metric("countersign_ingest_requests_total{outcome=\"stored\",source=\"slack\"}", 1.0);
}

#[test]
fn a_secret_that_is_handed_over_is_shown_once_even_after_a_crash() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"asana\"\nprovider = \"asana\"\nto = [\"legacy\"]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    ));
    let hand = |gateway: &Gateway, secret: &str| {
        ask("POST", "/webhooks/asana").with("X-Hook-Secret", secret).send(gateway.listen).status
    };
    assert_eq!(hand(&gateway, "b537207f20cb"), 200);
    assert_eq!(Post::signed("asana", "/webhooks/asana", "d", "x", b"{}").send(gateway.listen).status, 401);
    let gateway = gateway.kill_and_restart();
    assert!(!gateway.log().contains("b537207f20cb"));
    let show = || {
        let admin = format!("http://{}", gateway.admin);
        String::from_utf8(run(&["handed-over", "asana", "--admin", &admin]).stdout).unwrap()
    };
    let shown = show();
    assert!(shown.trim_end().ends_with("from 127.0.0.1: b537207f20cb"), "{shown}");
    assert_eq!(show(), "nothing has been handed over since it was last asked\n");
    // Whoever floods it pushes nothing out.
    let flood: Vec<_> = (0..10).map(|number| hand(&gateway, &format!("secret-{number}"))).collect();
    assert_eq!(flood, [200, 200, 200, 200, 200, 200, 200, 200, 503, 503]);
    assert!(show().contains("secret-0"));
}
