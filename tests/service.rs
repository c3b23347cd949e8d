//! The gateway as a service: its command line, its health, its end.

use crate::support::broker::Broker;
use crate::support::device::{Talk, hello};
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use crate::support::systemd::Systemd;
use crate::support::{eventually, free_port};
use std::process::{Command, Output};
use tidegate::wire::message::Reason;

fn tidegate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).output().expect("the binary runs")
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn check_reports_every_problem_with_file_line_key_and_a_fix_and_exits_with_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("bad.toml");
    let config = "[[tcp]]\nlisen = \"127.0.0.1:1\"\n[[mqtt]]\nbrokers = [\"http://x\"]\nwindow = 500\n";
    std::fs::write(&path, config).expect("a file");
    let output = tidegate(&["check", "-c", &path.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    let error = error(&output);
    for part in ["bad.toml:2:", "did you mean `listen`", "mqtt[0].brokers", "mqtt[0].window"] {
        assert!(error.contains(part), "no {part:?} in\n{error}");
    }
    let run = tidegate(&["run", "-c", &path.display().to_string()]);
    assert_eq!((run.status.code(), self::error(&run)), (Some(2), error), "run says the same");
}

#[test]
fn the_shipped_configuration_is_fine() {
    let output = tidegate(&["check", "-c", concat!(env!("CARGO_MANIFEST_DIR"), "/config/tidegate.toml")]);
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
}

#[test]
fn wrong_usage_exits_with_2_and_a_missing_file_is_named() {
    assert_eq!(tidegate(&["no-such-verb"]).status.code(), Some(2));
    assert_eq!(tidegate(&[]).status.code(), Some(2));
    assert_eq!(tidegate(&["--version"]).status.code(), Some(0));
    let output = tidegate(&["check", "-c", "/no/such/file.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("/no/such/file.toml"), "{}", error(&output));
}

#[tokio::test]
async fn what_cannot_be_opened_is_named_and_exits_with_1() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let sections =
        format!("[[tcp]]\nname = \"other\"\nlisten = \"{taken}\"\n[[mqtt]]\nbrokers = [\"mqtt://127.0.0.1:1\"]\n");
    let mut gateway = Gateway::new(&sections);
    gateway.launch();
    assert_eq!(gateway.process().ended().await.code(), Some(1));
    let log = gateway.log();
    assert!(log.contains(&format!("[[tcp]] \"other\" cannot listen on {taken}")), "{log}");

    let first = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let directory = first.directory().join("log");
    let sections = format!("[store]\ndirectory = {directory:?}\n");
    let mut second = Gateway::with_broker("mqtt://127.0.0.1:1", &sections);
    second.launch();
    assert_eq!(second.process().ended().await.code(), Some(1));
    assert!(second.log().contains("cannot open the log"), "{}", second.log());
}

#[tokio::test]
async fn a_graceful_stop_settles_what_came_says_goodbye_and_leaves_the_broker_politely() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    talk.readings(1, 1, 100).await;
    gateway.figure_becomes("tidegate_readings_received_total", |count| count == 100.0).await;
    let status = gateway.terminate().await;
    assert!(status.success(), "{status}");
    talk.acked(100).await;
    assert_eq!(talk.goodbye().await.reason, Reason::Stopping);
    subscriber.heard(100).await;
    let retained = retained_status(&broker).await;
    assert_eq!((retained["state"].as_str(), retained["reason"].as_str()), (Some("offline"), Some("stopped")));

    gateway.start().await;
    gateway.connected().await;
    let (_, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    assert_eq!(welcome.settled, 100);
    assert_eq!(retained_status(&broker).await["state"], "online");
    gateway.kill();
    eventually("the Last Will is published", async || {
        let status = retained_status(&broker).await;
        status["state"] == "offline" && status["reason"] == "connection lost"
    })
    .await;
}

async fn retained_status(broker: &Broker) -> serde_json::Value {
    let mut connection = tidegate::mqtt::Connection::open(&options(broker.port())).await.expect("the broker answers");
    connection.subscribe("tidegate/gw/status").expect("room in the queue");
    loop {
        match connection.event().await {
            tidegate::mqtt::Event::Message(message) => {
                return serde_json::from_slice(&message.payload).expect("status is JSON");
            }
            tidegate::mqtt::Event::Closed(why) => panic!("{why}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "[store]\ncommit_within = \"30s\"\n").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    talk.say(&hello("pump", 1, 1)).await;
    gateway.process().signal("INT");
    gateway.process().signal("TERM");
    assert!(gateway.process().ended().await.success());
}

#[tokio::test]
async fn health_tells_ready_from_not_and_why_while_a_broker_is_away() {
    let mut broker = Broker::start().await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    let ready = async || {
        let (code, body) = gateway.get("/health/ready").await.expect("an answer");
        (code, serde_json::from_str::<serde_json::Value>(&body).expect("JSON"))
    };
    assert_eq!(gateway.get("/health/live").await.map(|(code, _)| code), Some(200));
    let (code, body) = ready().await;
    assert_eq!((code, body["notes"].as_array().map(Vec::len)), (200, Some(0)));
    broker.stop().await;
    eventually("the outage is noted", async || {
        let (code, body) = ready().await;
        assert_eq!(code, 200, "an outage is a normal state");
        body["notes"][0]["part"] == "mqtt"
    })
    .await;
    assert_eq!(gateway.get("/no/such/path").await.map(|(code, _)| code), Some(404));
}

#[tokio::test]
async fn systemd_is_told_when_it_is_ready_makes_progress_and_stops() {
    let mut systemd = Systemd::listen();
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.launch_with(&[("NOTIFY_SOCKET", &systemd.path().display().to_string()), ("WATCHDOG_USEC", "300000")]);
    systemd.hear("READY=1");
    systemd.hear("WATCHDOG=1");
    gateway.process().signal("TERM");
    systemd.hear("STOPPING=1");
    assert!(gateway.process().ended().await.success());
}

#[test]
fn simulate_exits_with_1_when_nothing_acknowledges() {
    let url = format!("tcp://127.0.0.1:{}", free_port());
    let output = tidegate(&["simulate", &url, "--devices", "1", "--readings", "1", "--give-up", "300ms", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["acked"], 0);
}
