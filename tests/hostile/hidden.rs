//! What nobody may read, and looking for it in every form in which it could have been written down.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// By what it is, its forms.
#[derive(Default)]
pub(crate) struct Hidden(BTreeMap<String, BTreeSet<String>>);

impl Hidden {
    pub(crate) fn add(&mut self, what: &str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        assert!(secret.len() >= 16, "{what} is too short to be told from chance");
        self.0.entry(what.to_owned()).or_default().extend(forms(secret));
    }

    /// What of it is in `text`, and in which form.
    pub(crate) fn find(&self, text: &str) -> Vec<(&str, &str)> {
        let all = self.0.iter().flat_map(|(what, forms)| forms.iter().map(move |form| (what, form)));
        all.filter(|(_, form)| text.contains(*form)).map(|(what, form)| (&**what, &**form)).collect()
    }
}

/// As text, in base64 of both alphabets, in hex, percent-encoded, escaped in JSON, and as Rust shows bytes and texts.
fn forms(secret: &[u8]) -> BTreeSet<String> {
    let percent = |kept: fn(u8) -> bool, lower: bool| -> String {
        let byte = |byte: &u8| match (kept(*byte), lower) {
            (true, _) => char::from(*byte).to_string(),
            (false, true) => format!("%{byte:02x}"),
            (false, false) => format!("%{byte:02X}"),
        };
        secret.iter().map(byte).collect()
    };
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let mut forms = BTreeSet::from([
        STANDARD.encode(secret),
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        hex::encode(secret),
        hex::encode_upper(secret),
        percent(unreserved, true),
        percent(unreserved, false),
        percent(|_| false, true),
        percent(|_| false, false),
        format!("{secret:?}").trim_matches(['[', ']']).to_owned(),
        secret.escape_ascii().to_string(),
    ]);
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.insert(text.to_owned());
        forms.insert(format!("{text:?}").trim_matches('"').to_owned());
        forms.insert(serde_json::to_string(text).unwrap().trim_matches('"').to_owned());
    }
    forms
}

/// A sweep that finds nothing proves nothing unless it finds what is there.
#[test]
fn whatever_is_planted_is_found_in_each_of_its_forms() {
    let secret = "a \"secret\"/with+signs=\n";
    let mut hidden = Hidden::default();
    hidden.add("planted", secret);
    let planted = [
        "a \"secret\"/with+signs=\n",
        r#"a \"secret\"/with+signs=\n"#,
        "YSAic2VjcmV0Ii93aXRoK3NpZ25zPQo=",
        "YSAic2VjcmV0Ii93aXRoK3NpZ25zPQo",
        "612022736563726574222f776974682b7369676e733d0a",
        "612022736563726574222F776974682B7369676E733D0A",
        "a%20%22secret%22%2Fwith%2Bsigns%3D%0A",
        "97, 32, 34, 115, 101, 99, 114, 101, 116, 34, 47, 119, 105, 116, 104, 43, 115, 105, 103, 110, 115, 61, 10",
    ]
    .map(str::to_owned);
    for form in planted.iter().chain(&forms(secret.as_bytes())) {
        let line = format!("{{\"level\":\"DEBUG\",\"message\":\"x{form}y\"}}");
        assert!(!hidden.find(&line).is_empty(), "{form}");
    }
    assert!(hidden.find("{\"message\":\"a secret with signs\"}").is_empty());
}
