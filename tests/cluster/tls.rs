//! TLS to the database: who it is has to be proven as far as `sslmode` says, and a refusal says what was wrong.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::backend::Backend;
use crate::group::{gateway, send};
use crate::server::{Server, postgres_user};
use crate::start::check;

/// An authority of the test's own, written to `file`.
fn authority(file: &Path) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, file.display().to_string());
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(file, authority.pem()).unwrap();
    authority
}

/// A server that has a certificate of `issuer`'s for `localhost`, and lets nobody in without TLS and a password.
fn server(directory: &Path, issuer: &CertifiedIssuer<'static, KeyPair>) -> Server {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let (certificate_file, key_file) = (directory.join("server.pem"), directory.join("server.key"));
    std::fs::write(&certificate_file, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&key_file, PermissionsExt::from_mode(0o600)).unwrap();
    if let Some((user, group)) = postgres_user() {
        chown(&key_file, Some(user), Some(group)).unwrap();
    }
    let server = Server::start(&[
        "ssl=on",
        &format!("ssl_cert_file={}", certificate_file.display()),
        &format!("ssl_key_file={}", key_file.display()),
    ]);
    server.sql("postgres", "CREATE ROLE gateway SUPERUSER LOGIN PASSWORD 'hunter2'");
    std::fs::write(
        server.data().join("pg_hba.conf"),
        "hostssl all gateway 127.0.0.1/32 scram-sha-256\nhost all countersign 127.0.0.1/32 trust\n",
    )
    .unwrap();
    server.sql("postgres", "SELECT pg_reload_conf()");
    server
}

#[test]
fn a_server_has_to_prove_who_it_is() {
    if !Server::knows_tls() {
        println!("skipped: these programs of PostgreSQL's are built without TLS");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (right, wrong) = (directory.path().join("right.pem"), directory.path().join("wrong.pem"));
    let server = server(directory.path(), &authority(&right));
    authority(&wrong);
    let url = |host: &str, parameters: &str| {
        format!("postgres://gateway:hunter2@{host}:{}/postgres?{parameters}", server.port())
    };
    let rooted = |mode: &str, root: &Path| format!("sslmode={mode}&sslrootcert={}", root.display());

    for (url, what) in [
        (url("localhost", &rooted("verify-full", &wrong)), "invalid peer certificate: UnknownIssuer"),
        (url("localhost", &rooted("verify-ca", &wrong)), "invalid peer certificate: UnknownIssuer"),
        (url("127.0.0.1", &rooted("verify-full", &right)), "certificate not valid for name \"127.0.0.1\""),
        // One that only the platform's authorities could vouch for.
        (url("localhost", "sslmode=verify-full"), "invalid peer certificate"),
        (url("localhost", &rooted("verify-full", Path::new("/none.pem"))), "sslrootcert /none.pem: "),
        (url("localhost", "sslmode=disable"), "no pg_hba.conf entry"),
    ] {
        check(&url, 74, what);
    }

    let backend = Backend::accepting();
    let proven = [
        // The password's proof is bound to the certificate.
        url("localhost", &format!("{}&channel_binding=require", rooted("verify-full", &right))),
        url("127.0.0.1", &rooted("verify-ca", &right)),
        url("localhost", "sslmode=require"),
    ];
    for (n, url) in proven.iter().enumerate() {
        let gateway = gateway(url, &backend);
        assert_eq!(send(&gateway, &format!("d-{n}")).status, 200);
        let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
            WHERE application_name = 'countersign'";
        assert_eq!(server.sql("postgres", encrypted), "t");
    }
}
