//! `destination.sign`: in which format a destination's requests are signed, and under which secret. In the provider's own
//! format there is a signer for each source, so it is made once the sources have been read.

use std::sync::Arc;

use super::secrets::{self, Found};
use super::values::Context;
use super::{Countersign, Destination, Source};
use crate::reader::Value;
use crate::verify::{Signer, preset};

/// What `sign` says; `None` in it was reported.
pub(super) enum Wanted<'d> {
    Uniform(Option<Box<Signer>>),
    AsProvider(Option<AsProvider<'d>>),
}

/// `scheme = "provider"`, under this secret.
pub(super) struct AsProvider<'d> {
    scheme: Value<'d>,
    secret: Found<'d>,
}

pub(super) fn read<'d>(value: &Value<'d>, context: &Context<'_>) -> Wanted<'d> {
    const HELP: &str =
        "a table such as { scheme = \"standard-webhooks\", secret = { env = \"LEGACY_SECRET\" } }";
    const SECRET: &str = "`whsec_` followed by base64; make one with `echo \"whsec_$(openssl rand -base64 32)\"`, or \
        `whsk_` and the base64 of an Ed25519 private key";
    value.conceal(&["scheme", "env", "file", "secret"]);
    let Some(table) = value.table(HELP) else { return Wanted::Uniform(None) };
    let choices = [("standard-webhooks", false), ("provider", true)];
    let scheme = table
        .require("scheme", "\"standard-webhooks\", or \"provider\": as the source's provider does")
        .and_then(|value| Some((value.one_of(&choices)?, value)));
    let help = if matches!(scheme, Some((true, _))) {
        "what the backend verifies the provider with"
    } else {
        SECRET
    };
    let secret = table.require("secret", help).and_then(|value| {
        value.conceal(&["env", "file"]);
        secrets::find_unguessable(&value.table("a table such as { env = \"LEGACY_SECRET\" }")?, context)
    });
    let Some((as_provider, scheme)) = scheme else { return Wanted::Uniform(None) };
    if as_provider {
        return Wanted::AsProvider(secret.map(|secret| AsProvider { scheme, secret }));
    }
    let Some(found) = secret else { return Wanted::Uniform(None) };
    // The prefix is how the specification tells private keys of Ed25519 from shared secrets.
    let is_private = found.secret.expose().starts_with(b"whsk_");
    let standard = preset(if is_private { "standard-webhooks-v1a" } else { "standard-webhooks" });
    let signer = standard.and_then(|preset| match Signer::new(preset.scheme.clone(), &found.secret) {
        Ok(signer) => Some(Box::new(signer)),
        Err(error) => {
            found.at.wrong(error.to_string(), SECRET);
            None
        }
    });
    Wanted::Uniform(signer)
}

/// The destination, with a signer for each source that may send to it, or had sent to it before a reload.
pub(super) fn settle(
    (mut destination, wanted): (Destination, Option<AsProvider<'_>>),
    sources: &[Arc<Source>],
) -> Destination {
    let Some(AsProvider { scheme, secret }) = wanted else { return destination };
    let mut signers = Vec::new();
    for source in sources {
        let is_routed = source.to.iter().any(|route| route.destination == destination.name);
        match source.verifier.signer(&secret.secret) {
            Ok(signer) if is_routed && destination.shape.body.is_some() && signer.signs_body_digest() => {
                let message = format!(
                    "source `{}` (`{}`) signs a digest of the body that came, and `template` makes another",
                    source.name, source.provider
                );
                scheme.wrong(message, "leave `template` out, or sign by \"standard-webhooks\"");
            }
            Ok(signer) => signers.push((Arc::clone(&source.name), signer)),
            Err(error) if is_routed => {
                let message = format!(
                    "source `{}` (`{}`) cannot be signed again: {error}",
                    source.name, source.provider
                );
                scheme.wrong(message, "\"standard-webhooks\", or a destination of its own for this source");
            }
            Err(_) => {}
        }
    }
    destination.sign = Some(Countersign::AsProvider(signers));
    destination
}
