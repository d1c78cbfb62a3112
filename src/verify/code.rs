//! The providers whose signatures no template describes: each is a file that finds in a request what has been signed,
//! and the signatures of it. All of it has to be right.

use super::Refusal;
use super::algorithm::Algorithm;
use super::key::{KeyEncoding, KeyRule};
use super::locate::{Locator, Request};
use super::signed::Signed;

mod adyen;
mod contentful;
mod sns;

/// A provider that needs code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Payments of Adyen: a signature in each item.
    AdyenPayments,
    Contentful,
    /// Amazon SNS.
    Sns,
}

impl Code {
    pub(super) const NAMES: [(&str, Self); 3] =
        [("adyen-payments", Self::AdyenPayments), ("contentful", Self::Contentful), ("sns", Self::Sns)];

    /// What has been signed, in a request whose body has been read.
    pub(super) fn signed<'a>(self, request: &Request<'a>) -> Result<Vec<Signed<'a>>, Refusal> {
        match self {
            Self::AdyenPayments => adyen::signed(request),
            Self::Contentful => contentful::signed(request),
            Self::Sns => sns::signed(request),
        }
    }

    /// The algorithms that its keys are for.
    pub(super) fn algorithms(self) -> &'static [Algorithm] {
        match self {
            Self::AdyenPayments | Self::Contentful => &[Algorithm::HmacSha256],
            Self::Sns => &[Algorithm::RsaPkcs1Sha1, Algorithm::RsaPkcs1Sha256],
        }
    }

    pub(super) fn key_rule(self) -> KeyRule {
        let encoding = match self {
            Self::AdyenPayments => KeyEncoding::Hex,
            Self::Contentful | Self::Sns => KeyEncoding::Utf8,
        };
        KeyRule { encoding, ..KeyRule::default() }
    }

    /// Where the signature is.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::AdyenPayments => {
                "json:/notificationItems/0/NotificationRequestItem/additionalData/hmacSignature"
            }
            Self::Contentful => "header:x-contentful-signature",
            Self::Sns => "json:/Signature",
        }
    }

    pub(super) fn covers_body(self) -> bool {
        match self {
            // Some fields, each of which is what it was.
            Self::AdyenPayments | Self::Sns => false,
            Self::Contentful => true,
        }
    }

    /// Whether nobody can change the value at `locator` without breaking the signature.
    pub(super) fn covers(self, locator: &Locator) -> bool {
        match (self, locator) {
            (Self::AdyenPayments, _) => false,
            (Self::Contentful, Locator::Json(_)) => true,
            // The list of signed headers has to name it.
            (Self::Contentful, Locator::Header(name)) => name == contentful::TIMESTAMP,
            (Self::Contentful, Locator::Query(_) | Locator::Form(_)) => false,
            (Self::Sns, Locator::Json(pointer)) => sns::signs(pointer.as_str()),
            (Self::Sns, Locator::Header(_) | Locator::Query(_) | Locator::Form(_)) => false,
        }
    }
}
