//! Who is there, who is not and why: over MQTT, HTTP, and in the log.

use crate::support::broker::{self, Broker};
use crate::support::device::{JSON, Talk, hello, sample};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::listener::Listener;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tidegate::wire::message::*;

/// Devices that are given up soon.
const QUICK: &str = "[devices]\nheartbeat_interval = \"1s\"\nidle_timeout = \"3s\"\noffline_delay = \"300ms\"\n";

const FILTERS: [&str; 3] = ["tidegate/gw/events", "tidegate/gw/devices/+/status", "tidegate/gw/devices/+/+/status"];

async fn listen(broker: &Broker) -> Listener {
    Listener::start(broker.port(), &FILTERS).await
}

/// State and reason of every status message of the device, in order.
fn told(listener: &Listener, device: &str) -> Vec<(String, String)> {
    let topic = format!("tidegate/gw/devices/{device}/status");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    listener.messages(&topic).iter().map(|status| (text(&status["state"]), text(&status["reason"]))).collect()
}

async fn becomes(listener: &Listener, device: &str, state: &str, reason: &str) {
    let wanted = (state.to_owned(), reason.to_owned());
    eventually(&format!("{device} is {state} for {reason}"), async || told(listener, device).last() == Some(&wanted))
        .await;
}

async fn json(gateway: &Gateway, path: &str) -> Value {
    let (status, body) = gateway.get(path).await.expect("an answer");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

fn goodbye() -> DeviceMessage {
    DeviceMessage::Goodbye(Goodbye { reason: Reason::Normal, text: String::new() })
}

#[tokio::test]
async fn coming_and_going_is_told_by_retained_message_event_api_and_history() {
    let broker = Broker::start().await;
    let listener = listen(&broker).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), QUICK).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    becomes(&listener, "pump", "online", "connected").await;
    let device = json(&gateway, "/api/v1/devices/pump").await;
    assert_eq!((device["state"].as_str(), device["link"].as_str()), (Some("online"), Some("tcp")), "{device}");
    talk.say(&goodbye()).await;
    becomes(&listener, "pump", "offline", "goodbye").await;

    let late = listen(&broker).await;
    becomes(&late, "pump", "offline", "goodbye").await;
    assert_eq!(told(&late, "pump").len(), 1, "only the last word is retained");

    eventually("both changes are events", async || {
        let events = listener.messages("tidegate/gw/events");
        let changes = events.iter().filter(|event| event["type"] == "presence");
        let states: Vec<Value> =
            changes.flat_map(|event| event["changes"].as_array().cloned().unwrap_or_default()).collect();
        let states: Vec<_> = states.iter().filter_map(|change| change["state"].as_str()).collect();
        states == ["online", "offline"]
    })
    .await;
    let history = json(&gateway, "/api/v1/devices/pump/history").await;
    let reasons: Vec<_> = history["history"].as_array().expect("a list").iter().map(|e| e["reason"].clone()).collect();
    assert_eq!(reasons, ["goodbye", "connected"], "the newest comes first");
    let listed = json(&gateway, "/api/v1/devices?limit=10").await;
    assert_eq!(listed["devices"].as_array().map(Vec::len), Some(1), "{listed}");
    let (status, body) = gateway.get("/api/v1/devices/nobody").await.expect("an answer");
    assert!(status == 404 && body.contains("nobody"), "{status} {body}");
}

#[tokio::test]
async fn a_silent_device_is_reminded_then_idle_then_offline() {
    let broker = Broker::start().await;
    let listener = listen(&broker).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), QUICK).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    assert!(matches!(talk.hear().await, Some(GatewayMessage::HeartbeatReply(_))), "nothing was asked");
    becomes(&listener, "pump", "idle", "silent").await;
    talk.say(&DeviceMessage::Heartbeat(Heartbeat { time: 0 })).await;
    becomes(&listener, "pump", "online", "heard").await;
    assert_eq!(talk.goodbye().await.reason, Reason::Timeout);
    becomes(&listener, "pump", "offline", "timeout").await;
}

#[tokio::test]
async fn after_a_crash_those_who_come_back_were_never_gone_and_the_others_are_told() {
    let broker = Broker::start().await;
    let listener = listen(&broker).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), QUICK).started().await;
    let address = gateway.tcp_address();
    let _talks = (Talk::welcomed(&address, "stays", 7).await, Talk::welcomed(&address, "goes", 7).await);
    becomes(&listener, "stays", "online", "connected").await;
    becomes(&listener, "goes", "online", "connected").await;
    eventually("both are in the log", async || {
        json(&gateway, "/api/v1/history").await["history"].as_array().is_some_and(|entries| entries.len() == 2)
    })
    .await;
    gateway.kill();
    gateway.start().await;
    let (mut talk, _) = Talk::welcomed(&address, "stays", 7).await;
    for _ in 0..4 {
        talk.say(&DeviceMessage::Heartbeat(Heartbeat { time: 0 })).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    becomes(&listener, "goes", "offline", "gateway-restarted").await;
    assert!(told(&listener, "stays").iter().all(|(state, _)| state == "online"), "{:?}", told(&listener, "stays"));
}

/// Since when it is in its state, and why, as MQTT, API and history say it.
async fn said_everywhere(gateway: &Gateway, broker: &Broker, device: &str) -> [(Value, Value); 3] {
    let listener = listen(broker).await;
    let topic = format!("tidegate/gw/devices/{device}/status");
    eventually("it is retained", async || !listener.messages(&topic).is_empty()).await;
    let api = json(gateway, &format!("/api/v1/devices/{device}")).await;
    let history = json(gateway, &format!("/api/v1/devices/{device}/history?limit=1")).await;
    [listener.messages(&topic)[0].clone(), api, history["history"][0].clone()]
        .map(|status| (status["since"].clone(), status["reason"].clone()))
}

/// What is retained for ever must be true, and the same wherever somebody asks.
#[tokio::test]
async fn after_a_crash_everybody_is_told_since_when_a_device_is_online_as_before() {
    let broker = Broker::start().await;
    let sections = QUICK.replace("idle_timeout = \"3s\"", "idle_timeout = \"60s\"");
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &sections).started().await;
    let address = gateway.tcp_address();
    let _talk = Talk::welcomed(&address, "pump", 7).await;
    becomes(&listen(&broker).await, "pump", "online", "connected").await;
    eventually("it is in the log", async || {
        json(&gateway, "/api/v1/history").await["history"].as_array().is_some_and(|entries| entries.len() == 1)
    })
    .await;
    let [before, api, history] = said_everywhere(&gateway, &broker, "pump").await;
    assert_eq!((&before, &before), (&api, &history));
    gateway.kill();
    let listener = listen(&broker).await;
    gateway.start().await;
    eventually("it is told again", async || told(&listener, "pump").len() >= 2).await;
    let [again, _, history] = said_everywhere(&gateway, &broker, "pump").await;
    assert_eq!((&again, &history), (&before, &before), "while it is not back");
    let _talk = Talk::welcomed(&address, "pump", 7).await;
    // A device that comes last of all is told, and with it whatever else there was to tell.
    let _last = Talk::welcomed(&address, "last", 7).await;
    becomes(&listener, "last", "online", "connected").await;
    assert_eq!(said_everywhere(&gateway, &broker, "pump").await, [before.clone(), before.clone(), before]);
}

/// Within `offline_delay` the device counts as online, and since when it does.
#[tokio::test]
async fn a_broker_that_forgot_everything_is_not_told_of_a_departure_that_is_none_yet() {
    let mut broker = Broker::start().await;
    let sections = QUICK.replace("300ms", "60s");
    let gateway = Gateway::with_broker(&broker.gateway_url(), &sections).started().await;
    let (talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    becomes(&listen(&broker).await, "pump", "online", "connected").await;
    let [before, ..] = said_everywhere(&gateway, &broker, "pump").await;
    drop(talk);
    gateway.figure_becomes("tidegate_devices_connected", |n| n == 0.0).await;
    broker.stop().await;
    broker.resume().await;
    let [mqtt, api, history] = said_everywhere(&gateway, &broker, "pump").await;
    assert_eq!((&mqtt, &history), (&before, &before));
    assert_eq!(api.1, "link-lost");
}

/// Nobody else would ever take back what is retained of them.
#[tokio::test]
async fn devices_that_were_forgotten_while_the_broker_was_away_are_taken_back_after_a_crash() {
    let broker = Broker::start().await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "[devices]\nmax_known = 4\n");
    gateway.keys("[[tcp]]", "max_connections = 4");
    let mut gateway = gateway.started().await;
    let come_and_go = async |gateway: &Gateway, kind: &str, entries: usize| {
        for n in 0..4 {
            let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), &format!("{kind}-{n}"), 7).await;
            talk.say(&goodbye()).await;
            gateway.figure_becomes("tidegate_devices_connected", |n| n == 0.0).await;
        }
        eventually("all is in the log", async || {
            let history = json(gateway, "/api/v1/history").await;
            history["history"].as_array().is_some_and(|list| {
                let known = |n: i32| list.iter().any(|entry| entry["device"] == format!("{kind}-{n}"));
                list.len() >= entries && (0..4).all(known)
            })
        })
        .await;
    };
    come_and_go(&gateway, "old", 4).await;
    let listener = listen(&broker).await;
    for n in 0..4 {
        becomes(&listener, &format!("old-{n}"), "offline", "goodbye").await;
    }
    gateway.kill();
    gateway.use_broker("mqtt://127.0.0.1:1");
    gateway.start().await;
    come_and_go(&gateway, "new", 8).await;
    gateway.kill();
    gateway.use_broker(&broker.gateway_url());
    gateway.start().await;
    for n in 0..4 {
        becomes(&listener, &format!("new-{n}"), "offline", "goodbye").await;
        let topic = format!("tidegate/gw/devices/old-{n}/status");
        eventually("it is taken back", async || listener.messages(&topic).last() == Some(&Value::Null)).await;
    }
}

#[tokio::test]
async fn a_broker_that_forgot_everything_is_told_anew() {
    let mut broker = Broker::start().await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), QUICK).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    talk.say(&goodbye()).await;
    becomes(&listen(&broker).await, "pump", "offline", "goodbye").await;
    broker.stop().await;
    broker.resume().await;
    becomes(&listen(&broker).await, "pump", "offline", "goodbye").await;
}

#[tokio::test]
async fn a_crowd_that_loses_its_connections_and_comes_back_is_no_news() {
    let broker = Broker::start().await;
    let listener = listen(&broker).await;
    let sections = QUICK.replace("300ms", "20s").replace("idle_timeout = \"3s\"", "idle_timeout = \"60s\"");
    let gateway = Gateway::with_broker(&broker.gateway_url(), &sections).started().await;
    let mut talks = Vec::new();
    for name in 0..100 {
        talks.push(Talk::welcomed(&gateway.tcp_address(), &format!("d{name}"), 7).await);
    }
    let count = || (0..100).map(|name| told(&listener, &format!("d{name}")).len()).sum::<usize>();
    eventually("all are told", async || count() == 100).await;
    talks.clear();
    gateway.figure_becomes("tidegate_devices_connected", |n| n == 0.0).await;
    for name in 0..100 {
        talks.push(Talk::welcomed(&gateway.tcp_address(), &format!("d{name}"), 7).await);
    }
    // A device that comes last of all is told, and with it whatever else there was to tell.
    let _last = Talk::welcomed(&gateway.tcp_address(), "last", 7).await;
    becomes(&listener, "last", "online", "connected").await;
    assert_eq!(count(), 100);
    assert_eq!(json(&gateway, "/api/v1/devices/d5").await["flaps"], 1);
}

#[tokio::test]
async fn of_two_devices_with_one_name_one_is_kept_out() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let address = gateway.tcp_address();
    let (mut last, mut refused) = (None, None);
    for i in 0..20 {
        let mut talk = Talk::connect(&address, JSON).await;
        talk.say(&hello("pump", 1 + i % 2, 1)).await;
        match talk.hear().await {
            Some(GatewayMessage::Welcome(_)) => last = Some(talk),
            Some(GatewayMessage::Goodbye(goodbye)) => {
                refused = Some(goodbye);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let refused = refused.expect("one of them is refused");
    assert!(refused.reason == Reason::TakenOver && refused.text.contains("name of its own"), "{refused:?}");
    assert_eq!(gateway.figure("tidegate_devices_rivals_total").await, 1.0);
    let mut inside = last.expect("one of them is there");
    inside.say(&DeviceMessage::Heartbeat(Heartbeat { time: 0 })).await;
    assert!(matches!(inside.hear().await, Some(GatewayMessage::HeartbeatReply(_))), "and it stays");
}

fn of_sub(sub: &str, seq: u64) -> DeviceMessage {
    DeviceMessage::Readings(Readings { seq, sub: Some(sub.into()), samples: vec![sample(1, seq)] })
}

#[tokio::test]
async fn devices_behind_a_hub_have_a_presence_of_their_own() {
    let broker = Broker::start().await;
    let listener = listen(&broker).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), QUICK).started().await;
    let (mut hub, _) = Talk::welcomed(&gateway.tcp_address(), "hub", 7).await;
    hub.say(&of_sub("door", 1)).await;
    becomes(&listener, "hub/door", "online", "connected").await;
    let gone = SubDevice { sub: "door".into(), online: false, reason: Some("battery empty".into()) };
    hub.say(&DeviceMessage::SubDevice(gone)).await;
    becomes(&listener, "hub/door", "offline", "hub").await;
    hub.say(&of_sub("door", 2)).await;
    becomes(&listener, "hub/door", "online", "hub").await;
    hub.say(&goodbye()).await;
    becomes(&listener, "hub/door", "offline", "hub-offline").await;
    let door = json(&gateway, "/api/v1/devices/hub%2Fdoor").await;
    assert_eq!(door["device"], "hub/door");
}

#[tokio::test]
async fn a_hub_with_too_many_sub_devices_and_a_device_too_many_are_refused() {
    let sections = "[devices]\nmax_sub_devices = 2\nmax_known = 4\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", sections);
    gateway.keys("[[tcp]]", "max_connections = 4");
    let gateway = gateway.started().await;
    let address = gateway.tcp_address();
    let (mut hub, _) = Talk::welcomed(&address, "hub", 7).await;
    for (seq, sub) in [(1, "a"), (2, "b"), (3, "c")] {
        hub.say(&of_sub(sub, seq)).await;
    }
    let refused = hub.goodbye().await;
    assert!(refused.reason == Reason::Busy && refused.text.contains("max_sub_devices"), "{refused:?}");
    assert_eq!(gateway.figure("tidegate_devices_refused_total{reason=\"sub_devices\"}").await, 1.0);

    let (mut hub, _) = Talk::welcomed(&address, "hub", 8).await;
    hub.say(&of_sub("a", 1)).await;
    hub.say(&of_sub("b", 2)).await;
    hub.acked(2).await;
    let _one = Talk::welcomed(&address, "one", 7).await;
    let mut two = Talk::connect(&address, JSON).await;
    two.say(&hello("two", 7, 1)).await;
    let refused = two.goodbye().await;
    assert!(refused.reason == Reason::Busy && refused.text.contains("max_known"), "{refused:?}");
}

#[tokio::test]
async fn the_command_line_lists_devices_and_their_history() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", QUICK).started().await;
    let address = gateway.tcp_address();
    let (mut hub, _) = Talk::welcomed(&address, "hub", 7).await;
    hub.say(&of_sub("door", 1)).await;
    hub.acked(1).await;
    let _pump = Talk::welcomed(&address, "pump", 7).await;
    eventually("all are in the log", async || {
        json(&gateway, "/api/v1/history").await["history"].as_array().is_some_and(|entries| entries.len() == 3)
    })
    .await;
    let config = gateway.config_file().display().to_string();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(["devices", "-c", &config]).args(arguments).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, table) = run(&[]);
    let names: Vec<_> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!((code, names), (Some(0), vec!["hub", "hub/door", "pump"]), "{table}");
    let (_, line) = run(&["hub/door", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON")["state"], "online");
    let (_, history) = run(&["--history", "--limit", "2"]);
    assert_eq!(history.lines().count(), 3, "{history}");
    let (code, error) = run(&["nobody"]);
    assert_eq!((code, error.as_str()), (Some(1), "tidegate: no device nobody is known\n"));
    gateway.kill();
    let (code, error) = run(&[]);
    assert!(code == Some(1) && error.contains("no gateway answers at 127.0.0.1"), "{code:?} {error}");
}

/// A broker that lets nobody use other topics of the gateway; its rules lie in `directory`.
async fn that_takes(topics: &[&str], directory: &Path) -> Broker {
    let rules = directory.join("acl");
    let lines: String = topics.iter().map(|topic| format!("topic tidegate/gw/{topic}\n")).collect();
    std::fs::write(&rules, lines).expect("a file of rules");
    // With 0, which the others have, Mosquitto ends the connection instead.
    let lines = format!("max_queued_messages 1000\nallow_anonymous true\nacl_file {}", rules.display());
    Broker::mosquitto(&lines).await
}

/// MQTT 5 brokers say so; a sink that tried for ever would deliver nothing else.
#[tokio::test]
async fn a_broker_that_takes_no_statuses_gets_the_readings_all_the_same() {
    if !broker::is_real() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let broker = that_takes(&["readings", "events", "result", "status", "command"], directory.path()).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "version = \"5\"\n").started().await;
    let (mut pump, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    pump.readings(1, 1, 10).await;
    pump.acked(10).await;
    gateway.figure_becomes("tidegate_sink_delivered_total{sink=\"mqtt\"}", |delivered| delivered == 10.0).await;
    eventually("it is told what to do", async || gateway.log().contains("presence = false")).await;
    assert_eq!(gateway.log().matches("connected to the broker").count(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn a_broker_that_does_not_take_the_gateway_s_status_gets_the_readings_all_the_same() {
    if !broker::is_real() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let broker = that_takes(&["readings", "events", "command", "devices/+/status"], directory.path()).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    let (mut pump, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    pump.readings(1, 1, 10).await;
    pump.acked(10).await;
    gateway.figure_becomes("tidegate_sink_delivered_total{sink=\"mqtt\"}", |delivered| delivered == 10.0).await;
    gateway.says("does not take the gateway's status").await;
    assert_eq!(gateway.log().matches("connected to the broker").count(), 1, "{}", gateway.log());
}

/// Readings behind an event that a broker will never take would wait for ever.
#[tokio::test]
async fn a_broker_that_takes_no_events_gets_the_readings_all_the_same() {
    if !broker::is_real() {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let broker = that_takes(&["readings", "status", "command", "devices/+/status"], directory.path()).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "version = \"5\"\n").started().await;
    let (mut pump, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    gateway.figure_becomes("tidegate_sink_events_refused_total{sink=\"mqtt\"}", |refused| refused >= 1.0).await;
    pump.readings(1, 1, 10).await;
    pump.acked(10).await;
    gateway.figure_becomes("tidegate_sink_delivered_total{sink=\"mqtt\"}", |delivered| delivered == 10.0).await;
    gateway.says("refuses events or commands' results").await;
    assert_eq!(gateway.log().matches("connected to the broker").count(), 1, "{}", gateway.log());
}

/// Not to be told of everybody is better than to be told of nobody, and of no reading.
#[tokio::test]
async fn changes_that_are_too_many_for_a_packet_do_not_stop_the_readings() {
    let broker = Broker::start().await;
    let listener = listen(&broker).await;
    let sections = "max_packet = \"4KiB\"\nmax_batch = \"2KiB\"\n";
    let gateway = Gateway::with_broker(&broker.gateway_url(), sections).started().await;
    gateway.connected().await;
    let mut devices = Vec::new();
    for n in 0..60 {
        devices.push(Talk::welcomed(&gateway.tcp_address(), &format!("pump-{n}"), 7).await.0);
    }
    eventually("the changes are told, or that they are left out", async || {
        let events = listener.messages("tidegate/gw/events");
        let left_out = events.iter().filter(|event| event["error"].as_str().is_some_and(|e| e.contains("left out")));
        left_out.clone().all(|event| event["type"] == "presence" && event["id"].is_u64()) && left_out.count() > 0
    })
    .await;
    devices[0].readings(1, 1, 10).await;
    devices[0].acked(10).await;
    gateway.figure_becomes("tidegate_sink_delivered_total{sink=\"mqtt\"}", |delivered| delivered == 10.0).await;
    eventually("each has its status", async || (0..60).all(|n| !told(&listener, &format!("pump-{n}")).is_empty()))
        .await;
}
