//! How a report reads, and that one run tells everything.

use std::path::Path;

use countersign::config::{self, ConfigError};

use crate::support::{environment, now, parse, problems, source};

const MANY: &str = r#"[listen]
adress = "0.0.0.0:8080"
ack_deadline = "5s"
[limits]
body = 1MiB
[[source]]
name = "A"
provider = "githbu"
secrets = [{ value = "top-secret", not_after = 2020-01-01T00:00:00Z }, { env = "UNSET" }]
to = ["lagacy"]
[[source]]
name = "b"
to = ["legacy"]
mode = "synk"
[[destination]]
name = "legacy"
url = "legacy:3000"
retry = { schedule = ["1s"], factor = 2.0 }
"#;

#[test]
fn all_problems_are_reported_in_one_run() {
    let result = parse(MANY);
    let heads = problems(&result);
    let expected = [
        "2:1: error: listen.adress: unknown key `adress`",
        "3:16: error: listen.ack_deadline: `5s` cannot be used: it must be from 1ms to 4999ms",
        "5:8: error: not valid TOML: string values must be quoted, expected literal string",
        "7:8: error: source[0].name: `A` cannot be a name",
        "8:12: error: source[0].provider: there is no provider `githbu`",
        "9:22: warning: source[0].secrets[0].value: the secret has only 10 bytes and may be guessed",
        "9:48: warning: source[0].secrets[0].not_after: the secret expired at 2020-01-01T00:00:00Z",
        "9:80: error: source[0].secrets[1].env: the environment variable `UNSET` is not set",
        "14:8: error: source[1].mode: `synk` is not a choice here",
        "17:7: error: destination[0].url: the URL begins with neither `http://` nor `https://`",
        "18:39: error: destination[0].retry.factor: `factor` has no effect beside `schedule`",
    ];
    assert_eq!(heads, expected);
    assert_eq!(result.unwrap_err().count(), 9);

    // With the syntax in order, what is not there is known not to be there.
    let heads = problems(&parse(&MANY.replace("1MiB", "\"1MiB\"")));
    for also in [
        "10:7: error: source[0].to[0]: there is no destination `lagacy`",
        "11:1: error: source[1].provider: how requests are verified is not said",
        "11:1: error: source[1].secrets: `secrets` is missing, so no request could be verified",
    ] {
        assert!(heads.iter().any(|head| head == also), "{also} is not in {heads:#?}");
    }
}

#[test]
fn a_report_shows_the_line_and_what_would_be_right() {
    let text = source(
        "name = \"ü\"\nsecrets = [{ value = \"a-secret-of-good-length\", nmae = \"x\" }]\nto = [\"c\"]",
    );
    insta::assert_snapshot!(parse(&text).unwrap_err(), @r#"
    c.toml:2:8: error: source[0].name: `ü` cannot be a name
      |
    2 | name = "ü"
      |        ^^^
      |
      = help: 1 to 63 of the characters a-z, 0-9 and -: it becomes a metrics label and part of the default path

    c.toml:3:49: error: source[0].secrets[0].nmae: unknown key `nmae`
      |
    3 | secrets = [{ value = *************************, nmae = *** }]
      |                                                 ^^^^
      |
      = help: did you mean `name`?

    c.toml:4:7: error: source[0].to[0]: there is no destination `c`
      |
    4 | to = ["c"]
      |       ^^^
      |
      = help: did you mean `b`?

    c.toml: 3 errors
    "#);
}

#[test]
fn columns_count_characters_and_lines_end_as_they_like() {
    let text = "# ü\r\n[listen]\r\nxäß = \"ü\" \r\n\"ü\" = 1\r\n";
    let heads = problems(&parse(text));
    assert!(
        heads.contains(
            &"3:2: error: not valid TOML: invalid unquoted key, expected letters, numbers, `-`, `_`"
                .to_owned()
        ),
        "{heads:#?}"
    );
    let text = source("ack = { body = \"üüü\", ü = 1 }").replace("ü = 1", "\"ü\" = 1");
    assert_eq!(problems(&parse(&text)), ["2:23: error: source[0].ack.ü: unknown key `ü`"]);
}

#[test]
fn warnings_come_with_the_configuration() {
    let config = parse(&source("provider = -\nsecrets = -\nverify = \"none\"")).unwrap();
    assert_eq!(config.warnings.len(), 1);
    insta::assert_snapshot!(config.warnings[0], @r#"
    c.toml:4:10: warning: source[0].verify: nothing proves who sends to this source
      |
    4 | verify = "none"
      |          ^^^^^^
      |
      = help: `provider` or `[source.scheme]` would; until then anyone who knows the address can send
    "#);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_too() {
    let check = |path: &Path, expected: &str| {
        let error = config::load(path, &environment, now()).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }));
        assert_eq!((error.to_string().as_str(), error.count()), (expected, 1));
    };
    check(Path::new("/nonexistent/c.toml"), "/nonexistent/c.toml: error: the file cannot be read");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    std::fs::write(&path, b"\xff").unwrap();
    let expected = format!("{}: error: the file cannot be read", path.display());
    check(&path, &expected);
}

#[test]
fn the_environment_is_read_by_name() {
    assert!(config::environment("PATH").is_some());
    assert_eq!(config::environment("COUNTERSIGN_TEST_THAT_NOBODY_SETS"), None);
}
