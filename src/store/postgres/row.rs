//! A delivery as a row: columns of many at once on the way in, one at a time on the way out. The checksum is the embedded
//! store's, so that a row can be taken from one engine to the other.

use std::borrow::Cow;

use bytes::Bytes;
use http::Method;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::clock::from_milliseconds;
use crate::delivery::{Delivery, Verification};
use crate::id::Id;
use crate::store::sqlite::{Checksum, checksum, decode_headers, encode_headers};
use crate::verify::Verified;

/// What a delivery is read from, behind whatever a statement returns besides.
pub(super) const COLUMNS: &str = "d.id, d.source, d.delivery_id, d.event, d.received_at, d.sender, d.method, d.target, \
    d.verified, d.scheme, d.secret, d.skew, d.checksum, d.headers, d.body";

pub(super) fn uuid(id: Id) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

pub(super) fn id(uuid: Uuid) -> Id {
    Id::from_bytes(*uuid.as_bytes())
}

/// A text from outside as PostgreSQL takes it: without NUL, whose picture stands in. Ids and event types have none.
pub(in crate::store) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{2400}")) } else { Cow::Borrowed(text) }
}

/// What is computed of a delivery before its batch is sent.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) sender: String,
    pub(super) headers: Vec<u8>,
    pub(super) checksum: Checksum,
}

impl Prepared {
    pub(super) fn new(verified: &Verified) -> Self {
        let delivery = verified.delivery();
        let headers = encode_headers(&delivery.headers);
        let checksum = checksum(delivery, &headers, verified.body_digest());
        Self { sender: delivery.sender.to_string(), headers, checksum }
    }
}

/// Reads a delivery whose columns begin at `first`, and verifies its checksum.
///
/// # Errors
/// With what is wrong with the row.
pub(super) fn decode(row: &Row, first: usize) -> Result<Delivery, String> {
    let wrong = |error: tokio_postgres::Error| error.to_string();
    let text = |column: usize| row.try_get::<_, String>(first + column).map_err(wrong);
    let optional = |column: usize| row.try_get::<_, Option<String>>(first + column).map_err(wrong);
    let bytes = |column: usize| row.try_get::<_, &[u8]>(first + column).map_err(wrong);
    let headers = bytes(13)?;
    let unreadable = |what: &str| format!("{what} is not readable");
    let delivery = Delivery {
        id: id(row.try_get(first).map_err(wrong)?),
        source: text(1)?.into(),
        delivery_id: optional(2)?,
        event: optional(3)?,
        received_at: from_milliseconds(row.try_get(first + 4).map_err(wrong)?),
        sender: text(5)?.parse().map_err(|_| unreadable("the sender's address"))?,
        method: Method::from_bytes(text(6)?.as_bytes()).map_err(|_| unreadable("the method"))?,
        target: text(7)?,
        headers: decode_headers(headers).ok_or_else(|| unreadable("a header"))?,
        body: Bytes::copy_from_slice(bytes(14)?),
        verification: Verification {
            verified: row.try_get(first + 8).map_err(wrong)?,
            scheme: text(9)?.into(),
            secret: optional(10)?.map(Into::into),
            skew_seconds: row.try_get(first + 11).map_err(wrong)?,
        },
    };
    let body_digest: [u8; 32] = Sha256::digest(&delivery.body).into();
    if bytes(12)? == checksum(&delivery, headers, &body_digest) {
        Ok(delivery)
    } else {
        Err("the row does not match its checksum".to_owned())
    }
}
