//! What makes two requests the same delivery: the keys that the store claims. Parts are joined with their lengths,
//! so that `("ab", "c")` and `("a", "bc")` differ, and hashed, so that a claim has one size whatever a sender chose.
//! Only [`Verified`] requests have keys: an unverified id is never looked up or remembered.

use sha2::{Digest, Sha256};

use crate::delivery::Delivery;
use crate::verify::Verified;

/// The digest under which a claim is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key([u8; 32]);

impl Key {
    /// The bytes that the store keeps.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key of these bytes, whatever they were made of.
    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// The keys of one verified request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// From the provider's delivery id; `None` when the request had none.
    pub id: Option<Key>,
    /// The replay guard: from exactly the signed bytes; `None` where id and timestamp are signed, where nothing is
    /// signed, and where the guard is off.
    pub guard: Option<Key>,
}

impl Keys {
    /// The keys of `verified`; the guard only when `guarded`.
    pub fn of(verified: &Verified, guarded: bool) -> Self {
        let delivery = verified.delivery();
        Self {
            id: id_key(delivery),
            guard: verified
                .signed_digest()
                .filter(|_| guarded)
                .map(|digest| key(b"guard", &delivery.source, digest)),
        }
    }

    /// The key for single flight: concurrent copies share it.
    pub fn first(&self) -> Option<Key> {
        self.id.or(self.guard)
    }
}

/// The key of a delivery's id: all of a claim that can be made anew from what was stored.
pub(crate) fn id_key(delivery: &Delivery) -> Option<Key> {
    // What `enforcement = "observe"` lets through must not make the genuine delivery of that id a duplicate.
    let kind: &[u8] = if delivery.verification.verified { b"id" } else { b"unverified id" };
    delivery.delivery_id.as_deref().map(|id| key(kind, &delivery.source, id.as_bytes()))
}

/// The keys that a delivery with this id may have claimed, verified or not.
pub(crate) fn id_keys(source: &str, delivery_id: &str) -> [Key; 2] {
    [&b"id"[..], b"unverified id"].map(|kind| key(kind, source, delivery_id.as_bytes()))
}

fn key(kind: &[u8], source: &str, text: &[u8]) -> Key {
    let mut digest = Sha256::new();
    for part in [kind, source.as_bytes(), text] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    Key(digest.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(key(b"id", "ab", b"c"), key(b"id", "a", b"bc"));
        assert_ne!(key(b"id", "a", b"b"), key(b"guard", "a", b"b"));
        assert_eq!(key(b"id", "a", b"b"), key(b"id", "a", b"b"));
    }

    #[test]
    fn copies_are_told_by_their_id_or_else_by_their_bytes() {
        let (id, guard) = (Some(key(b"id", "a", b"b")), Some(key(b"guard", "a", b"b")));
        for (keys, first) in
            [(Keys { id, guard }, id), (Keys { id: None, guard }, guard), (Keys::default(), None)]
        {
            assert_eq!(keys.first(), first);
        }
    }
}
