//! What a device costs beside its readings: a step of its session, coming and going, and
//! what is told of it.
//!
//! `cargo bench --bench devices`.

#![allow(clippy::expect_used, reason = "a benchmark fails by panicking")]

use divan::{Bencher, black_box};
use std::sync::Arc;
use std::time::Duration;
use tidegate::clock::{Clock, Now, SystemClock};
use tidegate::config::{self, Authentication};
use tidegate::device::{Introduction, Registry};
use tidegate::link::protocol::convert::TimeRules;
use tidegate::link::protocol::{Session, SessionParameters, Step};
use tidegate::metrics::Metrics;
use tidegate::model::{BootId, DeviceId, Timestamp, Value};
use tidegate::wire::message::{ChannelRef, DeviceClock, DeviceMessage, Heartbeat, Hello, Readings, Sample};

fn main() {
    divan::main();
}

const PARAMETERS: SessionParameters = SessionParameters {
    handshake_timeout: Some(Duration::from_secs(5)),
    heartbeat_interval: Duration::from_secs(30),
    idle_after: Duration::from_secs(45),
    idle_timeout: Duration::from_secs(90),
    window: 4096,
    max_frame: 64 * 1024,
    restart: false,
    authentication: Authentication::None,
    times: TimeRules { boot: BootId([7; 16]), max_ahead: Duration::from_secs(600), earliest: Timestamp(0) },
};
const NOW: Now = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::from_secs(1) };

fn hello() -> DeviceMessage {
    DeviceMessage::Hello(Hello {
        device: "pump".into(),
        session: 7,
        clock: DeviceClock::Wall,
        time: NOW.wall.0,
        firmware: None,
        channels: Vec::new(),
        first: 1,
        max_frame: 0,
    })
}

fn established() -> Session {
    let mut session = Session::new(PARAMETERS, NOW);
    session.take(hello(), NOW).expect("a fine Hello");
    session.welcome(1, 0, NOW);
    session
}

#[divan::bench]
fn a_heartbeat(bencher: Bencher) {
    let mut session = established();
    bencher.bench_local(|| session.take(black_box(DeviceMessage::Heartbeat(Heartbeat { time: NOW.wall.0 })), NOW));
}

#[divan::bench]
fn a_reading_of_four_values(bencher: Bencher) {
    let mut session = established();
    let mut seq = 0;
    bencher
        .with_inputs(|| {
            seq += 1;
            let values = (0..4).map(|i| (ChannelRef::Name(format!("channel-{i}")), Value::Float(1.5))).collect();
            let samples = vec![Sample { time: NOW.wall.0, values }];
            DeviceMessage::Readings(Readings { seq, sub: None, samples })
        })
        .bench_local_values(|readings| {
            let step = session.take(readings, NOW);
            assert!(matches!(step, Ok(Step::Store(_))), "{step:?}");
        });
}

#[divan::bench]
fn hello_and_welcome() -> bool {
    let mut session = Session::new(PARAMETERS, NOW);
    let established = session.take(black_box(hello()), NOW).is_ok();
    black_box(session.welcome(1, 0, NOW));
    established
}

/// With so many other devices connected.
#[divan::bench(args = [0, 10_000])]
fn coming_and_going(bencher: Bencher, others: usize) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let registry = Registry::new(&config::Devices::default(), clock, Metrics::new());
    let link: Arc<str> = "tcp".into();
    let connect = |name: &DeviceId| {
        let alive_within = Duration::from_secs(45);
        registry.connect(Introduction {
            device: name,
            session: 7,
            link: &link,
            firmware: None,
            alive_within,
            proven: false,
        })
    };
    let name = |i: usize| DeviceId::new(&format!("device-{i}")).expect("a valid name");
    let _others: Vec<_> = (0..others).map(|i| connect(&name(i)).expect("there is room")).collect();
    let device = name(others);
    bencher.bench_local(|| connect(&device).expect("there is room"));
}

/// Ten thousand devices come at once, and all of that is told.
#[divan::bench(sample_count = 10)]
fn updates_of_ten_thousand(bencher: Bencher) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let link: Arc<str> = "tcp".into();
    bencher
        .with_inputs(|| {
            let registry = Registry::new(&config::Devices::default(), clock.clone(), Metrics::new());
            let there: Vec<_> = (0..10_000)
                .map(|i| {
                    let device = DeviceId::new(&format!("device-{i}")).expect("a valid name");
                    let alive_within = Duration::from_secs(45);
                    let who = Introduction {
                        device: &device,
                        session: 7,
                        link: &link,
                        firmware: None,
                        alive_within,
                        proven: false,
                    };
                    registry.connect(who).expect("there is room")
                })
                .collect();
            (registry, there)
        })
        .bench_local_values(|(registry, there)| {
            let mut told = 0;
            loop {
                let updates = registry.tell(500);
                if updates.changes.is_empty() {
                    break;
                }
                told += updates.changes.len();
            }
            assert_eq!(told, 10_000);
            (registry, there)
        });
}
