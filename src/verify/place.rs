//! A place in a delivery, for whoever has to read one value of it and does not verify: the same places as in schemes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::locate::{Locator, LocatorError, Request};
use crate::delivery::Delivery;

/// `header:NAME`, `query:NAME`, `json:/pointer` or `form:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Locator);

impl Place {
    /// What a text has to look like.
    pub const HELP: &str = Locator::HELP;

    /// The value there: a text, or in JSON also a whole number. `None` where there is none, or several.
    pub fn find<'a>(&self, delivery: &'a Delivery) -> Option<Cow<'a, [u8]>> {
        let request = Request {
            method: &delivery.method,
            base_url: "",
            other_base_url: "",
            target: &delivery.target,
            headers: &delivery.headers,
            body: Some(&delivery.body),
        };
        request.find(&self.0).ok().flatten()
    }

    /// The value there as text; `None` also where it is none.
    pub fn find_text(&self, delivery: &Delivery) -> Option<String> {
        String::from_utf8(self.find(delivery)?.into_owned()).ok()
    }
}

/// Why a text is no place.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(LocatorError);

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        text.parse().map(Self).map_err(PlaceError)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
