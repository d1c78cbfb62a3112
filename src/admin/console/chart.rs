//! A chart of the last hour, as SVG made here.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::history::HOUR;
use super::layout::span;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 72.0;

/// A line over the last hour: seconds ago and value, the oldest first.
pub(super) fn line(title: &str, unit: &str, points: &[(f64, f64)]) -> Markup {
    let most = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let top = if most > 0.0 { most } else { 1.0 };
    // A gateway that is younger than an hour has its whole life here.
    let oldest = points.first().map_or(0.0, |(ago, _)| *ago).clamp(60.0, HOUR.as_secs_f64());
    let x = |ago: f64| WIDTH * (1.0 - (ago / oldest).clamp(0.0, 1.0));
    let y = |value: f64| HEIGHT - 2.0 - (HEIGHT - 6.0) * value / top;
    let mut path = String::new();
    for (ago, value) in points {
        let letter = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{letter}{:.1} {:.1}", x(*ago), y(*value));
    }
    let area = points
        .first()
        .zip(points.last())
        .map(|((first, _), (last, _))| format!("{path}L{:.1} {HEIGHT}L{:.1} {HEIGHT}Z", x(*last), x(*first)));
    let now = points.last().map(|(_, value)| *value);
    let told = format!(
        "{title}, the last {}: now {}, most {} {unit}",
        span(oldest as u64),
        short(now.unwrap_or(0.0)),
        short(most)
    );
    html! {
        figure.chart {
            figcaption {
                span { (title) }
                strong { @match now { Some(now) => { (short(now)) } None => { "–" } } " " small { (unit) } }
            }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(told) preserveAspectRatio="none" {
                @if let Some(area) = area { path.area d=(area) {} }
                path.line d=(path) vector-effect="non-scaling-stroke" {}
            }
            div.axis { span { (span(oldest as u64)) " ago" } span { "most " (short(most)) } span { "now" } }
        }
    }
}

/// A rate with as many digits as matter.
pub(super) fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stands_at_the_right_and_the_largest_at_the_top() {
        let svg = line("x", "/s", &[(3_600.0, 0.0), (1_800.0, 4.0), (0.0, 2.0)]).into_string();
        assert!(svg.contains("d=\"M0.0 70.0L180.0 4.0L360.0 37.0\""), "{svg}");
        let empty = line("x", "/s", &[]).into_string();
        assert!(empty.contains("–"), "{empty}");
    }
}
