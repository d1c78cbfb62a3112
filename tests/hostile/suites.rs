//! Which TLS is spoken, as openssl sees it: its own minimum is lowered, so that it is the gateway that refuses.

use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::backend::Backend;
use crate::sender::every_provider;
use crate::support::{Gateway, write_config};

/// A gateway with an RSA certificate, for which old clients have the most to offer.
fn start() -> (Gateway, Backend) {
    let directory = Arc::new(TempDir::new().unwrap());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway.example", "-days", "2"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let backend = Backend::accepting();
    let tls = "listen.tls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
    write_config(directory.path(), &format!("{tls}{}", every_provider(&backend)));
    (Gateway::start_in(directory, |_| ()), backend)
}

/// Protocol and suite that a handshake comes to; or the alert, or what else openssl says.
fn handshake(gateway: &Gateway, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &gateway.listen.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match said.lines().find_map(|line| line.strip_prefix("New, ")) {
        Some(agreed) if !agreed.starts_with("(NONE)") => Ok(agreed.replace(", Cipher is ", " ")),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn only_modern_versions_and_suites_are_spoken() {
    let (gateway, _backend) = start();
    const LOWEST: &str = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    for old in ["-tls1", "-tls1_1"] {
        let refused = handshake(&gateway, &[old, "-cipher", LOWEST]).unwrap_err();
        assert!(refused.contains("SSL alert number"), "{old}: {refused}");
    }
    let listed = Command::new("openssl").args(["ciphers", "-s", "-tls1_2", LOWEST]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let suites: Vec<&str> = listed.trim().split(':').filter(|suite| !suite.starts_with("TLS_")).collect();
    // Old ones are among them: CBC, without forward secrecy, without encryption, without authentication.
    for old in
        ["ECDHE-RSA-AES128-SHA256", "AES128-GCM-SHA256", "AES128-SHA", "ECDHE-RSA-NULL-SHA", "ADH-AES128-SHA"]
    {
        assert!(suites.contains(&old), "{old} is not in {suites:?}");
    }
    let spoken: Vec<&str> = suites
        .iter()
        .copied()
        .filter(|suite| match handshake(&gateway, &["-tls1_2", "-cipher", &format!("{suite}:@SECLEVEL=0")]) {
            Ok(agreed) => agreed.ends_with(suite),
            Err(refused) => {
                assert!(refused.contains("SSL alert number"), "{suite}: {refused}");
                false
            }
        })
        .collect();
    assert_eq!(
        spoken,
        ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256"]
    );
    for suite in ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"] {
        let agreed = handshake(&gateway, &["-tls1_3", "-ciphersuites", suite]);
        assert_eq!(agreed, Ok(format!("TLSv1.3 {suite}")));
    }
    for (what, arguments) in [
        ("CCM", &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"][..]),
        ("SHA-1", &["-tls1_2", "-cipher", "ALL:@SECLEVEL=0", "-sigalgs", "RSA+SHA1"]),
        ("a weak group", &["-tls1_3", "-groups", "ffdhe2048"]),
    ] {
        let refused = handshake(&gateway, arguments).unwrap_err();
        assert!(refused.contains("SSL alert number"), "{what}: {refused}");
    }
}
