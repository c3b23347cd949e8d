//! Time, through the gateway's doors: it does not know it yet, devices do not or are wrong
//! about it. No test sets the machine's clock.

use crate::support::broker::Broker;
use crate::support::device::{POSTCARD, START, Talk};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use std::path::PathBuf;
use tidegate::model::{BootId, Timestamp, Value};
use tidegate::sink::encode::{Delivered, Quality};
use tidegate::wire::message::{
    ChannelRef, DeviceClock, DeviceMessage, GatewayMessage, Heartbeat, Hello, Readings, Sample, Welcome,
};

/// A gateway whose clock is believed once the file returned exists.
fn waiting(broker: &Broker) -> (Gateway, PathBuf) {
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "");
    let file = gateway.directory().join("clock-is-set");
    gateway.set_clock(&format!("clock = \"file\"\nclock_file = {file:?}"));
    (gateway, file)
}

/// A device without a clock, whose uptime is now `uptime_ms`.
async fn without_clock(gateway: &Gateway, session: u64, uptime_ms: i64) -> (Talk<tokio::net::TcpStream>, Welcome) {
    let mut talk = Talk::connect(&gateway.tcp_address(), POSTCARD).await;
    let hello = Hello {
        device: "clockless".into(),
        session,
        clock: DeviceClock::SinceBoot,
        time: uptime_ms,
        firmware: None,
        channels: Vec::new(),
        first: 1,
        max_frame: 0,
    };
    talk.say(&DeviceMessage::Hello(hello)).await;
    let welcome = talk.welcome().await;
    (talk, welcome)
}

fn reading(seq: u64, time: i64) -> DeviceMessage {
    let values = vec![(ChannelRef::Name("n".into()), Value::Integer(1))];
    DeviceMessage::Readings(Readings { seq, sub: None, samples: vec![Sample { time, values }] })
}

fn wall() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_micros()).expect("a time")
}

fn boot_id() -> BootId {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux").trim().parse().expect("a boot id")
}

/// The delivered reading with this number of the device.
fn of(readings: &[Delivered], seq: u64) -> &Delivered {
    readings.iter().find(|reading| reading.origin.is_some_and(|(_, origin)| origin == seq)).expect("it was delivered")
}

/// The first event that tells when the gateway's boot began.
async fn clock_event(subscriber: &Subscriber) -> serde_json::Value {
    let found = || subscriber.look(|heard| heard.events.iter().find(|event| event["type"] == "clock").cloned());
    eventually("the event comes", async || found().is_some()).await;
    found().expect("it came")
}

#[tokio::test]
async fn what_came_before_the_clock_was_set_gets_its_time_also_across_a_restart() {
    // Its outages leave the subscriber alone.
    let mut broker = Broker::start().await.behind_a_proxy().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let (mut gateway, file) = waiting(&broker);
    // The network is away, as is the time.
    broker.stop().await;
    gateway.start().await;
    let (mut talk, welcome) = without_clock(&gateway, 7, 50_000).await;
    assert!(!welcome.time_trusted);
    let taken = wall() - 20_000_000;
    talk.say(&reading(1, 30_000)).await;
    talk.acked(1).await;
    gateway.kill();

    gateway.start().await;
    let (mut talk, _) = without_clock(&gateway, 7, 60_000).await;
    let later = wall();
    talk.say(&reading(2, 60_000)).await;
    talk.acked(2).await;
    assert_eq!(gateway.figure("tidegate_clock_trusted").await, 0.0);
    assert!(gateway.get("/health/ready").await.is_some_and(|(code, body)| code == 200 && body.contains("\"clock\"")));
    std::fs::write(&file, "").expect("a file");
    gateway.figure_becomes("tidegate_clock_trusted", |trusted| trusted == 1.0).await;
    broker.resume().await;
    eventually("both readings are delivered", async || subscriber.readings().len() >= 2).await;
    let readings = subscriber.readings();
    for (seq, expected) in [(1, taken), (2, later)] {
        let reading = of(&readings, seq);
        assert_eq!(reading.quality, Quality::Resynchronised);
        let off = reading.time.0 - expected;
        assert!(off.abs() < 5_000_000, "reading {seq} is off by {off} us");
    }
    // From now on times are good.
    let DeviceReply { time_trusted } = heartbeat(&mut talk, 61_000).await;
    assert!(time_trusted);
    talk.say(&reading(3, 61_000)).await;
    eventually("the third is delivered", async || subscriber.readings().len() >= 3).await;
    assert_eq!(of(&subscriber.readings(), 3).quality, Quality::Good);
}

struct DeviceReply {
    time_trusted: bool,
}

async fn heartbeat(talk: &mut Talk<tokio::net::TcpStream>, time: i64) -> DeviceReply {
    talk.say(&DeviceMessage::Heartbeat(Heartbeat { time })).await;
    loop {
        if let Some(GatewayMessage::HeartbeatReply(reply)) = talk.hear().await {
            return DeviceReply { time_trusted: reply.time_trusted };
        }
    }
}

#[tokio::test]
async fn what_is_delivered_without_a_time_says_so_and_an_event_places_it_later() {
    let broker = Broker::start().await;
    for encoding in ["json", "postcard"] {
        let subscriber = Subscriber::start(&options(broker.port())).await;
        let (mut gateway, file) = waiting(&broker);
        gateway.keys("[[mqtt]]", &format!("encoding = \"{encoding}\""));
        gateway.start().await;
        gateway.connected().await;
        let (mut talk, _) = without_clock(&gateway, 7, 50_000).await;
        let taken = wall();
        talk.say(&reading(1, 50_000)).await;
        eventually("it is delivered at once", async || !subscriber.readings().is_empty()).await;
        let Quality::Unsynchronised { boot, uptime } = subscriber.readings()[0].quality else {
            panic!("{:?}", subscriber.readings())
        };
        assert_eq!(boot, boot_id());
        std::fs::write(&file, "").expect("a file");
        let event = clock_event(&subscriber).await;
        assert_eq!((event["type"].as_str(), event["boot"].as_str()), (Some("clock"), Some(&*boot.to_string())));
        let began: Timestamp = event["began"].as_str().expect("a time").parse().expect("a time");
        let off = began.0 + uptime.0 - taken;
        assert!(off.abs() < 5_000_000, "off by {off} us");
    }
}

#[tokio::test]
async fn an_absurd_device_clock_is_flagged_with_the_time_of_receipt_beside_it() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "[devices]\nmax_clock_ahead = \"1h\"\n").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "wrong", 1).await;
    let hour = 3_600_000_000;
    let now = wall();
    for (seq, time) in [(1, now + 2 * hour), (2, 5), (3, START), (4, now + hour / 2)] {
        talk.say(&reading(seq, time)).await;
    }
    eventually("all are delivered", async || subscriber.readings().len() >= 4).await;
    let readings = subscriber.readings();
    for (seq, time) in [(1, now + 2 * hour), (2, 5)] {
        let reading = of(&readings, seq);
        let Quality::DeviceClock { received } = reading.quality else { panic!("{reading:?}") };
        assert_eq!(reading.time.0, time, "what the device said is kept");
        assert!((received.0 - now).abs() < 60_000_000, "received {received}");
        assert!(!reading.replay, "it came just now");
    }
    assert!(of(&readings, 3).quality.is_good(), "old readings are no fault");
    assert!(of(&readings, 4).quality.is_good());
    gateway.figure_becomes("tidegate_readings_device_clock_total", |count| count == 2.0).await;
}

#[tokio::test]
async fn a_device_clock_in_the_distant_past_is_flagged_also_while_the_gateway_knows_no_better() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let (mut gateway, file) = waiting(&broker);
    gateway.start().await;
    gateway.connected().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "wrong", 1).await;
    talk.say(&reading(1, 5)).await;
    talk.say(&reading(2, START)).await;
    eventually("both are delivered", async || subscriber.readings().len() >= 2).await;
    let readings = subscriber.readings();
    let Quality::DeviceClockSince { boot, uptime } = of(&readings, 1).quality else { panic!("{readings:?}") };
    assert_eq!((boot, of(&readings, 1).time), (boot_id(), Timestamp(5)), "what the device said is kept");
    assert!(of(&readings, 2).quality.is_good(), "of this nobody can tell");
    let received = wall();
    std::fs::write(&file, "").expect("a file");
    let event = clock_event(&subscriber).await;
    let began = event["began"].as_str().expect("a beginning");
    let off = began.parse::<Timestamp>().expect("a time").0 + uptime.0 - received;
    assert!(off.abs() < 5_000_000, "off by {off} us");
}
