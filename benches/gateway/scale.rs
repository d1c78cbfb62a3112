//! Where the knee is: processors, connections, sizes of bodies and numbers of sources, one varied at a time.

use crate::measure::{Place, Workload};
use crate::options::Options;
use crate::process::Setting;
use crate::report::Report;
use crate::rounds::{Sample, rate_guess};
use crate::sender::Pace;

/// One point of the sweep.
#[derive(Clone, Copy)]
struct Point {
    /// One processor to itself, or all, shared with the sender.
    alone: bool,
    connections: usize,
    body_bytes: usize,
    sources: usize,
}

fn points() -> Vec<Point> {
    let usual = Point { alone: false, connections: 64, body_bytes: 1 << 10, sources: 1 };
    let mut points = vec![usual, Point { alone: true, ..usual }];
    points.extend([1, 4, 16, 256, 1_000].map(|connections| Point { connections, ..usual }));
    points.extend(
        [204, 4 << 10, 16 << 10, 64 << 10, 256 << 10].map(|body_bytes| Point { body_bytes, ..usual }),
    );
    points.extend([10, 100].map(|sources| Point { sources, ..usual }));
    points
}

/// Measures the contenders at every point.
pub(crate) fn run(options: &Options) {
    let place = Place::new();
    let mut samples = Vec::new();
    for round in 0..options.rounds {
        for point in points() {
            let workload = Workload {
                pace: Pace::Closed,
                connections: point.connections,
                body_bytes: point.body_bytes,
                seconds: options.seconds,
                rate_max: 0.0,
            };
            let processors = if point.alone { "0" } else { "" };
            let setting = Setting {
                sources: point.sources,
                processors: processors.to_owned(),
                ..options.setting.clone()
            };
            for contender in &options.contenders {
                let rate_max = rate_guess(*contender, point.body_bytes);
                let figures = place.contend(*contender, &Workload { rate_max, ..workload }, &setting);
                let workload = format!(
                    "{workload}, {} source{}, {}",
                    point.sources,
                    if point.sources == 1 { "" } else { "s" },
                    if point.alone { "1 processor" } else { "all processors" }
                );
                eprintln!("{workload}: {}: {:.0}/s", contender.name(), figures["requests_per_second"]);
                samples.push(Sample { contender: *contender, workload, round, figures });
            }
        }
    }
    Report::new(options, &place.machine, samples, []).publish(options);
}
