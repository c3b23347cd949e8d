use super::*;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Authentication, Store};
use crate::device::Registry;
use crate::device::auth::Authenticator;
use crate::ingest::Ingest;
use crate::link::context::Shared;
use crate::link::protocol::SessionParameters;
use crate::link::session::{FIRST_FORMAT, drive};
use crate::metrics::Metrics;
use crate::model::Value;
use crate::net::Pool;
use crate::notes::Notes;
use crate::store::{Log, Opened, Stepper};
use crate::wire::codec::{decode_gateway, encode_device};
use crate::wire::frame::{Decoder, MAX_BODY, Recovery};
use crate::wire::message::{ChannelRef, DeviceClock, DeviceMessage, Heartbeat, Hello, Readings, Sample, SubDevice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMITS: Limits = Limits { max_body: MAX_BODY, require_checksum: false };

/// A serial line to a log that has room for some 64 KiB, and whose writer is stepped.
fn link(directory: &Path) -> (LinkContext, Stepper, Log) {
    let store = Store {
        directory: directory.to_owned(),
        max_pending: bytesize::ByteSize::kib(64),
        segment_size: bytesize::ByteSize::kib(64),
        commit_within: Duration::ZERO,
        ..Store::default()
    };
    let (clock, metrics): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), Metrics::new());
    let gauge = Arc::new(|| None);
    let Opened { log, writer, .. } =
        Log::open_stepped(&store, &[], &["cloud"], clock.clone(), metrics.clone(), gauge).expect("a log");
    let devices = config::Devices::default();
    let registry = Registry::new(&devices, clock.clone(), metrics.clone());
    let shared = Shared {
        ingest: Ingest::new(log.clone(), registry, clock.clone(), metrics.clone()),
        authenticator: Authenticator::new(&devices, &store, metrics.clone()),
        pool: Pool::new(1 << 20, metrics.clone()),
        devices,
        clock,
        metrics,
        notes: Notes::default(),
    };
    let parameters = shared.parameters(bytesize::ByteSize::mib(1), None, None, Authentication::None);
    let parameters = SessionParameters { window: 1000, restart: true, ..parameters };
    let link = LinkContext {
        name: "serial".into(),
        parameters,
        before_hello: LIMITS,
        limits: LIMITS,
        recovery: Recovery::Resync,
        text: false,
        frame_timeout: Duration::from_secs(2),
        byte_time: Duration::ZERO,
        shared,
    };
    (link, writer, log)
}

/// One that nothing was said to yet.
fn driver<'a>(link: &'a LinkContext, from: &str) -> SessionDriver<'a> {
    SessionDriver::new(link, RemoteInfo::named(from), AdmissionSlot::exclusive(), link.shared.clock.now())
}

fn hello(session: u64) -> DeviceMessage {
    DeviceMessage::Hello(Hello {
        device: "pump".into(),
        session,
        clock: DeviceClock::Wall,
        time: 0,
        firmware: None,
        channels: Vec::new(),
        first: 1,
        max_frame: 0,
    })
}

/// One large reading.
fn reading(seq: u64) -> DeviceMessage {
    let values = vec![(ChannelRef::Name("x".into()), Value::Bytes(vec![0; 40 * 1024].into()))];
    DeviceMessage::Readings(Readings { seq, sub: None, samples: vec![Sample { time: 0, values }] })
}

fn sample() -> Sample {
    Sample { time: 0, values: vec![(ChannelRef::Name("x".into()), Value::Integer(1))] }
}

/// The device says all that at once, as a connection hears it.
fn hear(driver: &mut SessionDriver<'_>, messages: &[DeviceMessage]) {
    let now = driver.link.shared.clock.now();
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| encode_device(message, FIRST_FORMAT, &mut bytes));
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    decoder.push(&bytes, &mut |event| driver.take(event, now)).expect("valid frames");
    driver.store();
}

/// What the device was told since.
fn said(driver: &mut SessionDriver<'_>) -> Vec<GatewayMessage> {
    let mut said = Vec::new();
    let bytes = std::mem::take(&mut driver.out);
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    let mut take = |event: Event<'_>| {
        if let Event::Frame(frame) = event {
            said.push(decode_gateway(&frame).expect("a message"));
        }
        ControlFlow::Continue(())
    };
    decoder.push(&bytes, &mut take).expect("valid frames");
    said
}

/// An Ack for them would make the device forget readings of its new session that have the
/// same numbers.
#[tokio::test]
async fn readings_that_found_no_room_are_not_taken_for_those_of_the_next_session() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, mut writer, _) = link(directory.path());
    writer.step();
    let mut driver = driver(&link, "/dev/ttyS0");
    hear(&mut driver, &[hello(1), reading(1)]);
    // The log has no room for the second; the device restarts.
    hear(&mut driver, &[reading(2)]);
    assert!(driver.is_stalled() && link.shared.ingest.is_saturated());
    hear(&mut driver, &[hello(2)]);
    assert!(!driver.is_stalled() && !link.shared.ingest.is_saturated());
    writer.step();
    driver.advance(link.shared.clock.now());
    writer.step();
    let later = link.shared.clock.now();
    driver.advance(crate::clock::Now { monotonic: later.monotonic + Duration::from_secs(1), ..later });
    let said = said(&mut driver);
    assert!(matches!(said[..2], [GatewayMessage::Welcome(_), GatewayMessage::Welcome(_)]), "{said:?}");
    assert_eq!(said.len(), 2, "the second session sent nothing that could be acknowledged: {said:?}");
}

/// It has forgotten them, and would be asked for them for ever.
#[tokio::test]
async fn what_an_earlier_connection_brought_is_not_waited_for_once_it_is_acknowledged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, mut writer, _) = link(directory.path());
    writer.step();
    let mut driver = driver(&link, "/dev/ttyS0");
    let readings = |seq| DeviceMessage::Readings(Readings { seq, sub: None, samples: vec![sample(), sample()] });
    hear(&mut driver, &[hello(1), readings(1), readings(3), hello(1), readings(1)]);
    writer.step();
    let now = link.shared.clock.now();
    driver.advance(now);
    let ack = |seq| GatewayMessage::Ack(Ack { seq });
    assert_eq!(said(&mut driver).last(), Some(&ack(4)));
    hear(&mut driver, &[readings(5)]);
    writer.step();
    driver.advance(Now { monotonic: now.monotonic + Duration::from_secs(1), ..now });
    assert_eq!(said(&mut driver), [ack(6)]);
}

#[tokio::test]
async fn while_the_log_has_no_room_heartbeats_are_answered_and_readings_wait_for_their_turn() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, mut writer, _) = link(directory.path());
    writer.step();
    let mut driver = driver(&link, "/dev/ttyS0");
    hear(&mut driver, &[hello(1), reading(1)]);
    hear(&mut driver, &[reading(2)]);
    assert!(driver.is_stalled() && !driver.is_backed_up());
    let heartbeat = DeviceMessage::Heartbeat(Heartbeat { time: 0 });
    hear(&mut driver, &[reading(3), heartbeat]);
    let told = said(&mut driver);
    assert!(matches!(told[..], [GatewayMessage::Welcome(_), GatewayMessage::HeartbeatReply(_)]), "{told:?}");
    assert!(driver.is_backed_up() && driver.is_stalled() && driver.memory() > 2 * 40 * 1024);

    // Nothing more is read; a sign of life comes now and then.
    let now = link.shared.clock.now();
    let later = |seconds| Now { monotonic: now.monotonic + Duration::from_secs(seconds), ..now };
    driver.reassure(now);
    driver.reassure(later(29));
    assert_eq!((said(&mut driver), driver.reassures_at()), (vec![], Some(later(30).monotonic)));
    driver.reassure(later(30));
    assert!(matches!(said(&mut driver)[..], [GatewayMessage::HeartbeatReply(_)]));

    let mut acked = 0;
    for round in 1..10 {
        writer.step();
        driver.advance(later(30 + round));
        for message in said(&mut driver) {
            let GatewayMessage::Ack(ack) = message else { panic!("{message:?}") };
            acked = ack.seq;
        }
    }
    assert_eq!(acked, 3);
    assert!(!driver.is_backed_up() && !driver.is_stalled());
}

/// What they say takes many times as much memory, of each of many devices.
#[tokio::test]
async fn large_readings_wait_as_they_came_while_the_log_is_short_of_room() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, mut writer, log) = link(directory.path());
    writer.step();
    let (mut before, mut driver) = (driver(&link, "a"), driver(&link, "b"));
    hear(&mut before, &[hello(1), reading(1)]);
    hear(&mut before, &[reading(2)]);
    assert!(before.is_stalled() && link.shared.ingest.is_saturated());
    let DeviceMessage::Hello(other) = hello(1) else { unreachable!("it is one") };
    hear(&mut driver, &[DeviceMessage::Hello(Hello { device: "other".into(), ..other })]);
    let words = |i| (ChannelRef::Name(format!("channel-{i}")), Value::Text("words".into()));
    let bulky = |seq| Sample { time: 0, values: (0..20).map(|i| words(seq * 20 + i)).collect() };
    let readings = Readings { seq: 1, sub: None, samples: (1..=10).map(bulky).collect() };
    hear(&mut driver, &[DeviceMessage::Readings(readings)]);
    driver.advance(link.shared.clock.now());
    assert!(driver.is_stalled() && driver.is_backed_up());
    assert!((4096..8192).contains(&driver.memory()), "{}", driver.memory());
    let high_water = log.high_water(&DeviceId::new("other").expect("a valid name"), 1);
    for _ in 0..10 {
        writer.step();
        for driver in [&mut before, &mut driver] {
            driver.advance(link.shared.clock.now());
        }
    }
    assert_eq!(high_water.settled(), 10);
    assert!(!driver.is_stalled() && !link.shared.ingest.is_saturated(), "nobody waits any more");
}

/// Whoever is fastest would take all the room there is, and the last of them nothing.
#[tokio::test]
async fn devices_that_wait_for_room_have_equal_shares_of_it_whoever_is_fastest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, mut writer, log) = link(directory.path());
    writer.step();
    let names: Vec<_> = (0..10).map(|number| format!("loud-{number}")).collect();
    let mut drivers: Vec<_> = names
        .iter()
        .map(|name| {
            let mut driver = driver(&link, name);
            let DeviceMessage::Hello(hello) = hello(1) else { unreachable!("it is one") };
            hear(&mut driver, &[DeviceMessage::Hello(Hello { device: name.clone(), ..hello })]);
            (driver, 0)
        })
        .collect();
    for _ in 0..50 {
        for (driver, seq) in &mut drivers {
            driver.advance(link.shared.clock.now());
            while !driver.is_stalled() && !driver.is_backed_up() {
                *seq += 1;
                let values = vec![(ChannelRef::Name("x".into()), Value::Bytes(vec![0; 8 * 1024].into()))];
                let samples = vec![Sample { time: 0, values }];
                hear(driver, &[DeviceMessage::Readings(Readings { seq: *seq, sub: None, samples })]);
            }
        }
        writer.step();
    }
    let settled = |name: &String| log.high_water(&DeviceId::new(name).expect("a valid name"), 1).settled();
    let shares: Vec<_> = names.iter().map(settled).collect();
    let (least, total) = (shares.iter().min().expect("some"), shares.iter().sum::<u64>());
    assert!(least * 2 * 10 >= total && total > 100, "{shares:?}");
}

/// What a device sends comes back in what is said to it, and in the log.
#[tokio::test]
async fn a_refusal_is_short_whatever_the_device_sent() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (link, mut writer, _) = link(directory.path());
    writer.step();
    let mut driver = driver(&link, "/dev/ttyS0");
    let values = vec![(ChannelRef::Name("\u{1}".repeat(100_000)), Value::Integer(1))];
    let senseless = Readings { seq: 1, sub: None, samples: vec![Sample { time: 0, values }] };
    hear(&mut driver, &[hello(1), DeviceMessage::Readings(senseless)]);
    let told = said(&mut driver);
    let Some(GatewayMessage::Refused(refused)) = told.last() else { panic!("{told:?}") };
    assert!(refused.text.starts_with("channel name") && refused.text.len() < 300, "{} bytes", refused.text.len());
    let sub = "\u{1}".repeat(100_000);
    hear(&mut driver, &[DeviceMessage::SubDevice(SubDevice { sub, online: true, reason: None })]);
    let told = said(&mut driver);
    let Some(GatewayMessage::Goodbye(goodbye)) = told.last() else { panic!("{told:?}") };
    assert!(goodbye.text.starts_with("sub-device") && goodbye.text.len() < 300, "{} bytes", goodbye.text.len());
}

/// A clock whose process is stopped for 4 seconds, once, when it has been asked for the time.
struct Stopped {
    system: SystemClock,
    stops: AtomicBool,
    stood: AtomicBool,
}

const STOOD_STILL: Duration = Duration::from_secs(4);

impl Clock for Stopped {
    fn now(&self) -> Now {
        let now = self.system.now();
        let stood = if self.stood.load(Ordering::Relaxed) { STOOD_STILL } else { Duration::ZERO };
        self.stood.fetch_or(self.stops.load(Ordering::Relaxed), Ordering::Relaxed);
        Now { monotonic: now.monotonic + stood, ..now }
    }

    fn put_off(&self) -> Duration {
        if self.stood.load(Ordering::Relaxed) { 2 * STOOD_STILL } else { Duration::ZERO }
    }
}

#[tokio::test]
async fn a_pause_between_two_questions_to_the_clock_is_excused_like_any_other() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut link, mut writer, _) = link(directory.path());
    writer.step();
    let clock =
        Arc::new(Stopped { system: SystemClock::new(), stops: AtomicBool::new(false), stood: AtomicBool::new(false) });
    link.shared.clock = clock.clone();
    link.parameters.idle_after = Duration::from_secs(2);
    link.parameters.idle_timeout = Duration::from_secs(3);
    let (mut near, mut far) = tokio::io::duplex(1024);
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let device = async {
        let mut bytes = Vec::new();
        encode_device(&hello(1), FIRST_FORMAT, &mut bytes);
        near.write_all(&bytes).await.expect("it is there");
        near.read_u8().await.expect("a Welcome");
        bytes.clear();
        encode_device(&DeviceMessage::Heartbeat(Heartbeat { time: 0 }), FIRST_FORMAT, &mut bytes);
        clock.stops.store(true, Ordering::Relaxed);
        near.write_all(&bytes).await.expect("it is there");
        let mut told = Vec::new();
        // Without an excuse it would be given up at once.
        let _ = tokio::time::timeout(Duration::from_millis(500), near.read_to_end(&mut told)).await;
        told
    };
    let told = tokio::select! {
        told = device => told,
        closed = drive(&mut far, |_| false, &link, RemoteInfo::named("/dev/ttyS0"), AdmissionSlot::exclusive(), stopped) => panic!("{closed:?}"),
    };
    assert!(clock.stood.load(Ordering::Relaxed));
    let text = String::from_utf8_lossy(&told);
    assert!(!text.contains("nothing was heard"), "{text}");
}
