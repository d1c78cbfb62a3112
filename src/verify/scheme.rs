//! A signing scheme as data: the fields of `[source.scheme]`, which are also those of a preset, and what follows
//! from them. They are read from their table in `read`.

use std::collections::BTreeMap;

use http::HeaderName;

use super::Coverage;
use super::algorithm::Algorithm;
use super::code::Code;
use super::encoding::Encoding;
use super::grammar::Grammar;
use super::handshake::Handshake;
use super::jwt::JwtRule;
use super::key::KeyRule;
use super::locate::Locator;
use super::published::KeySource;
use super::template::Template;
use super::window::Unit;
use crate::clock::Timestamp;

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
    /// Where the sender publishes its keys.
    pub(super) keys: Option<KeySource>,
    /// What it demands of a new endpoint.
    pub(super) handshake: Vec<Handshake>,
    /// Who asks with [`Handshake::CloudEventsOptions`].
    pub(super) origins: Vec<String>,
}

/// How the sender is known.
#[derive(Debug, Clone)]
pub(super) enum Auth {
    /// By a secret text at this place.
    Token(TokenRule),
    /// By a signature.
    Signature(SignatureRule),
    /// By a signed token with claims.
    Jwt(JwtRule),
    /// By a signature that takes code to find.
    Code(Code),
}

#[derive(Debug, Clone)]
pub(super) struct TokenRule {
    pub(super) at: Locator,
    /// Whether it is the `name:password` of basic authentication.
    pub(super) basic: bool,
}

#[derive(Debug, Clone)]
pub(super) struct SignatureRule {
    /// Every one of these that is present is taken.
    pub(super) from: Vec<Locator>,
    /// Whether the header may be there several times, each with a signature.
    pub(super) repeated: bool,
    pub(super) grammar: Grammar,
    pub(super) algorithm: Algorithm,
    pub(super) encoding: Encoding,
    pub(super) key: KeyRule,
    /// What is signed, by the first of these that makes the signature.
    pub(super) signed: Vec<Template>,
    pub(super) body_digest: Option<BodyDigest>,
}

/// A digest of the body that stands elsewhere in the request, where the signature covers it.
#[derive(Debug, Clone)]
pub(super) struct BodyDigest {
    pub(super) at: Locator,
    /// One of the plain digests.
    pub(super) algorithm: Algorithm,
    pub(super) encoding: Encoding,
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
    /// The first one present counts.
    At(Vec<Locator>),
    /// A claim of the token.
    Claim(String),
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
            Auth::Token(rule) => {
                let rule = TokenRule { at: Locator::Header(name), ..rule };
                Ok(Self { auth: Auth::Token(rule), ..self })
            }
            Auth::Signature(_) | Auth::Jwt(_) | Auth::Code(_) => Err(NotTokenAuth),
        }
    }

    /// `signature`, `token` or `jwt`.
    pub fn auth(&self) -> &'static str {
        match self.auth {
            Auth::Token(_) => "token",
            Auth::Signature(_) | Auth::Code(_) => "signature",
            Auth::Jwt(_) => "jwt",
        }
    }

    /// What the signature covers; computed from the template.
    pub fn coverage(&self) -> Coverage {
        let rule = match &self.auth {
            Auth::Token(_) => return Coverage { timestamp: false, id: false, body: false },
            Auth::Signature(rule) => rule,
            Auth::Jwt(rule) => {
                let body = rule.body_hash.is_some();
                let in_body = |place: &Locator| matches!(place, Locator::Json(_)) && body;
                let id = !self.delivery_id.is_empty() && self.delivery_id.iter().all(in_body);
                let timed =
                    matches!(&self.timestamp, Some(TimestampRule { at: TimestampPlace::Claim(_), .. }));
                return Coverage { timestamp: timed || rule.expires(), id: rule.id.is_some() || id, body };
            }
            Auth::Code(code) => {
                let all = |places: &[Locator]| !places.is_empty() && places.iter().all(|at| code.covers(at));
                let timed = |rule: &TimestampRule| matches!(&rule.at, TimestampPlace::At(at) if all(at));
                return Coverage {
                    timestamp: self.timestamp.as_ref().is_some_and(timed),
                    id: all(&self.delivery_id),
                    body: code.covers_body(),
                };
            }
        };
        let every = |covers: &dyn Fn(&Template) -> bool| rule.signed.iter().all(covers);
        let covers_all = |places: &[Locator]| {
            !places.is_empty() && places.iter().all(|place| every(&|signed| signed.covers(place)))
        };
        let timestamp = self.timestamp.as_ref().is_some_and(|rule| {
            every(&Template::has_timestamp)
                || matches!(&rule.at, TimestampPlace::At(places) if covers_all(places))
        });
        let digested =
            || rule.body_digest.as_ref().is_some_and(|digest| every(&|signed| signed.covers(&digest.at)));
        Coverage {
            timestamp,
            id: every(&Template::covers_id) || covers_all(&self.delivery_id),
            body: every(&Template::has_body) || digested(),
        }
    }

    /// Whether there is a timestamp at all. When there is and [`coverage`](Self::coverage) lacks it, its check is
    /// advisory: whoever captured a request can put a new timestamp on it.
    pub fn has_timestamp(&self) -> bool {
        self.timestamp.is_some()
    }

    /// Whether the URL is signed, so that a source needs the `public_url` that the provider was told.
    pub fn signs_url(&self) -> bool {
        self.templates().iter().any(Template::has_url)
            || matches!(&self.auth, Auth::Jwt(rule) if rule.has_url())
    }

    /// Where signature or token are.
    pub(super) fn proof_places(&self) -> impl Iterator<Item = &Locator> {
        match &self.auth {
            Auth::Signature(rule) => rule.from.iter(),
            Auth::Token(rule) => std::slice::from_ref(&rule.at).iter(),
            Auth::Jwt(rule) => std::slice::from_ref(&rule.at).iter(),
            Auth::Code(_) => [].iter(),
        }
    }

    /// The headers that it reads.
    pub(super) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        let times = match self.timestamp.as_ref().map(|rule| &rule.at) {
            Some(TimestampPlace::At(places)) => &places[..],
            Some(TimestampPlace::Signature | TimestampPlace::Claim(_)) | None => &[],
        };
        let all = self.proof_places().chain(times).chain(&self.delivery_id).chain(&self.event);
        all.filter_map(|place| match place {
            Locator::Header(name) => Some(name),
            Locator::Query(_) | Locator::Json(_) | Locator::Form(_) => None,
        })
    }

    /// Whether signature, timestamp, id or event type are looked for in this header.
    pub fn reads(&self, header: &HeaderName) -> bool {
        self.headers().any(|name| name == header)
    }

    /// The names in `{config:NAME}`: what the configuration of a source has to tell.
    pub fn config_names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.templates().iter().flat_map(Template::config_names).collect();
        if let Auth::Jwt(rule) = &self.auth {
            names.extend(rule.config_names());
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The scheme with these values in place of `{config:NAME}`.
    pub fn with_config(mut self, values: &BTreeMap<String, String>) -> Self {
        self.auth = match self.auth {
            Auth::Signature(mut rule) => {
                rule.signed = rule.signed.into_iter().map(|signed| signed.with_config(values)).collect();
                Auth::Signature(rule)
            }
            Auth::Jwt(rule) => Auth::Jwt(rule.with_config(values)),
            other @ (Auth::Token(_) | Auth::Code(_)) => other,
        };
        self
    }

    fn templates(&self) -> &[Template] {
        match &self.auth {
            Auth::Signature(rule) => &rule.signed,
            Auth::Token(_) | Auth::Jwt(_) | Auth::Code(_) => &[],
        }
    }

    /// Whether a source may go without secrets, since the sender publishes its public keys.
    pub fn publishes_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// The handshakes that the sender demands of a new endpoint.
    pub fn handshakes(&self) -> &[Handshake] {
        &self.handshake
    }

    pub(super) fn has_public_keys(&self) -> bool {
        let is_public = |algorithm: &Algorithm| algorithm.public_key().is_some();
        match &self.auth {
            Auth::Token(_) => false,
            Auth::Signature(rule) => is_public(&rule.algorithm),
            Auth::Jwt(rule) => rule.algorithms.iter().all(is_public),
            Auth::Code(code) => code.algorithms().iter().all(is_public),
        }
    }

    /// The algorithms of the signature, as a configuration calls them; none for tokens.
    pub fn algorithms(&self) -> Vec<&'static str> {
        match &self.auth {
            Auth::Signature(rule) => vec![rule.algorithm.name()],
            Auth::Token(_) => Vec::new(),
            Auth::Jwt(rule) => rule.algorithms.iter().map(|algorithm| algorithm.name()).collect(),
            Auth::Code(code) => code.algorithms().iter().map(|algorithm| algorithm.name()).collect(),
        }
    }

    /// Where signature or token are, as a configuration writes it.
    pub fn places(&self) -> Vec<String> {
        match &self.auth {
            Auth::Signature(rule) => rule.from.iter().map(Locator::to_string).collect(),
            Auth::Token(rule) => vec![rule.at.to_string()],
            Auth::Jwt(rule) => vec![rule.at.to_string()],
            Auth::Code(code) => vec![code.place().to_owned()],
        }
    }

    /// Where the delivery id is looked for, as a configuration writes it.
    pub fn id_places(&self) -> Vec<String> {
        self.delivery_id.iter().map(Locator::to_string).collect()
    }

    /// The JSON pointer of the timestamp, when it stands in the body, and how `now` is written there.
    pub fn timestamp_in_body(&self, now: Timestamp) -> Option<(&str, String)> {
        let rule = self.timestamp.as_ref()?;
        match &rule.at {
            TimestampPlace::At(places) => Some((pointer(places)?, rule.unit.format(now))),
            TimestampPlace::Signature | TimestampPlace::Claim(_) => None,
        }
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
