//! What operators read, on a connection of their own. Deliveries are walked in the order of their ids, and where an index
//! knows which of them matter, only those; whatever the filter, a page looks at a bounded number of rows and bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Rows, Statement, params};

use super::{order, verdict};
use crate::clock::{Timestamp, from_milliseconds};
use crate::delivery::Verification;
use crate::forward::State;
use crate::id::Id;
use crate::store::operators::{
    ATTEMPTS_MAX, Attempted, Change, DeadGroup, DeadLetters, Filter, ForwardStatus, History, Listed, Page,
    Summary, Target, Wanted,
};

/// Deliveries that one page looks at: some milliseconds of work.
const ROWS_MAX: u32 = 2_000;
/// Bytes of bodies that one page looks for a text in.
const BYTES_MAX: u64 = 16 << 20;
/// What is pending, or has no forward, is found by its index while it is not more than this; else it is not rare.
const GATHERED_MAX: u32 = 10_000;
/// Forwards that one page of targets has, roughly: they are changed in one transaction.
const TARGETS: usize = 500;
/// Dead letters that are looked at to count them by their outcome.
const COUNTED_MAX: u32 = 200_000;

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

    /// Whether `a` comes after `b`.
    fn is_after(self, a: Id, b: Id) -> bool {
        match self {
            Self::NewestFirst => a < b,
            Self::OldestFirst => a > b,
        }
    }
}

/// Deliveries that match, the newest first. `claimed` are those that have the filter's delivery id by their claims.
pub(super) fn list(
    connection: &Connection,
    filter: &Filter,
    claimed: Vec<Id>,
    from: Option<Id>,
    limit: usize,
) -> rusqlite::Result<Page<Listed>> {
    let keep = |listed: Listed, found: &mut Vec<Listed>| found.push(listed);
    Walk { connection, filter, order: Order::NewestFirst, from, limit }.page(claimed, keep)
}

/// Forwards that match and that `change` fits, the oldest first.
pub(super) fn targets(
    connection: &Connection,
    filter: &Filter,
    claimed: Vec<Id>,
    change: Change,
    from: Option<Id>,
) -> rusqlite::Result<Page<Target>> {
    let keep = |listed: Listed, found: &mut Vec<Target>| {
        let wanted = listed.forwards.into_iter().filter(|forward| filter.targets(forward, change));
        found.extend(wanted.map(|forward| (listed.id, forward.destination)));
    };
    Walk { connection, filter, order: Order::OldestFirst, from, limit: TARGETS }.page(claimed, keep)
}

/// One page's way through the deliveries.
struct Walk<'a> {
    connection: &'a Connection,
    filter: &'a Filter,
    order: Order,
    from: Option<Id>,
    limit: usize,
}

/// What is looked at.
enum Candidates {
    /// Every delivery.
    All,
    /// These, in order; and whether there are more behind them.
    These(Vec<Id>, bool),
}

const COLUMNS: &str = "id, source, delivery_id, event, received_at, sender, method, verified, scheme, secret, skew, length(body)";

impl Walk<'_> {
    fn page<T>(&self, mut claimed: Vec<Id>, keep: impl Fn(Listed, &mut Vec<T>)) -> rusqlite::Result<Page<T>> {
        self.order.sort(&mut claimed);
        if self.from.is_none()
            && let Some(first) = claimed.first().copied()
        {
            // Older ones may have the same id: those whose claim had ended when it came again. They are found by walking.
            let next = match self.order {
                Order::NewestFirst => first,
                Order::OldestFirst => Id::from_bytes([0; 16]),
            };
            let mut page = self.walk(Candidates::These(claimed, false), &[], keep)?;
            page.next = Some(next);
            return Ok(page);
        }
        self.walk(self.candidates()?, &claimed, keep)
    }

    fn walk<T>(
        &self,
        candidates: Candidates,
        seen: &[Id],
        keep: impl Fn(Listed, &mut Vec<T>),
    ) -> rusqlite::Result<Page<T>> {
        let mut page = Page { found: Vec::new(), next: None };
        let (mut rows, mut bytes, mut last) = (0, 0, None);
        let mut look = |id: Id, summary: Option<Summary>, page: &mut Page<T>| -> rusqlite::Result<bool> {
            if page.found.len() >= self.limit || rows >= ROWS_MAX || bytes >= BYTES_MAX {
                page.next = last;
                return Ok(false);
            }
            rows += 1;
            last = Some(id);
            if !seen.contains(&id)
                && let Some(listed) = self.judge(id, summary, &mut bytes)?
            {
                keep(listed, &mut page.found);
            }
            Ok(true)
        };
        match candidates {
            Candidates::All => {
                let (low, high) = self.bounds();
                let mut select = self.connection.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM delivery WHERE id BETWEEN ?1 AND ?2 ORDER BY id {}",
                    self.order.sql()
                ))?;
                let mut found = select.query(params![low.as_bytes(), high.as_bytes()])?;
                while let Some(row) = found.next()? {
                    if !look(Id::from_bytes(row.get(0)?), summary(row)?, &mut page)? {
                        break;
                    }
                }
            }
            Candidates::These(ids, more) => {
                let mut select = self
                    .connection
                    .prepare_cached(&format!("SELECT {COLUMNS} FROM delivery WHERE id = ?1"))?;
                for id in ids {
                    let found = select.query_row([id.as_bytes()], summary).optional()?.flatten();
                    if !look(id, found, &mut page)? {
                        return Ok(page);
                    }
                }
                if more {
                    page.next = last;
                }
            }
        }
        Ok(page)
    }

    /// The delivery, when it matches. Adds what was read of its body to `bytes`.
    fn judge(&self, id: Id, summary: Option<Summary>, bytes: &mut u64) -> rusqlite::Result<Option<Listed>> {
        let Filter { source, event, delivery_id, since, until, text, .. } = self.filter;
        match &summary {
            Some(known) => {
                let differs = |wanted: &Option<String>, found: Option<&str>| {
                    wanted.as_deref().is_some_and(|wanted| Some(wanted) != found)
                };
                if differs(source, Some(&known.source))
                    || differs(event, known.event.as_deref())
                    || differs(delivery_id, known.delivery_id.as_deref())
                    || since.is_some_and(|since| known.received_at < since)
                    || until.is_some_and(|until| known.received_at >= until)
                {
                    return Ok(None);
                }
            }
            None if source.is_some() || event.is_some() || delivery_id.is_some() || text.is_some() => {
                return Ok(None);
            }
            None => {}
        }
        let forwards = forwards(self.connection, id)?;
        let wanted = match self.filter.state {
            Some(Wanted::Unrouted) => forwards.is_empty() && !self.filter.is_about_forwards(),
            Some(Wanted::Forward(_)) | None => {
                !self.filter.is_about_forwards() || forwards.iter().any(|forward| self.filter.wants(forward))
            }
        };
        if !wanted {
            return Ok(None);
        }
        if let (Some(text), Some(known)) = (text, &summary) {
            let named = [&known.delivery_id, &known.event].into_iter().flatten();
            if !named.into_iter().any(|name| name.contains(text.as_str())) {
                *bytes += known.body_bytes;
                let mut select = self
                    .connection
                    .prepare_cached("SELECT instr(body, ?2) > 0 FROM delivery WHERE id = ?1")?;
                if !select.query_row(params![id.as_bytes(), text.as_bytes()], |row| row.get(0))? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Listed { id, summary, forwards }))
    }

    /// The first and the last id that may be looked at; an id begins with the time of receipt.
    fn bounds(&self) -> (Id, Id) {
        let milliseconds = |at: Timestamp| u128::try_from(at.as_millisecond()).unwrap_or(0);
        let start = |at: Timestamp| milliseconds(at).min((1 << 48) - 1) << 80;
        let mut low = self.filter.since.map_or(0, start);
        // The millisecond that `until` is in is judged by the time of receipt itself.
        let mut high = self.filter.until.map_or(u128::MAX, |until| start(until) | ((1 << 80) - 1));
        if let Some(from) = self.from {
            let from = u128::from_be_bytes(*from.as_bytes());
            match self.order {
                Order::NewestFirst => high = high.min(from.saturating_sub(1)),
                Order::OldestFirst => low = low.max(from.saturating_add(1)),
            }
        }
        (Id::from_bytes(low.to_be_bytes()), Id::from_bytes(high.to_be_bytes()))
    }

    fn candidates(&self) -> rusqlite::Result<Candidates> {
        match self.filter.state {
            Some(Wanted::Forward(State::Dead)) => self.dead(),
            Some(Wanted::Forward(state @ (State::Waiting | State::InFlight))) => self.gather(
                "SELECT delivery FROM forward INDEXED BY forward_pending
                 WHERE settled_at IS NULL AND state = ?1 AND (?2 IS NULL OR destination = ?2) LIMIT ?3",
                params![state.label(), self.filter.destination, GATHERED_MAX + 1],
            ),
            Some(Wanted::Unrouted) => self.gather(
                "SELECT id FROM delivery INDEXED BY delivery_unrouted WHERE forwards = 0 LIMIT ?1",
                params![GATHERED_MAX + 1],
            ),
            Some(Wanted::Forward(State::Delivered | State::Cancelled)) | None => Ok(Candidates::All),
        }
    }

    /// What an index lists in another order, when it is little.
    fn gather(&self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<Candidates> {
        let mut select = self.connection.prepare_cached(sql)?;
        let mut ids = ids(select.query(values)?)?;
        if ids.len() > GATHERED_MAX as usize {
            return Ok(Candidates::All);
        }
        let (low, high) = self.bounds();
        ids.retain(|id| (low..=high).contains(id));
        self.order.sort(&mut ids);
        ids.dedup();
        Ok(Candidates::These(ids, false))
    }

    /// The next deliveries that have a dead forward, by its index, which is in order for each destination.
    fn dead(&self) -> rusqlite::Result<Candidates> {
        let destinations = match &self.filter.destination {
            Some(destination) => vec![Arc::from(destination.as_str())],
            None => dead_destinations(self.connection)?,
        };
        let (low, high) = self.bounds();
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT delivery FROM forward INDEXED BY forward_dead
             WHERE state = 'dead' AND destination = ?1 AND delivery BETWEEN ?2 AND ?3
             ORDER BY delivery {} LIMIT ?4",
            self.order.sql()
        ))?;
        let mut all = Vec::new();
        // Behind the first end of a list that goes on, others may be missing in between.
        let mut end: Option<Id> = None;
        for destination in destinations {
            let found =
                ids(select.query(params![&*destination, low.as_bytes(), high.as_bytes(), ROWS_MAX])?)?;
            if found.len() == ROWS_MAX as usize
                && let Some(last) = found.last().copied()
            {
                end = Some(end.map_or(last, |end| if self.order.is_after(end, last) { last } else { end }));
            }
            all.extend(found);
        }
        self.order.sort(&mut all);
        all.dedup();
        if let Some(end) = end {
            all.retain(|id| !self.order.is_after(*id, end));
        }
        Ok(Candidates::These(all, end.is_some()))
    }
}

fn ids(mut rows: Rows<'_>) -> rusqlite::Result<Vec<Id>> {
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(Id::from_bytes(row.get(0)?));
    }
    Ok(ids)
}

/// What the row says; `None` when it is damaged. That is told by whoever reads it whole, and hides no other.
fn summary(row: &Row<'_>) -> rusqlite::Result<Option<Summary>> {
    let read = || {
        Ok(Summary {
            source: row.get(1)?,
            delivery_id: row.get(2)?,
            event: row.get(3)?,
            received_at: from_milliseconds(row.get(4)?),
            sender: row.get::<_, String>(5)?.parse().ok(),
            method: row.get(6)?,
            verification: Verification {
                verified: row.get(7)?,
                scheme: row.get(8)?,
                secret: row.get::<_, Option<Arc<str>>>(9)?,
                skew_seconds: row.get(10)?,
            },
            body_bytes: row.get::<_, i64>(11)?.unsigned_abs(),
        })
    };
    match read() {
        Ok(summary) => Ok(Some(summary)),
        Err(error) if verdict::is_its_own(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn forwards(connection: &Connection, id: Id) -> rusqlite::Result<Vec<ForwardStatus>> {
    let mut select = connection.prepare_cached(
        "SELECT destination, state, due_at, attempts, pending_since, replay, settled_at, last_outcome,
             settled_at IS NULL AND EXISTS (
                 SELECT 1 FROM ordered o JOIN forward first ON first.destination = o.destination AND first.delivery = (
                     SELECT delivery FROM ordered WHERE destination = o.destination AND order_key = o.order_key
                     ORDER BY arrival, delivery LIMIT 1)
                 WHERE o.delivery = f.delivery AND o.destination = f.destination AND first.state = 'dead')
         FROM forward f WHERE delivery = ?1 ORDER BY destination",
    )?;
    let status = |row: &Row<'_>| {
        Ok(ForwardStatus {
            destination: row.get(0)?,
            // The table's own check lets no other word in.
            state: State::of_label(row.get_ref(1)?.as_str()?).unwrap_or(State::Waiting),
            due_at: from_milliseconds(order::due(row.get(2)?)),
            attempts: row.get(3)?,
            pending_since: from_milliseconds(row.get(4)?),
            replay: row.get(5)?,
            settled_at: row.get::<_, Option<i64>>(6)?.map(from_milliseconds),
            outcome: row.get(7)?,
            parked: row.get(8)?,
        })
    };
    select.query_map([id.as_bytes()], status)?.collect()
}

/// The forwards and attempts of a delivery.
pub(super) fn history(connection: &Connection, id: Id) -> rusqlite::Result<History> {
    let mut select = connection.prepare_cached(
        "SELECT destination, attempt, started_at, duration_ms, outcome, status, detail
         FROM attempt WHERE delivery = ?1 ORDER BY rowid DESC LIMIT ?2",
    )?;
    let attempted = |row: &Row<'_>| {
        Ok(Attempted {
            destination: row.get(0)?,
            number: row.get(1)?,
            started_at: from_milliseconds(row.get(2)?),
            duration: Duration::from_millis(row.get::<_, i64>(3)?.unsigned_abs()),
            outcome: row.get(4)?,
            status: row.get(5)?,
            detail: row.get(6)?,
        })
    };
    let attempts = select.query_map(params![id.as_bytes(), ATTEMPTS_MAX], attempted)?;
    let mut attempts = attempts.collect::<rusqlite::Result<Vec<_>>>()?;
    attempts.reverse();
    Ok(History { forwards: forwards(connection, id)?, attempts })
}

/// The destinations that have dead letters: found by leaping from each to the next.
fn dead_destinations(connection: &Connection) -> rusqlite::Result<Vec<Arc<str>>> {
    let mut select = connection.prepare_cached(
        "SELECT min(destination) FROM forward INDEXED BY forward_dead WHERE state = 'dead' AND destination > ?1",
    )?;
    let mut found: Vec<Arc<str>> = Vec::new();
    while let Some(next) = next_destination(&mut select, found.last().map_or("", |last| last.as_ref()))? {
        found.push(next);
    }
    Ok(found)
}

fn next_destination(select: &mut Statement<'_>, after: &str) -> rusqlite::Result<Option<Arc<str>>> {
    select.query_row([after], |row| row.get(0))
}

/// The dead letters by what they died of. Where there are very many, the newest of each destination.
pub(super) fn dead_letters(connection: &Connection) -> rusqlite::Result<DeadLetters> {
    let destinations = dead_destinations(connection)?;
    let share = COUNTED_MAX / u32::try_from(destinations.len()).unwrap_or(u32::MAX).max(1);
    let mut select = connection.prepare_cached(
        "SELECT last_outcome FROM forward INDEXED BY forward_dead
         WHERE state = 'dead' AND destination = ?1 ORDER BY delivery DESC LIMIT ?2",
    )?;
    let mut dead = DeadLetters { groups: Vec::new(), complete: true };
    for destination in destinations {
        let mut counts: BTreeMap<Option<String>, u64> = BTreeMap::new();
        let mut rows = select.query(params![&*destination, share + 1])?;
        while let Some(row) = rows.next()? {
            *counts.entry(row.get(0)?).or_default() += 1;
        }
        dead.complete &= counts.values().sum::<u64>() <= u64::from(share);
        let group = |(outcome, count)| DeadGroup { destination: Arc::clone(&destination), outcome, count };
        dead.groups.extend(counts.into_iter().map(group));
    }
    Ok(dead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema;

    fn id(n: u64) -> Id {
        Id::from_bytes(u128::from(n).to_be_bytes())
    }

    /// `count` deliveries, each with a forward of the state that `state` gives its number.
    fn stored(count: u64, state: impl Fn(u64) -> (&'static str, &'static str)) -> Connection {
        let connection = schema::model(schema::FORMAT).unwrap();
        let transaction = connection.unchecked_transaction().unwrap();
        for n in 1..=count {
            let (destination, state) = state(n);
            transaction
                .execute(
                    "INSERT INTO delivery VALUES (?1, 's', NULL, NULL, 1, '::1', 'POST', '/', 1, 'x', NULL, NULL, 1,
                         zeroblob(16), x'', x'')",
                    [id(n).as_bytes()],
                )
                .unwrap();
            let settled = (state != "waiting").then_some(1);
            transaction
                .execute(
                    "INSERT INTO forward VALUES (?1, ?2, ?3, 7, 0, 7, 0, ?4, 'x', 0)",
                    params![id(n).as_bytes(), destination, state, settled],
                )
                .unwrap();
        }
        transaction.commit().unwrap();
        connection
    }

    /// What each page has, from the first to the last.
    fn pages(connection: &Connection, filter: &Filter) -> Vec<Vec<Id>> {
        let (mut pages, mut from) = (Vec::new(), None);
        loop {
            let page = list(connection, filter, Vec::new(), from, 10_000).unwrap();
            pages.push(page.found.iter().map(|listed| listed.id).collect());
            from = page.next;
            if from.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn a_page_looks_at_so_many_rows_and_says_where_to_go_on() {
        let connection = stored(2 * u64::from(ROWS_MAX) + 1, |_| ("a", "delivered"));
        let none = Filter { source: Some("other".to_owned()), ..Filter::default() };
        assert_eq!(pages(&connection, &none), [vec![], vec![], vec![]]);
        let lengths: Vec<_> = pages(&connection, &Filter::default()).iter().map(Vec::len).collect();
        assert_eq!(lengths, [ROWS_MAX as usize, ROWS_MAX as usize, 1]);
    }

    /// Of a destination with many dead letters only the first are read; those of another that lie behind them must wait.
    #[test]
    fn dead_letters_of_several_destinations_are_in_one_order() {
        let total = 3 * u64::from(ROWS_MAX);
        let connection = stored(total, |n| (if n % 3 == 0 { "b" } else { "a" }, "dead"));
        let dead = Filter { state: Some(Wanted::Forward(State::Dead)), ..Filter::default() };
        let all: Vec<Id> = pages(&connection, &dead).concat();
        assert_eq!(all, (1..=total).rev().map(id).collect::<Vec<_>>());
        let mut from = None;
        let mut targets = Vec::new();
        loop {
            let page = super::targets(&connection, &dead, Vec::new(), Change::Purge, from).unwrap();
            assert!(page.found.len() <= TARGETS);
            targets.extend(page.found.iter().map(|target| target.0));
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(targets, (1..=total).map(id).collect::<Vec<_>>());
    }

    /// A few that wait behind thousands that were delivered are found at once.
    #[test]
    fn what_is_rare_is_found_by_its_index() {
        let connection =
            stored(3 * u64::from(ROWS_MAX), |n| ("a", if n < 3 { "waiting" } else { "delivered" }));
        let waiting = Filter { state: Some(Wanted::Forward(State::Waiting)), ..Filter::default() };
        assert_eq!(pages(&connection, &waiting), [vec![id(2), id(1)]]);
    }

    #[test]
    fn a_damaged_row_hides_no_other() {
        let connection = stored(3, |_| ("a", "dead"));
        connection.execute("DELETE FROM delivery WHERE id = ?1", [id(1).as_bytes()]).unwrap();
        connection
            .execute_batch(
                "PRAGMA writable_schema = 1;
                 UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name = 'delivery';
                 PRAGMA writable_schema = RESET;",
            )
            .unwrap();
        connection
            .execute("UPDATE delivery SET received_at = 'late' WHERE id = ?1", [id(2).as_bytes()])
            .unwrap();
        let dead = Filter { state: Some(Wanted::Forward(State::Dead)), ..Filter::default() };
        let page = list(&connection, &dead, Vec::new(), None, 10).unwrap();
        let found: Vec<_> = page
            .found
            .iter()
            .map(|listed| (listed.id, listed.summary.is_some(), listed.forwards.len()))
            .collect();
        assert_eq!(found, [(id(3), true, 1), (id(2), false, 1), (id(1), false, 1)]);
        let purged = targets(&connection, &dead, Vec::new(), Change::Purge, None).unwrap();
        assert_eq!(purged.found.len(), 3);
    }
}
