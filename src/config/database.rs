//! Where a shared store is: `store.url`, as every PostgreSQL client takes it. What it says about TLS is read here, since
//! the client library knows half of the modes only.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// How long a connection may take where the URL does not say: an answer is due within `listen.ack_deadline`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After so long without an acknowledgement the other side is gone: a failover must not wait for the kernel's quarter of
/// an hour.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// A PostgreSQL database, and how its identity is proven.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// Hosts, user, password, name; whether TLS is used at all.
    pub settings: Config,
    /// What TLS proves.
    pub proof: Proof,
    /// PEM certificates of the authorities (`sslrootcert`); `None` are the platform's.
    pub root: Option<PathBuf>,
}

/// What a server has to prove when TLS is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing: eavesdroppers are kept out, impostors are not.
    None,
    /// A certificate of a known authority (`verify-ca`).
    Authority,
    /// The same, for the name that was asked for (`verify-full`).
    Name,
}

impl Database {
    /// Reads a URL.
    ///
    /// # Errors
    /// With what is wrong with it, without showing any of it.
    pub fn parse(url: &str) -> Result<Self, String> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err("it does not begin with `postgres://`".to_owned());
        }
        if is_ambiguous(url) {
            return Err("a `@`, `/`, `?` or `#` in its user, password or options has to be written `%40`, `%2F`, `%3F` or \
                 `%23`"
                .to_owned());
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut root, mut rest) = (None, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            match key {
                "sslmode" => mode = Some(value()),
                "sslrootcert" => root = Some(value()),
                _ => rest.push(parameter),
            }
        }
        let root = root.filter(|root| root != "system").map(PathBuf::from);
        let (ssl_mode, proof) = match mode.as_deref() {
            Some("disable") => (SslMode::Disable, Proof::None),
            // As libpq has it: whoever names an authority wants it asked.
            None | Some("prefer") => (SslMode::Prefer, Proof::None),
            Some("require") if root.is_some() => (SslMode::Require, Proof::Authority),
            Some("require") => (SslMode::Require, Proof::None),
            Some("verify-ca") => (SslMode::Require, Proof::Authority),
            Some("verify-full") => (SslMode::Require, Proof::Name),
            Some(_) => {
                return Err(
                    "`sslmode` is none of disable, prefer, require, verify-ca, verify-full".to_owned()
                );
            }
        };
        let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut settings: Config = plain.parse().map_err(|error: tokio_postgres::Error| {
            // What it does not know may be the end of a password that has a `&` in it.
            if rest.iter().any(|parameter| parameter.starts_with("password=")) {
                return "one of its options is not known, or has a wrong value".to_owned();
            }
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })?;
        if settings.get_hosts().is_empty() {
            return Err("it names no host".to_owned());
        }
        if settings.get_user().is_none() {
            return Err("it names no user".to_owned());
        }
        settings.ssl_mode(ssl_mode);
        if settings.get_connect_timeout().is_none() {
            settings.connect_timeout(CONNECT_TIMEOUT);
        }
        if settings.get_tcp_user_timeout().is_none() {
            settings.tcp_user_timeout(UNACKNOWLEDGED_MAX);
        }
        if settings.get_application_name().is_none() {
            settings.application_name("countersign");
        }
        Ok(Self { settings, proof, root })
    }

    /// Whom an operator knows it as: hosts and name, no password.
    pub fn shown(&self) -> String {
        use tokio_postgres::config::Host;
        let ports = self.settings.get_ports();
        let host = |(index, host): (usize, &Host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => path.display().to_string(),
            }
        };
        let hosts: Vec<_> = self.settings.get_hosts().iter().enumerate().map(host).collect();
        let name = self.settings.get_dbname().or(self.settings.get_user()).unwrap_or_default();
        format!("{}/{name}", hosts.join(","))
    }
}

/// Whether what the client library takes for host, database or options may be a part of the password: the library takes the
/// first `@` for the one before the host, whatever it stands in.
fn is_ambiguous(url: &str) -> bool {
    let authority = url.split("//").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next());
    let before_host = authority.unwrap_or_default().matches('@').count();
    before_host > 1 || url.matches('@').count() > before_host
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Database({}, {:?}, {:?}, {:?})",
            self.shown(),
            self.settings.get_ssl_mode(),
            self.proof,
            self.root
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_what_tls_has_to_prove() {
        for (query, mode, proof) in [
            ("", SslMode::Prefer, Proof::None),
            ("?sslmode=disable", SslMode::Disable, Proof::None),
            ("?sslmode=require", SslMode::Require, Proof::None),
            ("?sslmode=require&sslrootcert=/ca.pem", SslMode::Require, Proof::Authority),
            ("?sslmode=verify-ca", SslMode::Require, Proof::Authority),
            ("?connect_timeout=3&sslmode=verify-full&sslrootcert=system", SslMode::Require, Proof::Name),
        ] {
            let database = Database::parse(&format!("postgres://u:p@db.example/n{query}")).unwrap();
            assert_eq!((database.settings.get_ssl_mode(), database.proof), (mode, proof), "{query}");
        }
        let rooted = Database::parse("postgres://u@h/n?sslrootcert=%2Fetc%2Fca.pem").unwrap();
        assert_eq!(rooted.root, Some(PathBuf::from("/etc/ca.pem")));
    }

    #[test]
    fn what_is_shown_has_no_password() {
        let database = Database::parse("postgresql://u:hunter2@one:1,two:2/name?sslmode=disable").unwrap();
        assert_eq!(database.shown(), "one:1,two:2/name");
        assert!(!format!("{database:?}").contains("hunter2"));
    }

    #[test]
    fn a_wrong_url_is_told_without_being_shown() {
        for (url, problem) in [
            ("hunter2", "it does not begin with `postgres://`"),
            ("postgres://u:hunter2@h/n?sslmode=maybe", "`sslmode` is none of"),
            ("postgres:///n", "it names no host"),
            ("postgres://h/n", "it names no user"),
            ("postgres://u:hunter2@h/n?colour=blue", "unknown option `colour`"),
            ("postgres://h/n?user=u&password=green&hunter2=", "one of its options is not known"),
        ] {
            let found = Database::parse(url).unwrap_err();
            assert!(found.contains(problem) && !found.contains("hunter2"), "{url}: {found}");
        }
    }

    /// What came after it was shown as the host, the database or an option.
    #[test]
    fn a_password_that_is_not_escaped_is_refused_and_not_shown() {
        for mark in ["@", "/", "?", "#", "@/", "/@", "?@", "@?", "#@", "@a=b&", "?a=b@", "@/?@"] {
            let url = format!("postgres://u:green{mark}hunter2@h/n?sslmode=disable");
            let found = Database::parse(&url).unwrap_err();
            assert!(found.contains("%40") && !found.contains("hunter2"), "{url}: {found}");
        }
        let escaped = Database::parse("postgres://u:green%40%2F%3F%23hunter2@h/n").unwrap();
        assert_eq!(escaped.settings.get_password(), Some(&b"green@/?#hunter2"[..]));
        assert_eq!(escaped.shown(), "h:5432/n");
    }
}
