//! The closed list of reasons for which a request is refused. Senders are never told which one it was; operators are,
//! by the label of a metric and a field of the log.

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// No place where the signature may be has one.
    #[error("the signature is missing")]
    SignatureMissing,
    /// There is something, but no signature of the configured kind that could be decoded.
    #[error("the signature is malformed")]
    SignatureMalformed,
    /// More signatures than a sender that rotates its secrets would send.
    #[error("there are too many signatures")]
    TooManySignatures,
    /// No active secret makes any of the signatures.
    #[error("no signature matches")]
    SignatureMismatch,
    /// Something that must be single (a signature, timestamp, id or event type) is there more than once, so that the
    /// backend might read another one than was checked.
    #[error("a value that must be single is there twice")]
    DuplicateValue,
    /// The signed timestamp is missing.
    #[error("the timestamp is missing")]
    TimestampMissing,
    /// The timestamp is not exactly in the configured format.
    #[error("the timestamp is malformed")]
    TimestampMalformed,
    /// The timestamp lies before the window.
    #[error("the timestamp is too old")]
    TimestampTooOld,
    /// The timestamp lies after the window.
    #[error("the timestamp is too far in the future")]
    TimestampTooNew,
    /// The delivery id is signed, or demanded by configuration, and missing.
    #[error("the delivery id is missing")]
    IdMissing,
    /// The delivery id is too long, not text, or has characters that would make the signed bytes ambiguous.
    #[error("the delivery id is malformed")]
    IdMalformed,
    /// Another value that the template signs is missing.
    #[error("a signed value is missing")]
    ValueMissing,
    /// A value is not the one that `require` demands.
    #[error("a required value differs")]
    ValueMismatch,
    /// The body is not what a signed digest is of.
    #[error("the body is not the one that was signed")]
    BodyMismatch,
    /// The token is missing.
    #[error("the token is missing")]
    TokenMissing,
    /// The token is none of the active secrets.
    #[error("no token matches")]
    TokenMismatch,
    /// Every secret is not yet or no longer valid.
    #[error("no secret is active")]
    NoActiveSecret,
    /// The same signed bytes have been accepted before, and the source's replay guard rejects.
    #[error("the signed bytes have been accepted before")]
    Replayed,
}

impl Refusal {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::SignatureMissing,
        Self::SignatureMalformed,
        Self::TooManySignatures,
        Self::SignatureMismatch,
        Self::DuplicateValue,
        Self::TimestampMissing,
        Self::TimestampMalformed,
        Self::TimestampTooOld,
        Self::TimestampTooNew,
        Self::IdMissing,
        Self::IdMalformed,
        Self::ValueMissing,
        Self::ValueMismatch,
        Self::BodyMismatch,
        Self::TokenMissing,
        Self::TokenMismatch,
        Self::NoActiveSecret,
        Self::Replayed,
    ];

    /// The reason with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|refusal| refusal.label() == label)
    }

    /// The metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Self::SignatureMissing => "signature_missing",
            Self::SignatureMalformed => "signature_malformed",
            Self::TooManySignatures => "too_many_signatures",
            Self::SignatureMismatch => "signature_mismatch",
            Self::DuplicateValue => "duplicate_value",
            Self::TimestampMissing => "timestamp_missing",
            Self::TimestampMalformed => "timestamp_malformed",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::TimestampTooNew => "timestamp_too_new",
            Self::IdMissing => "id_missing",
            Self::IdMalformed => "id_malformed",
            Self::ValueMissing => "value_missing",
            Self::ValueMismatch => "value_mismatch",
            Self::BodyMismatch => "body_mismatch",
            Self::TokenMissing => "token_missing",
            Self::TokenMismatch => "token_mismatch",
            Self::NoActiveSecret => "no_active_secret",
            Self::Replayed => "replayed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_label() {
        let labels: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.label()).collect();
        assert_eq!(labels.len(), Refusal::ALL.len());
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
