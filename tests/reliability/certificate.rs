//! Certificates that are replaced under load, the way that automatic renewals do it: no handshake and no request fails,
//! and the next connection is shown the new one.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::CertificateParams;
use rustls::ALL_VERSIONS;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::ending::Ending;
use crate::sender::{Post, body, every_provider};
use crate::soak;
use crate::support::{Gateway, write_config};
use crate::tls::{Authority, Issued, NAME, client, open};

#[test]
fn certificates_are_replaced_under_load_without_a_failed_request() {
    let root = Authority::new();
    let issue = || root.issue(&CertificateParams::new([NAME.to_owned()].as_slice()).unwrap());
    let directory = Arc::new(TempDir::new().unwrap());
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let write = |issued: &Issued| {
        std::fs::write(&cert, issued.certificate.pem()).unwrap();
        std::fs::write(&key, issued.key.serialize_pem()).unwrap();
    };
    write(&issue());
    let backend = Backend::accepting();
    let tls = "listen.tls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
    write_config(directory.path(), &format!("{tls}{}", every_provider(&backend)));
    let gateway = Gateway::start_in(Arc::clone(&directory), |command| {
        command.env("RUST_LOG", "countersign=info");
    });
    let client = Arc::new(client(&[root.der()], None, ALL_VERSIONS));
    let connect = || open(&client, gateway.listen);

    let (stop, acked) = (AtomicBool::new(false), Mutex::new(HashSet::new()));
    let post = || {
        let id = format!("d-{}", fastrand::u64(..));
        (Post::signed("stripe", "/webhooks/stripe", &id, "x", &body(&id)), body(&id))
    };
    let on_new_connections = || {
        while !stop.load(Ordering::Relaxed) {
            let (post, body) = post();
            let mut wire = connect();
            wire.write(&post.with("Connection", "close").bytes());
            assert_eq!(wire.read().expect("the handshake succeeds").status, 200);
            acked.lock().unwrap().insert(body);
        }
    };
    let on_one_connection = || {
        let mut wire = connect();
        while !stop.load(Ordering::Relaxed) {
            let (post, body) = post();
            wire.write(&post.bytes());
            let answer = wire.read().expect("a new certificate closes no connection");
            assert_eq!(answer.status, 200);
            acked.lock().unwrap().insert(body);
            if answer.header("connection") == Some("close") {
                // It has carried its thousand.
                wire = connect();
            }
        }
    };
    let swaps = soak(30, 300);
    thread::scope(|scope| {
        let _ending = Ending(&stop);
        scope.spawn(on_new_connections);
        scope.spawn(on_new_connections);
        scope.spawn(on_one_connection);
        let reload = |outcome: &str| {
            let series = format!("countersign_config_reloads_total{{outcome=\"{outcome}\"}}");
            let before = gateway.metric(&series).unwrap();
            gateway.signal("HUP");
            gateway.eventually_metric(&series, before + 1.0);
        };
        let shown = || {
            let mut wire = connect();
            wire.stream.conn.complete_io(&mut wire.stream.sock).unwrap();
            wire.stream.conn.peer_certificates().unwrap()[0].clone()
        };
        for swap in 0..swaps {
            let (before, new) = (shown(), issue());
            if swap % 3 == 0 {
                // The reload comes between the two files.
                std::fs::write(&cert, new.certificate.pem()).unwrap();
                reload("refused");
                assert_eq!(shown(), before);
            }
            write(&new);
            reload("succeeded");
            assert_eq!(&shown(), new.certificate.der());
        }
    });
    let rejected = "countersign_ingest_requests_total{outcome=\"rejected\",source=\"stripe\"}";
    assert_eq!(gateway.metric(rejected), Some(0.0));
    gateway.eventually_metric("countersign_forward_pending{destination=\"legacy\"}", 0.0);
    let got: HashSet<Vec<u8>> = backend.got().into_iter().map(|got| got.body).collect();
    let acked = acked.into_inner().unwrap();
    assert!(acked.len() > 3 && acked.is_subset(&got), "{} acknowledged, {} got", acked.len(), got.len());
    println!("{swaps} certificates replaced, {} acknowledged, 0 refused, 0 lost", acked.len());
}
