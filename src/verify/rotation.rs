//! What an operator should know of a source's secrets while they are being rotated: which one can go, and which one the
//! provider still uses although it is about to end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Timestamp, elapsed, later};

const DAY: Duration = Duration::from_hours(24);
/// Longer than most providers retry, with the secret that they had at first.
const UNUSED_FOR: Duration = Duration::from_hours(7 * 24);
/// Time to go to the provider with a new one.
const ENDS_WITHIN: Duration = Duration::from_hours(7 * 24);

/// A secret and how it has been used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUse {
    /// Its name.
    pub name: Arc<str>,
    /// The first moment at which it is valid; always, when absent.
    pub not_before: Option<Timestamp>,
    /// The last moment at which it is valid; for ever, when absent.
    pub not_after: Option<Timestamp>,
    /// When the count began, where that is known.
    pub since: Option<Timestamp>,
    /// When it last verified a request; `None` when it has not since the count began.
    pub last_used: Option<Timestamp>,
    /// How many requests it has verified.
    pub uses: u64,
}

/// What to do about a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// It verifies nothing any more.
    Expired,
    /// Another one has been in use for as long as this has not: for so many days.
    Retire {
        /// Whole days.
        unused_days: u64,
    },
    /// The provider does not use it yet, but an older one, by this name.
    OnlyOldMatches(Arc<str>),
    /// It ends soon, and is in use, or the last one.
    Expires {
        /// When.
        at: Timestamp,
        /// Whether no other secret is valid then.
        last: bool,
    },
}

impl Advice {
    /// The labels of all kinds, for series that exist from the start.
    pub const LABELS: [&str; 4] = ["expired", "retire", "only_old_matches", "expires"];

    /// The metrics' label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Retire { .. } => "retire",
            Self::OnlyOldMatches(_) => "only_old_matches",
            Self::Expires { .. } => "expires",
        }
    }

    /// Whether requests will be refused unless somebody acts.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::Expired | Self::Retire { .. } => false,
            Self::OnlyOldMatches(_) | Self::Expires { .. } => true,
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("expired, safe to retire"),
            Self::Retire { unused_days } => write!(f, "unused for {unused_days} days, safe to retire"),
            Self::OnlyOldMatches(old) => write!(f, "not used yet, only {old} matches"),
            Self::Expires { at, last: false } => write!(f, "expires at {at} and is still used"),
            Self::Expires { at, last: true } => {
                write!(f, "expires at {at}, and no other secret is valid then")
            }
        }
    }
}

/// What to do about each of the secrets of a source, in their order, when their use has been counted from `since` on where
/// they do not know it better.
pub fn advise(secrets: &[SecretUse], since: Timestamp, now: Timestamp) -> Vec<Option<Advice>> {
    (0..secrets.len()).map(|index| advise_one(secrets, index, since, now)).collect()
}

fn advise_one(secrets: &[SecretUse], index: usize, since: Timestamp, now: Timestamp) -> Option<Advice> {
    let secret = secrets.get(index)?;
    let is_valid = |secret: &SecretUse, at: Timestamp| {
        secret.not_before.is_none_or(|from| from <= at) && secret.not_after.is_none_or(|to| at <= to)
    };
    if secret.not_after.is_some_and(|to| to < now) {
        return Some(Advice::Expired);
    }
    let others = || secrets.iter().enumerate().filter(|(other, _)| *other != index);
    if let Some(at) = secret.not_after.filter(|to| *to <= later(now, ENDS_WITHIN)) {
        let last = !others().any(|(_, other)| is_valid(other, later(at, Duration::from_millis(1))));
        let in_use = secret.last_used.is_some_and(|used| elapsed(used, now) < DAY);
        if last || in_use {
            return Some(Advice::Expires { at, last });
        }
    }
    if !is_valid(secret, now) {
        return None;
    }
    let unused = elapsed(secret.last_used.or(secret.since).unwrap_or(since), now);
    // Where nothing is sent at all, nothing follows from a secret not being used.
    let used = others().filter(|(_, other)| other.last_used.is_some_and(|at| elapsed(at, now) < UNUSED_FOR));
    let (older, newer): (Vec<_>, Vec<_>) = used.partition(|(other, _)| is_older(secrets, *other, index));
    match (older.first(), newer.is_empty()) {
        (Some((_, old)), true) if secret.last_used.is_none() => {
            Some(Advice::OnlyOldMatches(Arc::clone(&old.name)))
        }
        (_, false) if unused >= UNUSED_FOR => {
            Some(Advice::Retire { unused_days: unused.as_secs() / DAY.as_secs() })
        }
        _ => None,
    }
}

/// Whether the secret at `one` has been there for longer than that at `other`: it ends earlier, or stands behind it, as
/// new ones are put first.
fn is_older(secrets: &[SecretUse], one: usize, other: usize) -> bool {
    let end = |index: usize| secrets.get(index).and_then(|secret| secret.not_after).unwrap_or(Timestamp::MAX);
    (end(one), other) < (end(other), one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const NOW: i64 = 1_800_000_000;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(NOW + hours * HOUR).unwrap()
    }

    /// A secret that was last used, and ends, so many hours from now.
    fn secret(name: &str, last_used: Option<i64>, not_after: Option<i64>) -> SecretUse {
        SecretUse {
            name: name.into(),
            not_before: None,
            not_after: not_after.map(at),
            since: None,
            last_used: last_used.map(at),
            uses: u64::from(last_used.is_some()),
        }
    }

    #[track_caller]
    fn check(secrets: &[SecretUse], since: i64, expected: &[&str]) {
        let told: Vec<_> = advise(secrets, at(since), at(0))
            .into_iter()
            .map(|advice| advice.map_or("-".to_owned(), |advice| advice.to_string()))
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn an_old_secret_can_go_when_a_newer_one_has_been_used_in_its_place() {
        let (new, old) = (secret("new", Some(-1), None), secret("old", Some(-168), None));
        check(&[new.clone(), old.clone()], -1000, &["-", "unused for 7 days, safe to retire"]);
        check(&[new.clone(), secret("old", Some(-167), None)], -1000, &["-", "-"]);
        check(&[new.clone(), secret("old", None, None)], -240, &["-", "unused for 10 days, safe to retire"]);
        check(&[new.clone(), secret("old", None, None)], -160, &["-", "-"]);
        // It has been counted for longer than this gateway runs.
        let counted = SecretUse { since: Some(at(-200)), ..secret("old", None, None) };
        check(&[new, counted], -1, &["-", "unused for 8 days, safe to retire"]);
        check(&[secret("new", Some(-200), None), old.clone()], -1000, &["-", "-"]);
        check(&[old], -1000, &["-"]);
        // The end tells more than the order.
        let ends = secret("old", Some(-200), Some(900));
        check(&[ends, secret("new", Some(-1), None)], -1000, &["unused for 8 days, safe to retire", "-"]);
    }

    #[test]
    fn a_provider_that_has_not_been_told_the_new_secret_is_noticed() {
        let old = secret("old", Some(-1), None);
        check(&[secret("new", None, None), old.clone()], -1, &["not used yet, only old matches", "-"]);
        check(&[secret("new", Some(-30), None), old.clone()], -1000, &["-", "-"]);
        let early = SecretUse { not_before: Some(at(1)), ..secret("new", None, None) };
        check(&[early, old], -1000, &["-", "-"]);
    }

    #[test]
    fn a_secret_that_ends_while_it_is_used_is_noticed() {
        let soon = format!("expires at {} and is still used", at(168));
        let (used, new) = (secret("old", Some(-1), Some(168)), secret("new", Some(-1), None));
        check(&[new.clone(), used], -1000, &["-", &soon]);
        check(&[new.clone(), secret("old", Some(-1), Some(169))], -1000, &["-", "-"]);
        check(&[new.clone(), secret("old", Some(-30), Some(168))], -1000, &["-", "-"]);
        let last = format!("expires at {}, and no other secret is valid then", at(24));
        check(&[secret("only", None, Some(24))], -1, &[&last]);
        let gone = secret("gone", Some(-9), Some(-1));
        check(&[new, gone], -1000, &["-", "expired, safe to retire"]);
        assert!(Advice::Expires { at: at(1), last: true }.is_warning() && !Advice::Expired.is_warning());
    }
}
