//! What operators read. Deliveries are walked in the order of their ids, and where an index knows which of them matter, only
//! those; whatever the filter, a page looks at a bounded number of rows and bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::Inner;
use super::error::Trouble;
use super::order;
use super::row::{self, text, uuid};
use crate::clock::{Timestamp, from_milliseconds};
use crate::dedup::id_keys;
use crate::delivery::Verification;
use crate::forward::State;
use crate::id::Id;
use crate::store::operators::{
    ATTEMPTS_MAX, Attempted, Change, DeadGroup, DeadLetters, Filter, ForwardStatus, History, Listed, Page,
    Summary, Target, Wanted,
};

/// Deliveries that one page looks at: some milliseconds of work.
const ROWS_MAX: usize = 2_000;
/// Deliveries that are fetched at once.
const CHUNK: usize = 200;
/// Bytes of bodies that one page looks for a text in.
const BYTES_MAX: u64 = 16 << 20;
/// What is pending, or has no forward, is found by its index while it is not more than this; else it is not rare.
const GATHERED_MAX: usize = 10_000;
/// Forwards that one page of targets has, roughly: they are changed in one transaction.
const TARGETS: usize = 500;
/// Dead letters that are looked at to count them by their outcome.
const COUNTED_MAX: i64 = 200_000;

const COLUMNS: &str = "id, source, delivery_id, event, received_at, sender, method, verified, scheme, secret, skew, \
    octet_length(body)::bigint";
const FORWARDS: &str = "
    SELECT delivery, destination, state, due_at, attempts, pending_since, replay, settled_at, last_outcome,
        settled_at IS NULL AND coalesce((
            SELECT (SELECT first.state FROM countersign.forward first
                WHERE first.destination = o.destination AND first.delivery = (
                    SELECT delivery FROM countersign.ordered WHERE destination = o.destination AND order_key = o.order_key
                    ORDER BY arrival, delivery LIMIT 1))
            FROM countersign.ordered o WHERE o.delivery = f.delivery AND o.destination = f.destination) = 'dead', false)
    FROM countersign.forward f WHERE delivery = ANY($1) ORDER BY delivery, destination";
const WITH_TEXT: &str =
    "SELECT id FROM countersign.delivery WHERE id = ANY($1) AND position($2::bytea IN body) > 0";
const CLAIMED: &str = "SELECT DISTINCT delivery FROM countersign.claim WHERE key = ANY($1)";
const ATTEMPTS: &str = "
    SELECT * FROM (
        SELECT destination, attempt, started_at, duration_ms, outcome, status, detail, number FROM countersign.attempt
        WHERE delivery = $1 ORDER BY number DESC LIMIT $2) a
    ORDER BY number";
const DEAD: &str = "
    SELECT destination, last_outcome, count(*) FROM (
        SELECT destination, last_outcome FROM countersign.forward WHERE state = 'dead'
        ORDER BY delivery DESC LIMIT $1) d
    GROUP BY destination, last_outcome";

/// In which order deliveries are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    NewestFirst,
    OldestFirst,
}

impl Order {
    fn sql(self) -> &'static str {
        match self {
            Self::NewestFirst => "DESC",
            Self::OldestFirst => "ASC",
        }
    }

    fn sort(self, ids: &mut [Id]) {
        ids.sort_unstable();
        if self == Self::NewestFirst {
            ids.reverse();
        }
    }
}

impl Inner {
    pub(super) async fn list(
        &self,
        filter: &Filter,
        from: Option<Id>,
        limit: usize,
    ) -> Result<Page<Listed>, Trouble> {
        let keep = |listed: Listed, found: &mut Vec<Listed>| found.push(listed);
        Walk { inner: self, filter, order: Order::NewestFirst, from, limit }.page(keep).await
    }

    pub(super) async fn targets(
        &self,
        filter: &Filter,
        change: Change,
        from: Option<Id>,
    ) -> Result<Page<Target>, Trouble> {
        let keep = |listed: Listed, found: &mut Vec<Target>| {
            let wanted = listed.forwards.into_iter().filter(|forward| filter.targets(forward, change));
            found.extend(wanted.map(|forward| (listed.id, forward.destination)));
        };
        Walk { inner: self, filter, order: Order::OldestFirst, from, limit: TARGETS }.page(keep).await
    }

    pub(super) async fn history(&self, id: Id) -> Result<History, Trouble> {
        let forwards = self.forwards(&[uuid(id)]).await?.remove(&id).unwrap_or_default();
        let rows = self.query(ATTEMPTS, &[&uuid(id), &i64::from(ATTEMPTS_MAX)]).await?;
        let attempts = rows.iter().map(attempted).collect::<Result<_, _>>()?;
        Ok(History { forwards, attempts })
    }

    pub(super) async fn dead_letters(&self) -> Result<DeadLetters, Trouble> {
        let mut dead = DeadLetters { groups: Vec::new(), complete: true };
        for row in self.query(DEAD, &[&(COUNTED_MAX + 1)]).await? {
            let count = row.try_get::<_, i64>(2)?.unsigned_abs();
            let destination = Arc::from(row.try_get::<_, &str>(0)?);
            dead.groups.push(DeadGroup { destination, outcome: row.try_get(1)?, count });
        }
        dead.groups.sort();
        dead.complete =
            dead.groups.iter().map(|group| group.count).sum::<u64>() <= COUNTED_MAX.unsigned_abs();
        Ok(dead)
    }

    async fn forwards(&self, ids: &[Uuid]) -> Result<HashMap<Id, Vec<ForwardStatus>>, Trouble> {
        let mut forwards: HashMap<Id, Vec<ForwardStatus>> = HashMap::new();
        for row in self.query(FORWARDS, &[&ids]).await? {
            forwards.entry(row::id(row.try_get(0)?)).or_default().push(forward(&row)?);
        }
        Ok(forwards)
    }

    /// The deliveries that have the filter's delivery id by their claims.
    async fn claimed(&self, filter: &Filter) -> Result<Vec<Id>, Trouble> {
        let Some(id) = &filter.delivery_id else { return Ok(Vec::new()) };
        let keys: Vec<_> = match &filter.source {
            Some(source) => id_keys(source, id).to_vec(),
            None => filter.claimed_by.iter().flat_map(|source| id_keys(source, id)).collect(),
        };
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key.as_bytes()[..]).collect();
        let rows = self.query(CLAIMED, &[&keys]).await?;
        Ok(rows.iter().map(|row| row.try_get(0).map(row::id)).collect::<Result<_, _>>()?)
    }
}

/// One page's way through the deliveries.
struct Walk<'a> {
    inner: &'a Inner,
    filter: &'a Filter,
    order: Order,
    from: Option<Id>,
    limit: usize,
}

/// What is looked at.
enum Candidates {
    /// Every delivery, from this one on.
    All(Uuid, Uuid),
    /// These, in order; and whether there are more behind them.
    These(Vec<Id>, bool),
}

/// Some of them, with what is known of each; and the rest.
struct Chunk {
    looked_at: Vec<(Id, Option<Summary>)>,
    rest: Option<Candidates>,
}

/// Those of a chunk that match, and the first that there were no bytes left for.
struct Judged {
    found: Vec<Listed>,
    end: Option<Id>,
}

impl Walk<'_> {
    async fn page<T>(&self, keep: impl Fn(Listed, &mut Vec<T>)) -> Result<Page<T>, Trouble> {
        let mut claimed = self.inner.claimed(self.filter).await?;
        self.order.sort(&mut claimed);
        if self.from.is_none()
            && let Some(first) = claimed.first().copied()
        {
            // Older ones may have the same id: those whose claim had ended when it came again. They are found by walking.
            let next = match self.order {
                Order::NewestFirst => first,
                Order::OldestFirst => Id::from_bytes([0; 16]),
            };
            let mut page = self.walk(Candidates::These(claimed, false), &[], keep).await?;
            page.next = Some(next);
            return Ok(page);
        }
        self.walk(self.candidates().await?, &claimed, keep).await
    }

    async fn walk<T>(
        &self,
        candidates: Candidates,
        seen: &[Id],
        keep: impl Fn(Listed, &mut Vec<T>),
    ) -> Result<Page<T>, Trouble> {
        let mut page = Page { found: Vec::new(), next: None };
        let (mut rows, mut bytes, mut last) = (0, 0, None);
        let mut candidates = Some(candidates);
        while let Some(these) = candidates.take() {
            if let Candidates::These(ids, true) = &these
                && ids.is_empty()
            {
                page.next = last;
                break;
            }
            let Chunk { looked_at, rest } = self.fetch(these).await?;
            let ids: Vec<Id> = looked_at.iter().map(|(id, _)| *id).collect();
            let Judged { found, end } = self.judge(looked_at, &mut bytes).await?;
            let mut found: HashMap<Id, Listed> =
                found.into_iter().map(|listed| (listed.id, listed)).collect();
            for id in ids {
                if page.found.len() >= self.limit || rows >= ROWS_MAX || end == Some(id) {
                    page.next = last;
                    return Ok(page);
                }
                rows += 1;
                last = Some(id);
                if !seen.contains(&id)
                    && let Some(listed) = found.remove(&id)
                {
                    keep(listed, &mut page.found);
                }
            }
            candidates = rest;
        }
        Ok(page)
    }

    async fn fetch(&self, candidates: Candidates) -> Result<Chunk, Trouble> {
        match candidates {
            Candidates::All(low, high) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM countersign.delivery WHERE id BETWEEN $1 AND $2 ORDER BY id {} LIMIT {CHUNK}",
                    self.order.sql()
                );
                let rows = self.inner.query(&sql, &[&low, &high]).await?;
                let mut looked_at = Vec::with_capacity(rows.len());
                for row in &rows {
                    looked_at.push((row::id(row.try_get(0)?), Some(summary(row)?)));
                }
                let last = looked_at.last().filter(|_| looked_at.len() == CHUNK);
                let rest = last.map(|(last, _)| match self.order {
                    Order::NewestFirst => Candidates::All(low, beside(*last, false)),
                    Order::OldestFirst => Candidates::All(beside(*last, true), high),
                });
                Ok(Chunk { looked_at, rest })
            }
            Candidates::These(mut ids, more) => {
                let rest = ids.split_off(CHUNK.min(ids.len()));
                let asked: Vec<Uuid> = ids.iter().map(|id| uuid(*id)).collect();
                let sql = format!("SELECT {COLUMNS} FROM countersign.delivery WHERE id = ANY($1)");
                let mut known = HashMap::new();
                for row in self.inner.query(&sql, &[&asked]).await? {
                    known.insert(row::id(row.try_get(0)?), summary(&row)?);
                }
                let looked_at = ids.into_iter().map(|id| (id, known.remove(&id))).collect();
                let rest = (!rest.is_empty() || more).then_some(Candidates::These(rest, more));
                Ok(Chunk { looked_at, rest })
            }
        }
    }

    /// Those that match, for as long as there are bytes to read of their bodies. Adds what was read to `bytes`.
    async fn judge(&self, looked_at: Vec<(Id, Option<Summary>)>, bytes: &mut u64) -> Result<Judged, Trouble> {
        let likely: Vec<_> =
            looked_at.into_iter().filter(|(_, summary)| self.fits(summary.as_ref())).collect();
        let ids: Vec<Uuid> = likely.iter().map(|(id, _)| uuid(*id)).collect();
        let mut forwards = self.inner.forwards(&ids).await?;
        let mut found = Vec::new();
        for (id, summary) in likely {
            let forwards = forwards.remove(&id).unwrap_or_default();
            let about = self.filter.is_about_forwards();
            let wanted = match self.filter.state {
                Some(Wanted::Unrouted) => forwards.is_empty() && !about,
                Some(Wanted::Forward(_)) | None => {
                    !about || forwards.iter().any(|forward| self.filter.wants(forward))
                }
            };
            // What has neither a row nor a forward is gone.
            if wanted && !(summary.is_none() && forwards.is_empty()) {
                found.push(Listed { id, summary, forwards });
            }
        }
        let Some(wanted) = &self.filter.text else { return Ok(Judged { found, end: None }) };
        let is_named = |listed: &Listed| {
            let known = listed.summary.as_ref();
            let names = known.map(|known| [&known.delivery_id, &known.event]);
            names.into_iter().flatten().flatten().any(|name| name.contains(&*text(wanted)))
        };
        let (mut searched, mut end) = (Vec::new(), None);
        for listed in found.iter().filter(|listed| !is_named(listed)) {
            if *bytes >= BYTES_MAX {
                end = Some(listed.id);
                break;
            }
            *bytes += listed.summary.as_ref().map_or(0, |known| known.body_bytes);
            searched.push(uuid(listed.id));
        }
        let mut with_text = HashSet::new();
        for row in self.inner.query(WITH_TEXT, &[&searched, &wanted.as_bytes()]).await? {
            with_text.insert(row::id(row.try_get(0)?));
        }
        found.retain(|listed| is_named(listed) || with_text.contains(&listed.id));
        Ok(Judged { found, end })
    }

    /// Whether what is known of a delivery itself is what is wanted.
    fn fits(&self, summary: Option<&Summary>) -> bool {
        let Filter { source, event, delivery_id, since, until, text: wanted, .. } = self.filter;
        let Some(known) = summary else {
            return source.is_none() && event.is_none() && delivery_id.is_none() && wanted.is_none();
        };
        let is_same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(&*text(wanted)) == found)
        };
        is_same(source, Some(&known.source))
            && is_same(event, known.event.as_deref())
            && is_same(delivery_id, known.delivery_id.as_deref())
            && since.is_none_or(|since| known.received_at >= since)
            && until.is_none_or(|until| known.received_at < until)
    }

    /// The first and the last id that may be looked at; an id begins with the time of receipt.
    fn bounds(&self) -> (Uuid, Uuid) {
        let milliseconds = |at: Timestamp| u128::try_from(at.as_millisecond()).unwrap_or(0);
        let start = |at: Timestamp| milliseconds(at).min((1 << 48) - 1) << 80;
        let mut low = self.filter.since.map_or(0, start);
        // The millisecond that `until` is in is judged by the time of receipt itself.
        let mut high = self.filter.until.map_or(u128::MAX, |until| start(until) | ((1 << 80) - 1));
        if let Some(from) = self.from {
            match self.order {
                Order::NewestFirst => high = high.min(beside(from, false).as_u128()),
                Order::OldestFirst => low = low.max(beside(from, true).as_u128()),
            }
        }
        (Uuid::from_u128(low), Uuid::from_u128(high))
    }

    async fn candidates(&self) -> Result<Candidates, Trouble> {
        let (low, high) = self.bounds();
        let (destination, order) = (&self.filter.destination, self.order.sql());
        let limit = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        match self.filter.state {
            // Its index is in order.
            Some(Wanted::Forward(State::Dead)) => {
                let sql = format!(
                    "SELECT delivery FROM countersign.forward
                     WHERE state = 'dead' AND delivery BETWEEN $1 AND $2 AND ($3::text IS NULL OR destination = $3)
                     ORDER BY delivery {order} LIMIT $4"
                );
                let rows = self.inner.query(&sql, &[&low, &high, destination, &limit(ROWS_MAX)]).await?;
                let (full, mut ids) = (rows.len() == ROWS_MAX, ids(&rows)?);
                ids.dedup();
                Ok(Candidates::These(ids, full))
            }
            Some(Wanted::Forward(state @ (State::Waiting | State::InFlight))) => {
                let sql = format!(
                    "SELECT delivery FROM countersign.forward
                     WHERE state = '{}' AND ($1::text IS NULL OR destination = $1) LIMIT $2",
                    state.label()
                );
                let rows = self.inner.query(&sql, &[destination, &limit(GATHERED_MAX + 1)]).await?;
                self.gathered(&rows, low, high)
            }
            Some(Wanted::Unrouted) => {
                let sql = "SELECT id FROM countersign.delivery WHERE forwards = 0 LIMIT $1";
                let rows = self.inner.query(sql, &[&limit(GATHERED_MAX + 1)]).await?;
                self.gathered(&rows, low, high)
            }
            Some(Wanted::Forward(State::Delivered | State::Cancelled)) | None => {
                Ok(Candidates::All(low, high))
            }
        }
    }

    /// What an index lists in another order, when it is little.
    fn gathered(&self, rows: &[Row], low: Uuid, high: Uuid) -> Result<Candidates, Trouble> {
        if rows.len() > GATHERED_MAX {
            return Ok(Candidates::All(low, high));
        }
        let mut ids = ids(rows)?;
        ids.retain(|id| (low..=high).contains(&uuid(*id)));
        self.order.sort(&mut ids);
        ids.dedup();
        Ok(Candidates::These(ids, false))
    }
}

/// The id before or after another.
fn beside(id: Id, after: bool) -> Uuid {
    let number = u128::from_be_bytes(*id.as_bytes());
    Uuid::from_u128(if after { number.saturating_add(1) } else { number.saturating_sub(1) })
}

fn ids(rows: &[Row]) -> Result<Vec<Id>, Error> {
    rows.iter().map(|row| row.try_get(0).map(row::id)).collect()
}

fn summary(row: &Row) -> Result<Summary, Error> {
    Ok(Summary {
        source: Arc::from(row.try_get::<_, &str>(1)?),
        delivery_id: row.try_get(2)?,
        event: row.try_get(3)?,
        received_at: from_milliseconds(row.try_get(4)?),
        sender: row.try_get::<_, &str>(5)?.parse().ok(),
        method: row.try_get(6)?,
        verification: Verification {
            verified: row.try_get(7)?,
            scheme: Arc::from(row.try_get::<_, &str>(8)?),
            secret: row.try_get::<_, Option<&str>>(9)?.map(Arc::from),
            skew_seconds: row.try_get(10)?,
        },
        body_bytes: row.try_get::<_, i64>(11)?.unsigned_abs(),
    })
}

fn forward(row: &Row) -> Result<ForwardStatus, Error> {
    Ok(ForwardStatus {
        destination: Arc::from(row.try_get::<_, &str>(1)?),
        // The table's own check lets no other word in.
        state: State::of_label(row.try_get(2)?).unwrap_or(State::Waiting),
        due_at: from_milliseconds(order::due(row.try_get(3)?)),
        attempts: unsigned(row.try_get(4)?),
        pending_since: from_milliseconds(row.try_get(5)?),
        replay: row.try_get(6)?,
        settled_at: row.try_get::<_, Option<i64>>(7)?.map(from_milliseconds),
        outcome: row.try_get(8)?,
        parked: row.try_get(9)?,
    })
}

fn attempted(row: &Row) -> Result<Attempted, Error> {
    Ok(Attempted {
        destination: Arc::from(row.try_get::<_, &str>(0)?),
        number: unsigned(row.try_get(1)?),
        started_at: from_milliseconds(row.try_get(2)?),
        duration: Duration::from_millis(row.try_get::<_, i64>(3)?.unsigned_abs()),
        outcome: row.try_get(4)?,
        status: row.try_get::<_, Option<i32>>(5)?.and_then(|status| u16::try_from(status).ok()),
        detail: row.try_get(6)?,
    })
}

fn unsigned(count: i32) -> u32 {
    u32::try_from(count).unwrap_or(0)
}
