//! The readable encoding:
//! `{"gateway":"gw-01","epoch":1,"readings":[{"seq":1042,"device":"pump-7",
//! "origin":[7731,15],"time":"2026-11-23T01:02:03.456000Z","values":{"temperature":21.5}}]}`,
//! with `"replay":true` in a reading that is sent late, and `"quality"` behind a time
//! that is not simply when it was taken.

use super::{DecodeError, Delivered, Delivery, Entry, Quality, Writer};
use crate::model::{BootId, DeviceId, Epoch, GatewayId, InvalidTime, Seq, Timestamp, Value};
use crate::sink::Identity;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write;

/// A JSON batch being written.
#[derive(Debug)]
pub struct Json {
    out: Vec<u8>,
    /// Length before the last reading.
    before: usize,
    empty: bool,
    time: Times,
}

/// Writes times as [`Timestamp`]'s `Display` does; neighbours mostly share all but
/// the fraction of the second.
#[derive(Debug, Default)]
struct Times {
    second: Option<i64>,
    /// That second up to the point.
    text: String,
}

const MICROS: i64 = 1_000_000;
/// Length of `2026-11-23T01:02:03.`
const TO_THE_POINT: usize = 20;

impl Times {
    fn put(&mut self, out: &mut Vec<u8>, time: Timestamp) {
        let second = time.0.div_euclid(MICROS);
        if self.second != Some(second) {
            self.text = time.to_string();
            self.second = Some(second);
            // Times without a calendar date are written whole each time.
            match self.text.ends_with('Z') {
                true => self.text.truncate(TO_THE_POINT),
                false => self.second = None,
            }
        }
        out.extend_from_slice(self.text.as_bytes());
        if self.second.is_some() {
            let _ = write!(out, "{:06}Z", time.0.rem_euclid(MICROS));
        }
    }
}

const END: &[u8] = b"]}";

impl Json {
    pub fn new(identity: &Identity) -> Json {
        let Identity { gateway, epoch } = identity;
        let out = format!("{{\"gateway\":\"{gateway}\",\"epoch\":{epoch},\"readings\":[").into_bytes();
        Json { before: out.len(), out, empty: true, time: Times::default() }
    }
}

/// Writing to memory cannot fail, and neither can what is written here.
fn put(out: &mut Vec<u8>, value: impl Serialize) {
    let _ = serde_json::to_writer(out, &value);
}

impl Writer for Json {
    fn size(&self) -> usize {
        self.out.len() + END.len()
    }

    fn add(&mut self, entry: &Entry<'_>) {
        self.before = self.out.len();
        let out = &mut self.out;
        if !self.empty {
            out.push(b',');
        }
        self.empty = false;
        out.extend_from_slice(b"{\"seq\":");
        put(out, entry.seq);
        out.extend_from_slice(b",\"device\":\"");
        // Names of devices need no escapes.
        out.extend_from_slice(entry.device.as_str().as_bytes());
        out.push(b'"');
        if let Some(origin) = entry.origin {
            out.extend_from_slice(b",\"origin\":");
            put(out, (origin.session, origin.seq));
        }
        out.extend_from_slice(b",\"time\":\"");
        self.time.put(out, entry.reading.time);
        out.push(b'"');
        match Quality::of(entry.basis, entry.reading.time) {
            Quality::Good => {}
            quality => {
                // Its fields without the braces around them.
                let from = out.len();
                put(out, quality);
                out[from] = b','; // it was the brace
                out.truncate(out.len() - 1);
            }
        }
        if entry.replay {
            out.extend_from_slice(b",\"replay\":true");
        }
        out.extend_from_slice(b",\"values\":{");
        for (i, (name, value)) in entry.reading.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            put(out, name);
            out.push(b':');
            put(out, value);
        }
        out.extend_from_slice(b"}}");
    }

    fn undo(&mut self) {
        self.out.truncate(self.before);
        self.empty = self.out.ends_with(b"[");
    }

    fn finish(&mut self) -> Vec<u8> {
        self.out.extend_from_slice(END);
        std::mem::take(&mut self.out)
    }
}

/// Serializes values as the object that they are in payloads.
pub(super) fn values<S: Serializer>(values: &[(String, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(values.len()))?;
    for (name, value) in values {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

#[derive(Deserialize)]
struct Payload {
    gateway: GatewayId,
    epoch: Epoch,
    readings: Vec<PayloadReading>,
}

#[derive(Deserialize)]
struct PayloadReading {
    seq: Seq,
    device: DeviceId,
    #[serde(default)]
    origin: Option<(u64, u64)>,
    time: String,
    #[serde(default)]
    quality: Option<String>,
    #[serde(default)]
    boot: Option<BootId>,
    #[serde(default)]
    uptime: Option<f64>,
    #[serde(default)]
    received: Option<String>,
    #[serde(default)]
    replay: bool,
    #[serde(deserialize_with = "read_values")]
    values: Vec<(String, Value)>,
}

fn read_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Value)>, D::Error> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Vec<(String, Value)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of channels and their values")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut values = Vec::new();
            while let Some(entry) = map.next_entry()? {
                values.push(entry);
            }
            Ok(values)
        }
    }
    deserializer.deserialize_map(Object)
}

/// Decodes a JSON batch.
///
/// # Errors
/// If it is none.
pub fn decode(payload: &[u8]) -> Result<Delivery, DecodeError> {
    let failed = |why: &dyn fmt::Display| DecodeError::Json(why.to_string());
    let Payload { gateway, epoch, readings } = serde_json::from_slice(payload).map_err(|why| failed(&why))?;
    let readings = readings
        .into_iter()
        .map(|reading| {
            let PayloadReading { seq, device, origin, time, quality, boot, uptime, received, replay, values } = reading;
            let parse = |time: String| time.parse().map_err(|why: InvalidTime| failed(&why));
            let time = parse(time)?;
            let received = received.map(parse).transpose()?;
            let quality =
                Quality::read(quality.as_deref(), time, boot, uptime, received).map_err(|why| failed(&why))?;
            Ok(Delivered { seq, device, origin, time, quality, replay, values })
        })
        .collect::<Result<_, _>>()?;
    Ok(Delivery { gateway, epoch, readings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Basis, ChannelName, Origin, Reading};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn times_are_written_as_everywhere_else(
            times in proptest::collection::vec(prop_oneof![any::<i64>(), -2_000_000..2_000_000i64], 1..20)
        ) {
            let mut writer = Times::default();
            for time in times {
                let mut out = Vec::new();
                writer.put(&mut out, Timestamp(time));
                prop_assert_eq!(String::from_utf8_lossy(&out), Timestamp(time).to_string());
            }
        }
    }

    #[test]
    fn the_documented_example_is_what_is_written() {
        let identity = Identity { gateway: GatewayId::new("gw-01").expect("a valid name"), epoch: Epoch(1) };
        let channels = [ChannelName::new("temperature").expect("a valid name")];
        let time = Timestamp(1_795_395_723_456_000);
        let reading = Reading::new(15, time, channels.into(), Box::new([Value::Float(21.5)])).expect("one each");
        let device = DeviceId::new("pump-7").expect("a valid name");
        let origin = Some(Origin { session: 7731, seq: 15 });
        let mut json = Json::new(&identity);
        let basis = Basis::Wall;
        json.add(&Entry { seq: Seq(1042), device: &device, origin, replay: false, basis, reading: &reading });
        let size = json.size();
        json.add(&Entry { seq: Seq(1043), device: &device, origin: None, replay: true, basis, reading: &reading });
        json.undo();
        assert_eq!(json.size(), size);
        let expected = concat!(
            r#"{"gateway":"gw-01","epoch":1,"readings":[{"seq":1042,"device":"pump-7","origin":[7731,15],"#,
            r#""time":"2026-11-23T01:02:03.456000Z","values":{"temperature":21.5}}]}"#
        );
        assert_eq!(String::from_utf8_lossy(&json.finish()), expected);
    }

    #[test]
    fn what_is_the_matter_with_a_time_stands_behind_it() {
        let written = |basis, time| {
            let identity = Identity { gateway: GatewayId::new("gw-01").expect("a valid name"), epoch: Epoch(1) };
            let reading = Reading::new(1, Timestamp(time), [].into(), Box::new([])).expect("none each");
            let device = DeviceId::new("d").expect("a valid name");
            let mut json = Json::new(&identity);
            json.add(&Entry { seq: Seq(1), device: &device, origin: None, replay: true, basis, reading: &reading });
            let text = String::from_utf8(json.finish()).expect("JSON is UTF-8");
            let delivery = decode(text.as_bytes()).expect("what was just written");
            assert_eq!(delivery.readings[0].quality, Quality::of(basis, Timestamp(time)));
            // `subscribe --json` says the same in its own order.
            let shown = serde_json::to_value(&delivery.readings[0]).expect("a reading");
            assert_eq!(shown, serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["readings"][0]);
            text[text.find("\"time\"").expect("a time")..].replace(",\"replay\":true,\"values\":{}}]}", "")
        };
        let time = 1_795_395_723_456_000;
        assert_eq!(written(Basis::Wall, time), r#""time":"2026-11-23T01:02:03.456000Z""#);
        assert_eq!(
            written(Basis::Resynchronised, time),
            r#""time":"2026-11-23T01:02:03.456000Z","quality":"resynchronised""#
        );
        assert_eq!(
            written(Basis::Boot(BootId([0xb0; 16])), 754_123_456),
            r#""time":"1970-01-01T00:12:34.123456Z","quality":"unsynchronised","boot":"b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0","uptime":754.123456"#
        );
        assert_eq!(
            written(Basis::DeviceClock { received: Timestamp(time) }, 0),
            r#""time":"1970-01-01T00:00:00.000000Z","quality":"device-clock","received":"2026-11-23T01:02:03.456000Z""#
        );
        assert_eq!(
            written(Basis::DeviceClockSince { boot: BootId([0xb0; 16]), received: Timestamp(754_123_456) }, 0),
            r#""time":"1970-01-01T00:00:00.000000Z","quality":"device-clock","boot":"b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0","uptime":754.123456"#
        );
    }
}
