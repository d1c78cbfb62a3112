//! `countersign providers`: the presets, as a table or as JSON.

use countersign::units::{format_duration, format_size};
use countersign::verify::{Preset, preset, presets};
use serde_json::json;

use super::{Failure, say};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only this provider, in full
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.name {
        None if arguments.json => print_json(&presets().iter().map(document).collect()),
        None => {
            say(&format!(
                "{:<20} {:<10} {:<22} {:<10} {}",
                "PROVIDER", "AUTH", "METHODS", "BODY", "DOCUMENTATION"
            ));
            for preset in presets() {
                let body = preset.body_max.map_or("-".to_owned(), format_size);
                say(&format!(
                    "{:<20} {:<10} {:<22} {body:<10} {}",
                    preset.name,
                    preset.scheme.auth(),
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
        "handshake": preset.handshake,
        "confirmed": preset.confirmed,
        "methods": methods(preset),
        "signed": { "timestamp": coverage.timestamp, "delivery_id": coverage.id, "body": coverage.body },
        "body_max_bytes": preset.body_max,
        "timeout": preset.timeout.map(format_duration),
        "retry_horizon": preset.retry_horizon.map(format_duration),
        "drop_events": preset.drop_events,
        "documentation": preset.docs,
    })
}

fn methods(preset: &Preset) -> Vec<&str> {
    preset.methods.iter().map(http::Method::as_str).collect()
}

fn print_json(value: &serde_json::Value) {
    say(&format!("{value:#}"));
}
