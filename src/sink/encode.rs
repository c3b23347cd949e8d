//! Batches of readings as payloads, and back: what the uplink sends and what a
//! consumer makes of it. `docs/uplink.md` describes both encodings.

pub mod json;
pub mod postcard;
mod quality;
pub mod text;

pub use quality::Quality;

use super::{Budget, Identity};
use crate::clock::Now;
use crate::config::Encoding;
use crate::model::{
    Basis, Batch, BootId, DeviceId, Epoch, Epochs, GatewayId, Origin, Reading, Seq, SequencedBatch, Timestamp, Value,
};
use crate::store::{LogEvent, with_epoch};
use serde::Serialize;
use serde_json::{Map, json};
use std::time::Duration;

/// A payload being written.
pub trait Writer {
    /// The bytes it would have now.
    fn size(&self) -> usize;

    /// Appends a reading.
    fn add(&mut self, entry: &Entry<'_>);

    /// Takes the reading appended last away again.
    fn undo(&mut self);

    /// The payload; what is written afterwards is lost.
    fn finish(&mut self) -> Vec<u8>;
}

/// A reading with all that is said about it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub seq: Seq,
    pub device: &'a DeviceId,
    pub origin: Option<Origin>,
    /// It is sent late.
    pub replay: bool,
    /// What its time is.
    pub basis: Basis,
    pub reading: &'a Reading,
}

/// Says which readings are sent late: those taken more than `after` ago, by a clock
/// that can be believed or by the machine's uptime.
#[derive(Debug, Clone, Copy)]
pub struct Replay {
    before: Option<Timestamp>,
    boot: BootId,
    /// In microseconds since that boot.
    before_uptime: i64,
}

impl Replay {
    /// As it is `now` in this boot of the machine.
    pub fn new(after: Duration, now: Now, boot: BootId) -> Replay {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Replay {
            before: now.trusted.then(|| Timestamp(now.wall.0.saturating_sub(micros(after)))),
            boot,
            before_uptime: micros(now.monotonic).saturating_sub(micros(after)),
        }
    }

    fn is_late(self, basis: Basis, reading: &Reading) -> bool {
        let by_wall = |time: Timestamp| self.before.is_some_and(|before| time < before);
        match basis {
            Basis::Wall | Basis::Resynchronised => by_wall(reading.time),
            Basis::DeviceClock { received } => by_wall(received),
            // What an earlier boot left is late by all that lies between.
            Basis::Boot(boot) => boot != self.boot || reading.time.0 < self.before_uptime,
            Basis::DeviceClockSince { boot, received } => boot != self.boot || received.0 < self.before_uptime,
        }
    }
}

/// The readings of `chunk` after `after`.
pub fn entries(chunk: &[SequencedBatch], after: Seq, replay: Replay) -> impl Iterator<Item = Entry<'_>> {
    chunk.iter().flat_map(move |numbered| {
        let device = &numbered.batch.device;
        let basis = numbered.batch.basis;
        numbered.after(after).map(move |(seq, origin, reading)| Entry {
            seq,
            device,
            origin,
            replay: replay.is_late(basis, reading),
            basis,
            reading,
        })
    })
}

/// Of `entries`, those from the first one on that are of its epoch, with the identity under
/// which they go: a payload has one epoch.
pub fn of_one_epoch<'a>(
    identity: &Identity,
    epochs: &Epochs,
    entries: impl Iterator<Item = Entry<'a>>,
) -> (Identity, impl Iterator<Item = Entry<'a>>) {
    let mut entries = entries.peekable();
    let first = entries.peek().map_or(Seq(u64::MAX), |entry| entry.seq);
    let (epoch, last) = epochs.of(first);
    (Identity { epoch, ..identity.clone() }, entries.take_while(move |entry| entry.seq <= last))
}

/// The object of an event, of a gateway whose seqs are of these epochs.
pub fn event(event: &LogEvent, gateway: &GatewayId, epochs: &Epochs) -> Map<String, serde_json::Value> {
    let mut body = with_epoch(event.body.clone(), epochs);
    body.insert("gateway".into(), json!(gateway));
    body.insert("time".into(), json!(event.time.to_string()));
    // A command's result has an `id` already, the command's.
    let id = if event.is_command_result() { "event" } else { "id" };
    body.insert(id.into(), json!(event.id));
    body
}

/// What adding a reading to a payload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Fits,
    /// The payload has others already, and is full.
    Full,
    /// Not even alone.
    TooLarge,
}

/// Appends the reading if it fits into a payload that has `count` already.
pub fn add(writer: &mut dyn Writer, count: u64, entry: &Entry<'_>, budget: Budget) -> Fit {
    writer.add(entry);
    let limit = if count == 0 { budget.limit } else { budget.batch };
    if writer.size() <= limit {
        return Fit::Fits;
    }
    writer.undo();
    if count == 0 { Fit::TooLarge } else { Fit::Full }
}

/// A payload as a consumer sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub gateway: GatewayId,
    pub epoch: Epoch,
    pub readings: Vec<Delivered>,
}

/// A reading as a consumer sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Delivered {
    pub seq: Seq,
    pub device: DeviceId,
    /// The device's session and seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<(u64, u64)>,
    #[serde(serialize_with = "quality::time")]
    pub time: Timestamp,
    #[serde(flatten, skip_serializing_if = "Quality::is_good")]
    pub quality: Quality,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replay: bool,
    #[serde(serialize_with = "json::values")]
    pub values: Vec<(String, Value)>,
}

impl Delivered {
    /// The reading with this seq of `batch`, as it is if it is delivered at once.
    pub fn of(seq: Seq, batch: &Batch, origin: Option<Origin>, reading: &Reading) -> Delivered {
        Delivered {
            seq,
            device: batch.device.clone(),
            origin: origin.map(|origin| (origin.session, origin.seq)),
            time: reading.time,
            quality: Quality::of(batch.basis, reading.time),
            replay: false,
            values: reading.iter().map(|(channel, value)| (channel.to_string(), value.clone())).collect(),
        }
    }
}

/// Why a payload cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("an empty payload")]
    Empty,
    #[error("payload format {0} is unknown; this program knows JSON and postcard 1")]
    Format(u8),
    #[error("no valid JSON batch: {0}")]
    Json(String),
    #[error("no valid postcard batch: {0}")]
    Postcard(String),
}

/// Decodes a payload of either encoding: JSON begins with `{`, postcard with its
/// format's number.
///
/// # Errors
/// If it is neither.
pub fn decode(payload: &[u8]) -> Result<Delivery, DecodeError> {
    match payload.first() {
        None => Err(DecodeError::Empty),
        Some(b'{') => json::decode(payload),
        Some(&postcard::FORMAT) => postcard::decode(payload),
        Some(other) => Err(DecodeError::Format(*other)),
    }
}

/// A whole payload of as many readings as fit, with the last one's seq and their
/// number.
///
/// # Errors
/// [`Fit::TooLarge`] with the seq of the first reading if it does not fit alone;
/// [`Fit::Full`] if there is none.
pub fn payload<'a>(
    writer: &mut dyn Writer,
    entries: impl Iterator<Item = Entry<'a>>,
    budget: Budget,
) -> Result<(Vec<u8>, Seq, u64), (Fit, Seq)> {
    let (mut last, mut count) = (Seq::ZERO, 0);
    for entry in entries {
        match add(writer, count, &entry, budget) {
            Fit::Fits => (last, count) = (entry.seq, count + 1),
            Fit::Full => break,
            Fit::TooLarge => return Err((Fit::TooLarge, entry.seq)),
        }
    }
    if count == 0 { Err((Fit::Full, last)) } else { Ok((writer.finish(), last, count)) }
}

/// An empty payload in the encoding.
pub fn writer(encoding: Encoding, identity: &Identity) -> Box<dyn Writer> {
    match encoding {
        Encoding::Json => Box::new(json::Json::new(identity)),
        Encoding::Postcard => Box::new(postcard::Postcard::new(identity)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChannelName;
    use proptest::prelude::*;
    use std::sync::Arc;

    const NOBODY_KNOWS: Now = Now { wall: Timestamp(0), trusted: false, monotonic: Duration::ZERO };

    fn identity() -> Identity {
        Identity { gateway: GatewayId::new("gw-01").expect("a valid name"), epoch: Epoch(9) }
    }

    #[test]
    fn an_event_says_whose_it_is_and_keeps_the_id_of_a_command() {
        let epochs = Epochs::new(Vec::new(), Epoch(9));
        let event_of = |body: serde_json::Value| {
            let body = body.as_object().expect("an object").clone();
            let logged = LogEvent { id: 3, time: Timestamp(0), body };
            serde_json::Value::from(event(&logged, &identity().gateway, &epochs))
        };
        let time = "1970-01-01T00:00:00.000000Z";
        let expected = json!({ "type": "disk", "gateway": "gw-01", "epoch": 9, "time": time, "id": 3 });
        assert_eq!(event_of(json!({ "type": "disk" })), expected);
        let result = event_of(json!({ "type": "command-result", "id": "c-1" }));
        assert_eq!((&result["id"], &result["event"]), (&json!("c-1"), &json!(3)));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<f64>().prop_map(Value::Float),
            any::<i64>().prop_map(Value::Integer),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,20}".prop_map(|text| Value::Text(text.into())),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::Bytes(bytes.into())),
        ]
    }

    fn any_chunk() -> impl Strategy<Value = Vec<SequencedBatch>> {
        let reading = (any::<u64>(), any::<i64>(), proptest::collection::vec(any_value(), 0..4));
        let basis = prop_oneof![
            4 => Just(Basis::Wall),
            1 => Just(Basis::Resynchronised),
            1 => any::<u8>().prop_map(|boot| Basis::Boot(BootId([boot; 16]))),
            1 => any::<i64>().prop_map(|received| Basis::DeviceClock { received: Timestamp(received) }),
            // Uptimes stand as seconds in JSON, exact for as long as machines run.
            1 => (any::<u8>(), 0i64..1 << 50).prop_map(|(boot, received)| {
                Basis::DeviceClockSince { boot: BootId([boot; 16]), received: Timestamp(received) }
            }),
        ];
        let batch = (0..3u8, proptest::option::of(any::<u64>()), basis, proptest::collection::vec(reading, 1..5));
        proptest::collection::vec(batch, 0..6).prop_map(|batches| {
            let mut next = Seq(1);
            let names = ["a", "temp \"é\"", "c", "d"].map(|name| ChannelName::new(name).expect("a valid name"));
            let mut chunk = Vec::new();
            for (device, session, basis, readings) in batches {
                let readings: Vec<_> = readings
                    .into_iter()
                    .map(|(origin, time, values)| {
                        let channels = names[..values.len()].into();
                        Reading::new(origin, Timestamp(time), channels, values.into()).expect("as many")
                    })
                    .collect();
                let device = DeviceId::new(&format!("hub/{device}")).expect("a valid name");
                let numbered =
                    SequencedBatch { first: next, batch: Arc::new(Batch { device, session, basis, readings }) };
                next = numbered.last().next();
                chunk.push(numbered);
            }
            chunk
        })
    }

    /// Floats as bits: all NaN are one NaN, as JSON has but one.
    fn comparable(readings: &[Delivered]) -> Vec<String> {
        readings.iter().map(|reading| format!("{reading:?}")).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Both encodings give back what was put in, never exceed the budget, and
        /// split into payloads that together miss and repeat nothing.
        #[test]
        fn payloads_hold_every_reading_once_and_keep_to_their_budget(
            chunk in any_chunk(), batch in 64..2000usize, json: bool
        ) {
            let encoding = if json { Encoding::Json } else { Encoding::Postcard };
            let replay = Replay { before: Some(Timestamp(0)), boot: BootId([0; 16]), before_uptime: 0 };
            let expected: Vec<Delivered> = entries(&chunk, Seq::ZERO, replay).map(|entry| Delivered {
                seq: entry.seq,
                device: entry.device.clone(),
                origin: entry.origin.map(|origin| (origin.session, origin.seq)),
                time: entry.reading.time,
                quality: Quality::of(entry.basis, entry.reading.time),
                replay: entry.replay,
                values: entry.reading.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
            }).collect();
            let budget = Budget { batch, limit: 10_000 };
            let (mut got, mut after) = (Vec::new(), Seq::ZERO);
            loop {
                let mut writer = writer(encoding, &identity());
                match payload(&mut *writer, entries(&chunk, after, replay), budget) {
                    Ok((bytes, last, count)) => {
                        prop_assert!(count == 1 || bytes.len() <= batch);
                        let delivery = decode(&bytes).expect("what was just encoded");
                        prop_assert_eq!((delivery.gateway.as_str(), delivery.epoch), ("gw-01", Epoch(9)));
                        prop_assert_eq!(delivery.readings.len() as u64, count);
                        got.extend(delivery.readings);
                        after = last;
                    }
                    Err(nothing) => {
                        prop_assert_eq!(nothing, (Fit::Full, Seq::ZERO));
                        break;
                    }
                }
            }
            prop_assert_eq!(comparable(&got), comparable(&expected));
        }

        #[test]
        fn arbitrary_payloads_do_not_panic(mut payload in proptest::collection::vec(any::<u8>(), 0..200), first in 0..3u8) {
            if let (Some(byte), Some(first)) = (payload.first_mut(), [b'{', postcard::FORMAT].get(usize::from(first))) {
                *byte = *first;
            }
            let _ = decode(&payload);
        }
    }

    #[test]
    fn a_reading_too_large_alone_is_named() {
        let text = Value::Text("x".repeat(500).into());
        let channels = [ChannelName::new("t").expect("a valid name")];
        let reading = Reading::new(1, Timestamp(0), channels.into(), Box::new([text])).expect("one each");
        let device = DeviceId::new("d").expect("a valid name");
        let batch = Batch { device, session: None, basis: Basis::Wall, readings: vec![reading] };
        let chunk = [SequencedBatch { first: Seq(5), batch: Arc::new(batch) }];
        for encoding in [Encoding::Json, Encoding::Postcard] {
            let budget = Budget { batch: 400, limit: 400 };
            let entries = entries(&chunk, Seq::ZERO, Replay::new(Duration::ZERO, NOBODY_KNOWS, BootId::default()));
            let outcome = payload(&mut *writer(encoding, &identity()), entries, budget);
            assert_eq!(outcome, Err((Fit::TooLarge, Seq(5))));
        }
    }

    #[test]
    fn nothing_is_late_by_a_clock_that_cannot_be_believed() {
        let now = |trusted| Now { wall: Timestamp(10_000_000), trusted, monotonic: Duration::from_secs(5) };
        let boot = BootId([1; 16]);
        let reading =
            |time| Reading::new(1, Timestamp(time), Arc::new([]), Box::new([])).expect("both lists are empty");
        let replay = |trusted| Replay::new(Duration::from_secs(2), now(trusted), boot);
        let late = |trusted, basis, time| replay(trusted).is_late(basis, &reading(time));
        for basis in [Basis::Wall, Basis::Resynchronised] {
            assert!(late(true, basis, 7_999_999) && !late(true, basis, 8_000_000));
            assert!(!late(false, basis, 0));
        }
        let received = |received| Basis::DeviceClock { received: Timestamp(received) };
        assert!(late(true, received(7_999_999), i64::MAX) && !late(true, received(8_000_000), 0));
        for trusted in [true, false] {
            assert!(late(trusted, Basis::Boot(boot), 2_999_999) && !late(trusted, Basis::Boot(boot), 3_000_000));
            assert!(late(trusted, Basis::Boot(BootId([2; 16])), 4_000_000), "of an earlier boot");
            let since = |boot, received| Basis::DeviceClockSince { boot, received: Timestamp(received) };
            assert!(late(trusted, since(boot, 2_999_999), i64::MAX) && !late(trusted, since(boot, 3_000_000), 0));
            assert!(late(trusted, since(BootId([2; 16]), 4_000_000), 0), "of an earlier boot");
        }
    }
}
