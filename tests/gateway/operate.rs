//! Promise: operators see the truth, and can change what is configured without losing a request.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use countersign::clock::Clock;

use crate::backend::{Backend, Reply};
use crate::sender::{Post, SECRET};
use crate::sender::{body, every_provider};
use crate::support::{Gateway, countersign, eventually, run, write_config};

#[test]
fn the_books_balance() {
    let backend = Backend::start(|_, got| {
        Reply::Status(if got.header("countersign-delivery-id") == Some("dies") { 400 } else { 200 })
    });
    let gateway = Gateway::start(&every_provider(&backend));
    let send =
        |id: &str| Post::signed("stripe", "/webhooks/stripe", id, "x", &body(id)).send(gateway.listen).status;
    for id in ["a", "b", "c", "dies", "a", "b"] {
        assert_eq!(send(id), 200);
    }
    let forged = Post { headers: Vec::new(), ..Post::signed("stripe", "/webhooks/stripe", "f", "x", b"{}") };
    for _ in 0..3 {
        assert_eq!(forged.send(gateway.listen).status, 401);
    }
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let requests = |outcome: &str| {
        let series = format!("countersign_ingest_requests_total{{outcome=\"{outcome}\",source=\"stripe\"}}");
        gateway.metric(&series).unwrap()
    };
    assert_eq!((requests("stored"), requests("duplicate"), requests("rejected")), (4.0, 2.0, 3.0));
    let rejections = "countersign_ingest_rejections_total{reason=\"signature_missing\",source=\"stripe\"}";
    assert_eq!(gateway.metric(rejections), Some(3.0));
    let delivered = "countersign_forward_attempts_total{destination=\"legacy\",outcome=\"delivered\"}";
    assert_eq!(gateway.metric(delivered), Some(3.0));
    assert_eq!(gateway.metric("countersign_forward_dead{destination=\"legacy\"}"), Some(1.0));

    // Where nothing is under way, nothing is missing: also after who hung up, after what nobody knows, and after a restart.
    let half = [
        &b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"[..],
        b"Content-Length: 9\r\nstripe-signature: t=1,v1=00\r\n\r\n1",
    ];
    drop(TcpStream::connect(gateway.listen).and_then(|mut stream| stream.write_all(&half.concat())));
    assert_eq!(Post { target: "/nowhere".to_owned(), ..forged }.send(gateway.listen).status, 404);
    let balanced = |gateway: &Gateway| {
        for equation in ["requests", "forwards"] {
            let series = format!("countersign_conservation_imbalance{{equation=\"{equation}\"}}");
            gateway.eventually_metric(&series, 0.0);
        }
    };
    balanced(&gateway);
    let received = |gateway: &Gateway, source| {
        gateway.metric(&format!("countersign_ingest_received_total{{source=\"{source}\"}}")).unwrap()
    };
    assert!((9.0..=10.0).contains(&received(&gateway, "stripe")));
    let forwards = |gateway: &Gateway| {
        [
            "created_total{",
            "settled_total{state=\"delivered\",",
            "settled_total{state=\"dead\",",
            "requeued_total{",
        ]
        .map(|series| {
            let (name, labels) = series.split_once('{').unwrap();
            let labels: Vec<_> = ["destination=\"legacy\""]
                .into_iter()
                .chain(labels.split(',').filter(|label| !label.is_empty()))
                .collect();
            gateway.metric(&format!("countersign_forward_{name}{{{}}}", labels.join(","))).unwrap()
        })
    };
    assert_eq!(forwards(&gateway), [4.0, 3.0, 1.0, 0.0]);
    let gateway = gateway.kill_and_restart();
    balanced(&gateway);
    // A provider's "redeliver": the forward is dead, pending and dead again.
    assert_eq!(
        Post::signed("stripe", "/webhooks/stripe", "dies", "x", &body("dies")).send(gateway.listen).status,
        200
    );
    gateway
        .eventually_metric("countersign_forward_settled_total{destination=\"legacy\",state=\"dead\"}", 1.0);
    assert_eq!(forwards(&gateway), [0.0, 0.0, 1.0, 1.0]);
    balanced(&gateway);
}

#[test]
fn every_series_is_there_from_the_start_and_promtool_accepts_the_page() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    for series in [
        "countersign_ingest_requests_total{outcome=\"stored\",source=\"github\"}",
        "countersign_ingest_rejections_total{reason=\"signature_mismatch\",source=\"github\"}",
        "countersign_ingest_rejections_total{reason=\"no_route\",source=\"unmatched\"}",
        "countersign_ingest_ack_duration_seconds_count{source=\"github\"}",
        "countersign_forward_attempts_total{destination=\"legacy\",outcome=\"delivered\"}",
        "countersign_forward_attempt_duration_seconds_count{destination=\"legacy\"}",
        "countersign_forward_pending{destination=\"legacy\"}",
        "countersign_forward_oldest_age_seconds{destination=\"legacy\"}",
        "countersign_forward_dead{destination=\"legacy\"}",
        "countersign_store_commit_deliveries_count",
        "countersign_ingest_in_flight_bytes",
        "countersign_dedup_cache_entries",
    ] {
        assert_eq!(gateway.metric(series), Some(0.0), "{series}");
    }
    assert_eq!(gateway.metric("countersign_lane_state{destination=\"legacy\",state=\"open\"}"), Some(1.0));
    assert_eq!(gateway.metric("countersign_lane_concurrency{destination=\"legacy\"}"), Some(16.0));
    let (told, is) =
        (gateway.metric("process_resident_memory_bytes").unwrap(), gateway.resident_bytes() as f64);
    assert!((is / 2.0..is * 2.0).contains(&told), "{told} of {is}");

    promtool_accepts(&gateway);
}

/// The page as the most pedantic of its readers sees it.
pub(crate) fn promtool_accepts(gateway: &Gateway) {
    let (_, page) = gateway.admin_get("/metrics");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let judged = promtool.wait_with_output().unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
}

#[test]
fn health_readiness_and_status() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    assert_eq!(gateway.admin_get("/livez").0, 200);
    assert_eq!(gateway.admin_get("/readyz").0, 200);
    assert_eq!(gateway.admin_get("/api/v1/nothing").0, 404);
    Post::signed("github", "/webhooks/github", "d-1", "push", b"{}").send(gateway.listen);
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let (status, document) = gateway.admin_get("/api/v1/status");
    assert_eq!(status, 200);
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["ready"], true);
    let github =
        document["sources"].as_array().unwrap().iter().find(|source| source["name"] == "github").unwrap();
    assert_eq!((&github["stored"], &github["enforcement"]), (&1.into(), &"enforce".into()));
    assert_eq!(document["destinations"][0]["state"], "open");
}

#[test]
fn admin_tokens_are_demanded() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "admin.tokens = [{{ name = \"ops\", role = \"operator\", value = \"a-token-for-operators\" }}]\n{}",
        every_provider(&backend)
    ));
    assert_eq!(gateway.admin_get("/api/v1/status").0, 401);
    assert_eq!(gateway.admin_get("/readyz").0, 200);
    let admin = format!("http://{}", gateway.admin);
    let status = |token: &str| {
        countersign().args(["status", "--json", "--admin", &admin, "--token", token]).output().unwrap()
    };
    assert_eq!(status("wrong").status.code(), Some(1));
    let shown = status("a-token-for-operators");
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    serde_json::from_slice::<serde_json::Value>(&shown.stdout).unwrap();

    for _ in 0..20 {
        gateway.admin_get("/api/v1/status");
    }
    let log = gateway.log();
    let refusals: Vec<_> = log.lines().filter(|line| line.contains("admin request refused")).collect();
    assert!((1..20).contains(&refusals.len()) && refusals[0].contains("127.0.0.1"), "{log}");
}

#[test]
fn a_reload_takes_new_secrets_and_a_bad_file_changes_nothing() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let send = |id: &str, secret: &str| {
        let now = Clock::system().now();
        Post::signed_at("github", "/webhooks/github", id, "push", id.as_bytes(), secret, now)
            .send(gateway.listen)
            .status
    };
    let success = "countersign_config_last_reload_success";
    assert_eq!((send("d-1", SECRET), gateway.metric(success)), (200, Some(1.0)));

    gateway.rewrite(&every_provider(&backend).replace("provider", "porvider"));
    gateway.signal("HUP");
    gateway.eventually_metric(success, 0.0);
    assert_eq!(send("d-2", SECRET), 200);
    assert!(gateway.log().contains("did you mean `provider`?"), "{}", gateway.log());

    let rotated = "whsec_cm90YXRlZC1yb3RhdGVkLXJvdGF0ZWQtcm90YXRlZDEyMzQ=";
    gateway.rewrite(&every_provider(&backend).replace(SECRET, rotated));
    gateway.signal("HUP");
    gateway.eventually_metric(success, 1.0);
    assert_eq!((send("d-3", SECRET), send("d-3", rotated)), (401, 200));
}

#[test]
fn tls_with_http2_by_alpn_and_a_certificate_that_changes_while_running() {
    let certified = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let backend = Backend::accepting();
    let directory = tempfile::tempdir().unwrap();
    let write = |certified: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        std::fs::write(directory.path().join("cert.pem"), certified.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    };
    write(&certified("first.example"));
    let gateway = Gateway::start(&format!(
        "listen.tls = {{ cert = \"{0}/cert.pem\", key = \"{0}/key.pem\" }}\n{1}",
        directory.path().display(),
        every_provider(&backend)
    ));
    // openssl as an independent client; what it sends after the handshake is HTTP/1.1.
    let dial = |alpn: &str, request: &str| {
        let mut client = Command::new("openssl")
            .args(["s_client", "-connect", &gateway.listen.to_string(), "-alpn", alpn, "-ign_eof"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        client.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&client.wait_with_output().unwrap().stdout).into_owned()
    };
    let request = "POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let answer = dial("http/1.1", request);
    assert!(answer.contains("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("rcgen") || answer.contains("first.example"), "{answer}");
    // A bad preface ends the connection at once; what was negotiated is what matters.
    assert!(dial("h2,http/1.1", "GET / HTTP/1.1\r\n\r\n").contains("ALPN protocol: h2"));

    write(&certified("second.example"));
    gateway.signal("HUP");
    eventually("the new certificate is served", || gateway.log().contains("configuration reloaded"));
    std::fs::write(directory.path().join("cert.pem"), "garbage").unwrap();
    gateway.signal("HUP");
    gateway.eventually_admin("/metrics", "countersign_config_last_reload_success 0");
    assert!(dial("http/1.1", request).contains("HTTP/1.1 404"));
}

#[test]
fn one_process_per_data_directory() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let second = countersign().arg("run").arg("--config").arg(gateway.config_path()).output().unwrap();
    assert_eq!(second.status.code(), Some(74));
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("in use") && text.contains("data"), "{text}");
    assert!(second.stdout.is_empty());
}

#[test]
fn status_tells_which_secrets_are_used_and_what_to_do_about_them() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!(
        "[[source]]\nname = \"gh\"\nprovider = \"github\"\nto = [\"legacy\"]\nsecrets = [\
         {{ name = \"new\", value = \"a-new-secret-0123456789\" }}, {{ name = \"old\", value = \"{SECRET}\" }}]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    ));
    assert_eq!(Post::signed("github", "/webhooks/gh", "d-1", "push", b"{}").send(gateway.listen).status, 200);
    let uses = |secret: &str| {
        gateway.metric(&format!("countersign_verify_secret_uses_total{{secret=\"{secret}\",source=\"gh\"}}"))
    };
    assert_eq!((uses("new"), uses("old")), (Some(0.0), Some(1.0)));
    let advice = |secret: &str, advice: &str| {
        let labels = format!("advice=\"{advice}\",secret=\"{secret}\",source=\"gh\"");
        gateway.metric(&format!("countersign_verify_secret_advice{{{labels}}}"))
    };
    assert_eq!(
        [advice("new", "only_old_matches"), advice("new", "retire"), advice("old", "only_old_matches")],
        [Some(1.0), Some(0.0), Some(0.0)]
    );
    let admin = format!("http://{}", gateway.admin);
    let text = String::from_utf8(run(&["status", "--admin", &admin]).stdout).unwrap();
    assert!(text.contains("WARNING: new: not used yet, only old matches"), "{text}");
    let document: serde_json::Value = serde_json::from_str(&gateway.admin_get("/api/v1/status").1).unwrap();
    let secrets = &document["sources"][0]["secrets"];
    assert_eq!((&secrets[0]["uses"], &secrets[0]["warning"]), (&0.into(), &true.into()), "{secrets}");
    assert_eq!(
        (&secrets[1]["uses"], &secrets[1]["advice"]),
        (&1.into(), &serde_json::Value::Null),
        "{secrets}"
    );
    assert!(secrets[1]["last_used_at"].is_string(), "{secrets}");

    // An alert must not go on about a secret that has been taken back.
    gateway.rewrite(&without_the_new_secret(&backend));
    assert_eq!(run(&["reload", "--admin", &admin]).status.code(), Some(0));
    assert_eq!([advice("new", "only_old_matches"), advice("old", "only_old_matches")], [None, Some(0.0)]);
}

fn without_the_new_secret(backend: &Backend) -> String {
    format!(
        "[[source]]\nname = \"gh\"\nprovider = \"github\"\nto = [\"legacy\"]\n\
         secrets = [{{ name = \"old\", value = \"{SECRET}\" }}]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    )
}

#[test]
fn the_metrics_tell_readiness_and_how_near_the_disk_is_to_its_reserve() {
    let backend = Backend::accepting();
    let directory = Arc::new(tempfile::tempdir().unwrap());
    write_config(directory.path(), &every_provider(&backend));
    let file = directory.path().join("countersign.toml");
    let shown = |reserve: &str| {
        let text = std::fs::read_to_string(&file).unwrap();
        let key = text.lines().find(|line| line.starts_with("store.disk_reserve")).unwrap();
        std::fs::write(&file, text.replace(key, &format!("store.disk_reserve = \"{reserve}\""))).unwrap();
        let gateway = Gateway::start_in(Arc::clone(&directory), |_| ());
        let metric = |name: &str| gateway.metric(&format!("countersign_{name}")).unwrap();
        let near = metric("store_disk_free_bytes") < metric("store_disk_reserve_bytes");
        (gateway.admin_get("/readyz").0, metric("ready"), near)
    };
    assert_eq!(shown("1MiB"), (200, 1.0, false));
    assert_eq!(shown("900TiB"), (503, 0.0, true));
}

/// After a restart nothing had been known of the week before it, and no secret was ever safe to retire.
#[test]
fn what_is_known_of_secrets_outlives_a_restart() {
    const NEW: &str = "a-new-secret-0123456789";
    let backend = Backend::accepting();
    let mut gateway = Gateway::start(&format!(
        "[[source]]\nname = \"gh\"\nprovider = \"github\"\nto = [\"legacy\"]\nsecrets = [\
         {{ name = \"new\", value = \"{NEW}\" }}, {{ name = \"old\", value = \"{SECRET}\" }}]\n\
         [[destination]]\nname = \"legacy\"\nurl = \"{}\"\n",
        backend.url()
    ));
    assert_eq!(Post::signed("github", "/webhooks/gh", "d-1", "push", b"{}").send(gateway.listen).status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let database = rusqlite::Connection::open(gateway.directory().join("data/countersign.db")).unwrap();
    let days_pass =
        "UPDATE secret_use SET since = since - 10 * 86400000, last_used = last_used - 8 * 86400000";
    assert_eq!(database.execute(days_pass, []).unwrap(), 2);
    drop(database);
    let gateway = Gateway::start_in(gateway.directory_held(), |_| ());
    let now = Clock::system().now();
    let with_new = Post::signed_at("github", "/webhooks/gh", "d-2", "push", b"{}", NEW, now);
    assert_eq!(with_new.send(gateway.listen).status, 200);
    let admin = format!("http://{}", gateway.admin);
    let text = String::from_utf8(run(&["status", "--admin", &admin]).stdout).unwrap();
    assert!(text.contains("old: unused for 8 days, safe to retire"), "{text}");
    let document: serde_json::Value = serde_json::from_str(&gateway.admin_get("/api/v1/status").1).unwrap();
    let secrets = &document["sources"][0]["secrets"];
    assert_eq!((&secrets[0]["uses"], &secrets[1]["uses"]), (&1.into(), &1.into()), "{secrets}");
    let last = "countersign_verify_secret_last_used_timestamp_seconds{secret=\"old\",source=\"gh\"}";
    let days = (now.as_second() as f64 - gateway.metric(last).unwrap()) / 86_400.0;
    assert!((7.9..8.1).contains(&days), "{days}");
}

/// It had been taken for another path.
#[test]
fn the_name_of_a_source_may_be_anything_in_a_command() {
    let gateway = Gateway::start(&every_provider(&Backend::accepting()));
    let admin = format!("http://{}", gateway.admin);
    let output = run(&["handed-over", "../no source?#", "--admin", &admin]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("404 Not Found: there is no such source"), "{text}");
}
