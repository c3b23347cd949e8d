//! The table of figures in `docs/http.md` against what the gateway exposes.

use crate::support::broker::Broker;
use crate::support::gateway::Gateway;
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../docs/http.md");
const SOURCE: &str = include_str!("../src/metrics.rs");

/// The names in the first column of the table.
fn documented() -> BTreeSet<String> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `tidegate_"));
    rows.filter_map(|row| Some(format!("tidegate_{}", row.split_once('`')?.0))).collect()
}

/// The names that are registered, as they are exposed. A family shows only once it has a member,
/// so that they are taken from the rows that declare them.
fn registered() -> BTreeSet<String> {
    let (_, rows) = SOURCE.split_once("\nmetrics! {\n").expect("the rows");
    let (rows, others) = rows.split_once("\n}\n").expect("their end");
    let row = |line: &str| {
        let (name, declared) = line.strip_prefix("    ")?.split_once(": ")?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let kind = declared.split('"').next()?;
        is_name.then(|| format!("tidegate_{name}{}", if kind.contains("Counter") { "_total" } else { "" }))
    };
    let mut names: BTreeSet<_> = rows.lines().filter_map(row).collect();
    let log_lines = others.split('"').filter(|text| text.starts_with("log_lines_"));
    names.extend(log_lines.map(|name| format!("tidegate_{name}_total")));
    names.insert("tidegate_build_info".to_owned());
    names
}

#[test]
fn the_page_has_every_figure_and_no_other() {
    let (documented, registered) = (documented(), registered());
    assert!(registered.len() > 50, "is src/metrics.rs still understood? {registered:?}");
    let missing: Vec<_> = registered.difference(&documented).collect();
    let stray: Vec<_> = documented.difference(&registered).collect();
    assert!(missing.is_empty() && stray.is_empty(), "not in docs/http.md: {missing:?}; only there: {stray:?}");
}

#[tokio::test]
async fn what_a_gateway_exposes_stands_in_the_page() {
    let broker = Broker::start().await;
    let gateway = Gateway::with_broker(&broker.url(), "").started().await;
    gateway.connected().await;
    let (_, text) = gateway.get("/metrics").await.expect("figures");
    let documented = documented();
    let samples = text.lines().filter(|line| line.starts_with("tidegate_"));
    let names: BTreeSet<_> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    assert!(names.contains("tidegate_sink_connects_total"), "{text}");
    for name in names {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        assert!(documented.contains(name) || histogram.is_some_and(|name| documented.contains(name)), "{name}");
    }
}
