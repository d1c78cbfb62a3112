//! Promise: each delivery goes to every destination whose route takes it, and what none takes is stored and counted.

use crate::backend::Backend;
use crate::sender::{Post, SECRET};
use crate::support::{Gateway, eventually};

fn post(id: &str, event: &str, body: &str) -> Post {
    Post::signed("github", "/webhooks/hub", id, event, body.as_bytes())
}

fn sections(backends: &[&Backend], to: &str) -> String {
    let destination = |(name, backend): (&str, &&Backend)| {
        format!("[[destination]]\nname = \"{name}\"\nurl = \"{}\"\n", backend.url())
    };
    format!(
        "[[source]]\nname = \"hub\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\nto = {to}\n{}",
        ["first", "second"].into_iter().zip(backends).map(destination).collect::<String>()
    )
}

#[test]
fn deliveries_go_where_events_and_conditions_say_and_are_never_lost_quietly() {
    let (first, second) = (Backend::accepting(), Backend::accepting());
    let to = "[{ destination = \"first\", events = [\"deployment*\"] },\n\
              { destination = \"second\", when = \"body.status == 'failed' && headers['x-github-event'] != 'x'\" }]";
    let gateway = Gateway::start(&sections(&[&first, &second], to));
    let unrouted = "countersign_ingest_unrouted_total{source=\"hub\"}";
    let dropped = "countersign_ingest_dropped_events_total{source=\"hub\"}";
    let unjudged = "countersign_ingest_conditions_unjudged_total{destination=\"second\",source=\"hub\"}";
    for series in [unrouted, dropped, unjudged] {
        assert_eq!(gateway.metric(series), Some(0.0), "{series}");
    }
    let send = |id: &str, event: &str, body: &str| {
        assert_eq!(post(id, event, body).send(gateway.listen).status, 200, "{id}");
    };
    send("both", "deployment_status", r#"{"status":"failed","n":"both"}"#);
    send("first", "deployment", r#"{"status":"done","n":"first"}"#);
    send("second", "push", r#"{"status":"failed","n":"second"}"#);
    send("none", "push", r#"{"status":"done","n":"none"}"#);
    send("dropped", "ping", r#"{"status":"failed","n":"dropped"}"#);
    send("unjudged", "push", r#"{"n":"unjudged"}"#);
    // A duplicate of what went nowhere is not a second one.
    send("none", "push", r#"{"status":"done","n":"none"}"#);
    let names = |backend: &Backend, count: usize| {
        let mut names: Vec<_> = backend
            .eventually_got(count)
            .iter()
            .map(|got| serde_json::from_slice::<serde_json::Value>(&got.body).unwrap()["n"].to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&first, 2), ["\"both\"", "\"first\""]);
    assert_eq!(names(&second, 3), ["\"both\"", "\"second\"", "\"unjudged\""]);
    gateway.eventually_metric(unrouted, 1.0);
    gateway.eventually_metric(dropped, 1.0);
    gateway.eventually_metric(unjudged, 1.0);
    assert!(gateway.log().contains("a member that it names is not there"));
    let stored = "countersign_ingest_requests_total{outcome=\"stored\",source=\"hub\"}";
    assert_eq!(gateway.metric(stored), Some(6.0));
    // In the store, what goes nowhere is a delivery without forwards.
    let database = rusqlite::Connection::open(gateway.directory().join("data/countersign.db")).unwrap();
    let without = "SELECT count(*) FROM delivery WHERE id NOT IN (SELECT delivery FROM forward)";
    assert_eq!(database.query_row(without, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    let (_, status) = gateway.admin_get("/api/v1/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["sources"][0]["unrouted"], 1, "{status}");
}

/// A template is read again with the configuration.
#[test]
fn a_reload_takes_over_templates_and_conditions() {
    let backend = Backend::accepting();
    let with = |when: &str| {
        sections(&[&backend], &format!("[{{ destination = \"first\", when = \"{when}\" }}]"))
            + "template = \"t.j2\"\n"
    };
    let directory = std::sync::Arc::new(tempfile::tempdir().unwrap());
    crate::support::write_config(directory.path(), &with("body.n == 1"));
    let template = directory.path().join("t.j2");
    std::fs::write(&template, "[\"old\", {{ body.n }}]").unwrap();
    let gateway = Gateway::start_in(directory, |_| ());
    assert_eq!(post("1", "push", r#"{"n":1}"#).send(gateway.listen).status, 200);
    assert_eq!(backend.eventually_got(1)[0].body, b"[\"old\", 1]");
    std::fs::write(&template, "[\"new\", {{ body.n }}]").unwrap();
    gateway.rewrite(&with("body.n == 2"));
    gateway.signal("HUP");
    gateway.eventually_metric("countersign_config_reloads_total{outcome=\"succeeded\"}", 1.0);
    assert_eq!(post("2", "push", r#"{"n":1}"#).send(gateway.listen).status, 200);
    assert_eq!(post("3", "push", r#"{"n":2}"#).send(gateway.listen).status, 200);
    eventually("the second arrives", || backend.got().len() == 2);
    assert_eq!(backend.got()[1].body, b"[\"new\", 2]");
    // A template that is none changes nothing, and says where.
    std::fs::write(&template, "[\n{% if body.n }}]").unwrap();
    gateway.signal("HUP");
    gateway.eventually_metric("countersign_config_reloads_total{outcome=\"refused\"}", 1.0);
    eventually("the log says where", || gateway.log().contains("t.j2:2:"));
}
