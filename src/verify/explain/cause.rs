//! What can be wrong with a request, in words: a label for programs, a sentence and an advice for operators.

use std::fmt;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::verify::Refusal;

/// What became of a body on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyChange {
    /// White space was added at its end.
    NewlineAdded,
    /// A line end was taken from its end.
    NewlineRemoved,
    /// Line ends were written in another way.
    LineEnds,
    /// A byte order mark was added or taken away.
    ByteOrderMark,
    /// JSON was read and written again.
    JsonReencoded,
}

/// What a request has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its signature.
    Signature,
    /// Its token, or the secret that it presents as it is.
    Token,
    /// Its timestamp.
    Timestamp,
    /// Its delivery id.
    Id,
    /// Another value that is signed, or demanded.
    Value,
}

impl Part {
    fn noun(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Token => "token",
            Self::Timestamp => "timestamp",
            Self::Id => "delivery id",
            Self::Value => "value",
        }
    }

    /// The one of these labels that is this part's.
    fn label(self, [signature, token, timestamp, id, value]: [&'static str; 5]) -> &'static str {
        match self {
            Self::Signature => signature,
            Self::Token => token,
            Self::Timestamp => timestamp,
            Self::Id => id,
            Self::Value => value,
        }
    }
}

/// Why a request does not verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It does, by now.
    Verifies,
    /// It does, and its signed bytes had been accepted before.
    Replayed,
    /// It does, without a delivery id, which the source demands.
    NoDeliveryId,
    /// The request was made with a secret of this source that was not valid any more.
    SecretExpired {
        /// Its name.
        secret: Arc<str>,
        /// Its last moment.
        not_after: Timestamp,
    },
    /// The request was made with a secret of this source that was not valid yet.
    SecretNotYetValid {
        /// Its name.
        secret: Arc<str>,
        /// Its first moment.
        not_before: Timestamp,
    },
    /// The request was made with a secret of another source.
    SecretOfOtherSource {
        /// The secret's name.
        secret: Arc<str>,
        /// The source's name.
        source: String,
    },
    /// It verifies as a request of another source.
    WrongPath {
        /// The source's name.
        source: String,
        /// Its path.
        path: String,
    },
    /// The configured secret has white space around it that the sender's does not have.
    SecretHasSpace {
        /// Its name.
        secret: Arc<str>,
    },
    /// The sender's secret has white space around it that the configured one does not have.
    SenderSecretHasSpace {
        /// Its name.
        secret: Arc<str>,
    },
    /// The sender makes another key of the secret's text.
    KeyEncoding {
        /// Its name.
        secret: Arc<str>,
        /// What the scheme makes of it.
        configured: String,
        /// What the sender made of it.
        sender: String,
    },
    /// Something on the way changed the body.
    BodyChanged(BodyChange),
    /// The timestamp is in another unit than the scheme says.
    TimestampUnit {
        /// The scheme's.
        configured: &'static str,
        /// The sender's.
        sender: &'static str,
        /// Whether the signature is right.
        proven: bool,
    },
    /// The timestamp lies outside of the window.
    ClockOff {
        /// How far the timestamp lies behind our clock at receipt; negative when it is ahead.
        seconds: i64,
        /// Whether the signature is right.
        proven: bool,
    },
    /// The token had ended, or not begun.
    TokenTime,
    /// The provider was told another URL.
    OtherUrl {
        /// Up to the path.
        url: String,
    },
    /// The signature is right, in another form than the scheme says.
    SignatureForm {
        /// The sender's.
        sender: String,
    },
    /// It looks like one of these providers.
    OtherProvider {
        /// Their names.
        providers: Vec<Arc<str>>,
        /// Whether it verifies by the first of them.
        proven: bool,
    },
    /// A header that must be single is there more than once.
    HeaderTwice {
        /// Its name.
        name: String,
    },
    /// The body has been compressed, or says that it was.
    Compressed {
        /// Whether it still is.
        still: bool,
    },
    /// There is no body.
    BodyEmpty,
    /// There was no reading the body, or keeping it.
    BodyMissing,
    /// Something is not there.
    Missing {
        /// What.
        what: Part,
        /// Where it should be.
        at: String,
    },
    /// Something is there, and empty.
    Empty {
        /// What.
        what: Part,
        /// Where it is.
        at: String,
    },
    /// Something is there, and not what can stand there.
    Malformed {
        /// What.
        what: Part,
        /// Where it is.
        at: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The scheme demands another value.
    OtherValue {
        /// Where it is.
        at: String,
        /// The URL that it should be, where it should be one.
        url: Option<String>,
    },
    /// The secret is there, presented in another way.
    TokenForm {
        /// Its name.
        secret: Arc<str>,
        /// How.
        sender: String,
    },
    /// The name of basic authentication is right and the password is not, or the other way round.
    BasicHalf {
        /// The secret's name.
        secret: Arc<str>,
        /// The half that differs.
        other: &'static str,
    },
    /// The URL is signed, and may be another one.
    UrlSigned {
        /// What it was taken to be.
        url: String,
    },
    /// There is no secret that was valid.
    NoActiveSecret,
    /// The token is no secret of any source.
    UnknownToken,
    /// The sender publishes its keys, which are not asked for here.
    PublishedKeys,
    /// No more than the refusal says.
    Refused(Refusal),
    /// No secret of any source makes this, and no change of the body that is known.
    UnknownSecret,
}

impl Cause {
    /// A word for programs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Verifies => "verifies",
            Self::Replayed => "replayed",
            Self::NoDeliveryId => "no_delivery_id",
            Self::SecretExpired { .. } => "secret_expired",
            Self::SecretNotYetValid { .. } => "secret_not_yet_valid",
            Self::SecretOfOtherSource { .. } => "secret_of_other_source",
            Self::WrongPath { .. } => "wrong_path",
            Self::SecretHasSpace { .. } => "secret_has_space",
            Self::SenderSecretHasSpace { .. } => "sender_secret_has_space",
            Self::KeyEncoding { .. } => "key_encoding",
            Self::BodyChanged(change) => match change {
                BodyChange::NewlineAdded => "body_newline_added",
                BodyChange::NewlineRemoved => "body_newline_removed",
                BodyChange::LineEnds => "body_line_ends_changed",
                BodyChange::ByteOrderMark => "body_byte_order_mark",
                BodyChange::JsonReencoded => "body_json_reencoded",
            },
            Self::TimestampUnit { .. } => "timestamp_unit",
            Self::ClockOff { .. } => "clock_off",
            Self::TokenTime => "token_time",
            Self::OtherUrl { .. } => "other_url",
            Self::SignatureForm { .. } => "signature_form",
            Self::OtherProvider { .. } => "other_provider",
            Self::HeaderTwice { .. } => "header_twice",
            Self::Compressed { .. } => "body_compressed",
            Self::BodyEmpty => "body_empty",
            Self::BodyMissing => "body_missing",
            Self::Missing { what, .. } => what.label([
                "signature_missing",
                "token_missing",
                "timestamp_missing",
                "id_missing",
                "value_missing",
            ]),
            Self::Empty { what, .. } => {
                what.label(["signature_empty", "token_empty", "timestamp_empty", "id_empty", "value_empty"])
            }
            Self::Malformed { what, .. } => what.label([
                "signature_malformed",
                "token_malformed",
                "timestamp_malformed",
                "id_malformed",
                "value_malformed",
            ]),
            Self::OtherValue { .. } => "value_mismatch",
            Self::TokenForm { .. } => "token_form",
            Self::BasicHalf { .. } => "basic_half",
            Self::UrlSigned { .. } => "url_signed",
            Self::NoActiveSecret => "no_active_secret",
            Self::UnknownToken => "unknown_token",
            Self::PublishedKeys => "published_keys",
            Self::Refused(refusal) => refusal.label(),
            Self::UnknownSecret => "unknown_secret",
        }
    }

    /// Whether the request verifies with this mended; otherwise it is what the request looks like.
    pub fn is_proven(&self) -> bool {
        match self {
            Self::Verifies
            | Self::Replayed
            | Self::NoDeliveryId
            | Self::SecretExpired { .. }
            | Self::SecretNotYetValid { .. }
            | Self::SecretOfOtherSource { .. }
            | Self::WrongPath { .. }
            | Self::SecretHasSpace { .. }
            | Self::SenderSecretHasSpace { .. }
            | Self::KeyEncoding { .. }
            | Self::BodyChanged(_)
            | Self::OtherUrl { .. }
            | Self::TokenForm { .. }
            | Self::SignatureForm { .. } => true,
            Self::TimestampUnit { proven, .. }
            | Self::ClockOff { proven, .. }
            | Self::OtherProvider { proven, .. } => *proven,
            Self::TokenTime
            | Self::HeaderTwice { .. }
            | Self::Compressed { .. }
            | Self::BodyEmpty
            | Self::BodyMissing
            | Self::Missing { .. }
            | Self::Empty { .. }
            | Self::Malformed { .. }
            | Self::OtherValue { .. }
            | Self::BasicHalf { .. }
            | Self::UrlSigned { .. }
            | Self::NoActiveSecret
            | Self::UnknownToken
            | Self::PublishedKeys
            | Self::Refused(_)
            | Self::UnknownSecret => false,
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Verifies => "reverify it",
            Self::Replayed => {
                "nothing: what it says has been accepted; `replay_guard = \"absorb\"` would answer it with 2xx"
            }
            Self::NoDeliveryId => "set `on_missing_id = \"accept\"`, or have the sender send an id",
            Self::SecretExpired { .. } => {
                "move the sender to the current secret, or move `not_after` until it has been"
            }
            Self::SecretNotYetValid { .. } => "move `not_before`",
            Self::SecretOfOtherSource { .. } => {
                "give the sender the secret of this source, or add it to `secrets`"
            }
            Self::WrongPath { .. } => "tell the sender that source's URL",
            Self::SecretHasSpace { .. } => {
                "remove it from the configured secret, or save the file without a byte order mark"
            }
            Self::SenderSecretHasSpace { .. } => "remove the white space where the sender keeps its secret",
            Self::KeyEncoding { .. } => "set `key` of the scheme, or the `provider`, to what the sender does",
            Self::BodyChanged(_) => {
                "have nothing between sender and gateway touch the body: signatures are over its exact bytes"
            }
            Self::TimestampUnit { .. } => "set `unit` of the scheme's timestamp to what the sender sends",
            Self::ClockOff { .. } => {
                "set the clock that is wrong by NTP; if both are right, the request was held up or captured"
            }
            Self::TokenTime => "compare both clocks, and how long the sender's tokens are good",
            Self::OtherUrl { .. } => {
                "set `public_url` to what the provider was told, or tell it the right URL"
            }
            Self::SignatureForm { .. } => {
                "set algorithm, encoding and grammar of the scheme to what the sender does"
            }
            Self::OtherProvider { .. } => "set `provider` to that one, or tell the sender another URL",
            Self::HeaderTwice { .. } => "find what adds the second one on the way",
            Self::Compressed { .. } => "have nothing between sender and gateway compress or unpack bodies",
            Self::BodyEmpty => "find what drops the body: a redirect, or a proxy",
            Self::BodyMissing => "have the sender send it again",
            Self::Missing { what, .. } | Self::Empty { what, .. } => match what {
                Part::Signature | Part::Token => {
                    "set the secret at the provider, which signs nothing without one; see that no proxy removes the header; or set `provider` to who sends this"
                }
                Part::Timestamp | Part::Id | Part::Value => {
                    "see that no proxy removes it, and that `provider` is who sends this"
                }
            },
            Self::Malformed { .. } => {
                "set `provider`, or the scheme, to what the sender does; see that nothing on the way rewrites it"
            }
            Self::OtherValue { url: Some(_), .. } => {
                "set `public_url` to what the provider was told, or tell it the right URL"
            }
            Self::OtherValue { url: None, .. } => {
                "see whether this is meant for another source, then compare it with `require`, `config` or the claims of the scheme"
            }
            Self::TokenForm { .. } => {
                "have the sender present it as the scheme says, or set `token` to where it is"
            }
            Self::BasicHalf { .. } => "compare `name:password` at the provider with the configured secret",
            Self::UrlSigned { .. } => {
                "compare it with the URL that the provider was told, to the letter: scheme, host, port, path, slash at the end, query; `public_url` sets what stands before the path"
            }
            Self::NoActiveSecret => {
                "configure a secret that is valid now, or move `not_before` and `not_after`"
            }
            Self::UnknownToken => "compare the secret at the provider with the configured one",
            Self::PublishedKeys => {
                "reverify it, which asks for them; if that refuses it, look at who sends this, then for what changes bodies on the way"
            }
            Self::Refused(_) => {
                "compare the request with the provider's documentation (`countersign providers NAME`)"
            }
            Self::UnknownSecret => {
                "compare the secret at the provider with the configured one, then look for what changes bodies on the way"
            }
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verifies => f.write_str("it verifies with the configuration in force"),
            Self::Replayed => f.write_str("it verifies, and the same signed bytes had been accepted before"),
            Self::NoDeliveryId => f.write_str("it verifies, and has no delivery id"),
            Self::SecretExpired { secret, not_after } => {
                write!(f, "signed with another secret of this source, `{secret}`, which expired at {not_after}")
            }
            Self::SecretNotYetValid { secret, not_before } => {
                write!(f, "signed with another secret of this source, `{secret}`, which is not valid before {not_before}")
            }
            Self::SecretOfOtherSource { secret, source } => {
                write!(f, "signed with the secret `{secret}` of another source, `{source}`")
            }
            Self::WrongPath { source, path } => {
                write!(f, "sent to the wrong path: it verifies as a request of the source `{source}` at {path}")
            }
            Self::SecretHasSpace { secret } => write!(
                f,
                "the configured secret `{secret}` has white space or something invisible (a space, a newline, a byte order mark) around it that the sender's does not have"
            ),
            Self::SenderSecretHasSpace { secret } => write!(
                f,
                "the sender's secret has white space (a space or a trailing newline) around it that the configured `{secret}` does not have"
            ),
            Self::KeyEncoding { secret, configured, sender } => {
                write!(f, "the key of `{secret}` is {configured}; the sender's is {sender}")
            }
            Self::BodyChanged(change) => f.write_str(match change {
                BodyChange::NewlineAdded => "the body was changed in transit: a newline was added at its end",
                BodyChange::NewlineRemoved => "the body was changed in transit: a newline was removed from its end",
                BodyChange::LineEnds => "the body was changed in transit: its line ends (CRLF or LF) are other ones",
                BodyChange::ByteOrderMark => "the body was changed in transit: a byte order mark was added or removed",
                BodyChange::JsonReencoded => "the body was changed in transit: its JSON was parsed and re-encoded",
            }),
            Self::TimestampUnit { configured, sender, .. } => {
                write!(f, "the timestamp is in {sender}, and the scheme says {configured}")
            }
            Self::ClockOff { seconds, .. } if *seconds > 0 => write!(
                f,
                "the timestamp is {seconds} s behind our clock: a clock is off, or the request was on its way for so long"
            ),
            Self::ClockOff { seconds, .. } => {
                write!(f, "the timestamp is {} s ahead of our clock: a clock is off", seconds.unsigned_abs())
            }
            Self::TokenTime => f.write_str("the token had expired, or was not valid yet: a clock may be off"),
            Self::OtherUrl { url } => write!(f, "the provider signed another URL: {url}"),
            Self::SignatureForm { sender } => write!(f, "the signature is right as {sender}, not as the scheme says"),
            Self::OtherProvider { providers, proven: true } => {
                write!(f, "it verifies as a request of the provider `{}`", providers.join("` or `"))
            }
            Self::OtherProvider { providers, proven: false } => {
                write!(f, "it has a header of the provider `{}`", providers.join("` or `"))
            }
            Self::HeaderTwice { name } => write!(f, "the header `{name}` is there twice, or has a twin"),
            Self::Compressed { still: true } => f.write_str("the body was compressed in transit"),
            Self::Compressed { still: false } => {
                f.write_str("the body says that it is compressed, and may have been unpacked in transit")
            }
            Self::BodyEmpty => f.write_str("the body is empty, and may have been lost in transit"),
            Self::BodyMissing => f.write_str("the body was not kept, so nothing can be tried"),
            Self::Missing { what, at } => write!(f, "the {} is missing: {at} is not there", what.noun()),
            Self::Empty { what, at } => write!(f, "the {} is empty: {at} has nothing in it", what.noun()),
            Self::Malformed { what, at, why } => write!(f, "the {} ({at}) is malformed: {why}", what.noun()),
            Self::OtherValue { at, url: Some(url) } => {
                write!(f, "{at} is another one than the URL of this source, which is taken to be {url}")
            }
            Self::OtherValue { at, url: None } => write!(f, "{at} is another one than the scheme demands"),
            Self::TokenForm { secret, sender } => {
                write!(f, "the secret `{secret}` is presented {sender}, not as the scheme says")
            }
            Self::BasicHalf { secret, other } => {
                write!(f, "of the basic authentication `{secret}` only the {other} differs")
            }
            Self::UrlSigned { url } => {
                write!(f, "the provider signs the URL, which is taken to be {url}: the one that it was told may be another")
            }
            Self::NoActiveSecret => f.write_str("no secret of this source was valid when it came"),
            Self::UnknownToken => f.write_str("the token that it presents is the secret of no source"),
            Self::PublishedKeys => f.write_str(
                "it is verified with keys that the sender publishes, which are not asked for to explain it: it may be somebody else's, or a body that was changed in transit",
            ),
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::UnknownSecret => f.write_str("it was made with a secret that no source has, or of a body that was changed beyond recognition"),
        }
    }
}
