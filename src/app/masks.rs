//! Masks over what could be used to forge requests: a signature that was refused for its time may be good for another
//! gateway, and a token is good for ever.

use http::HeaderMap;

use super::Parts;

/// What names of headers and query fields have in them that hold secrets, tokens or signatures.
const SENSITIVE: [&str; 12] = [
    "auth",
    "cookie",
    "token",
    "secret",
    "signature",
    "hmac",
    "key",
    "password",
    "session",
    "credential",
    "mac",
    "jwt",
];
/// Names short enough to be found in others by chance.
const SENSITIVE_WHOLE: [&str; 3] = ["sig", "code", "sign"];

/// The names that hold proof, by the configuration in force.
pub(super) struct Masks {
    headers: Vec<String>,
    fields: Vec<String>,
}

impl Parts {
    pub(super) fn masks(&self) -> Masks {
        let (headers, fields) = self.ingest.proof_places();
        Masks { headers, fields }
    }
}

impl Masks {
    pub(super) fn headers(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let shown = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let name = name.to_string();
            let text = if self.headers.contains(&name) || is_sensitive(&name) {
                masked(value.len())
            } else {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            };
            (name, text)
        };
        headers.iter().map(shown).collect()
    }

    pub(super) fn target(&self, target: &str) -> String {
        let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
        let shown = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, value)) if self.fields.iter().any(|field| field == name) || is_sensitive(name) => {
                format!("{name}={}", masked(value.len()))
            }
            // Without a name it may be a token, as some senders have it.
            None => masked(pair.len()),
            Some(_) => pair.to_owned(),
        });
        format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
    }
}

fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SENSITIVE.iter().any(|part| name.contains(part)) || SENSITIVE_WHOLE.contains(&&*name)
}

fn masked(bytes: usize) -> String {
    format!("…({bytes} bytes)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_used_again_is_masked() {
        let masks = Masks { headers: vec!["x-acme".to_owned()], fields: vec!["who".to_owned()] };
        let names =
            ["authorization", "cookie", "x-hub-signature-256", "x-acme", "x-api-key", "x-webhook-token"];
        let mut headers = HeaderMap::new();
        for name in names {
            headers.insert(name, "hunter2".parse().unwrap());
        }
        headers.insert("x-github-event", "push".parse().unwrap());
        for (name, value) in masks.headers(&headers) {
            assert_eq!(value, if name == "x-github-event" { "push" } else { "…(7 bytes)" }, "{name}");
        }
        assert_eq!(
            masks.target("/in?a=1&token=abc&who=x&hunter2"),
            "/in?a=1&token=…(3 bytes)&who=…(1 bytes)&…(7 bytes)"
        );
        assert_eq!(masks.target("/in"), "/in");
    }
}
