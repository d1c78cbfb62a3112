//! Where secrets may come from, and that none is ever shown.

use std::fs;

use crate::support::{accepted, check, parse, parse_in, problems, source};

fn secrets(list: &str) -> String {
    source(&format!("secrets = [{list}]"))
}

#[test]
fn a_secret_that_is_missing_empty_or_blank_is_refused() {
    let check = |list: &str, problem: &str| check(&secrets(list), problem);
    check("", "2:11: error: source[0].secrets: there is no secret, so no request could be verified");
    check("\"direct\"", "2:12: error: source[0].secrets[0]: string does not fit here");
    check("{}", "2:12: error: source[0].secrets[0]: the secret is missing");
    check(
        "{ env = \"SET\", file = \"x\" }",
        "2:12: error: source[0].secrets[0]: the secret has more than one origin",
    );
    check(
        "{ env = \"UNSET\" }",
        "2:20: error: source[0].secrets[0].env: the environment variable `UNSET` is not set",
    );
    for name in ["EMPTY", "BLANK"] {
        check(
            &format!("{{ env = \"{name}\" }}"),
            &format!(
                "2:20: error: source[0].secrets[0].env: the environment variable `{name}` is empty or blank"
            ),
        );
    }
    check("{ value = \" \\t\" }", "2:22: error: source[0].secrets[0].value: the secret is empty or blank");
    check(
        "{ value = \"1234567\" }",
        "2:22: error: source[0].secrets[0].value: the secret has 7 bytes; fewer than 8 can be guessed",
    );
    check(
        "{ value = \"mysecret\" }",
        "2:22: warning: source[0].secrets[0].value: the secret has only 8 bytes and may be guessed",
    );
    check(
        "{ value = \" with-white-space-around \" }",
        "2:22: warning: source[0].secrets[0].value: the secret begins or ends with white space, which counts",
    );
    check(
        "{ value = \"\\uFEFFa-secret-0123456789\" }",
        "2:22: warning: source[0].secrets[0].value: the secret begins with a byte order mark, which counts and which nobody sees",
    );
    check(
        "{ file = \"secret\" }",
        "2:21: error: source[0].secrets[0].file: /nonexistent/secret cannot be read: No such file or directory (os error 2)",
    );
    check("{ file = \"/dev/null\" }", "2:21: error: source[0].secrets[0].file: /dev/null is empty or blank");
    check(
        "{ file = \"/dev/zero\" }",
        "2:21: error: source[0].secrets[0].file: /dev/zero cannot be read: it is larger than 64KiB",
    );
    check("{ env = \"SET\", note = 1 }", "2:27: error: source[0].secrets[0].note: unknown key `note`");
}

#[test]
fn a_secret_must_be_a_key_of_its_scheme() {
    check(
        &source(
            "provider = \"standard-webhooks\"\nsecrets = [{ env = \"WHSEC\" }, { value = \"this is not base64\" }]",
        ),
        "3:41: error: source[0].secrets[1].value: the secret must be base64, with or without `whsec_` before it",
    );
}

#[test]
fn names_of_secrets_are_unique() {
    let names = |list: &str| {
        let config = accepted(&secrets(list));
        config.sources[0].verifier.secret_names().map(ToString::to_string).collect::<Vec<_>>()
    };
    let value = "value = \"0123456789abcdef\"";
    assert_eq!(names(&format!("{{ env = \"SET\" }}, {{ {value} }}")), ["SET", "secret-2"]);
    assert_eq!(names(&format!("{{ {value}, name = \"2026-11\" }}")), ["2026-11"]);
    check(
        &secrets("{ env = \"SET\" }, { env = \"SET\" }"),
        "2:29: error: source[0].secrets[1]: `SET` is taken: line 2 has it already",
    );
    check(
        &secrets(&format!("{{ {value}, name = \"\" }}")),
        "2:49: error: source[0].secrets[0].name: this cannot be a name",
    );
}

#[test]
fn times_of_secrets() {
    let expired = "{ env = \"SET\", not_after = 2026-04-22T15:29:59Z }";
    let expiry = "2:39: warning: source[0].secrets[0].not_after: the secret expired at 2026-04-22T15:29:59Z";
    let current = "{ env = \"WHSEC\", not_after = 2026-04-22T15:30:00Z }";
    check(&secrets(&format!("{expired}, {current}")), expiry);
    assert_eq!(
        problems(&parse(&secrets(expired))),
        ["2:11: error: source[0].secrets: every secret has expired, so no request could be verified", expiry]
    );
    check(
        &secrets("{ env = \"SET\", not_before = 2026-04-22T15:30:01Z }"),
        "2:11: warning: source[0].secrets: no secret is valid now, so every request will be refused for a while",
    );
    check(
        &secrets(
            "{ env = \"SET\", not_before = 2026-11-01T00:00:00Z, not_after = 2026-10-01T00:00:00Z }, { env = \"WHSEC\" }",
        ),
        "2:74: error: source[0].secrets[0].not_after: `not_after` lies before `not_before`",
    );
    check(
        &secrets("{ env = \"SET\", not_after = 2026-12-01T00:00:00 }"),
        "2:39: error: source[0].secrets[0].not_after: datetime does not fit here",
    );
}

#[test]
fn files_are_relative_to_the_configuration_and_lose_one_newline() {
    let directory = tempfile::tempdir().unwrap();
    let check = |content: &str, expected: &[&str]| {
        fs::write(directory.path().join("secret"), content).unwrap();
        let text = secrets("{ file = \"secret\" }");
        let result = parse_in(directory.path(), &text);
        assert_eq!(problems(&result), expected, "{content:?}");
    };
    check("0123456789abcdef", &[]);
    check("0123456789abcdef\n", &[]);
    check("0123456789abcdef\r\n", &[]);
    let white =
        "2:21: warning: source[0].secrets[0].file: the secret begins or ends with white space, which counts";
    check("0123456789abcdef\n\n", &[white]);
    check("0123456789abcdef \n", &[white]);
}

#[test]
fn no_secret_is_shown_however_wrong_the_line_is() {
    let leaks = |lines: &str| {
        let text = source(lines);
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("c.toml:2:") || error.contains("c.toml:3:"), "{error}");
        error.contains("hunter2").then_some(error)
    };
    for line in [
        "secrets = \"hunter2hunter2\"",
        "secrets = [\"hunter2hunter2\"]",
        "secrets = [{ valeu = \"hunter2hunter2\" }]",
        "secrets = [{ value = \"hunter2hunter2\", env = \"SET\" }]",
        "secrets = [{ value = [\"hunter2hunter2\"] }]",
        "secrets = [{ value = hunter2hunter2 }]",
        "secrets = [{ value = \"hunter2hunter2 }]",
        "secrets = [{ value = 'hunter2hunter2, name = \"x\" }]",
        "secrets = [{ value = \"hunter2\" }]",
        "secrets = [{ value = \"hunter2hunter2\", nmae = \"x\" }, { env = \"UNSET\" }]",
        "secrets = [{ env = \"hunter2+hunter2=\" }]",
        "secret = \"hunter2hunter2\"",
        "token = \"hunter2hunter2\"",
        "provider = \"standard-webhooks\"\nsecrets = [{ value = \"hunter2 hunter2\" }]",
        "secrets = [{ env = \"SET\" }]\nhunter2hunter2",
    ] {
        assert_eq!(leaks(line), None);
    }
}
