//! What time does to a gateway: memory after many deliveries, answers while retention removes old ones, answers while no
//! backend answers, and what a large body costs.

use std::net::{SocketAddr, TcpListener};

use crate::measure::{Contender, Place, Workload, median};
use crate::options::Options;
use crate::process::{Server, Setting};
use crate::report::{Goal, Report};
use crate::requests::Deliveries;
use crate::rounds::Sample;
use crate::sender::Pace;

const MIB: f64 = 1_048_576.0;

/// Resident memory after ten thousand deliveries and after a million, each delivered.
pub(crate) fn memory(options: &Options) {
    const STEP: usize = 10_000;
    let place = Place::new();
    let count = usize::try_from(options.count.unwrap_or(1_000_000)).unwrap();
    let directory = place.temporary();
    let backend = Server::start_own("http", None, "");
    let setting = Setting { backends: vec![backend.address], ..options.setting.clone() };
    let server = Server::start_gateway(directory.path(), &setting);
    let mut samples = Vec::new();
    let mut resident = |stored: usize, deliveries: usize| {
        let workload = Workload::counted();
        let deliveries = Deliveries::sign(deliveries, workload.body_bytes, 1);
        let (figures, _) = place.measure(&server, Some(&backend), &workload, &deliveries);
        let resident = server.usage().resident as f64 / MIB;
        eprintln!("{stored} delivered: {resident:.0} MiB resident");
        let workload = format!("{workload}, until {stored} are delivered");
        samples.push(Sample { contender: Contender::E, workload, round: 0, figures });
        resident
    };
    let first = resident(STEP, STEP);
    let (mut stored, mut last) = (STEP, first);
    while stored < count {
        let more = (count - stored).min(10 * STEP);
        stored += more;
        last = resident(stored, more);
    }
    let what = format!("RSS after {count} deliveries beyond that after {STEP}, MiB");
    let goals = [Goal::new(&what, vec![last - first], false, 64.0)];
    Report::new(options, &place.machine, samples, goals).publish(options);
}

/// Answers while retention removes what was delivered, beside a gateway that keeps everything.
pub(crate) fn retention(options: &Options) {
    // It is looked for what may go every 30 s.
    const WINDOWS: usize = 14;
    let place = Place::new();
    let workload = Workload {
        pace: Pace::Open(2_000),
        connections: 64,
        body_bytes: 1 << 10,
        seconds: 5.0,
        rate_max: 0.0,
    };
    let (mut samples, mut worst) = (Vec::new(), Vec::new());
    for keep in ["7d", "10s"] {
        let directory = place.temporary();
        let backend = Server::start_own("http", None, "");
        let mut setting = Setting { backends: vec![backend.address], ..options.setting.clone() };
        setting.top += &format!("store.retention.delivered = \"{keep}\"\n");
        let server = Server::start_gateway(directory.path(), &setting);
        let mut latest: f64 = 0.0;
        for round in 0..WINDOWS {
            let (figures, _) = place.measure(&server, Some(&backend), &workload, &workload.deliveries(1));
            eprintln!("keeping {keep}, {} s: p99 {:.2} ms", (round + 1) * 5, figures["p99_ms"]);
            // The first windows are those of an empty store.
            if round > 1 {
                latest = latest.max(figures["p99_ms"]);
            }
            let workload = format!("{workload}, delivered kept for {keep}");
            samples.push(Sample { contender: Contender::E, workload, round, figures });
        }
        worst.push(latest);
        server.stop();
    }
    let what = "ack p99, worst 5 s with retention at work by worst 5 s without";
    let goals = [Goal::new(what, vec![worst[1] / worst[0]], false, 2.0)];
    Report::new(options, &place.machine, samples, goals).publish(options);
}

/// Answers while the backend hangs and ten thousand forwards are under way or waiting, beside a backend that is fast and
/// a lane that is held back.
pub(crate) fn hanging(options: &Options) {
    const WAITING: usize = 10_000;
    let place = Place::new();
    let rate = options.count.unwrap_or(2_000);
    let workload = Workload {
        pace: Pace::Open(rate),
        connections: 64,
        body_bytes: 1 << 10,
        seconds: options.seconds.max(5.0),
        rate_max: 0.0,
    };
    let fast = Server::start_own("http", None, "");
    // Accepts into the kernel's queue and never reads.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let states: [(&str, Vec<SocketAddr>); 3] = [
        ("fast backend", vec![fast.address]),
        ("nothing forwarded", Vec::new()),
        ("hanging backend", vec![hanging.local_addr().unwrap()]),
    ];
    let (mut samples, mut by_fast, mut by_held) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let mut p99 = Vec::new();
        for (state, backends) in &states {
            let directory = place.temporary();
            let setting = Setting { backends: backends.clone(), ..options.setting.clone() };
            let server = Server::start_gateway(directory.path(), &setting);
            let before = Workload { pace: Pace::Closed, seconds: 3_600.0, ..workload };
            let is_fast = *backends == [fast.address];
            let waiting = Deliveries::sign(WAITING, workload.body_bytes, 1);
            place.measure(&server, is_fast.then_some(&fast), &before, &waiting);
            let (figures, _) = place.measure(&server, None, &workload, &workload.deliveries(1));
            eprintln!("round {}: {state}: p99 {:.2} ms", round + 1, figures["p99_ms"]);
            p99.push(figures["p99_ms"]);
            let workload = format!("{workload}, {state}, after {WAITING}");
            samples.push(Sample { contender: Contender::D, workload, round, figures });
        }
        by_fast.push(p99[2] / p99[0]);
        by_held.push(p99[2] / p99[1]);
    }
    let goals = [
        Goal::new("ack p99, hanging backend by fast backend", by_fast, false, 1.3),
        Goal::new("ack p99, hanging backend by nothing forwarded", by_held, false, 1.3),
    ];
    Report::new(options, &place.machine, samples, goals).publish(options);
}

/// What bodies of 25 MiB cost in memory, one and four at once.
pub(crate) fn body(options: &Options) {
    const BODY: usize = 25 << 20;
    let place = Place::new();
    let mut goals = Vec::new();
    let mut samples = Vec::new();
    for at_once in [1, 4] {
        let mut costs = Vec::new();
        for round in 0..options.rounds {
            let directory = place.temporary();
            let mut setting = options.setting.clone();
            setting.source += "\nbody_max = \"25MiB\"";
            let server = Server::start_gateway(directory.path(), &setting);
            let workload = Workload {
                pace: Pace::Closed,
                connections: at_once,
                body_bytes: BODY,
                seconds: 60.0,
                rate_max: 0.0,
            };
            let before = server.usage().resident;
            let (figures, _) = place.measure(&server, None, &workload, &Deliveries::sign(at_once, BODY, 1));
            let cost = (server.usage().peak - before) as f64 / (BODY * at_once) as f64;
            costs.push(cost);
            let workload = format!("{at_once} at once, {} KiB", BODY / 1_024);
            samples.push(Sample { contender: Contender::D, workload, round, figures });
        }
        eprintln!("{at_once} at once: {:.2} of their size", median(costs.clone()));
        goals.push(Goal::new(
            &format!("memory by size, {at_once} bodies of 25 MiB at once"),
            costs,
            false,
            1.2,
        ));
    }
    Report::new(options, &place.machine, samples, goals).publish(options);
}
