//! What operators see of refused requests, and masks over what could be used to forge others: a signature that was refused
//! for its time may be good for another gateway, and a token is good for ever.

use std::sync::Arc;

use http::HeaderMap;
use tokio::task::spawn_blocking;

use super::Parts;
use crate::admin::{
    Explained, ExplainedCause, RejectionQuery, RejectionRefused, RejectionSummary, Rejections,
    Reverification, Reverifications,
};
use crate::id::Id;
use crate::ingest::{NotReverified, Reverified};
use crate::store::quarantine::{Filter, Rejected};

/// Without a `limit`.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;
/// What names of headers and query fields have in them that hold secrets, tokens or signatures.
const SENSITIVE: [&str; 12] = [
    "auth",
    "cookie",
    "token",
    "secret",
    "signature",
    "hmac",
    "key",
    "password",
    "session",
    "credential",
    "mac",
    "jwt",
];
/// Names short enough to be found in others by chance.
const SENSITIVE_WHOLE: [&str; 3] = ["sig", "code", "sign"];

/// The names that hold proof, by the configuration in force.
struct Masks {
    headers: Vec<String>,
    fields: Vec<String>,
}

impl Parts {
    pub(super) async fn list_rejections(
        &self,
        query: RejectionQuery,
    ) -> Result<Rejections, RejectionRefused> {
        let (found, cursor) = self.find_rejections(query).await?;
        let masks = self.masks();
        Ok(Rejections { rejections: found.iter().map(|rejected| masks.summary(rejected)).collect(), cursor })
    }

    async fn find_rejections(
        &self,
        query: RejectionQuery,
    ) -> Result<(Vec<Rejected>, Option<String>), RejectionRefused> {
        let RejectionQuery { source, reason, open, limit, cursor } = query;
        let limit = limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
        let before = cursor.as_deref().map(parse_id).transpose()?;
        let filter = Filter { source, reason, before, open, limit };
        let quarantine = Arc::clone(&self.quarantine);
        let found = spawn_blocking(move || quarantine.list(&filter)).await.map_err(unavailable)?;
        let found = found.map_err(unavailable)?;
        let cursor = found.last().filter(|_| found.len() == limit).map(|last| last.id.to_string());
        Ok((found, cursor))
    }

    pub(super) async fn explain_rejection(&self, id: &str) -> Result<Explained, RejectionRefused> {
        let id = parse_id(id)?;
        let (quarantine, ingest) = (Arc::clone(&self.quarantine), Arc::clone(&self.ingest));
        let explained = spawn_blocking(move || {
            let found = quarantine.find(id)?;
            Ok(found.map(|rejected| {
                let explanation = ingest.explain(&rejected);
                (rejected, explanation)
            }))
        });
        let found = explained.await.map_err(unavailable)?;
        let found = found.map_err(|error: crate::store::StoreError| unavailable(error))?;
        let (rejected, explanation) =
            found.ok_or_else(|| RejectionRefused::NotFound(NotReverified::Unknown.to_string()))?;
        let masks = self.masks();
        let gone = || ExplainedCause {
            cause: "source_gone".to_owned(),
            proven: true,
            text: format!("there is no source `{}` any more", rejected.source),
            advice: "configure it again".to_owned(),
        };
        let causes = match &explanation {
            None => vec![gone()],
            Some(explanation) => explanation
                .causes
                .iter()
                .map(|cause| ExplainedCause {
                    cause: cause.label().to_owned(),
                    proven: cause.is_proven(),
                    text: cause.to_string(),
                    advice: cause.advice().to_owned(),
                })
                .collect(),
        };
        let refusal = explanation.as_ref().and_then(|explanation| explanation.refusal);
        Ok(Explained {
            rejection: masks.summary(&rejected),
            headers: masks.headers(&rejected.headers),
            body_bytes: rejected.body.as_ref().map(bytes::Bytes::len),
            refused_now: refusal.map(|refusal| refusal.label().to_owned()),
            causes,
            complete: explanation.is_none_or(|explanation| explanation.complete),
        })
    }

    pub(super) async fn reverify_rejection(&self, id: &str) -> Result<Reverification, RejectionRefused> {
        let id = parse_id(id)?;
        match Arc::clone(&self.ingest).reverify(id).await {
            Ok(outcome) => Ok(document(id, &outcome)),
            Err(error @ NotReverified::Unknown) => Err(RejectionRefused::NotFound(error.to_string())),
            Err(error @ NotReverified::Failed(_)) => Err(RejectionRefused::Unavailable(error.to_string())),
            Err(
                error @ (NotReverified::Already(_) | NotReverified::BodyMissing | NotReverified::NoSource(_)),
            ) => Err(RejectionRefused::Conflict(error.to_string())),
        }
    }

    pub(super) async fn reverify_rejections(
        &self,
        query: RejectionQuery,
    ) -> Result<Reverifications, RejectionRefused> {
        let (found, cursor) = self.find_rejections(RejectionQuery { open: true, ..query }).await?;
        let mut reverified = Vec::new();
        for rejected in found {
            match Arc::clone(&self.ingest).reverify(rejected.id).await {
                Ok(outcome) => reverified.push(document(rejected.id, &outcome)),
                Err(NotReverified::Failed(why)) => return Err(RejectionRefused::Unavailable(why)),
                Err(error) => reverified.push(Reverification {
                    id: rejected.id.to_string(),
                    outcome: "refused".to_owned(),
                    reason: Some(error.to_string()),
                }),
            }
        }
        Ok(Reverifications { reverified, cursor })
    }

    fn masks(&self) -> Masks {
        let (headers, fields) = self.ingest.proof_places();
        Masks { headers, fields }
    }
}

impl Masks {
    fn summary(&self, rejected: &Rejected) -> RejectionSummary {
        RejectionSummary {
            id: rejected.id.to_string(),
            source: rejected.source.to_string(),
            reason: rejected.reason.to_string(),
            received_at: rejected.received_at.to_string(),
            sender: rejected.sender.to_string(),
            method: rejected.method.to_string(),
            target: self.target(&rejected.target),
            reverified: rejected.reverified.clone(),
        }
    }

    fn headers(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let shown = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let name = name.to_string();
            let text = if self.headers.contains(&name) || is_sensitive(&name) {
                masked(value.len())
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            };
            (name, text)
        };
        headers.iter().map(shown).collect()
    }

    fn target(&self, target: &str) -> String {
        let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
        let shown = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, value)) if self.fields.iter().any(|field| field == name) || is_sensitive(name) => {
                format!("{name}={}", masked(value.len()))
            }
            // Without a name it may be a token, as some senders have it.
            None => masked(pair.len()),
            Some(_) => pair.to_owned(),
        });
        format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
    }
}

fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SENSITIVE.iter().any(|part| name.contains(part)) || SENSITIVE_WHOLE.contains(&&*name)
}

fn masked(bytes: usize) -> String {
    format!("…({bytes} bytes)")
}

fn document(id: Id, outcome: &Reverified) -> Reverification {
    let reason = match outcome {
        Reverified::Refused(reason) => Some((*reason).to_owned()),
        Reverified::Stored | Reverified::Duplicate => None,
    };
    Reverification { id: id.to_string(), outcome: outcome.label().to_owned(), reason }
}

fn parse_id(text: &str) -> Result<Id, RejectionRefused> {
    text.parse().map_err(|_| RejectionRefused::BadRequest("this is not the id of a rejection".to_owned()))
}

fn unavailable(error: impl std::fmt::Display) -> RejectionRefused {
    RejectionRefused::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_used_again_is_masked() {
        let masks = Masks { headers: vec!["x-acme".to_owned()], fields: vec!["who".to_owned()] };
        let names =
            ["authorization", "cookie", "x-hub-signature-256", "x-acme", "x-api-key", "x-webhook-token"];
        let mut headers = HeaderMap::new();
        for name in names {
            headers.insert(name, "hunter2".parse().unwrap());
        }
        headers.insert("x-github-event", "push".parse().unwrap());
        for (name, value) in masks.headers(&headers) {
            assert_eq!(value, if name == "x-github-event" { "push" } else { "…(7 bytes)" }, "{name}");
        }
        assert_eq!(
            masks.target("/in?a=1&token=abc&who=x&hunter2"),
            "/in?a=1&token=…(3 bytes)&who=…(1 bytes)&…(7 bytes)"
        );
        assert_eq!(masks.target("/in"), "/in");
    }
}
