//! `countersign demo`: what a newcomer runs first. A gateway, three backends and the senders of several providers on
//! free loopback ports, in a temporary directory. It prints what happens as it happens, counts at the end, and fails
//! when anything that was accepted has not been delivered.

use std::time::Duration;

use bytes::Bytes;
use countersign::app::App;
use countersign::clock::{Clock, Timestamp, earlier};
use countersign::secret::Secret;
use countersign::verify::{Message, Signer, preset};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::time::Instant;

use super::http::Client;
use super::{Failure, chain, check, full_runtime, say};

mod backend;

use backend::{Backends, Manner};

/// Whatever happens, the demo ends so long after its last delivery was accepted.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time that the slow backend takes for a request.
const NAP: Duration = Duration::from_secs(8);
/// Between two requests, so that a reader can follow.
const PACE: Duration = Duration::from_millis(250);
/// Shared by demo senders and demo gateway; 32 bytes in base64, so that it is a key of every provider's scheme.
const SECRET: &str = "whsec_ZGVtby1kZW1vLWRlbW8tZGVtby1kZW1vLWRlbW8tMTI=";
/// What the gateway signs with, and the backends verify.
const COUNTERSECRET: &str = "whsec_YmFja2VuZC1iYWNrZW5kLWJhY2tlbmQtYmFja2VuZC0=";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Go on sending for so long, and end then; without it the demo ends when the last delivery has arrived
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

/// A sender, its destination, and the event that it sends.
struct Sender {
    provider: &'static str,
    destination: &'static str,
    event: &'static str,
}

const SENDERS: [Sender; 7] = [
    Sender { provider: "hostwares", destination: "sleepy", event: "deployment.completed" },
    Sender { provider: "owlette", destination: "swift", event: "version.published" },
    Sender { provider: "ownstak", destination: "swift", event: "deployment_completed" },
    Sender { provider: "github", destination: "flaky", event: "push" },
    Sender { provider: "stripe", destination: "swift", event: "invoice.paid" },
    Sender { provider: "standard-webhooks", destination: "swift", event: "user.created" },
    Sender { provider: "owlette-legacy", destination: "swift", event: "machine.offline" },
];

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    full_runtime()?.block_on(play(arguments.seconds.map(Duration::from_secs)))
}

async fn play(at_least: Option<Duration>) -> Result<(), Failure> {
    let directory = tempfile::Builder::new()
        .prefix("countersign-demo-")
        .tempdir()
        .map_err(|error| Failure::Io(format!("no temporary directory: {error}")))?;
    let began = Instant::now();
    let backends = Backends::new(COUNTERSECRET, began);
    let manners = [("swift", Manner::Swift), ("sleepy", Manner::Sleepy(NAP)), ("flaky", Manner::FailsTwice)];
    let mut destinations = String::new();
    for (name, manner) in manners {
        let address = backends.start(name, manner).await.map_err(|error| Failure::Io(chain(error)))?;
        destinations += &format!(
            "\n[[destination]]\nname = \"{name}\"\nurl = \"http://{address}/hooks\"\n\
             retry = {{ initial = \"1s\", jitter = \"none\" }}\n\
             sign = {{ scheme = \"standard-webhooks\", secret = {{ value = \"{COUNTERSECRET}\" }} }}\n"
        );
    }
    let sources = SENDERS.map(|Sender { provider, destination, .. }| {
        format!(
            "\n[[source]]\nname = \"{provider}\"\nprovider = \"{provider}\"\n\
             secrets = [{{ value = \"{SECRET}\" }}]\nto = [\"{destination}\"]\n"
        )
    });
    let file = directory.path().join("countersign.toml");
    let text = format!(
        "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\n\
         store = {{ path = \"data\", disk_reserve = \"1MiB\" }}\n{}{destinations}",
        sources.concat()
    );
    std::fs::write(&file, text).map_err(|error| Failure::Io(format!("{}: {error}", file.display())))?;
    let config = check::load(&file)?;
    let load = || Err("the demo has no configuration file".to_owned());
    let app = App::start(config, Box::new(load), Clock::system()).await;
    let app = app.map_err(|error| Failure::Io(chain(error)))?;

    say("Countersign demo: everything on loopback, in a temporary directory that vanishes afterwards.\n");
    say(&format!("  gateway    http://{}  where providers send to", app.listen_address()));
    say(&format!(
        "  operators  http://{0}/metrics  and  countersign status --admin http://{0}",
        app.admin_address()
    ));
    say("  backends   swift answers at once; sleepy takes 8 s; flaky fails twice, then works\n");
    let client = Client::new()?;
    let scene = Scene { url: format!("http://{}", app.listen_address()), client, began };
    let mut tally = scene.act().await?;
    if let Some(at_least) = at_least {
        scene.keep_sending(at_least, &mut tally).await?;
    }

    scene.note("waiting until every accepted delivery has reached its backend");
    let until = Instant::now() + PATIENCE;
    while backends.missing(&tally.accepted) > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let missing = backends.missing(&tally.accepted);
    app.drain().await;
    scene.table(&tally, &backends, missing);
    if missing > 0 {
        return Err(Failure::Failed(format!("{missing} accepted deliveries did NOT reach their backend")));
    }
    if !tally.surprises.is_empty() {
        return Err(Failure::Failed(format!("unexpected answers: {}", tally.surprises.join("; "))));
    }
    Ok(())
}

/// What came of the requests.
#[derive(Default)]
struct Tally {
    /// Destination and body of what was answered 2xx for the first time.
    accepted: Vec<(&'static str, Bytes)>,
    duplicates: usize,
    refused: usize,
    slowest_ack: Duration,
    /// Answers that differ from what the demo promises to show.
    surprises: Vec<String>,
}

struct Scene {
    url: String,
    client: Client,
    began: Instant,
}

impl Scene {
    async fn act(&self) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        let now = || Clock::system().now();

        self.note("signed deliveries: verified, on disk, acknowledged; then forwarded under one signature");
        for sender in &SENDERS {
            let request = self.signed(sender, 1, SECRET, now())?;
            self.send(sender, request, "", 200, &mut tally).await?;
        }
        let [hostwares, owlette, _, github, ..] = &SENDERS;
        self.note("a forged one: signed with another secret");
        let forged = self.signed(github, 2, "somebody-elses-secret", now())?;
        self.send(github, forged, "forged", 401, &mut tally).await?;
        self.note("a stale one: rightly signed, ten minutes ago");
        let stale = self.signed(owlette, 2, SECRET, earlier(now(), Duration::from_mins(10)))?;
        self.send(owlette, stale, "stale", 401, &mut tally).await?;
        self.note("a duplicate: the provider tries again although it got its 200");
        let again = self.signed(owlette, 1, SECRET, now())?;
        self.send(owlette, again, "duplicate", 200, &mut tally).await?;
        self.note("more for the backend that takes 8 s: acknowledgements do not wait for it");
        for number in 2..=6 {
            let request = self.signed(hostwares, number, SECRET, now())?;
            self.send(hostwares, request, "", 200, &mut tally).await?;
        }
        Ok(tally)
    }

    /// A delivery a second until `at_least` has passed since the start.
    async fn keep_sending(&self, at_least: Duration, tally: &mut Tally) -> Result<(), Failure> {
        let mut number = 100;
        while self.began.elapsed() + Duration::from_secs(1) < at_least {
            tokio::time::sleep(Duration::from_secs(1)).await;
            number += 1;
            // Not to the sleepy one: the demo would last long beyond the time that was asked for.
            let sender = &SENDERS[1 + number % (SENDERS.len() - 1)];
            let request = self.signed(sender, number, SECRET, Clock::system().now())?;
            self.send(sender, request, "", 200, tally).await?;
        }
        tokio::time::sleep(at_least.saturating_sub(self.began.elapsed())).await;
        Ok(())
    }

    /// The request that this provider would send.
    fn signed(
        &self,
        sender: &Sender,
        number: usize,
        secret: &str,
        now: Timestamp,
    ) -> Result<Request<Bytes>, Failure> {
        let Sender { provider, event, .. } = sender;
        let bug = |error: &dyn std::fmt::Display| Failure::Failed(format!("{provider}: {error}"));
        let preset = preset(provider).ok_or_else(|| bug(&"no such preset"))?;
        let secret = Secret::new(secret).map_err(|error| bug(&error))?;
        let signer = Signer::new(preset.scheme.clone(), &secret).map_err(|error| bug(&error))?;
        let id = format!("{provider}-{number}");
        let body = serde_json::json!({
            "id": id, "event": event, "type": event, "number": number,
            "webhook_event_id": id, "webhook_event_type": event,
        });
        let url = format!("{}/webhooks/{provider}", self.url);
        let body = Bytes::from(body.to_string());
        let message =
            Message { method: &Method::POST, url: &url, id: Some(&id), event: Some(event), body: &body };
        let headers: HeaderMap = signer.sign(&message, now).map_err(|error| bug(&error))?;
        let mut request = Request::post(&url)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| bug(&error))?;
        request.headers_mut().extend(headers);
        Ok(request)
    }

    async fn send(
        &self,
        sender: &Sender,
        request: Request<Bytes>,
        what: &str,
        expected: u16,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        tokio::time::sleep(PACE).await;
        let body = request.body().clone();
        let asked = Instant::now();
        let status = self.client.exchange(request).await?.status();
        let took = asked.elapsed();
        let meaning = match (status, what) {
            (StatusCode::OK, "duplicate") => {
                tally.duplicates += 1;
                "absorbed: not forwarded again"
            }
            (StatusCode::OK, _) => {
                tally.accepted.push((sender.destination, body));
                tally.slowest_ack = tally.slowest_ack.max(took);
                "on disk"
            }
            _ => {
                tally.refused += 1;
                "refused"
            }
        };
        self.line(&format!(
            "{:>18} ──▶ {:<22} {} in {:>3} ms  {meaning}",
            sender.provider,
            sender.event,
            status.as_u16(),
            took.as_millis()
        ));
        if status != expected {
            tally.surprises.push(format!("{} {what}: {status} instead of {expected}", sender.provider));
        }
        Ok(())
    }

    fn note(&self, text: &str) {
        say(&format!("\n  ## {text}"));
    }

    fn line(&self, text: &str) {
        say(&format!("{:>7.2}s {text}", self.began.elapsed().as_secs_f64()));
    }

    fn table(&self, tally: &Tally, backends: &Backends, missing: usize) {
        say("\n  backend     requests   failed on purpose   delivered   countersignatures verified");
        for (name, count) in backends.counts() {
            say(&format!(
                "  {name:<10} {:>9} {:>19} {:>11} {:>28}",
                count.requests, count.failed, count.delivered, count.verified
            ));
        }
        say(&format!(
            "\n  accepted {}   duplicates absorbed {}   refused {}   slowest acknowledgement {} ms   missing {missing}",
            tally.accepted.len(),
            tally.duplicates,
            tally.refused,
            tally.slowest_ack.as_millis(),
        ));
        if missing == 0 {
            say("  every accepted delivery has reached its backend");
        }
    }
}
