//! A secret that is presented as it is, but in another way or at another place than the scheme says.

use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::cause::Cause;
use super::{Trials, timeless};
use crate::verify::Refusal;
use crate::verify::encoding::Encoding;
use crate::verify::locate::Locator;
use crate::verify::scheme::Auth;

/// What may stand before a token in a header.
const SCHEMES: [&str; 5] = ["Bearer ", "Basic ", "Token ", "token ", "ApiKey "];

impl Trials<'_> {
    /// The secret itself, behind another word, in base64, or in another header.
    pub(super) fn presented_otherwise(&mut self, refusal: Option<Refusal>) -> Option<Vec<Cause>> {
        let Auth::Token(rule) = &self.own.checker.scheme().auth else { return None };
        if !matches!(refusal, Some(Refusal::TokenMissing | Refusal::TokenMismatch)) {
            return None;
        }
        let request = self.request;
        for given in timeless(&self.own.checker) {
            let secret = || Arc::clone(&given.name);
            let (_, own) = unwrapped(given.secret.expose());
            for (name, value) in request.headers {
                let (scheme, presented) = unwrapped(value.as_bytes());
                let decoded = Encoding::Base64.decode(presented);
                let is_encoded = decoded.as_deref().is_some_and(|decoded| is_same(decoded, own));
                if !is_same(presented, own) && !is_encoded {
                    continue;
                }
                let here = matches!(&rule.at, Locator::Header(own) if own == name);
                let place = if here { String::new() } else { format!("in the header `{name}`") };
                let before = scheme.map_or("alone".to_owned(), |scheme| format!("after `{scheme}`"));
                let how = format!("{before}{}", if is_encoded { " in base64" } else { "" });
                let sender =
                    [how, place].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
                return Some(vec![Cause::TokenForm { secret: secret(), sender }]);
            }
            if let Some(cause) = rule.basic.then(|| self.half(&rule.at, own, &given.name)).flatten() {
                return Some(vec![cause]);
            }
        }
        None
    }

    /// Which half of a `name:password` differs, when one is right.
    fn half(&self, at: &Locator, own: &[u8], secret: &Arc<str>) -> Option<Cause> {
        let presented = self.request.find(at).ok()??;
        let (_, presented) = unwrapped(&presented);
        let presented = Encoding::Base64.decode(presented)?;
        let own = if own.contains(&b':') { own.to_vec() } else { Encoding::Base64.decode(own)? };
        let (name, password) = halves(&own)?;
        let (their_name, their_password) = halves(&presented)?;
        let other = match (is_same(name, their_name), is_same(password, their_password)) {
            (true, false) => "password",
            (false, true) => "name",
            (true, true) | (false, false) => return None,
        };
        Some(Cause::BasicHalf { secret: Arc::clone(secret), other })
    }
}

/// A value without the word before it, which is told.
fn unwrapped(value: &[u8]) -> (Option<&'static str>, &[u8]) {
    let found = SCHEMES.iter().find_map(|scheme| Some((*scheme, value.strip_prefix(scheme.as_bytes())?)));
    found.map_or((None, value), |(scheme, rest)| (Some(scheme.trim_ascii_end()), rest))
}

fn halves(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    Some((&text[..colon], &text[colon + 1..]))
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}
