//! Adyen's notifications of payments: each item of the body has a signature of its own, over eight of its fields, with
//! nothing where one is missing (<https://docs.adyen.com/development-resources/webhooks/secure-webhooks/verify-hmac-signatures>).

use std::borrow::Cow;

use serde::Deserialize;

use crate::verify::Refusal;
use crate::verify::algorithm::Algorithm;
use crate::verify::encoding::Encoding;
use crate::verify::locate::{Request, is_cheap};
use crate::verify::signed::Signed;

/// Adyen sends one item in JSON, and a few where batches are asked for.
const ITEMS_MAX: usize = 16;

#[derive(Deserialize)]
struct Notification<'a> {
    #[serde(rename = "notificationItems", borrow)]
    items: Vec<Container<'a>>,
}

#[derive(Deserialize)]
struct Container<'a> {
    #[serde(rename = "NotificationRequestItem", borrow)]
    item: Item<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    #[serde(borrow, default)]
    psp_reference: Cow<'a, str>,
    #[serde(borrow, default)]
    original_reference: Cow<'a, str>,
    #[serde(borrow, default)]
    merchant_account_code: Cow<'a, str>,
    #[serde(borrow, default)]
    merchant_reference: Cow<'a, str>,
    #[serde(default)]
    amount: Amount,
    #[serde(borrow, default)]
    event_code: Cow<'a, str>,
    /// `"true"` as text, or as a value.
    #[serde(default)]
    success: serde_json::Value,
    #[serde(borrow)]
    additional_data: AdditionalData<'a>,
}

#[derive(Deserialize, Default)]
struct Amount {
    value: Option<i64>,
    #[serde(default)]
    currency: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdditionalData<'a> {
    #[serde(borrow)]
    hmac_signature: Cow<'a, str>,
}

pub(super) fn signed<'a>(request: &Request<'a>) -> Result<Vec<Signed<'a>>, Refusal> {
    let body = request.body.unwrap_or_default();
    if !is_cheap(body) {
        return Err(Refusal::SignatureMissing);
    }
    let Notification { items } = serde_json::from_slice(body).map_err(|_| Refusal::SignatureMissing)?;
    if items.len() > ITEMS_MAX {
        return Err(Refusal::TooManySignatures);
    }
    if items.is_empty() {
        return Err(Refusal::SignatureMissing);
    }
    items.into_iter().map(|container| container.item.signed()).collect()
}

impl Item<'_> {
    fn signed<'a>(&self) -> Result<Signed<'a>, Refusal> {
        let value = self.amount.value.map(|value| value.to_string()).unwrap_or_default();
        let success = match &self.success {
            serde_json::Value::Bool(success) => success.to_string(),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        let fields = [
            &*self.psp_reference,
            &self.original_reference,
            &self.merchant_account_code,
            &self.merchant_reference,
            &value,
            &self.amount.currency,
            &self.event_code,
            &success,
        ];
        let signature = Encoding::Base64.decode(self.additional_data.hmac_signature.as_bytes());
        let algorithm = Algorithm::HmacSha256;
        let signature = signature
            .filter(|signature| algorithm.may_have_length(signature.len()))
            .ok_or(Refusal::SignatureMalformed)?;
        Ok(Signed {
            algorithm,
            key_id: None,
            pieces: vec![Cow::Owned(fields.join(":").into_bytes())],
            signatures: vec![signature],
        })
    }
}
