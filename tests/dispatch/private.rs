//! Where a destination may be is judged on the address that is dialled, however it is written or found.

use std::sync::Arc;

use countersign::config::Destination;
use countersign::forward::{Outcome, Progress};

use crate::backend::{Backend, Reply};
use crate::support::{Gateway, delivery, destination, eventually, retry_late};

fn refusing(url: &str) -> Destination {
    Destination { allow_private: false, retry: retry_late(), ..destination("legacy", url) }
}

/// Nothing is dialled, and the forward waits: what is wrong with the name may be mended.
async fn check(to: Destination, detail: &str) {
    let url = to.url.clone();
    let gateway = Gateway::start([to]);
    gateway.forward(delivery(b"{}"), "legacy");
    let record = gateway.first_record().await;
    assert_eq!((record.outcome, record.status), ("address_refused", None), "{url}: {}", record.detail);
    assert!(record.detail.contains(detail), "{url}: {}", record.detail);
    assert!(matches!(gateway.row().progress, Progress::Waiting { attempts: 1, .. }), "{url}");
    assert_eq!(gateway.attempts("legacy", Outcome::AddressRefused), 1);
}

#[tokio::test]
async fn names_and_spellings_of_this_machine_are_refused_where_private_ones_are() {
    let backend = Backend::always(Reply::status(200)).await;
    let port = backend.address.port();
    for host in
        ["localhost", "127.1", "2130706433", "0x7f000001", "017700000001", "127.0.0.1", "[::ffff:127.0.0.1]"]
    {
        check(refusing(&format!("http://{host}:{port}/")), "a loopback address").await;
    }
    for (host, what) in [
        ("[::1]", "a loopback address"),
        ("0.0.0.0", "the unspecified address"),
        ("0", "the unspecified address"),
    ] {
        check(refusing(&format!("https://{host}:{port}/")), what).await;
    }
    assert_eq!(backend.count(), 0);

    let gateway = Gateway::start([destination("legacy", &format!("http://localhost:{port}/"))]);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("private is allowed by default", || gateway.delivered() == 1).await;
}

#[tokio::test]
async fn metadata_services_are_refused_always() {
    for host in ["169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "2852039166"] {
        let to =
            Destination { retry: retry_late(), ..destination("legacy", &format!("http://{host}/latest/")) };
        check(to, "metadata service").await;
    }
}

#[tokio::test]
async fn a_reload_that_excludes_private_addresses_ends_kept_connections() {
    let backend = Backend::always(Reply::status(200)).await;
    let gateway = Gateway::start([destination("legacy", &backend.url("/"))]);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("it is delivered", || gateway.delivered() == 1).await;
    gateway.lanes.apply(&[Arc::new(refusing(&backend.url("/")))]);
    gateway.forward(delivery(b"{}"), "legacy");
    eventually("it is refused", || gateway.attempts("legacy", Outcome::AddressRefused) == 1).await;
    assert_eq!(backend.count(), 1);
}
