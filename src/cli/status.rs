//! `countersign status` and `healthcheck`: a running gateway, through its admin API.

use bytes::Bytes;
use countersign::admin::Status;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};

use super::http::Client;
use super::{Failure, say, small_runtime};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    gateway: Gateway,
    /// Print the document as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct HealthArguments {
    /// The gateway's admin address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081", env = "COUNTERSIGN_ADMIN")]
    admin: String,
}

/// Which gateway, and the right to ask it.
#[derive(Debug, clap::Args)]
pub(super) struct Gateway {
    /// The gateway's admin address
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081", env = "COUNTERSIGN_ADMIN")]
    admin: String,
    /// One of its admin.tokens
    #[arg(long, value_name = "TOKEN", env = "COUNTERSIGN_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let answer = arguments.gateway.call(Method::GET, "/api/v1/status")?;
    if answer.status() != StatusCode::OK {
        return Err(Failure::Failed(refusal(&answer)));
    }
    let status: Status = serde_json::from_slice(answer.body())
        .map_err(|error| Failure::Failed(format!("this is not a Countersign status document: {error}")))?;
    if arguments.json {
        say(&serde_json::to_string_pretty(&status).map_err(|error| Failure::Failed(error.to_string()))?);
    } else {
        print(&status);
    }
    Ok(())
}

pub(super) fn healthcheck(arguments: &HealthArguments) -> Result<(), Failure> {
    let gateway = Gateway { admin: arguments.admin.clone(), token: None };
    let answer = gateway.call(Method::GET, "/readyz")?;
    let text = String::from_utf8_lossy(answer.body()).trim_end().to_owned();
    if answer.status() != StatusCode::OK {
        return Err(Failure::Failed(text));
    }
    say(&text);
    Ok(())
}

impl Gateway {
    /// One request to its admin API.
    pub(super) fn call(&self, method: Method, path: &str) -> Result<Response<Bytes>, Failure> {
        self.send(method, path, Bytes::new())
    }

    /// The same, with a JSON document.
    pub(super) fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Bytes>, Failure> {
        let request = self.request(method, path, body)?;
        small_runtime()?.block_on(async { Client::new()?.exchange(request).await })
    }

    /// Has `told` hear of each event by its name and document, until the gateway ends the list.
    pub(super) fn events(&self, told: &mut dyn FnMut(&str, &str)) -> Result<(), Failure> {
        let request = self.request(Method::GET, "/api/v1/events", Bytes::new())?;
        small_runtime()?.block_on(async {
            let mut name = String::new();
            let refused = Client::new()?
                .lines(request, &mut |line| {
                    if let Some(event) = line.strip_prefix("event: ") {
                        event.clone_into(&mut name);
                    } else if let Some(document) = line.strip_prefix("data: ") {
                        told(&name, document);
                    }
                })
                .await?;
            refused.map_or(Ok(()), |answer| Err(Failure::Failed(refusal(&answer))))
        })
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Bytes>, Failure> {
        let admin = &self.admin;
        let url = format!("{}{path}", admin.trim_end_matches('/'));
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(body)
            .map_err(|error| Failure::Usage(format!("--admin {admin}: {error}; use http://HOST:PORT")))
    }
}

/// The `detail` of a problem document; empty when it is none.
pub(super) fn detail(answer: &Response<Bytes>) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_slice(answer.body()).ok();
    problem.as_ref().and_then(|problem| problem["detail"].as_str()).unwrap_or("").to_owned()
}

pub(super) fn refusal(answer: &Response<Bytes>) -> String {
    format!("the gateway answered {}: {}", answer.status(), detail(answer))
}

fn print(status: &Status) {
    let ready = match &status.not_ready_because {
        None => "ready".to_owned(),
        Some(reason) => format!("not ready: {reason}"),
    };
    say(&format!("countersign {} · {ready} · up since {}", status.version, status.started_at));
    if !status.config_loaded {
        say("the latest reload was refused; the configuration before it is in force (see the log)");
    }
    say(&format!("store: {}, {} bytes", status.store.engine, status.store.bytes));
    for certificate in &status.certificates {
        say(&format!(
            "{}: a certificate in {} expires at {}",
            certificate.key, certificate.file, certificate.not_after
        ));
    }
    say("");
    say(&format!(
        "{:<24} {:<18} {:>10} {:>10} {:>10} {:>10}  {}",
        "SOURCE", "PROVIDER", "STORED", "DUPLICATE", "REJECTED", "UNROUTED", "URL"
    ));
    for source in &status.sources {
        let provider = if source.enforcement == "enforce" {
            source.provider.clone()
        } else {
            format!("{} ({})", source.provider, source.enforcement)
        };
        say(&format!(
            "{:<24} {provider:<18} {:>10} {:>10} {:>10} {:>10}  {}",
            source.name,
            source.stored,
            source.duplicate,
            source.rejected,
            source.unrouted,
            source.url.as_deref().unwrap_or(&source.path)
        ));
        for secret in &source.secrets {
            if let Some(advice) = &secret.advice {
                let warning = if secret.warning { "WARNING: " } else { "" };
                say(&format!("  {warning}{}: {advice}", secret.name));
            }
        }
    }
    say("");
    say(&format!(
        "{:<24} {:<24} {:>9} {:>10} {:>10} {:>10}",
        "DESTINATION", "STATE", "RUNNING", "PENDING", "OLDEST", "DEAD"
    ));
    for destination in &status.destinations {
        say(&format!(
            "{:<24} {:<24} {:>9} {:>10} {:>9}s {:>10}",
            destination.name,
            destination.state,
            format!("{}/{}", destination.running, destination.concurrency),
            destination.pending,
            destination.oldest_age_seconds,
            destination.dead
        ));
    }
}
