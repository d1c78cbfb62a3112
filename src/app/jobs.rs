//! Changes to many forwards, in the background: counted first, then made in the order of arrival, as fast as was ordered.
//! A job lives in memory. What it has done is in the store; where it ended is in the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Parts;
use super::deliveries::only_dead;
use crate::admin::{DeliveryQuery, Job, JobKind, JobOrder, Refused};
use crate::clock::Timestamp;
use crate::forward::State;
use crate::id::Id;
use crate::store::StoreError;
use crate::store::operators::{Change, Filter, Target, Wanted};
use crate::units::{Rate, parse_rate};

/// Jobs at a time.
const RUNNING_MAX: usize = 4;
/// Jobs that are remembered.
const KEPT_MAX: usize = 100;
/// For how long whoever orders a job waits for its end.
const SOON: Duration = Duration::from_secs(2);
/// How finely a rate is kept: so often, a few at once.
const STEP: Duration = Duration::from_millis(100);
/// How often, and after what pause, what the store could not do is tried again.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

/// The jobs, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<VecDeque<Arc<Entry>>>);

#[derive(Debug)]
struct Entry {
    job: Mutex<Job>,
    /// Ends it where it is.
    cancel: CancellationToken,
    over: CancellationToken,
}

/// What a job does.
struct Plan {
    change: Change,
    filter: Filter,
    rate: Option<Rate>,
    dry_run: bool,
}

/// Why a job ended before its end.
enum Early {
    Cancelled,
    Failed(StoreError),
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    pub(super) async fn order_job(
        self: Arc<Self>,
        kind: JobKind,
        order: JobOrder,
        by: String,
    ) -> Result<Job, Refused> {
        let plan = self.plan(kind, &order)?;
        let now = self.clock.now();
        let job = Job {
            id: Id::new(now, std::array::from_fn(|_| fastrand::u8(..))).to_string(),
            kind: match kind {
                JobKind::Replay | JobKind::ReplayDead => "replay",
                JobKind::PurgeDead => "purge",
            }
            .to_owned(),
            order,
            by,
            state: "counting".to_owned(),
            matched: 0,
            done: 0,
            skipped: 0,
            failed: 0,
            started_at: now.to_string(),
            ended_at: None,
            reached: None,
            error: None,
        };
        let entry = Arc::new(Entry {
            job: Mutex::new(job),
            cancel: self.stages.stopping.child_token(),
            over: CancellationToken::new(),
        });
        self.remember(&entry)?;
        tokio::spawn(Arc::clone(&self).work_off(plan, Arc::clone(&entry)));
        // Most are over before anybody could ask how far they are.
        let _ = timeout(SOON, entry.over.cancelled()).await;
        let job = entry.lock().clone();
        Ok(job)
    }

    pub(super) fn list_jobs(&self) -> Vec<Job> {
        self.jobs.lock().iter().rev().map(|entry| entry.lock().clone()).collect()
    }

    pub(super) fn show_job(&self, id: &str) -> Result<Job, Refused> {
        self.find_job(id).map(|entry| entry.lock().clone())
    }

    pub(super) fn end_job(&self, id: &str) -> Result<Job, Refused> {
        let entry = self.find_job(id)?;
        let job = entry.lock();
        if job.is_over() {
            return Err(Refused::Conflict(format!("this job is over: {}", job.state)));
        }
        entry.cancel.cancel();
        Ok(job.clone())
    }

    fn find_job(&self, id: &str) -> Result<Arc<Entry>, Refused> {
        let found = self.jobs.lock().iter().find(|entry| entry.lock().id == id).cloned();
        let gone = || {
            let why =
                "there is no such job: they are forgotten when the gateway ends, and when there are many";
            Refused::NotFound(why.to_owned())
        };
        found.ok_or_else(gone)
    }

    fn remember(&self, entry: &Arc<Entry>) -> Result<(), Refused> {
        let mut jobs = self.jobs.lock();
        if jobs.iter().filter(|entry| !entry.lock().is_over()).count() >= RUNNING_MAX {
            return Err(Refused::TooMany(format!(
                "{RUNNING_MAX} jobs are running; wait for one, or cancel one"
            )));
        }
        if jobs.len() >= KEPT_MAX
            && let Some(oldest) = jobs.iter().position(|entry| entry.lock().is_over())
        {
            jobs.remove(oldest);
        }
        jobs.push_back(Arc::clone(entry));
        Ok(())
    }

    fn plan(&self, kind: JobKind, order: &JobOrder) -> Result<Plan, Refused> {
        let JobOrder {
            source,
            event,
            delivery_id,
            since,
            until,
            q,
            destination,
            state,
            outcome,
            rate,
            dry_run,
        } = order.clone();
        let conditions = [&source, &event, &delivery_id, &since, &until, &q, &destination, &state, &outcome];
        if kind == JobKind::Replay && conditions.iter().all(|condition| condition.is_none()) {
            let which = "say which: at least one of source, event, delivery_id, since, until, q, destination, \
                         state and outcome";
            return Err(Refused::BadRequest(which.to_owned()));
        }
        let wrong_rate = |error| Refused::BadRequest(format!("`rate` must be as 50/s: {error}"));
        let rate = rate.as_deref().map(parse_rate).transpose().map_err(wrong_rate)?.flatten();
        let query = DeliveryQuery {
            source,
            event,
            state,
            delivery_id,
            since,
            until,
            q,
            destination,
            outcome,
            limit: None,
            cursor: None,
        };
        let mut filter = self.filter(&query)?;
        let change = match kind {
            JobKind::Replay => Change::Requeue,
            JobKind::ReplayDead | JobKind::PurgeDead => {
                only_dead(query.state.as_deref())?;
                filter.state = Some(Wanted::Forward(State::Dead));
                if kind == JobKind::PurgeDead { Change::Purge } else { Change::Requeue }
            }
        };
        match filter.state {
            Some(Wanted::Forward(state)) if change.fits(state) => {}
            None => {}
            Some(_) => {
                let wrong = "`state` must be one of delivered, dead and cancelled: others are not replayed";
                return Err(Refused::BadRequest(wrong.to_owned()));
            }
        }
        // What arrives while it runs is not meant.
        filter.until.get_or_insert(self.clock.now());
        Ok(Plan { change, filter, rate, dry_run })
    }

    async fn work_off(self: Arc<Self>, plan: Plan, entry: Arc<Entry>) {
        let ended = match self.count(&plan, &entry).await {
            Ok(()) if plan.dry_run => Ok(()),
            Ok(()) => self.make_changes(&plan, &entry).await,
            Err(early) => Err(early),
        };
        let job = {
            let mut job = entry.lock();
            job.ended_at = Some(self.clock.now().to_string());
            job.state = match &ended {
                Ok(()) => "done",
                Err(Early::Cancelled) => "cancelled",
                Err(Early::Failed(_)) => "failed",
            }
            .to_owned();
            job.error = match ended {
                Ok(()) => None,
                Err(Early::Cancelled) if self.stages.stopping.is_cancelled() => {
                    Some("the gateway was stopped".to_owned())
                }
                Err(Early::Cancelled) => None,
                Err(Early::Failed(error)) => Some(error.to_string()),
            };
            job.clone()
        };
        let Job { id, kind, state, matched, done, skipped, failed, reached, error, .. } = job;
        tracing::info!(
            target: "audit", id, kind, state, matched, done, skipped, failed, reached, error, "job ended"
        );
        entry.over.cancel();
    }

    async fn count(&self, plan: &Plan, entry: &Entry) -> Result<(), Early> {
        let mut from = None;
        loop {
            let (found, next) = self.next_targets(plan, entry, from).await?;
            entry.lock().matched += found.len() as u64;
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    async fn make_changes(&self, plan: &Plan, entry: &Entry) -> Result<(), Early> {
        entry.lock().state = "running".to_owned();
        let mut from = None;
        let mut due = Instant::now();
        loop {
            let (found, next) = self.next_targets(plan, entry, from).await?;
            let at_once = plan.rate.map_or(found.len(), per_step).max(1);
            for batch in found.chunks(at_once) {
                if let Some(rate) = plan.rate {
                    tokio::select! {
                        () = entry.cancel.cancelled() => return Err(Early::Cancelled),
                        () = sleep_until(due) => {}
                    }
                    let used = rate.per / rate.events * u32::try_from(batch.len()).unwrap_or(u32::MAX);
                    due = due.max(Instant::now()) + used;
                }
                self.change_batch(plan, entry, batch).await?;
            }
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    async fn change_batch(&self, plan: &Plan, entry: &Entry, batch: &[Target]) -> Result<(), Early> {
        let changed = self
            .persist(entry, || self.operators.change(plan.change, batch.to_vec(), self.clock.moment()))
            .await;
        let mut job = entry.lock();
        if let Err(Early::Failed(_)) = &changed {
            job.failed = batch.len() as u64;
        }
        let changed = changed?;
        job.done += changed.len() as u64;
        job.skipped += (batch.len() - changed.len()) as u64;
        job.matched = job.matched.max(job.done + job.skipped);
        job.reached = batch.last().map(|(id, _)| Timestamp::to_string(&id.time()));
        Ok(())
    }

    async fn next_targets(
        &self,
        plan: &Plan,
        entry: &Entry,
        from: Option<Id>,
    ) -> Result<(Vec<Target>, Option<Id>), Early> {
        let page =
            self.persist(entry, || self.operators.targets(plan.filter.clone(), plan.change, from)).await?;
        Ok((page.found, page.next))
    }

    /// Does it, again where the store's fault may pass, until the job is cancelled.
    async fn persist<T, F>(&self, entry: &Entry, act: impl Fn() -> F) -> Result<T, Early>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut tries = 0;
        loop {
            if entry.cancel.is_cancelled() {
                return Err(Early::Cancelled);
            }
            match act().await {
                Ok(done) => return Ok(done),
                Err(error) if error.passes() && tries < TRIES => tries += 1,
                Err(error) => return Err(Early::Failed(error)),
            }
            tokio::select! {
                () = entry.cancel.cancelled() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many are changed at once, so that they are not changed more often than need be.
fn per_step(rate: Rate) -> usize {
    let steps = rate.per.as_millis() / STEP.as_millis();
    usize::try_from(u128::from(rate.events) / steps.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_in_steps() {
        let check =
            |text, expected| assert_eq!(per_step(parse_rate(text).unwrap().unwrap()), expected, "{text}");
        check("50/s", 5);
        check("5/s", 0);
        check("1000/s", 100);
        check("60000/m", 100);
    }
}
