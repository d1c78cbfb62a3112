//! What a condition may ask about: the variables, each made when it is first asked for.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use cel::Value;
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::objects::{Key, Map};

use crate::delivery::Delivery;
use crate::json::{self, JsonError};

/// What a condition may name.
pub(super) const VARIABLES: [&str; 6] = ["body", "delivery_id", "event", "headers", "method", "source"];

/// A name that no condition can have: what it costs at most to go through all of the delivery once, in values, bytes being
/// gone through in blocks.
pub(super) const SIZE: &str = "@size";

/// A delivery as conditions see it.
pub(super) struct Facts<'d> {
    delivery: &'d Delivery,
    body: OnceLock<Result<Body, JsonError>>,
    headers: OnceLock<Box<dyn Val>>,
}

/// The body, and how many values it has.
struct Body {
    value: Box<dyn Val>,
    values: usize,
}

impl<'d> Facts<'d> {
    pub(super) fn new(delivery: &'d Delivery) -> Self {
        Self { delivery, body: OnceLock::new(), headers: OnceLock::new() }
    }

    /// Why the body cannot be looked into; `None` when it can, or when nobody has tried.
    pub(super) fn body_error(&self) -> Option<JsonError> {
        self.body.get().and_then(|body| body.as_ref().err().copied())
    }

    fn size(&self) -> i64 {
        let values = self.body.get().map_or(0, |body| body.as_ref().map_or(0, |body| body.values));
        let size = values + self.delivery.body.len() / 64 + self.delivery.headers.len();
        size.try_into().unwrap_or(i64::MAX)
    }

    fn body(&self) -> Option<&dyn Val> {
        let read = || {
            let mut values = 0;
            let value = converted(json::parse(&self.delivery.body)?, &mut values);
            Ok(Body { value: val(value), values })
        };
        self.body.get_or_init(read).as_ref().ok().map(|body| &*body.value)
    }

    /// Names in lower case; the values of one that is there several times are joined by `, `.
    fn headers(&self) -> &dyn Val {
        let read = || {
            let headers = &self.delivery.headers;
            let joined = headers.keys().map(|name| {
                let values =
                    headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
                (key(name.as_str().to_owned()), text(values.collect::<Vec<_>>().join(", ")))
            });
            val(map(joined.collect()))
        };
        &**self.headers.get_or_init(read)
    }
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let delivery = self.delivery;
        let known = |text_of: &str| Some(CowVal::Owned(val(text(text_of))));
        match variable {
            "body" => self.body().map(CowVal::Borrowed),
            "headers" => Some(CowVal::Borrowed(self.headers())),
            // One that is not there is the empty text, as it is for `events`.
            "event" => known(delivery.event.as_deref().unwrap_or_default()),
            "delivery_id" => known(delivery.delivery_id.as_deref().unwrap_or_default()),
            "method" => known(delivery.method.as_str()),
            "source" => known(&delivery.source),
            SIZE => Some(CowVal::Owned(val(Value::Int(self.size())))),
            _ => None,
        }
    }
}

fn val(value: Value) -> Box<dyn Val> {
    value.try_into().expect("only atoms, lists and maps are made here, and all of them have a form as Val")
}

/// JSON in the types of CEL: whole numbers are `int` where they fit.
fn converted(json: serde_json::Value, count: &mut usize) -> Value {
    *count += 1;
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(truth),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(string) => text(string),
        serde_json::Value::Array(list) => {
            Value::List(Arc::new(list.into_iter().map(|element| converted(element, count)).collect()))
        }
        serde_json::Value::Object(members) => {
            let entries = members.into_iter().map(|(name, value)| (key(name), converted(value, count)));
            map(entries.collect())
        }
    }
}

fn text(text: impl Into<String>) -> Value {
    Value::String(Arc::new(text.into()))
}

fn key(name: String) -> Key {
    Key::String(Arc::new(name))
}

fn map(entries: HashMap<Key, Value>) -> Value {
    Value::Map(Map { map: Arc::new(entries) })
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, Method};

    use super::*;
    use crate::clock::from_milliseconds;
    use crate::delivery::Verification;
    use crate::id::Id;

    pub(crate) fn delivery(body: &[u8], event: Option<&str>) -> Delivery {
        Delivery {
            id: Id::from_bytes([1; 16]),
            source: "shop".into(),
            delivery_id: Some("evt_1".to_owned()),
            event: event.map(str::to_owned),
            received_at: from_milliseconds(0),
            sender: "192.0.2.7".parse().unwrap(),
            method: Method::POST,
            target: "/webhooks/shop".to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body),
            verification: Verification {
                verified: true,
                scheme: "custom".into(),
                secret: None,
                skew_seconds: None,
            },
        }
    }

    /// What nobody asks for is not made: most deliveries go by their event type, or everywhere.
    #[test]
    fn the_body_is_read_when_it_is_asked_for_and_once() {
        let delivery = delivery(b"{\"a\":[1,2.5,\"x\",null,true]}", None);
        let facts = Facts::new(&delivery);
        assert!(facts.resolve("event").is_some() && facts.resolve("nothing").is_none());
        assert!(facts.body.get().is_none());
        let first: *const dyn Val = facts.body().unwrap();
        assert_eq!(facts.body.get().unwrap().as_ref().unwrap().values, 7);
        assert!(std::ptr::addr_eq(first, facts.body().unwrap()));
    }
}
