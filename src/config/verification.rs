//! How the requests of a source are verified: by a provider's preset, a scheme of its own, or, in so many words, not
//! at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;

use super::secrets;
use super::values::{Context, DAY, MILLISECOND, choice, duration, public_url};
use crate::reader::{Table, Value, nearest};
use crate::verify::{
    Enforcement, Handshake, HandshakeOptions, Preset, Scheme, Verifier, Window, preset, presets,
};

/// What makes a source's requests trustworthy.
pub(super) struct Verification {
    /// The preset's name, `custom`, or `none`.
    pub(super) provider: Arc<str>,
    pub(super) preset: Option<&'static Preset>,
    pub(super) verifier: Verifier,
    /// What the provider was told, up to the path.
    pub(super) public_url: Option<String>,
}

/// How a source says that its requests are verified.
enum Method {
    Preset(&'static Preset),
    Custom(Box<Scheme>),
    Nothing,
    /// What it says cannot be used, and was reported.
    Unusable,
}

const HOW: &str = "`provider = \"…\"` (`countersign providers` lists them), a `[source.scheme]` table, \
     or `verify = \"none\"`";

/// The source's window, whether or not the rest can be used: the ttl is measured against it.
pub(super) fn read_window(table: &Table<'_>) -> Window {
    let window = table.section("window");
    let side = |key, default| {
        duration(
            &window,
            key,
            default,
            MILLISECOND..=DAY,
            "above 0 and at most 24h, since for as long a captured request stays good",
        )
    };
    let Window { past, future } = Window::default();
    Window { past: side("past", past), future: side("future", future) }
}

/// Reports what is wrong; `None` when that leaves nothing to verify with.
pub(super) fn read(
    table: &Table<'_>,
    window: Window,
    listener_url: Option<&str>,
    context: &Context<'_>,
) -> Option<Verification> {
    let method = read_method(table);
    let secrets = secrets::read(table, context);
    let enforcement = choice(
        table,
        "enforcement",
        Enforcement::Enforce,
        &[("enforce", Enforcement::Enforce), ("observe", Enforcement::Observe)],
    );
    let own_url = public_url(table);
    let public_url = own_url.or_else(|| listener_url.map(str::to_owned));
    let parameters = table.get("config");
    let token_header = table.get("token").map(|value| (read_token_header(&value), value));
    let (provider, preset, scheme) = match method {
        Method::Nothing => {
            refuse_without_verification(table);
            if let Some(value) = table.get("verify") {
                value.doubtful(
                    "nothing proves who sends to this source",
                    "`provider` or `[source.scheme]` would; until then anyone who knows the address can send",
                );
            }
            return Some(Verification {
                provider: "none".into(),
                preset: None,
                verifier: Verifier::unverified(),
                public_url,
            });
        }
        Method::Preset(preset) => (Arc::clone(&preset.name), Some(preset), Some(preset.scheme.clone())),
        Method::Custom(scheme) => (Arc::from("custom"), None, Some(*scheme)),
        Method::Unusable => (Arc::from(""), None, None),
    };
    let handshake = read_handshake(table, scheme.as_ref(), context);
    // Whose keys are published, or whose secret comes with the handshake.
    let is_handed = |scheme: &Scheme| scheme.handshakes().iter().any(|kind| kind.hands_over_secret());
    let comes_later = scheme.as_ref().is_some_and(|scheme| scheme.publishes_keys() || is_handed(scheme));
    if table.get("secrets").is_none() && table.get("verify").is_none() && !comes_later {
        let help = "`secrets = [{ env = \"NAME\" }]`, or `file = \"/path\"`; several may be valid at once";
        table.missing("secrets", "`secrets` is missing, so no request could be verified", help);
    }
    let scheme = match token_header {
        None => scheme?,
        Some((header, value)) => match scheme?.with_token_header(header?) {
            Ok(scheme) => scheme,
            Err(error) => {
                value.wrong(error.to_string(), "`token` is for providers that send a secret in a header");
                return None;
            }
        },
    };
    let scheme = read_parameters(table, parameters.as_ref(), scheme)?;
    if scheme.signs_url() && public_url.is_none() {
        let help = "what the provider was told, up to the path, here or in [listen]: \
                    `public_url = \"https://hooks.example.com\"`";
        table.missing("public_url", "`public_url` is missing, and this scheme signs the URL", help);
        return None;
    }
    let (secrets, places): (Vec<_>, Vec<_>) = secrets.into_iter().unzip();
    if secrets.is_empty() && !(comes_later && table.get("secrets").is_none()) {
        return None;
    }
    match Verifier::new(Arc::clone(&provider), scheme, secrets, window, enforcement, public_url.clone()) {
        Ok(verifier) => {
            Some(Verification { provider, preset, verifier: verifier.with_handshake(handshake), public_url })
        }
        Err(errors) => {
            for (index, error) in errors {
                places[index].wrong(error.to_string(), "the secret as the provider shows it");
            }
            None
        }
    }
}

/// What the source says of the handshakes that `scheme` has; `None` when that is not known.
fn read_handshake(table: &Table<'_>, scheme: Option<&Scheme>, context: &Context<'_>) -> HandshakeOptions {
    const TOKEN: &str = "a table such as { env = \"META_VERIFY_TOKEN\" }";
    let value = table.get("handshake");
    if let Some(value) = &value {
        value.conceal(&["public_key", "origins", "env", "file"]);
    }
    let section = table.section("handshake");
    let has = |kind| scheme.is_none_or(|scheme| scheme.handshakes().contains(&kind));
    let get = |key, kind: Handshake| {
        let value = section.get(key)?;
        if !has(kind) {
            value.wrong(format!("this provider has no handshake `{}`", kind.name()), "leave it out");
        }
        Some(value)
    };
    let verify_token = get("verify_token", Handshake::HubChallenge)
        .and_then(|value| Some(secrets::find(&value.table(TOKEN)?, context)?.secret));
    let public_key = get("public_key", Handshake::BtChallenge)
        .and_then(|value| value.parse(plain_word, "the public key, as Braintree shows it"));
    if section.get("public_key").is_none()
        && scheme.is_some_and(|scheme| scheme.handshakes().contains(&Handshake::BtChallenge))
    {
        let message = "the provider's challenge cannot be answered without its public key, so the address cannot be registered";
        table.doubtful(message, "`handshake = { public_key = \"…\" }`, as Braintree shows it");
    }
    const ORIGINS: &str = "a list of names such as [\"eventgrid.azure.net\"], or [\"*\"]";
    let origins = get("origins", Handshake::CloudEventsOptions).and_then(|value| value.array(ORIGINS));
    let origins = origins.into_iter().flatten().filter_map(|origin| origin.parse(plain_word, ORIGINS));
    HandshakeOptions { verify_token, public_key, origins: origins.collect() }
}

fn plain_word(text: &str) -> Result<String, &'static str> {
    let is_word =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.*".contains(&byte));
    if is_word { Ok(text.to_owned()) } else { Err("it has other characters than letters, digits and `_-.`") }
}

/// Puts what the source says in `config` in place of the scheme's `{config:NAME}`.
fn read_parameters(table: &Table<'_>, given: Option<&Value<'_>>, scheme: Scheme) -> Option<Scheme> {
    let mut values = BTreeMap::new();
    let given = given.and_then(|value| value.table("a table of texts"));
    let entries: Vec<_> = given.iter().flat_map(Table::entries).collect();
    let names = scheme.config_names();
    let mut usable = true;
    for (name, value) in &entries {
        if !names.contains(&name.as_str()) {
            value.wrong(format!("the scheme does not sign `{{config:{name}}}`"), "leave it out");
            usable = false;
        }
        match value.text() {
            Some(text) => drop(values.insert(name.clone(), text.to_owned())),
            None => usable = false,
        }
    }
    for name in names.iter().filter(|name| !entries.iter().any(|(given, _)| given == *name)) {
        let message = format!("`config.{name}` is missing, and this scheme signs it");
        table.missing("config", message, format!("`config = {{ {name} = \"…\" }}`"));
        usable = false;
    }
    usable.then(|| scheme.with_config(&values))
}

/// The source's preset, its scheme, or nothing: exactly one of them.
fn read_method(table: &Table<'_>) -> Method {
    let given = [table.get("provider"), table.get("scheme"), table.get("verify")];
    let mut present = given.iter().flatten();
    if present.next().is_none() {
        table.missing("provider", "how requests are verified is not said", HOW);
        return Method::Unusable;
    }
    let mut method = None;
    for second in present {
        second.wrong("`provider`, `scheme` and `verify` exclude each other", HOW);
        method = Some(Method::Unusable);
    }
    let [provider, scheme, verify] = given;
    let provider = provider.map(|value| read_provider(&value).map_or(Method::Unusable, Method::Preset));
    let scheme = scheme.map(|value| {
        let scheme = value.table("a table with `auth`, `signature`, `signed` and so on");
        scheme
            .and_then(|table| Scheme::read(&table))
            .map_or(Method::Unusable, |scheme| Method::Custom(Box::new(scheme)))
    });
    let verify = verify.map(|value| read_verify(&value));
    method.or(provider).or(scheme).or(verify).unwrap_or(Method::Unusable)
}

fn read_provider(value: &Value<'_>) -> Option<&'static Preset> {
    let name = value.text()?;
    let found = preset(name);
    if found.is_none() {
        let help = match nearest(name, presets().iter().map(|preset| &*preset.name)) {
            Some(near) => format!("did you mean `{near}`? `countersign providers` lists all"),
            None => {
                "`countersign providers` lists them; `[source.scheme]` describes one of your own".to_owned()
            }
        };
        value.wrong(format!("there is no provider `{name}`"), help);
    }
    found
}

fn read_verify(value: &Value<'_>) -> Method {
    match value.text() {
        Some("none") => Method::Nothing,
        Some(other) => {
            value.wrong(format!("`{other}` is not a choice here"), format!("\"none\" only; otherwise {HOW}"));
            Method::Unusable
        }
        None => Method::Unusable,
    }
}

/// What a source that verifies nothing must not pretend to have.
fn refuse_without_verification(table: &Table<'_>) {
    let keys = [
        "secrets",
        "config",
        "token",
        "window",
        "enforcement",
        "replay_guard",
        "on_missing_id",
        "public_url",
        "handshake",
        "forward_handshake",
    ];
    for key in keys {
        if let Some(value) = table.get(key) {
            let message = format!("`{key}` has no effect with `verify = \"none\"`");
            value.wrong(message, "leave it out, or say how requests are verified instead of `verify`");
        }
    }
}

fn read_token_header(value: &Value<'_>) -> Option<HeaderName> {
    const HELP: &str = "a table such as { header = \"Authorization\" }";
    value.conceal(&["header"]);
    value.table(HELP)?.require("header", HELP)?.parse(str::parse, "the name of a header")
}
