//! A JSON pointer and, from the second line on, a body: what is found there is what serde_json's tree has there.

use http::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::support::{SECRET, line, received, scheme, toml_string, verifier};

/// With a recursion, each level would take a frame of the stack: more than there is of it.
const LEVELS: usize = 20_000;

pub(super) fn check(input: &[u8]) {
    let Some((pointer, body)) = line(input) else { return };
    let place = toml_string(&format!("json:{pointer}"));
    let text = format!("auth = \"token\"\ntoken = {{ header = \"x-token\" }}\nevent = [{place}]");
    let scheme = scheme(&text);
    assert_eq!(scheme.is_some(), pointer.starts_with('/'), "{pointer:?}");
    let Some(scheme) = scheme else { return };

    let verifier = verifier(scheme);
    let find = |body: &[u8]| {
        let headers = HeaderMap::from_iter([("x-token".parse().unwrap(), HeaderValue::from_static(SECRET))]);
        verifier.verify(received("/in", headers, body)).unwrap().delivery().event.clone()
    };
    let found = find(body);
    // Where it need not look, a body may be wrong in what only a tree would show.
    let Ok(tree) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(found, expected(&tree, pointer), "{pointer:?} in {:?}", String::from_utf8_lossy(body));

    let object = body.trim_ascii_start();
    if tree.as_object().is_some_and(|object| !object.is_empty() && !object.contains_key("bomb"))
        && !pointer.starts_with("/bomb")
    {
        let bomb =
            [&b"{\"bomb\":"[..], &b"[".repeat(LEVELS), &b"]".repeat(LEVELS), b",", &object[1..]].concat();
        assert_eq!(find(&bomb), found, "beside {LEVELS} levels");
    }
    let nested = [&b"[".repeat(LEVELS)[..], body].concat();
    assert_eq!(find(&nested), None, "below {LEVELS} levels that nobody closes");
}

/// A text that can be stored and sent on, or a whole number.
fn expected(tree: &Value, pointer: &str) -> Option<String> {
    let steps: Vec<_> = pointer.split('/').skip(1).collect();
    let text = text_at(tree, &steps)?;
    (!text.is_empty() && text.len() <= 256 && !text.chars().any(char::is_control)).then_some(text)
}

fn text_at(tree: &Value, steps: &[&str]) -> Option<String> {
    match (steps.iter().position(|step| *step == "*"), tree) {
        (Some(0), Value::Array(list)) => {
            let mut texts = list.iter().map(|element| text_at(element, &steps[1..]));
            let first = texts.next()??;
            texts.all(|text| text.as_ref() == Some(&first)).then_some(first)
        }
        (Some(at), tree) => {
            let (before, rest) = steps.split_at(at.max(1));
            text_at(tree.pointer(&format!("/{}", before.join("/")))?, rest)
        }
        (None, tree) => {
            let pointer: String = steps.iter().map(|step| format!("/{step}")).collect();
            match tree.pointer(&pointer)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) if !number.is_f64() => Some(number.to_string()),
                _ => None,
            }
        }
    }
}
