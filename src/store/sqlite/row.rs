//! A delivery as a row: what is written, and the checksum by which a damaged row is recognised before anything of it
//! is sent.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rusqlite::blob::{Blob, ZeroBlob};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OptionalExtension, Row, ToSql, Transaction, params};
use sha2::{Digest, Sha256};

use crate::clock::from_milliseconds;
use crate::delivery::{Delivery, Verification};
use crate::id::Id;
use crate::pages::{LARGE_BYTES, Pages};
use crate::verify::Verified;

/// What is computed of a delivery before it is queued, so that the writer does not have to.
#[derive(Debug)]
pub(super) struct Prepared {
    headers: Vec<u8>,
    checksum: Checksum,
}

/// The first half of a SHA-256: against accidents, not against forgers, who could write the checksum as well.
pub(in crate::store) type Checksum = [u8; 16];

/// Why there is no delivery to be had from a row.
#[derive(Debug)]
pub(super) enum LoadError {
    /// The row is damaged or gone: it must not be sent, and reading it again will not help.
    Damaged(String),
    /// The disk does not give the row away. Another time it may; it must not keep others waiting.
    Unreadable(String),
    /// The database could not be read.
    Sqlite(rusqlite::Error),
}

impl Prepared {
    pub(super) fn new(verified: &Verified) -> Self {
        let delivery = verified.delivery();
        let headers = encode_headers(&delivery.headers);
        let checksum = checksum(delivery, &headers, verified.body_digest());
        Self { headers, checksum }
    }

    /// Bytes that the row takes, roughly.
    pub(super) fn bytes(&self, delivery: &Delivery) -> usize {
        self.headers.len() + delivery.body.len()
    }

    pub(super) fn insert(
        &self,
        transaction: &Transaction<'_>,
        delivery: &Delivery,
        forwards: usize,
    ) -> rusqlite::Result<()> {
        let body: &[u8] = &delivery.body;
        // As a value of a statement SQLite would copy it twice. So a large one is written to its pages directly, and read
        // from them; for others that is more work than it saves.
        let room = (body.len() > LARGE_BYTES).then_some(ZeroBlob(body.len() as u64));
        let value: &dyn ToSql = match &room {
            Some(room) => room,
            None => &body,
        };
        let mut insert = transaction.prepare_cached(
            "INSERT INTO delivery (id, source, delivery_id, event, received_at, sender, method, target, verified,
                 scheme, secret, skew, forwards, checksum, headers, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?;
        // By their place: names would be looked up one by one.
        insert.execute(params![
            delivery.id.as_bytes(),
            &*delivery.source,
            delivery.delivery_id,
            delivery.event,
            delivery.received_at.as_millisecond(),
            delivery.sender.to_string(),
            delivery.method.as_str(),
            delivery.target,
            delivery.verification.verified,
            &*delivery.verification.scheme,
            delivery.verification.secret.as_deref(),
            delivery.verification.skew_seconds,
            i64::try_from(forwards).unwrap_or(i64::MAX),
            self.checksum,
            self.headers,
            value,
        ])?;
        if room.is_some() {
            body_at(transaction, transaction.last_insert_rowid(), false)?.write_all_at(body, 0)?;
        }
        Ok(())
    }
}

fn body_at(connection: &Connection, row: i64, read_only: bool) -> rusqlite::Result<Blob<'_>> {
    connection.blob_open(MAIN_DB, c"delivery", c"body", row, read_only)
}

/// Reads a delivery and verifies its checksum. A row that is not there is `Ok(None)`.
pub(super) fn load(connection: &Connection, id: Id) -> Result<Option<Delivery>, LoadError> {
    let mut select = connection
        .prepare_cached(
            "SELECT source, delivery_id, event, received_at, sender, method, target, verified, scheme, secret, skew,
                 checksum, headers, rowid, length(body), CASE WHEN length(body) <= ?2 THEN body END
             FROM delivery WHERE id = ?1",
        )
        .map_err(LoadError::Sqlite)?;
    let loaded = select
        .query_row(params![id.as_bytes(), LARGE_BYTES as i64], |row| Ok(decode(connection, id, row)))
        .optional();
    loaded.map_err(LoadError::from)?.transpose()
}

/// The row's statement is still under way, so that whatever else is read of the row is of the same moment.
fn decode(connection: &Connection, id: Id, row: &Row<'_>) -> Result<Delivery, LoadError> {
    let damaged = |what: &str| LoadError::Damaged(format!("{what} is not readable"));
    let text = |column: usize| row.get::<_, String>(column);
    let headers: Vec<u8> = row.get(12)?;
    let body = if row.get::<_, i64>(14)? > LARGE_BYTES as i64 {
        let blob = body_at(connection, row.get(13)?, true)?;
        let mut pages = Pages::new(blob.len()).map_err(|error| LoadError::Unreadable(error.to_string()))?;
        blob.read_at_exact(pages.bytes_mut(), 0)?;
        pages.freeze(blob.len())
    } else {
        Bytes::from(row.get::<_, Vec<u8>>(15)?)
    };
    let delivery = Delivery {
        id,
        source: row.get(0)?,
        delivery_id: row.get(1)?,
        event: row.get(2)?,
        received_at: from_milliseconds(row.get(3)?),
        sender: text(4)?.parse().map_err(|_| damaged("the sender's address"))?,
        method: Method::from_bytes(text(5)?.as_bytes()).map_err(|_| damaged("the method"))?,
        target: text(6)?,
        headers: decode_headers(&headers).ok_or_else(|| damaged("a header"))?,
        body,
        verification: Verification {
            verified: row.get(7)?,
            scheme: row.get(8)?,
            secret: row.get::<_, Option<Arc<str>>>(9)?,
            skew_seconds: row.get(10)?,
        },
    };
    let found: Checksum = row.get(11)?;
    let body_digest: [u8; 32] = Sha256::digest(&delivery.body).into();
    if found == checksum(&delivery, &headers, &body_digest) {
        Ok(delivery)
    } else {
        Err(LoadError::Damaged("the row does not match its checksum".to_owned()))
    }
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::SystemIoFailure) => Self::Unreadable(error.to_string()),
            // A value of another type than was written. A broken page is more than this row's damage.
            None => Self::Damaged(error.to_string()),
            Some(_) => Self::Sqlite(error),
        }
    }
}

/// Whether the table has a row of this id, whatever its index says. Reads the whole table.
pub(super) fn is_in_table(connection: &Connection, id: Id) -> rusqlite::Result<bool> {
    let mut select =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM delivery NOT INDEXED WHERE id = ?1)")?;
    select.query_row([id.as_bytes()], |row| row.get(0))
}

/// Over every column that a backend or an operator may get to see, each with its length.
pub(in crate::store) fn checksum(delivery: &Delivery, headers: &[u8], body_digest: &[u8; 32]) -> Checksum {
    let verification = &delivery.verification;
    let mut digest = Sha256::new();
    let mut add = |part: Option<&[u8]>| {
        // No length is `u64::MAX`, so that an absent part differs from an empty one.
        digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
        digest.update(part.unwrap_or_default());
    };
    add(Some(delivery.id.as_bytes()));
    add(Some(delivery.source.as_bytes()));
    add(delivery.delivery_id.as_deref().map(str::as_bytes));
    add(delivery.event.as_deref().map(str::as_bytes));
    add(Some(&delivery.received_at.as_millisecond().to_be_bytes()));
    add(Some(delivery.sender.to_string().as_bytes()));
    add(Some(delivery.method.as_str().as_bytes()));
    add(Some(delivery.target.as_bytes()));
    add(Some(&[u8::from(verification.verified)]));
    add(Some(verification.scheme.as_bytes()));
    add(verification.secret.as_deref().map(str::as_bytes));
    add(verification.skew_seconds.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    add(Some(headers));
    add(Some(body_digest));
    let mut checksum = Checksum::default();
    checksum.copy_from_slice(&digest.finalize()[..16]);
    checksum
}

/// Lines as on the wire: a value has no line end in it, and is otherwise any bytes.
pub(in crate::store) fn encode_headers(headers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    lines
}

pub(in crate::store) fn decode_headers(mut lines: &[u8]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    while !lines.is_empty() {
        let end = lines.windows(2).position(|pair| pair == b"\r\n")?;
        let colon = lines[..end].windows(2).position(|pair| pair == b": ")?;
        let name = HeaderName::from_bytes(&lines[..colon]).ok()?;
        let value = HeaderValue::from_bytes(&lines[colon + 2..end]).ok()?;
        headers.try_append(name, value).ok()?;
        lines = &lines[end + 2..];
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&str, &[u8])], lines: &[u8]) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        assert_eq!(encode_headers(&headers), lines);
        let decoded = decode_headers(lines).unwrap();
        assert!(decoded.iter().eq(headers.iter()), "{decoded:?}");
    }

    #[test]
    fn headers_survive_byte_for_byte_and_in_order() {
        check(&[], b"");
        check(&[("x-b", b"1"), ("x-a", b"\xff: \x80")], b"x-b: 1\r\nx-a: \xff: \x80\r\n");
        check(&[("x-a", b""), ("x-a", b"2")], b"x-a: \r\nx-a: 2\r\n");
    }

    #[test]
    fn torn_headers_are_not_guessed_at() {
        for torn in [&b"x-a"[..], b"x-a: 1", b"x-a: 1\r", b"x a: 1\r\n", b"x-a: 1\r\n\r\n", b"x-a: \x00\r\n"]
        {
            assert!(decode_headers(torn).is_none(), "{torn:?}");
        }
    }
}
