//! Devices over TCP: what they are granted, and what they are not.

use crate::support::broker::Broker;
use crate::support::device::{JSON, POSTCARD, Talk, hello, sample};
use crate::support::gateway::Gateway;
use std::time::{Duration, Instant};
use tidegate::wire::frame::{BodyEncoding, Format, Version};
use tidegate::wire::message::*;

/// A gateway without any broker to reach: an outage is a normal state.
fn offline(sections: &str) -> Gateway {
    Gateway::with_broker("mqtt://127.0.0.1:1", sections)
}

fn readings(seq: u64, samples: Vec<Sample>) -> DeviceMessage {
    DeviceMessage::Readings(Readings { seq, sub: None, samples })
}

#[tokio::test]
async fn readings_are_acknowledged_without_a_broker_and_known_after_a_kill() {
    let mut gateway = offline("").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    talk.readings(1, 1, 20).await;
    talk.acked(20).await;
    gateway.kill();
    gateway.start().await;
    let (_, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    assert_eq!(welcome.settled, 20);
    let (_, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 6).await;
    assert_eq!(welcome.settled, 0, "another session begins anew");
}

#[tokio::test]
async fn the_gateway_answers_in_the_version_and_encoding_of_the_device() {
    let gateway = offline("").started().await;
    for version in [Version::V1, Version::V2] {
        for encoding in [BodyEncoding::Postcard, BodyEncoding::Json, BodyEncoding::Protobuf] {
            let format = Format { version, encoding };
            let mut talk = Talk::connect(&gateway.tcp_address(), format).await;
            talk.say(&hello("pump", fastrand::u64(..), 1)).await;
            talk.welcome().await;
            assert_eq!(talk.formats(), [format]);
        }
    }
}

#[tokio::test]
async fn what_is_sent_again_is_acknowledged_again_and_stored_once() {
    let gateway = offline("").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    talk.readings(1, 1, 10).await;
    talk.acked(10).await;
    talk.readings(1, 6, 5).await;
    talk.acked(10).await;
    let (mut again, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    assert_eq!(welcome.settled, 10);
    again.readings(1, 3, 10).await;
    again.acked(12).await;
    assert_eq!(gateway.figure("tidegate_readings_received_total").await, 25.0);
    assert_eq!(gateway.figure("tidegate_readings_duplicate_total").await, 13.0);
    gateway.figure_becomes("tidegate_readings_stored_total", |stored| stored == 12.0).await;
}

#[tokio::test]
async fn readings_behind_a_gap_are_refused_unless_the_device_gave_them_up() {
    let gateway = offline("").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    talk.readings(1, 1, 2).await;
    talk.readings(1, 4, 2).await;
    let goodbye = talk.goodbye().await;
    assert_eq!(goodbye.reason, Reason::Protocol);
    assert!(goodbye.text.contains("expected seq 3, got 4"), "{}", goodbye.text);

    let mut talk = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    talk.say(&hello("pump", 5, 100)).await;
    talk.welcome().await;
    talk.readings(1, 100, 2).await;
    talk.acked(101).await;
}

#[tokio::test]
async fn a_device_that_connects_again_takes_over() {
    let gateway = offline("").started().await;
    let (mut older, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    let (mut newer, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    assert_eq!(older.goodbye().await.reason, Reason::TakenOver);
    newer.readings(1, 1, 1).await;
    newer.acked(1).await;
    assert_eq!(gateway.figure("tidegate_devices_connected").await, 1.0);
}

#[tokio::test]
async fn mistakes_are_answered_with_what_was_wrong() {
    let gateway = offline("").started().await;
    let address = gateway.tcp_address();

    let mut talk = Talk::connect(&address, POSTCARD).await;
    talk.write(b"GET / HTTP/1.1\r\n\r\n").await;
    let goodbye = talk.goodbye().await;
    assert_eq!(goodbye.reason, Reason::BadFrame);
    assert!(goodbye.text.contains("magic"), "{}", goodbye.text);

    let mut talk = Talk::connect(&address, POSTCARD).await;
    talk.readings(1, 1, 1).await;
    assert_eq!(talk.goodbye().await.text, "send Hello first");

    let mut talk = Talk::connect(&address, JSON).await;
    talk.say(&hello("no such name!", 1, 1)).await;
    let goodbye = talk.goodbye().await;
    assert!(goodbye.text.contains("no such name!"), "{}", goodbye.text);

    let mut talk = Talk::connect(&address, JSON).await;
    talk.say(&hello(&"x".repeat(300), 1, 1)).await;
    assert_eq!(talk.goodbye().await.reason, Reason::TooLarge, "only small frames before Welcome");

    let (mut talk, _) = Talk::welcomed(&address, "pump", 1).await;
    talk.say(&readings(0, vec![sample(1, 1)])).await;
    let goodbye = talk.goodbye().await;
    assert!(goodbye.text.contains("seqs start at 1"), "{}", goodbye.text);

    let (mut talk, _) = Talk::welcomed(&address, "pump", 2).await;
    let mut damaged = Vec::new();
    tidegate::wire::codec::encode_device(&readings(1, vec![sample(1, 1)]), POSTCARD, &mut damaged);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    talk.write(&damaged).await;
    assert!(talk.goodbye().await.text.contains("checksum"));
    assert!(talk.hear().await.is_none(), "and the connection is closed");

    let invalid = gateway.figure("tidegate_frames_invalid_total{link=\"tcp\",reason=\"checksum\"}").await;
    assert_eq!(invalid, 1.0);
}

#[tokio::test]
async fn silence_ends_a_connection_and_heartbeats_keep_it() {
    let sections = "[devices]\nheartbeat_interval = \"1s\"\nidle_timeout = \"2s\"\n";
    let gateway = offline(sections).started().await;
    let (mut silent, welcome) = Talk::welcomed(&gateway.tcp_address(), "silent", 1).await;
    assert_eq!(welcome.heartbeat_interval, 1);
    let (mut beating, _) = Talk::welcomed(&gateway.tcp_address(), "beating", 1).await;
    let beats = async {
        for _ in 0..6 {
            beating.say(&DeviceMessage::Heartbeat(Heartbeat { time: 0 })).await;
            let Some(GatewayMessage::HeartbeatReply(reply)) = beating.hear().await else { panic!("no reply") };
            assert!(reply.time_trusted, "this machine has the time");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (goodbye, ()) = tokio::join!(silent.goodbye(), beats);
    assert_eq!(goodbye.reason, Reason::Timeout);
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_half_a_frame_is_closed() {
    let gateway = Gateway::new(
        "handshake_timeout = \"300ms\"\nframe_timeout = \"400ms\"\n[[mqtt]]\nbrokers = [\"mqtt://127.0.0.1:1\"]\n",
    );
    let gateway = gateway.started().await;
    let mut mute = Talk::connect(&gateway.tcp_address(), JSON).await;
    let goodbye = mute.goodbye().await;
    assert_eq!(goodbye.text, "no Hello came within 300ms");

    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    let since = Instant::now();
    talk.write(&[0x12, 0x34, 0x56, 0x7f, 2, 3, 0, 0, 0, 200, 1, 2, 3]).await;
    assert_eq!(talk.goodbye().await.reason, Reason::Timeout);
    assert!(since.elapsed() >= Duration::from_millis(400));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_turned_away_until_there_is_room() {
    let gateway = Gateway::new("max_connections = 2\n[[mqtt]]\nbrokers = [\"mqtt://127.0.0.1:1\"]\n").started().await;
    let address = gateway.tcp_address();
    gateway.figure_becomes("tidegate_link_up{link=\"tcp\"}", |up| up == 1.0).await;
    // The probes of the start may take a moment to be gone.
    let (_first, _) = Talk::welcomed(&address, "first", 1).await;
    let second = connect_until_welcomed(&address, "second").await;
    let mut third = Talk::connect(&address, POSTCARD).await;
    third.say(&hello("third", 1, 1)).await;
    assert_eq!(third.goodbye().await.reason, Reason::Busy);
    // A device whose older connection is half open takes its place, however full it is.
    let again = connect_until_welcomed(&address, "second").await;
    drop((second, again));
    connect_until_welcomed(&address, "third").await;
    let refused = gateway.figure("tidegate_connections_refused_total{link=\"tcp\",reason=\"too_many\"}").await;
    assert!(refused >= 1.0);
}

async fn connect_until_welcomed(address: &str, device: &str) -> Talk<tokio::net::TcpStream> {
    loop {
        let mut talk = Talk::connect(address, POSTCARD).await;
        talk.say(&hello(device, 1, 1)).await;
        match talk.hear().await {
            Some(GatewayMessage::Welcome(_)) => return talk,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test]
async fn a_hub_speaks_for_its_sub_devices_and_clocks_since_boot_are_placed() {
    let broker = Broker::start().await;
    let subscriber =
        crate::support::subscriber::Subscriber::start(&crate::support::subscriber::options(broker.port())).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "topics = \"device\"\n").started().await;
    let mut talk = Talk::connect(&gateway.tcp_address(), JSON).await;
    talk.say(&DeviceMessage::Hello(Hello {
        device: "hub".into(),
        session: 9,
        clock: DeviceClock::SinceBoot,
        time: 10_000,
        firmware: None,
        channels: Vec::new(),
        first: 1,
        max_frame: 0,
    }))
    .await;
    let welcome = talk.welcome().await;
    let sample =
        Sample { time: 9_000, values: vec![(ChannelRef::Name("open".into()), tidegate::model::Value::Boolean(true))] };
    talk.say(&DeviceMessage::Readings(Readings { seq: 1, sub: Some("door".into()), samples: vec![sample] })).await;
    talk.acked(1).await;
    subscriber.heard(1).await;
    let reading = subscriber.readings().remove(0);
    assert_eq!((reading.device.as_str(), reading.origin), ("hub/door", Some((9, 1))));
    let off = reading.time.0 - (welcome.time - 1_000_000);
    assert!(off.abs() < 1_000_000, "{off} us off");
    let topic = subscriber.look(|heard| heard.deliveries[0].0.clone());
    assert_eq!(topic, "tidegate/gw/devices/hub/door/readings");
}

/// A device may send no faster than its readings settle, and nothing grows for it.
#[tokio::test]
async fn a_device_that_overruns_its_window_is_held_back_and_loses_nothing() {
    let gateway = offline("[devices]\nwindow = 50\n[store]\ncommit_within = \"100ms\"\n").started().await;
    let (mut talk, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    assert_eq!(welcome.window, 50);
    for first in (1..=5000).step_by(50) {
        talk.readings(1, first, 50).await;
    }
    talk.acked(5000).await;
}
