//! The client for microcontrollers, `examples/client/`, against the gateway: nothing is
//! lost, who it is, commands, time; and what the tutorial says. `client/fake.rs` has what
//! no gateway can be made to do.

mod fake;

use crate::support::broker::Broker;
use crate::support::client::{Client, tcp};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::pty::Line;
use crate::support::subscriber::{Subscriber, options};
use serde_json::{Value as Json, json};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tidegate::clock::{Clock, SystemClock};
use tidegate::model::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// All that the client took arrived, with the values that it gave, and what came twice is
/// known by its number.
fn assert_delivered(subscriber: &Subscriber, device: &str, seqs: impl Iterator<Item = u64>) {
    let (mut got, mut sessions) = (Vec::new(), Vec::new());
    for reading in subscriber.readings().iter().filter(|reading| reading.device.as_str() == device) {
        let (session, seq) = reading.origin.expect("it numbers its readings");
        let value = |name| reading.values.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        assert_eq!(value("count"), Some(Value::Integer(seq as i64)), "{reading:?}");
        assert_eq!(value("temperature"), Some(Value::Float(20.0 + (seq % 100) as f64 / 10.0)), "{reading:?}");
        sessions.push(session);
        got.push(seq);
    }
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "one numbering");
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, seqs.collect::<Vec<_>>());
}

const TUTORIAL: &str = include_str!("../docs/write-a-device.md");

/// The tutorial's pieces in a language.
fn snippets(language: &str) -> Vec<&'static str> {
    let blocks = TUTORIAL.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

#[test]
fn each_piece_of_c_in_the_tutorial_stands_in_the_client() {
    let sources = [
        include_str!("../examples/client/tidegate_client.h"),
        include_str!("../examples/client/tidegate_client.c"),
        include_str!("../examples/client/posix.c"),
    ];
    let snippets = snippets("c");
    assert!(snippets.len() > 10);
    for snippet in snippets {
        assert!(sources.iter().any(|source| source.contains(snippet)), "{snippet}");
    }
}

#[tokio::test]
async fn the_tutorials_first_steps_are_welcomed_and_acknowledged() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = snippets("python").concat().replace("(\"127.0.0.1\", 7411)", "tuple(__import__('sys').argv[1:])");
    let file = directory.path().join("first.py");
    std::fs::write(&file, program).expect("a file");
    let address = gateway.tcp_address();
    let mut python = std::process::Command::new("python3");
    python.arg(&file).args(address.split(':'));
    let output = tokio::task::spawn_blocking(move || python.output()).await.expect("it ends").expect("python3");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(r#"{"settled":0,"#) && said.contains(r#"{"seq":1}"#), "{said}");
}

/// A way to the gateway that can be cut.
struct Relay {
    port: u16,
    cut: watch::Sender<()>,
    _task: tokio::task::JoinSet<()>,
}

impl Relay {
    async fn start(to: String) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let cut = watch::Sender::new(());
        let (mut task, cuts) = (tokio::task::JoinSet::new(), cut.clone());
        task.spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, mut cut) = (to.clone(), cuts.subscribe());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Relay { port, cut, _task: task }
    }
}

#[tokio::test]
async fn nothing_is_lost_when_connections_and_the_gateway_die() {
    const COUNT: u64 = 600;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    let relay = Relay::start(gateway.tcp_address()).await;
    let address = format!("127.0.0.1:{}", relay.port);
    let mut client =
        Client::over_tcp(&address, &["--device", "mc", "--count", &COUNT.to_string(), "--interval-ms", "10"]);
    let arrived = async |part: u64| {
        eventually("readings arrive", async || subscriber.origins().len() as u64 >= part).await;
    };
    arrived(COUNT / 8).await;
    relay.cut.send_replace(());
    arrived(COUNT / 4).await;
    gateway.kill();
    gateway.start().await;
    arrived(COUNT / 2).await;
    gateway.terminate().await;
    gateway.start().await;
    client.succeeds().await;
    subscriber.heard(COUNT as usize).await;
    assert_delivered(&subscriber, "mc", 1..=COUNT);
    assert_eq!(client.said("given up: 0"), 1, "{}", client.log());
    assert!(client.said("welcomed") >= 4, "{}", client.log());
    assert!(client.log().contains("the gateway said Goodbye: the gateway is stopping"), "{}", client.log());
}

#[tokio::test]
async fn nothing_is_lost_over_a_serial_line_that_is_unplugged_and_a_gateway_that_dies() {
    const COUNT: u64 = 300;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut line = Line::new().await;
    let serial = format!("[[serial]]\nname = \"line\"\npath = {:?}\nreopen_interval = \"100ms\"\n", line.gateway_end());
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &serial).started().await;
    let end = line.device_end().display().to_string();
    let count = COUNT.to_string();
    let mut client = Client::start(&["--serial", &end, "--device", "mc", "--count", &count, "--interval-ms", "10"]);
    let arrived = async |part: u64| {
        eventually("readings arrive", async || subscriber.origins().len() as u64 >= part).await;
    };
    arrived(COUNT / 6).await;
    gateway.kill();
    gateway.start().await;
    arrived(COUNT / 3).await;
    line.unplug();
    tokio::time::sleep(Duration::from_millis(300)).await;
    line.plug().await;
    client.succeeds().await;
    subscriber.heard(COUNT as usize).await;
    assert_delivered(&subscriber, "mc", 1..=COUNT);
}

/// At 100 a second, and at least a third of that: the bound is for slow machines.
#[tokio::test]
async fn a_line_that_damages_one_byte_of_a_thousand_carries_all_the_same() {
    const COUNT: u64 = 400;
    let line = Line::noisy(1000, 7).await;
    let serial = format!("[[serial]]\npath = {:?}\nreopen_interval = \"100ms\"\n", line.gateway_end());
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &serial).started().await;
    gateway.figure_becomes("tidegate_link_up{link=\"serial\"}", |up| up == 1.0).await;
    let (end, count) = (line.device_end().display().to_string(), COUNT.to_string());
    let mut client = Client::start(&["--serial", &end, "--device", "mc", "--count", &count, "--interval-ms", "10"]);
    let began = Instant::now();
    client.succeeds().await;
    let took = began.elapsed();
    assert!(took < Duration::from_millis(33 * COUNT), "{took:?}\n{}", client.log());
    let asked = gateway.figure("tidegate_link_resends_total{link=\"serial\"}").await;
    println!("{COUNT} readings took {took:?}; lost ones were asked for {asked} times");
    assert!(asked > 0.0, "nothing was lost");
    assert_eq!(gateway.figure("tidegate_readings_stored_total").await, COUNT as f64);
    assert!(client.said("welcomed") <= 3, "it keeps its session: {}", client.log());
}

#[tokio::test]
async fn a_client_whose_memory_is_full_gives_up_its_oldest_readings_and_says_so() {
    const COUNT: u64 = 500;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "");
    let count = COUNT.to_string();
    let arguments = ["--device", "mc", "--count", &count, "--interval-ms", "2", "--memory", "2048", "--give-up-oldest"];
    let mut client = Client::over_tcp(&gateway.tcp_address(), &arguments);
    // By then all are taken, and most given up.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    gateway.start().await;
    client.succeeds().await;
    let given_up: u64 = client.told("given up").expect("it says so").parse().expect("a number");
    assert!(given_up > COUNT / 2, "{}", client.log());
    subscriber.heard((COUNT - given_up) as usize).await;
    assert_delivered(&subscriber, "mc", given_up + 1..=COUNT);
}

/// The program, with the gateway's configuration.
fn tidegate(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).arg("-c").arg(gateway.config_file()).output().expect("the binary runs")
}

fn text(output: &[u8]) -> &str {
    std::str::from_utf8(output).expect("text")
}

/// A gateway that demands keys, and what `tidegate key new` prints for the device `mc`.
async fn with_key(sections: &str) -> (Gateway, String) {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", sections);
    gateway.keys("[[tcp]]", "authentication = \"hmac\"\n");
    let made = tidegate(&gateway, &["key", "new", "plant-a", "--device", "mc"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    (gateway.started().await, text(&made.stdout).trim_end().to_owned())
}

/// What a device does that never ends by itself.
const ENDLESS: [&str; 4] = ["--device", "mc", "--count", "1000000"];
const KEY: [&str; 2] = ["--key", "plant-a"];

#[tokio::test]
async fn a_client_with_a_key_is_let_in_until_its_key_is_revoked() {
    let (gateway, secret) = with_key("").await;
    let address = gateway.tcp_address();
    let few = [&tcp(&address)[..], &["--device", "mc", "--count", "3", "--interval-ms", "1"], &KEY].concat();
    Client::with_secret(&secret, &few).succeeds().await;
    let client = Client::with_secret(&secret, &[&tcp(&address)[..], &ENDLESS, &KEY].concat());
    client.says("welcomed").await;
    assert!(tidegate(&gateway, &["key", "revoke", "plant-a"]).status.success());
    client.says("the gateway said Goodbye: the key was revoked").await;
    gateway.figure_becomes("tidegate_devices_connected", |connected| connected == 0.0).await;
}

/// That would not heal soon, and a thousand such devices would be a burden.
#[tokio::test]
async fn a_client_that_is_not_let_in_says_so_and_waits_long_before_it_tries_again() {
    let (gateway, secret) = with_key("").await;
    let address = gateway.tcp_address();
    let wrong = secret.chars().rev().collect::<String>();
    let refused = Client::with_secret(&wrong, &[&tcp(&address)[..], &ENDLESS, &KEY].concat());
    refused.says("the gateway said Goodbye: authentication failed").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let failures = "tidegate_authentication_failures_total{link=\"tcp\",reason=\"wrong_proof\"}";
    assert_eq!(gateway.figure(failures).await, 1.0, "{}", refused.log());
    assert_eq!(refused.said("welcomed"), 0);

    Client::over_tcp(&address, &ENDLESS).says("the gateway wants a key, and there is none").await;

    let mut senseless = Client::with_secret(&secret[1..], &[&tcp(&address)[..], &ENDLESS, &KEY].concat());
    assert_eq!(senseless.process.ended().await.code(), Some(2));
    assert!(senseless.log().contains("the 64 hexadecimal digits that `tidegate key new` printed"));
}

/// Gives `mc` a command and waits until it has ended: the exit code, and how it ended.
fn send(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, Json) {
    let sent = tidegate(gateway, &[&["send", "mc"], arguments, &["--wait", "--json"]].concat());
    let answer = serde_json::from_slice(&sent.stdout);
    (sent.status.code(), answer.unwrap_or_else(|_| panic!("{}", text(&sent.stderr))))
}

#[tokio::test]
async fn what_tidegate_send_tells_the_client_to_do_is_done_and_answered() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let client = Client::over_tcp(&gateway.tcp_address(), &ENDLESS);
    for (arguments, code, state, result) in [
        (&["set-interval", r#"{"ms":50}"#][..], 0, "done", json!({"before": 1000})),
        (&["set-interval"], 1, "failed", json!({"error": "no interval in ms"})),
        (&["blink"], 0, "done", json!({"blinks": 3})),
        (&["explode"], 1, "rejected", json!(null)),
    ] {
        let (exit, answer) = send(&gateway, arguments);
        assert_eq!((exit, &answer["state"], &answer["result"]), (Some(code), &json!(state), &result), "{answer}");
    }
    assert_eq!(client.said("command: set-interval"), 2, "{}", client.log());
}

#[tokio::test]
async fn the_client_does_on_its_return_what_is_still_wanted_and_nothing_else() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let (exit, past) = send(&gateway, &["explode", "--expires", "300ms"]);
    assert_eq!((exit, &past["state"]), (Some(1), &json!("expired")), "{past}");
    let waits = tidegate(&gateway, &["send", "mc", "blink", "--id", "waits", "--expires", "1m"]);
    assert!(waits.status.success() && text(&waits.stdout).contains("waits queued"), "{waits:?}");
    let client = Client::over_tcp(&gateway.tcp_address(), &ENDLESS);
    let (exit, done) = send(&gateway, &["blink", "--id", "waits"]);
    assert_eq!((exit, &done["state"]), (Some(0), &json!("done")), "{done}");
    assert_eq!((client.said("command: blink"), client.said("command: explode")), (1, 0), "{}", client.log());
}

#[tokio::test]
async fn a_command_that_a_restarted_gateway_repeats_is_not_done_twice() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let client = Client::over_tcp(&gateway.tcp_address(), &ENDLESS);
    client.says("welcomed").await;
    assert!(tidegate(&gateway, &["send", "mc", "blink", "--id", "once"]).status.success());
    client.says("command: blink").await;
    gateway.kill(); // while it blinks
    client.says("blinked: once").await;
    gateway.start().await;
    let (exit, done) = send(&gateway, &["blink", "--id", "once"]);
    assert_eq!((exit, &done["result"]), (Some(0), &json!({"blinks": 3})), "{done}");
    // Whether the gateway asked again or the client's answer came before that.
    assert!(gateway.figure("tidegate_commands_repeated_total").await <= 1.0, "{}", gateway.log());
    assert_eq!(client.said("command: blink"), 1, "{}", client.log());
}

#[tokio::test]
async fn the_client_learns_the_time_once_the_gateway_believes_its_own() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "[devices]\nheartbeat_interval = \"1s\"\n");
    let file = gateway.directory().join("clock-is-set");
    gateway.set_clock(&format!("clock = \"file\"\nclock_file = {file:?}"));
    let gateway = gateway.started().await;
    let client = Client::over_tcp(&gateway.tcp_address(), &ENDLESS);
    client.says("welcomed").await;
    tokio::time::sleep(Duration::from_millis(1500)).await; // a heartbeat
    assert_eq!(client.told("the time is"), None);
    let before = SystemClock::new().now().wall.0;
    std::fs::write(&file, "").expect("a file");
    eventually("the client knows the time", async || client.told("the time is").is_some()).await;
    let told: i64 = client.told("the time is").expect("it does").parse().expect("a number");
    let now = SystemClock::new().now().wall.0;
    assert!((before - 50_000..now + 50_000).contains(&told), "{before} {told} {now}");
}

#[tokio::test]
async fn over_a_serial_line_the_client_proves_who_it_is_and_obeys() {
    let line = Line::new().await;
    let serial = format!("[[serial]]\npath = {:?}\nauthentication = \"hmac\"\n", line.gateway_end());
    let (gateway, secret) = with_key(&serial).await;
    let end = line.device_end().display().to_string();
    let client = Client::with_secret(&secret, &[&["--serial", &end], &ENDLESS[..], &KEY].concat());
    let (exit, done) = send(&gateway, &["blink"]);
    assert_eq!((exit, &done["result"]), (Some(0), &json!({"blinks": 3})), "{done}\n{}", client.log());
    assert_eq!(client.said("command: blink"), 1, "{}", client.log());
    assert!(tidegate(&gateway, &["key", "revoke", "plant-a"]).status.success());
    client.says("the gateway said Goodbye: the key was revoked").await;
}
