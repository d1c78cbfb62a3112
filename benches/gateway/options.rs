//! What the command line asks for.

use std::path::PathBuf;

use crate::measure::Contender;
use crate::process::Setting;

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) mode: String,
    /// How often everything is measured.
    pub(crate) rounds: usize,
    /// Length of each measurement.
    pub(crate) seconds: f64,
    pub(crate) contenders: Vec<Contender>,
    /// Only workloads whose names have this in them.
    pub(crate) workload: String,
    /// Another binary to measure beside this build's.
    pub(crate) against: Option<PathBuf>,
    /// How many deliveries, or how many a second, a mode is to take instead of its own number.
    pub(crate) count: Option<u64>,
    /// How gateways are set up.
    pub(crate) setting: Setting,
    /// The document whose table is to be written anew.
    pub(crate) markdown: Option<PathBuf>,
    /// As it was typed.
    pub(crate) command: String,
}

impl Options {
    pub(crate) fn read(words: &[&str]) -> Self {
        let mut options = Self {
            mode: "rounds".to_owned(),
            rounds: 5,
            seconds: 2.0,
            contenders: Contender::ALL.to_vec(),
            workload: String::new(),
            against: None,
            count: None,
            setting: Setting::default(),
            markdown: None,
            command: format!("cargo bench --bench gateway -- {}", words.join(" "))
                .trim_end_matches(" -- ")
                .to_owned(),
        };
        for word in words {
            match word.split_once('=') {
                None if *word == "quick" => (options.rounds, options.seconds) = (1, 0.5),
                None => options.mode = (*word).to_owned(),
                Some(("rounds", value)) => options.rounds = value.parse().expect("rounds is a number"),
                Some(("seconds", value)) => options.seconds = value.parse().expect("seconds is a number"),
                Some(("only", letters)) => {
                    options.contenders.retain(|contender| letters.contains(contender.letter()));
                }
                Some(("count", value)) => options.count = Some(value.parse().expect("count is a number")),
                Some(("workload", part)) => options.workload = part.to_owned(),
                Some(("against", path)) => options.against = Some(path.into()),
                Some(("binary", path)) => options.setting.binary = path.into(),
                Some(("top", text)) => options.setting.top = text.to_owned(),
                Some(("source", text)) => options.setting.source = text.to_owned(),
                Some(("destination", text)) => options.setting.destination = text.to_owned(),
                Some(("markdown", path)) => options.markdown = Some(path.into()),
                Some((key, _)) => panic!("there is no option `{key}`"),
            }
        }
        if options.against.is_none() {
            options.contenders.retain(|contender| *contender != Contender::X);
        }
        options
    }
}
