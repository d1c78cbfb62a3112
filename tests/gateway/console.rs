//! Promise: in a browser, operators see and do what the API does, nobody else does, and what strangers have sent stays text.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::admin::get as api;
use crate::backend::{Backend, Reply};
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, PATIENCE, eventually};

pub(crate) const TOKENS: &str = "admin.tokens = [{ name = \"ops\", role = \"operator\", value = \"a-token-for-operators\" },\n\
     { name = \"eye\", role = \"viewer\", value = \"a-token-for-viewers\" }]\n";

/// An answer of the console.
pub(crate) struct Page {
    pub(crate) status: u16,
    head: String,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// What its forms send.
    #[track_caller]
    fn csrf(&self) -> String {
        let (_, rest) = self.text.split_once("name=\"csrf\" value=\"").expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }

    #[track_caller]
    fn says(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.text.contains(text), "no {text:?} in {} {}", self.status, self.text);
        }
    }
}

/// A browser, as far as cookies and forms go.
pub(crate) struct Browser<'a> {
    gateway: &'a Gateway,
    cookies: Mutex<Vec<(String, String)>>,
}

impl<'a> Browser<'a> {
    pub(crate) fn new(gateway: &'a Gateway) -> Self {
        Self { gateway, cookies: Mutex::default() }
    }

    pub(crate) fn logged_in(gateway: &'a Gateway, token: &str) -> Self {
        let browser = Self::new(gateway);
        let page = browser.login(token);
        assert_eq!((page.status, page.header("location")), (303, Some("/")), "{}", page.text);
        browser
    }

    pub(crate) fn login(&self, token: &str) -> Page {
        let csrf = self.get("/login").csrf();
        self.send("POST", "/login", "", &form(&[("csrf", &csrf), ("token", token), ("next", "/")]))
    }

    pub(crate) fn get(&self, path: &str) -> Page {
        self.send("GET", path, "", "")
    }

    /// Sends a form of the page at `from`, and follows where that leads.
    #[track_caller]
    fn submit(&self, from: &str, to: &str, fields: &[(&str, &str)]) -> Page {
        let csrf = self.get(from).csrf();
        let page = self.send("POST", to, "", &form(&[&[("csrf", &*csrf)], fields].concat()));
        assert_eq!(page.status, 303, "{to}: {}", page.text);
        self.get(page.header("location").unwrap())
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Page {
        let cookies = self
            .cookies
            .lock()
            .unwrap()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nCookie: {}\r\n{}Content-Length: {}\r\n{headers}\r\n{body}",
            self.gateway.admin,
            cookies.join("; "),
            if body.is_empty() { "" } else { "Content-Type: application/x-www-form-urlencoded\r\n" },
            body.len(),
        );
        let mut stream = TcpStream::connect(self.gateway.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        let page = Page {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            text: text.to_owned(),
        };
        for line in head.lines() {
            let Some(set) = line.strip_prefix("set-cookie: ") else { continue };
            assert!(set.contains("; HttpOnly; SameSite=Strict; Path=/; Max-Age="), "{set}");
            let (name, value) = set.split(';').next().unwrap().split_once('=').unwrap();
            let mut cookies = self.cookies.lock().unwrap();
            cookies.retain(|(known, _)| known != name);
            if !value.is_empty() {
                cookies.push((name.to_owned(), value.to_owned()));
            }
        }
        page
    }
}

fn form(fields: &[(&str, &str)]) -> String {
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

fn send(gateway: &Gateway, id: &str) -> u16 {
    Post::signed("github", "/webhooks/github", id, "push", &body(id)).send(gateway.listen).status
}

const PAGES: [&str; 7] = ["/", "/deliveries", "/dead", "/refused", "/destinations", "/sources", "/changes"];

#[test]
fn a_token_opens_a_session_that_ends_with_it() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    let stranger = Browser::new(&gateway);
    for path in PAGES {
        let page = stranger.get(path);
        let location = page.header("location").unwrap_or_default();
        assert!(
            page.status == 303 && location.starts_with("/login?next=%2F"),
            "{path}: {} {location}",
            page.status
        );
    }
    assert_eq!(stranger.get("/live").status, 303);
    for path in ["/logout", "/destinations/legacy/pause", "/replay", "/dead/purge", "/refused/reverify"] {
        assert_eq!(stranger.send("POST", path, "", "csrf=x").status, 401, "{path}");
    }
    let wrong = stranger.login("not-a-token-of-ours");
    assert_eq!(wrong.status, 401);
    wrong.says(&["this is not one of admin.tokens"]);
    // Not from the page of another site, nor without what the form was given.
    let csrf = stranger.get("/login").csrf();
    let fields = form(&[("csrf", &csrf), ("token", "a-token-for-operators")]);
    assert_eq!(stranger.send("POST", "/login", "Origin: http://evil.example\r\n", &fields).status, 403);
    assert_eq!(Browser::new(&gateway).send("POST", "/login", "", &fields).status, 403);
    let led = stranger.send(
        "POST",
        "/login",
        "",
        &form(&[
            ("csrf", &stranger.get("/login").csrf()),
            ("token", "a-token-for-operators"),
            ("next", "//evil.example"),
        ]),
    );
    assert_eq!((led.status, led.header("location")), (303, Some("/")));

    let browser = Browser::logged_in(&gateway, "a-token-for-operators");
    for path in PAGES {
        let page = browser.get(path);
        assert_eq!(page.status, 200, "{path}");
        page.says(&["ops", "Log out", "aria-current=\"page\""]);
        assert!(!page.text.contains("a-token-for-operators"));
    }
    // The API takes no cookies.
    assert_eq!(browser.get("/api/v1/status").status, 401);
    let held: Vec<_> = browser.cookies.lock().unwrap().clone();
    let csrf = browser.get("/").csrf();
    let out = browser.send("POST", "/logout", "", &form(&[("csrf", &csrf)]));
    assert_eq!((out.status, out.header("location")), (303, Some("/login")));
    *browser.cookies.lock().unwrap() = held;
    assert_eq!(browser.get("/").status, 303, "the session is gone, not only the cookie");

    // A token that a reload takes away takes its sessions with it.
    let browser = Browser::logged_in(&gateway, "a-token-for-operators");
    let other = TOKENS.replace("a-token-for-operators", "another-token-for-operators");
    gateway.rewrite(&format!("{other}{}", every_provider(&backend)));
    gateway.signal("HUP");
    eventually("the session ends", || browser.get("/").status == 303);
    assert!(!gateway.log().contains("a-token-for-operators"));
}

#[test]
fn what_no_form_of_the_session_has_sent_changes_nothing() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    let browser = Browser::logged_in(&gateway, "a-token-for-operators");
    let other = Browser::logged_in(&gateway, "a-token-for-operators");
    let pause = "/destinations/legacy/pause";
    let (csrf, foreign) = (browser.get("/").csrf(), other.get("/").csrf());
    let ours = form(&[("csrf", &csrf)]);
    for (headers, fields) in [
        ("", ""),
        ("", "csrf="),
        ("", &*form(&[("csrf", &foreign)])),
        ("Origin: http://evil.example\r\n", &*ours),
        ("Origin: null\r\n", &*ours),
        ("Sec-Fetch-Site: cross-site\r\n", &*ours),
    ] {
        let page = browser.send("POST", pause, headers, fields);
        assert_eq!(page.status, 403, "{headers}{fields}");
        page.says(&["this form is not of this session", "<nav"]);
    }
    let large = form(&[("csrf", &csrf), ("x", &"x".repeat(30_000))]);
    assert_eq!(browser.send("POST", pause, "", &large).status, 413);
    assert!(browser.get("/destinations").text.contains("/destinations/legacy/pause"));
    assert!(browser.get("/changes").text.contains("POST /login"), "logins are told");
    let own = format!("Origin: http://{}\r\n", gateway.admin);
    assert_eq!(browser.send("POST", pause, &own, &ours).status, 303);
    browser.get("/destinations").says(&["legacy is paused.", "/destinations/legacy/resume"]);
    browser.get("/changes").says(&["POST /destinations/legacy/pause", "ops"]);
}

#[test]
fn a_viewer_sees_all_and_has_no_buttons() {
    let backend = Backend::start(|_, _| Reply::Status(400));
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    assert_eq!(send(&gateway, "a"), 200);
    let (viewer, operator) = (
        Browser::logged_in(&gateway, "a-token-for-viewers"),
        Browser::logged_in(&gateway, "a-token-for-operators"),
    );
    eventually("a dead letter", || viewer.get("/dead").text.contains("rejected"));
    let list = viewer.get("/deliveries");
    let id = list.text.split("data-id=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let detail = format!("/deliveries/{id}");
    let forged = Post { headers: Vec::new(), ..Post::signed("github", "/webhooks/github", "f", "x", b"{}") };
    assert_eq!(forged.send(gateway.listen).status, 401);
    eventually("a rejection", || viewer.get("/refused").text.contains("href=\"/refused/"));
    for path in PAGES.iter().copied().chain([&*detail]) {
        let (seen, done) = (viewer.get(path), operator.get(path));
        assert_eq!(seen.status, 200, "{path}");
        let posts = |page: &Page| page.text.matches("method=\"post\"").count();
        assert_eq!(posts(&seen), 1, "{path}: only the logout");
        if ["/dead", "/refused", "/destinations", "/sources", &*detail].contains(&path) {
            assert!(posts(&done) > 1, "{path}");
        }
    }
    let csrf = form(&[("csrf", &viewer.get("/").csrf())]);
    for path in [
        &*format!("{detail}/replay"),
        &*format!("{detail}/cancel"),
        "/dead/replay",
        "/dead/purge",
        "/replay",
        "/jobs/x/cancel",
        "/refused/x/reverify",
        "/refused/reverify",
        "/sources/github/test",
        "/destinations/legacy/pause",
        "/destinations/legacy/resume",
        "/destinations/legacy/probe",
    ] {
        let page = viewer.send("POST", path, "", &csrf);
        assert_eq!(page.status, 403, "{path}");
        page.says(&["this takes a token whose role is `operator`"]);
    }
}

#[test]
fn without_tokens_this_machine_is_let_in_by_its_own_name_only() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let browser = Browser::new(&gateway);
    let page = browser.get("/");
    assert_eq!(page.status, 200);
    assert!(page.text.contains("local") && !page.text.contains("Log out"));
    assert_eq!(browser.get("/login").header("location"), Some("/"));
    let mut stream = TcpStream::connect(gateway.admin).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let csrf = form(&[("csrf", &browser.get("/destinations").csrf())]);
    let pause = "/destinations/legacy/pause";
    assert_eq!(browser.send("POST", pause, "Origin: http://evil.example\r\n", &csrf).status, 403);
    assert_eq!(browser.send("POST", pause, "", "csrf=guessed").status, 403);
    assert_eq!(browser.send("POST", pause, "", &csrf).status, 303);
    assert_eq!(api(&gateway, "destinations")["destinations"][0]["state"], "paused");
}

#[test]
fn no_page_may_run_or_load_anything_that_is_not_ours() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend));
    let browser = Browser::new(&gateway);
    for path in PAGES.iter().copied().chain([
        "/login",
        "/assets/console.css",
        "/assets/console.js",
        "/assets/icon.svg",
        "/deliveries/x",
        "/nowhere",
        "/api/v1/status",
        "/api/v1/nowhere",
        "/api/v1/openapi.json",
        "/metrics",
        "/livez",
    ]) {
        let page = browser.get(path);
        let policy = page.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{path}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'") && policy.contains("form-action 'self'"),
            "{policy}"
        );
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(page.header("referrer-policy"), Some("same-origin"), "{path}");
        assert!(
            page.header("cache-control")
                .is_some_and(|said| said == "no-store" || path.starts_with("/assets/"))
        );
        if path.starts_with("/assets/") {
            assert!(page.status == 200 && page.text.len() > 100);
            assert!(!page.text.contains("//cdn") && !page.text.contains("https://"), "{path}");
        } else {
            assert!(
                !page.text.contains(" style=")
                    && !page.text.contains("<style")
                    && !page.text.contains(" onclick")
            );
            assert!(page.text.matches("<script").count() <= 1, "{path}");
        }
    }
    // Errors are pages, too.
    for (path, status) in [
        ("/deliveries/x", 400),
        ("/deliveries?limit=many", 400),
        ("/deliveries?state=odd", 400),
        ("/deliveries/01890000-0000-7000-8000-000000000000", 404),
        ("/refused/01890000-0000-7000-8000-000000000000", 404),
        ("/jobs/x", 404),
    ] {
        let page = browser.get(path);
        assert_eq!(page.status, status, "{path}: {}", page.text);
        page.says(&["role=\"alert\"", "<nav"]);
    }
}

#[test]
fn a_delivery_is_found_shown_replayed_and_cancelled() {
    let backend = Backend::start(|_, got| {
        Reply::Status(if got.body.starts_with(br#"{"id":"dies""#) { 422 } else { 200 })
    });
    let gateway = Gateway::start(&every_provider(&backend));
    let browser = Browser::new(&gateway);
    for id in ["a", "b", "dies"] {
        assert_eq!(send(&gateway, id), 200);
    }
    backend.eventually_got(3);
    eventually("settled", || browser.get("/deliveries?state=dead").text.contains("data-id"));
    let rows = |query: &str| browser.get(&format!("/deliveries{query}")).text.matches("data-id=").count();
    assert_eq!(
        (rows(""), rows("?q=%22id%22%3A%22b%22"), rows("?delivery_id=a&source=github&event=&state=")),
        (3, 1, 1)
    );
    assert_eq!(
        (
            rows("?source=stripe"),
            rows("?state=dead"),
            rows("?event=push"),
            rows("?since=1h"),
            rows("?until=1h")
        ),
        (0, 1, 3, 3, 0)
    );
    let page = browser.get("/deliveries?limit=2&event=push");
    assert_eq!(page.text.matches("data-id=").count(), 2);
    let older = page
        .text
        .split("rel=\"next\" href=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .replace("&amp;", "&");
    assert_eq!(browser.get(&older).text.matches("data-id=").count(), 1, "{older}");

    let list = browser.get("/deliveries?state=dead");
    let id = list.text.split("data-id=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let path = format!("/deliveries/{id}");
    let detail = browser.get(&path);
    // Masked headers, pretty body, how it was verified, the attempt with the backend's answer, and a command.
    detail.says(&[
        "x-hub-signature-256",
        "bytes)",
        "\n  &quot;id&quot;: &quot;dies&quot;,",
        "github",
        "rejected",
        "status 422",
        "curl --globoff --request",
        "Without what is masked",
    ]);
    assert!(!detail.text.contains("sha256="), "the signature is masked");
    browser.get(&format!("{path}?view=raw")).says(&["{&quot;id&quot;:&quot;dies&quot;,"]);
    let download = browser.get(&format!("{path}/body"));
    assert_eq!(download.text.as_bytes(), body("dies"));
    assert_eq!(download.header("content-disposition"), Some(&*format!("attachment; filename=\"{id}.bin\"")));
    assert_eq!(download.header("content-type"), Some("application/octet-stream"));
    assert_eq!(download.header("content-security-policy"), Some("sandbox; default-src 'none'"));

    browser.submit(&path, &format!("{path}/replay"), &[]).says(&["Forwarded again: legacy."]);
    backend.eventually_got(4);
    eventually("dead again", || browser.get("/deliveries?state=dead").text.contains("data-id"));
    browser.submit("/destinations", "/destinations/legacy/pause", &[]);
    browser.submit(&path, &format!("{path}/replay"), &[("destination", "legacy")]);
    browser.get(&path).says(&["waiting"]);
    browser
        .submit(&path, &format!("{path}/cancel"), &[("destination", "legacy")])
        .says(&["Cancelled: legacy.", "cancelled"]);
    browser.submit(&path, &format!("{path}/cancel"), &[]).says(&["Nothing to change: legacy as before."]);
    browser.get("/changes").says(&[&format!("POST {path}/replay"), "to legacy", "local"]);
}

#[test]
fn dead_letters_are_grouped_and_replayed_or_purged_with_progress() {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let backend =
        Backend::start(move |_, _| Reply::Status(if is_mended.load(Ordering::SeqCst) { 200 } else { 410 }));
    let gateway = Gateway::start(&every_provider(&backend));
    let browser = Browser::new(&gateway);
    for n in 0..6 {
        assert_eq!(send(&gateway, &format!("n{n}")), 200);
    }
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 6.0);
    browser.get("/").says(&["Dead", ">6</a>"]);
    browser.get("/dead").says(&[
        "legacy",
        "rejected",
        "href=\"/dead?destination=legacy&amp;outcome=rejected\">6</a>",
    ]);
    let these = [("destination", "legacy"), ("outcome", "rejected"), ("source", "")];
    let dry = [&these[..], &[("dry_run", "yes")]].concat();
    browser.submit("/dead", "/dead/replay", &dry).says(&["6 match; nothing was changed.", "dry run"]);
    mended.store(true, Ordering::SeqCst);
    browser.submit("/dead", "/dead/purge", &[("delivery_id", "n0")]).says(&["1 of 1 changed."]);
    // One a second: it is seen under way, and ended.
    let slow = [&these[..], &[("rate", "1/s")]].concat();
    let job = browser.submit("/dead", "/dead/replay", &slow);
    job.says(&["<progress", "End it here", "data-refresh"]);
    let cancel = job.text.split("action=\"/jobs/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let path = format!("/jobs/{}", cancel.trim_end_matches("/cancel"));
    browser.submit(&path, &format!("/jobs/{cancel}"), &[]).says(&["It ends where it is."]);
    eventually("the job ends", || browser.get(&path).text.contains("cancelled"));
    let again = browser.send(
        "POST",
        &format!("/jobs/{cancel}"),
        "",
        &form(&[("csrf", &browser.get("/dead").csrf())]),
    );
    assert_eq!(again.status, 409);
    browser.submit("/dead", "/dead/replay", &these);
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 0.0);
    browser.get("/dead").says(&["There are none.", "replay", "purge"]);
    // By filter, whatever state it is in; but not without one.
    browser.submit("/dead", "/dead/replay", &[]).says(&["0 of 0 changed."]);
    browser.submit("/destinations", "/replay", &[("delivery_id", "n3")]).says(&["1 of 1 changed."]);
    let all = browser.send("POST", "/replay", "", &form(&[("csrf", &browser.get("/dead").csrf())]));
    assert_eq!(all.status, 400);
    all.says(&["say which"]);
}

#[test]
fn what_is_refused_is_explained_and_let_in_once_it_verifies() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&every_provider(&backend).replace("whsec_c2VjcmV0", "whsec_b3RoZXJz"));
    let browser = Browser::new(&gateway);
    for id in ["a", "b", "c"] {
        assert_eq!(send(&gateway, id), 401);
    }
    eventually("three in quarantine", || {
        browser.get("/refused").text.matches("href=\"/refused/").count() == 3
    });
    let list = browser.get("/refused?source=github&reason=signature_mismatch");
    list.says(&["signature mismatch", ">3</td>"]);
    assert_eq!(browser.get("/refused?source=stripe").text.matches("href=\"/refused/").count(), 0);
    let id = list.text.split("href=\"/refused/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let path = format!("/refused/{id}");
    browser.get(&path).says(&[
        "It would be refused now, too",
        "<ol class=\"causes\">",
        "x-hub-signature-256",
        "bytes)",
    ]);
    browser.submit(&path, &format!("{path}/reverify"), &[]).says(&["Still refused: signature mismatch."]);
    gateway.rewrite(&every_provider(&backend));
    gateway.signal("HUP");
    eventually("the secret is mended", || browser.get(&path).text.contains("It verifies by now"));
    browser.submit(&path, &format!("{path}/reverify"), &[]).says(&["Let in: stored.", "It has been let in"]);
    browser.get(&format!("/deliveries/{id}")).says(&["github"]);
    browser
        .submit("/refused", "/refused/reverify", &[("source", "github"), ("reason", "")])
        .says(&["2 of 2 let in."]);
    backend.eventually_got(3);
}

#[test]
fn destinations_and_sources_show_how_they_stand() {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let backend =
        Backend::start(move |_, _| Reply::Status(if is_up.load(Ordering::SeqCst) { 200 } else { 500 }));
    let sections = every_provider(&backend).replace(
        "name = \"legacy\"",
        "name = \"legacy\"\nbreaker = { failures = 1, probe_after = \"1h\", probe_max = \"1h\" }\nretry = { schedule = [\"1s\"], jitter = \"none\" }",
    );
    let gateway = Gateway::start(&format!("listen.public_url = \"https://hooks.example.com\"\n{sections}"));
    let browser = Browser::new(&gateway);
    let early = browser.send(
        "POST",
        "/destinations/legacy/probe",
        "",
        &form(&[("csrf", &browser.get("/destinations").csrf())]),
    );
    assert_eq!(early.status, 409, "nothing to probe");
    early.says(&["its breaker is not open"]);
    assert_eq!(send(&gateway, "a"), 200);
    eventually("the breaker opens", || {
        browser.get("/destinations").text.contains("/destinations/legacy/probe")
    });
    browser.get("/").says(&["Needs attention", "is <span class=\"state bad\">broken</span>"]);
    up.store(true, Ordering::SeqCst);
    browser.submit("/destinations", "/destinations/legacy/probe", &[]).says(&["legacy is probed"]);
    eventually("it is back", || browser.get("/destinations").text.contains("breaker closed"));
    backend.eventually_got(2);
    browser
        .submit("/destinations", "/destinations/legacy/pause", &[])
        .says(&["legacy is paused.", "by an operator"]);
    browser.submit("/destinations", "/destinations/legacy/resume", &[]).says(&["legacy is resumed."]);
    let missing = browser.send(
        "POST",
        "/destinations/none/pause",
        "",
        &form(&[("csrf", &browser.get("/destinations").csrf())]),
    );
    assert_eq!(missing.status, 404);
    browser.get("/sources").says(&[
        "https://hooks.example.com/webhooks/github",
        "Secrets",
        "Last use",
        "the provider makes none",
        "<time",
    ]);
    assert_eq!(api(&gateway, "sources")["sources"][0]["url"], "https://hooks.example.com/webhooks/owlette");
}

#[test]
fn what_strangers_have_sent_is_shown_as_text() {
    let backend = Backend::start(|_, _| {
        Reply::Last("HTTP/1.1 400 X\r\nContent-Length: 26\r\n\r\n<script>alert(8)</script>\n")
    });
    let gateway = Gateway::start(&every_provider(&backend));
    let browser = Browser::new(&gateway);
    let script = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";
    let target = "/webhooks/github?x=<svg/onload=alert(3)>".replace('<', "%3C").replace('>', "%3E");
    let hostile = format!("{{\"id\":\"{}\",\"rtl\":\"\u{202e}evil\"}}", script.replace('"', "\\\""));
    let post = Post::signed("github", &target, script, script, hostile.as_bytes()).with("x-odd", script);
    assert_eq!(post.send(gateway.listen).status, 200);
    eventually("it is dead", || browser.get("/deliveries?state=dead").text.contains("data-id"));
    let list = browser.get("/deliveries");
    let id = list.text.split("data-id=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert_eq!(post.clone().without("x-hub-signature-256").send(gateway.listen).status, 401);
    eventually("a rejection", || browser.get("/refused").text.contains("href=\"/refused/"));
    let rejected = browser
        .get("/refused")
        .text
        .split("href=\"/refused/")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    let encoded = "%3Cscript%3Ealert(1)%3C/script%3E%22%27%3E%3Cimg%20src=x%20onerror=alert(2)%3E";
    for path in [
        "/".to_owned(),
        "/deliveries".to_owned(),
        format!("/deliveries/{id}"),
        format!("/deliveries/{id}?view=raw"),
        format!("/deliveries?q={encoded}&event={encoded}&source={encoded}&outcome={encoded}"),
        format!("/dead?delivery_id={encoded}"),
        "/refused".to_owned(),
        format!("/refused/{rejected}"),
        format!("/refused?source={encoded}&reason={encoded}"),
        format!("/deliveries?state={encoded}"),
        format!("/deliveries?{encoded}=1"),
        format!("/login?next={encoded}"),
    ] {
        let text = browser.get(&path).text;
        for live in ["<script>", "<img", "<svg/", "\u{202e}"] {
            assert!(!text.contains(live), "{path} has {live}: {text}");
        }
    }
    let detail = browser.get(&format!("/deliveries/{id}"));
    detail.says(&["&lt;script&gt;alert(1)", "&lt;script&gt;alert(8)", "\\u{202e}evil"]);

    // Bytes that are no text, and a body too large to be shown whole.
    let binary = [&b"\x00\xff\xfe<script>"[..], &[0x80; 5_000]].concat();
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(400_000));
    for (key, bytes, shown) in
        [("bin", &binary[..], "000000  00 ff fe 3c 73 63"), ("big", large.as_bytes(), "The beginning only")]
    {
        assert_eq!(
            Post::signed("github", "/webhooks/github", key, "push", bytes).send(gateway.listen).status,
            200
        );
        let list = browser.get(&format!("/deliveries?delivery_id={key}"));
        let id = list.text.split("data-id=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let page = browser.get(&format!("/deliveries/{id}"));
        page.says(&[shown, &format!("@{id}.bin")]);
        assert!(page.text.len() < 300_000, "{}", page.text.len());
    }
}

#[test]
fn the_live_tail_tells_deliveries_to_who_has_a_session() {
    let backend = Backend::accepting();
    let gateway = Gateway::start(&format!("{TOKENS}{}", every_provider(&backend)));
    let browser = Browser::logged_in(&gateway, "a-token-for-viewers");
    let cookie = browser
        .cookies
        .lock()
        .unwrap()
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join("; ");
    let mut stream = TcpStream::connect(gateway.admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /live HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", gateway.admin).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("HTTP/1.1 200 OK"));
    assert!(
        lines
            .by_ref()
            .take_while(|line| !line.is_empty())
            .any(|line| line == "content-type: text/event-stream")
    );
    assert_eq!(send(&gateway, "a"), 200);
    assert!(lines.by_ref().any(|line| line == "event: delivery"));
    assert!(lines.next().unwrap().contains("\"delivery_id\":\"a\""));
}

#[test]
fn a_test_delivery_is_signed_verified_and_forwarded() {
    let backend = Backend::accepting();
    let nothing = "[[source]]\nname = \"open\"\nverify = \"none\"\nto = [\"legacy\"]\n";
    let gateway = Gateway::start(&format!("{nothing}{}", every_provider(&backend)));
    let browser = Browser::new(&gateway);
    for source in crate::sender::ALL {
        let page = browser.submit("/sources", &format!("/sources/{source}/test"), &[]);
        page.says(&["Sent, verified and stored", "countersign.test", "secret-1", source]);
    }
    backend.eventually_got(crate::sender::ALL.len());
    let csrf = form(&[("csrf", &browser.get("/sources").csrf())]);
    for (source, status) in [("open", 409), ("nowhere", 404)] {
        assert_eq!(
            browser.send("POST", &format!("/sources/{source}/test"), "", &csrf).status,
            status,
            "{source}"
        );
    }
    gateway.eventually_metric("countersign_conservation_imbalance{equation=\"requests\"}", 0.0);
}
