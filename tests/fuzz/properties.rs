//! What must hold whatever the input is: a property for each parser that strangers, or operators, write for. cargo-fuzz
//! drives them (`fuzz/`), and so does `./test`, over the corpora and over mutants of them.

mod config;
mod explain;
mod grammar;
mod handshake;
mod head;
mod jwt;
mod pointer;
mod support;
mod template;

/// Panics when it does not hold for an input.
pub(crate) type Property = fn(&[u8]);

/// Name, as that of the corpus and of cargo-fuzz's target and property.
pub(crate) const TARGETS: [(&str, Property); 8] = [
    ("config", config::check),
    ("explain", explain::check),
    ("grammar", grammar::check),
    ("handshake", handshake::check),
    ("head", head::check),
    ("jwt", jwt::check),
    ("pointer", pointer::check),
    ("template", template::check),
];
