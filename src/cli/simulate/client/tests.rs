use super::super::pace::Length;
use super::super::values::{channel_names, sample};
use super::*;
use crate::model::Timestamp;
use crate::wire::codec::decode_device;
use crate::wire::frame::{Decoder, Event, Limits, Recovery};
use crate::wire::message::{Ack, Challenge, HeartbeatReply};
use proptest::prelude::*;
use std::ops::ControlFlow;

const SEED: u64 = 7;
const NUMBER: u64 = 3;
const SESSION: u64 = 99;

fn now(ms: u64) -> Now {
    let monotonic = Duration::from_millis(ms);
    Now { wall: Timestamp(1_790_000_000_000_000).plus(monotonic), trusted: true, monotonic }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("the bounds are valid")
}

fn client(pace: Pace, encoding: BodyEncoding) -> Client {
    let identity =
        Identity { id: "sim-3".into(), number: NUMBER, session: SESSION, seed: SEED, encoding, holder: None };
    let timeouts = Timeouts {
        welcome: Duration::from_secs(10),
        ack: Duration::from_secs(30),
        give_up: Duration::from_secs(3_600),
    };
    Client::new(identity, pace, timeouts)
}

fn fast(burst: u64, readings: u64) -> Client {
    client(Pace::new(Duration::ZERO, Duration::ZERO, burst, Length::Readings(readings)), BodyEncoding::Postcard)
}

fn welcome(settled: u64, window: u32) -> GatewayMessage {
    GatewayMessage::Welcome(Welcome {
        settled,
        time: 0,
        time_trusted: true,
        heartbeat_interval: 30,
        max_frame: 65_536,
        window,
        session: None,
    })
}

fn ack(seq: u64) -> GatewayMessage {
    GatewayMessage::Ack(Ack { seq })
}

/// Decodes the messages in `bytes`, and clears it.
fn said(bytes: &mut Vec<u8>) -> Vec<DeviceMessage> {
    let mut messages = Vec::new();
    let limits = Limits { max_body: LARGEST_READING as usize, require_checksum: true };
    let mut decoder = Decoder::new(limits, Recovery::Fail);
    let decoded = decoder.push(bytes, &mut |event| {
        if let Event::Frame(frame) = event {
            messages.push(decode_device(&frame).expect("a valid message"));
        }
        ControlFlow::Continue(())
    });
    assert_eq!((decoded, decoder.is_partial()), (Ok(()), false), "whole frames only");
    bytes.clear();
    messages
}

fn seqs(bytes: &mut Vec<u8>) -> Vec<u64> {
    said(bytes)
        .iter()
        .map(|message| if let DeviceMessage::Readings(readings) = message { readings.seq } else { 0 })
        .collect()
}

/// A client after Welcome, with nothing left to write.
fn welcomed(mut client: Client, window: u32) -> Client {
    let mut out = Vec::new();
    client.connected(now(0), &mut out);
    client.received(&welcome(0, window), now(0), &mut histogram()).expect("a good Welcome");
    client
}

/// A gateway that receives what the client writes, unless the connection was cut.
#[derive(Debug, Default)]
struct Gateway {
    /// In flight to it.
    wire: Vec<DeviceMessage>,
    /// Each reading's time when it was first seen on the wire, from seq 1.
    times: Vec<i64>,
    /// Last seq that arrived, and last that is settled.
    arrived: u64,
    settled: u64,
    readings_on_wire: u64,
    done: bool,
}

#[derive(Debug, Clone)]
enum Op {
    Wait(u64),
    Poll,
    Deliver(usize),
    Settle(u64),
    /// Acknowledges everything that is settled.
    Ack,
    Cut,
    /// Connects if it is offline, with this window.
    Connect(u32),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u64..40).prop_map(Op::Wait),
        6 => Just(Op::Poll),
        3 => (0usize..40).prop_map(Op::Deliver),
        3 => (0u64..40).prop_map(Op::Settle),
        3 => Just(Op::Ack),
        1 => Just(Op::Cut),
        2 => (1u32..24).prop_map(Op::Connect),
    ]
}

struct Run {
    client: Client,
    gateway: Gateway,
    latencies: Histogram<u64>,
    window: u64,
    /// The last seq on the wire of this connection.
    last: Option<u64>,
    /// The last seq that the client knows to be settled.
    told: u64,
    online: bool,
    ms: u64,
}

impl Run {
    fn new(client: Client) -> Run {
        let gateway = Gateway::default();
        Run { client, gateway, latencies: histogram(), window: 0, last: None, told: 0, online: false, ms: 0 }
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match op {
            Op::Wait(ms) => self.ms += ms,
            Op::Poll if self.online => return self.poll(),
            Op::Deliver(count) => {
                let count = self.gateway.wire.len().min(*count);
                for message in self.gateway.wire.drain(..count) {
                    if let DeviceMessage::Readings(readings) = message {
                        self.gateway.arrived = self.gateway.arrived.max(readings.seq);
                    }
                }
            }
            Op::Settle(count) => self.gateway.settled = (self.gateway.settled + count).min(self.gateway.arrived),
            Op::Ack if self.online => {
                self.told = self.told.max(self.gateway.settled);
                self.receive(&ack(self.gateway.settled))?;
            }
            Op::Cut if self.online => {
                self.online = false;
                self.gateway.wire.clear();
                self.client.disconnected();
            }
            Op::Connect(window) if !self.online => {
                let mut out = Vec::new();
                self.client.connected(now(self.ms), &mut out);
                match said(&mut out).as_slice() {
                    [DeviceMessage::Hello(hello)] => prop_assert_eq!(hello.session, SESSION),
                    other => prop_assert!(false, "{:?} instead of Hello", other),
                }
                self.online = true;
                self.window = u64::from(*window);
                self.last = None;
                // What was settled on disk; what was settled by delivery may be unknown after a crash.
                self.told = self.told.max(self.gateway.settled);
                self.receive(&welcome(self.gateway.settled, *window))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn receive(&mut self, message: &GatewayMessage) -> Result<(), TestCaseError> {
        let received = self.client.received(message, now(self.ms), &mut self.latencies);
        prop_assert_eq!(received, Ok(()));
        prop_assert_eq!(self.client.acked(), self.told);
        prop_assert_eq!(self.latencies.len(), self.told, "each reading is counted once");
        Ok(())
    }

    fn poll(&mut self) -> Result<(), TestCaseError> {
        let mut out = Vec::new();
        match self.client.poll(now(self.ms), &mut out) {
            Step::Until(time) => prop_assert!(time > now(self.ms).monotonic, "{:?} is no time to come", time),
            Step::Finished => self.gateway.done = true,
            // Nothing is acknowledged in these runs unless an op says so.
            Step::Silent(_) => return self.apply(&Op::Cut),
            Step::GaveUp => prop_assert!(false, "it gave up"),
        }
        for message in said(&mut out) {
            if let DeviceMessage::Readings(readings) = &message {
                self.check(readings)?;
            }
            self.gateway.wire.push(message);
        }
        Ok(())
    }

    fn check(&mut self, readings: &Readings) -> Result<(), TestCaseError> {
        self.gateway.readings_on_wire += 1;
        prop_assert_eq!(readings.seq, self.last.unwrap_or(self.told).max(self.told) + 1, "no gap, no repetition");
        self.last = Some(readings.seq);
        prop_assert!(readings.seq - self.told <= self.window, "more than the window is outstanding");
        let [only] = readings.samples.as_slice() else { return Err(TestCaseError::fail("not one sample")) };
        prop_assert_eq!(&only.values, &sample(SEED, NUMBER, readings.seq));
        let times = &mut self.gateway.times;
        match usize::try_from(readings.seq - 1).ok().and_then(|i| times.get(i)) {
            Some(time) => prop_assert_eq!(only.time, *time, "resent with another time"),
            None => {
                prop_assert_eq!(readings.seq, times.len() as u64 + 1);
                prop_assert!(times.last().is_none_or(|last| *last < only.time), "its clock ran back");
                times.push(only.time);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Despite cuts and delays, each reading is sent in order, within the window, from the first
    /// that is not settled, and all are counted once.
    #[test]
    fn every_reading_is_sent_until_it_is_settled(
        ops in proptest::collection::vec(any_op(), 0..300),
        burst in 1u64..9,
        readings in 0u64..60,
        interval_ms in 0u64..5,
    ) {
        let pace = Pace::new(Duration::ZERO, Duration::from_millis(interval_ms), burst, Length::Readings(readings));
        let mut run = Run::new(client(pace, BodyEncoding::Postcard));
        for op in &ops {
            run.apply(op)?;
            if run.gateway.done {
                break;
            }
        }
        // From here on without faults.
        let ending = [Op::Connect(8), Op::Poll, Op::Deliver(100), Op::Settle(100), Op::Ack, Op::Wait(5)];
        for _ in 0..200 {
            for op in &ending {
                if !run.gateway.done {
                    run.apply(op)?;
                }
            }
        }
        prop_assert!(run.gateway.done, "it did not finish");
        prop_assert_eq!((run.client.sent(), run.client.acked()), (readings, readings));
        prop_assert_eq!(run.client.resent(), run.gateway.readings_on_wire - readings);
        prop_assert!(run.client.is_finished(now(run.ms).monotonic));
    }
}

#[test]
fn a_burst_goes_out_together_and_the_next_waits_for_room_for_all_of_it() {
    let mut client = welcomed(fast(4, 100), 6);
    let mut out = Vec::new();
    client.poll(now(0), &mut out);
    assert_eq!(seqs(&mut out), [1, 2, 3, 4]);
    client.poll(now(0), &mut out);
    assert!(out.is_empty());
    client.received(&ack(2), now(1), &mut histogram()).expect("a good Ack");
    client.poll(now(1), &mut out);
    assert_eq!(seqs(&mut out), [5, 6, 7, 8]);
}

#[test]
fn resending_begins_right_after_what_the_welcome_says_is_settled() {
    let mut client = welcomed(fast(5, 5), 10);
    let mut out = Vec::new();
    client.poll(now(0), &mut out);
    client.disconnected();
    out.clear();
    client.connected(now(5), &mut out);
    out.clear();
    let mut latencies = histogram();
    client.received(&welcome(3, 10), now(7), &mut latencies).expect("a good Welcome");
    client.poll(now(7), &mut out);
    assert_eq!(seqs(&mut out), [4, 5]);
    assert_eq!((client.sent(), client.acked(), client.resent()), (5, 3, 2));
    assert_eq!((latencies.len(), latencies.max() / 1_000), (3, 7));
}

#[test]
fn what_was_acknowledged_is_not_sent_again_to_a_gateway_that_forgot_it() {
    let mut client = welcomed(fast(5, 5), 10);
    let mut out = Vec::new();
    client.poll(now(0), &mut out);
    client.received(&ack(4), now(1), &mut histogram()).expect("a good Ack");
    client.disconnected();
    client.connected(now(2), &mut out);
    out.clear();
    client.received(&welcome(0, 10), now(2), &mut histogram()).expect("a good Welcome");
    client.poll(now(2), &mut out);
    assert_eq!(seqs(&mut out), [5]);
}

#[test]
fn a_timed_reading_is_taken_when_it_is_due_and_not_before() {
    let pace = Pace::new(Duration::from_millis(10), Duration::from_millis(10), 1, Length::Readings(9));
    let mut client = welcomed(client(pace, BodyEncoding::Postcard), 10);
    let mut out = Vec::new();
    assert_eq!(client.poll(now(0), &mut out), Step::Until(Duration::from_millis(10)));
    assert!(out.is_empty());
    client.poll(now(11), &mut out);
    assert_eq!(seqs(&mut out), [1]);
    assert_eq!(client.poll(now(11), &mut out), Step::Until(Duration::from_millis(20)));
}

#[test]
fn readings_that_fell_due_while_disconnected_count_from_when_they_were_due() {
    let pace = Pace::new(Duration::ZERO, Duration::from_millis(10), 1, Length::Readings(3));
    let mut client = welcomed(client(pace, BodyEncoding::Postcard), 10);
    let mut out = Vec::new();
    client.poll(now(0), &mut out);
    client.disconnected();
    client.connected(now(100), &mut out);
    out.clear();
    let mut latencies = histogram();
    client.received(&welcome(1, 10), now(100), &mut latencies).expect("a good Welcome");
    client.poll(now(100), &mut out);
    client.poll(now(100), &mut out);
    client.received(&ack(3), now(100), &mut latencies).expect("a good Ack");
    let ms: Vec<u64> = latencies.iter_recorded().map(|v| (v.value_iterated_to() + 500) / 1_000).collect();
    assert_eq!(ms, [80, 90, 100]);
}

#[test]
fn an_idle_device_sends_heartbeats_and_stays_as_long_as_it_shall() {
    let pace = Pace::new(Duration::ZERO, Duration::from_secs(100), 1, Length::For(Duration::from_secs(60)));
    let mut client = welcomed(client(pace, BodyEncoding::Json), 10);
    let mut out = Vec::new();
    client.poll(now(0), &mut out);
    assert_eq!(seqs(&mut out), [1]);
    client.received(&ack(1), now(5), &mut histogram()).expect("a good Ack");
    assert_eq!(client.poll(now(5), &mut out), Step::Until(Duration::from_secs(27)));
    client.poll(now(27_000), &mut out);
    assert!(matches!(said(&mut out).as_slice(), [DeviceMessage::Heartbeat(_)]));
    let reply = GatewayMessage::HeartbeatReply(HeartbeatReply { time: 0, time_trusted: true });
    assert_eq!(client.received(&reply, now(27_001), &mut histogram()), Ok(()));
    client.poll(now(54_000), &mut out);
    out.clear();
    assert_eq!(client.poll(now(54_000), &mut out), Step::Until(Duration::from_secs(60)));
    assert_eq!(client.poll(now(60_000), &mut out), Step::Finished);
    assert!(matches!(said(&mut out).as_slice(), [DeviceMessage::Goodbye(bye)] if bye.reason == Reason::Normal));
}

#[test]
fn a_gateway_that_owes_a_message_for_too_long_is_left() {
    let mut client = fast(1, 1);
    let mut out = Vec::new();
    client.connected(now(0), &mut out);
    assert_eq!(client.poll(now(9_999), &mut out), Step::Until(Duration::from_secs(10)));
    assert_eq!(client.poll(now(10_000), &mut out), Step::Silent("no Welcome came"));

    let mut client = welcomed(fast(1, 1), 1);
    client.poll(now(50_000), &mut out);
    assert_eq!(client.poll(now(79_999), &mut out), Step::Until(Duration::from_secs(80)));
    assert_eq!(client.poll(now(80_000), &mut out), Step::Silent("no Ack came"));
    assert_eq!(client.poll(now(4_000_000), &mut out), Step::GaveUp);
}

#[test]
fn what_the_gateway_may_not_say_ends_the_connection() {
    let refuse = |client: &mut Client, message: &GatewayMessage| {
        client.received(message, now(0), &mut histogram()).expect_err("refused")
    };
    let mut client = fast(1, 1);
    client.connected(now(0), &mut Vec::new());
    assert!(refuse(&mut client, &GatewayMessage::Challenge(Challenge { nonce: vec![1] })).contains("asks for a key"));
    assert_eq!(client.received(&ack(1), now(0), &mut histogram()), Ok(()), "left over on the line");
    assert!(refuse(&mut client, &welcome(1, 1)).contains("only 0 were sent"));
    let tiny = GatewayMessage::Welcome(Welcome {
        settled: 0,
        time: 0,
        time_trusted: false,
        heartbeat_interval: 0,
        max_frame: 10,
        window: 0,
        session: None,
    });
    assert!(refuse(&mut client, &tiny).contains("too small"));
    let mut client = welcomed(fast(1, 1), 1);
    assert!(refuse(&mut client, &ack(1)).contains("only 0 were sent"));
    assert!(refuse(&mut client, &welcome(0, 1)).contains("while Welcomed"));
    let goodbye = GatewayMessage::Goodbye(Goodbye { reason: Reason::Stopping, text: "restarting".into() });
    assert!(refuse(&mut client, &goodbye).ends_with("goodbye (Stopping): restarting"));
}

#[test]
fn the_first_frame_is_small_and_json_readings_name_their_channels() {
    for encoding in [BodyEncoding::Json, BodyEncoding::Postcard, BodyEncoding::Protobuf] {
        let identity = Identity { id: "x".repeat(64), number: 1, session: u64::MAX, seed: 0, encoding, holder: None };
        let pace = Pace::new(Duration::ZERO, Duration::ZERO, 1, Length::Readings(1));
        let timeouts = Timeouts { welcome: Duration::MAX, ack: Duration::MAX, give_up: Duration::MAX };
        let mut out = Vec::new();
        Client::new(identity, pace, timeouts).connected(now(0), &mut out);
        assert!(out.len() <= 256, "{encoding:?}: {}", out.len());
    }
    let pace = Pace::new(Duration::ZERO, Duration::ZERO, 1, Length::Readings(1));
    let mut client = welcomed(client(pace, BodyEncoding::Json), 1);
    let mut out = Vec::new();
    client.poll(now(0), &mut out);
    let expected: Vec<_> = channel_names()
        .into_iter()
        .zip(sample(SEED, NUMBER, 1))
        .map(|(name, (_, value))| (ChannelRef::Name(name.into()), value))
        .collect();
    match said(&mut out).as_slice() {
        [DeviceMessage::Readings(readings)] => assert_eq!(readings.samples[0].values, expected),
        other => panic!("{other:?}"),
    }
}
