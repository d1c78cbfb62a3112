//! Who has changed what, and when. The log has all of it, under a target of its own; the latest are kept to be read.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::Parts;
use crate::admin::{Audit, AuditEntry};

const KEPT_MAX: usize = 1_000;

/// The latest changes, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<VecDeque<AuditEntry>>);

impl Parts {
    pub(super) fn note_change(&self, entry: AuditEntry) {
        let AuditEntry { by, peer, action, detail, status, .. } = &entry;
        tracing::info!(target: "audit", by, peer, action, detail, status, "operator");
        let mut changes = self.changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() == KEPT_MAX {
            changes.pop_front();
        }
        changes.push_back(AuditEntry { at: self.clock.now().to_string(), ..entry });
    }

    pub(super) fn show_changes(&self) -> Audit {
        let changes = self.changes.0.lock().unwrap_or_else(PoisonError::into_inner);
        Audit { changes: changes.iter().rev().cloned().collect() }
    }
}
