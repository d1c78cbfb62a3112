//! Promise: who may send, and what the gateway shows for itself, can be changed in files; and certificates do not end
//! without a word.

use std::path::Path;
use std::sync::Arc;

use countersign::clock::{Clock, Timestamp};
use jiff::ToSpan as _;
use jiff::tz::TimeZone;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::operate::promtool_accepts;
use crate::sender::{Post, every_provider};
use crate::support::{Gateway, eventually, run, write_config};

#[test]
fn a_list_of_addresses_in_a_file_is_read_at_every_reload_and_a_bad_one_changes_nothing() {
    let backend = Backend::accepting();
    let directory = Arc::new(TempDir::new().unwrap());
    let list = directory.path().join("ranges.txt");
    let sources = every_provider(&backend)
        .replace("name = \"github\"\n", "name = \"github\"\nallow_addresses = { file = \"ranges.txt\" }\n");
    write_config(directory.path(), &sources);
    std::fs::write(&list, "").unwrap();
    let Err((code, log)) = Gateway::try_start_in(Arc::clone(&directory), |_| ()) else {
        panic!("it started")
    };
    assert_eq!(code, Some(78));
    assert!(log.contains("source[4].allow_addresses.file") && log.contains("has no address"), "{log}");

    std::fs::write(&list, "# documentation\n192.0.2.0/24\n").unwrap();
    let gateway = Gateway::start_in(directory, |_| ());
    let status = |id: &str| {
        Post::signed("github", "/webhooks/github", id, "push", id.as_bytes()).send(gateway.listen).status
    };
    let reload = |text: &str, outcome: &str| {
        let series = format!("countersign_config_reloads_total{{outcome=\"{outcome}\"}}");
        let before = gateway.metric(&series).unwrap();
        std::fs::write(&list, text).unwrap();
        gateway.signal("HUP");
        gateway.eventually_metric(&series, before + 1.0);
    };
    assert_eq!(status("d-1"), 403);
    reload("192.0.2.0/24\n127.0.0.0/8\n", "succeeded");
    assert_eq!(status("d-2"), 200);
    for (bad, reason) in
        [("", "has no address"), ("192.0.2.0/24\nlocalhost\n", "ranges.txt:2: it is neither")]
    {
        reload(bad, "refused");
        assert!(gateway.log().contains(reason), "{reason}");
        assert_eq!(status(&format!("d-{bad:?}")), 200, "the list before it is in force");
    }
    reload("192.0.2.0/24\n", "succeeded");
    assert_eq!(status("d-3"), 403);
}

/// Writes a certificate that ends at the beginning of a day so many days from today, and its key.
fn write_certificate(directory: &Path, days: i64) -> Timestamp {
    let today = Clock::system().now().to_zoned(TimeZone::UTC).date();
    let day = today + days.days();
    let mut params = CertificateParams::new(["gateway.example".to_owned()]).unwrap();
    params.not_after =
        rcgen::date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs());
    let key = KeyPair::generate().unwrap();
    std::fs::write(directory.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    day.to_zoned(TimeZone::UTC).unwrap().timestamp()
}

#[test]
fn a_certificate_that_ends_soon_is_told_everywhere() {
    let backend = Backend::accepting();
    let directory = Arc::new(TempDir::new().unwrap());
    let ends = write_certificate(directory.path(), 13);
    std::fs::copy(directory.path().join("cert.pem"), directory.path().join("ca.pem")).unwrap();
    let with_ca = |more: &str| {
        format!(
            "listen.tls = {{ cert = \"cert.pem\", key = \"key.pem\"{more} }}\n{}",
            every_provider(&backend)
        )
    };
    write_config(directory.path(), &with_ca(", client_ca = \"ca.pem\""));
    let gateway = Gateway::start_in(directory, |_| ());
    let gauge = |file: &str| {
        gateway.metric(&format!("countersign_tls_certificate_not_after_seconds{{file=\"{file}\"}}"))
    };
    let checked = || {
        let output = run(&["check", "--config", gateway.config_path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let told = |what: &str| gateway.log().lines().filter(|line| line.contains(what)).count();
    let reload = |text: &str| {
        let loaded = || gateway.metric("countersign_config_reloads_total{outcome=\"succeeded\"}").unwrap();
        let before = loaded();
        gateway.rewrite(text);
        gateway.signal("HUP");
        eventually("it is reloaded", || loaded() > before);
    };

    eventually("it is in the log", || told("certificate expires soon") == 2);
    let line = gateway.log().lines().find(|line| line.contains("expires soon")).unwrap().to_owned();
    for part in ["\"level\":\"WARN\"", "\"key\":\"listen.tls.cert\"", "cert.pem", &ends.to_string()] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert_eq!([gauge("cert"), gauge("client_ca")], [Some(ends.as_second() as f64); 2]);
    promtool_accepts(&gateway);
    let warning = format!("cert.pem expires at {ends}");
    assert!(
        checked().contains("warning: listen.tls.cert: ") && checked().contains(&warning),
        "{}",
        checked()
    );
    assert!(checked().contains("2 warnings"), "{}", checked());
    let admin = format!("http://{}", gateway.admin);
    let status = String::from_utf8(run(&["status", "--admin", &admin]).stdout).unwrap();
    assert!(status.contains(&format!(
        "listen.tls.cert: a certificate in {}/cert.pem expires at {ends}",
        gateway.directory().display()
    )));

    // One that has ended is worse, and one that has long to go is nothing.
    let ended = write_certificate(gateway.directory(), -1);
    reload(&with_ca(""));
    assert_eq!([gauge("cert"), gauge("client_ca")], [Some(ended.as_second() as f64), None]);
    assert!(checked().contains(&format!("cert.pem expired at {ended}")), "{}", checked());
    write_certificate(gateway.directory(), 16);
    reload(&with_ca(""));
    assert!(checked().contains("0 warnings"), "{}", checked());
    assert_eq!(told("certificate expires soon"), 2, "once a day");
}

#[test]
fn a_certificate_that_has_ended_is_an_error_in_the_log_and_served_all_the_same() {
    let backend = Backend::accepting();
    let directory = Arc::new(TempDir::new().unwrap());
    write_certificate(directory.path(), -1);
    let tls = "listen.tls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
    write_config(directory.path(), &format!("{tls}{}", every_provider(&backend)));
    let gateway = Gateway::start_in(directory, |_| ());
    eventually("it is in the log", || gateway.log().contains("certificate has expired"));
    let line = gateway.log().lines().find(|line| line.contains("has expired")).unwrap().to_owned();
    assert!(line.contains("\"level\":\"ERROR\"") && line.contains("senders refuse it"), "{line}");
    assert_eq!(gateway.admin_get("/readyz").0, 200);
}
