//! Who may send: networks from a file, and the subjects of client certificates.

use std::path::Path;

use countersign::identity::SubjectRule;

use crate::support::{check, parse_in, problems, section, source};

const FILE: &str = "allow_addresses = { file = \"ranges.txt\" }";

/// What is said of a file with these bytes.
fn said(bytes: &[u8]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ranges.txt"), bytes).unwrap();
    let said = problems(&parse_in(directory.path(), &source(FILE)));
    let place =
        format!("2:28: error: source[0].allow_addresses.file: {}/ranges.txt", directory.path().display());
    said.into_iter()
        .map(|problem| problem.strip_prefix(&place).map(str::to_owned).unwrap_or(problem))
        .collect()
}

#[test]
fn networks_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let text = "# GitHub's\n192.30.252.0/22\r\n\n  185.199.108.0/22  # hooks\n#2001:db8::/32\n2a0a:a440::/29\n192.0.2.7\n::ffff:10.0.0.0/104\n::ffff:192.0.2.8";
    std::fs::write(directory.path().join("ranges.txt"), text).unwrap();
    let config = parse_in(directory.path(), &source(FILE)).unwrap();
    let networks: Vec<_> = config.sources[0].allow_addresses.iter().map(ToString::to_string).collect();
    let ipv4 = ["192.0.2.7/32", "10.0.0.0/8", "192.0.2.8/32"];
    assert_eq!(networks[..3], ["192.30.252.0/22", "185.199.108.0/22", "2a0a:a440::/29"]);
    assert_eq!(networks[3..], ipv4, "IPv4-mapped ones are IPv4, as senders are");
}

#[test]
fn a_file_that_cannot_be_used_is_an_error_at_its_line_and_shows_nothing_of_it() {
    let neither = "it is neither an address nor a network";
    assert_eq!(said(b"192.0.2.7\nexample.com\n"), [format!(":2: {neither}")]);
    assert_eq!(
        said(b"# hooks\n\n10.0.0.1/8\n10.0.0.0/33\n10.0.0.0/8 10.1.0.0/8\n::ffff:0.0.0.0/90\n"),
        [
            ":3: bits are set beyond its prefix length".to_owned(),
            format!(":4: {neither}"),
            format!(":5: {neither}"),
            ":6: bits are set beyond its prefix length".to_owned(),
        ]
    );
    assert_eq!(said(b"\xff\xfe\n"), [format!(":1: {neither}")]);
    assert_eq!(said(&b"secret\n".repeat(100)).len(), 5, "a wrong file is not told line by line");
    for nobody in ["", "\n\n", "# 192.0.2.7\n"] {
        assert_eq!(said(nobody.as_bytes()), [" has no address, so nobody could send"], "{nobody:?}");
    }
    assert_eq!(said(&b"192.0.2.7\n".repeat(200_000)), [" cannot be read: it is larger than 1MiB"]);
    check(
        &source(FILE),
        "2:28: error: source[0].allow_addresses.file: /nonexistent/ranges.txt cannot be read: No such file or directory (os error 2)",
    );
    check(
        &source("allow_addresses = { file = \"/\" }"),
        "2:28: error: source[0].allow_addresses.file: / cannot be read: Is a directory (os error 21)",
    );
    check(&source("allow_addresses = {}"), "2:19: error: source[0].allow_addresses.file: `file` is missing");
    check(
        &source("allow_addresses = { file = \"/dev/zero\" }"),
        "2:28: error: source[0].allow_addresses.file: /dev/zero cannot be read: it is larger than 1MiB",
    );
    check(
        &source("allow_addresses = \"192.0.2.7\""),
        "2:19: error: source[0].allow_addresses: string does not fit here",
    );
}

#[test]
fn subjects_of_client_certificates() {
    let tls = |tls: &str, lines: &str| source(lines) + &format!("[listen]\ntls = {{ {tls} }}\n");
    let files = "cert = \"/dev/null\", key = \"/dev/null\"";
    let asking = format!("{files}, client_ca = \"/dev/null\"");
    let lines = "allow_subjects = [\"CN=client.example,O=Example\", \"DNS:client.example\"]";
    let config = parse_in(Path::new("/nonexistent"), &tls(&asking, lines)).unwrap();
    assert!(config.listen.tls.unwrap().client_ca.unwrap().required);
    let rules = ["CN=client.example,O=Example", "DNS:client.example"].map(str::parse::<SubjectRule>);
    assert_eq!(config.sources[0].allow_subjects, rules.map(Result::unwrap));
    let optional = format!("{asking}, client_certificate = \"optional\"");
    let config = parse_in(Path::new("/nonexistent"), &tls(&optional, "allow_subjects = []")).unwrap();
    assert!(!config.listen.tls.unwrap().client_ca.unwrap().required);

    check(
        &tls(&asking, "allow_subjects = [\"client.example\"]"),
        "2:19: error: source[0].allow_subjects[0]: `client.example` cannot be used: it is neither attributes of a subject nor `DNS:` and a name",
    );
    check(
        &tls(files, "allow_subjects = [\"CN=a\"]"),
        "2:18: error: source[0].allow_subjects: no client is asked for a certificate, so every request would be refused",
    );
    // One mistake, told once.
    let gone = format!("{files}, client_ca = \"ca.pem\"");
    let said = problems(&parse_in(Path::new("/nonexistent"), &tls(&gone, "allow_subjects = [\"CN=a\"]")));
    assert!(
        said.len() == 1 && said[0].contains("listen.tls.client_ca: /nonexistent/ca.pem cannot be read"),
        "{said:?}"
    );
    check(
        &section("listen.trusted_proxies = { file = \"ranges.txt\" }"),
        "1:26: error: listen.trusted_proxies: table does not fit here",
    );
}
