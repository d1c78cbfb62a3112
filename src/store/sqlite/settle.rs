//! Writing the end of an attempt.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction, params};

use super::claims::Claims;
use super::order;
use super::work::{Effects, Work};
use crate::clock::{Timestamp, later};
use crate::forward::Progress;
use crate::store::{AttemptRecord, Settlement};

impl Work for Settlement {
    type Output = ();

    fn apply(
        &self,
        transaction: &Transaction<'_>,
        _: &mut Claims,
        effects: &mut Effects<'_>,
    ) -> rusqlite::Result<()> {
        let (state, due_at, attempts) = match self.next {
            Progress::Waiting { due_at, attempts } => ("waiting", Some(due_at), attempts),
            Progress::Delivered => ("delivered", None, self.attempt),
            Progress::Dead => ("dead", None, self.attempt),
            Progress::Cancelled => ("cancelled", None, self.attempt),
            Progress::InFlight { .. } => {
                debug_assert!(false, "an attempt does not end in flight");
                return Ok(());
            }
        };
        let outcome = self.record.as_ref().map(|record| record.outcome);
        let ended_at = self.record.as_ref().map(|record| later(record.started_at, record.duration));
        // Without a record the time of the decision is not known; it was not before the forward fell due.
        let mut update = transaction.prepare_cached(
            "UPDATE forward
             SET state = ?4, due_at = coalesce(?5, due_at), attempts = ?6,
                 settled_at = CASE ?4 WHEN 'waiting' THEN NULL ELSE coalesce(?7, due_at) END,
                 last_outcome = coalesce(?8, last_outcome)
             WHERE delivery = ?1 AND destination = ?2 AND state = 'in_flight' AND attempts = ?3
                 AND pending_since = ?9
             RETURNING replay",
        )?;
        let settled = update
            .query_row(
                params![
                    self.id.as_bytes(),
                    &*self.destination,
                    self.attempt,
                    state,
                    due_at.map(Timestamp::as_millisecond),
                    attempts,
                    ended_at.map(Timestamp::as_millisecond),
                    outcome,
                    self.pending_since.as_millisecond(),
                ],
                |row| row.get::<_, bool>(0),
            )
            .optional()?;
        let Some(replay) = settled else { return Ok(()) };

        let since = self.pending_since;
        match self.next {
            Progress::Waiting { .. } => {
                effects.wakes.insert(Arc::clone(&self.destination));
            }
            Progress::Delivered => {
                effects.delivered(&self.destination, since);
                order::ended(transaction, effects, &self.destination, self.id, false)?;
            }
            Progress::Cancelled => {
                effects.cancelled(&self.destination, since);
                order::ended(transaction, effects, &self.destination, self.id, false)?;
            }
            Progress::Dead => {
                effects.died(&self.destination, since);
                order::ended(transaction, effects, &self.destination, self.id, true)?;
            }
            Progress::InFlight { .. } => {}
        }
        let succeeded_at_once = self.next == Progress::Delivered && self.attempt == 1 && !replay;
        match &self.record {
            Some(record) if !succeeded_at_once => self.remember(transaction, record),
            _ => Ok(()),
        }
    }
}

impl Settlement {
    fn remember(&self, transaction: &Transaction<'_>, record: &AttemptRecord) -> rusqlite::Result<()> {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO attempt (delivery, destination, attempt, started_at, duration_ms, outcome, status, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        insert.execute(params![
            self.id.as_bytes(),
            &*self.destination,
            self.attempt,
            record.started_at.as_millisecond(),
            i64::try_from(record.duration.as_millis()).unwrap_or(i64::MAX),
            record.outcome,
            record.status,
            record.detail,
        ])?;
        Ok(())
    }
}
