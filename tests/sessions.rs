//! Sessions that would come to a halt: what cannot be taken is passed, what is told fits, and
//! who waits is answered.

use crate::support::broker::Broker;
use crate::support::cloud::Cloud;
use crate::support::device::{JSON, POSTCARD, START, Talk, hello, sample};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use serde_json::{Value as Json, json};
use tidegate::model::Value;
use tidegate::wire::frame::{self, BodyEncoding, Format, Version};
use tidegate::wire::message::*;
use tokio::net::TcpStream;

const PROTOBUF: Format = Format { version: Version::V2, encoding: BodyEncoding::Protobuf };
/// No commit for a long time: Acks come only of what a broker confirmed.
const NO_COMMIT: &str = "[store]\ncommit_within = \"1h\"\nhistory_within = \"2h\"\n";

fn offline(sections: &str) -> Gateway {
    Gateway::with_broker("mqtt://127.0.0.1:1", sections)
}

fn heartbeat() -> DeviceMessage {
    DeviceMessage::Heartbeat(Heartbeat { time: START })
}

/// A sample with a name that no channel may have.
fn nameless(seq: u64) -> Sample {
    let values = vec![(ChannelRef::Name("x".repeat(65)), Value::Integer(1))];
    Sample { values, ..sample(1, seq) }
}

async fn say_samples(talk: &mut Talk<TcpStream>, seq: u64, samples: Vec<Sample>) {
    talk.say(&DeviceMessage::Readings(Readings { seq, sub: None, samples })).await;
}

async fn refused(talk: &mut Talk<TcpStream>) -> Refused {
    loop {
        match talk.hear().await {
            Some(GatewayMessage::Refused(refused)) => return refused,
            Some(GatewayMessage::Ack(_)) => {}
            other => panic!("nothing is refused: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_device_that_says_no_first_goes_on_after_the_gateway_was_killed() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), NO_COMMIT).started().await;
    gateway.connected().await;
    let mut talk = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    talk.say(&hello("pump", 5, 0)).await;
    assert_eq!(talk.welcome().await.settled, 0);
    for seq in 1..=30 {
        talk.readings(1, seq, 1).await;
        talk.acked(seq).await;
    }
    gateway.kill();
    gateway.start().await;
    let mut talk = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    talk.say(&hello("pump", 5, 0)).await;
    // What is told of the device may be committed with its first readings.
    assert!(talk.welcome().await.settled < 30, "the end of the session was not on disk");
    talk.readings(1, 31, 1).await;
    talk.acked(31).await;
    subscriber.heard(31).await;
    gateway.says("a Hello with `first` would say so").await;

    // A gap later on is one.
    talk.readings(1, 33, 1).await;
    let goodbye = talk.goodbye().await;
    assert_eq!(goodbye.reason, Reason::Protocol);
    assert!(goodbye.text.contains("`first` = 33 if nothing before it is left"), "{goodbye:?}");
}

#[tokio::test]
async fn a_sample_that_can_never_be_taken_is_named_and_passed() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    for (number, format) in [POSTCARD, JSON, PROTOBUF].into_iter().enumerate() {
        let device = format!("pump-{number}");
        let mut talk = Talk::connect(&gateway.tcp_address(), format).await;
        talk.say(&hello(&device, 7, 1)).await;
        talk.welcome().await;
        say_samples(&mut talk, 1, vec![sample(1, 1), nameless(2), sample(1, 3)]).await;
        let told = refused(&mut talk).await;
        assert_eq!((told.seq, told.count), (2, 1));
        assert!(told.text.starts_with("channel name \"xxx"), "{told:?}");
        talk.acked(3).await;

        // All three are accounted for upstream; the second has lost its values.
        subscriber.heard(3 * (number + 1)).await;
        let came = subscriber.readings().into_iter().filter(|reading| *reading.device.as_str() == *device);
        let came: Vec<_> = came.map(|reading| (reading.origin, reading.values.len())).collect();
        assert_eq!(came, [(Some((7, 1)), 3), (Some((7, 2)), 0), (Some((7, 3)), 3)]);
        let told = || {
            let is_it = |event: &&Json| event["type"] == "refused" && event["device"] == device.as_str();
            subscriber.look(|heard| heard.events.iter().find(is_it).cloned())
        };
        eventually("an event tells why", async || told().is_some()).await;
        let event = told().expect("it came");
        for (key, value) in [("session", 7), ("first", 2), ("last", 2), ("count", 1)] {
            assert_eq!(event[key], json!(value), "{event}");
        }
        assert_eq!(event["reason"], "channel_name");
        let sent = event["sample"].as_str().expect("a text");
        assert!(sent.contains(&"x".repeat(65)) && sent.contains(&(START + 2001).to_string()), "{event}");
    }
    let figure = "tidegate_readings_refused_total{reason=\"channel_name\"}";
    assert_eq!(gateway.figure(figure).await, 3.0);
    let (status, list) = gateway.get("/api/v1/refused").await.expect("it answers");
    let list: Json = serde_json::from_str(&list).expect("JSON");
    assert_eq!((status, &list["refused"][0]["device"], &list["refused"][2]["seq"]), (200, &json!("pump-2"), &json!(2)));
    let (_, one) = gateway.get("/api/v1/devices/pump-1/refused").await.expect("it answers");
    let one: Json = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one["refused"].as_array().map(Vec::len), Some(1), "{one}");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let shown = command.args(["devices", "pump-0", "--refused", "-c"]).arg(gateway.config_file()).output();
    let shown = String::from_utf8(shown.expect("it runs").stdout).expect("text");
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(shown.lines().all(|line| line.contains("WHY") || line.contains("channel name")), "{shown}");
    let told = |log: String| log.matches("samples can never be taken and are refused").count();
    eventually("each is told", async || told(gateway.log()) >= 3).await;
    assert_eq!(told(gateway.log()), 3, "{}", gateway.log());
}

/// The next HeartbeatReply; Acks may come meanwhile, for whatever else the log has to write.
async fn reply(talk: &mut Talk<TcpStream>) {
    loop {
        match talk.hear().await {
            Some(GatewayMessage::HeartbeatReply(_)) => return,
            Some(GatewayMessage::Ack(_)) => {}
            other => panic!("no HeartbeatReply: {other:?}"),
        }
    }
}

fn raw(format: Format, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(format, 3, &mut out, |out| out.extend_from_slice(body));
    out
}

#[tokio::test]
async fn a_sample_that_cannot_even_be_read_is_passed_too() {
    let gateway = offline("").started().await;
    let mut talk = Talk::connect(&gateway.tcp_address(), JSON).await;
    talk.say(&hello("json", 7, 1)).await;
    talk.welcome().await;
    let body = br#"{"seq":1,"samples":[{"time":1,"values":{"a":NaN}},{"time":2,"values":{"a":1}}]}"#;
    talk.write(&raw(JSON, body)).await;
    assert_eq!(refused(&mut talk).await.seq, 1);
    talk.acked(2).await;

    // In postcard it hides what is behind it, which comes again in another message.
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "postcard", 7).await;
    let fine = [&[2u8, 1, 1][..], b"\x01a", &[1, 4]].concat(); // time 1, one value, `a` = 2
    let strange = [&[4u8, 1, 1][..], b"\x01a", &[9, 4]].concat(); // a value of type 9
    let body = |samples: &[&[u8]]| [&[1u8, 0, samples.len() as u8][..], &samples.concat()].concat();
    let whole = body(&[&fine, &strange, &fine]);
    talk.write(&raw(POSTCARD, &whole)).await;
    let goodbye = talk.goodbye().await;
    assert_eq!(goodbye.reason, Reason::BadFrame);
    assert!(goodbye.text.starts_with("sample 2 cannot be read"), "{goodbye:?}");
    let settled = async || Talk::welcomed(&gateway.tcp_address(), "postcard", 7).await;
    eventually("the bad one is settled", async || settled().await.1.settled == 2).await;
    let (mut talk, _) = settled().await;
    talk.readings(1, 3, 1).await;
    talk.acked(3).await;

    // A device that cannot but send the same message is not kept for ever either.
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "blobs", 7).await;
    talk.write(&raw(POSTCARD, &whole)).await;
    talk.goodbye().await;
    eventually("the bad one is settled", async || {
        Talk::welcomed(&gateway.tcp_address(), "blobs", 7).await.1.settled == 2
    })
    .await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "blobs", 7).await;
    talk.write(&raw(POSTCARD, &whole)).await;
    assert_eq!(refused(&mut talk).await.seq, 3);
    talk.acked(3).await;
}

#[tokio::test]
async fn of_a_message_beyond_the_window_as_much_is_taken_as_fits() {
    let gateway = offline("[devices]\nwindow = 10\n").started().await;
    let mut settled = 0;
    while settled < 25 {
        let (mut talk, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
        assert!(welcome.settled >= settled && welcome.settled <= settled + 10);
        settled = welcome.settled;
        if settled < 25 {
            talk.readings(1, settled + 1, 25 - settled).await;
            match 25 - settled > 10 {
                true => assert!(talk.goodbye().await.text.contains("the first 10 are taken")),
                false => talk.acked(25).await,
            }
            settled = if 25 - settled > 10 { settled } else { 25 };
        }
    }
}

#[tokio::test]
async fn heartbeats_are_answered_while_acks_take_long() {
    let gateway = offline(&format!("[devices]\nwindow = 10\n{NO_COMMIT}")).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    talk.readings(1, 1, 10).await;
    // Some that overrun the window.
    talk.readings(1, 11, 10).await;
    talk.readings(1, 21, 10).await;
    for _ in 0..3 {
        talk.say(&heartbeat()).await;
        reply(&mut talk).await;
    }
}

#[tokio::test]
async fn a_device_whose_heartbeats_stand_behind_what_is_not_read_knows_that_the_gateway_is_there() {
    let devices = "[devices]\nwindow = 10\nheartbeat_interval = \"1s\"\n";
    let gateway = offline(&format!("{devices}{NO_COMMIT}")).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    for first in (1..=1000).step_by(10) {
        talk.readings(1, first, 10).await;
    }
    for _ in 0..4 {
        reply(&mut talk).await;
    }
    assert_eq!(gateway.figure("tidegate_devices_connected").await, 1.0);
    assert!(gateway.figure("tidegate_readings_received_total").await < 1000.0, "the others wait");
}

#[tokio::test]
async fn what_a_small_device_has_no_room_for_is_cut_or_told_to_its_sender() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    let mut talk = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    let DeviceMessage::Hello(hello) = hello("small", 7, 1) else { panic!("no Hello") };
    talk.say(&DeviceMessage::Hello(Hello { max_frame: 64, ..hello })).await;
    talk.welcome().await;

    let payload = "p".repeat(100);
    cloud.command("small", &json!({"id": "large", "name": "show", "payload": payload})).await;
    let (_, result) = cloud.result("large").await;
    assert_eq!(result["state"], "rejected", "{result}");
    assert_eq!(result["payload"]["error"], "the command has 119 bytes, and the device takes 64", "{result}");
    cloud.command("small", &json!({"id": "fits", "name": "show"})).await;
    let command = talk.hear().await;
    assert!(matches!(&command, Some(GatewayMessage::Command(command)) if command.id == "fits"), "{command:?}");

    talk.readings(1, 9, 1).await;
    let goodbye = talk.goodbye().await;
    assert!(goodbye.text.starts_with("expected seq 1, got 9") && goodbye.text.ends_with("..."), "{goodbye:?}");
    assert_eq!(goodbye.text.len(), 62, "a reason, a length and the text fill 64 bytes");
}

/// As devices and gateways were before Welcome named its session and Hello its room.
#[tokio::test]
async fn a_hello_of_an_older_device_is_understood() {
    let gateway = offline("").started().await;
    let mut talk = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    let mut bytes = Vec::new();
    // Device, session, clock, time, no firmware, no channels; and nothing of `first`.
    let old = b"\x03old\x07\x00\x02\x00\x00";
    frame::encode(POSTCARD, 1, &mut bytes, |out| out.extend_from_slice(old));
    talk.write(&bytes).await;
    assert_eq!(talk.welcome().await.session, Some(7));
    say_samples(&mut talk, 1, vec![Sample { time: START, values: Vec::new() }]).await;
    talk.acked(1).await;
}
