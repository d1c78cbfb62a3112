//! What senders choose becomes no label: the metrics have as many series after any number of names as before.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::sender::{Post, Wire, every_provider};
use crate::soak;
use crate::support::Gateway;

/// Sent on one connection before their answers are read; more would fill the buffers of both sides.
const BATCH: usize = 100;

/// Names and labels of every series.
fn series(gateway: &Gateway) -> BTreeSet<String> {
    let page = gateway.admin_get("/metrics").1;
    let names =
        page.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0);
    names.map(str::to_owned).collect()
}

#[test]
fn ten_thousand_names_of_each_kind_make_no_series() {
    let backend = Backend::accepting();
    let gateway = Gateway::start_with(&every_provider(&backend), |command| {
        command.env("RUST_LOG", "info");
    });
    let before = series(&gateway);
    assert!(before.len() > 100);
    let (count, stored) = (10_000, soak(300, 10_000));
    let requests = (0..count).map(|n| {
        // Nowhere, in a method of its own; a source's path for a method, a host, a signature that nobody has sent.
        match n % 2 {
            0 => format!("M{n:x} /p/{n:x}?q{n}=1 HTTP/1.1\r\nHost: h{n}.example\r\nContent-Length: 0\r\n\r\n"),
            _ => format!(
                "POST /webhooks/github HTTP/1.1\r\nHost: h{n}.example:{}\r\nX-GitHub-Delivery: d-{n}\r\n\
                 X-GitHub-Event: e-{n}\r\nX-N{n}: 1\r\nX-Hub-Signature-256: sha256={n:064x}\r\nContent-Length: 0\r\n\r\n",
                1 + n % 60_000
            ),
        }
        .into_bytes()
    });
    let genuine = (0..stored).map(|n| {
        let id = format!("genuine-{n}");
        Post::signed("github", "/webhooks/github", &id, &format!("event-{n}"), id.as_bytes()).bytes()
    });
    let mut statuses = [0; 600];
    for batch in requests.chain(genuine).collect::<Vec<_>>().chunks(BATCH) {
        let mut wire = Wire::open(gateway.listen).unwrap();
        wire.write(&batch.concat());
        for _ in batch {
            statuses[usize::from(wire.read().unwrap().status)] += 1;
        }
    }
    assert_eq!((statuses[404], statuses[401], statuses[200]), (count / 2, count / 2, stored));
    let began = Instant::now();
    let after = series(&gateway);
    let scraped = began.elapsed();
    println!(
        "{} series before and {} after {} requests, scraped in {scraped:?}",
        before.len(),
        after.len(),
        count + stored
    );
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(after.len(), before.len());
    assert!(scraped.as_secs() < 1);
    assert_eq!(backend.eventually_got(stored).len(), stored);
}
