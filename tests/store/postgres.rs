//! The engine that gateways share, on a real server: a database of its own for each test.

use std::sync::Arc;

use async_trait::async_trait;
use countersign::config::Database;
use countersign::metrics::Metrics;
use countersign::store::Outlet;
use countersign::store::postgres::{OpenError, Options, Postgres, open};

use crate::server::Server;
use crate::support::{Engine, Whole};

/// An empty database of the tests' server.
pub(crate) struct Shared {
    pub(crate) url: String,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { url: Server::shared().database() }
    }

    pub(crate) async fn try_open(&self, outlet: Arc<dyn Outlet>) -> Result<Postgres, OpenError> {
        let database = Database::parse(&self.url).unwrap();
        open(Options { database, connections: 4, metrics: Metrics::new() }, outlet).await
    }
}

#[async_trait]
impl Engine for Shared {
    async fn open(&self, outlet: Arc<dyn Outlet>) -> Arc<dyn Whole> {
        Arc::new(self.try_open(outlet).await.unwrap())
    }
}
