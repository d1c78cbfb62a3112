//! Reads a scheme from its table.

use super::{Auth, BodyDigest, Scheme, SignatureRule, TimestampPlace, TimestampRule, TokenRule};
use crate::reader::{Table, Value};
use crate::verify::algorithm::Algorithm;
use crate::verify::code::Code;
use crate::verify::encoding::Encoding;
use crate::verify::grammar::{Grammar, Names};
use crate::verify::handshake::Handshake;
use crate::verify::jwt::{self, ClaimValue, JwtRule};
use crate::verify::key::{KeyEncoding, KeyRule};
use crate::verify::locate::Locator;
use crate::verify::published::{KeySource, Pattern};
use crate::verify::template::Template;
use crate::verify::window::Unit;

impl Scheme {
    /// Reads the keys of `[source.scheme]`. Every problem is reported; `None` when there was one that leaves no scheme.
    pub fn read(table: &Table<'_>) -> Option<Self> {
        Self::read_fields(table, false)
    }

    /// Reads the keys that a preset shares with `[source.scheme]`. Only presets may be code.
    pub(in crate::verify) fn read_fields(table: &Table<'_>, is_preset: bool) -> Option<Self> {
        const KINDS: &str = "one of \"signature\", \"token\", \"jwt\"";
        let auth = table.require("auth", KINDS).and_then(|value| match value.text()? {
            "signature" => read_signature(table).map(Auth::Signature),
            "token" => read_token(table).map(Auth::Token),
            "jwt" => read_jwt(table).map(Auth::Jwt),
            "code" if is_preset => table.require("code", "a name")?.one_of(&Code::NAMES).map(Auth::Code),
            other => {
                value.wrong(format!("`{other}` is not a choice here"), KINDS);
                None
            }
        });
        if auth.is_none() {
            // Known keys of some scheme, so that one mistake is not reported five times.
            for key in ["signature", "key", "signed", "token", "body_digest", "jwt"] {
                drop(table.get(key));
            }
        }
        let timestamp = table.get("timestamp").map(|value| read_timestamp(&value));
        let delivery_id = table.get("delivery_id").map_or(Some(Vec::new()), |value| locators(&value));
        let event = table.get("event").map_or(Some(Vec::new()), |value| locators(&value));
        let keys = table.get("keys").map(|value| read_keys(&value));
        let require = table.get("require").map_or(Some(Vec::new()), |value| read_require(&value));
        let handshake = table.get("handshake").map_or(Some(Vec::new()), |value| read_handshake(&value));
        let origins = table.get("origins").map_or(Some(Vec::new()), |value| texts(&value, "a list of names"));
        let scheme = Self {
            auth: auth?,
            timestamp: match timestamp {
                Some(rule) => Some(rule?),
                None => None,
            },
            delivery_id: delivery_id?,
            event: event?,
            require: require?,
            keys: match keys {
                Some(source) => Some(source?),
                None => None,
            },
            handshake: handshake?,
            origins: origins?,
        };
        scheme.agrees(table).then_some(scheme)
    }

    /// Whether the fields fit each other.
    fn agrees(&self, table: &Table<'_>) -> bool {
        if self.keys.is_some() && !self.has_public_keys() {
            table.wrong("only public keys are published", "leave `keys` out");
            return false;
        }
        let claimed = matches!(self.timestamp, Some(TimestampRule { at: TimestampPlace::Claim(_), .. }));
        if claimed && !matches!(self.auth, Auth::Jwt(_)) {
            table.wrong("only a token has claims", "`timestamp = { at = \"header:…\", unit = \"s\" }`");
            return false;
        }
        let Auth::Signature(rule) = &self.auth else { return true };
        let any = |has: fn(&Template) -> bool| rule.signed.iter().any(has);
        let all = |has: fn(&Template) -> bool| rule.signed.iter().all(has);
        let beside = matches!(self.timestamp, Some(TimestampRule { at: TimestampPlace::Signature, .. }));
        let mistakes = [
            (
                beside != rule.grammar.has_timestamp(),
                "the timestamp's place and the signature's grammar disagree",
                "`timestamp = { at = \"signature\", … }` goes with a grammar that names the timestamp, and only with it",
            ),
            (
                any(Template::has_timestamp) && self.timestamp.is_none(),
                "`{timestamp}` is signed, but `timestamp` does not say where it is",
                "add `timestamp = { at = \"header:…\", unit = \"s\" }`",
            ),
            (
                beside && !all(Template::has_timestamp),
                "the timestamp beside the signature is not signed",
                "add {timestamp} to `signed`, or drop `timestamp` here and in the grammar",
            ),
            (
                any(Template::has_id) && self.delivery_id.is_empty(),
                "`{id}` is signed, but `delivery_id` does not say where it is",
                "add `delivery_id = [\"header:…\"]`",
            ),
            (
                rule.algorithm.is_digest() != all(Template::has_secret)
                    || rule.algorithm.is_digest() != any(Template::has_secret),
                "`{secret}` goes with a plain digest, and only with it",
                "with `digest-sha256` nothing but {secret} in `signed` proves the sender; an HMAC needs none",
            ),
        ];
        for (_, message, help) in mistakes.iter().filter(|(wrong, ..)| *wrong) {
            table.wrong(*message, *help);
        }
        if !self.coverage().body {
            table.doubtful(
                "`signed` does not cover the body",
                "with {body} in it the content would be proven, not only the sender",
            );
        }
        mistakes.iter().all(|(wrong, ..)| !wrong)
    }
}

fn read_handshake(value: &Value<'_>) -> Option<Vec<Handshake>> {
    let kinds = value.array("a list of handshakes, such as [\"hub-challenge\"]")?;
    // Every element is read, so that each mistake is reported.
    let kinds: Vec<_> = kinds.iter().map(|kind| kind.one_of(&Handshake::NAMES)).collect();
    kinds.into_iter().collect()
}

fn read_token(table: &Table<'_>) -> Option<TokenRule> {
    const HELP: &str = "`token = { header = \"NAME\" }`, or `{ at = \"query:NAME\" }`";
    let value = table.require("token", HELP)?;
    let token = value.table(HELP)?;
    let basic = token.get("basic").map_or(Some(false), |value| value.boolean());
    let at = match (token.get("header"), token.get("at")) {
        (Some(header), None) => header.parse(str::parse, "a header name").map(Locator::Header),
        (None, Some(at)) => at.parse(str::parse, Locator::HELP),
        (None, None) => {
            token.missing("header", "`header` is missing", HELP);
            None
        }
        (Some(_), Some(second)) => {
            second.wrong("`header` and `at` exclude each other", HELP);
            None
        }
    };
    Some(TokenRule { at: at?, basic: basic? })
}

fn read_jwt(table: &Table<'_>) -> Option<JwtRule> {
    const HELP: &str = "a table with `at`, `algorithms`, `claims` and so on";
    const ALGORITHMS: &str = "a list of \"HS256\", \"RS256\", \"ES256\" and so on";
    const CLAIMS: &str = "a table of texts, of {url}, of {config:NAME}, or of lists of these";
    let jwt = table.require("jwt", HELP)?.table(HELP)?;
    let at = jwt.require("at", Locator::HELP).and_then(|at| at.parse(str::parse, Locator::HELP));
    let algorithms = jwt.require("algorithms", ALGORITHMS).and_then(|value| {
        let algorithms: Vec<_> =
            value.array(ALGORITHMS)?.iter().map(|name| name.one_of(&jwt::ALGORITHMS)).collect();
        if algorithms.is_empty() {
            value.wrong("no algorithm is named", ALGORITHMS);
            return None;
        }
        algorithms.into_iter().collect()
    });
    let claims = jwt.get("claims").and_then(|value| value.table(CLAIMS));
    let claims: Vec<_> = claims.iter().flat_map(Table::entries).collect();
    let claims: Vec<_> = claims
        .into_iter()
        .map(|(name, value)| {
            let values =
                if value.is_text() { vec![value.text()?.to_owned()] } else { texts(&value, CLAIMS)? };
            Some((name, values.iter().map(|text| ClaimValue::parse(text)).collect()))
        })
        .collect();
    let required = jwt.get("required").map_or(Some(Vec::new()), |value| texts(&value, "a list of claims"));
    let body_hash = jwt.get("body_hash").map(|value| {
        let table = value.table("a table with `claim` and `encoding`")?;
        let claim = table.require("claim", "the claim's name").and_then(|value| value.text());
        let encoding = table.require("encoding", ENCODINGS).and_then(|value| value.one_of(&ENCODING_NAMES));
        Some((claim?.to_owned(), encoding?))
    });
    let id = jwt.get("id").map(|value| value.text());
    Some(JwtRule {
        at: at?,
        algorithms: algorithms?,
        claims: claims.into_iter().collect::<Option<_>>()?,
        required: required?,
        body_hash: match body_hash {
            Some(hash) => Some(hash?),
            None => None,
        },
        id: match id {
            Some(claim) => Some(claim?.to_owned()),
            None => None,
        },
    })
}

fn read_signature(table: &Table<'_>) -> Option<SignatureRule> {
    const HELP: &str = "a table with `from`, `grammar`, `algorithm` and `encoding`";
    let key = table.get("key").map_or(Some(KeyRule::default()), |value| read_key(&value));
    let signed = table.require("signed", Template::HELP).and_then(|value| read_signed(&value));
    let body_digest = table.get("body_digest").map(|value| read_body_digest(&value));
    let signature = table.require("signature", HELP)?.table(HELP)?;
    let from = signature.require("from", "a list of places").and_then(|value| {
        let from = locators(&value)?;
        if from.is_empty() {
            value.wrong("no place is named", Locator::HELP);
            return None;
        }
        Some(from)
    });
    let repeated = signature.get("repeated").map_or(Some(false), |value| value.boolean());
    let grammar = signature.get("grammar").map_or(Some(Grammar::Whole), |value| read_grammar(&value));
    let algorithm = signature
        .require("algorithm", "such as \"hmac-sha256\"")
        .and_then(|value| value.one_of(&Algorithm::NAMES));
    let encoding = signature.require("encoding", ENCODINGS).and_then(|value| value.one_of(&ENCODING_NAMES));
    Some(SignatureRule {
        from: from?,
        repeated: repeated?,
        grammar: grammar?,
        algorithm: algorithm?,
        encoding: encoding?,
        key: key?,
        signed: signed?,
        body_digest: match body_digest {
            Some(digest) => Some(digest?),
            None => None,
        },
    })
}

const ENCODINGS: &str = "one of \"hex\", \"base64\", \"base64url\"";
const ENCODING_NAMES: [(&str, Encoding); 3] =
    [("hex", Encoding::Hex), ("base64", Encoding::Base64), ("base64url", Encoding::Base64Url)];

/// One template, or a list of them.
fn read_signed(value: &Value<'_>) -> Option<Vec<Template>> {
    let read = |value: &Value<'_>| value.parse(Template::parse, Template::HELP);
    if value.is_text() {
        return Some(vec![read(value)?]);
    }
    let templates: Vec<_> = value.array(Template::HELP)?.iter().map(read).collect();
    if templates.is_empty() {
        value.wrong("nothing is signed", Template::HELP);
        return None;
    }
    templates.into_iter().collect()
}

fn read_body_digest(value: &Value<'_>) -> Option<BodyDigest> {
    const HELP: &str = "a table with `at`, `algorithm` and `encoding`";
    let table = value.table(HELP)?;
    let at = table.require("at", Locator::HELP).and_then(|at| at.parse(str::parse, Locator::HELP));
    let algorithm = table.require("algorithm", "\"sha256\" or \"sha1\"").and_then(|value| {
        value.one_of(&[("sha256", Algorithm::DigestSha256), ("sha1", Algorithm::DigestSha1)])
    });
    let encoding = table.require("encoding", ENCODINGS).and_then(|value| value.one_of(&ENCODING_NAMES));
    Some(BodyDigest { at: at?, algorithm: algorithm?, encoding: encoding? })
}

fn read_grammar(value: &Value<'_>) -> Option<Grammar> {
    const HELP: &str = "a table with `kind`: \"whole\", \"prefix\", \"kv\" or \"positional\"";
    const SEPARATORS: &str = "one or more characters that stand between the items, such as \",\"";
    let table = value.table(HELP)?;
    let separators = || {
        table.require("separators", SEPARATORS)?.parse(|text| non_empty(text).map(str::to_owned), SEPARATORS)
    };
    match table.require("kind", HELP)?.text()? {
        "whole" => Some(Grammar::Whole),
        "prefix" => {
            let help = "the text before the signature, such as \"sha256=\"";
            table
                .require("text", help)?
                .parse(|text| non_empty(text).map(|t| Grammar::Prefix(t.to_owned())), help)
        }
        "kv" => {
            let help = "the one character between name and value, such as \"=\"";
            let assign =
                table.require("assign", help).and_then(|value| value.parse(str::parse::<char>, help));
            let help = "the names whose values are signatures, such as [\"v1\"]";
            let take = table.require("take", help).and_then(|value| {
                let names = texts(&value, help)?;
                if names.is_empty() {
                    value.wrong("no name is taken", help);
                    return None;
                }
                Some(if names == ["*"] { Names::Any } else { Names::These(names) })
            });
            let timestamp = table.get("timestamp").map(|value| value.text());
            let help = "the one character between whole lists, each with its own timestamp";
            let groups = table.get("groups").map(|value| value.parse(str::parse::<char>, help));
            let separators = separators();
            Some(Grammar::Pairs {
                separators: separators?,
                assign: assign?,
                take: take?,
                timestamp: match timestamp {
                    Some(name) => Some(name?.to_owned()),
                    None => None,
                },
                groups: match groups {
                    Some(between) => Some(between?),
                    None => None,
                },
            })
        }
        "positional" => {
            let index = table.get("timestamp_index").map(|value| value.integer(0..16));
            let timestamp_index = match index {
                Some(index) => Some(usize::try_from(index?).ok()?),
                None => None,
            };
            Some(Grammar::Positional { separators: separators()?, timestamp_index })
        }
        other => {
            table.wrong(format!("`{other}` is not a kind of grammar"), HELP);
            None
        }
    }
}

fn read_key(value: &Value<'_>) -> Option<KeyRule> {
    const HELP: &str = "a table with `encoding`, `strip`, `unprefixed` and `derive`";
    // PEM and JWK tell by themselves what they are.
    const ENCODINGS: [(&str, KeyEncoding); 5] = [
        ("utf8", KeyEncoding::Utf8),
        ("base64", KeyEncoding::Base64),
        ("hex", KeyEncoding::Hex),
        ("pem", KeyEncoding::Utf8),
        ("jwk", KeyEncoding::Utf8),
    ];
    let table = value.table(HELP)?;
    let encoding = table.get("encoding").map_or(Some(KeyEncoding::Utf8), |value| value.one_of(&ENCODINGS));
    let strip = table.get("strip").map_or(Some(Vec::new()), |value| texts(&value, "a list of prefixes"));
    let unprefixed = table.get("unprefixed").map(|value| value.one_of(&ENCODINGS));
    let derive_sha1 =
        table.get("derive").map_or(Some(false), |value| value.one_of(&[("none", false), ("sha1", true)]));
    Some(KeyRule {
        encoding: encoding?,
        strip: strip?,
        unprefixed: match unprefixed {
            Some(encoding) => Some(encoding?),
            None => None,
        },
        derive_sha1: derive_sha1?,
    })
}

fn read_keys(value: &Value<'_>) -> Option<KeySource> {
    const HELP: &str = "`{ url = \"https://…\" }`, or a table with `at`, `hosts` and `path`";
    let table = value.table(HELP)?;
    let https =
        |url: &str| if url.starts_with("https://") { Ok(url.to_owned()) } else { Err("it is not https") };
    if let Some(url) = table.get("url") {
        return url.parse(https, HELP).map(KeySource::At);
    }
    let at = table.require("at", Locator::HELP).and_then(|at| at.parse(str::parse, Locator::HELP));
    let hosts = table.require("hosts", HELP).and_then(|hosts| texts(&hosts, "a list of host names"));
    let path = table.require("path", HELP).and_then(|path| path.text());
    let hosts = hosts?.iter().map(|host| Pattern::new(host)).collect();
    Some(KeySource::Named { at: at?, hosts, path: Pattern::new(path?) })
}

fn read_timestamp(value: &Value<'_>) -> Option<TimestampRule> {
    const HELP: &str = "a table with `at` and `unit`";
    const AT: &str = "`signature`, `claim:NAME`, `header:NAME`, `query:NAME`, `json:/pointer` or `form:NAME`";
    let table = value.table(HELP)?;
    let at = table.require("at", AT).and_then(|value| match value.as_text() {
        Some("signature") => Some(TimestampPlace::Signature),
        Some(claim) if claim.len() > 6 && claim.starts_with("claim:") => {
            Some(TimestampPlace::Claim(claim["claim:".len()..].to_owned()))
        }
        Some(_) => value.parse(str::parse, AT).map(|place| TimestampPlace::At(vec![place])),
        None => {
            let places = locators(&value)?;
            if places.is_empty() {
                value.wrong("no place is named", AT);
                return None;
            }
            Some(TimestampPlace::At(places))
        }
    });
    let unit = table.require("unit", "one of \"s\", \"ms\", \"rfc3339\", \"http-date\"").and_then(|value| {
        value.one_of(&[
            ("s", Unit::Seconds),
            ("ms", Unit::Milliseconds),
            ("rfc3339", Unit::Rfc3339),
            ("http-date", Unit::HttpDate),
        ])
    });
    Some(TimestampRule { at: at?, unit: unit? })
}

fn read_require(value: &Value<'_>) -> Option<Vec<(Locator, String)>> {
    const HELP: &str = "a list of tables with `at` and `equals`";
    let read = |value: Value<'_>| {
        let table = value.table(HELP)?;
        let at = table.require("at", Locator::HELP).and_then(|at| at.parse(str::parse, Locator::HELP));
        let equals = table.require("equals", "the text that must be there").and_then(|text| text.text());
        Some((at?, equals?.to_owned()))
    };
    // Collected twice, so that one bad element does not hide the next.
    let elements: Vec<_> = value.array(HELP)?.into_iter().map(read).collect();
    elements.into_iter().collect()
}

fn locators(value: &Value<'_>) -> Option<Vec<Locator>> {
    let places = value.array("a list of places, such as [\"header:X-Acme-Delivery\", \"json:/id\"]")?;
    let places: Vec<_> = places.iter().map(|place| place.parse(str::parse, Locator::HELP)).collect();
    places.into_iter().collect()
}

fn texts(value: &Value<'_>, help: &str) -> Option<Vec<String>> {
    let read = |text: &Value<'_>| text.parse(|text| non_empty(text).map(str::to_owned), help);
    let texts: Vec<_> = value.array(help)?.iter().map(read).collect();
    texts.into_iter().collect()
}

fn non_empty(text: &str) -> Result<&str, &'static str> {
    if text.is_empty() { Err("it is empty") } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::reader::{Problems, Severity, read_document};
    use crate::verify::Coverage;

    const SIGNATURE: &str = "auth = 'signature'\n\
        signature = { from = ['header:X-Sig'], algorithm = 'hmac-sha256', encoding = 'hex' }\n\
        signed = '{body}'\n";

    fn read(text: &str) -> (Option<Scheme>, Vec<(String, String)>) {
        let problems = Problems::default();
        let scheme = read_document(text, &problems, |table| Scheme::read(&table));
        let told = problems.into_sorted().into_iter().map(|problem| (problem.path, problem.message));
        (scheme, told.collect())
    }

    fn check_wrong(text: &str, path: &str, message: &str) {
        let (scheme, told) = read(text);
        assert!(scheme.is_none(), "{text}");
        assert!(told.contains(&(path.to_owned(), message.to_owned())), "{text}\n{told:#?}");
    }

    #[test]
    fn every_field_is_read() {
        let (scheme, told) = read(
            r#"
            auth = "signature"
            signature = { from = ["header:X-A", "form:sig"], grammar = { kind = "kv", separators = "; ", assign = ":", take = ["h1", "h2"], timestamp = "ts" }, algorithm = "hmac-sha512", encoding = "base64url" }
            key = { encoding = "hex", strip = ["k_"], derive = "sha1" }
            signed = "{id}.{timestamp}:{url}{body}"
            timestamp = { at = "signature", unit = "ms" }
            delivery_id = ["header:X-Id", "json:/meta/id"]
            event = ["json:/type"]
            require = [{ at = "header:X-Version", equals = "1" }]
            "#,
        );
        assert_eq!(told, []);
        let scheme = scheme.unwrap();
        assert_eq!((scheme.auth(), scheme.signs_url()), ("signature", true));
        assert_eq!((scheme.id_pointer(), scheme.event_pointer()), (Some("/meta/id"), Some("/type")));
        assert_eq!(scheme.coverage(), Coverage { timestamp: true, id: true, body: true });
        assert_eq!(scheme.require, [("header:x-version".parse().unwrap(), "1".to_owned())]);
        let Auth::Signature(rule) = scheme.auth else { panic!("{:?}", scheme.auth) };
        assert_eq!((rule.algorithm, rule.encoding), (Algorithm::HmacSha512, Encoding::Base64Url));
        assert_eq!(
            rule.key,
            KeyRule {
                encoding: KeyEncoding::Hex,
                strip: vec!["k_".to_owned()],
                unprefixed: None,
                derive_sha1: true
            }
        );
        let take = vec!["h1".to_owned(), "h2".to_owned()];
        let timestamp = Some("ts".to_owned());
        assert_eq!(
            rule.grammar,
            Grammar::Pairs {
                separators: "; ".to_owned(),
                assign: ':',
                take: Names::These(take),
                timestamp,
                groups: None
            }
        );
    }

    #[test]
    fn tokens_with_claims_are_read() {
        let text = "auth = 'jwt'\njwt = { at = 'header:Authorization', algorithms = ['HS256', 'ES256'], claims = { iss = 'a', \
            aud = ['{url}', '{config:name}'] }, required = ['exp'], body_hash = { claim = 'b', encoding = 'hex' }, id = 'jti' }";
        let (scheme, told) = read(text);
        assert_eq!(told, []);
        let scheme = scheme.unwrap();
        assert_eq!((scheme.auth(), scheme.signs_url(), scheme.config_names()), ("jwt", true, vec!["name"]));
        assert_eq!(scheme.coverage(), Coverage { timestamp: true, id: true, body: true });
        assert_eq!(scheme.algorithms(), ["hmac-sha256", "ecdsa-p256-sha256-fixed"]);
        check_wrong("auth = 'jwt'", "jwt", "`jwt` is missing");
        let without = |what: &str| text.replace(what, "");
        check_wrong(&without("'HS256', 'ES256'"), "jwt.algorithms", "no algorithm is named");
        check_wrong(&text.replace("HS256", "none"), "jwt.algorithms[0]", "`none` is not a choice here");
        check_wrong(&without("at = 'header:Authorization', "), "jwt.at", "`at` is missing");
        check_wrong(&without(", encoding = 'hex'"), "jwt.body_hash.encoding", "`encoding` is missing");
    }

    #[test]
    fn the_places_of_published_keys_are_read() {
        let rsa = SIGNATURE.replace("hmac-sha256", "rsa-pkcs1-sha256");
        let with = |keys: &str| format!("{rsa}keys = {keys}");
        let named = with("{ at = 'header:X-Cert', hosts = ['a.example'], path = '/*.pem' }");
        for good in [&with("{ url = 'https://a.example/jwks' }"), &named] {
            assert!(read(good).0.unwrap().publishes_keys(), "{good}");
        }
        check_wrong(
            &with("{ url = 'http://a.example' }"),
            "keys.url",
            "`http://a.example` cannot be used: it is not https",
        );
        check_wrong(&named.replace("hosts = ['a.example'], ", ""), "keys.hosts", "`hosts` is missing");
        let shared = format!("{SIGNATURE}keys = {{ url = 'https://a.example' }}");
        check_wrong(&shared, "", "only public keys are published");
    }

    #[test]
    fn a_token_can_move_to_another_header_and_a_signature_cannot() {
        let (scheme, told) = read("auth = 'token'\ntoken = { header = 'X-Token' }");
        assert_eq!(told, []);
        let moved = scheme.unwrap().with_token_header(HeaderName::from_static("x-other")).unwrap();
        assert!(
            matches!(&moved.auth, Auth::Token(TokenRule { at: Locator::Header(name), .. }) if name == "x-other")
        );
        let (signed, _) = read(SIGNATURE);
        assert!(signed.unwrap().with_token_header(HeaderName::from_static("x-other")).is_err());
    }

    #[test]
    fn handshakes_are_named() {
        let with = |line: &str| format!("{SIGNATURE}{line}");
        let (scheme, told) = read(&with("handshake = ['crc', 'hub-challenge']"));
        assert_eq!(told, []);
        assert_eq!(scheme.unwrap().handshakes(), [Handshake::Crc, Handshake::HubChallenge]);
        check_wrong(&with("handshake = ['crcs']"), "handshake[0]", "`crcs` is not a choice here");
    }

    #[test]
    fn mistakes_are_reported_where_they_stand() {
        check_wrong("", "auth", "`auth` is missing");
        check_wrong("auth = 'none'", "auth", "`none` is not a choice here");
        check_wrong("auth = 'code'\ncode = 'sns'", "auth", "`code` is not a choice here");
        let claim = format!("{SIGNATURE}timestamp = {{ at = 'claim:iat', unit = 's' }}");
        check_wrong(&claim, "", "only a token has claims");
        check_wrong("auth = 'token'", "token", "`token` is missing");
        check_wrong(
            "auth = 'token'\ntoken = { header = 'a b' }",
            "token.header",
            "`a b` cannot be used: invalid HTTP header name",
        );
        let without = |what: &str| SIGNATURE.replace(what, "");
        check_wrong(&without("signed = '{body}'\n"), "signed", "`signed` is missing");
        check_wrong(&without("algorithm = 'hmac-sha256', "), "signature.algorithm", "`algorithm` is missing");
        check_wrong(&without(", encoding = 'hex'"), "signature.encoding", "`encoding` is missing");
        check_wrong(&without("from = ['header:X-Sig'], "), "signature.from", "`from` is missing");
        check_wrong(&SIGNATURE.replace("'header:X-Sig'", ""), "signature.from", "no place is named");
        let md5 = SIGNATURE.replace("hmac-sha256", "hmac-md5");
        check_wrong(&md5, "signature.algorithm", "`hmac-md5` is not a choice here");

        let grammar =
            |grammar: &str| SIGNATURE.replace("algorithm", &format!("grammar = {grammar}, algorithm"));
        let path = "signature.grammar";
        check_wrong(&grammar("{ kind = 'list' }"), path, "`list` is not a kind of grammar");
        check_wrong(&grammar("{ kind = 'prefix' }"), "signature.grammar.text", "`text` is missing");
        let text = grammar("{ kind = 'prefix', text = '' }");
        check_wrong(&text, "signature.grammar.text", "`` cannot be used: it is empty");
        let pairs = grammar("{ kind = 'kv', separators = '', assign = '=', take = [] }");
        check_wrong(&pairs, "signature.grammar.separators", "`` cannot be used: it is empty");
        check_wrong(&pairs, "signature.grammar.take", "no name is taken");
        let pairs = grammar("{ kind = 'kv', separators = ',', assign = '==', take = ['v1'] }");
        check_wrong(&pairs, "signature.grammar.assign", "`==` cannot be used: too many characters in string");
    }

    #[test]
    fn unknown_keys_are_reported_at_every_depth() {
        let text = format!("{SIGNATURE}evnt = []\nkey = {{ encodng = 'hex' }}");
        let (_, told) = read(&text);
        let paths: Vec<_> = told.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["evnt", "key.encodng"]);
    }

    #[test]
    fn fields_must_fit_each_other() {
        let check =
            |from: &str, to: &str, message: &str| check_wrong(&SIGNATURE.replace(from, to), "", message);
        let timestamp = "`{timestamp}` is signed, but `timestamp` does not say where it is";
        check("{body}", "{timestamp}{body}", timestamp);
        let digest = "`{secret}` goes with a plain digest, and only with it";
        check("{body}", "{secret}{body}", digest);
        check("hmac-sha256", "digest-sha256", digest);
        check("{body}", "{id}{body}", "`{id}` is signed, but `delivery_id` does not say where it is");
        let disagree = "the timestamp's place and the signature's grammar disagree";
        check("signed", "timestamp = { at = 'signature', unit = 's' }\nsigned", disagree);
        let named = "grammar = { kind = 'kv', separators = ',', assign = '=', take = ['v1'], timestamp = 't' }, algorithm";
        check("algorithm", named, disagree);
        let unsigned = SIGNATURE.replace("algorithm", named) + "timestamp = { at = 'signature', unit = 's' }";
        check_wrong(&unsigned, "", "the timestamp beside the signature is not signed");
    }

    #[test]
    fn a_body_outside_of_the_signature_is_a_warning() {
        let text = SIGNATURE.replace("{body}", "{header:X-Nonce}");
        let problems = Problems::default();
        assert!(read_document(&text, &problems, |table| Scheme::read(&table)).is_some());
        let severities: Vec<_> = problems.into_sorted().iter().map(|problem| problem.severity).collect();
        assert_eq!(severities, [Severity::Warning]);
    }
}
