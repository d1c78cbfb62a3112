//! What can become of one attempt, and whose fault it is. Closed, because it is a label of metrics.

use super::RetryPolicy;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A complete answer with a 2xx status.
    Delivered,
    /// A status that is neither 2xx or 3xx nor among those that are worth another attempt.
    Rejected,
    /// A 3xx. Never followed: a redirect could send a verified delivery, and our signature, anywhere.
    Redirected,
    /// A status that the policy retries.
    RetryableStatus,
    /// The destination's host name did not resolve.
    DnsFailed,
    /// The destination's host name leads only to addresses that `allow_private` excludes. Its name servers may be mended,
    /// or a rebinding may be over, by the next attempt.
    AddressRefused,
    /// No address of the destination took the connection.
    ConnectFailed,
    /// Resolving, connecting and the TLS handshake together took longer than `connect_timeout`.
    ConnectTimeout,
    /// The TLS handshake failed, or no certificate authorities are installed to check it with.
    TlsFailed,
    /// The whole attempt took longer than `timeout`.
    Timeout,
    /// The connection ended before the answer did, or before the whole request had left.
    ConnectionLost,
    /// What came back was not HTTP/1.
    InvalidResponse,
    /// We stopped in the middle: shutdown, crash or a bug. The backend may or may not have got it.
    Interrupted,
    /// We lacked what an attempt at any backend needs: files, memory, local ports. Nothing was sent, so it does not
    /// count as an attempt.
    GatewayResources,
    /// No request can be made of it, for instance because the URL becomes too long.
    Unsendable,
    /// The destination's template, or the placeholders of its URL, cannot be filled from this delivery.
    TemplateFailed,
}

/// Whose fault an [`Outcome`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is none.
    Nobody,
    /// The backend works and refuses this delivery: another attempt will not help.
    Delivery,
    /// The backend, or the way to it, is out of order: another attempt may help.
    Backend,
    /// Ours; says nothing about the backend.
    Gateway,
}

impl Outcome {
    /// All outcomes, for series that exist at 0 from the start.
    pub const ALL: [Self; 16] = [
        Self::Delivered,
        Self::Rejected,
        Self::Redirected,
        Self::RetryableStatus,
        Self::DnsFailed,
        Self::AddressRefused,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::TlsFailed,
        Self::Timeout,
        Self::ConnectionLost,
        Self::InvalidResponse,
        Self::Interrupted,
        Self::GatewayResources,
        Self::Unsendable,
        Self::TemplateFailed,
    ];

    /// What an answer with this status means under `policy`.
    pub fn of_status(status: u16, policy: &RetryPolicy) -> Self {
        // RFC 9110 §15: what is no status of any class is treated as a failure of the server.
        let status = if (100..600).contains(&status) { status } else { 500 };
        if (200..300).contains(&status) {
            Self::Delivered
        } else if policy.statuses.iter().any(|pattern| pattern.matches(status)) {
            Self::RetryableStatus
        } else if (300..400).contains(&status) {
            Self::Redirected
        } else {
            Self::Rejected
        }
    }

    /// The metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Redirected => "redirected",
            Self::RetryableStatus => "retryable_status",
            Self::DnsFailed => "dns_failed",
            Self::AddressRefused => "address_refused",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsFailed => "tls_failed",
            Self::Timeout => "timeout",
            Self::ConnectionLost => "connection_lost",
            Self::InvalidResponse => "invalid_response",
            Self::Interrupted => "interrupted",
            Self::GatewayResources => "gateway_resources",
            Self::Unsendable => "unsendable",
            Self::TemplateFailed => "template_failed",
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::Delivered => Fault::Nobody,
            Self::Rejected | Self::Redirected => Fault::Delivery,
            Self::RetryableStatus
            | Self::DnsFailed
            | Self::AddressRefused
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsFailed
            | Self::Timeout
            | Self::ConnectionLost
            | Self::InvalidResponse => Fault::Backend,
            Self::Interrupted | Self::GatewayResources | Self::Unsendable | Self::TemplateFailed => {
                Fault::Gateway
            }
        }
    }

    /// Whether another attempt may end better.
    pub fn is_retried(self) -> bool {
        match self {
            Self::Delivered | Self::Rejected | Self::Redirected | Self::Unsendable | Self::TemplateFailed => {
                false
            }
            Self::RetryableStatus
            | Self::DnsFailed
            | Self::AddressRefused
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsFailed
            | Self::Timeout
            | Self::ConnectionLost
            | Self::InvalidResponse
            | Self::Interrupted
            | Self::GatewayResources => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::forward::tests::policy;

    #[test]
    fn statuses_mean_what_the_policy_says() {
        let check =
            |status, expected| assert_eq!(Outcome::of_status(status, &policy()), expected, "{status}");
        for status in [200, 202, 204, 299] {
            check(status, Outcome::Delivered);
        }
        for status in [408, 425, 429, 500, 503, 599, 600, 999] {
            check(status, Outcome::RetryableStatus);
        }
        for status in [300, 301, 302, 304, 307, 308, 399] {
            check(status, Outcome::Redirected);
        }
        for status in [199, 400, 401, 404, 410, 422, 451, 499] {
            check(status, Outcome::Rejected);
        }
    }

    #[test]
    fn a_2xx_is_delivered_whatever_the_policy_says() {
        let policy = RetryPolicy { statuses: vec![crate::forward::StatusPattern::Class(2)], ..policy() };
        assert_eq!(Outcome::of_status(200, &policy), Outcome::Delivered);
    }

    #[test]
    fn labels_are_distinct() {
        let labels: HashSet<_> = Outcome::ALL.iter().map(|outcome| outcome.label()).collect();
        assert_eq!(labels.len(), Outcome::ALL.len());
    }
}
