//! Devices that prove who they are by keys, and those that cannot.

use crate::support::device::{JSON, POSTCARD, Talk, hello};
use crate::support::eventually;
use crate::support::gateway::{Gateway, figure};
use crate::support::process::Process;
use crate::support::pty::Line;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tidegate::config::{self, Authentication};
use tidegate::device::auth::{Secret, from_hex};
use tidegate::wire::message::*;
use tokio::net::TcpStream;
use tokio_serial::SerialPortBuilderExt;

/// A gateway whose listener demands keys; a mistake locks nobody out.
fn gateway(tcp: &str, devices: &str) -> Gateway {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &format!("[devices]\nlock_out_after = 0\n{devices}"));
    gateway.keys("[[tcp]]", &format!("authentication = \"hmac\"\n{tcp}"));
    gateway
}

fn tidegate(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).arg("-c").arg(gateway.config_file()).output().expect("the binary runs")
}

fn said(output: &[u8]) -> &str {
    std::str::from_utf8(output).expect("text")
}

/// Makes a key for devices that match `pattern`; returns its secret.
fn new_key(gateway: &Gateway, name: &str, pattern: &str, more: &[&str]) -> Secret {
    let made = tidegate(gateway, &[&["key", "new", name, "--device", pattern], more].concat());
    assert!(made.status.success(), "{}", said(&made.stderr));
    Secret(from_hex(said(&made.stdout).trim_end()).expect("64 hex digits"))
}

fn failures(link: &str, reason: &str) -> String {
    format!("tidegate_authentication_failures_total{{link=\"{link}\",reason=\"{reason}\"}}")
}

async fn connect(gateway: &Gateway) -> Talk<TcpStream> {
    Talk::connect(&gateway.tcp_address(), POSTCARD).await
}

/// That the gateway says no more than it has to.
async fn is_unauthorized(talk: &mut Talk<TcpStream>) {
    let goodbye = talk.goodbye().await;
    assert_eq!((goodbye.reason, goodbye.text.as_str()), (Reason::Unauthorized, "authentication failed"));
    assert_eq!(talk.hear().await, None, "and the connection is closed");
}

#[tokio::test]
async fn a_device_with_a_key_is_let_in_and_one_without_is_not() {
    let gateway = gateway("", "").started().await;
    // The key is made while the gateway runs.
    let secret = new_key(&gateway, "pumps", "pump-*", &[]);
    for format in [POSTCARD, JSON] {
        let mut talk = Talk::connect(&gateway.tcp_address(), format).await;
        talk.prove("pump-1", fastrand::u64(..), "pumps", &secret).await;
        talk.welcome().await;
        talk.readings(1, 1, 5).await;
        talk.acked(5).await;
    }

    let wrong = Secret([7; 32]);
    for (device, key, secret, reason) in [
        ("pump-1", "pumps", &wrong, "wrong_proof"),
        ("pump-1", "valves", &secret, "unknown_key"),
        ("valve-1", "pumps", &secret, "wrong_device"),
    ] {
        let mut talk = connect(&gateway).await;
        talk.prove(device, 1, key, secret).await;
        is_unauthorized(&mut talk).await;
        assert_eq!(gateway.figure(&failures("tcp", reason)).await, 1.0, "{reason}");
    }
    assert_eq!(gateway.figure("tidegate_keys").await, 1.0);
}

#[tokio::test]
async fn a_proof_is_good_for_one_challenge_of_one_device_and_session() {
    let gateway = gateway("", "").started().await;
    let secret = new_key(&gateway, "all", "*", &[]);
    let mut talk = connect(&gateway).await;
    talk.say(&hello("pump", 5, 1)).await;
    let nonce = talk.challenge().await;
    assert_eq!(nonce.len(), 32);
    let proof = secret.hmac(&nonce, "pump", 5);
    talk.answer("all", proof.clone()).await;
    talk.welcome().await;

    // Who listened in gets nothing out of it.
    let mut replay = connect(&gateway).await;
    replay.say(&hello("pump", 5, 1)).await;
    assert_ne!(replay.challenge().await, nonce);
    replay.answer("all", proof).await;
    is_unauthorized(&mut replay).await;
    // Nor does a proof for another device or session count.
    for (device, session) in [("valve", 5), ("pump", 6)] {
        let mut talk = connect(&gateway).await;
        talk.say(&hello("pump", 5, 1)).await;
        let nonce = talk.challenge().await;
        talk.answer("all", secret.hmac(&nonce, device, session)).await;
        is_unauthorized(&mut talk).await;
    }
    // The one who was let in never noticed.
    talk.readings(1, 1, 5).await;
    talk.acked(5).await;
}

#[tokio::test]
async fn nothing_but_an_answer_is_taken_after_a_challenge_and_no_answer_without_one() {
    let gateway = gateway("handshake_timeout = \"400ms\"\n", "").started().await;
    let secret = new_key(&gateway, "all", "*", &[]);
    let mut early = connect(&gateway).await;
    early.answer("all", secret.0.to_vec()).await;
    assert_eq!(early.goodbye().await.text, "Authenticate came without a Challenge");
    let mut pushy = connect(&gateway).await;
    pushy.say(&hello("pump", 5, 1)).await;
    pushy.readings(1, 1, 1).await;
    pushy.challenge().await;
    assert_eq!(pushy.goodbye().await.text, "answer the Challenge first");
    let mut large = Talk::connect(&gateway.tcp_address(), JSON).await;
    large.say(&hello("pump", 5, 1)).await;
    large.challenge().await;
    large.answer("all", vec![0; 300]).await;
    assert_eq!(large.goodbye().await.reason, Reason::TooLarge, "small frames only until it is let in");
    let since = Instant::now();
    let mut slow = connect(&gateway).await;
    slow.say(&hello("pump", 5, 1)).await;
    slow.challenge().await;
    assert_eq!(slow.goodbye().await.text, "no proof came within 400ms");
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(gateway.figure("tidegate_readings_received_total").await, 0.0);
}

#[tokio::test]
async fn a_device_that_cannot_prove_its_name_does_not_take_over() {
    let gateway = gateway("", "").started().await;
    let secret = new_key(&gateway, "all", "*", &[]);
    let mut pump = connect(&gateway).await;
    pump.prove("pump", 5, "all", &secret).await;
    pump.welcome().await;
    let mut thief = connect(&gateway).await;
    thief.prove("pump", 5, "all", &Secret([1; 32])).await;
    is_unauthorized(&mut thief).await;
    pump.readings(1, 1, 1).await;
    pump.acked(1).await;
}

#[tokio::test]
async fn revoking_a_key_ends_its_sessions_and_no_others() {
    let gateway = gateway("", "").started().await;
    let (a, b) = (new_key(&gateway, "a", "*", &[]), new_key(&gateway, "b", "*", &[]));
    let (mut pump, mut valve) = (connect(&gateway).await, connect(&gateway).await);
    pump.prove("pump", 1, "a", &a).await;
    pump.welcome().await;
    valve.prove("valve", 1, "b", &b).await;
    valve.welcome().await;

    let since = Instant::now();
    assert!(tidegate(&gateway, &["key", "revoke", "a"]).status.success());
    let goodbye = pump.goodbye().await;
    assert_eq!((goodbye.reason, goodbye.text.as_str()), (Reason::Unauthorized, "the key was revoked"));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    let mut again = connect(&gateway).await;
    again.prove("pump", 1, "a", &a).await;
    is_unauthorized(&mut again).await;
    // A new key of the same name is another key.
    let other = new_key(&gateway, "a", "*", &[]);
    assert_ne!(other, a);
    valve.readings(1, 1, 5).await;
    valve.acked(5).await;
}

#[tokio::test]
async fn a_token_is_taken_where_tokens_are_and_an_hmac_too() {
    let gateway = gateway("", "").started().await;
    let token = new_key(&gateway, "t", "*", &["--token"]);
    let mut strict = connect(&gateway).await;
    strict.say(&hello("pump", 1, 1)).await;
    strict.challenge().await;
    strict.answer("t", token.0.to_vec()).await;
    is_unauthorized(&mut strict).await;
    assert_eq!(gateway.figure(&failures("tcp", "wrong_kind")).await, 1.0);

    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", "authentication = \"token\"\n");
    let gateway = gateway.started().await;
    let (token, hmac) = (new_key(&gateway, "t", "*", &["--token"]), new_key(&gateway, "h", "*", &[]));
    let mut one = connect(&gateway).await;
    one.say(&hello("one", 1, 1)).await;
    one.challenge().await;
    one.answer("t", token.0.to_vec()).await;
    one.welcome().await;
    let mut two = connect(&gateway).await;
    two.prove("two", 1, "h", &hmac).await;
    two.welcome().await;
    let mut wrong = connect(&gateway).await;
    wrong.say(&hello("three", 1, 1)).await;
    wrong.challenge().await;
    wrong.answer("t", hmac.0.to_vec()).await;
    is_unauthorized(&mut wrong).await;
}

#[tokio::test]
async fn keys_that_cannot_be_used_let_nobody_in_and_heal() {
    let gateway = gateway("", "").started().await;
    let proves = async |secret: &Secret| {
        let mut talk = connect(&gateway).await;
        talk.prove("pump", 1, "k", secret).await;
        match talk.hear().await {
            Some(GatewayMessage::Welcome(_)) => Some(talk),
            Some(GatewayMessage::Goodbye(_)) => None,
            other => panic!("{other:?}"),
        }
    };
    assert!(proves(&Secret([0; 32])).await.is_none());
    // There are no keys yet, which is told.
    gateway.says("tidegate key new").await;
    let secret = new_key(&gateway, "k", "*", &[]);
    proves(&secret).await.expect("it is let in");

    let keys = gateway.directory().join("log/keys");
    let good = std::fs::read(&keys).expect("a file");
    let mode = |mode| std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(mode)).expect("a mode");
    assert_eq!(std::fs::metadata(&keys).expect("a file").permissions().mode() & 0o777, 0o600);
    // Exposed, broken, and gone: each told once.
    mode(0o644);
    assert!(proves(&secret).await.is_none() && proves(&secret).await.is_none());
    gateway.says("chmod 600").await;
    assert_eq!(gateway.log().matches("chmod 600").count(), 1, "{}", gateway.log());
    assert_eq!(gateway.figure("tidegate_keys").await, 0.0);
    mode(0o600);
    assert!(proves(&secret).await.is_some());
    std::fs::write(&keys, "nonsense").expect("a file");
    assert!(proves(&secret).await.is_none());
    std::fs::remove_file(&keys).expect("it is there");
    assert!(proves(&secret).await.is_none());
    assert!(gateway.figure(&failures("tcp", "no_keys")).await >= 5.0);
    std::fs::write(&keys, good).expect("a file");
    mode(0o600);
    let mut there = proves(&secret).await.expect("it is let in again");
    gateway.says("can be used again").await;
    // None of that put out who was in.
    std::fs::write(&keys, "nonsense").expect("a file");
    eventually("it is told", async || gateway.log().matches("no file of keys").count() >= 2).await;
    there.readings(1, 1, 5).await;
    there.acked(5).await;
}

#[tokio::test]
async fn the_command_says_what_it_did_and_what_it_cannot_do() {
    let gateway = gateway("", "");
    let none = tidegate(&gateway, &["key", "list"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(said(&none.stderr).contains("tidegate key new"), "{}", said(&none.stderr));
    new_key(&gateway, "pumps", "pump-*", &["--device", "hub"]);
    new_key(&gateway, "all", "*", &["--token"]);
    let table = tidegate(&gateway, &["key", "list"]);
    let lines: Vec<_> = said(&table.stdout).lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[1].starts_with("all") && lines[2].ends_with("pump-* hub"),
        "{lines:?}"
    );
    let list = tidegate(&gateway, &["key", "list", "--json"]);
    let first = said(&list.stdout).lines().next().expect("a key");
    let first: serde_json::Value = serde_json::from_str(first).expect("JSON");
    assert_eq!((&first["name"], &first["kind"]), (&"all".into(), &"token".into()));

    for (arguments, status, words) in [
        (&["key", "new", "all"][..], 1, "revoke it first"),
        (&["key", "new", "no name"], 1, "letters, digits"),
        (&["key", "new", "x", "--device", ""], 1, "matches no device"),
        (&["key", "revoke", "none"], 1, "tidegate key list"),
        (&["key"], 2, "Usage"),
    ] {
        let output = tidegate(&gateway, arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(said(&output.stderr).contains(words), "{arguments:?}: {}", said(&output.stderr));
    }
    let sealing = gateway.directory().join("log/sealing-key");
    std::fs::set_permissions(&sealing, std::fs::Permissions::from_mode(0o640)).expect("a mode");
    let exposed = tidegate(&gateway, &["key", "new", "more"]);
    assert!(said(&exposed.stderr).contains("chmod 600"), "{}", said(&exposed.stderr));
}

#[tokio::test]
async fn only_names_that_are_allowed_are_let_in() {
    let devices = "allow = [\"pump-*\", \"hub\"]\ndeny = [\"pump-old\"]\n";
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &format!("[devices]\n{devices}")).started().await;
    for (device, lets_in) in [("pump-1", true), ("hub", true), ("pump-old", false), ("valve", false)] {
        let mut talk = connect(&gateway).await;
        talk.say(&hello(device, 1, 1)).await;
        match talk.hear().await {
            Some(GatewayMessage::Welcome(_)) => assert!(lets_in, "{device}"),
            Some(GatewayMessage::Goodbye(goodbye)) => {
                assert!(!lets_in, "{device}");
                assert_eq!(goodbye.reason, Reason::Unauthorized);
            }
            other => panic!("{device}: {other:?}"),
        }
    }
    assert_eq!(gateway.figure(&failures("tcp", "not_allowed")).await, 2.0);
}

#[tokio::test]
async fn an_address_that_fails_too_often_is_not_listened_to_for_a_while() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "[devices]\nlock_out_after = 3\n");
    gateway.keys("[[tcp]]", "authentication = \"hmac\"\n");
    let gateway = gateway.started().await;
    let secret = new_key(&gateway, "all", "*", &[]);
    let mut inside = connect(&gateway).await;
    inside.prove("inside", 1, "all", &secret).await;
    inside.welcome().await;
    // Opened before the lock, it is of no use after it.
    let mut early = connect(&gateway).await;
    early.say(&hello("early", 1, 1)).await;
    let nonce = early.challenge().await;
    let since = Instant::now();
    for _ in 0..3 {
        let mut talk = connect(&gateway).await;
        talk.prove("pump", 1, "all", &Secret([1; 32])).await;
        is_unauthorized(&mut talk).await;
    }
    early.answer("all", secret.hmac(&nonce, "early", 1)).await;
    assert_eq!(early.goodbye().await.text, "too many attempts failed; try again later");
    let mut talk = connect(&gateway).await;
    talk.say(&hello("pump", 1, 1)).await;
    let goodbye = talk.goodbye().await;
    assert_eq!((goodbye.reason, goodbye.text.contains("too many attempts")), (Reason::Unauthorized, true));
    let refused = "tidegate_connections_refused_total{link=\"tcp\",reason=\"locked_out\"}";
    assert_eq!(gateway.figure(refused).await, 1.0);
    gateway.says("locked out").await;
    // Who is in stays in.
    inside.readings(1, 1, 5).await;
    inside.acked(5).await;
    // After ten seconds it is heard again.
    tokio::time::sleep(Duration::from_millis(10_200).saturating_sub(since.elapsed())).await;
    let mut talk = connect(&gateway).await;
    talk.prove("pump", 1, "all", &secret).await;
    talk.welcome().await;
}

#[tokio::test]
async fn connections_of_one_address_are_limited_until_one_of_them_goes() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", "max_connections_per_address = 2\nhandshake_timeout = \"2s\"\n");
    let gateway = gateway.started().await;
    let persistent = async |device| Talk::persistent(&gateway.tcp_address(), device, 1, &AtomicU64::new(0)).await;
    // The probes of the start may take a moment to be gone.
    let (_first, second) = (persistent("first").await, persistent("second").await);
    let mut third = connect(&gateway).await;
    third.say(&hello("third", 1, 1)).await;
    let goodbye = third.goodbye().await;
    assert_eq!((goodbye.reason, goodbye.text.contains("of this address")), (Reason::Busy, true), "{goodbye:?}");
    // A device whose older connection is half open takes its place.
    let again = persistent("second").await;
    drop((second, again));
    persistent("third").await;
    // Those that say nothing are counted, too: few more are let in to say who they are.
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(connect(&gateway).await);
    }
    // Which of them get the places that are free depends on when the last ones were given up.
    let mut busy = 0;
    for talk in &mut silent {
        let goodbye = talk.goodbye().await;
        if goodbye.reason == Reason::Busy {
            assert!(goodbye.text.contains("of this address"), "{goodbye:?}");
            busy += 1;
        }
    }
    assert!(busy >= 8, "{busy} of 10 were refused");
    let refused = "tidegate_connections_refused_total{link=\"tcp\",reason=\"address\"}";
    assert!(gateway.figure(refused).await >= 2.0);
}

/// Listens on every address of this machine, for as long as the test takes.
#[tokio::test]
async fn a_listener_for_the_network_demands_hmac_unless_it_is_told_not_to() {
    let listen = |authentication| config::Tcp {
        listen: "0.0.0.0:0".parse().expect("an address"),
        name: format!("{authentication:?}").chars().filter(char::is_ascii_alphabetic).collect(),
        authentication,
        ..config::Tcp::default()
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = config::Config {
        tcp: vec![
            listen(None),
            listen(Some(Authentication::None)),
            config::Tcp { listen: "127.0.0.1:0".parse().expect("an address"), ..config::Tcp::default() },
        ],
        ..config::Config::default()
    };
    config.store.directory = directory.path().join("log");
    config.http.listen = "127.0.0.1:0".parse().expect("an address");
    let gateway = tidegate::gateway::Gateway::start(config).await.expect("it starts");
    let http = gateway.http_address().expect("HTTP listens").to_string();
    for (index, (link, unauthenticated)) in [("None", 0.0), ("SomeNone", 1.0), ("tcp", 0.0)].into_iter().enumerate() {
        let address = format!("127.0.0.1:{}", gateway.tcp_addresses()[index].port());
        let mut talk = Talk::connect(&address, POSTCARD).await;
        talk.say(&hello("pump", 1, 1)).await;
        let challenged = matches!(talk.hear().await, Some(GatewayMessage::Challenge(_)));
        assert_eq!(challenged, index == 0, "{link}");
        let name = format!("tidegate_link_unauthenticated{{link=\"{link}\"}}");
        assert_eq!(figure(&http, &name).await, unauthenticated, "{link}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_open_to_everybody_is_told_by_check_and_in_the_log() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let config = std::fs::read_to_string(gateway.config_file()).expect("text");
    let opened =
        config.replace("[[tcp]]\nlisten = \"127.0.0.1", "[[tcp]]\nauthentication = \"none\"\nlisten = \"0.0.0.0");
    assert_ne!(config, opened);
    let path = gateway.directory().join("open.toml");
    std::fs::write(&path, opened).expect("a file");
    let check = |path: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("check").arg("-c").arg(path).output().expect("the binary runs")
    };
    let output = check(&path);
    assert!(output.status.success(), "{}", said(&output.stderr));
    assert!(said(&output.stdout).contains("tcp[0]: every device that reaches"), "{}", said(&output.stdout));
    assert!(!said(&check(&gateway.config_file()).stdout).contains("every device that reaches"));
    let token = gateway.directory().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").expect("a file");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let http = format!("[http]\ndevices = true\nauthentication = \"none\"\ntoken_file = {token:?}");
    std::fs::write(&path, config.replace("[http]", &http).replacen("127.0.0.1", "0.0.0.0", 1)).expect("a file");
    assert!(said(&check(&path).stdout).contains("http: every device that reaches"), "{}", said(&check(&path).stderr));
    gateway.keys("[[tcp]]", "authentication = \"token\"\n");
    let output = check(&gateway.config_file());
    assert_eq!(said(&output.stdout).lines().count(), 1, "on this machine tokens are not read by others");
}

#[tokio::test]
async fn a_serial_line_asks_for_a_key_where_it_is_told_to() {
    let line = Line::new().await;
    let serial = format!(
        "[devices]\nlock_out_after = 2\n[[serial]]\npath = {:?}\nreopen_interval = \"100ms\"\nauthentication = \"hmac\"\n",
        line.gateway_end()
    );
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &serial).started().await;
    let secret = new_key(&gateway, "all", "*", &[]);
    gateway.figure_becomes("tidegate_link_up{link=\"serial\"}", |up| up == 1.0).await;
    let path = line.device_end();
    let port = tokio_serial::new(path.to_string_lossy(), 115_200).open_native_async().expect("the device's end");
    let mut talk = Talk::over(port, POSTCARD);
    talk.prove("pump", 1, "all", &secret).await;
    talk.welcome().await;
    talk.readings(1, 1, 5).await;
    talk.acked(5).await;
    // The device restarts: it has to prove itself anew.
    talk.say(&hello("pump", 2, 1)).await;
    talk.challenge().await;
    talk.readings(1, 1, 1).await;
    assert_eq!(talk.goodbye().await.text, "answer the Challenge first");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // A line is not closed, but not listened to for a while after some failures.
    for _ in 0..2 {
        talk.prove("pump", 2, "all", &Secret([1; 32])).await;
        assert_eq!(talk.goodbye().await.text, "authentication failed");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    talk.say(&hello("pump", 2, 1)).await;
    assert_eq!(talk.goodbye().await.text, "too many attempts failed; try again later");
    assert_eq!(gateway.figure(&failures("serial", "wrong_proof")).await, 2.0);
}

/// Who tries a key is told at once, not when the devices have given up.
#[tokio::test]
async fn simulated_devices_that_are_not_let_in_say_why_at_once() {
    let gateway = gateway("", "").started().await;
    let log = gateway.directory().join("simulate.log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["simulate", &format!("tcp://{}", gateway.tcp_address()), "--devices", "3", "--readings", "3"]);
    command.env_remove("RUST_LOG");
    let _simulation = Process::start(command, &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("it says so", async || said().contains("was refused: ")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(said().lines().count(), 1, "once: {}", said());
}
