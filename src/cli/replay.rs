//! `countersign replay`: forwards again what a filter selects.

use super::Failure;
use super::ask::{Pace, Which, follow};
use super::status::Gateway;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// Only forwards in this state: delivered, dead or cancelled
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    gateway: Gateway,
    /// Print the document as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { which, state, pace, gateway, json } = arguments;
    let mut order = which.order(pace)?;
    order.state.clone_from(state);
    follow(gateway, "/api/v1/replay", &order, *json)
}
