//! The README's quick start and its table of promises cannot rot.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::backend::Backend;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn the_quick_start_works_line_by_line() {
    let readme = readme();
    let script = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(script.contains("countersign run") && script.contains("countersign send"));

    // Only the addresses differ: tests run side by side.
    let (listen, admin, backend) = (free_address(), free_address(), Backend::accepting());
    let addresses = format!(
        "listen.address = \"{listen}\"\nadmin.address = \"{admin}\"\nstore.disk_reserve = \"1MiB\"\n"
    );
    let script = script
        .replace("[[source]]", &format!("{addresses}[[source]]"))
        .replace("127.0.0.1:3000", &backend.address.to_string())
        .replace("127.0.0.1:8080", &listen);
    let binary = Path::new(env!("CARGO_BIN_EXE_countersign"));
    let script = format!("PATH={}:$PATH\n{script}", binary.parent().unwrap().display());
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(&directory)
        .env("COUNTERSIGN_ADMIN", format!("http://{admin}"))
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in [
        "countersign.toml: ok",
        "ready listen=",
        "200 OK",
        "deployment.completed",
        "401 Unauthorized",
        "refused for signature_mismatch",
        "there are no dead letters",
        "0 forwards match",
    ] {
        assert!(stdout.contains(expected), "{expected} is missing: {stdout}");
    }
    backend.eventually_got(1);
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let readme = readme();
    let table = readme.split("| promise | held by |").nth(1).unwrap().split("\n\n").next().unwrap();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut sources = String::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for folder in [
        tests.clone(),
        tests.join("gateway"),
        tests.join("hostile"),
        tests.join("reliability"),
        tests.join("store"),
        tests.join("cluster"),
        src.join("ingest"),
        src.join("store"),
        src.join("forward"),
    ] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut named = 0;
    for name in table.split('`').skip(1).step_by(2) {
        let exists = match name.strip_prefix("tests/") {
            Some(file) => tests.join(file).exists(),
            // Names of headers and the like stand in the first column.
            None if !name.contains('_') => continue,
            None => sources.contains(&format!("fn {name}(")),
        };
        assert!(exists, "{name} does not exist");
        named += 1;
    }
    assert!(named > 10, "only {named} tests named");
}
