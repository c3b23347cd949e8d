//! `tidegate check --connect`: each step to a broker is told, and what is wrong there.

use crate::support::broker::{Broker, is_real};
use crate::support::free_port;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::support::tls::Certificates;
use crate::uplink::{DELIVERED, send};
use std::process::Command;
use tempfile::TempDir;

/// What `tidegate check --connect` says of an `[[mqtt]]` with these lines, and its exit code.
pub async fn check(lines: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("tidegate.toml");
    let store = directory.path().join("log");
    let text = format!("[gateway]\nid = \"gw\"\n[store]\ndirectory = {store:?}\n[[tcp]]\n[[mqtt]]\n{lines}\n");
    std::fs::write(&file, text).expect("the file is written");
    tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(["check", "--connect", "-c"]).arg(&file).output().expect("it runs");
        drop(directory);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    })
    .await
    .expect("it ends")
}

/// Whether a line has this verdict, is of this step and says that.
pub fn says(said: &str, verdict: &str, step: &str, what: &str) -> bool {
    said.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(verdict) && words.next() == Some(step) && line.contains(what)
    })
}

fn with_rules(rules: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("acl");
    std::fs::write(&file, rules).expect("a file");
    let lines = format!("acl_file {}\nallow_anonymous true", file.display());
    (directory, lines)
}

#[tokio::test]
async fn every_step_is_told_and_a_running_gateway_is_not_disturbed() {
    if !is_real() {
        return;
    }
    let broker = Broker::mosquitto("allow_anonymous true").await;
    let gateway = Gateway::with_broker(&broker.url(), "").started().await;
    send(&gateway, 10).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 10.0).await;
    for version in ["3.1.1", "5"] {
        let (code, said) = check(&format!("brokers = [{:?}]\nversion = {version:?}", broker.url())).await;
        assert_eq!(code, Some(0), "{said}");
        for (step, what) in [
            ("name", "127.0.0.1 is 127.0.0.1"),
            ("tcp", "answers"),
            ("connect", "as \"tidegate-gw-mqtt-check\""),
            ("time", "a publish is confirmed after"),
            ("right", "tidegate/gw/readings: published, and came back"),
            ("right", "tidegate/gw/events: published, and came back"),
            ("right", "tidegate/gw/devices/tidegate-check/status: published, and came back"),
            ("right", "tidegate/gw/devices/tidegate-check/result: published, and came back"),
            ("right", "tidegate/gw/status: published, and came back"),
            ("commands", "tidegate/gw/devices/+/command: subscribed"),
            ("retain", "a retained message is kept"),
            ("size", "16384 bytes"),
        ] {
            assert!(says(&said, "ok", step, what), "{step} {what}: {said}");
        }
    }
    send(&gateway, 20).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 20.0).await;
    let log = gateway.log();
    assert_eq!(log.matches("connected to the broker").count(), 1, "{log}");
}

#[tokio::test]
async fn a_topic_that_the_broker_denies_is_named_under_either_version() {
    if !is_real() {
        return;
    }
    let rules = "topic readwrite tidegate/gw/readings\ntopic readwrite tidegate/gw/check\ntopic read tidegate/#\n";
    let (_directory, lines) = with_rules(rules);
    let broker = Broker::mosquitto(&lines).await;
    let (code, said) = check(&format!("brokers = [{:?}]\nversion = \"5\"", broker.url())).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(says(&said, "ok", "right", "tidegate/gw/readings: published"), "{said}");
    assert!(says(&said, "WRONG", "right", "tidegate/gw/events: ") && said.contains("may not publish"), "{said}");
    let (code, said) =
        check(&format!("brokers = [{:?}]\nversion = \"3.1.1\"\nconnect_timeout = \"2s\"", broker.url())).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(says(&said, "ok", "right", "tidegate/gw/readings: published"), "{said}");
    assert!(says(&said, "WRONG", "right", "tidegate/gw/events: confirmed, and did not come back"), "{said}");
}

#[tokio::test]
async fn the_step_that_fails_is_the_last_one_and_says_why() {
    let (code, said) = check("brokers = [\"mqtt://no-such-host.invalid\"]").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(says(&said, "WRONG", "name", "no-such-host.invalid is not known"), "{said}");
    let (code, said) = check(&format!("brokers = [\"mqtt://127.0.0.1:{}\"]", free_port())).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(says(&said, "WRONG", "tcp", "nothing listens there"), "{said}");
    let script =
        Script::start(Manners { credentials: Some(("me".into(), "right".into(), 4)), ..Manners::default() }).await;
    let (code, said) = check(&format!("brokers = [{:?}]", script.url())).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(says(&said, "WRONG", "connect", "refused the credentials"), "{said}");
    assert!(says(&said, "note", "connect", "as \"tidegate-gw-mqtt-check\"; where a broker lets in only"), "{said}");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_shown_all_the_same() {
    let (theirs, ours) = (Certificates::new(), Certificates::new());
    let script = Script::start(Manners { tls: Some(theirs.acceptor()), ..Manners::default() }).await;
    let url = format!("mqtts://localhost:{}", script.port);
    let (code, said) = check(&format!("brokers = [{url:?}]\nca_file = {:?}", ours.path("ca.pem"))).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(says(&said, "WRONG", "tls", "TLS failed"), "{said}");
    assert!(says(&said, "note", "chain", "\"server\", for localhost, signed by \"authority\""), "{said}");
    assert!(!says(&said, "ok", "connect", ""), "{said}");
}
