//! A signing scheme as data: the fields of `[source.scheme]`, which are also those of a preset, and what follows
//! from them. They are read from their table in `read`.

use http::HeaderName;

use super::Coverage;
use super::grammar::Grammar;
use super::locate::Locator;
use super::mac::{Algorithm, Encoding, KeyRule};
use super::template::Template;
use super::window::Unit;

mod read;

/// A signing scheme as data.
#[derive(Debug, Clone)]
pub struct Scheme {
    pub(super) auth: Auth,
    pub(super) timestamp: Option<TimestampRule>,
    /// The first one present counts.
    pub(super) delivery_id: Vec<Locator>,
    /// The first one present counts.
    pub(super) event: Vec<Locator>,
    /// Values that must be exactly these.
    pub(super) require: Vec<(Locator, String)>,
}

/// How the sender is known.
#[derive(Debug, Clone)]
pub(super) enum Auth {
    /// By a secret text in this header.
    Token(HeaderName),
    /// By a MAC.
    Signature(SignatureRule),
}

#[derive(Debug, Clone)]
pub(super) struct SignatureRule {
    /// Every one of these that is present is taken.
    pub(super) from: Vec<Locator>,
    pub(super) grammar: Grammar,
    pub(super) algorithm: Algorithm,
    pub(super) encoding: Encoding,
    pub(super) key: KeyRule,
    pub(super) signed: Template,
}

#[derive(Debug, Clone)]
pub(super) struct TimestampRule {
    pub(super) at: TimestampPlace,
    pub(super) unit: Unit,
}

#[derive(Debug, Clone)]
pub(super) enum TimestampPlace {
    /// Beside the signature, by its grammar.
    Signature,
    At(Locator),
}

/// The scheme is not one of a token in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this scheme verifies a signature, not a token")]
pub struct NotTokenAuth;

impl Scheme {
    /// The scheme with its token in another header.
    ///
    /// # Errors
    /// When it is not a token scheme.
    pub fn with_token_header(self, name: HeaderName) -> Result<Self, NotTokenAuth> {
        match self.auth {
            Auth::Token(_) => Ok(Self { auth: Auth::Token(name), ..self }),
            Auth::Signature(_) => Err(NotTokenAuth),
        }
    }

    /// `signature` or `token`.
    pub fn auth(&self) -> &'static str {
        match self.auth {
            Auth::Token(_) => "token",
            Auth::Signature(_) => "signature",
        }
    }

    /// What the signature covers; computed from the template.
    pub fn coverage(&self) -> Coverage {
        let Auth::Signature(SignatureRule { signed, .. }) = &self.auth else {
            return Coverage { timestamp: false, id: false, body: false };
        };
        let timestamp = self.timestamp.as_ref().is_some_and(|rule| match &rule.at {
            TimestampPlace::Signature => signed.has_timestamp(),
            TimestampPlace::At(locator) => signed.has_timestamp() || signed.covers(locator),
        });
        let every_id = || !self.delivery_id.is_empty() && self.delivery_id.iter().all(|at| signed.covers(at));
        Coverage { timestamp, id: signed.covers_id() || every_id(), body: signed.has_body() }
    }

    /// Whether there is a timestamp at all. When there is and [`coverage`](Self::coverage) lacks it, its check is
    /// advisory: whoever captured a request can put a new timestamp on it.
    pub fn has_timestamp(&self) -> bool {
        self.timestamp.is_some()
    }

    /// Whether the URL is signed, so that a source needs the `public_url` that the provider was told.
    pub fn signs_url(&self) -> bool {
        matches!(&self.auth, Auth::Signature(rule) if rule.signed.has_url())
    }

    /// The JSON pointer of the delivery id, when it may stand in the body.
    pub fn id_pointer(&self) -> Option<&str> {
        pointer(&self.delivery_id)
    }

    /// The JSON pointer of the event type, when it may stand in the body.
    pub fn event_pointer(&self) -> Option<&str> {
        pointer(&self.event)
    }
}

fn pointer(locators: &[Locator]) -> Option<&str> {
    locators.iter().find_map(|locator| match locator {
        Locator::Json(pointer) => Some(pointer.as_str()),
        Locator::Header(_) | Locator::Query(_) | Locator::Form(_) => None,
    })
}
