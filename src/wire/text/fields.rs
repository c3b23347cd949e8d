//! Fields of text messages, and how they are encoded.

use crate::model::{Timestamp, Value};
use crate::wire::message::{ChannelDeclaration, ChannelRef, DeviceClock, Reason, ResultState};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;

/// Characters of a device's text that an error repeats.
const REPEATED: usize = 64;
/// Most characters of an error.
const LONGEST: usize = 240;

#[derive(Serialize, Deserialize)]
pub struct Hello {
    #[serde(with = "session")]
    pub session: u64,
    #[serde(default = "wall")]
    pub clock: DeviceClock,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<ChannelDeclaration>,
    #[serde(default)]
    pub first: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_frame: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn wall() -> DeviceClock {
    DeviceClock::Wall
}

#[derive(Serialize, Deserialize)]
pub struct Authenticate {
    pub key: String,
    #[serde(with = "crate::wire::codec::bytes")]
    pub proof: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub struct Readings {
    pub seq: u64,
    pub samples: Vec<Sample>,
}

#[derive(Serialize, Deserialize)]
pub struct Sample {
    pub time: Time,
    #[serde(with = "crate::wire::values")]
    pub values: Vec<(ChannelRef, Value)>,
}

#[derive(Serialize, Deserialize)]
pub struct Result {
    pub state: ResultState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
}

#[derive(Serialize, Deserialize)]
pub struct SubDevice {
    pub online: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct Goodbye {
    pub reason: Reason,
    #[serde(default)]
    pub text: String,
}

#[derive(Deserialize)]
pub struct Challenge {
    #[serde(with = "crate::wire::codec::bytes")]
    pub nonce: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub struct Welcome {
    pub settled: u64,
    pub time_trusted: bool,
    pub heartbeat_interval: u32,
    pub max_frame: u32,
    pub window: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
}

/// A session id that may be missing.
#[derive(Serialize, Deserialize)]
pub struct SessionId(#[serde(with = "session")] pub u64);

#[derive(Serialize, Deserialize)]
pub struct HeartbeatReply {
    pub time_trusted: bool,
}

#[derive(Serialize, Deserialize)]
pub struct Command {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

impl Command {
    pub fn new(name: &str, payload: Option<&str>, expires_in: Option<u64>) -> Command {
        Command { name: name.to_owned(), payload: payload.map(embedded), expires_in }
    }
}

/// An empty payload.
#[derive(Serialize)]
pub struct Nothing {}

/// JSON text as a JSON value; other text as a string.
pub fn embedded(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).or_else(|_| serde_json::value::to_raw_value(text)).unwrap_or_default()
}

/// The JSON text of a value.
pub fn text(value: Box<RawValue>) -> String {
    String::from(Box::<str>::from(value))
}

/// Decodes an object, or describes the fault. Lists of fields in order are refused, although
/// serde accepts them.
pub fn object<'a, T: Deserialize<'a>>(text: &'a str) -> std::result::Result<T, String> {
    match text.trim_start_matches([' ', '\t', '\r', '\n']).chars().next() {
        Some('{') => serde_json::from_str(text).map_err(|why| shortened(&why.to_string(), LONGEST)),
        Some(other) => Err(format!("an object begins with '{{', not with {other:?}")),
        None => Err("it is empty".to_owned()),
    }
}

/// The beginning of a text, for an error.
pub fn cut(text: &str) -> String {
    shortened(text, REPEATED)
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}...", text.split_at(at).0),
        None => text.to_owned(),
    }
}

/// A time as it is encoded. Wall clocks use text, so that milliseconds are not taken for
/// microseconds; clocks that count from a boot use whole milliseconds.
#[derive(Debug, Clone, Copy)]
pub enum Time {
    Text(Timestamp),
    Number(i64),
}

impl Time {
    pub fn of(time: i64, clock: Option<DeviceClock>) -> Time {
        match clock {
            Some(DeviceClock::Wall) => Time::Text(Timestamp(time)),
            _ => Time::Number(time),
        }
    }

    /// In the unit of `clock`.
    pub fn by(self, clock: Option<DeviceClock>) -> std::result::Result<i64, &'static str> {
        match (self, clock) {
            (Time::Text(_), Some(DeviceClock::SinceBoot)) => {
                Err("is text, but the device's clock is since-boot: write whole milliseconds since its boot")
            }
            (Time::Number(_), Some(DeviceClock::Wall)) => {
                Err("is a number, but times of a wall clock are text like \"2026-11-23T01:02:03.456Z\"")
            }
            (Time::Text(Timestamp(time)) | Time::Number(time), _) => Ok(time),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Time::Text(time) => serializer.collect_str(time),
            Time::Number(time) => serializer.serialize_i64(*time),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Time, D::Error> {
        struct TimeVisitor;
        impl Visitor<'_> for TimeVisitor {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time: text like \"2026-11-23T01:02:03.456Z\", or whole milliseconds since a boot")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Time, E> {
                text.parse().map(Time::Text).map_err(|_| E::invalid_value(de::Unexpected::Str(&cut(text)), &self))
            }

            fn visit_i64<E>(self, number: i64) -> std::result::Result<Time, E> {
                Ok(Time::Number(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> std::result::Result<Time, E> {
                let range = |_| E::invalid_value(de::Unexpected::Unsigned(number), &self);
                i64::try_from(number).map(Time::Number).map_err(range)
            }
        }
        deserializer.deserialize_any(TimeVisitor)
    }
}

/// Session ids. As numbers only if a double represents them exactly: JavaScript silently
/// rounds others.
mod session {
    use super::{Deserializer, Serializer, Visitor, cut, de, fmt};

    const LARGEST: u64 = (1 << 53) - 1;

    pub fn serialize<S: Serializer>(session: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        match session {
            0..=LARGEST => serializer.serialize_u64(*session),
            _ => serializer.collect_str(session),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        struct SessionVisitor;
        impl Visitor<'_> for SessionVisitor {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a session id: a whole number below 2^53, or any up to 2^64 - 1 as text")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
                match number {
                    0..=LARGEST => Ok(number),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Str(&cut(text)), &self);
                text.parse().map_err(wrong)
            }
        }
        deserializer.deserialize_any(SessionVisitor)
    }
}
