//! Promise: what an operator installs from `deploy/` watches series that a gateway has, alerts when it should and is quiet
//! when it should be, and leads to an entry in the runbook whose commands exist.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
// Each test binary uses a part of what they share.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "gateway/backend.rs"]
mod backend;
#[path = "deploy/promql.rs"]
mod promql;
#[path = "gateway/sender.rs"]
mod sender;
#[path = "gateway/support.rs"]
mod support;

use backend::Backend;
use promql::Query;
use sender::every_provider;
use support::{Gateway, run};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root(path)).unwrap()
}

#[track_caller]
fn promtool(arguments: &[&str]) {
    let output =
        Command::new("promtool").args(arguments).current_dir(root("deploy/prometheus")).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
}

struct Alert {
    name: String,
    /// The lines of its rule.
    rule: String,
}

impl Alert {
    fn value(&self, key: &str) -> &str {
        let found =
            self.rule.lines().find_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("{} has no {key}", self.name))
    }

    /// On its line, or indented below it.
    fn expression(&self) -> String {
        match self.value("expr") {
            "|" => {
                let lines = self.rule.lines().skip_while(|line| line.trim() != "expr: |").skip(1);
                lines.take_while(|line| line.starts_with("          ")).collect::<Vec<_>>().join("\n")
            }
            line => line.to_owned(),
        }
    }
}

fn alerts() -> Vec<Alert> {
    let text = read("deploy/prometheus/alerts.yml");
    let rules = text.split("      - alert: ").skip(1);
    let alerts: Vec<_> = rules
        .map(|rule| Alert { name: rule.lines().next().unwrap().to_owned(), rule: rule.to_owned() })
        .collect();
    assert!(alerts.len() > 20, "only {} alerts found", alerts.len());
    alerts
}

#[test]
fn the_alerts_are_valid_and_pass_their_tests() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["check", "config", "scrape.yml"]);
    promtool(&["test", "rules", "alerts_test.yml", "alerts_week_test.yml"]);
}

#[test]
fn each_alert_is_seen_to_fire_and_to_be_quiet() {
    let tests = read("deploy/prometheus/alerts_test.yml") + &read("deploy/prometheus/alerts_week_test.yml");
    let (mut fires, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for test in tests.split("alertname: ").skip(1) {
        let (name, rest) = test.split_at(test.find([',', '\n']).unwrap());
        let expected = rest.split("exp_alerts:").nth(1).unwrap();
        if expected.starts_with(" []") { &mut quiet } else { &mut fires }.insert(name.to_owned());
    }
    let names: BTreeSet<_> = alerts().into_iter().map(|alert| alert.name).collect();
    assert_eq!((&fires, &quiet), (&names, &names));
}

#[test]
fn one_alert_pages_and_each_leads_to_its_entry_in_the_runbook() {
    let runbook = read("docs/runbook.md");
    let entries: BTreeMap<_, _> =
        runbook.split("\n### ").skip(1).map(|entry| entry.split_once('\n').unwrap()).collect();
    let alerts = alerts();
    for alert in &alerts {
        let url = format!("docs/runbook.md#{}", alert.name.to_lowercase());
        assert_eq!(alert.value("runbook_url"), url, "{}", alert.name);
        let entry = entries.get(&*alert.name).unwrap_or_else(|| panic!("{} has no entry", alert.name));
        for part in ["**Means**", "**Look**", "**Do**"] {
            let part = if entry.contains("**Look** and **do**") { "**Look** and **do**" } else { part };
            assert!(entry.contains(part), "{} lacks {part}", alert.name);
        }
    }
    assert!(entries.keys().all(|name| alerts.iter().any(|alert| alert.name == *name)), "{entries:?}");
    let links = runbook.split("](#").skip(1).map(|link| link.split_once(')').unwrap().0);
    assert!(links.into_iter().all(|link| alerts.iter().any(|alert| alert.name.to_lowercase() == link)));
    let paging = alerts.iter().filter(|alert| alert.value("labels") == "{ severity: page }");
    assert_eq!(paging.map(|alert| &*alert.name).collect::<Vec<_>>(), ["CountersignOldestWaitingTooOld"]);
    assert!(
        alerts
            .iter()
            .all(|alert| ["{ severity: page }", "{ severity: ticket }"].contains(&alert.value("labels")))
    );
}

#[test]
fn every_command_in_the_runbook_exists() {
    let runbook = read("docs/runbook.md");
    let (mut commands, mut helps) = (0, BTreeMap::new());
    for code in runbook.split(['`', '\n']) {
        let Some(rest) = code.strip_prefix("countersign ") else { continue };
        let words: Vec<_> = rest.split_whitespace().collect();
        let named = words.iter().take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase()));
        let named: Vec<_> = named.copied().collect();
        let help = helps.entry(named.clone()).or_insert_with(|| {
            let output = run(&[named.as_slice(), &["--help"]].concat());
            assert!(output.status.success(), "{code}");
            String::from_utf8(output.stdout).unwrap()
        });
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(
                help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                "{code}: {option}"
            );
        }
        commands += 1;
    }
    assert!(commands > 15, "only {commands} found");
}

/// The labels that each metric of a gateway has, and their values.
type Catalogue = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn catalogue(page: &str) -> Catalogue {
    let mut catalogue = Catalogue::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = catalogue.entry(name.to_owned()).or_default();
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once("=\"").unwrap();
            known.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
        }
    }
    catalogue
}

/// One that has whatever can be had.
fn whole_catalogue() -> Catalogue {
    let backend = Backend::accepting();
    let directory = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let certified = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
    for (name, pem) in [
        ("cert.pem", certified.cert.pem()),
        ("ca.pem", certified.cert.pem()),
        ("key.pem", certified.signing_key.serialize_pem()),
    ] {
        std::fs::write(directory.path().join(name), pem).unwrap();
    }
    let tls = "listen.tls = { cert = \"cert.pem\", key = \"key.pem\", client_ca = \"ca.pem\" }\n";
    support::write_config(directory.path(), &format!("{tls}{}", every_provider(&backend)));
    let gateway = Gateway::start_in(directory, |_| ());
    let mut catalogue = catalogue(&gateway.admin_get("/metrics").1);
    catalogue.insert("up".to_owned(), BTreeMap::new());
    for labels in catalogue.values_mut() {
        labels.insert("job".to_owned(), ["countersign".to_owned()].into());
        labels.insert("instance".to_owned(), BTreeSet::new());
    }
    catalogue
}

/// Labels whose values are configured, or differ from machine to machine.
const OPEN: [&str; 5] = ["instance", "source", "destination", "secret", "le"];

#[track_caller]
fn check(catalogue: &Catalogue, origin: &str, expression: &str) -> usize {
    let query = Query::read(expression).unwrap_or_else(|error| panic!("{origin}: {error}: {expression}"));
    for selector in &query.selectors {
        let name = &selector.metric;
        let labels = catalogue.get(name).unwrap_or_else(|| panic!("{origin}: no gateway has {name}"));
        for (label, value) in &selector.matchers {
            let values = labels.get(label).unwrap_or_else(|| panic!("{origin}: {name} has no {label}"));
            for value in value.split('|').filter(|value| !value.starts_with('$')) {
                let known = OPEN.contains(&&**label) || values.contains(value);
                assert!(known, "{origin}: no {label} of {name} is {value:?}");
            }
        }
    }
    for label in &query.grouped {
        let known = query.selectors.iter().any(|selector| catalogue[&selector.metric].contains_key(label));
        assert!(known, "{origin}: nothing has {label}: {expression}");
    }
    query.selectors.len()
}

/// Every query of the dashboard, with the panel that it is in and the labels that its legend shows.
fn dashboard_queries() -> Vec<(String, String, String)> {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/countersign.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |key: &str| target[key].as_str().unwrap().to_owned();
            queries.push((
                panel["title"].as_str().unwrap().to_owned(),
                text("expr").replace("$__rate_interval", "5m"),
                text("legendFormat"),
            ));
        }
    }
    assert!(queries.len() > 40, "only {} queries found", queries.len());
    queries
}

#[test]
fn every_query_asks_for_series_labels_and_values_that_a_gateway_has() {
    let catalogue = whole_catalogue();
    let mut asked = 0;
    for alert in alerts() {
        asked += check(&catalogue, &alert.name, &alert.expression());
        for label in alert.value("summary").split("$labels.").skip(1) {
            let label: String = label.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '_').collect();
            let query = Query::read(&alert.expression()).unwrap();
            let has = |selector: &promql::Selector| catalogue[&selector.metric].contains_key(&label);
            assert!(query.selectors.iter().any(has), "{}: {label}", alert.name);
        }
    }
    for (panel, expression, legend) in dashboard_queries() {
        asked += check(&catalogue, &panel, &expression);
        let grouped = Query::read(&expression).unwrap().grouped;
        for label in legend.split("{{").skip(1) {
            let label = label.split_once("}}").unwrap().0;
            assert!(
                grouped.iter().any(|grouped| grouped == label),
                "{panel}: the legend's {label} is summed up"
            );
        }
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/countersign.json")).unwrap();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"].as_str().unwrap();
        if let Some(inside) = query.strip_prefix("label_values(") {
            let (series, label) = inside.trim_end_matches(')').rsplit_once(", ").unwrap();
            asked += check(&catalogue, "variable", &format!("sum by ({label}) ({series})"));
        }
    }
    assert!(asked > 90, "only {asked} selectors found");
}

#[test]
fn prometheus_can_read_every_query_of_the_dashboard() {
    let directory = tempfile::tempdir().unwrap();
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, (_, expression, _)) in dashboard_queries().iter().enumerate() {
        rules += &format!("      - record: q{number}\n        expr: |\n          {expression}\n");
    }
    let file = directory.path().join("dashboard.yml");
    std::fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()]);
}

/// What stands in the compose file behind `- ` and `:`, as far as it is a file of ours.
fn mounted() -> Vec<(String, String)> {
    let compose = read("deploy/compose.yaml");
    let mounts = compose.lines().filter_map(|line| line.trim().strip_prefix("- ./")?.split_once(':'));
    let mounts: Vec<_> = mounts.map(|(file, inside)| (format!("deploy/{file}"), inside.to_owned())).collect();
    assert!(mounts.len() >= 5, "only {mounts:?} found");
    mounts
}

#[test]
fn what_the_compose_file_mounts_and_names_is_there() {
    use std::os::unix::fs::PermissionsExt as _;
    for (file, inside) in mounted() {
        let metadata = root(&file).metadata().unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(inside.ends_with(":ro"), "{file} could be written to");
        if file.ends_with(".sh") {
            assert!(metadata.permissions().mode() & 0o111 == 0o111, "{file} cannot be run");
        }
    }
    let compose = read("deploy/compose.yaml");
    let services: BTreeSet<_> = compose
        .split_once("\nservices:\n")
        .unwrap()
        .1
        .lines()
        .take_while(|line| line.starts_with(' ') || line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.strip_suffix(':').filter(|name| !name.starts_with(' ')))
        .collect();
    assert_eq!(services, BTreeSet::from(["gateway-1", "gateway-2", "haproxy", "primary", "replica"]));
    for variable in read("deploy/haproxy.cfg").split("\"${").skip(1) {
        let name = variable.split_once('}').unwrap().0;
        assert!(compose.contains(&format!("      {name}: ")), "haproxy is not told its {name}");
    }
    // Whose PROXY headers the gateways believe.
    let network = compose.split_once("subnet: ").unwrap().1.lines().next().unwrap();
    assert!(read("deploy/gateway.toml").contains(&format!("trusted_proxies = [\"{network}\"]")));
}

#[test]
fn the_configurations_that_the_compose_file_mounts_are_good() {
    let mut check = support::countersign();
    check.args(["check", "--config"]).arg(root("deploy/gateway.toml"));
    check.env(
        "DATABASE_URL",
        "postgres://countersign:p@primary,replica/countersign?target_session_attrs=read-write",
    );
    check.env("GITHUB_WEBHOOK_SECRET", "secret-of-the-deploy-test");
    check.env("COUNTERSIGN_ADMIN_TOKEN", "token-of-the-deploy-test");
    let output = check.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("0 warnings"), "{text}");

    let mut haproxy = Command::new("haproxy");
    haproxy.args(["-c", "-f"]).arg(root("deploy/haproxy.cfg")).env("LISTEN", "127.0.0.1:8080");
    for (gateway, admin) in [("GATEWAY_1", "GATEWAY_1_ADMIN"), ("GATEWAY_2", "GATEWAY_2_ADMIN")] {
        haproxy.env(gateway, "127.0.0.1:8080").env(admin, "8081");
    }
    match haproxy.output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => println!("skipped: haproxy is not installed"),
    }
}
