//! Who looks at a page, and whether a form was filled in on one of ours.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Form, FromRequest as _, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use http::header::{ALLOW, AUTHORIZATION, COOKIE, HOST, ORIGIN, RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use maud::html;
use serde::Deserialize;
use tokio::time::Instant;

use super::layout::{bare, refusal};
use super::session::{LASTS, Session, random};
use super::{Console, layout};
use crate::admin::BODY_MAX;
use crate::admin::audit::{AuditEntry, Operator};
use crate::admin::auth::Denied;
use crate::admin::refused::{Why, problem};
use crate::config::Role;
use crate::secret::Secret;

/// Who looks at a page.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) operator: Operator,
    pub(super) session: Arc<Session>,
}

impl Visitor {
    /// Whether there is any use in showing a button.
    pub(super) fn may_change(&self) -> bool {
        self.operator.role == Role::Operator
    }
}

impl Console {
    /// Judges a request as the API would, with the token of its session.
    fn visitor(&self, headers: &HeaderMap) -> Result<Visitor, Denied> {
        // A page is for who has a session, whatever else the browser sends.
        let mut judged = headers.clone();
        judged.remove(AUTHORIZATION);
        match self.gateway.admit(&judged) {
            Ok(operator) => return Ok(Visitor { operator, session: Arc::clone(&self.sessions.local) }),
            Err(Denied::Token) => {}
            Err(denied) => return Err(denied),
        }
        let id = cookie(headers, &session_cookie(headers)).ok_or(Denied::Token)?;
        let session = self.sessions.find(id, Instant::now()).ok_or(Denied::Token)?;
        let token = session.token.as_ref().and_then(bearer).ok_or(Denied::Token)?;
        judged.insert(AUTHORIZATION, token);
        let operator = self.gateway.admit(&judged).inspect_err(|_| self.sessions.end(id))?;
        Ok(Visitor { operator, session })
    }

    fn log_refusal(&self, peer: SocketAddr, what: &'static str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unlogged) = refusals.note(self.origin.elapsed()) {
            tracing::warn!(%peer, unlogged, what, "console request refused");
        }
    }
}

/// Lets in who has a session, and sends who has none to the login.
pub(super) async fn enter(
    State(console): State<Console>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let visitor = console.visitor(request.headers());
    match visitor.and_then(|visitor| console.pace.ask(&visitor.operator).map(|()| visitor)) {
        Ok(visitor) => {
            request.extensions_mut().insert(visitor.operator.clone());
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Err(Denied::Token) if request.method() == Method::GET => {
            let wanted = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            let wanted = percent_encoding::utf8_percent_encode(wanted, percent_encoding::NON_ALPHANUMERIC);
            Redirect::to(&format!("/login?next={wanted}")).into_response()
        }
        Err(Denied::Token) => {
            bare(StatusCode::UNAUTHORIZED, "Log in", &refusal("the session is over: log in and try again"))
        }
        Err(denied) => {
            console.log_refusal(peer, "host, origin, proxy or pace");
            as_page(None, denied.into_response())
        }
    }
}

/// The one field that every form has.
#[derive(Deserialize)]
struct Sealed {
    csrf: String,
}

/// Lets through only what a form of ours has sent, in whole and behind [`enter`].
pub(super) async fn from_our_forms(State(console): State<Console>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MAX).await else {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "the form is too large");
    };
    let copy = Request::from_parts(parts.clone(), Body::from(body.clone()));
    let sealed = Form::<Sealed>::from_request(copy, &()).await;
    let visitor = parts.extensions.get::<Visitor>();
    let is_ours = visitor.zip(sealed.ok()).is_some_and(|(visitor, Form(sealed))| {
        visitor.session.is_ours(&sealed.csrf) && !is_from_elsewhere(&parts.headers)
    });
    if !is_ours {
        if let Some(ConnectInfo(peer)) = parts.extensions.get::<ConnectInfo<SocketAddr>>() {
            console.log_refusal(*peer, "not a form of this session");
        }
        let why =
            "this form is not of this session, or another site has sent it: load the page and try again";
        return problem(StatusCode::FORBIDDEN, why);
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

/// Browsers say which site's page has sent a form. Behind a proxy that ends TLS the schemes differ.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    match origin {
        Some(origin) => origin.split_once("://").map(|(_, site)| site) != host,
        None => site.is_some_and(|site| site != b"same-origin" && site != b"none"),
    }
}

/// Turns whatever says in its own way what is wrong into a page.
pub(super) async fn as_pages(request: Request, next: Next) -> Response {
    let visitor = request.extensions().get::<Visitor>().cloned();
    as_page(visitor, next.run(request).await)
}

fn as_page(visitor: Option<Visitor>, response: Response) -> Response {
    let status = response.status();
    let is_page = response.headers().get(http::header::CONTENT_TYPE).is_some_and(|kind| kind == layout::HTML);
    if is_page || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let why = response.extensions().get::<Why>().map(|why| why.0.clone());
    let why = why.unwrap_or_else(|| match status {
        StatusCode::METHOD_NOT_ALLOWED => "this page does not take that method".to_owned(),
        _ => "the request cannot be understood".to_owned(),
    });
    let title = status.canonical_reason().unwrap_or("Error");
    let body = html! { h1 { (title) } (refusal(&why)) };
    let mut page = match visitor {
        Some(visitor) => layout::page(&visitor, None, title, &body),
        None => bare(status, title, &body),
    };
    *page.status_mut() = status;
    for name in [ALLOW, RETRY_AFTER] {
        if let Some(value) = response.headers().get(&name) {
            page.headers_mut().insert(name, value.clone());
        }
    }
    page
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    next: Option<String>,
}

/// The form that asks for a token.
pub(super) async fn show_login(
    State(console): State<Console>,
    axum::extract::Query(wanted): axum::extract::Query<Wanted>,
    headers: HeaderMap,
) -> Response {
    let next = within(wanted.next.as_deref());
    match console.visitor(&headers) {
        Ok(_) => Redirect::to(next).into_response(),
        Err(Denied::Token) => login_page(StatusCode::OK, &headers, next, None),
        Err(denied) => denied.into_response(),
    }
}

#[derive(Deserialize)]
pub(super) struct Login {
    csrf: String,
    token: String,
    next: Option<String>,
}

/// Begins a session.
pub(super) async fn login(
    State(console): State<Console>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Form(login): Form<Login>,
) -> Response {
    let next = within(login.next.as_deref());
    // There is no session yet: what the form has been given stands in a cookie beside it, where no other site can put it.
    let given = cookie(&headers, &login_cookie(&headers)).unwrap_or_default();
    if is_from_elsewhere(&headers) || given.is_empty() || given != login.csrf {
        console.log_refusal(peer, "not a login form of ours");
        return login_page(StatusCode::FORBIDDEN, &headers, next, Some("the form was too old: try again"));
    }
    let mut judged = HeaderMap::new();
    let token = Secret::new(login.token.trim()).ok();
    if let Some(token) = token.as_ref().and_then(bearer) {
        judged.insert(AUTHORIZATION, token);
    }
    if let Some(host) = headers.get(HOST) {
        judged.insert(HOST, host.clone());
    }
    let (token, operator) = match (token, console.pace.try_token(&console.gateway, peer.ip(), &judged)) {
        (Some(token), Ok(operator)) => (token, operator),
        (_, Err(denied @ Denied::TooOften(_))) => {
            console.log_refusal(peer, "too many wrong tokens");
            return denied.into_response();
        }
        _ => {
            console.log_refusal(peer, "no such token");
            let wrong = Some("this is not one of admin.tokens");
            return login_page(StatusCode::UNAUTHORIZED, &headers, next, wrong);
        }
    };
    let id = console.sessions.begin(&operator.name, token, Instant::now());
    note(&console, operator.name, peer, "POST /login");
    let mut response = Redirect::to(next).into_response();
    put_cookie(&mut response, &headers, &session_cookie(&headers), &id, LASTS.as_secs());
    put_cookie(&mut response, &headers, &login_cookie(&headers), "", 0);
    response
}

/// Ends the session. Behind [`from_our_forms`].
pub(super) async fn logout(
    State(console): State<Console>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    axum::Extension(visitor): axum::Extension<Visitor>,
    headers: HeaderMap,
) -> Response {
    if let Some(id) = cookie(&headers, &session_cookie(&headers)) {
        console.sessions.end(id);
        note(&console, visitor.operator.name, peer, "POST /logout");
    }
    let mut response = Redirect::to("/login").into_response();
    put_cookie(&mut response, &headers, &session_cookie(&headers), "", 0);
    response
}

fn note(console: &Console, by: String, peer: SocketAddr, action: &str) {
    let status = StatusCode::SEE_OTHER.as_u16();
    let (peer, action) = (peer.to_string(), action.to_owned());
    console.gateway.record(AuditEntry { at: String::new(), by, peer, action, detail: String::new(), status });
}

fn login_page(status: StatusCode, headers: &HeaderMap, next: &str, wrong: Option<&str>) -> Response {
    let csrf = random();
    let body = html! {
        form.login method="post" action="/login" {
            h1 { "Countersign" }
            @if let Some(wrong) = wrong { (refusal(wrong)) }
            input type="hidden" name="csrf" value=(csrf);
            input type="hidden" name="next" value=(next);
            label for="token" { "Token" }
            input #token type="password" name="token" autocomplete="current-password" required autofocus;
            p.hint { "One of " code { "admin.tokens" } " in the configuration." }
            button.primary type="submit" { "Log in" }
        }
    };
    let mut response = bare(status, "Log in", &body);
    put_cookie(&mut response, headers, &login_cookie(headers), &csrf, 3_600);
    response
}

/// A path of ours, whatever a link to the login says.
fn within(next: Option<&str>) -> &str {
    let ours = |next: &&str| {
        next.starts_with('/')
            && !next[1..].starts_with(['/', '\\'])
            && next.bytes().all(|byte| byte.is_ascii_graphic())
    };
    next.filter(ours).unwrap_or("/")
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Cookies know no ports: gateways on one machine must not log each other's operators out.
fn session_cookie(headers: &HeaderMap) -> String {
    format!("countersign{}", port(headers))
}

fn login_cookie(headers: &HeaderMap) -> String {
    format!("countersign-login{}", port(headers))
}

fn port(headers: &HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let port = host.and_then(|host| host.parse::<http::uri::Authority>().ok()?.port_u16());
    port.map_or_else(String::new, |port| format!("-{port}"))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// For this site only, out of reach of any script; over TLS only where the page came so.
fn put_cookie(response: &mut Response, headers: &HeaderMap, name: &str, value: &str, seconds: u64) {
    let is_secure = headers.get(ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let secure = if is_secure { "; Secure" } else { "" };
    let text = format!("{name}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}");
    if let Ok(text) = HeaderValue::try_from(text) {
        response.headers_mut().append(SET_COOKIE, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_pages_of_ours_only() {
        for (next, expected) in [
            ("/deliveries?q=x", "/deliveries?q=x"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example", "/"),
            ("/a\r\nb", "/"),
            ("", "/"),
        ] {
            assert_eq!(within(Some(next)), expected, "{next:?}");
        }
    }

    #[test]
    fn what_another_site_has_sent_is_known_by_what_browsers_say() {
        let check = |headers: &[(&'static str, &'static str)], expected: bool| {
            let mut map = HeaderMap::new();
            map.insert(HOST, HeaderValue::from_static("gate:8081"));
            for (name, value) in headers {
                map.insert(*name, HeaderValue::from_static(value));
            }
            assert_eq!(is_from_elsewhere(&map), expected, "{headers:?}");
        };
        check(&[], false);
        check(&[("origin", "http://gate:8081")], false);
        check(&[("origin", "https://gate:8081"), ("sec-fetch-site", "same-origin")], false);
        check(&[("origin", "http://gate")], true);
        check(&[("origin", "http://evil.example")], true);
        check(&[("origin", "null")], true);
        check(&[("sec-fetch-site", "cross-site")], true);
        check(&[("sec-fetch-site", "same-site")], true);
    }
}
