//! Places of values in a delivery, for whoever else has to find one: those of a scheme, read by the same rules.

use std::fmt;

use super::locate::{Locator, Request};
use crate::delivery::Delivery;

/// A place such as `json:/data/site_id` or `header:X-Tenant`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Locator);

impl Place {
    /// Reads a place.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: super::locate::LocatorError| error.to_string())
    }

    /// The value there as text; `None` when there is none, or several.
    pub fn find(&self, delivery: &Delivery) -> Option<String> {
        let request = Request {
            method: &delivery.method,
            base_url: "",
            other_base_url: "",
            target: &delivery.target,
            headers: &delivery.headers,
            body: Some(&delivery.body),
        };
        let found = request.find(&self.0).ok().flatten()?;
        String::from_utf8(found.into_owned()).ok()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
