//! What an SQLite store holds, moved to PostgreSQL: a gateway goes on there as if nothing had happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;

use crate::backend::{Backend, Got, Reply};
use crate::group::SHARED;
use crate::sender::{Post, SECRET};
use crate::server::{Server, query};
use crate::support::{Gateway, countersign, eventually, run};

/// Deliveries, of a megabyte each: several batches.
const COUNT: usize = 12;

/// A source with two destinations, of which the second has an order.
fn sections(plain: &Backend, line: &Backend, retry: &str) -> String {
    let destination = |name: &str, backend: &Backend, more: &str| {
        format!(
            "[[destination]]\nname = \"{name}\"\nurl = \"{}\"\nbreaker = \"off\"\nretry = {{ {retry} }}\n{more}\n",
            backend.url()
        )
    };
    format!(
        "[[source]]\nname = \"github\"\nprovider = \"github\"\nsecrets = [{{ value = \"{SECRET}\" }}]\n\
         to = [\"plain\", \"line\"]\n{}{}",
        destination("plain", plain, ""),
        destination("line", line, "order = \"strict\"")
    )
}

fn post(number: usize) -> Post {
    let body = [format!("{number:02}").as_bytes(), b"\0\xff", &vec![b'x'; 999_000]].concat();
    Post::signed("github", "/webhooks/github", &format!("d-{number}"), "push", &body).with("X-Raw", b"\xff")
}

fn number(got: &Got) -> usize {
    std::str::from_utf8(&got.body[..2]).unwrap().parse().unwrap()
}

/// A gateway that has been killed, with a forward in every state in its store, and whatever else there is.
fn filled() -> Gateway {
    let plain = Backend::start(|_, got| match number(got) {
        0..=3 => Reply::Status(200),
        4 | 5 => Reply::Status(400),
        6 => Reply::Hang,
        _ => Reply::Status(503),
    });
    let line = Backend::start(|_, _| Reply::Status(503));
    let mut gateway = Gateway::start(&sections(&plain, &line, "initial = \"1h\", jitter = \"none\""));
    for number in 0..COUNT {
        assert_eq!(post(number).send(gateway.listen).status, 200);
    }
    let store = || Connection::open(gateway.directory().join("data/countersign.db")).unwrap();
    let states = |destination: &str| -> BTreeMap<String, u32> {
        let store = store();
        let sql = "SELECT state, count(*) FROM forward WHERE destination = ?1 GROUP BY state";
        let mut select = store.prepare(sql).unwrap();
        let rows = select.query_map([destination], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let expected = |states: &[(&str, u32)]| {
        states.iter().map(|(state, count)| ((*state).to_owned(), *count)).collect::<BTreeMap<_, _>>()
    };
    let settled = expected(&[("dead", 2), ("delivered", 4), ("in_flight", 1), ("waiting", 5)]);
    eventually("all have been tried", || {
        states("plain") == settled
            && states("line") == expected(&[("waiting", COUNT as u32)])
            && line.got().len() == 1
            && store().query_row("SELECT count(*) FROM attempt", [], |row| row.get(0)) == Ok(8)
    });
    let last: String = {
        let sql = "SELECT hex(id) FROM delivery WHERE delivery_id = 'd-11'";
        store().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let id = [&last[..8], &last[8..12], &last[12..16], &last[16..20], &last[20..]].join("-").to_lowercase();
    let admin = format!("http://{}", gateway.admin);
    let cancelled = run(&["deliveries", "cancel", &id, "--destination", "plain", "--admin", &admin]);
    assert!(cancelled.status.success(), "{}", String::from_utf8_lossy(&cancelled.stderr));
    gateway.kill();
    let store = Connection::open(gateway.directory().join("data/countersign.db")).unwrap();
    let more = "INSERT INTO handed_over VALUES ('github', 1, '192.0.2.1', x'00ff');
        INSERT INTO secret_use VALUES ('github', 'one', 1, 7, NULL);";
    store.execute_batch(more).unwrap();
    std::fs::write(gateway.directory().join("data/paused"), "gone\n").unwrap();
    gateway
}

/// `store copy` of what the gateway had; its exit code, and what it printed.
fn copy(gateway: &Gateway, url: &str) -> (Option<i32>, String) {
    let to = gateway.directory().join("shared.toml");
    let output = countersign()
        .args(["store", "copy", "--config"])
        .arg(gateway.config_path())
        .arg("--to")
        .arg(&to)
        .env("DATABASE_URL", url)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_store_is_moved_into_a_database_through_an_interruption_and_goes_on_there() {
    let gateway = filled();
    let url = Server::shared().database();
    let (plain, line) = (Backend::accepting(), Backend::accepting());
    let sections = sections(&plain, &line, "initial = \"200ms\", max = \"1s\"");
    let shared = format!("store.path = \"shared\"\n{SHARED}{sections}");
    std::fs::write(gateway.directory().join("shared.toml"), shared).unwrap();

    // While a gateway runs on either, nothing is begun.
    let directory = gateway.directory_held();
    let mut running = Gateway::start_in(Arc::clone(&directory), |_| ());
    let (code, text) = copy(&gateway, &url);
    assert!(code == Some(74) && text.contains("is in use by process"), "{text}");
    running.kill();
    let mut other = Gateway::start_with(&format!("{SHARED}{sections}"), |command| {
        command.env("DATABASE_URL", &url);
    });
    let (code, text) = copy(&gateway, &url);
    assert!(code == Some(74) && text.contains("1 gateways run on the database"), "{text}");
    other.signal("TERM");
    assert_eq!(other.wait(), Some(0));
    let (code, text) = copy(&gateway, &url);
    assert!(code == Some(74) && text.contains("1 rows of `secret_use` that are not of this copy"), "{text}");
    query(&url, "DELETE FROM countersign.secret_use");

    // The second batch fails, which begins with the tenth.
    query(
        &url,
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF (SELECT count(*) FROM countersign.delivery) >= 9 THEN RAISE EXCEPTION 'enough for now'; END IF;
             RETURN NEW; END $$;
         CREATE TRIGGER stop BEFORE INSERT ON countersign.delivery FOR EACH ROW EXECUTE FUNCTION stop()",
    );
    let (code, text) = copy(&gateway, &url);
    assert!(code == Some(74) && text.contains("enough for now"), "{text}");
    let there: usize = query(&url, "SELECT count(*) FROM countersign.delivery").parse().unwrap();
    assert!((1..COUNT).contains(&there), "{there}");
    gateway.rewrite(&format!("{SHARED}{sections}"));
    let start = || {
        Gateway::try_start_in(Arc::clone(&directory), |command| {
            command.env("DATABASE_URL", &url);
        })
    };
    let Err((code, log)) = start() else { panic!("it starts on half of a store") };
    assert!(code == Some(74) && log.contains("is being filled"), "{log}");

    // It goes on where it was, and has then been done.
    gateway.rewrite(&sections);
    query(&url, "DROP TRIGGER stop ON countersign.delivery");
    let (code, text) = copy(&gateway, &url);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches(" same").count(), 7, "{text}");
    let (code, text) = copy(&gateway, &url);
    assert!(code == Some(74) && text.contains("12 rows of `delivery` that are not of this copy"), "{text}");
    assert_eq!(query(&url, "SELECT destination FROM countersign.lane WHERE paused"), "gone");
    let store = Connection::open(gateway.directory().join("data/countersign.db")).unwrap();
    let ids = "SELECT lower(hex(id)) FROM delivery ORDER BY id";
    let ids: Vec<String> = {
        let mut select = store.prepare(ids).unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let moved = "SELECT encode(uuid_send(id), 'hex') FROM countersign.delivery ORDER BY id";
    assert_eq!(query(&url, moved).lines().collect::<Vec<_>>(), ids);
    let uses = "SELECT source, secret, since, uses, last_used IS NULL FROM countersign.secret_use WHERE secret = 'one'";
    assert_eq!(query(&url, uses), "github|one|1|7|t");
    assert_eq!(
        query(&url, "SELECT source, sender, secret FROM countersign.handed_over"),
        "github|192.0.2.1|\\x00ff"
    );

    // An hour later a gateway on the database knows what was accepted, and delivers what waited, in order where there is one.
    query(&url, "UPDATE countersign.forward SET due_at = due_at - 3600000 WHERE state = 'waiting'");
    gateway.rewrite(&format!("{SHARED}{sections}"));
    let gateway = start().unwrap_or_else(|(_, log)| panic!("{log}"));
    for number in 0..COUNT {
        assert_eq!(post(number).send(gateway.listen).status, 200);
    }
    let series = "countersign_ingest_requests_total{outcome=\"duplicate\",source=\"github\"}";
    assert_eq!(gateway.metric(series), Some(COUNT as f64));
    eventually("what waited is delivered", || {
        query(&url, "SELECT count(*) FROM countersign.forward WHERE state IN ('waiting', 'in_flight')") == "0"
    });
    let in_order: Vec<_> = line.got().iter().map(number).collect();
    assert_eq!(in_order, (0..COUNT).collect::<Vec<_>>());
    let mut got = plain.got();
    got.sort_by_key(number);
    // Duplicates of dead ones bring them back.
    assert_eq!(got.iter().map(number).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9, 10]);
    for got in line.got().iter().chain(&got) {
        let sent = post(number(got));
        assert_eq!(got.body, sent.body);
        assert!(got.headers.contains(&("x-raw".to_owned(), b"\xff".to_vec())));
        let id = got.header("webhook-id").unwrap().replace('-', "");
        assert_eq!(ids[number(got)], id);
    }
}
