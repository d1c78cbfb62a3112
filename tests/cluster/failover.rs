//! The primary is lost with its disk: its synchronous standby has everything that was acknowledged, and gateways whose URL
//! names both go on there.

use std::thread;

use crate::backend::Backend;
use crate::group::{gateway, send};
use crate::load::{go_on, judge, under_load};
use crate::sender::Post;
use crate::server::{Server, query};
use crate::support::eventually;

/// Of a primary whose commits wait for a standby, with a database's name.
struct Pair {
    primary: Server,
    standby: Server,
    database: String,
}

impl Pair {
    fn start() -> Self {
        let primary = Server::start(&[]);
        let url = primary.database();
        let database = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
        let standby = primary.standby();
        // Only now, and not in what the standby has copied: promoted, it goes on alone.
        primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
        primary.sql("postgres", "SELECT pg_reload_conf()");
        eventually("commits wait for the standby", || {
            primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication") == "sync"
        });
        Self { primary, standby, database }
    }

    /// Leads to whichever of them can be written to.
    fn url(&self) -> String {
        format!(
            "postgres://countersign@127.0.0.1:{},127.0.0.1:{}/{}?sslmode=disable&target_session_attrs=read-write",
            self.primary.port(),
            self.standby.port(),
            self.database
        )
    }
}

#[test]
fn a_standby_takes_the_place_of_a_primary_that_is_lost() {
    let mut pair = Pair::start();
    let backend = Backend::accepting();
    let gateways = [gateway(&pair.url(), &backend), gateway(&pair.url(), &backend)];
    let acknowledged = under_load(&gateways.each_ref(), |count| {
        go_on(count, 30);
        pair.primary.down("QUIT");
        for gateway in &gateways {
            eventually("it is not ready", || gateway.admin_get("/readyz").0 == 503);
        }
        pair.standby.sql("postgres", "SELECT pg_promote()");
        go_on(count, 30);
    });
    for gateway in &gateways {
        eventually("it is ready again", || gateway.admin_get("/readyz").0 == 200);
    }
    judge(&pair.standby.url(&pair.database), &backend, &acknowledged);
}

/// Without its standby a primary commits nothing for good: nobody is told otherwise, and who asks again when the standby is
/// back is told that it is stored, once.
#[test]
fn a_primary_without_its_standby_acknowledges_nothing() {
    let mut pair = Pair::start();
    let backend = Backend::accepting();
    let gateway = gateway(&pair.url(), &backend);
    assert_eq!(send(&gateway, "d-1").status, 200);
    pair.standby.down("QUIT");
    let refused = send(&gateway, "d-2");
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    pair.standby.up();
    eventually("it accepts again", || send(&gateway, "d-2").status == 200);
    let url = pair.standby.url(&pair.database);
    eventually("the standby has both", || query(&url, "SELECT count(*) FROM countersign.delivery") == "2");
    judge(&pair.primary.url(&pair.database), &backend, &["d-1", "d-2"].map(str::to_owned).into());
}

/// A connection that ends while its commit waits for the standby leaves it on the primary alone. It had been asked again
/// whether that was there, and without a claim to lock it had written nothing, and so waited for nobody.
#[test]
fn what_only_the_primary_has_is_not_acknowledged() {
    let mut pair = Pair::start();
    let backend = Backend::accepting();
    let gateway = gateway(&pair.url(), &backend);
    assert_eq!(send(&gateway, "d-1").status, 200);
    pair.standby.down("QUIT");
    // Without an id, and signed by a token only.
    let nameless = Post::signed("ownstak", "/webhooks/ownstak", "", "push", b"{}");
    let status = thread::scope(|scope| {
        let sending = scope.spawn(|| nameless.send(gateway.listen).status);
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
        eventually("its commit waits", || pair.primary.sql(&pair.database, end) != "0");
        sending.join().unwrap()
    });
    assert_eq!(status, 503);
    pair.standby.up();
    eventually("it accepts again", || send(&gateway, "d-2").status == 200);
}
