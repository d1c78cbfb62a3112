//! The properties of `tests/fuzz`, for cargo-fuzz's targets. A new one is a module and a row of `TARGETS` there, and a
//! file and a `[[bin]]` here.

#[path = "../../tests/fuzz/properties.rs"]
mod properties;

/// Panics when the property of `target` does not hold for `input`.
pub fn check(target: &str, input: &[u8]) {
    let property = properties::TARGETS.iter().find(|(name, _)| *name == target);
    property.expect("a target has its property's name").1(input);
}
