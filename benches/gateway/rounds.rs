//! The comparison: every contender under every workload, in turn, for several rounds.

use crate::measure::{Contender, Figures, Place, Workload};
use crate::options::Options;
use crate::process::Setting;
use crate::report::Report;
use crate::sender::Pace;

/// One contender under one workload in one round.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Sample {
    pub(crate) contender: Contender,
    pub(crate) workload: String,
    pub(crate) round: usize,
    pub(crate) figures: Figures,
}

/// As many requests a second as a closed loop is prepared for before it is known.
pub(crate) fn rate_guess(contender: Contender, body_bytes: usize) -> f64 {
    let small = match contender {
        Contender::A | Contender::B => 110_000.0,
        Contender::C => 80_000.0,
        Contender::D | Contender::E | Contender::X => 50_000.0,
    };
    small / (1.0 + body_bytes as f64 / 16_384.0)
}

fn workloads(options: &Options) -> Vec<Workload> {
    let all = [
        (Pace::Closed, 1 << 10),
        (Pace::Closed, 16 << 10),
        (Pace::Open(2_000), 1 << 10),
        (Pace::Open(5_000), 1 << 10),
        (Pace::Open(2_000), 16 << 10),
    ];
    let all = all.map(|(pace, body_bytes)| Workload {
        pace,
        connections: 64,
        body_bytes,
        seconds: options.seconds,
        rate_max: 0.0,
    });
    all.into_iter().filter(|workload| workload.to_string().contains(&options.workload)).collect()
}

/// Measures, prints and writes.
pub(crate) fn run(options: &Options) {
    let place = Place::new();
    let mut samples: Vec<Sample> = Vec::new();
    for round in 0..options.rounds {
        for workload in workloads(options) {
            for contender in &options.contenders {
                let before = samples
                    .iter()
                    .rev()
                    .find(|sample| sample.contender == *contender && sample.workload == workload.to_string());
                let guess = rate_guess(*contender, workload.body_bytes);
                let rate_max = before.map_or(guess, |sample| {
                    (sample.figures["requests_per_second"] * 2.0 + 1_000.0).min(guess)
                });
                let mut setting = options.setting.clone();
                if let (Contender::X, Some(binary)) = (contender, &options.against) {
                    setting = Setting { binary: binary.clone(), ..setting };
                }
                let figures = place.contend(*contender, &Workload { rate_max, ..workload }, &setting);
                eprintln!(
                    "round {}: {workload}: {}: {:.0}/s, p99 {:.2} ms, others {:.0} %",
                    round + 1,
                    contender.name(),
                    figures["requests_per_second"],
                    figures["p99_ms"],
                    figures["others"] * 100.0
                );
                samples.push(Sample {
                    contender: *contender,
                    workload: workload.to_string(),
                    round,
                    figures,
                });
            }
        }
    }
    Report::new(options, &place.machine, samples, []).publish(options);
}
