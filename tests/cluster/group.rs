//! Gateways of one configuration and one database.

use std::process::Command;

use crate::backend::Backend;
use crate::sender::{Answer, Post, body, every_provider};
use crate::server::query;
use crate::support::Gateway;

/// What makes a gateway one of several.
pub(crate) const SHARED: &str = "store.engine = \"postgres\"\nstore.url = { env = \"DATABASE_URL\" }\n";

/// A gateway on the database of this URL, with every provider, all to `backend`.
pub(crate) fn gateway(url: &str, backend: &Backend) -> Gateway {
    gateway_with(url, backend, |_| ())
}

/// The same, with an environment that `prepare` has changed.
pub(crate) fn gateway_with(url: &str, backend: &Backend, prepare: impl FnOnce(&mut Command)) -> Gateway {
    // Without chance a retry is seen to wait before it is made.
    let sections = format!("{SHARED}{}retry = {{ jitter = \"none\" }}\n", every_provider(backend));
    Gateway::start_with(&sections, |command| {
        command.env("DATABASE_URL", url);
        prepare(command);
    })
}

/// A delivery of GitHub's, whose signature is good at any time.
pub(crate) fn post(id: &str) -> Post {
    Post::signed("github", "/webhooks/github", id, "push", &body(id))
}

pub(crate) fn send(gateway: &Gateway, id: &str) -> Answer {
    post(id).send(gateway.listen)
}

/// The sum of what the gateways have counted of GitHub's requests.
pub(crate) fn requests(gateways: &[&Gateway], outcome: &str) -> f64 {
    let series = format!("countersign_ingest_requests_total{{outcome=\"{outcome}\",source=\"github\"}}");
    gateways.iter().map(|gateway| gateway.metric(&series).unwrap()).sum()
}

/// How many deliveries the database has, by their provider's ids.
pub(crate) fn stored(url: &str) -> Vec<String> {
    let ids = query(url, "SELECT delivery_id FROM countersign.delivery ORDER BY delivery_id");
    ids.lines().map(str::to_owned).collect()
}
