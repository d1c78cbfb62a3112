//! A gateway that cannot work with its database says so, and what would be right, before it serves.

use std::sync::Arc;

use crate::backend::Backend;
use crate::group::{SHARED, gateway, send};
use crate::sender::every_provider;
use crate::server::{Server, free_port, query};
use crate::support::{Gateway, write_config};

/// The exit code and what is logged of a start on the database of this URL.
fn refused(url: &str) -> (Option<i32>, String) {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    write_config(directory.path(), &format!("{SHARED}{}", every_provider(&Backend::accepting())));
    match Gateway::try_start_in(directory, |command| {
        command.env("DATABASE_URL", url);
    }) {
        Ok(_) => panic!("it has started"),
        Err(refused) => refused,
    }
}

#[track_caller]
pub(crate) fn check(url: &str, code: i32, what: &str) {
    let (found, log) = refused(url);
    assert_eq!(found, Some(code), "{log}");
    assert!(log.contains(what), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn what_cannot_be_reached_or_used_is_refused_with_what_to_do() {
    let server = Server::shared();
    let url = server.database();
    check("mysql://u:hunter2@h/n", 78, "it does not begin with `postgres://`");
    let nobody = format!("postgres://u:hunter2@127.0.0.1:{}/n?sslmode=disable", free_port());
    check(&nobody, 74, "cannot be reached");
    check(&url.replace("/test_", "/none_"), 74, "does not exist");
    check(&url.replace("sslmode=disable", "sslmode=require"), 74, "cannot be reached");

    // Each with a role of its own, since the setting is the role's.
    let database = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    for (role, set_up, what) in [
        (
            "hasty",
            "ALTER ROLE hasty SET synchronous_commit = off",
            "ALTER ROLE … SET synchronous_commit = on",
        ),
        ("alone", "ALTER ROLE alone SET synchronous_commit = local", "has synchronous_commit = local"),
        ("guest", "SELECT 1", "CREATE SCHEMA countersign AUTHORIZATION guest"),
    ] {
        server.sql(&database, &format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN; {set_up}"));
        check(&url.replace("//countersign@", &format!("//{role}@")), 74, what);
    }
}

#[test]
fn tables_of_a_newer_version_are_left_alone() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    drop(gateway(&url, &backend));
    query(&url, "UPDATE countersign.meta SET format = 99");
    check(&url, 74, "have format 99");
    assert_eq!(query(&url, "SELECT format FROM countersign.meta"), "99");
}

#[test]
fn a_user_that_may_not_write_is_refused() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    drop(gateway(&url, &backend));
    query(
        &url,
        "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA countersign TO reader;
         GRANT SELECT ON ALL TABLES IN SCHEMA countersign TO reader",
    );
    check(&url.replace("//countersign@", "//reader@"), 74, "INSERT on countersign.meta");
    query(&url, "GRANT ALL ON ALL TABLES IN SCHEMA countersign TO reader");
    check(&url.replace("//countersign@", "//reader@"), 74, "USAGE on countersign.attempt_order");
    // Who owns nothing makes no days ahead, and can do without.
    query(&url, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA countersign TO reader");
    let url = url.replace("//countersign@", "//reader@");
    assert_eq!(send(&gateway(&url, &backend), "d-1").status, 200);
}

#[test]
fn a_standby_is_refused() {
    let primary = Server::start(&[]);
    let url = primary.database();
    let standby = primary.standby();
    let there = url.replace(&format!(":{}/", primary.port()), &format!(":{}/", standby.port()));
    check(&there, 74, "is in recovery (a standby)");
}

/// The second waits for the tables that the first makes.
#[test]
fn gateways_that_start_at_once_make_the_tables_once() {
    let (url, backend) = (Server::shared().database(), Backend::accepting());
    let gateways: Vec<_> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3).map(|_| scope.spawn(|| gateway(&url, &backend))).collect();
        starting.into_iter().map(|starting| starting.join().unwrap()).collect()
    });
    for (n, gateway) in gateways.iter().enumerate() {
        assert_eq!(send(gateway, &format!("d-{n}")).status, 200);
    }
    assert_eq!(query(&url, "SELECT count(*) FROM countersign.gateway"), "3");
}
