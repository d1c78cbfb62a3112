//! What a webhook is before and after it has been accepted: plain data, used by every layer.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::clock::Timestamp;
use crate::id::Id;

/// A request as it was read from the wire, before anything about it has been verified.
#[derive(Debug, Clone)]
pub struct Received {
    /// The id that the delivery will have if it is accepted.
    pub id: Id,
    /// The source whose path was asked for.
    pub source: Arc<str>,
    /// When the last byte had been read.
    pub received_at: Timestamp,
    /// The sender's address: the peer's, or what a trusted proxy reported.
    pub sender: IpAddr,
    /// The method, as sent.
    pub method: Method,
    /// Path and query, as sent.
    pub target: String,
    /// The headers as sent, without hop-by-hop headers and without those that are reserved for the gateway.
    pub headers: HeaderMap,
    /// The exact bytes of the body.
    pub body: Bytes,
}

/// One accepted inbound webhook.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The gateway's own id.
    pub id: Id,
    /// The source that it came in by.
    pub source: Arc<str>,
    /// The provider's identifier that a retry repeats, when the request had one.
    pub delivery_id: Option<String>,
    /// The event type, when the request had one.
    pub event: Option<String>,
    /// When its last byte had been read.
    pub received_at: Timestamp,
    /// The sender's address.
    pub sender: IpAddr,
    /// The method, as sent.
    pub method: Method,
    /// Path and query, as sent.
    pub target: String,
    /// The headers, as sent, without hop-by-hop and reserved ones.
    pub headers: HeaderMap,
    /// The exact bytes of the body.
    pub body: Bytes,
    /// How it was verified.
    pub verification: Verification,
}

impl Delivery {
    /// The query as sent, without the question mark.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }
}

/// Whether these header names (in lower case) are one variable for a backend behind CGI, WSGI or FastCGI, where servers
/// write every character that is neither a letter nor a digit as `_`: there `webhook_id` passes for `webhook-id`.
pub fn is_same_to_cgi(a: &str, b: &str) -> bool {
    let is_other = |byte: u8| !byte.is_ascii_alphanumeric();
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| a == b || (is_other(a) && is_other(b)))
}

/// The same for names that begin so.
pub fn begins_to_cgi(name: &str, beginning: &str) -> bool {
    name.get(..beginning.len()).is_some_and(|start| is_same_to_cgi(start, beginning))
}

/// How a delivery was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// False for a source with `verify = "none"`, and for what `enforcement = "observe"` let through.
    pub verified: bool,
    /// The provider, `custom` for a source's own scheme, or `none`.
    pub scheme: Arc<str>,
    /// The name of the secret that matched.
    pub secret: Option<Arc<str>>,
    /// Seconds from the request's timestamp to our clock at receipt; negative when the sender's clock is ahead.
    pub skew_seconds: Option<i64>,
}
