//! `countersign providers`: the presets, as a table or as JSON.

use countersign::units::{format_duration, format_size};
use countersign::verify::{Preset, preset, presets};
use serde_json::json;

use super::{Failure, events, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only this provider, in full
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the table of the README
    #[arg(long, conflicts_with_all = ["json", "name"])]
    markdown: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.name {
        None if arguments.markdown => {
            say("| provider | proof | signed | delivery id | handshake |");
            say("|---|---|---|---|---|");
            for preset in presets() {
                say(&row(preset));
            }
        }
        None if arguments.json => print_json(&presets().iter().map(document).collect()),
        None => {
            say(&format!(
                "{:<27} {:<10} {:<10} {:<27} {:<10} {}",
                "PROVIDER", "AUTH", "CONFIRMED", "METHODS", "BODY", "DOCUMENTATION"
            ));
            for preset in presets() {
                let body = preset.body_max.map_or("-".to_owned(), format_size);
                say(&format!(
                    "{:<27} {:<10} {:<10} {:<27} {body:<10} {}",
                    preset.name,
                    preset.scheme.auth(),
                    if preset.confirmed { "yes" } else { "no" },
                    methods(preset).join(" "),
                    preset.docs.as_deref().unwrap_or("-")
                ));
            }
        }
        Some(name) => {
            let preset = preset(name).ok_or_else(|| {
                Failure::Failed(format!("there is no provider `{name}`; `countersign providers` lists them"))
            })?;
            let document = document(preset);
            if arguments.json {
                print_json(&document);
            } else {
                for (key, value) in document.as_object().into_iter().flatten() {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    say(&format!("{key:<18} {value}"));
                }
                say(&format!("\n{}", preset.definition()));
            }
        }
    }
    Ok(())
}

fn document(preset: &Preset) -> serde_json::Value {
    let coverage = preset.scheme.coverage();
    json!({
        "name": &*preset.name,
        "auth": preset.scheme.auth(),
        "algorithms": preset.scheme.algorithms(),
        "proof_at": preset.scheme.places(),
        "delivery_id_at": preset.scheme.id_places(),
        "signs_url": preset.scheme.signs_url(),
        "config": preset.scheme.config_names(),
        "handshake": handshakes(preset),
        "confirmed": preset.confirmed,
        "methods": methods(preset),
        "signed": { "timestamp": coverage.timestamp, "delivery_id": coverage.id, "body": coverage.body },
        "body_max_bytes": preset.body_max,
        "timeout": preset.timeout.map(format_duration),
        "retry_horizon": preset.retry_horizon.map(format_duration),
        "drop_events": preset.drop_events,
        "sample_events": events::names(&preset.name),
        "replay_guard": if preset.guards_replays { "absorb" } else { "off" },
        "documentation": preset.docs,
    })
}

/// A row of the README's table.
fn row(preset: &Preset) -> String {
    let Preset { name, scheme, .. } = preset;
    let coverage = scheme.coverage();
    let unconfirmed = if preset.confirmed { "" } else { " †" };
    let linked = match &preset.docs {
        Some(docs) => format!("[`{name}`]({docs})"),
        None => format!("`{name}`"),
    };
    let bare = |places: &[String]| {
        let names: Vec<_> =
            places.iter().map(|place| place.strip_prefix("header:").unwrap_or(place)).collect();
        match names.as_slice() {
            [] => "-".to_owned(),
            [name] => format!("`{name}`"),
            [name, ..] => format!("`{name}` …"),
        }
    };
    let signed: Vec<_> = [
        (coverage.body, "body"),
        (coverage.timestamp, "time"),
        (coverage.id && !scheme.id_places().is_empty(), "id"),
        (scheme.signs_url(), "URL"),
    ]
    .into_iter()
    .filter_map(|(covered, what)| covered.then_some(what))
    .collect();
    let signed = if signed.is_empty() { "-".to_owned() } else { signed.join(", ") };
    let handshake = handshakes(preset);
    let handshake = if handshake.is_empty() { "-".to_owned() } else { handshake.join(", ") };
    format!(
        "| {linked}{unconfirmed} | {} {} | {signed} | {} | {handshake} |",
        bare(&scheme.places()),
        if scheme.algorithms().is_empty() { "secret".to_owned() } else { scheme.algorithms().join(", ") },
        bare(&scheme.id_places()),
    )
}

fn handshakes(preset: &Preset) -> Vec<&'static str> {
    preset.scheme.handshakes().iter().map(|handshake| handshake.name()).collect()
}

fn methods(preset: &Preset) -> Vec<&str> {
    preset.methods.iter().map(http::Method::as_str).collect()
}

fn print_json(value: &serde_json::Value) {
    say(&format!("{value:#}"));
}
