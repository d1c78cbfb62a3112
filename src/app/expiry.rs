//! Tells the log of certificates that end soon, or have ended: each once a day.

use std::time::Duration;

use tokio::time::Instant;

use super::Parts;
use crate::ingest::Expiry;

const AGAIN: Duration = Duration::from_hours(24);

/// What has been told, and when.
#[derive(Default)]
pub(super) struct Told(Vec<(Expiry, Instant)>);

impl Told {
    /// Tells what is due.
    pub(super) fn tell(&mut self, parts: &Parts) {
        let (now, expiries) = (parts.clock.now(), parts.certificate.expiries());
        for expiry in self.due(expiries.into_iter().filter(|expiry| expiry.is_near(now)).collect()) {
            let (key, file, not_after) = (expiry.key(), expiry.path.display(), expiry.not_after);
            if !expiry.is_past(now) {
                tracing::warn!(key, %file, %not_after, "certificate expires soon");
            } else if expiry.file == Expiry::CERT {
                tracing::error!(key, %file, %not_after, "certificate has expired; senders refuse it");
            } else {
                // Authorities are believed for as long as they are configured.
                tracing::warn!(key, %file, %not_after, "an authority's certificate has expired");
            }
        }
    }

    /// Those of `near` that have not been told within the day. A new certificate is told anew, and one that has been
    /// replaced is forgotten.
    fn due(&mut self, near: Vec<Expiry>) -> Vec<Expiry> {
        let at = Instant::now();
        self.0.retain(|(told, when)| near.contains(told) && at.duration_since(*when) < AGAIN);
        let is_new = |expiry: &Expiry| !self.0.iter().any(|(told, _)| told == expiry);
        let due: Vec<Expiry> = near.into_iter().filter(is_new).collect();
        self.0.extend(due.iter().map(|expiry| (expiry.clone(), at)));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_milliseconds;

    #[tokio::test(start_paused = true)]
    async fn each_certificate_is_told_once_a_day() {
        let expiry = |not_after| Expiry {
            file: Expiry::CERT,
            path: "cert.pem".into(),
            not_after: from_milliseconds(not_after),
        };
        let mut told = Told::default();
        assert_eq!(told.due(vec![expiry(1)]), [expiry(1)]);
        tokio::time::advance(AGAIN - Duration::from_secs(1)).await;
        assert_eq!(told.due(vec![expiry(1)]), []);
        assert_eq!(told.due(vec![expiry(2)]), [expiry(2)], "another one");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(told.due(vec![expiry(2)]), []);
        assert_eq!(told.due(vec![]), []);
        assert_eq!(told.due(vec![expiry(2)]), [expiry(2)], "it had been replaced");
        tokio::time::advance(AGAIN).await;
        assert_eq!(told.due(vec![expiry(2)]), [expiry(2)]);
    }
}
