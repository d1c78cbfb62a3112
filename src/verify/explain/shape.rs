//! What can be seen of a request that lacks something, or has it in another shape than the scheme says. Places and names
//! are told, values never: what is wrong for this source may be right for another.

use http::HeaderName;

use super::cause::{Cause, Part};
use crate::verify::Refusal;
use crate::verify::algorithm::Algorithm;
use crate::verify::code::Code;
use crate::verify::encoding::Encoding;
use crate::verify::grammar::{Grammar, Names};
use crate::verify::locate::{Locator, Request};
use crate::verify::scheme::{Auth, Scheme, SignatureRule, TimestampPlace};
use crate::verify::template::Template;

/// What may stand before a signature and is no part of one.
const PREFIXES: [&str; 10] =
    ["sha256=", "sha1=", "sha512=", "sha384=", "hmac-sha256=", "v0=", "v1=", "v1,", "v1a,", "Bearer "];
/// Names of versions that are told are no longer: what is longer may be a part of a signature.
const NAME_BYTES_MAX: usize = 8;
const NAMES_MAX: usize = 5;

/// What `refusal` says is missing or malformed, and where it should be.
pub(super) fn seen(scheme: &Scheme, request: &Request<'_>, refusal: Refusal) -> Option<Cause> {
    let missing = |what: Part, places: &[&Locator]| {
        let is_empty = places
            .iter()
            .any(|place| matches!(place, Locator::Header(name) if request.headers.contains_key(name)));
        let at = of_several(places.iter().map(|place| place_of(place)));
        if is_empty { Cause::Empty { what, at } } else { Cause::Missing { what, at } }
    };
    match refusal {
        Refusal::SignatureMissing | Refusal::TokenMissing => {
            let (what, places): (_, Vec<_>) = match &scheme.auth {
                Auth::Signature(rule) => (Part::Signature, rule.from.iter().collect()),
                Auth::Token(rule) => (Part::Token, vec![&rule.at]),
                Auth::Jwt(rule) => (Part::Token, vec![&rule.at]),
                Auth::Code(code) => {
                    return Some(Cause::Missing { what: Part::Signature, at: place_of_code(*code) });
                }
            };
            Some(missing(what, &places))
        }
        Refusal::SignatureMalformed => malformed_signature(scheme, request),
        Refusal::TimestampMissing => Some(match timestamp_places(scheme) {
            Some(places) => missing(Part::Timestamp, &places),
            None => Cause::Missing { what: Part::Timestamp, at: beside_signature(scheme) },
        }),
        Refusal::TimestampMalformed => {
            let at = timestamp_places(scheme).map_or_else(
                || beside_signature(scheme),
                |places| of_several(places.into_iter().map(place_of)),
            );
            let unit = scheme.timestamp.as_ref().map_or("a number of seconds", |rule| rule.unit.noun());
            Some(Cause::Malformed {
                what: Part::Timestamp,
                at,
                why: format!("{unit} would be right, without sign or fraction"),
            })
        }
        Refusal::IdMissing => Some(missing(Part::Id, &scheme.delivery_id.iter().collect::<Vec<_>>())),
        Refusal::IdMalformed => Some(Cause::Malformed {
            what: Part::Id,
            at: of_several(scheme.delivery_id.iter().map(place_of)),
            why: "it is too long, or has characters that an id cannot have where it is signed".to_owned(),
        }),
        Refusal::ValueMissing => missing_value(scheme, request),
        Refusal::ValueMismatch => other_value(scheme, request),
        Refusal::TooManySignatures
        | Refusal::SignatureMismatch
        | Refusal::DuplicateValue
        | Refusal::TimestampTooOld
        | Refusal::TimestampTooNew
        | Refusal::BodyMismatch
        | Refusal::TokenMismatch
        | Refusal::NoActiveSecret
        | Refusal::Replayed => None,
    }
}

/// Headers that may hold a signature, and that are not `own`.
pub(super) fn signature_headers<'r>(request: &Request<'r>, own: &[Locator]) -> Vec<&'r HeaderName> {
    let is_likely = |name: &&HeaderName| {
        ["sign", "hmac", "digest", "hash"].iter().any(|part| name.as_str().contains(part))
            && !own.contains(&Locator::Header((*name).clone()))
    };
    request.headers.keys().filter(is_likely).collect()
}

fn timestamp_places(scheme: &Scheme) -> Option<Vec<&Locator>> {
    match &scheme.timestamp.as_ref()?.at {
        TimestampPlace::At(places) => Some(places.iter().collect()),
        TimestampPlace::Signature | TimestampPlace::Claim(_) => None,
    }
}

fn beside_signature(scheme: &Scheme) -> String {
    match (&scheme.auth, scheme.timestamp.as_ref().map(|rule| &rule.at)) {
        (_, Some(TimestampPlace::Claim(claim))) => format!("the claim `{claim}` of the token"),
        (Auth::Signature(rule), _) => {
            let name = match &rule.grammar {
                Grammar::Pairs { timestamp: Some(name), assign, .. } => format!("`{name}{assign}` in "),
                Grammar::Pairs { .. } | Grammar::Whole | Grammar::Prefix(_) | Grammar::Positional { .. } => {
                    String::new()
                }
            };
            format!("{name}{}", of_several(rule.from.iter().map(place_of)))
        }
        (Auth::Code(code), _) => format!("beside {}", place_of_code(*code)),
        (Auth::Token(_) | Auth::Jwt(_), _) => "the token".to_owned(),
    }
}

fn malformed_signature(scheme: &Scheme, request: &Request<'_>) -> Option<Cause> {
    let what = Part::Signature;
    match &scheme.auth {
        Auth::Signature(rule) => {
            let found = rule.from.iter().find_map(|place| {
                let value = request.find(place).ok().flatten()?;
                Some((place, String::from_utf8_lossy(&value).into_owned()))
            });
            let (place, text) = found?;
            Some(Cause::Malformed { what, at: place_of(place), why: fault(rule, &text) })
        }
        Auth::Jwt(rule) => {
            let why = "it is no token of three parts in base64url, or is signed by another algorithm than the scheme allows";
            Some(Cause::Malformed { what: Part::Token, at: place_of(&rule.at), why: why.to_owned() })
        }
        Auth::Code(code) => {
            let why = "the provider would send another form of it".to_owned();
            Some(Cause::Malformed { what, at: place_of_code(*code), why })
        }
        Auth::Token(_) => None,
    }
}

/// Why there is no signature in `text`.
fn fault(rule: &SignatureRule, text: &str) -> String {
    let right = format!("{} in {}", rule.algorithm.name(), noun(rule.encoding));
    let begin = PREFIXES.iter().find(|prefix| text.starts_with(**prefix));
    let signature = match &rule.grammar {
        Grammar::Whole => match begin {
            Some(prefix) => return format!("it begins with `{prefix}`, and {right} alone would be right"),
            None => text,
        },
        Grammar::Prefix(prefix) => match (text.strip_prefix(prefix.as_str()), begin) {
            (Some(rest), _) => rest,
            (None, Some(other)) => {
                return format!("it begins with `{other}`, and `{prefix}` before {right} would be right");
            }
            (None, None) => {
                return format!("there is no `{prefix}` before it; `{prefix}` and {right} would be right");
            }
        },
        Grammar::Pairs { separators, assign, take, .. } => {
            let items = || {
                text.split(|c| separators.contains(c))
                    .map(str::trim_ascii)
                    .filter_map(|item| item.split_once(*assign))
            };
            let is_taken = |name: &str| match take {
                Names::Any => true,
                Names::These(names) => names.iter().any(|taken| taken == name),
            };
            match items().find(|(name, _)| is_taken(name)) {
                Some((_, signature)) => signature,
                None => {
                    let told = |name: &&str| {
                        name.len() <= NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    };
                    let names = items().map(|(name, _)| name).filter(told).take(NAMES_MAX);
                    let found: Vec<_> = names.map(|name| format!("`{name}`")).collect();
                    let found = if found.is_empty() {
                        "nothing of that form".to_owned()
                    } else {
                        format!("only {}", found.join(", "))
                    };
                    let wanted = match take {
                        Names::Any => format!("a name, `{assign}`"),
                        Names::These(names) => {
                            format!("`{}{assign}`", names.join(&format!("{assign}` or `")))
                        }
                    };
                    return format!("there is {found}; {wanted} and {right} would be right");
                }
            }
        }
        Grammar::Positional { .. } => text,
    };
    if signature.is_empty() {
        return format!("nothing stands behind the name; {right} would be right");
    }
    match rule.encoding.decode(signature.as_bytes()) {
        Some(bytes) => {
            let like = lengths().find(|(algorithm, _)| algorithm.may_have_length(bytes.len()));
            let like = like.map_or(String::new(), |(_, name)| format!(", as those of {name} have"));
            format!("it has {} bytes{like}; {right} would be right", bytes.len())
        }
        None => {
            let other = [Encoding::Hex, Encoding::Base64, Encoding::Base64Url].into_iter();
            let mut other = other.filter(|other| {
                other
                    .decode(signature.as_bytes())
                    .is_some_and(|bytes| rule.algorithm.may_have_length(bytes.len()))
            });
            match other.next() {
                Some(other) => format!("it is {}, and {right} would be right", noun(other)),
                None => format!("it is not {}, or cut off; {right} would be right", noun(rule.encoding)),
            }
        }
    }
}

fn lengths() -> impl Iterator<Item = (Algorithm, &'static str)> {
    [
        (Algorithm::HmacSha1, "SHA-1"),
        (Algorithm::HmacSha256, "SHA-256"),
        (Algorithm::HmacSha384, "SHA-384"),
        (Algorithm::HmacSha512, "SHA-512"),
    ]
    .into_iter()
}

fn noun(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Hex => "hex",
        Encoding::Base64 => "base64",
        Encoding::Base64Url => "base64url",
    }
}

/// The first value that is signed, or demanded of a token, and not there.
fn missing_value(scheme: &Scheme, request: &Request<'_>) -> Option<Cause> {
    let what = Part::Value;
    match &scheme.auth {
        Auth::Jwt(rule) => {
            let token = rule.token(request).ok().flatten()?;
            let claim = rule.missing_claim(&token)?;
            Some(Cause::Missing { what, at: format!("the claim `{claim}` of the token") })
        }
        Auth::Signature(rule) => {
            let signed = rule.signed.iter().flat_map(Template::places);
            let mut all = signed.chain(rule.body_digest.iter().map(|digest| &digest.at));
            let gone = all.find(|place| matches!(request.find(place), Ok(None)))?;
            Some(Cause::Missing { what, at: place_of(gone) })
        }
        Auth::Token(_) | Auth::Code(_) => None,
    }
}

/// The first value that is not the one that the scheme demands.
fn other_value(scheme: &Scheme, request: &Request<'_>) -> Option<Cause> {
    let other = scheme.require.iter().find(
        |(at, expected)| !matches!(request.find(at), Ok(Some(value)) if *value == *expected.as_bytes()),
    );
    if let Some((at, _)) = other {
        return Some(Cause::OtherValue { at: place_of(at), url: None });
    }
    let Auth::Jwt(rule) = &scheme.auth else { return None };
    let token = rule.token(request).ok().flatten()?;
    let (claim, is_url) = rule.other_claim(&token, request)?;
    let url = is_url.then(|| format!("{}{}", request.base_url, request.target));
    Some(Cause::OtherValue { at: format!("the claim `{claim}` of the token"), url })
}

fn of_several(places: impl Iterator<Item = String>) -> String {
    places.collect::<Vec<_>>().join(", or ")
}

pub(super) fn place_of(place: &Locator) -> String {
    match place {
        Locator::Header(name) => format!("the header `{name}`"),
        Locator::Query(name) => format!("the field `{name}` of the query"),
        Locator::Json(pointer) => format!("`{}` of the JSON body", pointer.as_str()),
        Locator::Form(name) => format!("the field `{name}` of the form in the body"),
    }
}

fn place_of_code(code: Code) -> String {
    code.place().parse().map_or_else(|_| code.place().to_owned(), |place: Locator| place_of(&place))
}
