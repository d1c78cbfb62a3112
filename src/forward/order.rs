//! Which forwards of a destination have to wait for each other: those with one key go out one after the other, in the
//! order of their arrival. Who is first is the store's to know.

use sha2::{Digest as _, Sha256};

use crate::delivery::Delivery;
use crate::verify::Place;

/// A longer value is replaced by its digest: keys stand in an index.
const VALUE_BYTES_MAX: usize = 64;

/// A destination's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    by: By,
    on_dead: OnDead,
    /// What every key of this order begins with, and none of another.
    prefix: String,
}

/// What has the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Everything.
    Strict,
    /// What has the same value there. What has none has a key together: it is rather kept in order than not, should the
    /// place be wrong.
    Value(Place),
}

/// What becomes of those behind a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDead {
    /// They wait until it has been replayed, cancelled or purged.
    Park,
    /// They go on.
    Continue,
}

impl Order {
    /// The order by `by`.
    pub fn new(by: By, on_dead: OnDead) -> Self {
        let prefix = match &by {
            By::Strict => "strict:".to_owned(),
            By::Value(place) => {
                format!("{}:", hex::encode(&Sha256::digest(place.to_string().as_bytes())[..4]))
            }
        };
        Self { by, on_dead, prefix }
    }

    /// What every key of this order begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether a dead letter holds up what is behind it.
    pub fn parks(&self) -> bool {
        match self.on_dead {
            OnDead::Park => true,
            OnDead::Continue => false,
        }
    }

    /// The key of a delivery. Reads its body only where the place is in it.
    pub fn key(&self, delivery: &Delivery) -> String {
        let mut key = self.prefix.clone();
        if let By::Value(place) = &self.by {
            let value = place.find(delivery).unwrap_or_default();
            if value.len() > VALUE_BYTES_MAX {
                key.push_str(&hex::encode(Sha256::digest(&value)));
            } else {
                key.push_str(&String::from_utf8_lossy(&value));
            }
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::clock::from_milliseconds;
    use crate::delivery::Verification;
    use crate::id::Id;

    fn delivery(body: &'static str, headers: &[(&'static str, &str)]) -> Delivery {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Delivery {
            id: Id::from_bytes([1; 16]),
            source: "shop".into(),
            delivery_id: None,
            event: None,
            received_at: from_milliseconds(0),
            sender: "192.0.2.7".parse().unwrap(),
            method: Method::POST,
            target: "/webhooks/shop?site=7".to_owned(),
            headers: map,
            body: Bytes::from_static(body.as_bytes()),
            verification: Verification {
                verified: true,
                scheme: "custom".into(),
                secret: None,
                skew_seconds: None,
            },
        }
    }

    fn by(place: &str) -> Order {
        Order::new(By::Value(place.parse().unwrap()), OnDead::Park)
    }

    #[test]
    fn a_key_is_the_value_at_its_place() {
        let check = |place: &str, delivery: &Delivery, expected: &str| {
            let (order, key) = (by(place), by(place).key(delivery));
            assert_eq!(key.strip_prefix(order.prefix()), Some(expected), "{place}");
        };
        let body =
            delivery(r#"{"data": {"site_id": 42, "name": "a\u00e9", "on": true}}"#, &[("x-site", "eu-1")]);
        check("json:/data/site_id", &body, "42");
        check("json:/data/name", &body, "aé");
        check("header:X-Site", &body, "eu-1");
        check("query:site", &body, "7");
        for none in ["json:/data/none", "json:/data/on", "json:/data", "header:X-None"] {
            check(none, &body, "");
        }
        check("json:/a", &delivery("no json", &[]), "");
        check("header:x", &delivery("", &[("x", "1"), ("x", "2")]), "");
        let long = "x".repeat(65);
        let digest = "9537c5fdf120482f7d58d25e9ed583f52c02b4e304ea814db1633ad565aed7e9";
        check("header:x", &delivery("", &[("x", &long)]), digest);
        check("header:x", &delivery("", &[("x", &long[1..])]), &long[1..]);
    }

    #[test]
    fn keys_of_different_orders_are_different() {
        let body = delivery(r#"{"a": "1", "b": "1"}"#, &[]);
        let strict = Order::new(By::Strict, OnDead::Park);
        let keys = [by("json:/a").key(&body), by("json:/b").key(&body), strict.key(&body)];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2], "{keys:?}");
        assert_eq!(strict.key(&body), strict.key(&delivery("other", &[])));
    }
}
