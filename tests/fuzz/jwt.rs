//! A token's head and its claims, a line each, then the text of the header that has the token, and the body. In the claims NOW
//! stands for the time and HASH for the digest of the body; in the header H, C and S stand for head, claims and the right
//! signature of both. What is accepted is a token of three parts by the algorithm of the scheme, whose claims say what they
//! have to; and what is plainly that is accepted.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::support::{BASE_URL, NOW, WINDOW_SECONDS, line, now, received, scheme, signature, verifier};

const SCHEME: &str = "auth = \"jwt\"\ndelivery_id = [\"json:/id\"]\ntimestamp = { at = \"claim:iat\", unit = \"s\" }\n\
    [jwt]\nat = \"header:x-token\"\nalgorithms = [\"HS256\"]\nclaims = { iss = [\"a\", \"b\"], aud = \"{url}\" }\n\
    required = [\"exp\"]\nbody_hash = { claim = \"hash\", encoding = \"hex\" }";
const LEEWAY_SECONDS: f64 = 60.0;

pub(super) fn check(input: &[u8]) {
    let Some((head, rest)) = line(input) else { return };
    let Some((claims, rest)) = line(rest) else { return };
    let Some((text, body)) = line(rest) else { return };
    let hash = hex::encode(Sha256::digest(body));
    let url = format!("{BASE_URL}/in");
    let claims = claims.replace("NOW", &NOW.to_string()).replace("HASH", &hash).replace("URL", &url);
    let (head, payload) = (BASE64.encode(head), BASE64.encode(&claims));
    let right = BASE64.encode(hex::decode(signature(format!("{head}.{payload}").as_bytes())).unwrap());
    let put = |letter: char| match letter {
        'H' => head.clone(),
        'C' => payload.clone(),
        'S' => right.clone(),
        other => other.to_string(),
    };
    let token: String = text.chars().map(put).collect();
    let Ok(value) = HeaderValue::from_str(&token) else { return };

    let verifier = verifier(scheme(SCHEME).unwrap());
    let headers = HeaderMap::from_iter([("x-token".parse().unwrap(), value)]);
    let early = verifier.precheck(&Method::POST, "/in", &headers, now());
    let outcome = verifier.verify(received("/in", headers, body)).map(drop);
    assert!(
        early.is_ok() || outcome.is_err(),
        "{early:?} without the body and {outcome:?} with it: {token:?}"
    );

    let is_good = is_good(&token, &hash, &url);
    assert!(is_good || outcome.is_err(), "accepted: {token:?} with {claims:?}");
    // A key that is there twice is read by one and refused by the other.
    let is_plain = text == "H.C.S" && BASE64.decode(&head).is_ok_and(|head| head == br#"{"alg":"HS256"}"#);
    assert!(outcome.is_ok() || !is_good || !is_plain, "{outcome:?}: {token:?} with {claims:?}");
}

/// Another reading of a token.
fn is_good(token: &str, hash: &str, url: &str) -> bool {
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    let Some((input, given)) = token.rsplit_once('.') else { return false };
    let Ok(given) = BASE64.decode(given) else { return false };
    let Some((head, payload)) = input.split_once('.') else { return false };
    let json = |part: &str| serde_json::from_slice::<Value>(&BASE64.decode(part).ok()?).ok();
    let (Some(head), Some(claims)) = (json(head), json(payload)) else { return false };
    let is_url = |value: &Value| value == url;
    let is_audience =
        is_url(&claims["aud"]) || claims["aud"].as_array().is_some_and(|list| list.iter().any(is_url));
    let is_issuer = |value: &Value| value == "a" || value == "b";
    let is_issued =
        is_issuer(&claims["iss"]) || claims["iss"].as_array().is_some_and(|list| list.iter().any(is_issuer));
    // No clock tells of others.
    let seconds = |claim: &str| claims[claim].as_f64().filter(|at| at.abs() < 2.5e11);
    hex::encode(given) == signature(input.as_bytes())
        && head["alg"] == "HS256"
        && is_issued
        && is_audience
        && claims["hash"].as_str().is_some_and(|given| given.eq_ignore_ascii_case(hash))
        && seconds("exp").is_some_and(|end| end.trunc() + LEEWAY_SECONDS >= NOW as f64)
        && claims["iat"].as_u64().is_some_and(|at| at.abs_diff(NOW as u64) <= WINDOW_SECONDS as u64)
        && (claims.get("nbf").is_none()
            || seconds("nbf").is_some_and(|at| at.trunc() <= (NOW + WINDOW_SECONDS) as f64))
}
