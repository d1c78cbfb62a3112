//! The text of a signature's header, in which SIG stands for the right signature, and, from the second line on, a body:
//! what verifies is said to, and nothing else; no secret and no signature is told; and a newline that was added to a body
//! is found, whatever the body is.

use countersign::clock::Timestamp;
use countersign::verify::{BodyChange, Captured, Cause, Explanation, Verifier};
use http::{HeaderMap, HeaderValue, Method};

use super::support::{SECRET, line, now, received, scheme, signature, verifier};

const HEADER: &str = "x-hub-signature-256";

fn explain(
    verifier: &Verifier,
    headers: &HeaderMap,
    body: Option<&[u8]>,
    received_at: Timestamp,
) -> Explanation {
    let captured =
        Captured { method: &Method::POST, target: "/in", headers, body, received_at, refused: None };
    verifier.explain(&captured, &[])
}

pub(super) fn check(input: &[u8]) {
    let Some((header, body)) = line(input) else { return };
    let scheme = scheme(&format!(
        "auth = \"signature\"\nsigned = \"{{body}}\"\n[signature]\nfrom = [\"header:{HEADER}\"]\n\
         algorithm = \"hmac-sha256\"\nencoding = \"hex\"\ngrammar = {{ kind = \"prefix\", text = \"sha256=\" }}"
    ));
    let verifier = verifier(scheme.unwrap());
    let right = signature(body);
    let Ok(value) = HeaderValue::from_str(&header.replace("SIG", &right)) else { return };
    let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), value)]);

    let explanation = explain(&verifier, &headers, Some(body), now());
    let refusal = verifier.verify(received("/in", headers.clone(), body)).err();
    assert_eq!(explanation.refusal, refusal);
    assert_eq!(explanation.causes == [Cause::Verifies], refusal.is_none(), "{:?}", explanation.causes);
    let words: String = explanation.causes.iter().map(Cause::to_string).collect();
    let told = format!("{explanation:?} {words}");
    assert!(!told.contains(SECRET) && !told.contains(&right), "{told}");
    assert!(!explain(&verifier, &headers, None, now()).causes.contains(&Cause::Verifies));

    if !body.ends_with(b"\n") && body.trim_ascii_end() == body {
        let value = HeaderValue::from_str(&format!("sha256={right}")).unwrap();
        let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), value)]);
        let longer = [body, b"\n"].concat();
        let causes = explain(&verifier, &headers, Some(&longer), now()).causes;
        assert_eq!(causes, [Cause::BodyChanged(BodyChange::NewlineAdded)]);
    }
}
