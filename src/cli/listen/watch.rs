//! Looks at the gateway through its admin listener, and tells what no application hears of: what was refused and why, what
//! was a duplicate, which handshakes were answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use countersign::admin::{Explained, Rejections};
use countersign::verify::Refusal;
use serde::de::DeserializeOwned;

use super::ask;
use super::relay::time;
use crate::cli::http::Client;
use crate::cli::{Failure, say};

pub(super) struct Watch {
    client: Client,
    admin: SocketAddr,
    provider: String,
    /// The series of interest at the last look.
    series: BTreeMap<String, u64>,
    /// The id of the last refused request that was explained; ids sort by time.
    explained: String,
}

impl Watch {
    pub(super) fn new(client: Client, admin: SocketAddr, provider: &str) -> Self {
        let provider = provider.to_owned();
        Self { client, admin, provider, series: BTreeMap::new(), explained: String::new() }
    }

    /// Tells what is new.
    pub(super) async fn look(&mut self) -> Result<(), Failure> {
        let page = ask(&self.client, self.admin, "/metrics").await?;
        let page = String::from_utf8_lossy(&page);
        for (series, value) in page.lines().filter_map(|line| line.rsplit_once(' ')) {
            if !series.starts_with("countersign_ingest_re")
                && !series.starts_with("countersign_forward_pending{")
            {
                continue;
            }
            let value = value.parse().unwrap_or(0);
            let before = self.series.insert(series.to_owned(), value).unwrap_or(0);
            for _ in before..value {
                if let Some(what) = self.words(series) {
                    say(&format!("{}  {what}", time()));
                }
            }
        }
        self.explain().await
    }

    /// What one more of this series means, unless it is told elsewhere.
    fn words(&self, series: &str) -> Option<String> {
        let label = |name: &str| Some(series.split_once(&format!("{name}=\""))?.1.split_once('"')?.0);
        if series.starts_with("countersign_ingest_requests_total{") {
            return match label("outcome")? {
                "duplicate" => {
                    Some("a duplicate: answered like the first, and not forwarded again".to_owned())
                }
                "handshake" => Some("a handshake was answered: the provider knows the URL now".to_owned()),
                _ => None,
            };
        }
        let reason =
            label("reason").filter(|_| series.starts_with("countersign_ingest_rejections_total{"))?;
        match reason {
            // Explained with the request itself at hand.
            _ if Refusal::from_label(reason).is_some() => None,
            "no_route" => Some(format!(
                "refused: nothing is at that path; the URL has to end in /webhooks/{}",
                self.provider
            )),
            "method_not_allowed" => Some("refused: the provider does not send with that method".to_owned()),
            "body_too_large" => Some("refused: the body is larger than this provider's are".to_owned()),
            other => Some(format!("refused: {}", other.replace('_', " "))),
        }
    }

    async fn explain(&mut self) -> Result<(), Failure> {
        let list: Rejections = self.document("/api/v1/rejections?limit=20").await?;
        let last = self.explained.clone();
        for rejection in list.rejections.iter().rev().filter(|rejection| rejection.id > last) {
            let explained: Explained = self.document(&format!("/api/v1/rejections/{}", rejection.id)).await?;
            say(&format!("{}  refused: {}", time(), rejection.reason.replace('_', " ")));
            for cause in &explained.causes {
                say(&format!(
                    "          {} {}",
                    if cause.proven { "because" } else { "perhaps" },
                    cause.text
                ));
                say(&format!("          to do: {}", cause.advice));
            }
            self.explained.clone_from(&rejection.id);
        }
        Ok(())
    }

    async fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let document = ask(&self.client, self.admin, path).await?;
        serde_json::from_slice(&document).map_err(|error| Failure::Failed(format!("{path}: {error}")))
    }

    /// What there was, for the end.
    pub(super) fn counts(&self) -> String {
        let sum = |start: &str| -> u64 {
            self.series.iter().filter(|(series, _)| series.starts_with(start)).map(|(_, value)| value).sum()
        };
        let outcome =
            |outcome: &str| sum(&format!("countersign_ingest_requests_total{{outcome=\"{outcome}\""));
        let waiting = sum("countersign_forward_pending{");
        let lost = match waiting {
            0 => "none is waiting".to_owned(),
            waiting => format!("{waiting} had not reached your application and are gone"),
        };
        format!(
            "accepted {}, duplicates {}, refused {}, handshakes {}; {lost}",
            outcome("stored"),
            outcome("duplicate"),
            outcome("rejected"),
            outcome("handshake"),
        )
    }
}
