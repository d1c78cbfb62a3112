//! One test line per rule: what is wrong, and where it is said to be.

use std::num::NonZeroUsize;
use std::time::Duration;

use countersign::config::{Countersign, ReplayGuard};
use countersign::forward::{By, Concurrency, OnDead, Order, Schedule, StatusPattern};
use http::Method;

use crate::support::{accepted, check, destination, parse, problems, section, source};

#[test]
fn the_file_as_a_whole() {
    check("", "1:1: error: source: there is no source, so nothing could be received");
    check("source = []", "1:1: error: source: there is no source, so nothing could be received");
    check(&section("[lsiten]\naddress = \"0.0.0.0:80\""), "1:2: error: lsiten: unknown key `lsiten`");
    check(&section("listen = 5"), "1:10: error: listen: integer does not fit here");
    check("[source]\nname = \"a\"", "1:1: error: source: table does not fit here");
}

#[test]
fn listen() {
    let check = |line: &str, problem: &str| check(&section(&format!("[listen]\n{line}")), problem);
    check(
        "address = \"localhost:80\"",
        "2:11: error: listen.address: `localhost:80` cannot be used: invalid socket address syntax",
    );
    check("address = 8080", "2:11: error: listen.address: integer does not fit here");
    for (deadline, column) in [("\"5s\"", "`5s`"), ("\"0s\"", "`0s`")] {
        check(
            &format!("ack_deadline = {deadline}"),
            &format!(
                "2:16: error: listen.ack_deadline: {column} cannot be used: it must be from 1ms to 4999ms"
            ),
        );
    }
    check("ack_deadline = 2500", "2:16: error: listen.ack_deadline: integer does not fit here");
    check(
        "ack_deadline = \"2.5s\"",
        "2:16: error: listen.ack_deadline: `2.5s` cannot be used: its unit must be one of ms, s, m, h, d",
    );
    check(
        "trusted_proxies = [\"10.0.0.0/8\", \"10.0.0.1/8\"]",
        "2:34: error: listen.trusted_proxies[1]: `10.0.0.1/8` cannot be used: bits are set beyond its prefix length",
    );
    check(
        "public_url = \"hooks.example.com\"",
        "2:14: error: listen.public_url: the URL begins with neither `http://` nor `https://`",
    );
    check(
        "public_url = \"https://hooks.example.com/\"",
        "2:14: error: listen.public_url: it must have neither a query nor a slash at its end",
    );
    check("tls = { key = \"/dev/null\" }", "2:7: error: listen.tls.cert: `cert` is missing");
    check(
        "tls = { cert = \"cert.pem\", key = \"/dev/null\" }",
        "2:16: error: listen.tls.cert: /nonexistent/cert.pem cannot be read: No such file or directory (os error 2)",
    );
    check("tls = { cert = \"/dev/null\", key = \"/\" }", "2:35: error: listen.tls.key: / is a directory");
    let clients = |more: &str| format!("tls = {{ cert = \"/dev/null\", key = \"/dev/null\", {more} }}");
    check(
        &clients("client_certificate = \"optional\""),
        "2:69: error: listen.tls.client_certificate: `client_certificate` has no effect without `client_ca`",
    );
    check(
        &clients("client_ca = \"/dev/null\", client_certificate = \"asked\""),
        "2:94: error: listen.tls.client_certificate: `asked` is not a choice here",
    );
    check(&clients("client_ca = \"/\""), "2:60: error: listen.tls.client_ca: / is a directory");
}

#[test]
fn limits() {
    let check = |line: &str, problem: &str| check(&section(&format!("[limits]\n{line}")), problem);
    check("body = \"0\"", "2:8: error: limits.body: `0` cannot be used: it must be from 1B to 512MiB");
    check(
        "body = \"1 MiB\"",
        "2:8: error: limits.body: `1 MiB` cannot be used: its unit must be one of B, KiB, MiB, GiB, TiB, kB, MB, GB",
    );
    check("connections = 0", "2:15: error: limits.connections: 0 is out of range");
    check("connections_per_address = -1", "2:27: error: limits.connections_per_address: -1 is out of range");
    check(
        "header_bytes = \"1KiB\"",
        "2:16: error: limits.header_bytes: `1KiB` cannot be used: it must be from 8KiB to 1MiB",
    );
    check(
        "head_read = \"0\"",
        "2:13: error: limits.head_read: `0` cannot be used: it must be from 100ms to 10m",
    );
    check(
        "in_flight = \"64KiB\"",
        "2:13: error: limits.in_flight: `limits.in_flight` is smaller than `limits.body`: the largest bodies could never be accepted",
    );
    check("drain = \"500ms\"", "2:9: error: limits.drain: `500ms` cannot be used: it must be from 1s to 10m");
    let too_little = "`limits.drain_delay` leaves less than 1s of `limits.drain`, too little to finish what is in progress";
    check("drain_delay = \"20s\"", &format!("2:15: error: limits.drain_delay: {too_little}"));
    check(
        "drain = \"5s\"\ndrain_delay = \"4500ms\"",
        &format!("3:15: error: limits.drain_delay: {too_little}"),
    );
    let limits = accepted(&section("limits = { drain = \"1m\", drain_delay = \"59s\" }")).limits;
    assert_eq!((limits.drain, limits.drain_delay), (Duration::from_mins(1), Duration::from_secs(59)));
}

#[test]
fn admin() {
    let check = |line: &str, problem: &str| check(&section(&format!("[admin]\n{line}")), problem);
    let open = "2:11: error: admin.address: 0.0.0.0:8081 can be reached from other machines, and there are no `admin.tokens`";
    check("address = \"0.0.0.0:8081\"", open);
    check("address = \"0.0.0.0:8081\"\ntokens = []", open);
    check(
        "address = \"127.0.0.1:8080\"",
        "2:11: error: admin.address: both listeners would listen on 127.0.0.1:8080",
    );
    check(
        "tokens = [{ name = \"ops\", role = \"admin\", env = \"SET\" }]",
        "2:34: error: admin.tokens[0].role: `admin` is not a choice here",
    );
    check(
        "tokens = [{ role = \"viewer\", env = \"SET\" }]",
        "2:11: error: admin.tokens[0].name: `name` is missing",
    );
    check(
        "tokens = [{ name = \"ops\", role = \"viewer\", env = \"SET\" },\n{ name = \"ops\", role = \"viewer\", env = \"SET\" }]",
        "3:10: error: admin.tokens[1].name: `ops` is taken: line 2 has it already",
    );
    check(
        "tokens = [{ name = \"ops\", role = \"viewer\", value = \"with a space in it\" }]",
        "2:52: error: admin.tokens[0].value: the token has characters that an Authorization header cannot have",
    );
    accepted(&section(
        "[admin]\naddress = \"0.0.0.0:9\"\ntokens = [{ name = \"ops\", role = \"operator\", env = \"SET\" }]",
    ));
    accepted(&section("listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\""));
    crate::support::check(
        &section("listen.address = \"0.0.0.0:8081\""),
        "1:18: error: listen.address: both listeners would listen on 127.0.0.1:8081",
    );
}

#[test]
fn store_and_dedup() {
    let check = |line: &str, problem: &str| check(&section(line), problem);
    check("store.engine = \"redis\"", "1:16: error: store.engine: `redis` is not a choice here");
    check(
        "store.engine = \"postgres\"",
        "1:1: error: store.url: the engine `postgres` needs to know where its database is",
    );
    let shared = |rest: &str| format!("[store]\nengine = \"postgres\"\n{rest}");
    check(
        &shared("url = { value = \"mysql://u:hunter2@h/n\" }"),
        "3:17: error: store.url.value: this is no URL of a database: it does not begin with `postgres://`",
    );
    check(
        &shared("url = { value = \"postgres://u:hunter2@h/n?sslmode=perhaps\" }"),
        "3:17: error: store.url.value: this is no URL of a database: `sslmode` is none of disable, prefer, require, \
         verify-ca, verify-full",
    );
    check(
        &shared("url = { value = \"postgres://u@h/n\" }\nconnections = 1"),
        "4:15: error: store.connections: 1 is out of range",
    );
    check(
        "store.connections = 5",
        "1:21: warning: store.connections: `connections` has no effect: it belongs to the engine `postgres`",
    );
    check("store.path = \"\"", "1:14: error: store.path: the path is empty");
    check("store.path = \"/dev/null\"", "1:14: error: store.path: /dev/null is not a directory");
    check("store.disk_reserve = 5", "1:22: error: store.disk_reserve: integer does not fit here");
    for key in ["delivered", "quarantine"] {
        check(
            &format!("[store]\nretention = {{ {key} = \"0d\" }}"),
            &format!(
                "2:{}: error: store.retention.{key}: `0d` cannot be used: it must be from 1s to 3650d",
                18 + key.len()
            ),
        );
    }
    check("dedup.cache_entries = 0", "1:23: error: dedup.cache_entries: 0 is out of range");
    check(
        "dedup.ttl = \"5m\"",
        "1:13: error: dedup.ttl: 5m is shorter than the window of source `a`: a captured request could be accepted twice",
    );
    check(
        "dedup.ttl = \"1h\"",
        "1:13: warning: dedup.ttl: `hostwares` repeats deliveries for longer than the 1h that source `a` remembers them",
    );
}

#[test]
fn names_and_paths_of_sources() {
    let check = |line: &str, problem: &str| check(&source(line), problem);
    check("name = -", "1:1: error: source[0].name: `name` is missing");
    for name in ["", "A", "a_b", "ä", &"a".repeat(64)] {
        check(
            &format!("name = \"{name}\""),
            &format!("2:8: error: source[0].name: `{name}` cannot be a name"),
        );
    }
    check("path = \"hooks\"", "2:8: error: source[0].path: the path does not begin with `/`");
    for path in ["/a?b", "/a#b"] {
        check(
            &format!("path = \"{path}\""),
            "2:8: error: source[0].path: the path has a query or a fragment",
        );
    }
    for path in ["/a b", "/ä", "/a\\u0000"] {
        check(
            &format!("path = \"{path}\""),
            "2:8: error: source[0].path: the path has characters that must be percent-encoded, such as a space",
        );
    }
    let second = |line: &str| format!("{}[[source]]\nverify = \"none\"\nto = [\"b\"]\n{line}", source(""));
    let found = |line: &str| {
        problems(&parse(&second(line)))
            .join("\n")
            .replace("10:10: warning: source[1].verify: nothing proves who sends to this source\n", "")
    };
    assert_eq!(found("name = \"a\""), "12:8: error: source[1].name: `a` is taken: line 2 has it already");
    assert_eq!(
        found("name = \"x\"\npath = \"/webhooks/a\""),
        "13:8: error: source[1].path: `/webhooks/a` is taken: line 2 has it already"
    );
}

#[test]
fn verification_of_sources() {
    let check = |line: &str, problem: &str| check(&source(line), problem);
    check("provider = -", "1:1: error: source[0].provider: how requests are verified is not said");
    check("provider = \"githbu\"", "2:12: error: source[0].provider: there is no provider `githbu`");
    check(
        "verify = \"none\"\nprovider = \"github\"\nsecrets = -",
        "2:10: error: source[0].verify: `provider`, `scheme` and `verify` exclude each other",
    );
    check("provider = -\nverify = \"later\"", "3:10: error: source[0].verify: `later` is not a choice here");
    check(
        "secrets = -",
        "1:1: error: source[0].secrets: `secrets` is missing, so no request could be verified",
    );
    check(
        "token = { header = \"X-Token\" }",
        "2:9: error: source[0].token: this scheme verifies a signature, not a token",
    );
    check(
        "provider = \"ownstak\"\ntoken = { header = \"X Token\" }",
        "3:20: error: source[0].token.header: `X Token` cannot be used: invalid HTTP header name",
    );
    check("enforcement = \"log\"", "2:15: error: source[0].enforcement: `log` is not a choice here");
    check(
        "window = { past = \"25h\" }",
        "2:19: error: source[0].window.past: `25h` cannot be used: it must be from 1ms to 1d",
    );
    check(
        "window = { future = \"0s\" }",
        "2:21: error: source[0].window.future: `0s` cannot be used: it must be from 1ms to 1d",
    );
    let keyless = source("provider = \"aws-sns\"\nsecrets = -");
    assert_eq!(problems(&parse(&keyless)), [""; 0]);
    check(
        "provider = \"aws-sns\"\nsecrets = []",
        "3:11: error: source[0].secrets: there is no secret, so no request could be verified",
    );
    let pinned = |lines: &str| format!("provider = \"google-pubsub\"\nsecrets = -\n{lines}");
    check(
        &pinned("config = { audience = \"a\" }"),
        "1:1: error: source[0].config: `config.email` is missing, and this scheme signs it",
    );
    check(
        &pinned("config = { audience = \"a\", email = 7 }"),
        "4:36: error: source[0].config.email: integer does not fit here",
    );
    check(
        "config = { name = \"a\" }",
        "2:19: error: source[0].config.name: the scheme does not sign `{config:name}`",
    );
    let unproven = |line: &str, column: usize, key: &str| {
        let text = source(&format!("provider = -\nsecrets = -\nverify = \"none\"\n{line}"));
        let warning = "4:10: warning: source[0].verify: nothing proves who sends to this source";
        let error =
            format!("5:{column}: error: source[0].{key}: `{key}` has no effect with `verify = \"none\"`");
        assert_eq!(problems(&parse(&text)), [warning.to_owned(), error]);
    };
    unproven("token = { header = \"X-Token\" }", 9, "token");
    unproven("window = { past = \"1s\" }", 10, "window");
    unproven("enforcement = \"observe\"", 15, "enforcement");
    unproven("replay_guard = \"off\"", 16, "replay_guard");
    unproven("on_missing_id = \"reject\"", 17, "on_missing_id");
    unproven("public_url = \"https://a\"", 14, "public_url");
}

#[test]
fn schemes_of_a_sources_own() {
    let text = |scheme: &str| source(&format!("provider = -\nscheme = {{ auth = \"signature\", {scheme} }}"));
    let signature =
        "signature = { from = [\"header:X-S\"], algorithm = \"hmac-sha256\", encoding = \"hex\" }";
    let config = accepted(&text(&format!("{signature}, signed = \"{{body}}\"")));
    assert_eq!(&*config.sources[0].provider, "custom");
    check(&text(signature), "3:10: error: source[0].scheme.signed: `signed` is missing");
    check(
        &text(&format!("{signature}, signed = \"{{url}}{{body}}\"")),
        "1:1: error: source[0].public_url: `public_url` is missing, and this scheme signs the URL",
    );
    let listener = "listen.public_url = \"https://hooks.example.com\"\n".to_owned();
    accepted(&(listener + &text(&format!("{signature}, signed = \"{{url}}{{body}}\""))));
}

#[test]
fn the_rest_of_sources() {
    let check = |line: &str, problem: &str| check(&source(line), problem);
    check("to = -", "1:1: error: source[0].to: `to` is missing");
    check("to = []", "2:6: error: source[0].to: deliveries would be stored and go nowhere");
    check("to = \"b\"", "2:6: error: source[0].to: string does not fit here");
    check("to = [\"b\", \"b\"]", "2:12: error: source[0].to[1]: `b` is named twice");
    check("to = [\"b\", \"elsewhere\"]", "2:12: error: source[0].to[1]: there is no destination `elsewhere`");
    check(
        "to = [{ destination = \"b\", when = \"body.ok && bodi.ok\" }]",
        "2:47: error: source[0].to[0].when: there is no variable `bodi`; there are body, delivery_id, event, headers, method, source",
    );
    check(
        "to = [{ destination = \"b\", when = '''\nevent == 'a' &&\nbody.ok ==''' }]",
        "4:11: error: source[0].to[0].when: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
    );
    check(
        "to = [{ destination = \"b\", when = 1 }]",
        "2:35: error: source[0].to[0].when: integer does not fit here",
    );
    check(
        "to = [{ destination = \"b\", events = [] }]",
        "2:37: error: source[0].to[0].events: no event is chosen",
    );
    check(
        "methods = []",
        "2:11: error: source[0].methods: no method is allowed, so nothing could be received",
    );
    check(
        "methods = [\"post\"]",
        "2:12: error: source[0].methods[0]: `post` cannot be used: methods are upper-case words",
    );
    check(
        "dedup_ttl = \"9m\"",
        "2:13: error: source[0].dedup_ttl: 9m is shorter than the window of source `a`: a captured request could be accepted twice",
    );
    check(
        "body_max = \"2GiB\"",
        "2:12: error: source[0].body_max: `2GiB` cannot be used: it must be from 1B to 512MiB",
    );
    check(
        "body_max = \"300MiB\"",
        "2:12: warning: source[0].body_max: bodies of up to 300MiB are allowed, but `limits.in_flight` is 256MiB: larger ones are never accepted",
    );
    check(
        "rate = \"100\"",
        "2:8: error: source[0].rate: `100` cannot be used: its unit must be one of /s, /m, /h",
    );
    check(
        "allow_addresses = [\"example.com\"]",
        "2:20: error: source[0].allow_addresses[0]: `example.com` cannot be used: it is neither an address nor a network",
    );
    check(
        "allow_subjects = [\"CN=a\"]",
        "2:18: error: source[0].allow_subjects: no client is asked for a certificate, so every request would be refused",
    );
    check("ack = { status = 302 }", "2:18: error: source[0].ack.status: 302 is out of range");
    check(
        "ack = { status = 204, body = \"ok\" }",
        "2:30: error: source[0].ack.body: an answer with 204 has no body",
    );
    check(
        "ack = { content_type = \"a\\nb\" }",
        "2:24: error: source[0].ack.content_type: `a\\nb` cannot be used: failed to parse header value",
    );
    check(
        "sync_deadline = \"2s\"",
        "2:17: error: source[0].sync_deadline: `sync_deadline` has no effect without `mode = \"sync\"`",
    );
    check(
        "mode = \"sink\"\nsync_deadline = \"2s\"",
        "2:8: error: source[0].mode: `sink` is not a choice here",
    );
    check(
        "mode = \"sync\"\nsync_deadline = \"2251ms\"",
        "3:17: error: source[0].sync_deadline: `sync_deadline` of 2251ms leaves too little of `listen.ack_deadline`, 2500ms, for the answer",
    );
    check(
        "mode = \"sync\"\nsync_deadline = \"0s\"",
        "3:17: error: source[0].sync_deadline: `0s` cannot be used: it must be from 1ms to 4999ms",
    );
    check(
        "on_missing_id = \"ignore\"",
        "2:17: error: source[0].on_missing_id: `ignore` is not a choice here",
    );
    check(
        "replay_guard = \"off\"",
        "2:16: warning: source[0].replay_guard: delivery id or time are not signed here, so a captured request can be sent again as a new one",
    );
}

#[test]
fn what_a_source_says_is_in_force() {
    let config = accepted(&source("provider = \"github\"\nname = \"gh\""));
    let github = &config.sources[0];
    assert_eq!((&*github.provider, &*github.path), ("github", "/webhooks/gh"));
    assert_eq!((github.body_max, github.drop_events.as_slice()), (25 << 20, &["ping".to_owned()][..]));
    assert_eq!((github.methods.as_slice(), github.replay_guard), (&[Method::POST][..], ReplayGuard::Absorb));

    let lines = "provider = \"ownstak\"\nbody_max = \"2MiB\"\nmethods = [\"PUT\"]\ntoken = { header = \"X-T\" }\n\
        to = [{ destination = \"b\", events = [\"deployment.*\"] }]\non_missing_id = \"reject\"\n\
        on_duplicate_of_dead = \"absorb\"\ndrop_events = []\nallow_addresses = [\"192.0.2.7\", \"2001:db8::/32\"]";
    let config = accepted(&source(lines));
    let ownstak = &config.sources[0];
    assert_eq!((ownstak.body_max, ownstak.methods.as_slice()), (2 << 20, &[Method::PUT][..]));
    assert_eq!(ownstak.to[0].events, ["deployment.*"]);
    assert!(!ownstak.accept_missing_id && !ownstak.revive_dead && ownstak.drop_events.is_empty());
    assert_eq!(ownstak.allow_addresses.len(), 2);
    assert_eq!(accepted(&section("limits.body = \"3MiB\"")).sources[0].body_max, 3 << 20);
}

#[test]
fn destinations() {
    let check = |line: &str, problem: &str| check(&destination(line), problem);
    let second = |lines: &str| source("") + "[[destination]]\n" + lines;
    crate::support::check(
        &second("name = \"B\"\nurl = \"http://a/\""),
        "10:8: error: destination[1].name: `B` cannot be a name",
    );
    crate::support::check(
        &second("name = \"b\"\nurl = \"http://a/\""),
        "10:8: error: destination[1].name: `b` is taken: line 7 has it already",
    );
    check("url = -", "1:1: error: destination[0].url: `url` is missing");
    for (url, message) in [
        ("ftp://a/", "the URL begins with neither `http://` nor `https://`"),
        ("http:///a", "this is not a URL"),
        ("/a", "the URL has no scheme and host"),
        ("http://user:password@a/", "a URL here must not contain a user name or password"),
        ("http://a/#b", "a fragment (`#…`) is never sent"),
        ("http://a:99999/", "the URL's port is not a number from 0 to 65535"),
        ("http://a/b c", "this is not a URL"),
    ] {
        check(&format!("url = \"{url}\""), &format!("2:7: error: destination[0].url: {message}"));
    }
    check("allow_private = \"no\"", "2:17: error: destination[0].allow_private: string does not fit here");
    for (host, what) in [
        ("127.0.0.1", "a loopback address"),
        ("[::1]", "a loopback address"),
        ("10.1.2.3", "a private address"),
        ("[::ffff:192.168.0.1]", "a private address"),
        ("169.254.0.1", "a link-local address"),
        ("0.0.0.0", "the unspecified address"),
    ] {
        let address = host.trim_matches(['[', ']']);
        check(
            &format!("url = \"http://{host}:3000/\"\nallow_private = false"),
            &format!("2:7: error: destination[0].url: {address} is {what}, and `allow_private` is false"),
        );
    }
    check(
        "url = \"http://169.254.169.254/\"",
        "2:7: error: destination[0].url: 169.254.169.254 is the address of a cloud's metadata service",
    );
    for url in ["http://1.1.1.1/", "http://legacy.internal/", "https://[2606:4700::1111]/"] {
        let config = accepted(&destination(&format!("url = \"{url}\"\nallow_private = false")));
        assert!(!config.destinations[0].allow_private);
    }
    assert!(accepted(&destination("")).destinations[0].allow_private);
    check(
        "timeout = \"16m\"",
        "2:11: error: destination[0].timeout: `16m` cannot be used: it must be from 1ms to 15m",
    );
    check(
        "connect_timeout = \"31s\"",
        "2:19: error: destination[0].connect_timeout: `31s` cannot be used: it must be from 1ms to 30s",
    );
    check("concurrency = 0", "2:15: error: destination[0].concurrency: 0 is out of range");
    check("concurrency = 1025", "2:15: error: destination[0].concurrency: 1025 is out of range");
    check(
        "concurrency = \"some\"",
        "2:15: error: destination[0].concurrency: this is not a number of attempts",
    );
    check(
        "concurrency = { adaptive = 2000 }",
        "2:28: error: destination[0].concurrency.adaptive: 2000 is out of range",
    );
    check("concurrency = {}", "2:15: error: destination[0].concurrency.adaptive: `adaptive` is missing");
    check("breaker = \"on\"", "2:11: error: destination[0].breaker: `on` is not a choice here");
    check("breaker = { failures = 0 }", "2:24: error: destination[0].breaker.failures: 0 is out of range");
    check(
        "breaker = { probe_after = \"10m\", probe_max = \"5m\" }",
        "2:46: error: destination[0].breaker.probe_max: the longest pause is shorter than the first one",
    );
    check("order = \"random\"", "2:9: error: destination[0].order: `random` is not a choice here");
    check(
        "order = { key = \"site_id\" }",
        "2:17: error: destination[0].order.key: `site_id` cannot be used: it does not say where to look",
    );
    check("order = {}", "2:9: error: destination[0].order.key: `key` is missing");
    check(
        "order = \"strict\"\non_dead = \"stop\"",
        "3:11: error: destination[0].on_dead: `stop` is not a choice here",
    );
    check(
        "on_dead = \"continue\"",
        "2:11: error: destination[0].on_dead: `on_dead` has no effect without `order`",
    );
    check(
        "template = \"builtin:slak\"",
        "2:12: error: destination[0].template: there is no template `builtin:slak`",
    );
    check(
        "template = \"t.j2\"",
        "2:12: error: destination[0].template: /nonexistent/t.j2 cannot be read: No such file or directory (os error 2)",
    );
    check(
        "content_type = \"text/plain\"",
        "2:16: error: destination[0].content_type: `content_type` has no effect without `template`",
    );
    check(
        "template_values = { a = \"b\" }",
        "2:19: error: destination[0].template_values: `template_values` has no effect without `template`",
    );
    check(
        "method = \"post\"",
        "2:10: error: destination[0].method: `post` cannot be used: methods are upper-case words",
    );
    check(
        "remove_headers = [\"a b\"]",
        "2:19: error: destination[0].remove_headers[0]: `a b` cannot be used: invalid HTTP header name",
    );
    check(
        "rename_headers = { X-A = \"webhook-id\" }",
        "2:26: error: destination[0].rename_headers.X-A: `webhook-id` is set by the gateway",
    );
    check(
        "url = \"http://127.0.0.1:1/{evnt}\"",
        "2:27: error: destination[0].url: `{evnt}` is no value of a delivery; there are {event}, {source}, {delivery_id}, {id}, {json:/pointer}, {header:NAME}, {query:NAME} or {form:NAME}",
    );
    check(
        "url = \"http://{event}:1/\"",
        "2:7: error: destination[0].url: values of a delivery may stand in the path and the query of a URL only",
    );
    check("url = \"http://127.0.0.1:1/{event\"", "2:27: error: destination[0].url: the brace is not closed");
    crate::support::check(
        &second("name = \"c\"\nurl = \"http://a/\""),
        "10:8: warning: destination[1].name: no source forwards to this destination",
    );
}

#[test]
fn concurrency_and_order_are_what_the_file_says() {
    let read = |line: &str| (*accepted(&destination(line)).destinations[0]).clone();
    let bound = |bound| Concurrency::Adaptive(NonZeroUsize::new(bound).unwrap());
    assert_eq!(read("concurrency = \"adaptive\"").concurrency, bound(256));
    assert_eq!(read("concurrency = { adaptive = 64 }").concurrency, bound(64));
    assert_eq!(read("concurrency = 7").concurrency, Concurrency::Fixed(NonZeroUsize::new(7).unwrap()));

    let order = |line: &str| read(line).order.map(|order| (*order).clone());
    let by = |place: &str, on_dead| Some(Order::new(By::Value(place.parse().unwrap()), on_dead));
    assert_eq!((order(""), order("order = \"none\"")), (None, None));
    assert_eq!(order("order = \"strict\""), Some(Order::new(By::Strict, OnDead::Park)));
    let pointer = "order = { key = \"/data/site_id\" }";
    assert_eq!(order(pointer), by("json:/data/site_id", OnDead::Park));
    assert_eq!(
        order(&format!("{pointer}\non_dead = \"continue\"")),
        by("json:/data/site_id", OnDead::Continue)
    );
    assert_eq!(order("order = { key = \"header:X-Site\" }"), by("header:x-site", OnDead::Park));
}

#[test]
fn how_the_gateway_proves_itself_to_a_backend() {
    let line = "auth = { basic = { user = \"gate\", password = { value = \"way:1\" } } }";
    let headers = accepted(&destination(line)).destinations[0].headers.clone();
    assert_eq!(headers.len(), 1);
    assert_eq!(
        (headers[0].0.as_str(), headers[0].1.as_bytes()),
        ("authorization", &b"Basic Z2F0ZTp3YXk6MQ=="[..])
    );
    assert!(headers[0].1.is_sensitive());
    let check = |line: &str, problem: &str| check(&destination(line), problem);
    check(
        &format!("headers = {{ authorization = \"x\" }}\n{line}"),
        "3:8: error: destination[0].auth: `headers` sets `Authorization` as well",
    );
    check("auth = {}", "2:8: error: destination[0].auth.basic: `basic` is missing");
    check(
        "auth = { basic = { user = \"a:b\", password = { value = \"way\" } } }",
        "2:27: error: destination[0].auth.basic.user: a user name has neither a colon nor control characters",
    );
    check(
        "auth = { basic = { user = \"a\", password = { env = \"NONE\" } } }",
        "2:51: error: destination[0].auth.basic.password.env: the environment variable `NONE` is not set",
    );
    check(
        "tls = {}",
        "2:7: error: destination[0].tls: `tls` has no effect: the URL does not begin with `https://`",
    );
    let tls = |lines: &str| destination(&format!("url = \"https://127.0.0.1/\"\ntls = {{ {lines} }}"));
    let check = |lines: &str, problem: &str| crate::support::check(&tls(lines), problem);
    check("ca = \"/dev/null\"", "3:14: error: destination[0].tls.ca: it holds no certificate in PEM form");
    check(
        "ca = \"/nowhere.pem\"",
        "3:14: error: destination[0].tls.ca: /nowhere.pem cannot be read: No such file or directory (os error 2)",
    );
    let fresh = || rcgen::generate_simple_self_signed(vec!["gate".to_owned()]).unwrap();
    let (one, other, directory) = (fresh(), fresh(), tempfile::tempdir().unwrap());
    let write = |name: &str, pem: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let cert = write("cert.pem", one.cert.pem());
    let key = write("key.pem", one.signing_key.serialize_pem());
    let wrong = write("other.pem", other.signing_key.serialize_pem());
    let alone = "3:16: error: destination[0].tls.cert: a client certificate is `cert` and `key`";
    check(&format!("cert = \"{cert}\""), alone);
    let found = problems(&parse(&tls(&format!("cert = \"{cert}\", key = \"{wrong}\""))));
    let problem = "error: destination[0].tls.key: the key cannot be used with `cert`";
    assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
    let own = accepted(&tls(&format!("ca = \"{cert}\", cert = \"{cert}\", key = \"{key}\"")));
    let own = &own.destinations[0].tls;
    assert_eq!((own.authorities.len(), own.identity.as_ref().unwrap().chain.len()), (1, 1));
}

#[test]
fn retries() {
    let check = |line: &str, problem: &str| check(&destination(line), problem);
    check(
        "retry = { initial = \"0s\" }",
        "2:21: error: destination[0].retry.initial: `0s` cannot be used: it must be from 1ms to 30d",
    );
    for factor in ["0.5", "11", "nan"] {
        check(
            &format!("retry = {{ factor = {factor} }}"),
            &format!(
                "2:20: error: destination[0].retry.factor: {} is out of range",
                factor.replace("nan", "NaN")
            ),
        );
    }
    check(
        "retry = { initial = \"10s\", max = \"5s\" }",
        "2:34: error: destination[0].retry.max: the longest pause is shorter than the first one",
    );
    check(
        "retry = { schedule = [\"1s\"], factor = 2 }",
        "2:39: error: destination[0].retry.factor: `factor` has no effect beside `schedule`",
    );
    check(
        "retry = { schedule = [] }",
        "2:22: error: destination[0].retry.schedule: the schedule has no pause",
    );
    check(
        "retry = { schedule = [\"2d\", \"2d\"] }",
        "2:22: warning: destination[0].retry.schedule: the schedule lasts 4d, but deliveries are given up after 3d",
    );
    check(
        "retry = { jitter = \"half\" }",
        "2:20: error: destination[0].retry.jitter: `half` is not a choice here",
    );
    for (status, message) in [
        ("\"2xx\"", "`2xx` cannot be used: a 2xx means that the backend has accepted it"),
        ("\"204\"", "`204` cannot be used: a 2xx means that the backend has accepted it"),
        ("\"6xx\"", "`6xx` cannot be used: it is no status of a failure"),
        ("\"often\"", "`often` cannot be used: it is no status of a failure"),
        ("200", "200 is out of range"),
    ] {
        check(
            &format!("retry_statuses = [{status}]"),
            &format!("2:19: error: destination[0].retry_statuses[0]: {message}"),
        );
    }
    let config = accepted(&destination(
        "retry = { schedule = [\"10s\", \"5m\"], jitter = \"none\" }\nretry_statuses = [429, \"5xx\", \"404\"]",
    ));
    let retry = &config.destinations[0].retry;
    assert_eq!(retry.schedule, Schedule::List(vec![Duration::from_secs(10), Duration::from_mins(5)]));
    assert!(!retry.full_jitter);
    assert_eq!(
        retry.statuses,
        [StatusPattern::Exact(429), StatusPattern::Class(5), StatusPattern::Exact(404)]
    );
    let config = accepted(&destination("retry = { initial = \"2h\" }\nbreaker = \"off\"\ntimeout = \"2s\""));
    let destination = &config.destinations[0];
    let two_hours = Duration::from_hours(2);
    let expected = Schedule::Exponential { initial: two_hours, factor: 2.0, max: two_hours };
    assert_eq!((&destination.retry.schedule, destination.breaker), (&expected, None));
    assert_eq!(destination.connect_timeout, Duration::from_secs(2));
}

#[test]
fn a_destination_knows_its_secrets() {
    let config = accepted(&destination(
        "sign = { scheme = \"standard-webhooks\", secret = { env = \"WHSEC\" } }\n\
         headers = { X-Key = { value = \"of-a-header\" }, x-tenant = \"blue\" }\n\
         auth = { basic = { user = \"gate\", password = { value = \"way\" } } }\n\
         template = \"builtin:pagerduty\"\n\
         template_values = { routing_key = { value = \"of-a-template\" }, colour = \"red\" }",
    ));
    let secrets: Vec<_> = config.destinations[0].secrets().map(String::from_utf8_lossy).collect();
    assert_eq!(secrets.len(), 4, "{secrets:?}");
    assert_eq!(secrets[..3], ["of-a-header", "Basic Z2F0ZTp3YXk=", "of-a-template"]);
    assert!(secrets[3].starts_with("whsec_"), "{secrets:?}");
}

#[test]
fn countersignature_and_headers() {
    let check = |line: &str, problem: &str| check(&destination(line), problem);
    let whsec = "secret = { env = \"WHSEC\" }";
    let config = accepted(&destination(&format!(
        "sign = {{ scheme = \"standard-webhooks\", {whsec} }}\nheaders = {{ X-Key = {{ env = \"SET\" }}, x-tenant = \"blue\" }}"
    )));
    let destination = &config.destinations[0];
    assert!(destination.sign.is_some());
    let headers: Vec<_> =
        destination.headers.iter().map(|(name, value)| (name.as_str(), value.is_sensitive())).collect();
    assert_eq!(headers, [("x-key", true), ("x-tenant", false)]);

    check(
        &format!("sign = {{ scheme = \"providers\", {whsec} }}"),
        "2:19: error: destination[0].sign.scheme: `providers` is not a choice here",
    );
    check(
        "sign = { scheme = \"standard-webhooks\" }",
        "2:8: error: destination[0].sign.secret: `secret` is missing",
    );
    check(
        "sign = { scheme = \"standard-webhooks\", secret = { value = \"this is not base64\" } }",
        "2:59: error: destination[0].sign.secret.value: the secret must be base64, with or without `whsec_` before it",
    );
    check(
        "headers = { \"X Key\" = \"a\" }",
        "2:23: error: destination[0].headers.X Key: `X Key` cannot be the name of a header",
    );
    check(
        "headers = { X-Key = \"a\\nb\" }",
        "2:21: error: destination[0].headers.X-Key: a header cannot have this value",
    );
    check(
        "headers = { X-Key = { env = \"UNSET\" } }",
        "2:29: error: destination[0].headers.X-Key.env: the environment variable `UNSET` is not set",
    );
    check(
        "headers = { x-key = \"a\", X-KEY = \"b\" }",
        "2:21: error: destination[0].headers.x-key: `x-key` is there twice; case does not matter",
    );
    for name in
        ["Content-Length", "transfer-encoding", "Connection", "Host", "Countersign-Source", "webhook-id"]
    {
        check(
            &format!("headers = {{ {name} = \"a\" }}"),
            &format!(
                "2:{}: error: destination[0].headers.{name}: `{}` is set by the gateway",
                16 + name.len(),
                name.to_lowercase()
            ),
        );
    }
}

/// With the secret of a published or foreign request of theirs.
#[test]
fn every_provider_can_be_configured() {
    let vectors: Vec<serde_json::Value> = serde_json::from_str(include_str!("../vectors.json")).unwrap();
    // What JSON escapes, TOML escapes alike.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    for preset in countersign::verify::presets() {
        let name = &*preset.name;
        let of = |vector: &&serde_json::Value| {
            vector["preset"] == name && vector["secret"].as_str().unwrap().len() >= 8
        };
        let vector = vectors.iter().find(of).unwrap_or_else(|| panic!("no request of {name}"));
        let told = vector["config"].as_object().into_iter().flatten();
        let told: Vec<_> =
            told.map(|(key, value)| format!("{key} = {}", text(value.as_str().unwrap()))).collect();
        let config =
            if told.is_empty() { String::new() } else { format!("config = {{ {} }}\n", told.join(", ")) };
        let url = if preset.scheme.signs_url() { "public_url = \"https://hooks.example.com\"\n" } else { "" };
        let secret = text(vector["secret"].as_str().unwrap().trim());
        let lines = format!("provider = \"{name}\"\nsecrets = [{{ value = {secret} }}]\n{config}{url}");
        // Some of their secrets are short, which is warned of.
        let config = parse(&source(&lines)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let source = &config.sources[0];
        assert_eq!((&*source.provider, &source.methods), (name, &preset.methods));
        let guard = if preset.guards_replays { ReplayGuard::Absorb } else { ReplayGuard::Off };
        assert_eq!(source.replay_guard, guard, "{name}");
    }
}

#[test]
fn what_a_source_says_of_handshakes_has_to_fit_its_provider() {
    let meta = "provider = \"meta\"\nhandshake = { verify_token = { env = \"SET\" } }";
    assert_eq!(accepted(&source(meta)).sources.len(), 1);
    check(
        &source("handshake = { verify_token = { env = \"SET\" } }"),
        "2:30: error: source[0].handshake.verify_token: this provider has no handshake `hub-challenge`",
    );
    check(
        &source("provider = \"azure-event-grid\"\nhandshake = { origins = [\"a b\"] }"),
        "3:26: error: source[0].handshake.origins[0]: `a b` cannot be used: it has other characters than letters, digits and `_-.`",
    );
    check(
        &source("provider = \"meta\"\nforward_handshake = true"),
        "3:21: error: source[0].forward_handshake: this provider has no handshake that it signs, and nothing else is forwarded",
    );
    assert!(accepted(&source("provider = \"slack\"\nforward_handshake = true")).sources[0].forward_handshake);
    let braintree = "provider = \"braintree\"\nsecrets = [{ value = \"a-secret-of-some-length\" }]\n";
    assert!(problems(&parse(&source(braintree))).iter().any(|problem| {
        problem.contains(
            "warning: source[0]: the provider's challenge cannot be answered without its public key",
        )
    }));
    accepted(&source(&format!("{braintree}handshake = {{ public_key = \"abc\" }}")));
    // Its secret comes with the handshake.
    assert_eq!(
        accepted(&source("provider = \"asana\"\nsecrets = -")).sources[0].verifier.secret_names().count(),
        0
    );
}

#[test]
fn a_source_in_sync_mode_waits_for_one_backend_within_the_answers_deadline() {
    let deadline = |text: &str| accepted(text).sources[0].sync_deadline;
    assert_eq!(deadline(&source("")), None);
    assert_eq!(deadline(&source("mode = \"async\"")), None);
    assert_eq!(deadline(&source("mode = \"sync\"")), Some(Duration::from_secs(2)));
    let own = source("mode = \"sync\"\nsync_deadline = \"2250ms\"");
    assert_eq!(deadline(&own), Some(Duration::from_millis(2_250)));
    // The default needs room, too.
    let short = source("mode = \"sync\"\n[listen]\nack_deadline = \"2s\"");
    assert!(
        problems(&parse(&short)).iter().any(|problem| problem.contains("`listen.ack_deadline`, 2s")),
        "{short}"
    );
    let several = "source = [{ name = \"a\", provider = \"hostwares\", secrets = [{ env = \"SET\" }], to = [\"b\", \"c\"], mode = \"sync\" }]\n\
        destination = [{ name = \"b\", url = \"http://b.example/\" }, { name = \"c\", url = \"http://c.example/\" }]";
    let found = problems(&parse(several));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("source[0].mode: the source has several destinations"), "{found:?}");
}

#[test]
fn a_destination_may_be_signed_as_the_provider_does_and_with_a_private_key() {
    let sign = |line: &str| accepted(&destination(line)).destinations[0].sign.clone();
    let as_provider = sign("sign = { scheme = \"provider\", secret = { env = \"SET\" } }");
    assert!(matches!(as_provider, Some(Countersign::AsProvider(signers)) if *signers[0].0 == *"a"));
    let seed = "whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    let asymmetric =
        sign(&format!("sign = {{ scheme = \"standard-webhooks\", secret = {{ value = \"{seed}\" }} }}"));
    assert!(format!("{asymmetric:?}").contains("Ed25519"), "{asymmetric:?}");
}

#[test]
fn what_cannot_be_signed_as_its_provider_does_is_refused_and_says_why() {
    let check = |provider: &str, secret: &str, why: &str| {
        let secrets = if provider == "none" {
            "provider = -\nsecrets = -\nverify = \"none\"\n".to_owned()
        } else {
            format!("provider = \"{provider}\"\nsecrets = [{{ value = \"{secret}\" }}]\n")
        };
        let text = source(&format!("name = \"s\"\n{secrets}")).replace(
            "[[destination]]",
            "[[destination]]\nsign = { scheme = \"provider\", secret = { env = \"SET\" } }",
        );
        let found = problems(&parse(&text));
        let expected =
            format!("destination[0].sign.scheme: source `s` (`{provider}`) cannot be signed again: {why}");
        assert!(found.iter().any(|problem| problem.ends_with(&expected)), "{found:#?}");
    };
    let twilio = "name = \"s\"\nprovider = \"twilio-json\"\nsecrets = [{ value = \"a-secret-of-some-length\" }]\n\
        public_url = \"https://hooks.example.com\"\n";
    let text = source(twilio).replace(
        "[[destination]]",
        "[[destination]]\ntemplate = \"builtin:slack\"\nsign = { scheme = \"provider\", secret = { env = \"SET\" } }",
    );
    let found = problems(&parse(&text));
    assert!(
        found.iter().any(|problem| problem.contains("signs a digest of the body that came")),
        "{found:#?}"
    );
    const AS_IT_CAME: &str = "and not in a header; body and query are sent as they came";
    const TEXT: &str = "a-secret-of-some-length";
    check("linear", TEXT, &format!("its time stands at `json:/webhookTimestamp` {AS_IT_CAME}"));
    check("mailgun", TEXT, &format!("its signature stands at `json:/signature/signature` {AS_IT_CAME}"));
    check("azure-event-grid", TEXT, &format!("its signature stands at `query:token` {AS_IT_CAME}"));
    check(
        "contentful",
        &"c".repeat(64),
        "its signatures can be verified, not made: only the provider has the key",
    );
    check("none", "", "it verifies nothing, so there is no format to sign in");
    check(
        "discord",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "signing takes the private key for ed25519 (PKCS#8, as PEM or base64; of Ed25519 also the seed): the provider keeps its own, so make a key pair of your own, and let the source have the public key as its secret",
    );
}

#[test]
fn a_template_is_compiled_when_the_file_is_read() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("t.j2"), "{\n  {% if body.x }}\n}").unwrap();
    let result = crate::support::parse_in(directory.path(), &destination("template = \"t.j2\""));
    let found = problems(&result);
    assert_eq!(found.len(), 1, "{found:#?}");
    let expected = "2:12: error: destination[0].template: t.j2:2:16: syntax error";
    assert!(found[0].starts_with(expected), "{found:#?}");
    let config = accepted(&destination(
        "template = \"builtin:pagerduty\"\ntemplate_values = { routing_key = { env = \"SET\" } }\nmethod = \"PUT\"",
    ));
    let shape = &config.destinations[0].shape;
    assert_eq!(shape.body.as_ref().unwrap().content_type, "application/json");
    assert_eq!(shape.method, Some(Method::PUT));
}
