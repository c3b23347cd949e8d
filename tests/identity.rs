//! Who the gateway is to its broker, what others see of it, and whether it is believed for good
//! reason that what is confirmed is delivered.

use crate::support::broker::{Broker, is_real};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::support::subscriber;
use crate::uplink::{DELIVERED, send};
use std::time::Duration;
use tidegate::mqtt::{Connection, Event, Publish};

const STATUS: &str = "tidegate/gw/status";

async fn publish(connection: &mut Connection, payload: &str, retain: bool) {
    let (topic, payload) = (STATUS.to_owned(), payload.to_owned().into());
    let publish = Publish { topic, payload, retain, content_type: "application/json", encoding: "json" };
    connection.publish(1, publish).expect("it is connected");
    while !matches!(connection.event().await, Event::Acked(1)) {}
}

#[tokio::test]
async fn a_late_last_will_is_made_right() {
    let broker = Broker::start().await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    let mut other = Connection::open(&subscriber::options(broker.port())).await.expect("it is there");
    let late = r#"{"gateway":"gw","state":"offline","epoch":1,"reason":"connection lost"}"#;
    publish(&mut other, late, true).await;
    // What is retained by then, and what comes.
    other.subscribe(STATUS).expect("it is connected");
    loop {
        match other.event().await {
            Event::Message(message) if message.payload.windows(8).any(|part| part == b"\"online\"") => break,
            Event::Closed(why) => panic!("{why}"),
            _ => {}
        }
    }
    assert!(!gateway.log().contains("two gateways have one id"), "{}", gateway.log());
}

#[tokio::test]
async fn two_gateways_with_one_id_are_noticed_by_both() {
    let broker = Broker::start().await;
    let one = Gateway::with_broker(&broker.gateway_url(), "client_id = \"one\"\n").started().await;
    one.connected().await;
    let other = Gateway::with_broker(&broker.gateway_url(), "client_id = \"other\"\n").started().await;
    one.says("two gateways have one id").await;
    let (_, health) = one.get("/health/ready").await.expect("it answers");
    assert!(health.contains("another gateway uses the id gw too"), "{health}");
    drop(one);
    let third = Gateway::with_broker(&broker.gateway_url(), "client_id = \"third\"\n").started().await;
    other.says("two gateways have one id").await;
    drop(third);
}

#[tokio::test]
async fn a_client_id_that_others_may_use_is_named() {
    let script = Script::start(Manners { drop_after: vec![1; 6], ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&script.url(), "").started().await;
    send(&gateway, 100).await;
    gateway.says("another gateway may use the client id tidegate-gw-mqtt too").await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;

    // SessionTakenOver.
    let sends = vec![0xe0, 2, 0x8e, 0];
    let script = Script::start(Manners { v5: true, sends, ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&script.url(), "version = \"5\"\n").started().await;
    gateway.says("another client connected with the same client id").await;
    gateway.says("; the client id here is tidegate-gw-mqtt").await;
}

#[tokio::test]
async fn a_broker_that_delivers_what_it_confirms_is_not_talked_about() {
    if !is_real() {
        return;
    }
    // The rights that `docs/uplink.md` asks for.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (rules, log) = (directory.path().join("acl"), directory.path().join("broker.log"));
    std::fs::write(&rules, "topic readwrite tidegate/gw/#\n").expect("a file of rules");
    let (rules, log) = (rules.display(), log.display());
    let lines = format!("allow_anonymous true\nacl_file {rules}\nlog_dest file {log}\nlog_type all\n");
    let broker = Broker::mosquitto(&lines).await;
    let mut gateway = Gateway::with_broker(&broker.url(), "");
    gateway.keys("[[mqtt]]", "version = \"3.1.1\"\n");
    let gateway = gateway.started().await;
    send(&gateway, 5).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 5.0).await;
    let back = |line: &str| line.contains("Sending PUBLISH to tidegate-gw-mqtt") && line.contains("'tidegate/gw/test'");
    let path = directory.path().join("broker.log");
    let came = || std::fs::read_to_string(&path).unwrap_or_default().lines().any(back);
    eventually("the test's message comes back", async || came()).await;
    // For as long as one that does not come back is waited for, and a little more.
    tokio::time::sleep(Duration::from_millis(11_500)).await;
    assert!(!gateway.log().contains("self-test"), "{}", gateway.log());
    let (status, health) = gateway.get("/health/ready").await.expect("it answers");
    let health: serde_json::Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!((status, &health["notes"]), (200, &serde_json::json!([])), "{health}");
}

#[tokio::test]
async fn a_broker_that_confirms_what_its_rules_discard_is_found_out() {
    if !is_real() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let rules = directory.path().join("acl");
    std::fs::write(&rules, "topic readwrite elsewhere/#\n").expect("a file of rules");
    // With 0, which the others have, Mosquitto ends the connection instead.
    let lines = format!("max_queued_messages 1000\nallow_anonymous true\nacl_file {}", rules.display());
    let broker = Broker::mosquitto(&lines).await;
    let mut gateway = Gateway::with_broker(&broker.url(), "");
    gateway.keys("[[mqtt]]", "version = \"3.1.1\"\n");
    let gateway = gateway.started().await;
    send(&gateway, 5).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 5.0).await;
    gateway.says("the self-test failed").await;
    let (_, health) = gateway.get("/health/ready").await.expect("it answers");
    assert!(health.contains("tidegate/gw/test did not come back"), "{health}");
}
