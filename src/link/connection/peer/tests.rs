use super::*;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Authentication, Store};
use crate::device::auth::Doorman;
use crate::device::{Grants, Registry};
use crate::link::connection::{FIRST_FORMAT, drive};
use crate::link::line::Shared;
use crate::link::pool::Pool;
use crate::metrics::Metrics;
use crate::model::Value;
use crate::notes::Notes;
use crate::store::{Log, Opened, Stepper};
use crate::wire::codec::{decode_gateway, encode_device};
use crate::wire::frame::{Decoder, MAX_BODY, Recovery};
use crate::wire::message::{ChannelRef, DeviceClock, DeviceMessage, Heartbeat, Hello, Readings, Sample, SubDevice};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMITS: Limits = Limits { max_body: MAX_BODY, require_checksum: false };

/// A serial line to a log that has room for some 64 KiB, and whose writer is stepped.
fn line(directory: &Path) -> (Line, Stepper) {
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
    let shared = Shared {
        log,
        registry: Registry::new(&devices, clock.clone(), metrics.clone()),
        doorman: Doorman::new(&devices, &store, metrics.clone()),
        pool: Pool::new(1 << 20, metrics.clone()),
        devices,
        clock,
        metrics,
        notes: Notes::default(),
    };
    let grants = shared.grants(bytesize::ByteSize::mib(1), None, None, Authentication::None);
    let grants = Grants { window: 1000, restart: true, ..grants };
    let line = Line {
        name: "serial".into(),
        grants,
        before_hello: LIMITS,
        limits: LIMITS,
        recovery: Recovery::Resync,
        text: false,
        frame_timeout: Duration::from_secs(2),
        byte_time: Duration::ZERO,
        shared,
    };
    (line, writer)
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
fn hear(peer: &mut Peer<'_>, messages: &[DeviceMessage]) {
    let now = peer.line.shared.clock.now();
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| encode_device(message, FIRST_FORMAT, &mut bytes));
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    decoder.push(&bytes, &mut |event| peer.take(event, now)).expect("valid frames");
    peer.store();
}

/// What the device was told since.
fn said(peer: &mut Peer<'_>) -> Vec<GatewayMessage> {
    let mut said = Vec::new();
    let bytes = std::mem::take(&mut peer.out);
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
    let (line, mut writer) = line(directory.path());
    writer.step();
    let mut peer = Peer::new(&line, Caller::named("/dev/ttyS0"), Place::granted(), line.shared.clock.now());
    hear(&mut peer, &[hello(1), reading(1)]);
    // The log has no room for the second; the device restarts.
    hear(&mut peer, &[reading(2)]);
    assert!(peer.is_stalled() && line.shared.log.is_saturated());
    hear(&mut peer, &[hello(2)]);
    assert!(!peer.is_stalled() && !line.shared.log.is_saturated());
    writer.step();
    peer.advance(line.shared.clock.now());
    writer.step();
    let later = line.shared.clock.now();
    peer.advance(crate::clock::Now { monotonic: later.monotonic + Duration::from_secs(1), ..later });
    let said = said(&mut peer);
    assert!(matches!(said[..2], [GatewayMessage::Welcome(_), GatewayMessage::Welcome(_)]), "{said:?}");
    assert_eq!(said.len(), 2, "the second session sent nothing that could be acknowledged: {said:?}");
}

/// It has forgotten them, and would be asked for them for ever.
#[tokio::test]
async fn what_an_earlier_connection_brought_is_not_waited_for_once_it_is_acknowledged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (line, mut writer) = line(directory.path());
    writer.step();
    let mut peer = Peer::new(&line, Caller::named("/dev/ttyS0"), Place::granted(), line.shared.clock.now());
    let readings = |seq| DeviceMessage::Readings(Readings { seq, sub: None, samples: vec![sample(), sample()] });
    hear(&mut peer, &[hello(1), readings(1), readings(3), hello(1), readings(1)]);
    writer.step();
    let now = line.shared.clock.now();
    peer.advance(now);
    let ack = |seq| GatewayMessage::Ack(Ack { seq });
    assert_eq!(said(&mut peer).last(), Some(&ack(4)));
    hear(&mut peer, &[readings(5)]);
    writer.step();
    peer.advance(Now { monotonic: now.monotonic + Duration::from_secs(1), ..now });
    assert_eq!(said(&mut peer), [ack(6)]);
}

#[tokio::test]
async fn while_the_log_has_no_room_heartbeats_are_answered_and_readings_wait_for_their_turn() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (line, mut writer) = line(directory.path());
    writer.step();
    let mut peer = Peer::new(&line, Caller::named("/dev/ttyS0"), Place::granted(), line.shared.clock.now());
    hear(&mut peer, &[hello(1), reading(1)]);
    hear(&mut peer, &[reading(2)]);
    assert!(peer.is_stalled() && !peer.is_backed_up());
    let heartbeat = DeviceMessage::Heartbeat(Heartbeat { time: 0 });
    hear(&mut peer, &[reading(3), heartbeat]);
    let told = said(&mut peer);
    assert!(matches!(told[..], [GatewayMessage::Welcome(_), GatewayMessage::HeartbeatReply(_)]), "{told:?}");
    assert!(peer.is_backed_up() && peer.is_stalled() && peer.memory() > 2 * 40 * 1024);

    // Nothing more is read; a sign of life comes now and then.
    let now = line.shared.clock.now();
    let later = |seconds| Now { monotonic: now.monotonic + Duration::from_secs(seconds), ..now };
    peer.reassure(now);
    peer.reassure(later(29));
    assert_eq!((said(&mut peer), peer.reassures_at()), (vec![], Some(later(30).monotonic)));
    peer.reassure(later(30));
    assert!(matches!(said(&mut peer)[..], [GatewayMessage::HeartbeatReply(_)]));

    let mut acked = 0;
    for round in 1..10 {
        writer.step();
        peer.advance(later(30 + round));
        for message in said(&mut peer) {
            let GatewayMessage::Ack(ack) = message else { panic!("{message:?}") };
            acked = ack.seq;
        }
    }
    assert_eq!(acked, 3);
    assert!(!peer.is_backed_up() && !peer.is_stalled());
}

/// Whoever is fastest would take all the room there is, and the last of them nothing.
#[tokio::test]
async fn devices_that_wait_for_room_have_equal_shares_of_it_whoever_is_fastest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (line, mut writer) = line(directory.path());
    writer.step();
    let names: Vec<_> = (0..10).map(|number| format!("loud-{number}")).collect();
    let mut peers: Vec<_> = names
        .iter()
        .map(|name| {
            let mut peer = Peer::new(&line, Caller::named(name), Place::granted(), line.shared.clock.now());
            let DeviceMessage::Hello(hello) = hello(1) else { unreachable!("it is one") };
            hear(&mut peer, &[DeviceMessage::Hello(Hello { device: name.clone(), ..hello })]);
            (peer, 0)
        })
        .collect();
    for _ in 0..50 {
        for (peer, seq) in &mut peers {
            peer.advance(line.shared.clock.now());
            while !peer.is_stalled() && !peer.is_backed_up() {
                *seq += 1;
                let values = vec![(ChannelRef::Name("x".into()), Value::Bytes(vec![0; 8 * 1024].into()))];
                let samples = vec![Sample { time: 0, values }];
                hear(peer, &[DeviceMessage::Readings(Readings { seq: *seq, sub: None, samples })]);
            }
        }
        writer.step();
    }
    let settled = |name: &String| line.shared.log.mark(&DeviceId::new(name).expect("a valid name"), 1).settled();
    let shares: Vec<_> = names.iter().map(settled).collect();
    let (least, total) = (shares.iter().min().expect("some"), shares.iter().sum::<u64>());
    assert!(least * 2 * 10 >= total && total > 100, "{shares:?}");
}

/// What a device sends comes back in what is said to it, and in the log.
#[tokio::test]
async fn a_refusal_is_short_whatever_the_device_sent() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (line, mut writer) = line(directory.path());
    writer.step();
    let mut peer = Peer::new(&line, Caller::named("/dev/ttyS0"), Place::granted(), line.shared.clock.now());
    let values = vec![(ChannelRef::Name("\u{1}".repeat(100_000)), Value::Integer(1))];
    let senseless = Readings { seq: 1, sub: None, samples: vec![Sample { time: 0, values }] };
    hear(&mut peer, &[hello(1), DeviceMessage::Readings(senseless)]);
    let told = said(&mut peer);
    let Some(GatewayMessage::Refused(refused)) = told.last() else { panic!("{told:?}") };
    assert!(refused.text.starts_with("channel name") && refused.text.len() < 300, "{} bytes", refused.text.len());
    let sub = "\u{1}".repeat(100_000);
    hear(&mut peer, &[DeviceMessage::SubDevice(SubDevice { sub, online: true, reason: None })]);
    let told = said(&mut peer);
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
    let (mut line, mut writer) = line(directory.path());
    writer.step();
    let clock =
        Arc::new(Stopped { system: SystemClock::new(), stops: AtomicBool::new(false), stood: AtomicBool::new(false) });
    line.shared.clock = clock.clone();
    line.grants.idle_after = Duration::from_secs(2);
    line.grants.idle_timeout = Duration::from_secs(3);
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
        closed = drive(&mut far, |_| false, &line, Caller::named("/dev/ttyS0"), Place::granted(), stopped) => panic!("{closed:?}"),
    };
    assert!(clock.stood.load(Ordering::Relaxed));
    let text = String::from_utf8_lossy(&told);
    assert!(!text.contains("nothing was heard"), "{text}");
}
