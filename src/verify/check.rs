//! Checks one request against one scheme and its secrets, in the order that costs least: what the head tells, then
//! the signature over the raw bytes, then freshness, then the delivery id.

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::code::Code;
use super::handshake::{Handshake, TOKEN_BYTES_MAX};
use super::jwt::{self, JwtRule};
use super::key::{Key, validity};
use super::locate::{Locator, Request};
use super::rotation::SecretUse;
use super::scheme::{Auth, BodyDigest, Scheme, SignatureRule, TimestampPlace, TimestampRule, TokenRule};
use super::signed::{Keys, Signed};
use super::template::{Pieces, Template};
use super::token::Token;
use super::window::Window;
use super::{Coverage, KeyError, NamedSecret, Refusal};
use crate::clock::Timestamp;
use crate::secret::Secret;

/// A sender that rotates its secrets sends a few; each is decoded and compared.
const SIGNATURES_MAX: usize = 16;
/// Lists of signatures, each with a timestamp of its own: one per secret of a rotation.
const GROUPS_MAX: usize = 4;
/// Ids are UUIDs or short texts; they are stored, indexed, and sent on in a header.
const ID_BYTES_MAX: usize = 256;
/// The limit that other receivers set for an id that stands among other signed parts.
const SIGNED_ID_BYTES_MAX: usize = 128;
/// Event types are stored and sent on in a header, too.
const EVENT_BYTES_MAX: usize = 256;

/// A scheme with its secrets.
#[derive(Debug)]
pub(super) struct Checker {
    scheme: Scheme,
    coverage: Coverage,
    secrets: Vec<HeldSecret>,
    /// What stands for the name of a secret where the sender's published keys are used, since there are no secrets.
    published: Option<Arc<str>>,
    window: Window,
}

/// What a request that passed has proven.
#[derive(Debug)]
pub struct Proof {
    /// The name of the secret that made the signature, or of the token.
    pub secret: Arc<str>,
    /// How many seconds the timestamp lay behind the clock; `None` without a timestamp.
    pub skew_seconds: Option<i64>,
    /// The provider's identifier that a retry repeats.
    pub delivery_id: Option<String>,
    /// The event type.
    pub event: Option<String>,
    /// SHA-256 of exactly the signed bytes, where delivery id or timestamp are not among them.
    pub signed_digest: Option<[u8; 32]>,
    /// Of the body, where it has been computed.
    pub(super) body_digest: Option<[u8; 32]>,
}

/// What a request puts forward: well-formed, not yet believed.
struct Evidence<'a> {
    claim: Claim<'a>,
    timestamp: Option<(String, Timestamp)>,
    /// Looked up only where the template needs it.
    signed_id: Option<String>,
}

enum Claim<'a> {
    /// `None` when it may still come with the body.
    Token(Option<Cow<'a, [u8]>>),
    Signatures(&'a SignatureRule, Vec<Vec<u8>>),
    /// `None` when it may still come with the body.
    Jwt(&'a JwtRule, Option<jwt::Token<'a>>),
    /// Found once the body has been read.
    Code(Code),
}

impl Checker {
    /// Decodes the secrets; an error per secret that cannot be used, by its index.
    pub(super) fn new(
        scheme: Scheme,
        secrets: Vec<NamedSecret>,
        window: Window,
    ) -> Result<Self, Vec<(usize, KeyError)>> {
        let mut held = Vec::with_capacity(secrets.len());
        let mut errors = Vec::new();
        for (index, secret) in secrets.into_iter().enumerate() {
            match HeldSecret::new(&scheme.auth, secret) {
                Ok(secret) => held.push(secret),
                Err(error) => errors.push((index, error)),
            }
        }
        let coverage = scheme.coverage();
        let published = (scheme.keys.is_some() && held.is_empty()).then(|| "published".into());
        if errors.is_empty() {
            Ok(Self { scheme, coverage, secrets: held, published, window })
        } else {
            Err(errors)
        }
    }

    pub(super) fn coverage(&self) -> Coverage {
        self.coverage
    }

    pub(super) fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.secrets.iter().map(|secret| &secret.given.name).chain(&self.published)
    }

    /// Whether nothing verifies without the keys that the sender publishes.
    pub(super) fn awaits_keys(&self) -> bool {
        self.published.is_some()
    }

    pub(super) fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    pub(super) fn window(&self) -> Window {
        self.window
    }

    pub(super) fn given_secrets(&self) -> impl Iterator<Item = &NamedSecret> {
        self.secrets.iter().map(|secret| &secret.given)
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = SecretUse> {
        self.secrets.iter().map(|secret| SecretUse {
            name: Arc::clone(&secret.given.name),
            not_before: secret.given.not_before,
            not_after: secret.given.not_after,
            since: None,
            last_used: None,
            uses: 0,
        })
    }

    /// Where the sender publishes the keys of `request`, when there are none here.
    pub(super) fn keys_url(&self, request: &Request<'_>) -> Result<Option<String>, Refusal> {
        match (&self.scheme.keys, &self.published) {
            (Some(source), Some(_)) => source.url(request).map(Some),
            (None, _) | (_, None) => Ok(None),
        }
    }

    /// Reads a document with the sender's keys.
    pub(super) fn read_published(&self, document: &[u8]) -> Result<Published, KeyError> {
        let name = self.published.clone().ok_or_else(|| KeyError("no keys are awaited here".to_owned()))?;
        let secret = Secret::new(document).map_err(|blank| KeyError(blank.to_string()))?;
        let (not_before, not_after) = validity(document).unzip();
        let secret = NamedSecret { name, secret, not_before, not_after };
        HeldSecret::new(&self.scheme.auth, secret).map(Published)
    }

    /// Refuses what the head of `request` shows to be hopeless.
    pub(super) fn precheck(&self, request: &Request<'_>, now: Timestamp) -> Result<(), Refusal> {
        self.try_groups(|group| self.precheck_group(request, now, group))
    }

    /// Checks a request whose last byte had been read at `now`, with the sender's published keys where it has to be.
    pub(super) fn check(
        &self,
        request: &Request<'_>,
        published: Option<&Published>,
        now: Timestamp,
    ) -> Result<Proof, Refusal> {
        self.try_groups(|group| self.check_group(request, published, now, group))
    }

    /// Tries one list of signatures after the other, where there are several; the first refusal stands.
    fn try_groups<T>(&self, mut attempt: impl FnMut(usize) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let first = attempt(0);
        if first.is_ok()
            || !matches!(&self.scheme.auth, Auth::Signature(rule) if rule.grammar.groups().is_some())
        {
            return first;
        }
        (1..GROUPS_MAX).find_map(|group| attempt(group).ok()).map_or(first, Ok)
    }

    fn precheck_group(&self, request: &Request<'_>, now: Timestamp, group: usize) -> Result<(), Refusal> {
        let evidence = self.evidence(request, group)?;
        match &evidence.claim {
            Claim::Token(Some(token)) => drop(self.match_token(token, now)?),
            Claim::Jwt(rule, Some(token)) => {
                if self.published.is_none() {
                    drop(self.match_composed(std::slice::from_ref(&token.signed), None, now)?);
                }
                rule.check(token, request, self.window, now)?;
            }
            Claim::Token(None) | Claim::Jwt(_, None) | Claim::Signatures(..) | Claim::Code(_) => {
                if self.active(None, now).next().is_none() && self.published.is_none() {
                    return Err(Refusal::NoActiveSecret);
                }
            }
        }
        self.check_freshness(&evidence, now)
    }

    fn check_group(
        &self,
        request: &Request<'_>,
        published: Option<&Published>,
        now: Timestamp,
        group: usize,
    ) -> Result<Proof, Refusal> {
        let evidence = self.evidence(request, group)?;
        let timestamp = evidence.timestamp.as_ref();
        let mut claimed_id = None;
        let (secret, pieces) = match &evidence.claim {
            Claim::Token(token) => {
                let token = token.as_ref().ok_or(Refusal::TokenMissing)?;
                (self.match_token(token, now)?, None)
            }
            Claim::Signatures(rule, signatures) => {
                let (secret, pieces) =
                    self.match_signature(rule, signatures, request, &evidence, published, now)?;
                (secret, Some(pieces))
            }
            Claim::Jwt(rule, token) => {
                let token = token.as_ref().ok_or(Refusal::TokenMissing)?;
                let secret = self.match_composed(std::slice::from_ref(&token.signed), published, now)?;
                rule.check(token, request, self.window, now)?;
                claimed_id = rule.id.as_deref().and_then(|claim| token.text(claim));
                // One that leaves the body open may be used again by its sender.
                (secret, self.coverage.body.then(|| token.signed.pieces.clone()))
            }
            Claim::Code(code) => {
                let signed = code.signed(request)?;
                let secret = self.match_composed(&signed, published, now)?;
                (secret, Some(signed.into_iter().flat_map(|signed| signed.pieces).collect()))
            }
        };
        if pieces.as_deref().is_some_and(|pieces| self.is_signed_for_all(pieces)) {
            return Err(Refusal::SignatureMismatch);
        }
        self.check_freshness(&evidence, now)?;
        let delivery_id = match (&evidence.signed_id, claimed_id) {
            (Some(id), _) => Some(id.clone()),
            (None, Some(id)) => Some(text(id.as_bytes(), ID_BYTES_MAX).ok_or(Refusal::IdMalformed)?),
            (None, None) => self.delivery_id(request)?,
        };
        let all_covered = self.coverage.timestamp && self.coverage.id && delivery_id.is_some();
        let pieces = pieces.filter(|_| !all_covered);
        let signed_digest = pieces.as_deref().map(digest);
        let is_body = |pieces: &[Cow<'_, [u8]>]| matches!((pieces, request.body), ([piece], Some(body)) if std::ptr::eq::<[u8]>(&**piece, body));
        Ok(Proof {
            secret,
            skew_seconds: timestamp.map(|(_, at)| now.as_second() - at.as_second()),
            delivery_id,
            event: self.event(request)?,
            body_digest: signed_digest.filter(|_| pieces.as_deref().is_some_and(is_body)),
            signed_digest,
        })
    }

    /// Whether this gateway gives a MAC of what is signed to everybody who asks for one.
    fn is_signed_for_all(&self, pieces: &[Cow<'_, [u8]>]) -> bool {
        let mut kinds = self.scheme.handshake.iter().filter(|kind| kind.is_answered_with_key());
        // Nothing long is put together: it is no token.
        pieces.iter().map(|piece| piece.len()).sum::<usize>() <= TOKEN_BYTES_MAX
            && kinds.any(|kind| kind.is_token(&pieces.concat()))
    }

    /// The MAC of a text with the secret of this name, or else the first active one.
    pub(super) fn mac(&self, text: &[u8], secret: Option<&str>, now: Timestamp) -> Option<Vec<u8>> {
        let Auth::Signature(rule) = &self.scheme.auth else { return None };
        let mut active = self.active(None, now);
        let held = active.find(|held| secret.is_none_or(|name| *held.given.name == *name))?;
        match &held.credential {
            Credential::Key(Key::Shared(key)) => Some(rule.algorithm.mac(key, &[Cow::Borrowed(text)])),
            Credential::Key(Key::Public(_)) | Credential::Token(_) | Credential::Keys(_) => None,
        }
    }

    /// What follows the host in a URL, when that is a host of the sender's.
    pub(super) fn place_at_sender<'u>(&self, url: &'u str) -> Option<&'u str> {
        self.scheme.keys.as_ref()?.place(url)
    }

    pub(super) fn handshakes(&self) -> &[Handshake] {
        &self.scheme.handshake
    }

    pub(super) fn origins(&self) -> &[String] {
        &self.scheme.origins
    }

    /// The delivery id, as far as the request has one that can be used.
    pub(super) fn delivery_id(&self, request: &Request<'_>) -> Result<Option<String>, Refusal> {
        let Some(id) = request.find_first(&self.scheme.delivery_id)? else { return Ok(None) };
        let id = text(&id, ID_BYTES_MAX).ok_or(Refusal::IdMalformed)?;
        Ok(Some(id))
    }

    /// The event type. One that cannot be used is none: the delivery is genuine, and it is not lost for it.
    pub(super) fn event(&self, request: &Request<'_>) -> Result<Option<String>, Refusal> {
        Ok(request.find_first(&self.scheme.event)?.and_then(|event| text(&event, EVENT_BYTES_MAX)))
    }

    /// The timestamp that `request` puts forward, when it is one.
    pub(super) fn claimed_timestamp(&self, request: &Request<'_>) -> Option<Timestamp> {
        let (_, at) = self.evidence(request, 0).ok()?.timestamp?;
        Some(at)
    }

    fn evidence<'a>(&'a self, request: &Request<'a>, group: usize) -> Result<Evidence<'a>, Refusal> {
        for (at, expected) in &self.scheme.require {
            let later = request.may_follow(std::slice::from_ref(at));
            if request.find(at)?.is_none_or(|value| *value != *expected.as_bytes()) && !later {
                return Err(Refusal::ValueMismatch);
            }
        }
        let (claim, beside) = match &self.scheme.auth {
            Auth::Token(TokenRule { at: place, .. }) => {
                let token = request.find(place)?;
                if token.is_none() && !request.may_follow(std::slice::from_ref(place)) {
                    return Err(Refusal::TokenMissing);
                }
                (Claim::Token(token), None)
            }
            Auth::Code(code) => (Claim::Code(*code), None),
            Auth::Jwt(rule) => {
                let token = rule.token(request)?;
                let beside = match &self.scheme.timestamp {
                    Some(TimestampRule { at: TimestampPlace::Claim(claim), .. }) => {
                        token.as_ref().and_then(|token| token.seconds(claim))
                    }
                    Some(_) | None => None,
                };
                (Claim::Jwt(rule, token), beside)
            }
            Auth::Signature(rule) => {
                let (signatures, beside) = signatures(rule, request, group)?;
                if let Some(digest) = &rule.body_digest {
                    check_body(digest, request)?;
                }
                (Claim::Signatures(rule, signatures), beside)
            }
        };
        Ok(Evidence {
            claim,
            timestamp: self.timestamp(request, beside)?,
            signed_id: self.signed_id(request)?,
        })
    }

    /// The timestamp, from `beside` the signature or from its own place. It must be there, signed or not: a missing
    /// header is never a pass.
    fn timestamp(
        &self,
        request: &Request<'_>,
        beside: Option<String>,
    ) -> Result<Option<(String, Timestamp)>, Refusal> {
        let Some(rule) = &self.scheme.timestamp else { return Ok(None) };
        let (found, may_follow) = match &rule.at {
            TimestampPlace::Signature | TimestampPlace::Claim(_) => {
                (beside, self.signature_may_follow(request))
            }
            TimestampPlace::At(places) => {
                let bytes = request.find_first(places)?.map(Cow::into_owned);
                let text =
                    bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| Refusal::TimestampMalformed));
                (text.transpose()?, request.may_follow(places))
            }
        };
        match found {
            Some(text) => {
                let at = rule.unit.parse(&text).ok_or(Refusal::TimestampMalformed)?;
                Ok(Some((text, at)))
            }
            None if !may_follow => Err(Refusal::TimestampMissing),
            None => Ok(None),
        }
    }

    fn signature_may_follow(&self, request: &Request<'_>) -> bool {
        match &self.scheme.auth {
            Auth::Signature(rule) => request.may_follow(&rule.from),
            Auth::Jwt(rule) => request.may_follow(std::slice::from_ref(&rule.at)),
            Auth::Token(_) | Auth::Code(_) => false,
        }
    }

    /// The delivery id that the template signs, if it does.
    fn signed_id(&self, request: &Request<'_>) -> Result<Option<String>, Refusal> {
        if !matches!(&self.scheme.auth, Auth::Signature(rule) if rule.signed.iter().any(Template::has_id)) {
            return Ok(None);
        }
        match self.delivery_id(request)? {
            Some(id) if is_unambiguous(&id) => Ok(Some(id)),
            Some(_) => Err(Refusal::IdMalformed),
            None if request.may_follow(&self.scheme.delivery_id) => Ok(None),
            None => Err(Refusal::IdMissing),
        }
    }

    fn check_freshness(&self, evidence: &Evidence<'_>, now: Timestamp) -> Result<(), Refusal> {
        match (&evidence.timestamp, &self.scheme.timestamp) {
            (Some((_, at)), Some(rule)) => self.window.check(*at, now, rule.unit),
            (None, _) | (_, None) => Ok(()),
        }
    }

    fn active<'s>(
        &'s self,
        published: Option<&'s Published>,
        now: Timestamp,
    ) -> impl Iterator<Item = &'s HeldSecret> {
        let published = published.map(|Published(secret)| secret);
        self.secrets.iter().chain(published).filter(move |secret| secret.given.is_active(now))
    }

    /// The active secret that makes one of `signatures`, and what is signed. Which byte of a signature is wrong changes
    /// nothing about how long this takes.
    fn match_signature<'a>(
        &'a self,
        rule: &'a SignatureRule,
        signatures: &[Vec<u8>],
        request: &Request<'a>,
        evidence: &'a Evidence<'_>,
        published: Option<&Published>,
        now: Timestamp,
    ) -> Result<(Arc<str>, Pieces<'a>), Refusal> {
        let mut refusal = Refusal::SignatureMismatch;
        let timestamp = evidence.timestamp.as_ref().map(|(text, _)| text.as_str());
        let id = evidence.signed_id.as_deref();
        for signed in &rule.signed {
            let pieces = signed.pieces(request, timestamp, id, None)?;
            let makes_one = |credential: &Credential| match credential {
                Credential::Key(key @ Key::Shared(secret)) if signed.has_secret() => signed
                    .pieces(request, timestamp, id, Some(secret))
                    .is_ok_and(|pieces| rule.algorithm.verify(key, &pieces, signatures)),
                Credential::Key(key) => rule.algorithm.verify(key, &pieces, signatures),
                Credential::Token(_) | Credential::Keys(_) => false,
            };
            match self.match_secret(published, now, Refusal::SignatureMismatch, makes_one) {
                Ok(secret) => return Ok((secret, pieces)),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// The active secret whose keys made all of `signed`.
    fn match_composed(
        &self,
        signed: &[Signed<'_>],
        published: Option<&Published>,
        now: Timestamp,
    ) -> Result<Arc<str>, Refusal> {
        self.match_secret(published, now, Refusal::SignatureMismatch, |credential| match credential {
            Credential::Keys(keys) => keys.verify(signed),
            Credential::Key(_) | Credential::Token(_) => false,
        })
    }

    fn match_token(&self, presented: &[u8], now: Timestamp) -> Result<Arc<str>, Refusal> {
        self.match_secret(None, now, Refusal::TokenMismatch, |credential| match credential {
            Credential::Token(token) => token.matches(presented),
            Credential::Key(_) | Credential::Keys(_) => false,
        })
    }

    fn match_secret(
        &self,
        published: Option<&Published>,
        now: Timestamp,
        mismatch: Refusal,
        matches: impl Fn(&Credential) -> bool,
    ) -> Result<Arc<str>, Refusal> {
        let mut refusal = Refusal::NoActiveSecret;
        for secret in self.active(published, now) {
            if matches(&secret.credential) {
                return Ok(Arc::clone(&secret.given.name));
            }
            refusal = mismatch;
        }
        Err(refusal)
    }
}

/// Refuses a body that is not what the digest elsewhere in the request is of.
fn check_body(rule: &BodyDigest, request: &Request<'_>) -> Result<(), Refusal> {
    let Some(text) = request.find(&rule.at)? else {
        let may_follow = request.may_follow(std::slice::from_ref(&rule.at));
        return if may_follow { Ok(()) } else { Err(Refusal::ValueMissing) };
    };
    let expected = rule.encoding.decode(&text).ok_or(Refusal::BodyMismatch)?;
    let Some(body) = request.body else { return Ok(()) };
    let is_same = rule.algorithm.mac(&[], &[Cow::Borrowed(body)]).ct_eq(&expected);
    if is_same.into() { Ok(()) } else { Err(Refusal::BodyMismatch) }
}

/// The signatures that could be decoded, and the timestamp beside them.
fn signatures(
    rule: &SignatureRule,
    request: &Request<'_>,
    group: usize,
) -> Result<(Vec<Vec<u8>>, Option<String>), Refusal> {
    let (mut present, mut count) = (false, 0);
    let mut decoded = Vec::new();
    let mut timestamp: Option<String> = None;
    let mut take = |value: &[u8]| {
        present = true;
        let text = std::str::from_utf8(value).map_err(|_| Refusal::SignatureMalformed)?;
        let text = rule.grammar.group(text, group).ok_or(Refusal::SignatureMalformed)?;
        let parsed = rule.grammar.parse(text).map_err(|_two| Refusal::DuplicateValue)?;
        if let Some(beside) = parsed.timestamp
            && timestamp.replace(beside.to_owned()).is_some()
        {
            return Err(Refusal::DuplicateValue);
        }
        count += parsed.signatures.len();
        if count > SIGNATURES_MAX {
            return Err(Refusal::TooManySignatures);
        }
        let strict =
            parsed.signatures.iter().filter_map(|signature| rule.encoding.decode(signature.as_bytes()));
        decoded.extend(strict.filter(|signature| rule.algorithm.may_have_length(signature.len())));
        Ok(())
    };
    for place in &rule.from {
        match place {
            Locator::Header(name) if rule.repeated => {
                request.find_headers(name)?.iter().try_for_each(|value| take(value.as_bytes()))?;
            }
            Locator::Header(_) | Locator::Query(_) | Locator::Json(_) | Locator::Form(_) => {
                if let Some(value) = request.find(place)? {
                    take(&value)?;
                }
            }
        }
    }
    match (decoded.is_empty(), present) {
        (true, _) if request.may_follow(&rule.from) => Ok((decoded, timestamp)),
        (true, true) => Err(Refusal::SignatureMalformed),
        (true, false) => Err(Refusal::SignatureMissing),
        (false, _) => Ok((decoded, timestamp)),
    }
}

/// Whether `id` can stand beside other signed parts, because no byte of it could be taken for one of the separators that
/// signing providers use. Where a scheme has another one, or none, the template does not cover the id.
pub(super) fn is_unambiguous(id: &str) -> bool {
    id.len() <= SIGNED_ID_BYTES_MAX && id.bytes().all(is_id_byte)
}

/// Whether a signed id may have `byte`.
pub(super) fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_:-".contains(&byte)
}

/// Text that can be stored and sent on in a header.
fn text(bytes: &[u8], bytes_max: usize) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= bytes_max)?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

fn digest(pieces: &[Cow<'_, [u8]>]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize().into()
}

/// The keys of a sender that publishes them, as they were fetched.
#[derive(Debug)]
pub struct Published(HeldSecret);

#[derive(Debug)]
struct HeldSecret {
    given: NamedSecret,
    credential: Credential,
}

#[derive(Debug)]
enum Credential {
    Key(Key),
    Token(Token),
    Keys(Keys),
}

impl HeldSecret {
    fn new(auth: &Auth, secret: NamedSecret) -> Result<Self, KeyError> {
        let credential = match auth {
            Auth::Token(rule) => Credential::Token(Token::new(rule, &secret.secret)?),
            Auth::Jwt(rule) => Credential::Keys(Keys::of_tokens(rule, &secret.secret)?),
            Auth::Code(code) => {
                Credential::Keys(Keys::new(code.algorithms(), &code.key_rule(), &secret.secret)?)
            }
            Auth::Signature(rule) => Credential::Key(Key::new(rule.algorithm, &rule.key, &secret.secret)?),
        };
        Ok(Self { given: secret, credential })
    }
}
