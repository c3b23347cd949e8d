//! What a broker does not take holds up nothing else: it is set aside, told, and kept.

use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::uplink::DELIVERED;
use std::collections::{BTreeMap, BTreeSet};
use tidegate::model::Value;
use tidegate::sink::encode::decode;
use tidegate::wire::message::{ChannelRef, DeviceMessage, Readings, Sample};

const BOTH: [(bool, &str); 2] = [(false, "3.1.1"), (true, "5")];
const PENDING: &str = "tidegate_sink_pending{sink=\"mqtt\"}";
const REFUSED: &str = "tidegate_sink_dropped_total{sink=\"mqtt\",reason=\"refused\"}";
const TOO_LARGE: &str = "tidegate_sink_dropped_total{sink=\"mqtt\",reason=\"too_large\"}";

/// Readings 1 to `count` of this device are taken by the gateway.
async fn send(gateway: &Gateway, device: &str, count: u64) {
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), device, 77).await;
    for first in (1..=count).step_by(50) {
        talk.readings(1, first, 50.min(count + 1 - first)).await;
    }
    talk.acked(count).await;
}

/// Device and seq of what the broker has confirmed.
fn arrived(script: &Script) -> BTreeSet<(String, u64)> {
    script.look(|seen| {
        let readings = seen.acked.iter().filter(|(topic, _)| topic.ends_with("/readings"));
        let deliveries = readings.map(|(_, payload)| decode(payload).expect("a valid payload"));
        let readings = deliveries.flat_map(|delivery| delivery.readings);
        readings.filter_map(|r| r.origin.map(|(_, seq)| (r.device.to_string(), seq))).collect()
    })
}

fn all(device: &str, count: u64) -> BTreeSet<(String, u64)> {
    (1..=count).map(|seq| (device.to_owned(), seq)).collect()
}

/// The `gap` events that came, by reason: how many readings they tell of.
fn told(script: &Script, reason: &str) -> u64 {
    script.look(|seen| {
        let events = seen.acked.iter().filter(|(topic, _)| topic.ends_with("/events"));
        let events = events.map(|(_, payload)| serde_json::from_slice(payload).expect("events are JSON"));
        let gaps = events.filter(|event: &serde_json::Value| event["type"] == "gap" && event["reason"] == reason);
        // They come at least once.
        let counts: BTreeMap<_, _> =
            gaps.filter_map(|event| Some((event["id"].as_u64(), event["count"].as_u64()?))).collect();
        counts.values().sum()
    })
}

fn is_of_bad(topic: &str) -> bool {
    topic == "tidegate/gw/devices/bad/readings"
}

#[tokio::test]
async fn a_device_whose_topic_is_denied_is_set_aside_and_told_and_others_go_on() {
    for (v5, version) in BOTH {
        let script = Script::start(Manners { v5, denied: Some(is_of_bad), ..Manners::default() }).await;
        let keys = format!("version = \"{version}\"\ntopics = \"device\"\n");
        let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
        send(&gateway, "bad", 10).await;
        send(&gateway, "good", 100).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
        gateway.figure_becomes(REFUSED, |refused| refused == 10.0).await;
        assert_eq!(arrived(&script), all("good", 100));
        eventually("the gap is told", async || told(&script, "refused") == 10).await;
        if v5 {
            assert_eq!(script.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
        }
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains("does not take readings")).expect("it is told");
        assert!(line.contains("tidegate/gw/devices/bad/readings"), "{line}");
        let (_, health) = gateway.get("/health/ready").await.expect("it answers");
        assert!(health.contains("10 readings were set aside"), "{health}");

        // It is known by now.
        let connects = script.look(|seen| seen.connects.len());
        let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "bad", 78).await;
        talk.readings(1, 1, 50).await;
        talk.acked(50).await;
        let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "good", 78).await;
        talk.readings(1, 1, 50).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 150.0).await;
        gateway.figure_becomes(REFUSED, |refused| refused == 60.0).await;
        assert_eq!(script.look(|seen| seen.connects.len()), connects, "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_denied_device_with_a_large_backlog_before_all_others_holds_them_up_no_longer() {
    // Several times what is looked through for others at first.
    const MANY: u64 = 60_000;
    let script = Script::start(Manners { denied: Some(is_of_bad), ..Manners::default() }).await;
    let keys = "version = \"3.1.1\"\ntopics = \"device\"\npresence = false\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", keys).started().await;
    send(&gateway, "bad", MANY).await;
    send(&gateway, "good", 100).await;
    gateway.terminate().await;
    gateway.use_broker(&script.url());
    gateway.start().await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
    gateway.figure_becomes(REFUSED, |refused| refused == MANY as f64).await;
    assert_eq!(arrived(&script), all("good", 100));
    assert!(script.look(|seen| seen.connects.len()) <= 30, "{}", gateway.log());
}

#[tokio::test]
async fn nothing_is_set_aside_where_a_broker_takes_no_readings_at_all() {
    for (v5, version) in BOTH {
        let denied: fn(&str) -> bool = |topic| topic.ends_with("/readings");
        let script = Script::start(Manners { v5, denied: Some(denied), ..Manners::default() }).await;
        let keys = format!("version = \"{version}\"\ntopics = \"device\"\n");
        let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
        send(&gateway, "bad", 10).await;
        send(&gateway, "good", 100).await;
        eventually("it tries", async || script.look(|seen| seen.denied) > if v5 { 1 } else { 5 }).await;
        gateway.figure_becomes(PENDING, |pending| pending == 110.0).await;
        assert_eq!(gateway.figure(REFUSED).await, 0.0, "{}", gateway.log());
    }
}

#[tokio::test]
async fn readings_go_on_where_a_broker_ends_connections_at_devices_statuses() {
    let denied: fn(&str) -> bool = |topic| topic.ends_with("/devices/pump/status");
    let script = Script::start(Manners { denied: Some(denied), ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&script.url(), "").started().await;
    send(&gateway, "pump", 450).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 450.0).await;
    gateway.says("presence is left out").await;
    send(&gateway, "fan", 50).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    let connects = script.look(|seen| seen.connects.len());
    assert!(connects <= 8, "{connects} connections\n{}", gateway.log());
    assert_eq!(gateway.figure(REFUSED).await + gateway.figure(TOO_LARGE).await, 0.0, "{}", gateway.log());
    let (_, health) = gateway.get("/health/ready").await.expect("it answers");
    assert!(health.contains("presence = false"), "{health}");
}

#[tokio::test]
async fn what_was_set_aside_is_counted_in_the_log_and_can_be_exported() {
    let script = Script::start(Manners { v5: true, denied: Some(is_of_bad), ..Manners::default() }).await;
    let mut gateway = Gateway::with_broker(&script.url(), "version = \"5\"\ntopics = \"device\"\n").started().await;
    send(&gateway, "bad", 10).await;
    send(&gateway, "good", 10).await;
    gateway.figure_becomes(REFUSED, |refused| refused == 10.0).await;
    gateway.terminate().await;
    let tidegate = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(arguments).arg("-c").arg(gateway.config_file()).output().expect("it runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let stats = tidegate(&["queue", "stats"]);
    assert!(stats.contains("mqtt: 10 readings were set aside"), "{stats}");
    let exported = tidegate(&["queue", "export"]);
    assert_eq!(exported.lines().filter(|line| line.contains("\"bad\"")).count(), 10, "{exported}");
}

/// A reading of so many bytes, as the device's first.
async fn send_large(gateway: &Gateway, size: usize) {
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "large", 77).await;
    let sample = Sample { time: 0, values: vec![(ChannelRef::Index(0), Value::Text("x".repeat(size).into()))] };
    talk.say(&DeviceMessage::Readings(Readings { seq: 1, sub: None, samples: vec![sample] })).await;
    talk.acked(1).await;
}

#[tokio::test]
async fn a_link_that_comes_and_goes_makes_no_reading_too_large() {
    for (v5, version) in BOTH {
        // Each connection ends at the first publish behind the gateway's status.
        let manners = Manners { v5, drop_after: vec![1; 12], ..Manners::default() };
        let manners = match v5 {
            true => Manners { max_packet: Some(200_000), tells_max_packet: true, ..manners },
            false => manners,
        };
        let script = Script::start(manners).await;
        let keys = format!("version = \"{version}\"\npresence = false\n");
        let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
        send_large(&gateway, 5_000).await;
        send(&gateway, "pump", 100).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 101.0).await;
        assert_eq!(gateway.figure(TOO_LARGE).await + gateway.figure(REFUSED).await, 0.0, "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_broker_that_allows_tiny_packets_only_gets_none_and_everything_is_kept_and_told() {
    let manners = Manners { v5: true, max_packet: Some(300), tells_max_packet: true, ..Manners::default() };
    let script = Script::start(manners).await;
    let gateway = Gateway::with_broker(&script.url(), "version = \"5\"\n").started().await;
    send(&gateway, "pump", 100).await;
    gateway.says("that the destination takes, and no smaller ones come").await;
    gateway.figure_becomes(PENDING, |pending| pending == 100.0).await;
    assert_eq!(gateway.figure(TOO_LARGE).await, 0.0, "{}", gateway.log());
}
