//! Reads as much of PromQL as tells which series a query asks for; whether it is valid, promtool judges.

/// What a query asks for.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) selectors: Vec<Selector>,
    /// Labels after `by`, `without`, `on` and `ignoring`.
    pub(crate) grouped: Vec<String>,
}

/// A metric, and what its labels have to be.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    pub(crate) matchers: Vec<(String, String)>,
}

const GROUPING: [&str; 4] = ["by", "without", "on", "ignoring"];
/// All that may stand in a query beside metrics and labels: what else there is, is a metric's name with a mistake in it.
const WORDS: [&str; 17] = [
    "sum",
    "min",
    "max",
    "abs",
    "rate",
    "increase",
    "delta",
    "changes",
    "time",
    "absent",
    "max_over_time",
    "predict_linear",
    "histogram_quantile",
    "unless",
    "and",
    "or",
    "offset",
];

impl Query {
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(length.max(first.len_utf8()));
            rest = after;
            // Numbers, durations, operators and brackets.
            if !(first.is_ascii_alphabetic() || first == '_') {
                continue;
            }
            if GROUPING.contains(&word) {
                let labels = rest.trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')'));
                let (labels, after) = labels.ok_or("no labels to group by")?;
                query.grouped.extend(labels.split(',').map(|label| label.trim().to_owned()));
                rest = after;
            } else if word == "up" || word.starts_with("countersign_") || word.starts_with("process_") {
                let mut matchers = Vec::new();
                if let Some((inside, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                    matchers = inside.split("\",").map(matcher).collect::<Result<_, _>>()?;
                    rest = after;
                }
                query.selectors.push(Selector { metric: word.to_owned(), matchers });
            } else if !WORDS.contains(&word) {
                return Err(format!("`{word}` is nothing that a query of ours may hold"));
            }
        }
        if query.selectors.is_empty() { Err("it asks for nothing".to_owned()) } else { Ok(query) }
    }
}

fn matcher(text: &str) -> Result<(String, String), String> {
    let (label, value) = text.split_once('"').ok_or_else(|| format!("`{text}` is no matcher"))?;
    Ok((label.trim_end_matches(['=', '~', '!']).trim().to_owned(), value.trim_end_matches('"').to_owned()))
}

#[test]
fn metrics_labels_and_values_are_found_and_mistakes_are_not_overlooked() {
    let query = Query::read(
        "sum by (le, source) (rate(countersign_a_bucket{x=~\"b|c\",y!=\"$d\"}[5m])) > 2 unless ignoring (z) up == 1",
    )
    .unwrap();
    let found: Vec<_> = query.selectors.iter().map(|selector| &*selector.metric).collect();
    assert_eq!(found, ["countersign_a_bucket", "up"]);
    let pair = |label: &str, value: &str| (label.to_owned(), value.to_owned());
    assert_eq!(query.selectors[0].matchers, [pair("x", "b|c"), pair("y", "$d")]);
    assert_eq!(query.grouped, ["le", "source", "z"]);
    for wrong in ["sum(countersing_ready)", "1 + 1", "sum by le (up)", "up{job}"] {
        assert!(Query::read(wrong).is_err(), "{wrong}");
    }
}
