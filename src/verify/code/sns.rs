//! Amazon SNS signs fields of its JSON, in the order of their names, with a line each for name and value
//! (<https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html>). The certificate is named by a URL in
//! the message, which is believed only when it is one of SNS's own.

use std::borrow::Cow;

use serde::Deserialize;

use crate::verify::Refusal;
use crate::verify::algorithm::Algorithm;
use crate::verify::encoding::Encoding;
use crate::verify::locate::{Request, is_cheap};
use crate::verify::signed::Signed;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Message<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "SubscribeURL")]
    subscribe_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    topic_arn: Cow<'a, str>,
    #[serde(borrow, rename = "Type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    signature_version: Cow<'a, str>,
    #[serde(borrow)]
    signature: Cow<'a, str>,
}

pub(super) fn signed<'a>(request: &Request<'a>) -> Result<Vec<Signed<'a>>, Refusal> {
    let body = request.body.unwrap_or_default();
    if !is_cheap(body) {
        return Err(Refusal::SignatureMissing);
    }
    let message: Message<'a> = serde_json::from_slice(body).map_err(|_| Refusal::SignatureMissing)?;
    let algorithm = match &*message.signature_version {
        "1" => Algorithm::RsaPkcs1Sha1,
        "2" => Algorithm::RsaPkcs1Sha256,
        _ => return Err(Refusal::SignatureMalformed),
    };
    let signature = Encoding::Base64.decode(message.signature.as_bytes());
    let signature = signature
        .filter(|signature| algorithm.may_have_length(signature.len()))
        .ok_or(Refusal::SignatureMalformed)?;
    let present = |value: Option<Cow<'a, str>>| value.ok_or(Refusal::ValueMissing);
    let fields = match &*message.kind {
        "Notification" => vec![
            ("Message", Some(message.message)),
            ("MessageId", Some(message.message_id)),
            ("Subject", message.subject),
            ("Timestamp", Some(message.timestamp)),
            ("TopicArn", Some(message.topic_arn)),
            ("Type", Some(message.kind)),
        ],
        "SubscriptionConfirmation" | "UnsubscribeConfirmation" => vec![
            ("Message", Some(message.message)),
            ("MessageId", Some(message.message_id)),
            ("SubscribeURL", Some(present(message.subscribe_url)?)),
            ("Timestamp", Some(message.timestamp)),
            ("Token", Some(present(message.token)?)),
            ("TopicArn", Some(message.topic_arn)),
            ("Type", Some(message.kind)),
        ],
        _ => return Err(Refusal::ValueMismatch),
    };
    let mut pieces = Vec::with_capacity(4 * fields.len());
    for (name, value) in fields {
        let Some(value) = value else { continue };
        let value = match value {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        pieces.extend([Cow::Borrowed(name.as_bytes()), Cow::Borrowed(b"\n"), value, Cow::Borrowed(b"\n")]);
    }
    Ok(vec![Signed { algorithm, key_id: None, pieces, signatures: vec![signature] }])
}

/// Whether the field at this JSON pointer is signed in messages of every type.
pub(super) fn signs(pointer: &str) -> bool {
    ["/Message", "/MessageId", "/Timestamp", "/TopicArn", "/Type"].contains(&pointer)
}
