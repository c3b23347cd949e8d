//! What health tells of links and sinks that are not as they should be.

use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::pty::Line;
use serde_json::Value;
use std::time::Duration;
use tidegate::clock::{Clock, SystemClock};
use tidegate::model::Timestamp;

/// Where no broker is.
const NOWHERE: &str = "mqtt://127.0.0.1:1";

/// The notes of a gateway that is ready all the same.
async fn notes(gateway: &Gateway) -> Vec<Value> {
    let (code, body) = gateway.get("/health/ready").await.expect("an answer");
    assert_eq!(code, 200, "{body}");
    let mut body: Value = serde_json::from_str(&body).expect("JSON");
    body["notes"].as_array_mut().map(std::mem::take).expect("notes")
}

/// The note about this part, once its reason has all these words; it says since when.
async fn noted(gateway: &Gateway, part: &str, words: &[&str]) -> Value {
    let mut found = None;
    eventually(&format!("{part} is noted with {words:?}"), async || {
        let has = |note: &Value, word: &&str| note["reason"].as_str().is_some_and(|reason| reason.contains(word));
        let notes = notes(gateway).await;
        found = notes.into_iter().find(|note| note["part"] == part && words.iter().all(|word| has(note, word)));
        found.is_some()
    })
    .await;
    let note = found.expect("it was found");
    let since = since(&note);
    let now = SystemClock::new().now().wall;
    assert!(since <= now && now.since(since).as_secs() < 120, "{note}");
    note
}

fn since(note: &Value) -> Timestamp {
    note["since"].as_str().expect("since when").parse().expect("a time")
}

#[tokio::test]
async fn each_port_that_is_missing_is_noted_with_the_reason_and_since_when() {
    let line = Line::new().await;
    let there = line.gateway_end();
    let missing = there.with_file_name("missing");
    let sections = format!(
        "[[serial]]\nname = \"pumps\"\npath = {there:?}\n[[serial]]\nname = \"valves\"\npath = {missing:?}\n\
         reopen_interval = \"100ms\"\n"
    );
    let gateway = Gateway::with_broker(NOWHERE, &sections).started().await;
    gateway.figure_becomes("tidegate_link_up{link=\"pumps\"}", |up| up == 1.0).await;
    let note = noted(&gateway, "valves", &[&missing.display().to_string(), "plug the device in"]).await;
    gateway.figure_becomes("tidegate_serial_open_failures_total{link=\"valves\"}", |count| count > 5.0).await;
    let still = since(&noted(&gateway, "valves", &[]).await);
    assert!(still.since(since(&note)) <= Duration::from_secs(1), "{still} instead of {note}");
    assert!(notes(&gateway).await.iter().all(|note| note["part"] != "pumps"));
}

#[tokio::test]
async fn a_port_that_is_lost_is_noted_and_one_that_is_lost_again_and_again_also_while_it_is_there() {
    let mut line = Line::new().await;
    let path = line.gateway_end();
    let sections = format!("[[serial]]\npath = {path:?}\nreopen_interval = \"100ms\"\n");
    let gateway = Gateway::with_broker(NOWHERE, &sections).started().await;
    let up = async |wanted| gateway.figure_becomes("tidegate_link_up{link=\"serial\"}", |up| up == wanted).await;
    up(1.0).await;
    assert!(notes(&gateway).await.iter().all(|note| note["part"] == "mqtt"), "the port is well");
    for _ in 0..3 {
        line.unplug();
        up(0.0).await;
        noted(&gateway, "serial", &[&path.display().to_string()]).await;
        line.plug().await;
        up(1.0).await;
    }
    noted(&gateway, "serial", &["works now", "3 times within the last 5 minutes"]).await;
    assert_eq!(gateway.figure("tidegate_link_losses_total{link=\"serial\"}").await, 3.0);
    assert_eq!(gateway.figure("tidegate_serial_opened_total{link=\"serial\"}").await, 4.0);
}

#[tokio::test]
async fn a_broker_that_is_away_is_noted_with_the_reason_and_one_that_is_lost_often_also_while_it_is_there() {
    let mut broker = Broker::start().await.behind_a_proxy().await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    let port = broker.gateway_url().rsplit_once(':').expect("a port").1.to_owned();
    for round in 1..=3 {
        broker.stop().await;
        noted(&gateway, "mqtt", &["not connected; 0 readings are kept for it", &port]).await;
        broker.resume().await;
        gateway.connected().await;
        if round < 3 {
            let notes = notes(&gateway).await;
            assert_eq!(notes, Vec::<Value>::new(), "connected, and not lost often");
        }
    }
    noted(&gateway, "mqtt", &["works now", "3 times within the last 5 minutes"]).await;
    assert_eq!(gateway.figure("tidegate_sink_losses_total{sink=\"mqtt\"}").await, 3.0);
    assert_eq!(gateway.figure("tidegate_sink_connects_total{sink=\"mqtt\"}").await, 4.0);
}
