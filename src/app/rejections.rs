//! What operators see of refused requests.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::Parts;
use super::masks::Masks;
use crate::admin::{
    Explained, ExplainedCause, Refused, RejectionQuery, RejectionSummary, Rejections, Reverification,
    Reverifications,
};
use crate::id::Id;
use crate::ingest::{NotReverified, Reverified};
use crate::store::quarantine::{Filter, Rejected};

/// Without a `limit`.
const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;
impl Parts {
    pub(super) async fn list_rejections(&self, query: RejectionQuery) -> Result<Rejections, Refused> {
        let (found, cursor) = self.find_rejections(query).await?;
        let masks = self.masks();
        Ok(Rejections {
            rejections: found.iter().map(|rejected| summary(&masks, rejected)).collect(),
            cursor,
        })
    }

    async fn find_rejections(
        &self,
        query: RejectionQuery,
    ) -> Result<(Vec<Rejected>, Option<String>), Refused> {
        let RejectionQuery { source, reason, open, limit, cursor } = query;
        let limit = bounded(limit)?;
        let before = cursor.as_deref().map(parse_id).transpose()?;
        let filter = Filter { source, reason, before, open, limit };
        let quarantine = Arc::clone(&self.quarantine);
        let found = spawn_blocking(move || quarantine.list(&filter)).await.map_err(unavailable)?;
        let found = found.map_err(unavailable)?;
        let cursor = found.last().filter(|_| found.len() == limit).map(|last| last.id.to_string());
        Ok((found, cursor))
    }

    pub(super) async fn explain_rejection(&self, id: &str) -> Result<Explained, Refused> {
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
            found.ok_or_else(|| Refused::NotFound(NotReverified::Unknown.to_string()))?;
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
            rejection: summary(&masks, &rejected),
            headers: masks.headers(&rejected.headers),
            body_bytes: rejected.body.as_ref().map(bytes::Bytes::len),
            refused_now: refusal.map(|refusal| refusal.label().to_owned()),
            causes,
            complete: explanation.is_none_or(|explanation| explanation.complete),
        })
    }

    pub(super) async fn reverify_rejection(&self, id: &str) -> Result<Reverification, Refused> {
        let id = parse_id(id)?;
        match Arc::clone(&self.ingest).reverify(id).await {
            Ok(outcome) => Ok(document(id, &outcome)),
            Err(error @ NotReverified::Unknown) => Err(Refused::NotFound(error.to_string())),
            Err(error @ NotReverified::Failed(_)) => Err(Refused::Unavailable(error.to_string())),
            Err(
                error @ (NotReverified::Already(_)
                | NotReverified::BodyMissing
                | NotReverified::NoSource(_)
                | NotReverified::Unsigned(_)),
            ) => Err(Refused::Conflict(error.to_string())),
        }
    }

    pub(super) async fn try_source(&self, source: &str) -> Result<Reverification, Refused> {
        match Arc::clone(&self.ingest).send_test(source).await {
            Ok((id, outcome)) => Ok(document(id, &outcome)),
            Err(NotReverified::NoSource(_)) => Err(Refused::NotFound("there is no such source".to_owned())),
            Err(error @ NotReverified::Unsigned(_)) => Err(Refused::Conflict(error.to_string())),
            Err(error) => Err(unavailable(error)),
        }
    }

    pub(super) async fn reverify_rejections(
        &self,
        query: RejectionQuery,
    ) -> Result<Reverifications, Refused> {
        let (found, cursor) = self.find_rejections(RejectionQuery { open: true, ..query }).await?;
        let mut reverified = Vec::new();
        for rejected in found {
            match Arc::clone(&self.ingest).reverify(rejected.id).await {
                Ok(outcome) => reverified.push(document(rejected.id, &outcome)),
                Err(NotReverified::Failed(why)) => return Err(Refused::Unavailable(why)),
                Err(error) => reverified.push(Reverification {
                    id: rejected.id.to_string(),
                    outcome: "refused".to_owned(),
                    reason: Some(error.to_string()),
                }),
            }
        }
        Ok(Reverifications { reverified, cursor })
    }
}

fn summary(masks: &Masks, rejected: &Rejected) -> RejectionSummary {
    RejectionSummary {
        id: rejected.id.to_string(),
        source: rejected.source.to_string(),
        reason: rejected.reason.to_string(),
        received_at: rejected.received_at.to_string(),
        sender: rejected.sender.to_string(),
        method: rejected.method.to_string(),
        target: masks.target(&rejected.target),
        reverified: rejected.reverified.clone(),
    }
}

/// How many are wanted.
pub(super) fn bounded(limit: Option<u16>) -> Result<usize, Refused> {
    match limit.map_or(LIMIT, usize::from) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        _ => Err(Refused::BadRequest(format!("`limit` must be a number from 1 to {LIMIT_MAX}"))),
    }
}

fn document(id: Id, outcome: &Reverified) -> Reverification {
    let reason = match outcome {
        Reverified::Refused(reason) => Some((*reason).to_owned()),
        Reverified::Stored | Reverified::Duplicate => None,
    };
    Reverification { id: id.to_string(), outcome: outcome.label().to_owned(), reason }
}

fn parse_id(text: &str) -> Result<Id, Refused> {
    text.parse().map_err(|_| Refused::BadRequest("this is not the id of a rejection".to_owned()))
}

pub(super) fn unavailable(error: impl std::fmt::Display) -> Refused {
    Refused::Unavailable(error.to_string())
}
