//! Contentful signs method, path and body, and those headers that another header names
//! (<https://www.contentful.com/developers/docs/webhooks/request-verification/>). Only what it names is proven, so it has to
//! name the time.

use std::borrow::Cow;

use http::HeaderName;

use crate::verify::Refusal;
use crate::verify::algorithm::Algorithm;
use crate::verify::encoding::Encoding;
use crate::verify::locate::Request;
use crate::verify::signed::Signed;

const SIGNATURE: HeaderName = HeaderName::from_static("x-contentful-signature");
const SIGNED_HEADERS: HeaderName = HeaderName::from_static("x-contentful-signed-headers");
pub(super) const TIMESTAMP: HeaderName = HeaderName::from_static("x-contentful-timestamp");
/// Contentful signs a handful, and those that its users add.
const HEADERS_MAX: usize = 32;

pub(super) fn signed<'a>(request: &Request<'a>) -> Result<Vec<Signed<'a>>, Refusal> {
    let algorithm = Algorithm::HmacSha256;
    let signature = request.find_header(&SIGNATURE)?.ok_or(Refusal::SignatureMissing)?;
    let signature = Encoding::Hex.decode(signature).filter(|bytes| algorithm.may_have_length(bytes.len()));
    let signature = signature.ok_or(Refusal::SignatureMalformed)?;
    let list = request.find_header(&SIGNED_HEADERS)?.ok_or(Refusal::ValueMissing)?;

    let mut pieces = vec![
        Cow::Borrowed(request.method.as_str().as_bytes()),
        Cow::Borrowed(&b"\n"[..]),
        Cow::Borrowed(request.target.as_bytes()),
        Cow::Borrowed(b"\n"),
    ];
    let mut has_time = false;
    for (index, name) in list.split(|byte| *byte == b',').enumerate() {
        let name = HeaderName::from_bytes(name.trim_ascii()).map_err(|_| Refusal::SignatureMalformed)?;
        if index == HEADERS_MAX {
            return Err(Refusal::SignatureMalformed);
        }
        has_time |= name == TIMESTAMP;
        let value = request.find_header(&name)?.ok_or(Refusal::ValueMissing)?;
        let separator = if index == 0 { "" } else { ";" };
        pieces.push(Cow::Owned(format!("{separator}{name}:").into_bytes()));
        pieces.push(Cow::Borrowed(value.trim_ascii()));
    }
    if !has_time {
        return Err(Refusal::TimestampMissing);
    }
    pieces.push(Cow::Borrowed(b"\n"));
    pieces.push(Cow::Borrowed(request.body.unwrap_or_default()));
    Ok(vec![Signed { algorithm, key_id: None, pieces, signatures: vec![signature] }])
}
