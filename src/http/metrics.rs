//! `/metrics`: every metric, as Prometheus text or, if the client asks for it, as OpenMetrics.

use super::Shared;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn metrics(State(site): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    let text = site.metrics.encode();
    match wants_openmetrics(&headers) {
        true => ([(header::CONTENT_TYPE, OPENMETRICS)], text),
        false => ([(header::CONTENT_TYPE, PROMETHEUS)], prometheus(&text)),
    }
}

/// Whether the client names OpenMetrics, and does not prefer plain text.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let (mut openmetrics, mut plain) = (0.0, 0.0);
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        if media.eq_ignore_ascii_case("application/openmetrics-text") {
            openmetrics = f64::max(openmetrics, weight);
        } else if media.eq_ignore_ascii_case("text/plain") {
            plain = f64::max(plain, weight);
        }
    }
    openmetrics > 0.0 && openmetrics >= plain
}

/// Converts OpenMetrics to Prometheus text 0.0.4: there a family has the name of its samples, and
/// there are neither units nor an end marker.
fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(about) = line.strip_prefix("# HELP ") {
            help = about.split_once(' ');
        } else if let Some((family, kind)) = line.strip_prefix("# TYPE ").and_then(|about| about.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == family) {
                text += &format!("# HELP {family}{suffix} {words}\n");
            }
            text += &format!("# TYPE {family}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, SinkLabel};
    use axum::http::HeaderValue;

    #[test]
    fn openmetrics_is_for_those_only_who_ask_for_it_by_name() {
        for (accept, wants) in [
            ("*/*", false),
            ("text/plain", false),
            ("text/plain; version=0.0.4", false),
            ("application/openmetrics-text", true),
            ("text/html,*/*;q=0.8", false),
            ("application/openmetrics-text;q=0", false),
            ("text/plain;version=0.0.4,application/openmetrics-text;q=0.2", false),
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_openmetrics(&headers), wants, "{accept}");
        }
        assert!(!wants_openmetrics(&HeaderMap::new()));
    }

    #[test]
    fn families_are_called_as_their_samples_are_and_each_has_a_type_before_them() {
        let metrics = Metrics::new();
        metrics.readings_received.inc();
        metrics.commit_seconds.observe(0.01);
        metrics.sink_delivered.get_or_create(&SinkLabel { sink: "a # \"b\"\n".into() }).inc();
        let text = prometheus(&metrics.encode());
        for line in [
            "# TYPE tidegate_readings_received_total counter",
            "tidegate_readings_received_total 1",
            "# TYPE tidegate_commit_seconds histogram",
            "# TYPE tidegate_store_bytes gauge",
            "# TYPE tidegate_build_info gauge",
            "tidegate_sink_delivered_total{sink=\"a # \\\"b\\\"\\n\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        assert!(!text.contains("# EOF") && !text.contains("# UNIT") && text.ends_with('\n'));
        let mut family = "";
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# TYPE ") {
                family = about.split(' ').next().unwrap_or_default();
                assert!(text.contains(&format!("# HELP {family} ")), "{family} has no help");
            } else if !line.starts_with('#') {
                let rest = line.strip_prefix(family).unwrap_or_else(|| panic!("{line} below {family}"));
                assert!(
                    ["", "_bucket", "_sum", "_count"].contains(&rest.split(['{', ' ']).next().unwrap_or("?")),
                    "{line}"
                );
            }
        }
    }
}
