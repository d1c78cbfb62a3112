//! Who may use the admin API: bearers of a configured token, or, without tokens, whoever sits on this machine and
//! names it as such.

use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::audit::Operator;
use crate::config::{Admin, AdminToken, Role};

/// What a proxy says of itself or of its client. One that says nothing cannot be told from whoever sits here.
const PROXIED: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// Why a request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token, or not one of ours.
    #[error("send `Authorization: Bearer` with one of admin.tokens")]
    Token,
    /// A name that may be another site's, pointed at this machine (DNS rebinding).
    #[error("without admin.tokens, only requests to localhost by that name or by its address are answered")]
    Host,
    /// A page of another site has sent it, in a browser on this machine.
    #[error("without admin.tokens, what the page of another site sends is not answered")]
    Origin,
    /// A proxy on this machine has passed it on, from wherever.
    #[error("without admin.tokens, what a proxy has passed on is not answered")]
    Proxied,
    /// More wrong tokens of its address, or more requests of its token, than may be; the next is looked at after so long.
    #[error("too many wrong tokens, or too many requests: come again later")]
    TooOften(Duration),
}

impl Denied {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::Host | Self::Origin | Self::Proxied => StatusCode::FORBIDDEN,
            Self::TooOften(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// Who the sender of a request with these headers is, and what it may do.
///
/// # Errors
/// When it may do nothing.
pub fn admit(admin: &Admin, headers: &HeaderMap) -> Result<Operator, Denied> {
    if admin.tokens.is_empty() {
        if !names_this_machine(headers) {
            return Err(Denied::Host);
        }
        if PROXIED.iter().any(|name| headers.contains_key(*name)) {
            return Err(Denied::Proxied);
        }
        return if is_foreign(headers) { Err(Denied::Origin) } else { Ok(local()) };
    }
    let offered = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
    let Some((scheme, offered)) = offered else { return Err(Denied::Token) };
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(Denied::Token);
    }
    // Digests, so that comparing takes the same time whatever the length; and every token is compared.
    let offered = Sha256::digest(offered);
    let matches = |token: &&AdminToken| bool::from(Sha256::digest(token.token.expose()).ct_eq(&offered));
    let found: Vec<&AdminToken> = admin.tokens.iter().filter(matches).collect();
    let known = |token: &&AdminToken| Operator { name: token.name.to_string(), role: token.role };
    found.first().map(known).ok_or(Denied::Token)
}

/// Whoever sits on this machine.
fn local() -> Operator {
    Operator { name: "local".to_owned(), role: Role::Operator }
}

/// Browsers say which site's page sends what could change something.
fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get(ORIGIN).map(|origin| origin.as_bytes().strip_prefix(b"http://"));
    site.is_some_and(|site| site != headers.get(HOST).map(http::HeaderValue::as_bytes))
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn check(tokens: &[(&str, Role)], headers: &[(&str, &str)], expected: Result<Role, Denied>) {
        let token = |(token, role): &(&str, Role)| AdminToken {
            name: "x".into(),
            role: *role,
            token: Secret::new(*token).unwrap(),
        };
        let admin = Admin { address: ([127, 0, 0, 1], 0).into(), tokens: tokens.iter().map(token).collect() };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        assert_eq!(admit(&admin, &map).map(|operator| operator.role), expected, "{headers:?}");
    }

    #[test]
    fn tokens() {
        let tokens = [("look-at-it", Role::Viewer), ("change-it", Role::Operator)];
        check(&tokens, &[("authorization", "Bearer look-at-it")], Ok(Role::Viewer));
        check(&tokens, &[("authorization", "bearer change-it")], Ok(Role::Operator));
        check(&tokens, &[("authorization", "Bearer change")], Err(Denied::Token));
        check(&tokens, &[("authorization", "Basic change-it")], Err(Denied::Token));
        check(&tokens, &[("authorization", "")], Err(Denied::Token));
        check(&tokens, &[("host", "localhost")], Err(Denied::Token));
    }

    #[test]
    fn without_tokens_only_this_machine_by_its_own_name() {
        for host in ["localhost", "localhost:8081", "127.0.0.1:8081", "[::1]:8081", "LOCALHOST"] {
            check(&[], &[("host", host)], Ok(Role::Operator));
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", ""] {
            check(&[], &[("host", host)], Err(Denied::Host));
        }
        check(&[], &[], Err(Denied::Host));
        let host = ("host", "127.0.0.1:8081");
        check(&[], &[host, ("origin", "http://127.0.0.1:8081")], Ok(Role::Operator));
        for origin in ["https://evil.example", "http://127.0.0.1:3000", "null"] {
            check(&[], &[host, ("origin", origin)], Err(Denied::Origin));
        }
        for name in PROXIED {
            check(&[], &[host, (name, "10.0.0.1")], Err(Denied::Proxied));
        }
        let token = [("token-1234", Role::Viewer)];
        check(&token, &[("authorization", "Bearer token-1234"), ("via", "1.1 proxy")], Ok(Role::Viewer));
    }
}
