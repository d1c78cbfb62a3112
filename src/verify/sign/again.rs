//! Signs a delivery again in its provider's own format, under another secret and with a new time, so that a verifier that
//! was written for the provider takes it however late it comes. Body and query are sent as they came: a scheme that has its
//! signature or its time there cannot be made anew, which is said when the configuration is read.

use http::{HeaderMap, HeaderName};

use super::{Message, Signer, header_of};
use crate::clock::Timestamp;
use crate::secret::Secret;
use crate::verify::locate::Locator;
use crate::verify::scheme::{Auth, Scheme, TimestampPlace};
use crate::verify::{KeyError, Verifier};

/// What becomes of the headers of a delivery that is signed again.
#[derive(Debug, Clone)]
pub struct SignedAgain {
    /// The provider's own signatures and times; they go.
    pub gone: Vec<HeaderName>,
    /// Those that take their place.
    pub new: HeaderMap,
}

impl Verifier {
    /// Signs as the provider whose requests this verifies, under `secret`.
    ///
    /// # Errors
    /// When the scheme cannot be signed again without touching body or query, or `secret` is no key of it.
    pub fn signer(&self, secret: &Secret) -> Result<Signer, KeyError> {
        let Some(checked) = &self.checked else {
            return Err(KeyError("it verifies nothing, so there is no format to sign in".to_owned()));
        };
        let scheme = checked.checker.scheme();
        if let Some(why) = why_not(scheme) {
            return Err(KeyError(why));
        }
        Signer::new(scheme.clone(), secret)
    }
}

impl Signer {
    /// Whether it signs a digest of the body that stands elsewhere in the request, so that another body would not fit.
    pub fn signs_body_digest(&self) -> bool {
        matches!(&self.scheme.auth, Auth::Signature(rule) if rule.body_digest.is_some())
    }

    /// A new signature at `now` over `message`, whose other headers are `headers`.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn sign_again(
        &self,
        headers: &HeaderMap,
        message: &Message<'_>,
        now: Timestamp,
    ) -> Result<SignedAgain, KeyError> {
        let gone = self.own_headers();
        let mut kept = headers.clone();
        for name in &gone {
            kept.remove(name);
        }
        let mut new = self.complete(kept, message, now)?;
        let same: Vec<_> = new
            .keys()
            .filter(|name| !gone.contains(name) && new.get_all(*name).iter().eq(headers.get_all(*name)))
            .cloned()
            .collect();
        for name in same {
            new.remove(name);
        }
        self.rename_signature(headers, &mut new);
        // The id goes where the sender's may be overwritten by the gateway's, so it is told even when it stays.
        if let (Some(name), Some(_)) = (header_of(&self.scheme.delivery_id), message.id)
            && let Some(value) = headers.get(name)
        {
            new.entry(name).or_insert_with(|| value.clone());
        }
        Ok(SignedAgain { gone, new })
    }

    /// Puts the signature where the sender had it: some providers have a new name and an old one for the same header.
    fn rename_signature(&self, headers: &HeaderMap, new: &mut HeaderMap) {
        let Auth::Signature(rule) = &self.scheme.auth else { return };
        let used: Vec<_> =
            rule.from.iter().filter_map(header).filter(|name| headers.contains_key(*name)).collect();
        let Some(value) =
            header_of(&rule.from).filter(|_| !used.is_empty()).and_then(|name| new.remove(name))
        else {
            return;
        };
        for name in used {
            new.insert(name.clone(), value.clone());
        }
    }

    /// The headers of signature and time, wherever the provider may put them.
    fn own_headers(&self) -> Vec<HeaderName> {
        let from = match &self.scheme.auth {
            Auth::Signature(rule) => rule.from.as_slice(),
            Auth::Token(rule) => std::slice::from_ref(&rule.at),
            Auth::Jwt(rule) => std::slice::from_ref(&rule.at),
            Auth::Code(_) => &[],
        };
        let times = match self.scheme.timestamp.as_ref().map(|rule| &rule.at) {
            Some(TimestampPlace::At(places)) => places.as_slice(),
            Some(TimestampPlace::Signature | TimestampPlace::Claim(_)) | None => &[],
        };
        from.iter().chain(times).filter_map(header).cloned().collect()
    }
}

/// Why nobody but the provider can make requests of `scheme`; `None` when one can.
fn why_not(scheme: &Scheme) -> Option<String> {
    const AS_IT_CAME: &str = "and not in a header; body and query are sent as they came";
    let proof = match &scheme.auth {
        Auth::Signature(rule) if rule.from.iter().all(|place| header(place).is_none()) => rule.from.first(),
        Auth::Token(rule) => Some(&rule.at).filter(|place| header(place).is_none()),
        Auth::Jwt(rule) => Some(&rule.at).filter(|place| header(place).is_none()),
        Auth::Signature(_) => None,
        Auth::Code(_) => {
            return Some(
                "its signatures can be verified, not made: only the provider has the key".to_owned(),
            );
        }
    };
    if let Some(place) = proof {
        return Some(format!("its signature stands at `{place}` {AS_IT_CAME}"));
    }
    let time = match scheme.timestamp.as_ref().map(|rule| &rule.at) {
        Some(TimestampPlace::At(places)) => places.iter().find(|place| header(place).is_none()),
        Some(TimestampPlace::Signature | TimestampPlace::Claim(_)) | None => None,
    };
    time.map(|place| format!("its time stands at `{place}` {AS_IT_CAME}"))
}

fn header(place: &Locator) -> Option<&HeaderName> {
    header_of(std::slice::from_ref(place))
}
