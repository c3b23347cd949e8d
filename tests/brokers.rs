//! Brokers that do not behave: each is got along with or left, readings go on, and the log
//! says what was wrong.

use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::uplink::{DELIVERED, send};
use std::time::Duration;

const BOTH: [(bool, &str); 2] = [(false, "3.1.1"), (true, "5")];

/// A broker of these manners, and a gateway that has delivered 500 readings to it.
async fn delivered(manners: Manners, version: &str) -> (Script, Gateway) {
    let script = Script::start(manners).await;
    let keys = format!("version = \"{version}\"\nconfirm_timeout = \"1s\"\nmax_batch = \"1KiB\"\n");
    let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
    send(&gateway, 500).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    (script, gateway)
}

/// A message with QoS 1 under id 7.
fn message(v5: bool, topic: &str, size: usize) -> Vec<u8> {
    let mut body = vec![0, topic.len() as u8];
    body.extend(topic.as_bytes());
    body.extend([0, 7]);
    if v5 {
        body.push(0);
    }
    body.resize(body.len() + size, b'x');
    let length = body.len();
    let mut packet = vec![0x32, (length % 128) as u8 | 128, (length / 128 % 128) as u8 | 128, (length / 16384) as u8];
    packet.extend(body);
    packet
}

#[tokio::test]
async fn a_command_that_is_too_large_is_named_confirmed_and_passed_and_readings_go_on() {
    for (v5, version) in BOTH {
        let sends = message(v5, "tidegate/gw/command", 300_000);
        let script = Script::start(Manners { v5, sends, ..Manners::default() }).await;
        let gateway = Gateway::with_broker(&script.url(), &format!("version = \"{version}\"\n")).started().await;
        send(&gateway, 100).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
        eventually("it is confirmed", async || script.look(|seen| seen.confirmed == [7])).await;
        assert_eq!(script.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains("larger than max_packet")).expect("it is told");
        assert!(line.contains("tidegate/gw/command") && line.contains("30002"), "{line}");
    }
}

#[tokio::test]
async fn a_command_that_waited_is_confirmed_before_the_broker_answers_anything() {
    for (v5, version) in BOTH {
        let sends = message(v5, "tidegate/gw/command", 20_000);
        let script = Script::start(Manners { v5, sends, holds_answers: true, ..Manners::default() }).await;
        let gateway = Gateway::with_broker(&script.url(), &format!("version = \"{version}\"\n")).started().await;
        send(&gateway, 100).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
        let (connects, confirmed) = script.look(|seen| (seen.connects.len(), seen.confirmed.clone()));
        assert_eq!((connects, confirmed), (1, vec![7]), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_broker_that_confirms_no_reading_is_left_for_the_next_one() {
    for (v5, version) in BOTH {
        // It confirms the gateway's status, and answers pings.
        let silent = Script::start(Manners { v5, silent_after: Some(1), ..Manners::default() }).await;
        let good = Script::start(Manners { v5, ..Manners::default() }).await;
        let mut gateway = Gateway::with_broker(&silent.url(), "");
        let brokers = format!("brokers = [\"{}\", \"{}\"]", silent.url(), good.url());
        gateway.replace(&format!("brokers = [\"{}\"]", silent.url()), &brokers);
        gateway.keys("[[mqtt]]", &format!("version = \"{version}\"\nconfirm_timeout = \"1s\"\n"));
        let gateway = gateway.started().await;
        send(&gateway, 100).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
        assert_eq!(silent.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
        assert!(gateway.log().contains("did not confirm a publish for"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_publish_that_is_not_confirmed_is_sent_again_over_the_same_connection() {
    for (v5, version) in BOTH {
        let manners = Manners { v5, forgets: Some(3), ..Manners::default() };
        let (script, gateway) = delivered(manners, version).await;
        assert_eq!(script.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_broker_that_discards_or_refuses_what_exceeds_its_limit_gets_no_more_and_never_stalls() {
    for (v5, version) in BOTH {
        let script = Script::start(Manners { v5, most_a_second: Some(100), ..Manners::default() }).await;
        // Nobody waits for the default confirm_timeout here.
        let keys = format!("version = \"{version}\"\nmax_batch = \"1KiB\"\n");
        let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
        send(&gateway, 5_000).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 5_000.0).await;
        let (connects, taken, discarded, took) = script.look(|seen| {
            let took = seen.taken_at[seen.taken_at.len() - 1] - seen.taken_at[0];
            (seen.connects.len(), seen.taken_at.len(), seen.discarded, took)
        });
        println!("MQTT {version}: {taken} taken in {took:?}, {discarded} discarded");
        assert_eq!(connects, 1, "{}", gateway.log());
        assert!(discarded > 0 && discarded < taken / 4, "{discarded} of {taken}");
        assert!(gateway.log().contains("sending fewer"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn confirmations_that_come_twice_or_for_nothing_end_no_connection() {
    for (v5, version) in BOTH {
        let (script, gateway) = delivered(Manners { v5, babbles: true, ..Manners::default() }, version).await;
        let unexpected = "tidegate_sink_unexpected_confirmations_total{sink=\"mqtt\"}";
        gateway.figure_becomes(unexpected, |count| count > 10.0).await;
        assert_eq!(script.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
    }
}

#[tokio::test]
async fn what_is_no_broker_is_told_by_its_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("mqtt://{}", listener.local_addr().expect("an address"));
    let portal = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let gateway = Gateway::with_broker(&url, "").started().await;
    eventually("it is told", async || {
        // Quotes stand escaped in the line.
        let log = gateway.log();
        log.contains("does not speak MQTT: it says") && log.contains("HTTP/1.1 302 Found")
    })
    .await;
    portal.abort();
}
