//! How fast the gateway is beside what it stands on: `cargo bench --bench gateway [-- MODE] [KEY=VALUE …]`.
//!
//! Without a mode it measures, in turn and in several rounds, (a) bare hyper that reads the body and answers 200, (b) the
//! same with HMAC-SHA256, (c) the same with an append log and one fdatasync per group, (d) the gateway up to its answer,
//! with nothing being forwarded, and (e) the gateway with a fast backend, up to the last forward. It prints a table and
//! the goals, and writes `target/bench/gateway.json`.
//!
//! | mode | measures |
//! |---|---|
//! | `quick` | the same in one short round each: whether it works, not how fast |
//! | `scale` | processors, connections, sizes of bodies and numbers of sources, one varied at a time |
//! | `hanging` | answers while the backend hangs and 10,000 forwards wait |
//! | `retention` | answers while old deliveries are being removed |
//! | `memory` | resident memory after a million deliveries (minutes) |
//! | `stored` | accepting and starting with 5,000,000 deliveries stored (an hour and 20 GB for the first time) |
//! | `shared` | one to three gateways on PostgreSQL, beside one with a store of its own (takes a PostgreSQL server's programs) |
//! | `bloat` | tables, indexes and vacuum after a million deliveries on PostgreSQL, or as many as fit in twenty minutes |
//! | `body` | what 25 MiB bodies cost in memory |
//!
//! | key | |
//! |---|---|
//! | `rounds=5`, `seconds=2` | how often, how long |
//! | `only=cd`, `workload=open` | some contenders, some workloads |
//! | `count=N` | deliveries (`memory`, `stored`, `bloat`) or requests a second (`hanging`) |
//! | `binary=PATH` | measures this gateway instead of the one just built |
//! | `against=PATH` | measures this gateway, too, as (x): one commit beside another |
//! | `top=…`, `source=…` | more lines of the gateway's configuration |
//! | `destination=…` | those of its destinations, in place of `concurrency = 64` |
//! | `markdown=docs/performance.md` | writes the table there |
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that cannot go on should say where"
)]

#[path = "../shared/arrivals.rs"]
mod arrivals;
#[allow(dead_code, reason = "shared with tests/cluster, which uses the rest")]
#[path = "../../tests/shared/postgres.rs"]
mod database;
mod endurance;
mod log;
mod machine;
mod measure;
mod options;
mod process;
mod report;
mod requests;
mod rounds;
mod scale;
mod sender;
mod servers;
mod shared;
mod stored;

use options::Options;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", "http"] => servers::serve(false, None),
        ["serve", "hmac"] => servers::serve(true, None),
        ["serve", "log", directory] => servers::serve(true, Some(directory.into())),
        _ => run(&Options::read(&words)),
    }
}

fn run(options: &Options) {
    match &*options.mode {
        "rounds" => rounds::run(options),
        "scale" => scale::run(options),
        "hanging" => endurance::hanging(options),
        "retention" => endurance::retention(options),
        "memory" => endurance::memory(options),
        "stored" => stored::run(options),
        "shared" => shared::run(options),
        "bloat" => shared::bloat(options),
        "body" => endurance::body(options),
        mode => panic!("there is no mode `{mode}`"),
    }
}
