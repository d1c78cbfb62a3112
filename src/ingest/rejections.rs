//! Decides which rejections are logged: one a second of each source and reason, so that operators read why requests are
//! refused, and a flood costs the log nothing. Both are closed sets, so memory is bounded. What is not logged is told by
//! the next line of its kind, and is counted anyway.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::rate::Sampler;

/// By source, then by reason.
#[derive(Debug, Default)]
pub(super) struct Rejections(Mutex<HashMap<String, HashMap<&'static str, Sampler>>>);

impl Rejections {
    /// Counts a rejection at `now`, the span since any origin. When it is to be logged: how many of its kind were not
    /// since the last that was.
    pub(super) fn note(&self, source: &str, reason: &'static str, now: Duration) -> Option<u64> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !sources.contains_key(source) {
            sources.insert(source.to_owned(), HashMap::new());
        }
        sources.get_mut(source)?.entry(reason).or_default().note(now)
    }

    /// Forgets sources that `keep` does not hold of; their names may never come again.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|source, _| keep(source));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_tells_of_those_before() {
        let rejections = Rejections::default();
        let note = |source, reason, ms| rejections.note(source, reason, Duration::from_millis(ms));
        assert_eq!(note("a", "x", 0), Some(0));
        assert_eq!(note("a", "x", 0), None);
        assert_eq!(note("a", "x", 999), None);
        assert_eq!(note("a", "y", 999), Some(0), "another reason");
        assert_eq!(note("b", "x", 999), Some(0), "another source");
        assert_eq!(note("a", "x", 1_000), Some(2));
        assert_eq!(note("a", "x", 1_001), None);
        assert_eq!(note("a", "x", 9_000), Some(1));
        rejections.retain(|source| source == "b");
        assert_eq!(note("a", "x", 9_000), Some(0), "forgotten");
        assert_eq!(note("b", "x", 1_998), None, "kept");
    }
}
