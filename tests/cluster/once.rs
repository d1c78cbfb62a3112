//! Once per delivery id, whichever gateway it comes to.

use std::thread;

use crate::backend::Backend;
use crate::group::{gateway, post, requests, send, stored};
use crate::server::Server;

#[test]
fn a_hundred_copies_over_three_gateways_are_one_delivery() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateways = [gateway(&url, &backend), gateway(&url, &backend), gateway(&url, &backend)];
    let copy = post("d-1");
    let statuses: Vec<u16> = thread::scope(|scope| {
        let send = |n: usize| copy.send(gateways[n % 3].listen).status;
        let copies: Vec<_> = (0..100).map(|n| scope.spawn(move || send(n))).collect();
        copies.into_iter().map(|copy| copy.join().unwrap()).collect()
    });
    assert_eq!(statuses, [200; 100]);
    let all = gateways.each_ref();
    assert_eq!(requests(&all, "stored"), 1.0);
    assert_eq!(requests(&all, "duplicate"), 99.0);
    assert_eq!(stored(&url), ["d-1"]);
    // A later delivery shows that no second forward came before it.
    assert_eq!(send(&gateways[0], "d-2").status, 200);
    let got = backend.eventually_got(2);
    assert_eq!(got.iter().filter(|got| got.header("countersign-delivery-id") == Some("d-1")).count(), 1);
}

#[test]
fn a_claim_holds_across_gateways_and_restarts() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let (mut first, second) = (gateway(&url, &backend), gateway(&url, &backend));
    assert_eq!(send(&first, "d-1").status, 200);
    first.kill();
    assert_eq!(send(&second, "d-1").status, 200);
    let third = gateway(&url, &backend);
    assert_eq!(send(&third, "d-1").status, 200);
    assert_eq!(requests(&[&second, &third], "duplicate"), 2.0);
    assert_eq!(stored(&url), ["d-1"]);
}

/// Captured bytes under a new id, at another gateway than the first.
#[test]
fn a_replay_is_recognised_by_every_gateway() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateways = [gateway(&url, &backend), gateway(&url, &backend)];
    assert_eq!(send(&gateways[0], "d-1").status, 200);
    let replayed = post("d-1").without("x-github-delivery").with("x-github-delivery", "d-2");
    assert_eq!(replayed.send(gateways[1].listen).status, 200);
    assert_eq!(stored(&url), ["d-1"]);
}
