//! Gateways that share a database, beside one with a store of its own: what one connection gets and what many get that
//! share commits, what more gateways add, and what a long time does to the tables.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::database::{Server as Database, query};
use crate::measure::{Contender, Figures, Place, Workload};
use crate::options::Options;
use crate::process::{Server, Setting, times};
use crate::report::{Goal, Report};
use crate::requests::Deliveries;
use crate::rounds::Sample;
use crate::sender::Pace;

/// Of the usual size, since the tests' own is as small as it can be.
const SETTINGS: &[&str] = &["shared_buffers=512MB", "max_wal_size=4GB"];
/// As many a second as any of these could take.
const RATE_MAX: f64 = 20_000.0;
/// How long the tables are watched at most.
const WATCH_MAX: Duration = Duration::from_mins(20);

/// One point of the comparison.
struct Point {
    /// Gateways on one database; none is one gateway with a store of its own.
    gateways: usize,
    /// Of each gateway.
    connections: usize,
    contender: Contender,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.gateways {
            0 => write!(f, "SQLite, ")?,
            1 => write!(f, "PostgreSQL, 1 gateway, ")?,
            more => write!(f, "PostgreSQL, {more} gateways, each ")?,
        }
        write!(f, "{} connection{}", self.connections, if self.connections == 1 { "" } else { "s" })
    }
}

fn points() -> Vec<Point> {
    use Contender::{D, E};
    let points = [
        (0, 1, D),
        (0, 64, D),
        (1, 1, D),
        (1, 64, D),
        (2, 64, D),
        (3, 64, D),
        (0, 64, E),
        (1, 64, E),
        (2, 64, E),
        (3, 64, E),
    ];
    points.map(|(gateways, connections, contender)| Point { gateways, connections, contender }).into()
}

/// Measures, in turn, for several rounds.
pub(crate) fn run(options: &Options) {
    let place = Place::new();
    let database = Database::start(SETTINGS);
    let (mut samples, mut gains) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let mut alone = f64::NAN;
        for point in points().iter().filter(|point| options.contenders.contains(&point.contender)) {
            let figures = measure(&place, &database, point, options);
            let rate = figures["requests_per_second"];
            eprintln!(
                "round {}: {point}: {}: {rate:.0}/s; CPU each: gateways {:.0} µs, database {:.0} µs; others {:.0} %",
                round + 1,
                point.contender.name(),
                figures["cpu_us"],
                figures["database_cpu_us"],
                figures["others"] * 100.0
            );
            match point {
                Point { gateways: 1, connections: 1, .. } => alone = rate,
                Point { gateways: 1, contender: Contender::D, .. } => gains.push(rate / alone),
                _ => {}
            }
            samples.push(Sample { contender: point.contender, workload: point.to_string(), round, figures });
        }
    }
    let goals = [Goal::new("PostgreSQL, 64 connections by one, requests/s", gains, true, 5.0)];
    Report::new(options, &place.machine, samples, goals).publish(options);
}

/// One point on an empty database, or an empty store; the figures of several gateways are summed up where they can be.
fn measure(place: &Place, database: &Database, point: &Point, options: &Options) -> Figures {
    let backend = (point.contender == Contender::E).then(|| Server::start_own("http", None, ""));
    let mut setting = options.setting.clone();
    setting.backends = backend.iter().map(|backend| backend.address).collect();
    if point.gateways > 0 {
        setting.top += &on(&database.database());
    }
    let directories: Vec<_> = (0..point.gateways.max(1)).map(|_| place.temporary()).collect();
    let gateways: Vec<_> =
        directories.iter().map(|directory| Server::start_gateway(directory.path(), &setting)).collect();
    let workload = Workload {
        pace: Pace::Closed,
        connections: point.connections,
        body_bytes: 1 << 10,
        seconds: options.seconds,
        rate_max: RATE_MAX / gateways.len() as f64,
    };
    let deliveries: Vec<_> = gateways.iter().map(|_| workload.deliveries(1)).collect();
    let before = cpu(database);
    let measured: Vec<_> = thread::scope(|scope| {
        let measuring: Vec<_> = gateways
            .iter()
            .zip(&deliveries)
            .map(|(gateway, deliveries)| {
                let (workload, backend) = (&workload, backend.as_ref());
                scope.spawn(move || place.measure(gateway, backend, workload, deliveries))
            })
            .collect();
        measuring.into_iter().map(|measuring| measuring.join().unwrap()).collect()
    });
    // One may have ended between the two looks at it.
    let spent = cpu(database).saturating_sub(before);
    let all: u64 = measured.iter().map(|(_, answers)| answers.accepted_in_all).sum();
    let mut figures = Figures::new();
    for name in measured[0].0.keys() {
        let each = measured.iter().map(|(figures, _)| figures[name]);
        let value = match *name {
            "requests_per_second" | "failed" => each.sum(),
            "p50_ms" | "p99_ms" | "p999_ms" | "max_ms" | "resident_mib" => each.fold(0.0, f64::max),
            _ => each.sum::<f64>() / measured.len() as f64,
        };
        figures.insert(name, value);
    }
    figures.insert("database_cpu_us", spent.as_secs_f64() * 1e6 / all.max(1) as f64);
    figures
}

fn on(url: &str) -> String {
    format!("store.engine = \"postgres\"\nstore.url = {{ value = \"{url}\" }}\n")
}

/// Processor time of all processes of the server's that are there, and of those that have ended.
fn cpu(database: &Database) -> Duration {
    let id = database.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let alive: Duration = children
        .split_whitespace()
        .filter_map(|child| times(child.parse().unwrap()))
        .map(|(own, _)| own)
        .sum();
    alive + times(id).unwrap().1
}

/// The tables after many deliveries, while retention removes what was delivered two minutes ago.
pub(crate) fn bloat(options: &Options) {
    const STEP: u64 = 50_000;
    let place = Place::new();
    let database = Database::start(SETTINGS);
    let url = database.database();
    let backend = Server::start_own("http", None, "");
    let mut setting = Setting { backends: vec![backend.address], ..options.setting.clone() };
    setting.top += &on(&url);
    setting.top += "store.retention.delivered = \"2m\"\n";
    let directory = place.temporary();
    let server = Server::start_gateway(directory.path(), &setting);
    let workload = Workload::counted();
    let (began, mut samples, mut done) = (Instant::now(), Vec::new(), 0);
    while done < options.count.unwrap_or(1_000_000) && began.elapsed() < WATCH_MAX {
        let deliveries = Deliveries::sign(usize::try_from(STEP).unwrap(), workload.body_bytes, 1);
        let (figures, answers) = place.measure(&server, Some(&backend), &workload, &deliveries);
        done += answers.accepted_in_all;
        let size = query(&url, "SELECT pg_size_pretty(pg_database_size(current_database()))");
        eprintln!(
            "{done} after {:.0?}: {:.0}/s, p99 {:.1} ms, {size}",
            began.elapsed(),
            figures["requests_per_second"],
            figures["p99_ms"]
        );
        let workload = format!("{workload}, until {done} are delivered");
        samples.push(Sample { contender: Contender::E, workload, round: 0, figures });
    }
    Report::new(options, &place.machine, samples, []).publish(options);
    let tables = "
        SELECT relname AS table, n_tup_ins AS inserted, n_tup_upd AS updated, n_tup_hot_upd AS \"of these in place\",
            n_tup_del AS deleted, n_live_tup AS live, n_dead_tup AS dead, autovacuum_count AS vacuums,
            pg_size_pretty(pg_table_size(relid)) AS size, pg_size_pretty(pg_indexes_size(relid)) AS indexes
        FROM pg_stat_user_tables WHERE n_tup_ins > 0 ORDER BY pg_total_relation_size(relid) DESC";
    println!(
        "\n| table | inserted | updated | of these in place | deleted | live | dead | vacuums | size | indexes |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for row in query(&url, tables).lines() {
        println!("| {} |", row.replace('|', " | "));
    }
}
