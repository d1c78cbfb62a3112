//! Keys that senders publish: where they are, as the scheme or the request says, and what becomes of the document there.
//! Only hosts and paths that the provider documents are believed; fetching is left to the caller.

use super::Refusal;
use super::locate::{Locator, Request};

/// Where the keys of a source without secrets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeySource {
    At(String),
    /// Where the request says, if that is one of the sender's own places.
    Named {
        at: Locator,
        hosts: Vec<Pattern>,
        path: Pattern,
    },
}

/// A text in which `*` stands for one or more letters, digits, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(String);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    fn matches(&self, text: &str) -> bool {
        let Some((begin, end)) = self.0.split_once('*') else { return text == self.0 };
        let middle = text.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        middle.is_some_and(|middle| !middle.is_empty() && middle.bytes().all(is_plain))
    }
}

impl KeySource {
    /// The URL of the document that `request` has to be checked with.
    pub(super) fn url(&self, request: &Request<'_>) -> Result<String, Refusal> {
        match self {
            Self::At(url) => Ok(url.clone()),
            Self::Named { at, hosts, path } => {
                let url = request.find(at)?.ok_or(Refusal::ValueMissing)?;
                let url = std::str::from_utf8(&url).map_err(|_| Refusal::ValueMismatch)?;
                let is_known = |place: &str| path.matches(place);
                if at_host(url, hosts).is_some_and(is_known) {
                    Ok(url.to_owned())
                } else {
                    Err(Refusal::ValueMismatch)
                }
            }
        }
    }

    /// What follows the host in a URL, when that is one of the sender's.
    pub(super) fn place<'u>(&self, url: &'u str) -> Option<&'u str> {
        match self {
            Self::At(_) => None,
            Self::Named { hosts, .. } => at_host(url, hosts),
        }
    }
}

fn at_host<'u>(url: &'u str, hosts: &[Pattern]) -> Option<&'u str> {
    let rest = url.strip_prefix("https://")?;
    let (host, place) = rest.split_at_checked(rest.find('/')?)?;
    hosts.iter().any(|known| known.matches(host)).then_some(place)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    #[test]
    fn only_documented_places_are_believed() {
        let source = KeySource::Named {
            at: "json:/u".parse().unwrap(),
            hosts: ["sns.*.amazonaws.com", "sns.*.amazonaws.com.cn", "api.paypal.com"]
                .map(Pattern::new)
                .to_vec(),
            path: Pattern::new("/SimpleNotificationService-*.pem"),
        };
        let url = |url: &str| {
            let (body, headers) = (serde_json::json!({ "u": url }).to_string(), HeaderMap::new());
            source.url(&Request {
                method: &Method::POST,
                base_url: "",
                other_base_url: "",
                target: "/",
                headers: &headers,
                body: Some(body.as_bytes()),
            })
        };
        let path = "/SimpleNotificationService-0123abcd.pem";
        for good in ["sns.eu-west-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn", "api.paypal.com"] {
            let good = format!("https://{good}{path}");
            assert_eq!(url(&good).as_deref(), Ok(&*good));
        }
        assert_eq!(url(""), Err(Refusal::ValueMissing));
        let host = "sns.eu-west-1.amazonaws.com";
        for bad in [
            format!("http://{host}{path}"),
            format!("HTTPS://{host}{path}"),
            format!("https://{host}:443{path}"),
            format!("https://user@{host}{path}"),
            format!("https://{host}.evil.example{path}"),
            format!("https://evil.example/{host}{path}"),
            format!("https://evil.example#{host}{path}"),
            format!("https://sns.a.b.amazonaws.com{path}"),
            format!("https://sns..amazonaws.com{path}"),
            format!("https://SNS.eu-west-1.amazonaws.com{path}"),
            format!("https://s3.eu-west-1.amazonaws.com{path}"),
            format!("https://{host}/bucket{path}"),
            format!("https://{host}{path}?x"),
            format!("https://{host}/SimpleNotificationService-/../x.pem"),
            format!("https://{host}/SimpleNotificationService-%2e.pem"),
            format!("https://{host}"),
            "https://".to_owned(),
            path.to_owned(),
        ] {
            assert_eq!(url(&bad), Err(Refusal::ValueMismatch), "{bad}");
        }
    }
}
