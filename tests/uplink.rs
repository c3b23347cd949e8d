//! The uplink: what arrives, and what happens when the broker does not behave.

use crate::support::broker::{Broker, is_real};
use crate::support::device::{Talk, sample};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::script::{Manners, Script};
use crate::support::subscriber::{Subscriber, options};
use crate::support::tls::Certificates;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;
use tidegate::model::Value;
use tidegate::sink::encode::decode;
use tidegate::wire::message::{ChannelRef, DeviceMessage, Readings, Sample};

pub const DELIVERED: &str = "tidegate_sink_delivered_total{sink=\"mqtt\"}";

/// Sends readings 1 to `count` of device 1 and waits until they are acknowledged.
pub async fn send(gateway: &Gateway, count: u64) {
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    for first in (1..=count).step_by(100) {
        talk.readings(1, first, 100.min(count + 1 - first)).await;
    }
    talk.acked(count).await;
}

/// The device's seqs of everything that a scripted broker acknowledged.
fn arrived(script: &Script) -> BTreeSet<u64> {
    script.look(|seen| {
        let readings = seen.acked.iter().filter(|(topic, _)| topic.ends_with("/readings"));
        let deliveries = readings.map(|(_, payload)| decode(payload).expect("a valid payload"));
        deliveries.flat_map(|delivery| delivery.readings).filter_map(|r| r.origin.map(|(_, seq)| seq)).collect()
    })
}

fn all(count: u64) -> BTreeSet<u64> {
    (1..=count).collect()
}

#[tokio::test]
async fn readings_arrive_with_identity_value_and_time_in_both_encodings() {
    let broker = Broker::start().await;
    for encoding in ["json", "postcard"] {
        let subscriber = Subscriber::start(&options(broker.port())).await;
        let gateway = Gateway::with_broker(&broker.gateway_url(), &format!("encoding = \"{encoding}\"\n"));
        let gateway = gateway.started().await;
        let (mut talk, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump-7", 77).await;
        assert_eq!(welcome.settled, 0);
        talk.readings(3, 1, 5).await;
        talk.acked(5).await;
        subscriber.heard(5).await;
        let epochs: BTreeSet<u32> = subscriber.look(|heard| heard.deliveries.iter().map(|(_, d)| d.epoch.0).collect());
        assert_eq!(epochs.len(), 1);
        for (reading, seq) in subscriber.readings().iter().zip(1..) {
            let expected = sample(3, seq);
            assert_eq!((reading.seq.0, reading.device.as_str(), reading.origin), (seq, "pump-7", Some((77, seq))));
            assert_eq!(reading.time.0, expected.time);
            let names = ["count", "level", "name"].map(str::to_owned);
            let values: Vec<_> = names.into_iter().zip(expected.values.into_iter().map(|(_, value)| value)).collect();
            assert_eq!(reading.values, values);
        }
    }
}

#[tokio::test]
async fn what_is_late_says_so() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "replay_after = \"1h\"\n").started().await;
    let (mut talk, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    let at = |time| Sample { time, values: vec![(ChannelRef::Index(0), Value::Integer(1))] };
    let samples = vec![at(welcome.time - 3_700_000_000), at(welcome.time - 3_500_000_000)];
    talk.say(&DeviceMessage::Readings(Readings { seq: 1, sub: None, samples })).await;
    subscriber.heard(2).await;
    assert_eq!(subscriber.readings().iter().map(|r| r.replay).collect::<Vec<_>>(), [true, false]);
}

/// The broker stands with user, password and client certificates; Mosquitto where it
/// is installed.
async fn over_tls(version: &str, v5: bool) {
    let certificates = Certificates::new();
    let path = |name: &str| certificates.path(name).display().to_string();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let password = directory.path().join("password");
    std::fs::write(&password, "open sesame\n").expect("a file");
    let (_broker, _script, port) = if is_real() {
        let passwords = directory.path().join("passwords");
        let made = Command::new("mosquitto_passwd")
            .args(["-c", "-b", &passwords.display().to_string(), "gw", "open sesame"])
            .status();
        assert!(made.expect("mosquitto_passwd comes with mosquitto").success());
        let lines = format!(
            "allow_anonymous false\npassword_file {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
            passwords.display(),
            path("ca.pem"),
            path("server.pem"),
            path("server.key")
        );
        let broker = Broker::mosquitto(&lines).await;
        let port = broker.port();
        (Some(broker), None, port)
    } else {
        let credentials = Some(("gw".to_owned(), "open sesame".to_owned(), if v5 { 0x86 } else { 4 }));
        let script =
            Script::start(Manners { v5, tls: Some(certificates.acceptor()), credentials, ..Manners::default() }).await;
        let port = script.port;
        (None, Some(script), port)
    };
    let url = format!("mqtts://localhost:{port}");
    let trust = format!(
        "version = \"{version}\"\nusername = \"gw\"\npassword_file = {password:?}\nca_file = {:?}\n",
        path("ca.pem")
    );
    let identity = format!("cert_file = {:?}\nkey_file = {:?}\n", path("client.pem"), path("client.key"));

    // The scripted broker forwards nothing.
    let mut subscribing = if is_real() {
        let files = [
            ("--password-file", password.display().to_string()),
            ("--ca-file", path("ca.pem")),
            ("--cert-file", path("client.pem")),
            ("--key-file", path("client.key")),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["subscribe", &url, "--version", version, "--username", "gw", "--count", "250"]);
        command.args(files.iter().flat_map(|(option, file)| [*option, file]));
        let log = directory.path().join("subscribe.log");
        let process = Process::start(command, &log);
        eventually("the subscription stands", async || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("subscribed at"))
        })
        .await;
        Some(process)
    } else {
        None
    };

    let gateway = Gateway::with_broker(&url, &(trust.clone() + &identity)).started().await;
    send(&gateway, 250).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 250.0).await;
    if let Some(process) = &mut subscribing {
        assert!(process.ended().await.success(), "subscribe over TLS");
    }

    // A renewal that is cut short leaves the uplink as it was.
    std::fs::write(path("client.key"), "nothing").expect("a file");
    let mut restart = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    restart.args(["send", "--gateway", "restart-sink", "{\"sink\":\"mqtt\"}", "-c"]).arg(gateway.config_file());
    let output = restart.output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    gateway.figure_becomes("tidegate_sink_connects_total{sink=\"mqtt\"}", |connects| connects >= 2.0).await;
    assert!(gateway.log().contains("the old ones stay in use"), "{}", gateway.log());

    let nobody = Gateway::with_broker(&url, &trust).started().await;
    eventually("the missing certificate shows", async || nobody.log().contains("not connected")).await;
    assert_eq!(nobody.figure(DELIVERED).await, 0.0);
}

#[tokio::test]
async fn mqtt_3_1_1_goes_over_tls_with_password_and_client_certificate() {
    over_tls("3.1.1", false).await;
}

#[tokio::test]
async fn mqtt_5_goes_over_tls_with_password_and_client_certificate() {
    over_tls("5", true).await;
}

#[tokio::test]
async fn both_versions_deliver_to_a_broker_that_goes_away_and_comes_back() {
    for version in ["3.1.1", "5"] {
        let lines = if is_real() { Some(Broker::mosquitto("allow_anonymous true").await) } else { None };
        let Some(mut broker) = lines else {
            // The embedded broker speaks each version on a port of its own, and a
            // scripted one shows the same by dropping the connection.
            let manners = Manners { v5: version == "5", drop_after: vec![3, 5, 2], ..Manners::default() };
            let script = Script::start(manners).await;
            let keys = format!("version = \"{version}\"\nmax_batch = \"1KiB\"\n");
            let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
            send(&gateway, 500).await;
            gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
            assert_eq!(arrived(&script), all(500));
            continue;
        };
        let gateway = Gateway::with_broker(&broker.gateway_url(), &format!("version = \"{version}\"\n"));
        let gateway = gateway.started().await;
        gateway.connected().await;
        broker.stop().await;
        send(&gateway, 500).await;
        assert_eq!(gateway.figure(DELIVERED).await, 0.0);
        broker.resume().await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    }
}

#[tokio::test]
async fn a_broker_that_drops_connections_and_forgets_loses_nothing() {
    for v5 in [false, true] {
        let manners = Manners { v5, drop_after: vec![1, 4, 1, 2, 7, 1, 3, 9], ..Manners::default() };
        let script = Script::start(manners).await;
        let version = if v5 { "5" } else { "3.1.1" };
        let keys = format!("version = \"{version}\"\nmax_batch = \"1KiB\"\n");
        let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
        send(&gateway, 2000).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 2000.0).await;
        assert_eq!(arrived(&script), all(2000));
    }
}

#[tokio::test]
async fn acknowledgements_in_any_order_move_the_cursor_only_over_what_is_confirmed() {
    let manners = Manners { ack_backwards: 8, drop_after: vec![13, 29], ..Manners::default() };
    let script = Script::start(manners).await;
    let keys = "version = \"3.1.1\"\nmax_batch = \"1KiB\"\nwindow = 8\n[store]\ncommit_within = \"10ms\"\n";
    let gateway = Gateway::with_broker(&script.url(), keys).started().await;
    send(&gateway, 2000).await;
    // The last few wait for company that does not come; what is confirmed is so in order.
    eventually("most readings arrive", async || arrived(&script).len() > 1900).await;
    let delivered = gateway.figure(DELIVERED).await as u64;
    assert!(arrived(&script).is_superset(&all(delivered)), "{delivered} are confirmed");
}

#[tokio::test]
async fn refused_credentials_are_told_once_and_tried_rarely_until_they_are_right() {
    for (v5, code) in [(false, 4), (false, 5), (true, 0x86)] {
        let credentials = Some(("gw".to_owned(), "right".to_owned(), code));
        let script = Script::start(Manners { v5, credentials, ..Manners::default() }).await;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let password = directory.path().join("password");
        std::fs::write(&password, "wrong").expect("a file");
        let version = if v5 { "5" } else { "3.1.1" };
        let keys = format!("version = \"{version}\"\nusername = \"gw\"\npassword_file = {password:?}\n");
        let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
        send(&gateway, 10).await;
        eventually("several attempts", async || script.look(|seen| seen.connects.len() >= 4)).await;
        let told = gateway.log().lines().filter(|line| line.contains("refused the credentials")).count();
        assert_eq!(told, 1, "{}", gateway.log());
        std::fs::write(&password, "right").expect("a file");
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 10.0).await;
        assert_eq!(arrived(&script), all(10));
    }
}

#[tokio::test]
async fn no_more_is_outstanding_than_the_broker_or_the_configuration_allows() {
    let script = Script::start(Manners { v5: true, receive_maximum: Some(3), ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&script.url(), "version = \"5\"\nmax_batch = \"1KiB\"\n").started().await;
    send(&gateway, 1000).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 1000.0).await;
    assert_eq!(script.look(|seen| seen.connects.len()), 1);

    let script = Script::start(Manners { ack_backwards: 5, ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&script.url(), "window = 5\nmax_batch = \"1KiB\"\n").started().await;
    send(&gateway, 1000).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered > 0.0).await;
    assert!(script.look(|seen| seen.most_outstanding) <= 5);
}

#[tokio::test]
async fn batches_keep_to_a_packet_size_that_the_broker_tells() {
    let manners = Manners { v5: true, max_packet: Some(2000), tells_max_packet: true, ..Manners::default() };
    let script = Script::start(manners).await;
    let gateway = Gateway::with_broker(&script.url(), "version = \"5\"\n").started().await;
    send(&gateway, 500).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    assert_eq!(script.look(|seen| (seen.too_large, seen.connects.len())), (0, 1));
}

#[tokio::test]
async fn batches_shrink_until_a_broker_takes_them_that_tells_nothing() {
    let script = Script::start(Manners { max_packet: Some(1500), ..Manners::default() }).await;
    let gateway = Gateway::with_broker(&script.url(), "[store]\ncommit_within = \"10ms\"\n").started().await;
    send(&gateway, 500).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    assert_eq!(arrived(&script), all(500));
    let too_large = script.look(|seen| seen.too_large);
    assert!((1..=20).contains(&too_large), "{too_large} packets were too large");
}

#[tokio::test]
async fn a_reading_that_no_packet_can_hold_is_dropped_counted_and_reported() {
    for (keys, manners) in [
        ("max_packet = \"16KiB\"\n", Manners::default()),
        ("", Manners { max_packet: Some(8000), ..Manners::default() }),
    ] {
        let script = Script::start(manners).await;
        let gateway = Gateway::with_broker(&script.url(), keys).started().await;
        let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
        talk.readings(1, 1, 5).await;
        let huge = Sample { time: 0, values: vec![(ChannelRef::Index(0), Value::Text("x".repeat(20_000).into()))] };
        talk.say(&DeviceMessage::Readings(Readings { seq: 6, sub: None, samples: vec![huge] })).await;
        talk.readings(1, 7, 5).await;
        talk.acked(11).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 10.0).await;
        let expected: BTreeSet<u64> = all(11).into_iter().filter(|seq| *seq != 6).collect();
        assert_eq!(arrived(&script), expected);
        let dropped = "tidegate_sink_dropped_total{sink=\"mqtt\",reason=\"too_large\"}";
        gateway.figure_becomes(dropped, |dropped| dropped == 1.0).await;
        eventually("the gap is reported", async || {
            script.look(|seen| {
                let events = seen.acked.iter().filter(|(topic, _)| topic == "tidegate/gw/events");
                let mut events = events.map(|(_, payload)| serde_json::from_slice(payload).expect("events are JSON"));
                events.any(|event: serde_json::Value| {
                    event["type"] == "gap"
                        && event["reason"] == "too_large"
                        && event["first"] == 6
                        && event["last"] == 6
                })
            })
        })
        .await;
    }
}

#[tokio::test]
async fn the_next_broker_of_the_list_takes_over() {
    let script = Script::start(Manners::default()).await;
    let urls = format!("mqtt://127.0.0.1:1\", \"{}", script.url());
    let gateway = Gateway::with_broker(&urls, "").started().await;
    send(&gateway, 10).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 10.0).await;
}

#[tokio::test]
async fn a_busy_gateway_sends_few_large_batches_and_a_quiet_one_many_small_ones_at_once() {
    let script = Script::start(Manners::default()).await;
    let gateway = Gateway::with_broker(&script.url(), "").started().await;
    gateway.connected().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    for seq in 1..=10 {
        talk.readings(1, seq, 1).await;
        talk.acked(seq).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let batches = |script: &Script| script.look(|s| s.acked.iter().filter(|(t, _)| t.ends_with("/readings")).count());
    assert_eq!(batches(&script), 10);
    for first in (11..=20_000).step_by(100) {
        talk.readings(1, first, 100.min(20_001 - first)).await;
    }
    talk.acked(20_000).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 20_000.0).await;
    let busy = batches(&script) - 10;
    assert!(busy < 2_000, "{busy} batches for 19,990 readings");
}

#[tokio::test]
async fn what_the_log_dropped_for_lack_of_room_is_reported_as_a_gap() {
    let mut broker = Broker::start().await.behind_a_proxy().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let sections = "[store]\nmax_size = \"8MiB\"\nsegment_size = \"256KiB\"\ncommit_within = \"0s\"\n";
    let gateway = Gateway::with_broker(&broker.gateway_url(), sections).started().await;
    gateway.connected().await;
    broker.stop().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    let mut random = fastrand::Rng::with_seed(1);
    let mut seq = 1;
    // Noise does not compress: some 16 MB of it.
    while seq <= 4000 {
        let samples: Vec<_> = (0..10)
            .map(|_| {
                let noise: Vec<u8> = (0..4000).map(|_| random.u8(..)).collect();
                Sample { time: seq as i64, values: vec![(ChannelRef::Index(0), Value::Bytes(noise.into()))] }
            })
            .collect();
        talk.say(&DeviceMessage::Readings(Readings { seq, sub: None, samples })).await;
        seq += 10;
    }
    talk.acked(4000).await;
    let dropped = gateway.figure("tidegate_sink_dropped_total{sink=\"mqtt\",reason=\"max_size\"}").await;
    assert!(dropped > 500.0, "{dropped} readings were dropped");
    assert!(gateway.figure("tidegate_store_bytes").await <= 8.0 * 1024.0 * 1024.0);
    broker.resume().await;
    let arrived = async || {
        let told: u64 = subscriber.look(|heard| {
            heard.events.iter().filter(|event| event["reason"] == "max_size").filter_map(|e| e["count"].as_u64()).sum()
        });
        (subscriber.origins().len() as u64, told)
    };
    eventually("readings and gaps make up the whole", async || {
        let (readings, told) = arrived().await;
        readings + told == 4000
    })
    .await;
}
