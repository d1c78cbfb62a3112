//! Bodies that are made up: id, event type and time stand where the provider has them.

use serde_json::{Map, Value};

use super::Signer;
use crate::clock::Timestamp;
use crate::verify::scheme::Scheme;

impl Signer {
    /// As [`Scheme::fill`].
    pub fn fill(&self, body: &mut Value, id: &str, event: &str, now: Timestamp) {
        self.scheme.fill(body, id, event, now);
    }
}

impl Scheme {
    /// Puts id, event type and time into `body`, as far as the scheme has them there.
    pub fn fill(&self, body: &mut Value, id: &str, event: &str, now: Timestamp) {
        let texts = [(self.id_pointer(), id), (self.event_pointer(), event)];
        for (pointer, text) in texts.into_iter().filter_map(|(pointer, text)| Some((pointer?, text))) {
            put(body, pointer, text.into());
        }
        if let Some((pointer, time)) = self.timestamp_in_body(now) {
            let time = time.parse::<i64>().map_or_else(|_| Value::from(time), Value::from);
            put(body, pointer, time);
        }
    }
}

/// Puts `value` at a JSON pointer, with the objects and lists on the way there.
fn put(body: &mut Value, pointer: &str, value: Value) {
    let mut place = body;
    for step in pointer.split('/').skip(1) {
        let index = step.parse::<usize>().ok().filter(|index| *index == 0);
        place = match index {
            Some(_) => {
                if !place.is_array() {
                    *place = Value::Array(vec![Value::Null]);
                }
                &mut place[0]
            }
            None => {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                &mut place[step]
            }
        };
    }
    *place = value;
}
