//! How values are written that serde has no form for.

use super::HistoryWithin;
use serde::{Deserialize, Serialize};

/// A time as text, as it is everywhere else.
pub mod timestamp {
    use crate::model::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(time)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for HistoryWithin {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            HistoryWithin::Off => s.serialize_str("off"),
            HistoryWithin::Within(duration) => humantime_serde::serialize(duration, s),
        }
    }
}

impl<'de> Deserialize<'de> for HistoryWithin {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "off" {
            return Ok(HistoryWithin::Off);
        }
        match humantime::parse_duration(&text) {
            Ok(duration) => Ok(HistoryWithin::Within(duration)),
            Err(why) => Err(serde::de::Error::custom(format!("{why}; give a duration such as \"5m\", or \"off\""))),
        }
    }
}
