//! What was measured, for people and for programs: the table, the ratios with their goals, and whether to believe them.

use std::fmt::Write as _;
use std::path::Path;

use countersign::clock::Clock;
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Contender, Figures, median};
use crate::options::Options;
use crate::rounds::Sample;

/// Shares of the machine, used by others or taken by the hypervisor, and a spread between rounds, above which figures
/// say more about the machine than about what was measured.
const OTHERS_MAX: f64 = 0.10;
const STOLEN_MAX: f64 = 0.02;
const SPREAD_MAX: f64 = 0.35;

const CLOSED: &str = "closed, 64 connections, 1 KiB";
const OPEN: &str = "open, 2000/s, 1 KiB";

/// Everything, as it is written.
#[derive(Serialize)]
pub(crate) struct Report {
    date: String,
    command: String,
    machine: Machine,
    /// Why the figures should not be believed; empty when they can be.
    doubts: Vec<String>,
    goals: Vec<Goal>,
    medians: Vec<Sample>,
    samples: Vec<Sample>,
}

/// A bound on what the figures say.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) value: f64,
    /// The lowest and the highest of the rounds.
    pub(crate) range: (f64, f64),
    pub(crate) bound: f64,
    pub(crate) at_least: bool,
    pub(crate) met: bool,
}

impl Goal {
    /// From one value per round; `None` when nothing was measured.
    pub(crate) fn new(what: &str, values: Vec<f64>, at_least: bool, bound: f64) -> Option<Self> {
        let (low, high) =
            (values.iter().copied().reduce(f64::min)?, values.iter().copied().reduce(f64::max)?);
        let value = median(values);
        let met = if at_least { value >= bound } else { value <= bound };
        Some(Self { what: what.to_owned(), value, range: (low, high), bound, at_least, met })
    }
}

impl Report {
    /// From all measurements, with the goals of a mode.
    pub(crate) fn new(
        options: &Options,
        machine: &Machine,
        samples: Vec<Sample>,
        goals: impl IntoIterator<Item = Option<Goal>>,
    ) -> Self {
        let mut report = Self {
            date: Clock::system().now().strftime("%Y-%m-%d").to_string(),
            command: options.command.clone(),
            machine: machine.clone(),
            doubts: Vec::new(),
            goals: Vec::new(),
            medians: medians(&samples),
            samples,
        };
        report.goals = goals.into_iter().flatten().chain(report.goals()).collect();
        report.doubts = report.doubts();
        report
    }

    /// A figure of a contender, by round.
    fn of(&self, contender: Contender, workload: &str, figure: impl Fn(&Figures) -> f64) -> Vec<f64> {
        let is_of = |sample: &&Sample| sample.contender == contender && sample.workload == workload;
        self.samples.iter().filter(is_of).map(|sample| figure(&sample.figures)).collect()
    }

    fn goals(&self) -> Vec<Goal> {
        use Contender::{A, B, C, D, E, X};
        let by_round = |one: Vec<f64>, other: Vec<f64>, with: fn(f64, f64) -> f64| -> Vec<f64> {
            one.into_iter().zip(other).map(|(one, other)| with(one, other)).collect()
        };
        let rates = |one, other| {
            let rate = |contender| self.of(contender, CLOSED, |figures| figures["requests_per_second"]);
            by_round(rate(one), rate(other), |one, other| one / other)
        };
        // Where processors are what is short, rates are as the inverse of this, also while others use them.
        let cpus = |one, other| {
            let both = |figures: &Figures| figures["cpu_us"] + figures["sender_cpu_us"];
            by_round(self.of(one, CLOSED, both), self.of(other, CLOSED, both), |one, other| other / one)
        };
        let cpu = |contender| self.of(contender, CLOSED, |figures| figures["cpu_us"]);
        let p99 = |contender| self.of(contender, OPEN, |figures| figures["p99_ms"]);
        [
            Goal::new("durable ack, (d)/(c), requests/s", rates(D, C), true, 0.6),
            Goal::new("the same by CPU of server and sender", cpus(D, C), true, 0.6),
            Goal::new("durable ack, (d)/(a), requests/s", rates(D, A), true, 0.3),
            Goal::new("the same by CPU of server and sender", cpus(D, A), true, 0.3),
            Goal::new("CPU per request, (d) − (b), µs", by_round(cpu(D), cpu(B), |d, b| d - b), false, 20.0),
            Goal::new("whole way, (e)/(a), requests/s", rates(E, A), true, 0.18),
            Goal::new("the same by CPU of server and sender", cpus(E, A), true, 0.18),
            Goal::new("ack p99 at 2,000/s, (d)/(c)", by_round(p99(D), p99(C), |d, c| d / c), false, 3.0),
            Goal::new("this build by the other, (d)/(x), requests/s", rates(D, X), true, 1.0),
            Goal::new("the same by CPU of server and sender", cpus(D, X), true, 1.0),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let share = |figure: &str| median(self.samples.iter().map(|sample| sample.figures[figure]).collect());
        let (others, stolen) = (share("others"), share("stolen"));
        if others > OTHERS_MAX {
            doubts.push(format!("others used {:.0} % of the machine", others * 100.0));
        }
        if stolen > STOLEN_MAX {
            doubts.push(format!("the hypervisor took {:.0} % of the machine", stolen * 100.0));
        }
        for sample in &self.medians {
            let rates = self.of(sample.contender, &sample.workload, |figures| figures["requests_per_second"]);
            let (low, high) =
                (rates.iter().copied().fold(f64::MAX, f64::min), rates.iter().copied().fold(0.0, f64::max));
            let spread = (high - low) / median(rates);
            if spread > SPREAD_MAX {
                doubts.push(format!(
                    "{}, {}: the rounds lie {:.0} % apart",
                    sample.contender.name(),
                    sample.workload,
                    spread * 100.0
                ));
            }
            if sample.figures["failed"] > 0.0 {
                doubts.push(format!(
                    "{}, {}: requests have failed",
                    sample.contender.name(),
                    sample.workload
                ));
            }
        }
        if self.machine.has_no_disk() {
            doubts.push("the stores were in memory: nothing was written to a disk".to_owned());
        }
        if self.samples.iter().map(|sample| sample.round).max() < Some(4) {
            doubts.push("fewer than five rounds".to_owned());
        }
        doubts
    }

    /// The whole of it, in Markdown.
    fn text(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        writeln!(
            text,
            "{}, `{}`, on {} × {}, {} GiB, Linux {}, {}.\n",
            self.date,
            self.command,
            machine.processors,
            machine.processor,
            machine.memory_gib,
            machine.kernel,
            machine.file_system
        )
        .unwrap();
        text += &table(&self.medians);
        if !self.goals.is_empty() {
            text += "\n| goal | bound | measured | rounds | |\n|---|---|---|---|---|\n";
        }
        for goal in &self.goals {
            let (sign, met) =
                (if goal.at_least { '≥' } else { '≤' }, if goal.met { "met" } else { "missed" });
            writeln!(
                text,
                "| {} | {sign} {} | {:.2} | {:.2} to {:.2} | {met} |",
                goal.what, goal.bound, goal.value, goal.range.0, goal.range.1
            )
            .unwrap();
        }
        match &self.doubts[..] {
            [] => text += "\nThe machine was quiet enough.\n",
            doubts => {
                text += "\nToo noisy to be believed, or not to be compared:\n\n";
                for doubt in doubts {
                    writeln!(text, "* {doubt}").unwrap();
                }
            }
        }
        text
    }

    /// Prints it, writes it for programs, and into the document that was named.
    pub(crate) fn publish(&self, options: &Options) {
        let text = self.text();
        println!("{text}");
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&directory).unwrap();
        let name = if options.mode == "rounds" { "gateway" } else { &options.mode };
        let file = directory.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_string_pretty(self).unwrap()).unwrap();
        println!("written to {}", file.display());
        if let Some(document) = &options.markdown {
            insert(document, &text);
        }
    }
}

/// One line per contender and workload.
fn table(medians: &[Sample]) -> String {
    let mut text = String::from(
        "| load | server | requests/s | CPU s per 1,000 | p50 ms | p99 ms | p99.9 ms | max ms | RSS MiB | written B each | fsyncs each |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for sample in medians {
        let figure = |name: &str| sample.figures[name];
        writeln!(
            text,
            "| {} | {} | {:.0} | {:.4} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} | {:.3} |",
            sample.workload,
            sample.contender.name(),
            figure("requests_per_second"),
            figure("cpu_us") / 1e3,
            figure("p50_ms"),
            figure("p99_ms"),
            figure("p999_ms"),
            figure("max_ms"),
            figure("resident_mib"),
            figure("written_bytes"),
            figure("fsyncs"),
        )
        .unwrap();
    }
    text
}

/// The rounds of each contender and workload in one.
fn medians(samples: &[Sample]) -> Vec<Sample> {
    let mut medians: Vec<Sample> = Vec::new();
    for sample in samples {
        let is_of =
            |other: &&Sample| other.contender == sample.contender && other.workload == sample.workload;
        if medians.iter().any(|median| is_of(&median)) {
            continue;
        }
        let of = |name| median(samples.iter().filter(is_of).map(|sample| sample.figures[name]).collect());
        let figures: Figures = sample.figures.keys().map(|name| (*name, of(name))).collect();
        medians.push(Sample { figures, ..sample.clone() });
    }
    medians
}

/// Replaces what stands between the marks of `document`.
fn insert(document: &Path, text: &str) {
    const MARKS: [&str; 2] = ["<!-- written by `cargo bench --bench gateway` -->\n", "<!-- to here -->"];
    let old = std::fs::read_to_string(document).unwrap();
    let (before, rest) = old.split_once(MARKS[0]).expect("the document has a mark where the table begins");
    let (_, after) = rest.split_once(MARKS[1]).expect("the document has a mark where the table ends");
    std::fs::write(document, [before, MARKS[0], "\n", text, "\n", MARKS[1], after].concat()).unwrap();
}
