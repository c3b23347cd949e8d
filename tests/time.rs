//! Time: a gateway that does not know it yet, devices that do not or are wrong about it,
//! and clocks that step. No test sets the machine's clock.

use crate::support::broker::Broker;
use crate::support::device::{POSTCARD, START, Talk};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tidegate::clock::{Clock, Now};
use tidegate::config::Store;
use tidegate::metrics::Metrics;
use tidegate::model::{Basis, Batch, BootId, DeviceId, Numbered, Reading, Seq, Timestamp, Value};
use tidegate::sink::encode::{Delivered, Quality};
use tidegate::store::{Log, Opened};
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
        eventually("the event comes", async || subscriber.look(|heard| !heard.events.is_empty())).await;
        let event = subscriber.look(|heard| heard.events[0].clone());
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

/// A clock under the test's hand; the wall steps, monotonic time does not.
struct Scripted {
    wall: AtomicI64,
    trusted: AtomicU64,
    start: std::time::Instant,
}

const BOOT: BootId = BootId([5; 16]);
const S: i64 = 1_000_000;

impl Scripted {
    fn new(wall: i64, trusted: bool) -> Arc<Scripted> {
        let trusted = AtomicU64::new(u64::from(trusted));
        Arc::new(Scripted { wall: AtomicI64::new(wall), trusted, start: std::time::Instant::now() })
    }

    fn step(&self, wall: i64) {
        self.wall.store(wall, Ordering::Relaxed);
    }
}

impl Clock for Scripted {
    fn now(&self) -> Now {
        let trusted = self.trusted.load(Ordering::Relaxed) == 1;
        let wall = Timestamp(self.wall.load(Ordering::Relaxed));
        Now { wall, trusted, monotonic: Duration::from_secs(1000) + self.start.elapsed() }
    }

    fn boot(&self) -> BootId {
        BOOT
    }
}

fn open(directory: &std::path::Path, clock: &Arc<Scripted>) -> Opened {
    let config = Store { directory: directory.to_owned(), commit_within: Duration::ZERO, ..Store::default() };
    Log::open(&config, &["a"], clock.clone(), Metrics::new()).expect("the log opens")
}

fn batch(time: i64, basis: Basis) -> Batch {
    let reading = Reading::new(0, Timestamp(time), [].into(), Box::new([])).expect("none each");
    Batch { device: DeviceId::new("d").expect("a valid name"), session: None, basis, readings: vec![reading] }
}

fn times(batches: &[Numbered]) -> Vec<(u64, i64, Basis)> {
    let all = |n: &Numbered| n.after(Seq::ZERO).map(|(seq, _, r)| (seq.0, r.time.0, n.batch.basis)).collect::<Vec<_>>();
    batches.iter().flat_map(all).collect()
}

#[tokio::test]
async fn readings_of_a_boot_that_never_got_the_time_keep_their_order_and_their_mark() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let former = Basis::Boot(BootId([4; 16]));
    let clock = Scripted::new(START, false);
    let opened = open(directory.path(), &clock);
    opened.log.append(None, batch(900 * S, former)).expect("there is room");
    opened.log.append(None, batch(10 * S, Basis::Boot(BOOT))).expect("there is room");
    opened.log.close();
    opened.writer.join();

    let mut opened = open(directory.path(), &clock);
    opened.log.append(None, batch(11 * S, Basis::Boot(BOOT))).expect("there is room");
    clock.trusted.store(1, Ordering::Relaxed);
    let now = clock.now();
    opened.log.synchronised(now);
    let began = now.start().0;
    opened.log.append(None, batch(START + S, Basis::Wall)).expect("there is room");
    opened.log.flush().await.expect("it can be written");
    let got = times(&opened.cursors[0].fetch(Seq::ZERO, 1 << 20).await.expect("the log reads"));
    let expected = [
        (1, 900 * S, former),
        (2, began + 10 * S, Basis::Resynchronised),
        (3, began + 11 * S, Basis::Resynchronised),
        (4, START + S, Basis::Wall),
    ];
    assert_eq!(got, expected);
}

#[tokio::test]
async fn steps_of_the_clock_and_a_restart_in_the_past_disturb_neither_order_nor_commits() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let day = 86_400 * S;
    let clock = Scripted::new(START, true);
    let mut opened = open(directory.path(), &clock);
    let mut expected = Vec::new();
    for (seq, wall) in (1..).zip([START, START + 3650 * day, START - day, 0, i64::MAX, i64::MIN, START]) {
        clock.step(wall);
        opened.log.append(None, batch(wall, Basis::Wall)).expect("there is room");
        opened.log.flush().await.expect("the commit does not wait for the wall");
        assert!(opened.cursors[0].oldest_pending(clock.now().monotonic) < Duration::from_secs(500));
        expected.push((seq, wall, Basis::Wall));
        if wall == START - day || wall == 0 {
            opened.log.close();
            opened.writer.join();
            opened = open(directory.path(), &clock);
        }
    }
    let got = times(&opened.cursors[0].fetch(Seq::ZERO, 1 << 20).await.expect("the log reads"));
    assert_eq!(got, expected);
    opened.cursors[0].confirm(Seq(7));
    assert_eq!(opened.cursors[0].pending(), 0);
    assert_eq!(opened.log.health().overdue, Duration::ZERO);
}
