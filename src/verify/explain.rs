//! Why a request was refused, for operators: what was received is tried with one thing changed after the other, and what
//! makes it verify is the cause. Where nothing does, what can be seen of the request is hinted at. Neither a secret nor a
//! signature is told; the number of trials and the bytes that they read have a bound. Pure, like all of `verify`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::algorithm::Algorithm;
use super::check::Checker;
use super::encoding::Encoding;
use super::grammar::Grammar;
use super::key::{KeyEncoding, KeyRule};
use super::locate::{Locator, Request, other_port};
use super::scheme::{Auth, Scheme, SignatureRule};
use super::window::{Unit, Window};
use super::{Checked, NamedSecret, Proof, Refusal, Verifier, presets};
use crate::clock::Timestamp;
use crate::delivery::is_same_to_cgi;
use crate::secret::Secret;

mod body;
mod cause;
mod presented;
mod shape;

pub use cause::{BodyChange, Cause, Part};

/// Trials of one explanation; a source with few secrets takes some hundred.
const TRIALS_MAX: usize = 4_000;
/// Bytes that all of them may read: about a second's.
const BYTES_MAX: u64 = 192 << 20;
/// What a trial costs besides the body.
const TRIAL_BYTES: u64 = 1 << 10;
/// Other sources that are looked at.
const SOURCES_MAX: usize = 256;
/// Other headers in which a signature is looked for.
const HEADERS_MAX: usize = 4;
/// Providers that are named where several have the same header.
const PROVIDERS_MAX: usize = 5;
const ANY_TIME: Window = Window { past: Duration::MAX, future: Duration::MAX };
/// A timestamp in the wrong unit lies decades from any clock.
const PLAUSIBLE_SECONDS: i64 = 86_400;

/// A request as it was received, to be explained.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The exact bytes; `None` when they were not read, or not kept.
    pub body: Option<&'a [u8]>,
    /// When its last byte had been read.
    pub received_at: Timestamp,
    /// Why it was refused then, where that is known. What a source demands beside a proof stands here for as long as it
    /// does: [`Refusal::IdMissing`], which is heeded where there is no id, and [`Refusal::Replayed`].
    pub refused: Option<Refusal>,
}

/// A source that the request may have been meant for, or whose secret it may have been signed with.
#[derive(Debug, Clone, Copy)]
pub struct OtherSource<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its path.
    pub path: &'a str,
    /// How its requests are verified.
    pub verifier: &'a Verifier,
}

/// What explains a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Why it would be refused now, judged by the time of its arrival; `None` when it would not be.
    pub refusal: Option<Refusal>,
    /// The likeliest first; several can be true.
    pub causes: Vec<Cause>,
    /// Whether everything was tried; a large body with many secrets takes too long for that.
    pub complete: bool,
}

impl Verifier {
    /// Why `captured` is refused. `others` are all other sources.
    pub fn explain(&self, captured: &Captured<'_>, others: &[OtherSource<'_>]) -> Explanation {
        match &self.checked {
            Some(checked) => Trials::new(checked, captured).explain(others),
            None => Explanation { refusal: None, causes: vec![Cause::Verifies], complete: true },
        }
    }

    /// The headers and fields of a query that hold signatures or tokens.
    pub fn proof_places(&self) -> (Vec<String>, Vec<String>) {
        let (mut headers, mut fields) = (Vec::new(), Vec::new());
        for place in self.checked.iter().flat_map(|checked| checked.checker.scheme().proof_places()) {
            match place {
                Locator::Header(name) => headers.push(name.to_string()),
                Locator::Query(name) => fields.push(name.clone()),
                Locator::Json(_) | Locator::Form(_) => {}
            }
        }
        (headers, fields)
    }
}

struct Trials<'a> {
    own: &'a Checked,
    request: Request<'a>,
    received_at: Timestamp,
    refused: Option<Refusal>,
    trials_left: usize,
    bytes_left: u64,
    complete: bool,
}

impl<'a> Trials<'a> {
    fn new(own: &'a Checked, captured: &Captured<'a>) -> Self {
        let Captured { method, target, headers, body, received_at, refused } = *captured;
        // A token is what it is, whatever the body.
        let body = body.or_else(|| matches!(own.checker.scheme().auth, Auth::Token(_)).then_some(&[]));
        let (base_url, other_base_url) = (&*own.base_url, &*own.other_base_url);
        let request = Request { method, base_url, other_base_url, target, headers, body };
        let (trials_left, bytes_left) = (TRIALS_MAX, BYTES_MAX);
        Self { own, request, received_at, refused, trials_left, bytes_left, complete: true }
    }

    fn explain(mut self, others: &[OtherSource<'_>]) -> Explanation {
        let (checker, request) = (&self.own.checker, self.request);
        let refusal = if request.body.is_none() || checker.awaits_keys() {
            checker.precheck(&request, self.received_at).err()
        } else {
            match checker.check(&request, None, self.received_at) {
                Ok(proof) => {
                    let (refusal, cause) = match self.refused {
                        Some(Refusal::Replayed) => (self.refused, Cause::Replayed),
                        Some(Refusal::IdMissing) if proof.delivery_id.is_none() => {
                            (self.refused, Cause::NoDeliveryId)
                        }
                        Some(_) | None => (None, Cause::Verifies),
                    };
                    return Explanation { refusal, causes: vec![cause], complete: true };
                }
                Err(refusal) => Some(refusal),
            }
        };
        let proven = self
            .at_any_time()
            .or_else(|| self.of_others(others))
            .or_else(|| self.with_other_keys())
            .or_else(|| self.presented_otherwise(refusal))
            .or_else(|| self.with_other_urls())
            .or_else(|| self.with_other_forms())
            .or_else(|| self.of_other_providers())
            .or_else(|| self.with_other_headers())
            .or_else(|| self.with_other_bodies());
        let then = self.refused.filter(|refused| *refused != Refusal::IdMissing);
        let causes = proven.unwrap_or_else(|| self.hints(refusal.or(then)));
        Explanation { refusal, causes, complete: self.complete }
    }

    /// What `request` proves to `checker`, at any time.
    fn proof(&mut self, checker: &Checker, request: &Request<'_>) -> Option<Proof> {
        // What its head shows to be hopeless costs no reading.
        let hopeless = checker.precheck(request, self.received_at).is_err();
        let read =
            if hopeless { 0 } else { request.body?.len() as u64 * checker.given_secrets().count() as u64 };
        let bytes_left = self.bytes_left.checked_sub(TRIAL_BYTES + read);
        match (bytes_left, self.trials_left.checked_sub(1)) {
            (Some(bytes), Some(trials)) => (self.bytes_left, self.trials_left) = (bytes, trials),
            (None, _) | (_, None) => {
                self.complete = false;
                return None;
            }
        }
        if hopeless { None } else { checker.check(request, None, self.received_at).ok() }
    }

    /// The same to `scheme` with those of `secrets` that can be its keys.
    fn proof_by(&mut self, scheme: &Scheme, secrets: &[NamedSecret], request: &Request<'_>) -> Option<Proof> {
        let checker = checker(scheme, secrets)?;
        self.proof(&checker, request)
    }

    fn scheme(&self) -> &'a Scheme {
        self.own.checker.scheme()
    }

    /// A secret that was not valid, a timestamp that is not fresh or in another unit.
    fn at_any_time(&mut self) -> Option<Vec<Cause>> {
        let (request, secrets) = (self.request, timeless(&self.own.checker));
        let skew = |proof: &Proof| proof.skew_seconds.map_or(0, i64::unsigned_abs);
        let mut best: Option<(Option<Unit>, Proof)> = None;
        for (unit, scheme) in in_units(self.scheme()) {
            if let Some(proof) = self.proof_by(&scheme, &secrets, &request)
                && best.as_ref().is_none_or(|(_, nearest)| skew(&proof) < skew(nearest))
            {
                best = Some((unit, proof));
            }
        }
        let (unit, proof) = best?;
        let given = self.own.checker.given_secrets().find(|secret| secret.name == proof.secret)?;
        let mut causes = Vec::new();
        let secret = Arc::clone(&proof.secret);
        match (given.not_before, given.not_after) {
            (_, Some(not_after)) if not_after < self.received_at => {
                causes.push(Cause::SecretExpired { secret, not_after });
            }
            (Some(not_before), _) if self.received_at < not_before => {
                causes.push(Cause::SecretNotYetValid { secret, not_before });
            }
            _ => {}
        }
        causes.extend(self.time_causes(unit, proof.skew_seconds, true));
        (!causes.is_empty()).then_some(causes)
    }

    fn time_causes(&self, unit: Option<Unit>, skew_seconds: Option<i64>, proven: bool) -> Vec<Cause> {
        let mut causes = Vec::new();
        if let (Some(rule), Some(unit)) = (&self.scheme().timestamp, unit)
            && rule.unit != unit
        {
            causes.push(Cause::TimestampUnit { configured: rule.unit.noun(), sender: unit.noun(), proven });
        }
        let Window { past, future } = self.own.checker.window();
        let seconds = |side: Duration| i64::try_from(side.as_secs()).unwrap_or(i64::MAX);
        if let Some(skew) = skew_seconds
            && (skew > seconds(past) || -skew > seconds(future))
        {
            causes.push(Cause::ClockOff { seconds: skew, proven });
        }
        causes
    }

    /// Another source's secret, or its path.
    fn of_others(&mut self, others: &[OtherSource<'_>]) -> Option<Vec<Cause>> {
        let request = self.request;
        let mut causes = Vec::new();
        for other in others.iter().take(SOURCES_MAX) {
            let Some(theirs) = &other.verifier.checked else { continue };
            let secrets = timeless(&theirs.checker);
            let source = || other.name.to_owned();
            if let Some(proof) = self.proof_by(self.scheme(), &secrets, &request) {
                causes.push(Cause::SecretOfOtherSource { secret: proof.secret, source: source() });
            }
            let there =
                Request { base_url: &theirs.base_url, other_base_url: &theirs.other_base_url, ..request };
            if self.proof_by(theirs.checker.scheme(), &secrets, &there).is_some() {
                causes.push(Cause::WrongPath { source: source(), path: other.path.to_owned() });
            }
        }
        (!causes.is_empty()).then_some(causes)
    }

    /// White space around the secret, or another way from its text to the key.
    fn with_other_keys(&mut self) -> Option<Vec<Cause>> {
        let (scheme, request) = (self.scheme(), self.request);
        for secret in timeless(&self.own.checker) {
            let name = || Arc::clone(&secret.name);
            let text = secret.secret.expose();
            let tried = |trials: &mut Self, text: &[u8]| {
                let secret = Secret::new(text).map(|secret| NamedSecret::new(name(), secret));
                secret.is_ok_and(|secret| trials.proof_by(scheme, &[secret], &request).is_some())
            };
            let bare = bare(text);
            if bare.len() < text.len() && tried(self, bare) {
                return Some(vec![Cause::SecretHasSpace { secret: name() }]);
            }
            for (before, after) in [("", "\n"), ("", "\r\n"), ("", " "), (" ", ""), ("", "\n\n"), ("\n", "")]
            {
                if tried(self, &[before.as_bytes(), bare, after.as_bytes()].concat()) {
                    return Some(vec![Cause::SenderSecretHasSpace { secret: name() }]);
                }
            }
            let Auth::Signature(rule) = &scheme.auth else { continue };
            if rule.algorithm.public_key().is_some() {
                continue;
            }
            for (sender, key) in key_rules(&rule.key, text) {
                let changed = with_rule(scheme, SignatureRule { key, ..rule.clone() });
                if self.proof_by(&changed, std::slice::from_ref(&secret), &request).is_some() {
                    let configured = noun(&rule.key, text);
                    return Some(vec![Cause::KeyEncoding { secret: name(), configured, sender }]);
                }
            }
        }
        None
    }

    fn with_other_urls(&mut self) -> Option<Vec<Cause>> {
        if !self.scheme().signs_url() {
            return None;
        }
        let request = self.request;
        let checker = checker(self.scheme(), &timeless(&self.own.checker))?;
        let base = request.base_url;
        let mut bases = vec![base.to_owned()];
        if let Some((scheme, rest)) = base.split_once("://") {
            bases.push(format!("{}://{rest}", if scheme == "https" { "http" } else { "https" }));
        }
        for name in ["host", "x-forwarded-host", "x-original-host"] {
            if let Some(host) = request.headers.get(name).and_then(|host| host.to_str().ok()) {
                bases.extend([format!("https://{host}"), format!("http://{host}")]);
            }
        }
        let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
        let bare = path.trim_end_matches('/');
        let question = if query.is_empty() { "" } else { "?" };
        let targets = [
            request.target.to_owned(),
            format!("{bare}/{question}{query}"),
            format!("{bare}{question}{query}"),
            path.to_owned(),
        ];
        for base_url in &bases {
            let other_base_url = other_port(base_url);
            for target in &targets {
                let moved = Request { base_url, other_base_url: &other_base_url, target, ..request };
                if self.proof(&checker, &moved).is_some() {
                    return Some(vec![Cause::OtherUrl { url: format!("{base_url}{target}") }]);
                }
            }
        }
        None
    }

    /// The signature in another encoding, by another algorithm, with another prefix or without.
    fn with_other_forms(&mut self) -> Option<Vec<Cause>> {
        let Auth::Signature(rule) = &self.scheme().auth else { return None };
        self.with_forms_at(rule, &[(rule.from.clone(), String::new())])
    }

    /// The same in another header, where there is none in its own: a sender may send several, the best of them there.
    fn with_other_headers(&mut self) -> Option<Vec<Cause>> {
        let Auth::Signature(rule) = &self.scheme().auth else { return None };
        if rule.from.iter().any(|place| matches!(self.request.find(place), Ok(Some(_)))) {
            return None;
        }
        let headers = shape::signature_headers(&self.request, &rule.from).into_iter().take(HEADERS_MAX);
        let at = |name: &http::HeaderName| {
            (vec![Locator::Header(name.clone())], format!(", in the header `{name}`"))
        };
        self.with_forms_at(rule, &headers.map(at).collect::<Vec<_>>())
    }

    fn with_forms_at(
        &mut self,
        rule: &SignatureRule,
        places: &[(Vec<Locator>, String)],
    ) -> Option<Vec<Cause>> {
        let macs = [Algorithm::HmacSha256, Algorithm::HmacSha1, Algorithm::HmacSha512, Algorithm::HmacSha384];
        let algorithms = if macs.contains(&rule.algorithm) { &macs[..] } else { &[rule.algorithm][..] };
        let prefixes = ["sha256=", "sha1=", "sha512=", "hmac-sha256=", "v1=", "v0=", "v1,"];
        let plain = matches!(rule.grammar, Grammar::Whole | Grammar::Prefix(_));
        let mut grammars = vec![(rule.grammar.clone(), String::new())];
        if plain {
            grammars.push((Grammar::Whole, ", with nothing before it".to_owned()));
            let with = |prefix: &str| (Grammar::Prefix(prefix.to_owned()), format!(", after `{prefix}`"));
            grammars.extend(prefixes.map(with));
        }
        let (request, secrets) = (self.request, timeless(&self.own.checker));
        for (from, place) in places {
            for (grammar, shape) in &grammars {
                for algorithm in algorithms {
                    for (name, encoding) in [
                        ("hex", Encoding::Hex),
                        ("base64", Encoding::Base64),
                        ("base64url", Encoding::Base64Url),
                    ] {
                        let changed = SignatureRule {
                            from: from.clone(),
                            grammar: grammar.clone(),
                            algorithm: *algorithm,
                            encoding,
                            ..rule.clone()
                        };
                        let changed = with_rule(self.scheme(), changed);
                        if self.proof_by(&changed, &secrets, &request).is_some() {
                            let sender = format!("{} in {name}{shape}{place}", algorithm.name());
                            return Some(vec![Cause::SignatureForm { sender }]);
                        }
                    }
                }
            }
        }
        None
    }

    /// The same secret, by the rules of another provider.
    fn of_other_providers(&mut self) -> Option<Vec<Cause>> {
        let (request, secrets) = (self.request, timeless(&self.own.checker));
        let mut providers = Vec::new();
        for preset in presets() {
            if has_headers_of(&preset.scheme, request.headers)
                && preset.scheme.config_names().is_empty()
                && self.proof_by(&preset.scheme, &secrets, &request).is_some()
            {
                providers.push(Arc::clone(&preset.name));
            }
        }
        providers.truncate(PROVIDERS_MAX);
        (!providers.is_empty()).then(|| vec![Cause::OtherProvider { providers, proven: true }])
    }

    fn with_other_bodies(&mut self) -> Option<Vec<Cause>> {
        let (request, body) = (self.request, self.request.body?);
        if matches!(self.scheme().auth, Auth::Token(_)) {
            return None;
        }
        let checker = checker(self.scheme(), &timeless(&self.own.checker))?;
        for (change, original) in body::originals(body) {
            if self.proof(&checker, &Request { body: Some(&original), ..request }).is_some() {
                return Some(vec![Cause::BodyChanged(change)]);
            }
            if !self.complete {
                break;
            }
        }
        None
    }

    /// What can be seen without a proof.
    fn hints(&self, refusal: Option<Refusal>) -> Vec<Cause> {
        let request = &self.request;
        let mut causes = self.time_hints(refusal);
        let is_twice = |name: &&http::HeaderName| {
            let twins = request.headers.keys().filter(|key| is_same_to_cgi(key.as_str(), name.as_str()));
            twins.count() > 1 || request.headers.get_all(*name).iter().count() > 1
        };
        if refusal == Some(Refusal::DuplicateValue) {
            let named = self.scheme().headers();
            causes.extend(named.filter(is_twice).map(|name| Cause::HeaderTwice { name: name.to_string() }));
        }
        if refusal.is_some_and(|refusal| {
            matches!(
                refusal,
                Refusal::SignatureMissing
                    | Refusal::SignatureMalformed
                    | Refusal::TokenMissing
                    | Refusal::TimestampMissing
                    | Refusal::IdMissing
                    | Refusal::ValueMissing
            )
        }) {
            causes.extend(self.provider_hint());
        }
        let is_told = !causes.is_empty() && refusal == Some(Refusal::TimestampMalformed);
        causes.extend(
            refusal.filter(|_| !is_told).and_then(|refusal| shape::seen(self.scheme(), request, refusal)),
        );
        if refusal == Some(Refusal::NoActiveSecret) {
            causes.push(Cause::NoActiveSecret);
        }
        let mismatch = refusal.is_some_and(|refusal| {
            matches!(refusal, Refusal::SignatureMismatch | Refusal::BodyMismatch | Refusal::TokenMismatch)
        });
        if let (true, Some(body)) = (mismatch && refusal != Some(Refusal::TokenMismatch), request.body) {
            let still = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\x78\x9c"]
                .iter()
                .any(|magic| body.starts_with(magic));
            if still || request.headers.contains_key(http::header::CONTENT_ENCODING) {
                causes.push(Cause::Compressed { still });
            }
            if body.is_empty() {
                causes.push(Cause::BodyEmpty);
            }
        }
        if mismatch && self.scheme().signs_url() {
            let url = format!("{}{}", request.base_url, request.target);
            causes.push(Cause::UrlSigned { url });
        }
        let is_published = self.own.checker.awaits_keys();
        if mismatch {
            causes.push(match &self.scheme().auth {
                Auth::Token(_) => Cause::UnknownToken,
                Auth::Signature(_) | Auth::Jwt(_) | Auth::Code(_) if is_published => Cause::PublishedKeys,
                Auth::Signature(_) | Auth::Jwt(_) | Auth::Code(_) => Cause::UnknownSecret,
            });
        }
        match (causes.is_empty(), refusal) {
            (false, _) => {}
            (true, Some(refusal)) => causes.push(Cause::Refused(refusal)),
            (true, None) if request.body.is_none() => causes.push(Cause::BodyMissing),
            (true, None) if is_published => causes.push(Cause::PublishedKeys),
            (true, None) => {}
        }
        causes
    }

    fn time_hints(&self, refusal: Option<Refusal>) -> Vec<Cause> {
        let is_time = matches!(refusal, Some(Refusal::TimestampTooOld | Refusal::TimestampTooNew));
        if is_time && matches!(self.scheme().auth, Auth::Jwt(_)) {
            return vec![Cause::TokenTime];
        }
        let secrets = timeless(&self.own.checker);
        let claimed = in_units(self.scheme()).into_iter().filter_map(|(unit, scheme)| {
            let at = checker(&scheme, &secrets)?.claimed_timestamp(&self.request)?;
            Some((unit, self.received_at.as_second() - at.as_second()))
        });
        let configured = self.scheme().timestamp.as_ref().map(|rule| rule.unit);
        let plausible = claimed.filter(|(unit, skew)| *unit == configured || skew.abs() < PLAUSIBLE_SECONDS);
        match plausible.min_by_key(|(_, skew)| skew.unsigned_abs()) {
            Some((unit, skew)) => self.time_causes(unit, Some(skew), false),
            None => Vec::new(),
        }
    }

    /// Providers whose signatures stand in a header that is there, and that the scheme knows nothing of.
    fn provider_hint(&self) -> Option<Cause> {
        let own: Vec<_> = self.scheme().proof_places().collect();
        let is_theirs = |place: &Locator| {
            matches!(place, Locator::Header(name)
                if name != http::header::AUTHORIZATION && self.request.headers.contains_key(name))
                && !own.contains(&place)
        };
        let providers = presets().iter().filter(|preset| preset.scheme.proof_places().any(is_theirs));
        let providers: Vec<_> =
            providers.map(|preset| Arc::clone(&preset.name)).take(PROVIDERS_MAX).collect();
        (!providers.is_empty()).then_some(Cause::OtherProvider { providers, proven: false })
    }
}

/// `scheme` with those of `secrets` that can be its keys; `None` when none can.
fn checker(scheme: &Scheme, secrets: &[NamedSecret]) -> Option<Checker> {
    let usable = match Checker::new(scheme.clone(), secrets.to_vec(), ANY_TIME) {
        Ok(checker) => return (!secrets.is_empty()).then_some(checker),
        Err(unusable) => {
            let is_usable = |index: &usize| !unusable.iter().any(|(bad, _)| bad == index);
            (0..secrets.len()).filter(is_usable).map(|index| secrets[index].clone()).collect::<Vec<_>>()
        }
    };
    if usable.is_empty() { None } else { Checker::new(scheme.clone(), usable, ANY_TIME).ok() }
}

/// The secrets of `checker`, valid at any time.
fn timeless(checker: &Checker) -> Vec<NamedSecret> {
    checker
        .given_secrets()
        .map(|given| NamedSecret::new(Arc::clone(&given.name), given.secret.clone()))
        .collect()
}

/// The scheme as it is, and with its timestamp in other units.
fn in_units(scheme: &Scheme) -> Vec<(Option<Unit>, Scheme)> {
    let Some(configured) = scheme.timestamp.as_ref().map(|rule| rule.unit) else {
        return vec![(None, scheme.clone())];
    };
    let others = Unit::ALL.into_iter().filter(|unit| *unit != configured);
    let in_unit = |unit| {
        let mut scheme = scheme.clone();
        if let Some(rule) = &mut scheme.timestamp {
            rule.unit = unit;
        }
        (Some(unit), scheme)
    };
    std::iter::once(configured).chain(others).map(in_unit).collect()
}

/// What of a secret can be seen: without white space and invisible characters around it.
fn bare(text: &[u8]) -> &[u8] {
    const UNSEEN: [&str; 3] = ["\u{feff}", "\u{200b}", "\u{a0}"];
    let mut bare = text.trim_ascii();
    while let Some(rest) = UNSEEN.iter().find_map(|unseen| {
        bare.strip_prefix(unseen.as_bytes()).or_else(|| bare.strip_suffix(unseen.as_bytes()))
    }) {
        bare = rest.trim_ascii();
    }
    bare
}

fn with_rule(scheme: &Scheme, rule: SignatureRule) -> Scheme {
    Scheme { auth: Auth::Signature(rule), ..scheme.clone() }
}

fn has_headers_of(scheme: &Scheme, headers: &HeaderMap) -> bool {
    scheme.proof_places().any(|place| matches!(place, Locator::Header(name) if headers.contains_key(name)))
}

/// The prefix that providers put before a secret in base64.
const PREFIX: &str = "whsec_";

/// Other ways from the text of a secret to a key.
fn key_rules(rule: &KeyRule, text: &[u8]) -> Vec<(String, KeyRule)> {
    let mut strip = rule.strip.clone();
    strip.push(PREFIX.to_owned());
    let with = |encoding, strip: &[String]| KeyRule {
        encoding,
        strip: strip.to_vec(),
        unprefixed: None,
        ..rule.clone()
    };
    let rules = [
        with(KeyEncoding::Utf8, &[]),
        with(KeyEncoding::Utf8, &strip),
        with(KeyEncoding::Base64, &strip),
        with(KeyEncoding::Hex, &strip),
    ];
    rules.into_iter().filter(|other| other != rule).map(|other| (noun(&other, text), other)).collect()
}

/// What `rule` makes of a secret with this text.
fn noun(rule: &KeyRule, text: &[u8]) -> String {
    let prefix = rule.strip.iter().find(|prefix| text.starts_with(prefix.as_bytes()));
    let encoding = match (prefix, rule.unprefixed) {
        (None, Some(unprefixed)) => unprefixed,
        (Some(_), _) | (None, None) => rule.encoding,
    };
    let what = match encoding {
        KeyEncoding::Utf8 => "the text as it is, not decoded",
        KeyEncoding::Base64 => "what the text is the base64 of",
        KeyEncoding::Hex => "what the text is the hex of",
    };
    match prefix {
        Some(prefix) => format!("{what}, without `{prefix}`"),
        None if text.starts_with(PREFIX.as_bytes()) => format!("{what}, with `{PREFIX}`"),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::reader::{Problems, read_document};
    use crate::verify::{Enforcement, Message, Signer, preset};

    const NOW: i64 = 1_776_871_800;
    const TEXT: &str = "secret-0123456789";
    const OTHER: &str = "another-secret-0123456789";
    const BASE64: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";
    const BODY: &str = r#"{"id":"evt-1","type":"t","amount":1.50}"#;
    const BASE_URL: &str = "https://hooks.example.com";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn scheme(text: &str) -> Scheme {
        match preset(text) {
            Some(preset) => preset.scheme.clone(),
            None => {
                let problems = Problems::default();
                let scheme = read_document(text, &problems, |table| Scheme::read(&table));
                scheme.unwrap_or_else(|| panic!("{:?}", problems.into_sorted()))
            }
        }
    }

    fn named(name: &str, text: &str) -> NamedSecret {
        NamedSecret::new(name, Secret::new(text).unwrap())
    }

    fn verifier(of: &str, secrets: Vec<NamedSecret>) -> Verifier {
        let url = Some(BASE_URL.to_owned());
        Verifier::new("x".into(), scheme(of), secrets, Window::default(), Enforcement::Enforce, url).unwrap()
    }

    /// A request, right at first.
    #[derive(Clone)]
    struct Sent {
        headers: HeaderMap,
        body: Vec<u8>,
        target: String,
    }

    impl Sent {
        fn by(of: &Scheme, secret: &str, second: i64) -> Self {
            let (url, body) = (format!("{BASE_URL}/in"), Bytes::from_static(BODY.as_bytes()));
            let message =
                Message { method: &Method::POST, url: &url, id: Some("id-1"), event: None, body: &body };
            let signer = Signer::new(of.clone(), &Secret::new(secret).unwrap()).unwrap();
            let headers = signer.sign(&message, at(second)).unwrap();
            Self { headers, body: body.to_vec(), target: "/in".to_owned() }
        }

        fn of(of: &str, secret: &str) -> Self {
            Self::by(&scheme(of), secret, NOW)
        }

        /// Its own body, signed.
        fn signed_anew(self, of: &str, secret: &str) -> Self {
            let (url, body) = (format!("{BASE_URL}/in"), Bytes::from(self.body.clone()));
            let message =
                Message { method: &Method::POST, url: &url, id: Some("id-1"), event: None, body: &body };
            let signer = Signer::new(scheme(of), &Secret::new(secret).unwrap()).unwrap();
            Self { headers: signer.sign(&message, at(NOW)).unwrap(), ..self }
        }

        fn with_body(self, body: impl Into<Vec<u8>>) -> Self {
            Self { body: body.into(), ..self }
        }
    }

    fn explain(verifier: &Verifier, sent: &Sent, others: &[OtherSource<'_>]) -> Vec<Cause> {
        let (method, headers) = (&Method::POST, &sent.headers);
        let captured = Captured {
            method,
            target: &sent.target,
            headers,
            body: Some(&sent.body),
            received_at: at(NOW),
            refused: None,
        };
        let explanation = verifier.explain(&captured, others);
        assert!(explanation.complete);
        let told = format!(
            "{explanation:?} {}",
            explanation.causes.iter().map(Cause::to_string).collect::<String>()
        );
        for secret in [TEXT, OTHER, BASE64] {
            assert!(!told.contains(secret), "{told}");
        }
        explanation.causes
    }

    #[track_caller]
    fn check(verifier: &Verifier, sent: &Sent, expected: Cause) {
        assert_eq!(explain(verifier, sent, &[]), [expected]);
    }

    #[test]
    fn what_verifies_is_said_to() {
        let github = verifier("github", vec![named("only", TEXT)]);
        check(&github, &Sent::of("github", TEXT), Cause::Verifies);
        let sent = Sent::of("github", TEXT);
        let captured = Captured {
            method: &Method::POST,
            target: &sent.target,
            headers: &sent.headers,
            body: Some(&sent.body),
            received_at: at(NOW),
            refused: Some(Refusal::Replayed),
        };
        assert_eq!(github.explain(&captured, &[]).causes, [Cause::Replayed]);
        let refused = Some(Refusal::IdMissing);
        assert_eq!(github.explain(&Captured { refused, ..captured }, &[]).causes, [Cause::Verifies]);
        let bare = sent.clone().without("x-github-delivery");
        let explanation = github.explain(&Captured { refused, headers: &bare.headers, ..captured }, &[]);
        assert_eq!((explanation.refusal, explanation.causes), (refused, vec![Cause::NoDeliveryId]));
        let explanation = github.explain(&Captured { body: None, refused: None, ..captured }, &[]);
        assert_eq!((explanation.refusal, explanation.causes), (None, vec![Cause::BodyMissing]));
    }

    #[test]
    fn a_secret_of_this_source_that_is_not_valid_is_named() {
        let expired = NamedSecret { not_after: Some(at(NOW - 60)), ..named("old", OTHER) };
        let early = NamedSecret { not_before: Some(at(NOW + 60)), ..named("next", BASE64) };
        let source = verifier("github", vec![named("current", TEXT), expired, early]);
        let cause = Cause::SecretExpired { secret: "old".into(), not_after: at(NOW - 60) };
        check(&source, &Sent::of("github", OTHER), cause);
        let cause = Cause::SecretNotYetValid { secret: "next".into(), not_before: at(NOW + 60) };
        check(&source, &Sent::of("github", BASE64), cause);
    }

    #[test]
    fn another_source_is_named_for_its_secret_or_its_path() {
        let own = verifier("github", vec![named("own", TEXT)]);
        let (twin, stripe) =
            (verifier("github", vec![named("theirs", OTHER)]), verifier("stripe", vec![named("s", OTHER)]));
        let others = [
            OtherSource { name: "twin", path: "/twin", verifier: &twin },
            OtherSource { name: "pay", path: "/pay", verifier: &stripe },
        ];
        let secret = Cause::SecretOfOtherSource { secret: "theirs".into(), source: "twin".into() };
        let path = Cause::WrongPath { source: "twin".into(), path: "/twin".into() };
        let pay = Cause::SecretOfOtherSource { secret: "s".into(), source: "pay".into() };
        assert_eq!(explain(&own, &Sent::of("github", OTHER), &others), [secret, path, pay]);
        let path = Cause::WrongPath { source: "pay".into(), path: "/pay".into() };
        assert_eq!(explain(&own, &Sent::of("stripe", OTHER), &others), [path]);
    }

    #[test]
    fn white_space_around_a_secret_is_found_on_either_side() {
        for space in ["\n", "\r\n", " "] {
            let padded = format!("{TEXT}{space}");
            let configured = verifier("github", vec![named("only", &padded)]);
            check(&configured, &Sent::of("github", TEXT), Cause::SecretHasSpace { secret: "only".into() });
            let bare = verifier("github", vec![named("only", TEXT)]);
            check(&bare, &Sent::of("github", &padded), Cause::SenderSecretHasSpace { secret: "only".into() });
        }
        // What editors put before it, and what comes along with a copy from a page.
        for unseen in ["\u{feff}{}\n", "{}\u{200b}", "\u{a0}{}"] {
            let configured = verifier("github", vec![named("only", &unseen.replace("{}", TEXT))]);
            check(&configured, &Sent::of("github", TEXT), Cause::SecretHasSpace { secret: "only".into() });
        }
        let token = verifier("ownstak", vec![named("only", &format!("{TEXT}\n"))]);
        check(&token, &Sent::of("ownstak", TEXT), Cause::SecretHasSpace { secret: "only".into() });
    }

    #[test]
    fn another_way_from_the_text_to_the_key_is_found() {
        let keyed = |key: &str| {
            scheme(&format!(
                "auth = 'signature'\nsignature = {{ from = ['header:x-sig'], algorithm = 'hmac-sha256', encoding = 'hex' }}\n\
                 signed = '{{body}}'\nkey = {key}"
            ))
        };
        let check = |configured: &str, sender: &str, secret: &str, words: [&str; 2]| {
            let configured = Verifier::new(
                "x".into(),
                keyed(configured),
                vec![named("only", secret)],
                Window::default(),
                Enforcement::Enforce,
                None,
            );
            let causes = explain(&configured.unwrap(), &Sent::by(&keyed(sender), secret, NOW), &[]);
            let text = causes[0].to_string();
            assert_eq!(causes.len(), 1);
            assert!(matches!(causes[0], Cause::KeyEncoding { .. }), "{causes:?}");
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        let (utf8, base64, hex) =
            ("{ encoding = 'utf8' }", "{ encoding = 'base64', strip = ['whsec_'] }", "{ encoding = 'hex' }");
        check(base64, utf8, BASE64, ["not decoded, with `whsec_`", "base64 of, without `whsec_`"]);
        check(utf8, base64, BASE64, ["is the text as it is", "sender's is what the text is the base64 of"]);
        let digits = "7365637265742d307365637265742d30";
        check(base64, hex, digits, ["base64", "sender's is what the text is the hex of"]);
        check(
            hex,
            base64,
            digits,
            ["is what the text is the hex of", "sender's is what the text is the base64"],
        );
        check(hex, utf8, digits, ["hex", "sender's is the text as it is, not decoded"]);
    }

    #[test]
    fn what_happened_to_the_body_is_found() {
        let github = verifier("github", vec![named("only", TEXT)]);
        let sent = || Sent::of("github", TEXT);
        let changed =
            |body: &str, change| check(&github, &sent().with_body(body), Cause::BodyChanged(change));
        changed(&format!("{BODY}\n"), BodyChange::NewlineAdded);
        changed(&format!("{BODY}\r\n"), BodyChange::NewlineAdded);
        changed(r#"{"id": "evt-1", "type": "t", "amount": 1.50}"#, BodyChange::JsonReencoded);
        changed(
            "{\n  \"id\": \"evt-1\",\n  \"type\": \"t\",\n  \"amount\": 1.50\n}\n",
            BodyChange::JsonReencoded,
        );
        // Its keys had been sorted before.
        let sorted = r#"{"amount":2,"id":"evt-1","type":"t"}"#;
        let resorted = Sent { body: sorted.into(), ..sent() };
        let resorted =
            resorted.signed_anew("github", TEXT).with_body(r#"{"id": "evt-1", "type": "t", "amount": 2}"#);
        check(&github, &resorted, Cause::BodyChanged(BodyChange::JsonReencoded));
        changed(r#"{"id":"evt\u002d1","type":"t","amount":1.50}"#, BodyChange::JsonReencoded);
        let hints = explain(&github, &sent().with_body(&b"\x1f\x8b\x08\0"[..]), &[]);
        assert_eq!(hints, [Cause::Compressed { still: true }, Cause::UnknownSecret]);
        let mut unpacked = sent().with_body("{}");
        unpacked.headers.insert("content-encoding", "gzip".parse().unwrap());
        assert_eq!(
            explain(&github, &unpacked, &[]),
            [Cause::Compressed { still: false }, Cause::UnknownSecret]
        );
        assert_eq!(explain(&github, &sent().with_body(""), &[]), [Cause::BodyEmpty, Cause::UnknownSecret]);
        let stripe = verifier("stripe", vec![named("only", TEXT)]);
        let added = Sent::of("stripe", TEXT).with_body(format!("{BODY}\n"));
        check(&stripe, &added, Cause::BodyChanged(BodyChange::NewlineAdded));
    }

    #[test]
    fn clocks_and_units_are_told_apart() {
        let webhooks = "auth = 'signature'\n\
            signature = { from = ['header:x-sig'], algorithm = 'hmac-sha256', encoding = 'hex' }\n\
            signed = '{timestamp}.{body}'\ntimestamp = { at = 'header:x-time', unit = 'UNIT' }";
        let (seconds, milliseconds) = (webhooks.replace("UNIT", "s"), webhooks.replace("UNIT", "ms"));
        let unit = |configured, sender, proven| Cause::TimestampUnit { configured, sender, proven };
        let source = verifier(&seconds, vec![named("only", TEXT)]);
        check(&source, &Sent::of(&milliseconds, TEXT), unit("seconds", "milliseconds", true));
        let other = verifier(&milliseconds, vec![named("only", TEXT)]);
        check(&other, &Sent::of(&seconds, TEXT), unit("milliseconds", "seconds", true));
        let off = |seconds, proven| Cause::ClockOff { seconds, proven };
        check(&source, &Sent::by(&scheme(&seconds), TEXT, NOW - 301), off(301, true));
        check(&source, &Sent::by(&scheme(&seconds), TEXT, NOW + 7_200), off(-7_200, true));
        // Of an unknown sender.
        let causes = explain(&source, &Sent::by(&scheme(&seconds), OTHER, NOW - 3_600), &[]);
        assert_eq!(causes, [off(3_600, false), Cause::UnknownSecret]);
        check(&source, &Sent::of(&milliseconds, OTHER), unit("seconds", "milliseconds", false));
        let mut unread = Sent::by(&scheme(&seconds), TEXT, NOW - 3_600);
        unread.body.clear();
        let captured = Captured {
            method: &Method::POST,
            target: "/in",
            headers: &unread.headers,
            body: None,
            received_at: at(NOW),
            refused: None,
        };
        assert_eq!(source.explain(&captured, &[]).causes, [off(3_600, false)]);
    }

    #[test]
    fn another_provider_or_another_form_is_found() {
        let github = verifier("github", vec![named("only", TEXT)]);
        let causes = explain(&github, &Sent::of("hostwares", TEXT), &[]);
        let Cause::OtherProvider { providers, proven: true } = &causes[0] else { panic!("{causes:?}") };
        assert!(providers.iter().any(|name| &**name == "hostwares"), "{providers:?}");
        let causes = explain(&github, &Sent::of("stripe", OTHER), &[]);
        let missing =
            Cause::Missing { what: Part::Signature, at: "the header `x-hub-signature-256`".to_owned() };
        let other = Cause::OtherProvider { providers: vec!["stripe".into()], proven: false };
        assert_eq!(causes, [other, missing]);

        let mut bare = Sent::of("github", TEXT);
        let signature = bare.headers["x-hub-signature-256"].to_str().unwrap()["sha256=".len()..].to_owned();
        bare.headers.insert("x-hub-signature-256", signature.parse().unwrap());
        let causes = explain(&github, &bare, &[]);
        assert_eq!(
            causes[0].to_string(),
            "the signature is right as hmac-sha256 in hex, with nothing before it, not as the scheme says"
        );
        let encoded = Encoding::Base64.encode(&Encoding::Hex.decode(signature.as_bytes()).unwrap());
        bare.headers.insert("x-hub-signature-256", format!("sha256={encoded}").parse().unwrap());
        assert!(matches!(&explain(&github, &bare, &[])[..], [Cause::SignatureForm { .. }]));

        let mut twice = Sent::of("github", TEXT);
        let value = twice.headers["x-hub-signature-256"].clone();
        twice.headers.append("x-hub-signature-256", value);
        check(&github, &twice, Cause::HeaderTwice { name: "x-hub-signature-256".to_owned() });
        check(&github, &Sent::of("github", OTHER), Cause::UnknownSecret);
    }

    fn header(sent: &Sent, name: &str) -> String {
        sent.headers[name].to_str().unwrap().to_owned()
    }

    impl Sent {
        fn with(mut self, name: &'static str, value: &str) -> Self {
            self.headers.insert(name, value.parse().unwrap());
            self
        }

        fn without(mut self, name: &str) -> Self {
            self.headers.remove(name);
            self
        }
    }

    /// The one cause, as label and words.
    #[track_caller]
    fn says(verifier: &Verifier, sent: &Sent, label: &str, words: &[&str]) {
        let causes = explain(verifier, sent, &[]);
        let [cause] = &causes[..] else { panic!("{causes:?}") };
        let text = cause.to_string();
        assert_eq!(cause.label(), label, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    /// A header that was plainly not there had been explained with nothing at all.
    #[test]
    fn what_is_missing_or_empty_is_named_with_its_place() {
        let (github, svix) =
            (verifier("github", vec![named("only", TEXT)]), verifier("svix", vec![named("only", BASE64)]));
        let own = "x-hub-signature-256";
        let bare = Sent::of("github", TEXT).without(own);
        says(&github, &bare, "signature_missing", &["the header `x-hub-signature-256` is not there"]);
        says(
            &github,
            &bare.with(own, ""),
            "signature_empty",
            &["the header `x-hub-signature-256`", "nothing in it"],
        );
        says(
            &github,
            &Sent::of("github", TEXT).with(own, "sha256="),
            "signature_malformed",
            &["hmac-sha256 in hex would be right"],
        );
        let sent = || Sent::of("svix", BASE64);
        says(
            &svix,
            &sent().without("svix-timestamp"),
            "timestamp_missing",
            &["`svix-timestamp` is not there"],
        );
        says(&svix, &sent().without("svix-id"), "id_missing", &["`svix-id` is not there"]);
        says(&svix, &sent().with("svix-id", ""), "id_empty", &["`svix-id` has nothing in it"]);
        says(
            &svix,
            &sent().with("svix-timestamp", "soon"),
            "timestamp_malformed",
            &["`svix-timestamp`", "seconds would be right"],
        );
        says(&svix, &sent().with("svix-id", "a.b"), "id_malformed", &["`svix-id`"]);
        let stripe = verifier("stripe", vec![named("only", TEXT)]);
        let signature = header(&Sent::of("stripe", TEXT), "stripe-signature");
        let (_, alone) = signature.split_once(',').unwrap();
        let untimed = Sent::of("stripe", TEXT).with("stripe-signature", alone);
        says(&stripe, &untimed, "timestamp_missing", &["`t=` in the header `stripe-signature`"]);
        let token = verifier("ownstak", vec![named("only", TEXT)]);
        let bare = Sent::of("ownstak", TEXT).without("authorization");
        says(&token, &bare, "token_missing", &["`authorization` is not there"]);
    }

    #[test]
    fn a_signature_of_another_shape_is_told_from_one_of_another_secret() {
        let github = verifier("github", vec![named("only", TEXT)]);
        let own = "x-hub-signature-256";
        let shaped = |value: &str, words: &[&str]| {
            says(&github, &Sent::of("github", OTHER).with(own, value), "signature_malformed", words);
        };
        shaped(&"ab".repeat(32), &["there is no `sha256=` before it"]);
        shaped(&format!("sha1={}", "ab".repeat(20)), &["it begins with `sha1=`"]);
        shaped(&format!("sha256={}", "ab".repeat(20)), &["it has 20 bytes, as those of SHA-1 have"]);
        shaped(&format!("sha256={}", "ab".repeat(17)), &["it has 17 bytes; hmac-sha256"]);
        shaped(
            &format!("sha256={}", Encoding::Base64.encode(&[1; 32])),
            &["it is base64, and hmac-sha256 in hex"],
        );
        shaped("sha256=hello", &["it is not hex, or cut off"]);
        let stripe = verifier("stripe", vec![named("only", TEXT)]);
        let old = header(&Sent::of("stripe", TEXT), "stripe-signature").replace("v1=", "v0=");
        says(
            &stripe,
            &Sent::of("stripe", TEXT).with("stripe-signature", &old),
            "signature_malformed",
            &["only `t`, `v0`", "`v1=`"],
        );
        let nothing = Sent::of("stripe", TEXT).with("stripe-signature", "hello");
        says(&stripe, &nothing, "signature_malformed", &["nothing of that form"]);
        let junk: Vec<_> = (0..17).map(|_| format!("v1={}", "ab".repeat(32))).collect();
        let many = format!("t={NOW},{}", junk.join(","));
        says(
            &stripe,
            &Sent::of("stripe", TEXT).with("stripe-signature", &many),
            "too_many_signatures",
            &["too many"],
        );
    }

    /// GitHub's old header, or a proxy that renames: the secret is right, and the header is another.
    #[test]
    fn a_right_signature_in_another_header_is_found() {
        let github = verifier("github", vec![named("only", TEXT)]);
        let sha1 = "auth = 'signature'\nsignature = { from = ['header:x-old-signature'], \
            grammar = { kind = 'prefix', text = 'sha1=' }, algorithm = 'hmac-sha1', encoding = 'hex' }\nsigned = '{body}'";
        let words = ["hmac-sha1 in hex, after `sha1=`, in the header `x-old-signature`"];
        says(&github, &Sent::of(sha1, TEXT), "signature_form", &words);
        let causes = explain(&github, &Sent::of(sha1, OTHER), &[]);
        assert!(causes.iter().any(|cause| cause.label() == "signature_missing"), "{causes:?}");
    }

    #[test]
    fn a_secret_that_is_presented_in_another_way_is_found() {
        let bearer = verifier("ownstak", vec![named("only", TEXT)]);
        let sent = || Sent::of("ownstak", TEXT).without("authorization");
        let form =
            |sent: &Sent, words: &str| says(&bearer, sent, "token_form", &["`only` is presented", words]);
        form(&sent().with("authorization", &format!("Token {TEXT}")), "after `Token`,");
        form(
            &sent().with("authorization", &format!("Basic {}", Encoding::Base64.encode(TEXT.as_bytes()))),
            "after `Basic` in base64,",
        );
        form(&sent().with("x-api-key", TEXT), "alone, in the header `x-api-key`");
        says(&bearer, &Sent::of("ownstak", OTHER), "unknown_token", &["the secret of no source"]);

        let basic = "auth = 'token'\ntoken = { at = 'header:authorization', basic = true }";
        let (own, other_password, other_name) =
            ("name:password-0123", "name:password-0124", "nome:password-0123");
        let source = verifier(basic, vec![named("only", own)]);
        for (theirs, half) in
            [(other_password, "only the password differs"), (other_name, "only the name differs")]
        {
            let causes = explain(&source, &Sent::of(basic, theirs), &[]);
            assert_eq!(causes[0].label(), "basic_half", "{causes:?}");
            assert!(
                causes[0].to_string().contains(half) && !format!("{causes:?}").contains("password-"),
                "{causes:?}"
            );
        }
        says(&source, &Sent::of(basic, "nome:other-0123456"), "unknown_token", &[]);
    }

    #[test]
    fn where_nothing_is_valid_or_the_url_is_signed_it_is_said() {
        let expired = NamedSecret { not_after: Some(at(NOW - 60)), ..named("old", TEXT) };
        let source = verifier("github", vec![expired]);
        says(
            &source,
            &Sent::of("github", OTHER),
            "no_active_secret",
            &["no secret of this source was valid"],
        );
        let signed = "auth = 'signature'\nsignature = { from = ['header:x-sig'], algorithm = 'hmac-sha256', encoding = 'hex' }\n\
            signed = '{url}{body}'";
        let source = verifier(signed, vec![named("only", TEXT)]);
        let causes = explain(&source, &Sent::of(signed, OTHER), &[]);
        assert_eq!(causes, [Cause::UrlSigned { url: format!("{BASE_URL}/in") }, Cause::UnknownSecret]);
        let demanded = "auth = 'token'\ntoken = { at = 'header:x-token' }\nrequire = [{ at = 'header:x-version', equals = '1' }]";
        let source = verifier(demanded, vec![named("only", TEXT)]);
        let sent = Sent::of(demanded, TEXT).with("x-version", "2");
        says(&source, &sent, "value_mismatch", &["the header `x-version` is another one"]);
    }

    #[test]
    fn another_scheme_or_host_of_the_url_is_found() {
        let signed = "auth = 'signature'\nsignature = { from = ['header:x-sig'], algorithm = 'hmac-sha256', encoding = 'hex' }\n\
            signed = '{url}{body}'";
        let told = |public_url: &str| {
            let secrets = vec![named("only", TEXT)];
            let url = Some(public_url.to_owned());
            Verifier::new("x".into(), scheme(signed), secrets, Window::default(), Enforcement::Enforce, url)
                .unwrap()
        };
        let url = || Cause::OtherUrl { url: format!("{BASE_URL}/in") };
        check(&told("http://hooks.example.com"), &Sent::of(signed, TEXT), url());
        for name in ["host", "x-forwarded-host"] {
            check(
                &told("https://inner.example"),
                &Sent::of(signed, TEXT).with(name, "hooks.example.com"),
                url(),
            );
        }
    }

    #[test]
    fn a_claim_that_differs_is_named_without_its_value() {
        let tokens = |issuer: &str| {
            format!(
                "auth = 'jwt'\njwt = {{ at = 'header:authorization', algorithms = ['HS256'], claims = {{ iss = '{issuer}' }}, required = ['exp'] }}"
            )
        };
        let secret = "secret-0123456789-0123456789-0123456789";
        let source = verifier(&tokens("a"), vec![named("only", secret)]);
        says(&source, &Sent::of(&tokens("b"), secret), "value_mismatch", &["the claim `iss` of the token"]);
        let torn = Sent::of(&tokens("a"), secret).with("authorization", "Bearer a.b");
        says(&source, &torn, "token_malformed", &["no token of three parts"]);
    }

    #[test]
    fn another_url_is_found() {
        let signed = "auth = 'signature'\nsignature = { from = ['header:x-sig'], algorithm = 'hmac-sha256', encoding = 'hex' }\n\
            signed = '{url}{body}'";
        let source = verifier(signed, vec![named("only", TEXT)]);
        let mut sent = Sent::of(signed, TEXT);
        sent.target = "/in/".to_owned();
        check(&source, &sent, Cause::OtherUrl { url: format!("{BASE_URL}/in") });
    }

    #[test]
    fn a_body_that_is_too_large_for_all_of_it_is_said_to_be() {
        let secrets = (0..16).map(|n| named(&format!("s{n}"), &format!("{TEXT}{n}"))).collect();
        let github = verifier("github", secrets);
        let body = vec![b'x'; 8 << 20];
        let sent = Sent::of("github", OTHER);
        let captured = Captured {
            method: &Method::POST,
            target: "/in",
            headers: &sent.headers,
            body: Some(&body),
            received_at: at(NOW),
            refused: None,
        };
        let explanation = github.explain(&captured, &[]);
        assert!(!explanation.complete);
        assert_eq!(explanation.causes, [Cause::UnknownSecret]);
    }
}
