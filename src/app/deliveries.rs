//! What operators see of stored deliveries, and what they do to one of them.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::Parts;
use super::rejections::{bounded, unavailable};
use crate::admin::{
    AttemptDocument, Dead, DeadGroupDocument, Deliveries, DeliveryDetail, DeliveryQuery, DeliverySummary,
    ForwardDocument, ForwardsChanged, Refused,
};
use crate::clock::{Moment, Timestamp, earlier};
use crate::forward::State;
use crate::id::Id;
use crate::store::StoreError;
use crate::store::operators::{
    ATTEMPTS_MAX, Attempted, Change, Filter, ForwardStatus, History, Listed, Page, Summary, Wanted,
};
use crate::units::parse_duration;

/// Bytes of a body that are shown with a delivery; all of it is to be had by itself.
const BODY_MAX: usize = 256 << 10;

impl Parts {
    pub(super) async fn list_deliveries(&self, query: DeliveryQuery) -> Result<Deliveries, Refused> {
        let (limit, from) = (bounded(query.limit)?, query.cursor.as_deref().map(parse_id).transpose()?);
        let page = self.operators.list(self.filter(&query)?, from, limit).await.map_err(refused)?;
        let Page { found, next } = page;
        let now = self.clock.moment();
        Ok(Deliveries {
            deliveries: found.into_iter().map(|listed| summary(listed, now)).collect(),
            cursor: next.map(|next| next.to_string()),
        })
    }

    pub(super) async fn show_dead(&self, query: DeliveryQuery) -> Result<Dead, Refused> {
        only_dead(query.state.as_deref())?;
        let query = DeliveryQuery { state: Some(State::Dead.label().to_owned()), ..query };
        let counted = self.operators.dead_letters().await.map_err(refused)?;
        let Deliveries { deliveries, cursor } = self.list_deliveries(query).await?;
        let groups = counted.groups.into_iter().map(|group| DeadGroupDocument {
            destination: group.destination.to_string(),
            outcome: group.outcome,
            count: group.count,
        });
        Ok(Dead { groups: groups.collect(), groups_complete: counted.complete, deliveries, cursor })
    }

    pub(super) async fn show_delivery(&self, id: &str) -> Result<DeliveryDetail, Refused> {
        let id = parse_id(id)?;
        let delivery = self.store.delivery(id).await.map_err(refused)?.ok_or_else(unknown)?;
        let history = self.operators.history(id).await.map_err(refused)?;
        let attempts = timeline(&history);
        let listed = Listed {
            id,
            summary: Some(Summary {
                source: Arc::clone(&delivery.source),
                delivery_id: delivery.delivery_id,
                event: delivery.event,
                received_at: delivery.received_at,
                sender: Some(delivery.sender),
                method: delivery.method.to_string(),
                verification: delivery.verification,
                body_bytes: delivery.body.len() as u64,
            }),
            forwards: history.forwards,
        };
        let masks = self.masks();
        let (body, body_encoding, body_truncated) = shown(&delivery.body);
        Ok(DeliveryDetail {
            delivery: summary(listed, self.clock.moment()),
            target: masks.target(&delivery.target),
            headers: masks.headers(&delivery.headers),
            body,
            body_encoding: body_encoding.to_owned(),
            body_truncated,
            attempts,
        })
    }

    pub(super) async fn show_body(&self, id: &str) -> Result<Bytes, Refused> {
        let delivery = self.store.delivery(parse_id(id)?).await.map_err(refused)?;
        Ok(delivery.ok_or_else(unknown)?.body)
    }

    /// Does it to the forwards of one delivery, to all or the one to `destination`.
    pub(super) async fn change_delivery(
        &self,
        change: Change,
        id: &str,
        destination: Option<String>,
    ) -> Result<ForwardsChanged, Refused> {
        let id = parse_id(id)?;
        let history = self.operators.history(id).await.map_err(refused)?;
        if history.forwards.is_empty() {
            let known = self.store.delivery(id).await.map_err(refused)?.is_some();
            let unrouted = || Refused::Conflict("this delivery is unrouted: it has no forward".to_owned());
            return Err(if known { unrouted() } else { unknown() });
        }
        let is_meant = |forward: &&ForwardStatus| {
            destination.as_deref().is_none_or(|meant| meant == &*forward.destination)
        };
        let targets: Vec<_> = history
            .forwards
            .iter()
            .filter(is_meant)
            .map(|forward| (id, Arc::clone(&forward.destination)))
            .collect();
        if targets.is_empty() {
            let wanted = destination.unwrap_or_default();
            return Err(Refused::NotFound(format!("this delivery has no forward to `{wanted}`")));
        }
        let changed =
            self.operators.change(change, targets.clone(), self.clock.moment()).await.map_err(refused)?;
        let (changed, unchanged): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|target| changed.contains(target));
        let names =
            |targets: Vec<(Id, Arc<str>)>| targets.into_iter().map(|target| target.1.to_string()).collect();
        Ok(ForwardsChanged { id: id.to_string(), changed: names(changed), unchanged: names(unchanged) })
    }

    pub(super) fn filter(&self, query: &DeliveryQuery) -> Result<Filter, Refused> {
        let now = self.clock.now();
        let time =
            |key, text: &Option<String>| text.as_deref().map(|text| moment(key, text, now)).transpose();
        let state = |label: &String| {
            let wrong = || {
                let states = State::ALL.map(State::label).join(", ");
                Refused::BadRequest(format!("`state` must be one of {states}, unrouted"))
            };
            Wanted::of_label(label).ok_or_else(wrong)
        };
        Ok(Filter {
            source: query.source.clone(),
            event: query.event.clone(),
            delivery_id: query.delivery_id.clone(),
            claimed_by: self.config.load().sources.iter().map(|source| Arc::clone(&source.name)).collect(),
            since: time("since", &query.since)?,
            until: time("until", &query.until)?,
            text: query.q.clone().filter(|text| !text.is_empty()),
            state: query.state.as_ref().map(state).transpose()?,
            destination: query.destination.clone(),
            outcome: query.outcome.clone(),
        })
    }
}

/// A time as operators write it: RFC 3339, or how long ago.
pub(super) fn moment(key: &str, text: &str, now: Timestamp) -> Result<Timestamp, Refused> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(earlier(now, ago));
    }
    let wrong = |_| {
        let right = "a time as 2026-11-30T08:00:00Z, or how long ago as 2h";
        Refused::BadRequest(format!("`{key}` must be {right}"))
    };
    text.parse().map_err(wrong)
}

pub(super) fn only_dead(state: Option<&str>) -> Result<(), Refused> {
    match state {
        None | Some("dead") => Ok(()),
        Some(_) => Err(Refused::BadRequest("`state` can only be dead here".to_owned())),
    }
}

pub(super) fn refused(error: StoreError) -> Refused {
    unavailable(error)
}

fn parse_id(text: &str) -> Result<Id, Refused> {
    text.parse().map_err(|_| Refused::BadRequest("this is not the id of a delivery".to_owned()))
}

fn unknown() -> Refused {
    Refused::NotFound("there is no such delivery".to_owned())
}

fn summary(listed: Listed, now: Moment) -> DeliverySummary {
    let Listed { id, summary, forwards } = listed;
    let forwards = forwards.into_iter().map(|status| forward(status, now)).collect();
    let empty = DeliverySummary {
        id: id.to_string(),
        source: None,
        delivery_id: None,
        event: None,
        received_at: None,
        sender: None,
        method: None,
        verified: false,
        scheme: None,
        secret: None,
        skew_seconds: None,
        body_bytes: 0,
        forwards,
    };
    let Some(known) = summary else { return empty };
    DeliverySummary {
        source: Some(known.source.to_string()),
        delivery_id: known.delivery_id,
        event: known.event,
        received_at: Some(known.received_at.to_string()),
        sender: known.sender.map(|sender| sender.to_string()),
        method: Some(known.method),
        verified: known.verification.verified,
        scheme: Some(known.verification.scheme.to_string()),
        secret: known.verification.secret.map(|secret| secret.to_string()),
        skew_seconds: known.verification.skew_seconds,
        body_bytes: known.body_bytes,
        ..empty
    }
}

/// Steady times are shown by the wall clock, from which they differ when somebody has set it.
fn forward(status: ForwardStatus, now: Moment) -> ForwardDocument {
    let by_wall = |steady: Timestamp| {
        let difference = now.wall.duration_since(now.steady.time);
        steady.checked_add(difference).unwrap_or(steady).to_string()
    };
    ForwardDocument {
        destination: status.destination.to_string(),
        state: status.state.label().to_owned(),
        parked: status.parked,
        attempts: status.attempts,
        due_at: (status.state == State::Waiting && !status.parked).then(|| by_wall(status.due_at)),
        pending_since: by_wall(status.pending_since),
        replay: status.replay,
        settled_at: status.settled_at.map(|at| at.to_string()),
        outcome: status.outcome,
    }
}

/// The attempts whose end is on record, and in their places those that were counted and have none.
fn timeline(history: &History) -> Vec<AttemptDocument> {
    let mut shown = Vec::with_capacity(history.attempts.len());
    let mut latest: HashMap<&str, u32> = HashMap::new();
    // Then the earliest are not there, for another reason.
    let are_all = history.attempts.len() < ATTEMPTS_MAX as usize;
    for attempted in &history.attempts {
        let before = match latest.insert(&attempted.destination, attempted.number) {
            Some(before) if before <= attempted.number => before,
            None if !are_all => attempted.number,
            // A replay begins anew.
            Some(_) | None => 0,
        };
        let missing = before + 1..attempted.number;
        shown.extend(missing.map(|number| cut_off(&attempted.destination, number)));
        shown.push(attempt(attempted));
    }
    for forward in &history.forwards {
        let before = latest.get(&*forward.destination).copied().unwrap_or_default();
        let last = match forward.state {
            // That one may go on still.
            State::InFlight | State::Cancelled => forward.attempts.saturating_sub(1),
            // Of such a one nothing is kept.
            State::Delivered if forward.attempts == 1 => 0,
            State::Waiting | State::Delivered | State::Dead => forward.attempts,
        };
        shown.extend((before + 1..=last).map(|number| cut_off(&forward.destination, number)));
    }
    shown
}

fn attempt(attempted: &Attempted) -> AttemptDocument {
    AttemptDocument {
        destination: attempted.destination.to_string(),
        number: attempted.number,
        started_at: Some(attempted.started_at.to_string()),
        duration_ms: Some(u64::try_from(attempted.duration.as_millis()).unwrap_or(u64::MAX)),
        outcome: attempted.outcome.clone(),
        status: attempted.status,
        detail: attempted.detail.clone(),
    }
}

fn cut_off(destination: &str, number: u32) -> AttemptDocument {
    AttemptDocument {
        destination: destination.to_owned(),
        number,
        started_at: None,
        duration_ms: None,
        outcome: "cut_off".to_owned(),
        status: None,
        detail: "the gateway that made it ended first, or lost the forward to another; the backend may have got it"
            .to_owned(),
    }
}

/// A body as text, how that is written, and whether it is all.
fn shown(body: &Bytes) -> (String, &'static str, bool) {
    let cut = body.len() > BODY_MAX;
    let part = &body[..body.len().min(BODY_MAX)];
    match std::str::from_utf8(part) {
        Ok(text) => (text.to_owned(), "utf-8", cut),
        // Cut within a character.
        Err(error) if cut && error.error_len().is_none() => {
            (String::from_utf8_lossy(&part[..error.valid_up_to()]).into_owned(), "utf-8", cut)
        }
        Err(_) => (STANDARD.encode(part), "base64", cut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_shown_as_text_where_it_is_text() {
        let check = |body: &[u8], length: usize, encoding, cut| {
            let (text, how, truncated) = shown(&Bytes::copy_from_slice(body));
            assert_eq!((text.len(), how, truncated), (length, encoding, cut));
        };
        check(b"{}", 2, "utf-8", false);
        check(b"", 0, "utf-8", false);
        check(b"\xff\x00", 4, "base64", false);
        check(&vec![b'x'; BODY_MAX], BODY_MAX, "utf-8", false);
        let mut long = vec![b'x'; BODY_MAX - 1];
        long.extend_from_slice("é".as_bytes());
        check(&long, BODY_MAX - 1, "utf-8", true);
        long[0] = 0xff;
        check(&long, BODY_MAX.div_ceil(3) * 4, "base64", true);
    }

    #[test]
    fn attempts_without_an_end_are_shown_in_their_places() {
        let at = Timestamp::from_second(1_000_000).unwrap();
        let attempted = |number| Attempted {
            destination: "a".into(),
            number,
            started_at: at,
            duration: std::time::Duration::ZERO,
            outcome: "timeout".to_owned(),
            status: None,
            detail: String::new(),
        };
        let check = |ended: &[u32], state, attempts, expected: &[(u32, bool)]| {
            let forward = ForwardStatus {
                destination: "a".into(),
                state,
                attempts,
                due_at: at,
                pending_since: at,
                replay: false,
                settled_at: None,
                outcome: None,
                parked: false,
            };
            let attempts = ended.iter().map(|number| attempted(*number)).collect();
            let shown = timeline(&History { forwards: vec![forward], attempts });
            let shown: Vec<_> = shown.iter().map(|one| (one.number, one.outcome == "cut_off")).collect();
            assert_eq!(shown, expected, "{ended:?} {state:?}");
        };
        check(&[], State::Waiting, 0, &[]);
        check(&[], State::Delivered, 1, &[]);
        check(&[], State::InFlight, 1, &[]);
        check(&[], State::Waiting, 1, &[(1, true)]);
        check(&[2], State::Delivered, 2, &[(1, true), (2, false)]);
        check(&[1, 4], State::InFlight, 6, &[(1, false), (2, true), (3, true), (4, false), (5, true)]);
        // An attempt that was asked to come again later is not counted.
        check(&[1, 2, 2], State::Waiting, 1, &[(1, false), (2, false), (2, false)]);
        // Replayed.
        check(&[1, 2, 3, 2], State::Dead, 2, &[(1, false), (2, false), (3, false), (1, true), (2, false)]);
    }

    #[test]
    fn times_are_moments_or_spans() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let check = |text, second: Option<i64>| {
            let found = moment("since", text, now).ok().map(Timestamp::as_second);
            assert_eq!(found, second, "{text}");
        };
        check("2h", Some(992_800));
        check("90s", Some(999_910));
        check("1970-01-02T00:00:00Z", Some(86_400));
        for wrong in ["", "yesterday", "2", "1970-01-02", "-2h"] {
            check(wrong, None);
        }
    }
}
