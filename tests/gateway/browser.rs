//! Promise: the console works in a real browser: every page, every action, in dark and light, on a phone, by keyboard; and
//! what strangers have sent does nothing there. Takes Debian's `chromium` and `chromium-driver`, which `./test` installs;
//! leaves pictures of all pages in `target/screenshots`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::backend::{Backend, Reply};
use crate::console::TOKENS;
use crate::sender::{Post, body, every_provider};
use crate::support::{Gateway, PATIENCE, eventually};

/// A browser of its own, with a profile of its own, told what to do by WebDriver.
struct Chromium {
    driver: Child,
    port: u16,
    session: String,
    base: String,
    _profile: TempDir,
}

impl Chromium {
    /// `None`, said aloud, where there is none.
    #[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
    fn start(gateway: &Gateway) -> Option<Self> {
        let spawned =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut driver) = spawned else {
            println!("skipped: no chromedriver");
            return None;
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = lines
            .find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let directory = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--window-size=1280,900",
            &directory,
        ];
        let mut browser = Self {
            driver,
            port: port.unwrap(),
            session: String::new(),
            base: format!("http://{}", gateway.admin),
            _profile: profile,
        };
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "unhandledPromptBehavior": "ignore",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        browser.session = browser.ask("POST", "/session", &wanted)["sessionId"].as_str().unwrap().to_owned();
        Some(browser)
    }

    /// A command of WebDriver, which must succeed.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, document: &Value) -> Value {
        self.try_ask(method, path, document).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_ask(&self, method: &str, path: &str, document: &Value) -> Result<Value, Value> {
        let text = if method == "POST" { document.to_string() } else { String::new() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let (mut status, mut length) = (String::new(), 0);
        reader.read_line(&mut status).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        if status.contains(" 200 ") { Ok(answer["value"].clone()) } else { Err(answer["value"].clone()) }
    }

    #[track_caller]
    fn tell(&self, what: &str, document: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{what}", self.session), document)
    }

    #[track_caller]
    fn open(&self, path: &str) {
        self.tell("url", &json!({ "url": format!("{}{path}", self.base) }));
    }

    fn run(&self, script: &str) -> Value {
        self.tell("execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn path(&self) -> String {
        self.run("return location.pathname").as_str().unwrap().to_owned()
    }

    fn text(&self) -> String {
        self.run("return document.body?.innerText ?? ''").as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn find(&self, xpath: &str) -> String {
        let mut found = None;
        eventually(&format!("{xpath} is there"), || {
            let wanted = json!({ "using": "xpath", "value": xpath });
            found = self.try_ask("POST", &format!("/session/{}/element", self.session), &wanted).ok();
            found.is_some()
        });
        found.unwrap().as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn click(&self, xpath: &str) {
        let element = self.find(xpath);
        self.tell(&format!("element/{element}/click"), &json!({}));
    }

    #[track_caller]
    fn write(&self, xpath: &str, text: &str) {
        let element = self.find(xpath);
        self.tell(&format!("element/{element}/value"), &json!({ "text": text }));
    }

    /// Clicks a button, agrees where it asks, and waits for the page to say what was done.
    #[track_caller]
    fn act(&self, xpath: &str, said: &str) {
        self.click(xpath);
        let _ = self.try_ask("POST", &format!("/session/{}/alert/accept", self.session), &json!({}));
        self.eventually_says(said);
    }

    #[track_caller]
    fn eventually_says(&self, text: &str) {
        eventually(&format!("the page says {text}"), || self.text().contains(text));
    }

    /// Keys, as to whatever has the focus.
    fn keys(&self, keys: &str) {
        let actions: Vec<_> = keys
            .chars()
            .flat_map(|key| {
                [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
            })
            .collect();
        self.tell("actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] }));
    }

    fn resize(&self, width: u32, height: u32) {
        self.tell("window/rect", &json!({ "width": width, "height": height }));
    }

    fn picture(&self, name: &str) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        let picture = self.ask("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }

    /// What the browser has found wrong with the pages: refused styles and scripts, errors in ours.
    fn complaints(&self) -> Vec<String> {
        let log = self.tell("se/log", &json!({ "type": "browser" }));
        let severe = log.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.try_ask("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

const PAGES: [(&str, &str); 7] = [
    ("overview", "/"),
    ("deliveries", "/deliveries"),
    ("dead", "/dead"),
    ("refused", "/refused"),
    ("destinations", "/destinations"),
    ("sources", "/sources"),
    ("changes", "/changes"),
];
const SCRIPT: &str = "<script>window.pwned=1</script>\"'><img src=x onerror=\"window.pwned=2\">";

fn send(gateway: &Gateway, id: &str, event: &str) {
    let post = Post::signed("github", "/webhooks/github", id, event, &body(id));
    assert_eq!(post.with("user-agent", "GitHub-Hookshot/1").send(gateway.listen).status, 200);
}

#[test]
fn every_page_and_action_works_in_a_browser() {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let backend = Backend::start(move |_, got| match got.header("countersign-event") {
        Some("deployment.failed") if !is_up.load(Ordering::SeqCst) => {
            Reply::Raw("HTTP/1.1 422 X\r\nContent-Length: 29\r\n\r\n{\"error\":\"no such site: b17\"}")
        }
        Some("down") if !is_up.load(Ordering::SeqCst) => Reply::Status(503),
        _ => Reply::Status(200),
    });
    let sections = every_provider(&backend).replace(
        "name = \"legacy\"",
        "name = \"legacy\"\nconcurrency = 1\nbreaker = { failures = 1, probe_after = \"1h\", probe_max = \"1h\" }\nretry = { schedule = [\"1h\"], jitter = \"none\" }",
    );
    let gateway =
        Gateway::start(&format!("{TOKENS}listen.public_url = \"https://hooks.example.com\"\n{sections}"));
    let Some(browser) = Chromium::start(&gateway) else { return };
    for n in 0..6 {
        send(&gateway, &format!("good-{n}"), "deployment.completed");
    }
    for n in 0..4 {
        send(&gateway, &format!("bad-{n}"), "deployment.failed");
    }
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 4.0);
    for key in ["x-hub-signature-256", "x-github-delivery"] {
        let spoilt = Post::signed("github", "/webhooks/github", "f", "push", b"{}").without(key);
        assert_eq!(
            spoilt.clone().with(key, "sha256=00").send(gateway.listen).status / 100,
            if key.contains("signature") { 4 } else { 2 }
        );
    }

    // In, by keyboard.
    browser.open("/deliveries?source=github");
    browser.eventually_says("Token");
    browser.picture("login");
    browser.write("//input[@id='token']", "wrong-token-of-somebody");
    browser.keys("\u{e007}");
    browser.eventually_says("this is not one of admin.tokens");
    browser.write("//input[@id='token']", "a-token-for-operators");
    browser.keys("\u{e007}");
    browser.eventually_says("Delivery id");
    assert_eq!(browser.path(), "/deliveries", "where one wanted to go");
    // The refused login is an error to the browser's log.
    let _ = browser.complaints();
    browser.keys("\u{e004}");
    assert_eq!(
        browser.run("return document.activeElement.className"),
        "skip",
        "the first stop leads past the navigation"
    );
    browser.keys("/");
    assert_eq!(browser.run("return document.activeElement.name"), "q");

    // A delivery, and what can be done to it.
    browser.open("/deliveries?state=dead");
    browser.click("//tbody/tr[1]//a");
    browser.eventually_says("How it was verified");
    browser.eventually_says("no such site: b17");
    let detail = browser.path();
    browser.picture("delivery");
    browser.click("//button[@data-copy='curl']");
    eventually("it is copied, or marked", || {
        let text = browser.text();
        text.contains("Copied") || text.contains("Marked: copy it")
    });
    browser.click("//a[text()='Raw']");
    browser.eventually_says("{\"id\":\"bad-");
    browser.open(&detail);
    browser.act(
        "//form[contains(@action,'/replay')]//button[text()='Replay to all']",
        "Forwarded again: legacy.",
    );
    browser.open("/destinations");
    browser.act("//button[text()='Pause']", "legacy is paused.");
    browser.picture("destinations-paused");
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 4.0);
    browser.open(&detail);
    browser.act("//td//button[text()='Replay']", "Forwarded again: legacy.");
    browser.act("//button[text()='Cancel what is pending']", "Cancelled: legacy.");
    browser.open("/destinations");
    browser.act("//button[text()='Resume']", "legacy is resumed.");

    browser.open("/sources");
    browser.act(
        "//section[@id='stripe']//button[text()='Send a signed test delivery']",
        "Sent, verified and stored",
    );

    // The breaker, and a probe.
    send(&gateway, "down-1", "down");
    eventually("the breaker opens", || {
        browser.open("/destinations");
        browser.text().contains("breaker open")
    });
    browser.picture("destinations-broken");
    browser.open("/");
    browser.eventually_says("Needs attention");
    send(&gateway, "waits", "deployment.completed");
    up.store(true, Ordering::SeqCst);
    browser.open("/destinations");
    browser.act("//button[text()='Probe now']", "is probed");
    browser.eventually_says("breaker closed");

    // Dead letters: one group purged by filter, the others replayed slowly, and ended.
    browser.open("/dead");
    browser.picture("dead-groups");
    browser.click("//summary");
    browser.write("//details//input[@name='delivery_id']", "bad-0");
    browser.act("//button[@formaction='/dead/purge']", "changed.");
    browser.open("/dead");
    browser.click("//summary");
    browser.write("//details//input[@name='rate']", "1/m");
    browser.act("//details//button[text()='Replay']", "It has begun.");
    browser.picture("job");
    browser.act("//button[text()='End it here']", "It ends where it is.");
    browser.eventually_says("cancelled");
    browser.open("/dead");
    browser.act("//section//td//button[text()='Replay']", "changed.");
    gateway.eventually_metric("countersign_forward_dead{destination=\"legacy\"}", 0.0);

    // What was refused, explained and tried again.
    browser.open("/refused");
    browser.click("//tbody//a[starts-with(@href,'/refused/')]");
    browser.eventually_says("It would be refused now, too");
    browser.picture("rejection");
    browser.act("//button[text()='Re-verify']", "Still refused");
    browser.open("/refused");
    browser.act("//button[text()='Re-verify these']", "let in.");

    // The live tail, and what a stranger sends into it.
    browser.open("/deliveries");
    browser.click("//button[@data-live-toggle]");
    browser.eventually_says("live: the newest come first");
    let hostile = format!("{{\"id\":\"x\",\"text\":\"{}\"}}", SCRIPT.replace('"', "\\\""));
    let post =
        Post::signed("github", "/webhooks/github", SCRIPT, SCRIPT, hostile.as_bytes()).with("x-odd", SCRIPT);
    assert_eq!(post.send(gateway.listen).status, 200);
    browser.eventually_says("<script>window.pwned=1</script>");
    eventually("its state follows", || {
        browser.run("return document.querySelector('tr[data-id] .forwards')?.innerText") == "legacy delivered"
    });
    browser.picture("live");
    let inert = |browser: &Chromium| {
        let found = browser.run("return [window.pwned ?? null, document.querySelectorAll('main img, main script, main iframe').length]");
        assert_eq!(found, json!([null, 0]), "{}", browser.path());
    };
    inert(&browser);
    browser.click("//tbody/tr[1]//a");
    browser.eventually_says("How it was verified");
    inert(&browser);
    browser.click("//summary");
    browser.picture("hostile");
    browser.open("/deliveries");
    inert(&browser);

    // Every page in both themes, and on a phone.
    for (theme, scheme) in [("light", "light"), ("dark", "dark")] {
        browser.tell(
            "goog/cdp/execute",
            &json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": [{ "name": "prefers-color-scheme", "value": scheme }] } }),
        );
        let mut backs = Vec::new();
        for (name, path) in PAGES {
            browser.open(path);
            inert(&browser);
            backs.push(browser.run("return getComputedStyle(document.body).backgroundColor"));
            browser.picture(&format!("{name}-{theme}"));
        }
        let back = if theme == "dark" { "rgb(18, 21, 27)" } else { "rgb(246, 247, 249)" };
        assert!(backs.iter().all(|found| found == back), "{backs:?}");
        browser.open(&detail);
        browser.picture(&format!("delivery-{theme}"));
    }
    browser.click("//button[@data-theme-toggle]");
    assert_eq!(browser.run("return getComputedStyle(document.body).backgroundColor"), "rgb(246, 247, 249)");
    browser.open("/sources");
    assert_eq!(browser.run("return document.documentElement.dataset.theme"), "light", "it is remembered");
    browser.resize(500, 900);
    for (name, path) in PAGES.into_iter().chain([("delivery", &*detail)]) {
        browser.open(path);
        let wide =
            browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(wide, 0, "{path} does not fit");
        browser.picture(&format!("{name}-phone"));
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());

    browser.click("//button[text()='Log out']");
    browser.eventually_says("Token");
    browser.open("/");
    browser.eventually_says("Token");
}
