//! How values are written that serde has no form for.

use super::HistoryWithin;
use serde::{Deserialize, Serialize};

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
            Err(_) => Err(serde::de::Error::custom(format!("{text:?} is neither a duration nor \"off\""))),
        }
    }
}
