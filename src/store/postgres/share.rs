//! What holds for a destination at all gateways together. Its places are divided evenly among the gateways that have a lane for
//! it: one that has too many gives them back as their attempts end, one that has too few takes what nobody has. So there are
//! never more than the destination allows, also while gateways come, go, stand still, or are reloaded to another number one
//! after the other. The rate is divided as the places are. Whether a destination is paused, or its breaker open, and whose the
//! probe is, stands in the row of its lane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Object;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::Inner;
use super::error::Trouble;
use crate::forward::Told;
use crate::store::{Share, Standing};

/// Of each lane: what this gateway has, what all have, how many they are, how many of them are served before this one where
/// places are left over (others at each destination), the breaker, whose the probe is and whether that one can make it, whether
/// an operator has paused it, and whether something is due.
const READ: &str = "
    SELECT s.own, s.taken, s.gateways, s.before,
        (extract(epoch FROM c.broken_until - clock_timestamp()) * 1000)::bigint, c.pause_ms, c.prober, s.is_probed,
        coalesce(c.paused, false),
        EXISTS (SELECT 1 FROM countersign.forward f
            WHERE f.destination = l.destination AND f.state = 'waiting'
                AND f.due_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
    FROM unnest($1::text[]) WITH ORDINALITY l(destination, n)
    LEFT JOIN countersign.lane c ON c.destination = l.destination
    CROSS JOIN LATERAL (
        SELECT max(places) FILTER (WHERE gateway = $2) AS own, coalesce(sum(places), 0)::bigint AS taken,
            count(*) AS gateways,
            count(*) FILTER (WHERE hashtextextended(destination || gateway, 0) < hashtextextended(destination || $2, 0))
                AS before,
            coalesce(bool_or(gateway = c.prober AND places > 0), false) AS is_probed
        FROM countersign.share WHERE destination = l.destination) s
    ORDER BY l.n";
const JOIN: &str = "
    WITH lanes AS (
        INSERT INTO countersign.lane (destination) SELECT d FROM unnest($1::text[]) d ORDER BY d ON CONFLICT DO NOTHING)
    INSERT INTO countersign.share (destination, gateway, places) SELECT d, $2, 0 FROM unnest($1::text[]) d
    ON CONFLICT DO NOTHING";
const LEAVE: &str = "DELETE FROM countersign.share WHERE gateway = $1 AND destination <> ALL($2::text[])";
const GIVE: &str = "
    UPDATE countersign.share s SET places = g.places FROM unnest($1::text[], $2::bigint[]) g(destination, places)
    WHERE s.destination = g.destination AND s.gateway = $3";
/// In one order, so that no two transactions wait for each other.
const LOCK: &str =
    "SELECT FROM countersign.lane WHERE destination = ANY($1::text[]) ORDER BY destination FOR UPDATE";
/// A statement behind the lock, so that it sees what others have taken.
const TAKE: &str = "
    UPDATE countersign.share s SET places = s.places + least(w.places - s.places, w.most - t.taken)
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) w(destination, places, most)
    CROSS JOIN LATERAL (
        SELECT sum(o.places) AS taken FROM countersign.share o WHERE o.destination = w.destination) t
    WHERE s.destination = w.destination AND s.gateway = $4 AND s.places < w.places AND t.taken < w.most
    RETURNING s.destination, s.places";
/// Of gateways that are gone. One that lets itself be heard of at this moment waits until they have been removed, or keeps them.
pub(super) const TAKE_BACK: &str = "
    WITH gone AS MATERIALIZED (
        SELECT id FROM countersign.gateway WHERE expires_at <= clock_timestamp() FOR UPDATE SKIP LOCKED)
    DELETE FROM countersign.share s WHERE s.gateway IN (SELECT id FROM gone)
        OR NOT EXISTS (SELECT 1 FROM countersign.gateway g WHERE g.id = s.gateway)";
/// Only who has tried, or knows of an earlier time, may say that it is still open: what ends late does not prolong it.
const TELL: &str = "
    UPDATE countersign.lane SET broken_until = clock_timestamp() + $2::bigint * interval '1 ms', pause_ms = $3, prober = NULL
    WHERE destination = $1 AND ($2::bigint IS NULL OR broken_until IS NULL OR prober = $4
        OR broken_until > clock_timestamp() + $2::bigint * interval '1 ms')";
/// In the place of one that cannot make it any more, unless another has been quicker.
const PROBE: &str = "
    UPDATE countersign.lane SET prober = $2
    WHERE destination = $1 AND broken_until <= clock_timestamp() AND prober IS NOT DISTINCT FROM $3";
const PAUSE: &str = "
    INSERT INTO countersign.lane (destination, paused) VALUES ($1, $2)
    ON CONFLICT (destination) DO UPDATE SET paused = EXCLUDED.paused";

/// News of breakers that have not been written down yet.
pub(super) type News = BTreeMap<Arc<str>, Told>;

/// A lane, as this gateway and the database know it.
struct Lane {
    destination: Arc<str>,
    limit: i64,
    /// Places that are written down as this gateway's; `None` before it has joined.
    own: Option<i64>,
    /// How many it should have.
    target: i64,
    /// Whether there are some that nobody has.
    some_are_free: bool,
    breaker: Told,
    /// Whose the probe is.
    prober: Option<Uuid>,
    /// Whether that gateway can make it.
    is_probed: bool,
    is_paused: bool,
    is_due: bool,
}

impl Lane {
    fn new(standing: &Standing, row: &Row) -> Result<Self, Error> {
        let limit = i64::from(signed(standing.limit));
        let own: Option<i32> = row.try_get(0)?;
        let (taken, gateways, before): (i64, i64, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let gateways = gateways.max(1);
        let (wait, pause): (Option<i64>, Option<i64>) = (row.try_get(4)?, row.try_get(5)?);
        let milliseconds = |count: i64| Duration::from_millis(count.max(0).unsigned_abs());
        let breaker = wait.map_or(Told::Closed, |wait| Told::Broken {
            wait: milliseconds(wait),
            pause: milliseconds(pause.unwrap_or(0)),
        });
        Ok(Self {
            destination: Arc::clone(&standing.destination),
            limit,
            own: own.map(i64::from),
            target: limit / gateways + i64::from(before < limit % gateways),
            some_are_free: taken < limit,
            breaker,
            prober: row.try_get(6)?,
            is_probed: row.try_get(7)?,
            is_paused: row.try_get(8)?,
            is_due: row.try_get(9)?,
        })
    }

    /// Whether this gateway could make the probe that nobody makes.
    fn awaits_probe(&self) -> bool {
        let is_over = matches!(self.breaker, Told::Broken { wait, .. } if wait.is_zero());
        is_over && self.is_due && !self.is_probed && self.own.is_some_and(|own| own > 0)
    }

    fn share(&self, places: i64, until: Instant, gateway: Uuid) -> Share {
        let places = usize::try_from(places).unwrap_or(0);
        Share { places, until, breaker: self.breaker, probes: self.prober == Some(gateway) }
    }
}

impl Inner {
    /// Tells the others, and gives each lane its share, to begin attempts with before `until`. Those for which something is
    /// due are woken: another gateway may have put it there.
    pub(super) async fn share(
        &self,
        client: &Object,
        until: Instant,
        news: &mut News,
    ) -> Result<(), Trouble> {
        let standings = self.outlet.standings();
        news.extend(standings.iter().filter_map(|lane| Some((Arc::clone(&lane.destination), lane.news?))));
        self.tell(client, news).await?;
        // Being changed at this moment, whoever does it has the last word.
        let unchanging = self.pausing.try_lock();
        let mut lanes = self.read(client, &standings).await?;
        let strange = lanes.iter().filter(|lane| lane.own.is_none()).map(|lane| &*lane.destination);
        let strange: Vec<&str> = strange.collect();
        if !strange.is_empty() {
            let join = client.prepare_cached(JOIN).await?;
            client.execute(&join, &[&strange, &self.id]).await?;
            lanes = self.read(client, &standings).await?;
        }
        let (mut surplus, mut wanting) = (Vec::new(), BTreeMap::new());
        for mut lane in lanes {
            if lane.awaits_probe() {
                let probe = client.prepare_cached(PROBE).await?;
                let claim: [&(dyn ToSql + Sync); 3] = [&&*lane.destination, &self.id, &lane.prober];
                if client.execute(&probe, &claim).await? > 0 {
                    lane.prober = Some(self.id);
                }
            }
            if unchanging.is_ok() {
                self.outlet.set_paused(&lane.destination, lane.is_paused);
            }
            let own = lane.own.unwrap_or(0);
            let held = self.outlet.share(&lane.destination, lane.share(own.min(lane.target), until, self.id));
            let held = i64::from(signed(held));
            if lane.is_due {
                self.outlet.wake(&lane.destination);
            }
            if held < own {
                surplus.push((lane.destination, held));
            } else if own < lane.target && lane.some_are_free {
                wanting.insert(Arc::clone(&lane.destination), lane);
            }
        }
        self.give(client, &surplus).await?;
        for (destination, places) in self.take(client, &wanting).await? {
            if let Some(lane) = wanting.get(&*destination) {
                self.outlet.share(&destination, lane.share(places, until, self.id));
            }
        }
        Ok(())
    }

    pub(super) async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), Trouble> {
        let _changing = self.pausing.lock().await;
        self.query(PAUSE, &[&destination, &paused]).await?;
        self.outlet.set_paused(destination, paused);
        Ok(())
    }

    async fn tell(&self, client: &Object, news: &mut News) -> Result<(), Trouble> {
        let milliseconds = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        while let Some((destination, told)) = news.first_key_value() {
            let (wait, pause) = match *told {
                Told::Closed => (None, None),
                Told::Broken { wait, pause } => (Some(milliseconds(wait)), Some(milliseconds(pause))),
            };
            let tell = client.prepare_cached(TELL).await?;
            client.execute(&tell, &[&&**destination, &wait, &pause, &self.id]).await?;
            news.pop_first();
        }
        Ok(())
    }

    async fn read(&self, client: &Object, standings: &[Standing]) -> Result<Vec<Lane>, Trouble> {
        let destinations: Vec<&str> = standings.iter().map(|standing| &*standing.destination).collect();
        let leave = client.prepare_cached(LEAVE).await?;
        client.execute(&leave, &[&self.id, &destinations]).await?;
        let read = client.prepare_cached(READ).await?;
        let rows = client.query(&read, &[&destinations, &self.id]).await?;
        let lanes = standings.iter().zip(&rows).map(|(standing, row)| Lane::new(standing, row));
        Ok(lanes.collect::<Result<_, _>>()?)
    }

    async fn give(&self, client: &Object, surplus: &[(Arc<str>, i64)]) -> Result<(), Trouble> {
        if surplus.is_empty() {
            return Ok(());
        }
        let (destinations, places): (Vec<&str>, Vec<i64>) =
            surplus.iter().map(|(destination, held)| (&**destination, *held)).unzip();
        let give = client.prepare_cached(GIVE).await?;
        client.execute(&give, &[&destinations, &places, &self.id]).await?;
        Ok(())
    }

    /// As many as are written down as this gateway's now, of those lanes that have got some.
    async fn take(
        &self,
        client: &Object,
        wanting: &BTreeMap<Arc<str>, Lane>,
    ) -> Result<Vec<(String, i64)>, Trouble> {
        if wanting.is_empty() {
            return Ok(Vec::new());
        }
        let destinations: Vec<&str> = wanting.keys().map(|destination| &**destination).collect();
        let (targets, limits): (Vec<i64>, Vec<i64>) =
            wanting.values().map(|lane| (lane.target, lane.limit)).unzip();
        let (lock, take) = (client.prepare_cached(LOCK).await?, client.prepare_cached(TAKE).await?);
        let (locks, wanted): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 4]) =
            ([&destinations], [&destinations, &targets, &limits, &self.id]);
        // All of it leaves at once: a gateway that stands still in the middle must not keep the others from taking any.
        let (begun, locked, taken, committed) = tokio::join!(
            biased;
            client.batch_execute("BEGIN; SET LOCAL lock_timeout = '1s'"),
            client.query(&lock, &locks),
            client.query(&take, &wanted),
            client.batch_execute("COMMIT"),
        );
        begun?;
        locked?;
        let taken = taken?;
        committed?;
        let place = |row: &Row| Ok((row.try_get(0)?, i64::from(row.try_get::<_, i32>(1)?)));
        Ok(taken.iter().map(place).collect::<Result<_, Error>>()?)
    }
}

fn signed(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
