//! How values are written that serde has no form for.

use super::HistoryWithin;
use serde::de::{SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

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

/// One text, or a list of texts.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMore;

    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string, or a list of strings")
        }

        fn visit_str<E>(self, one: &str) -> Result<Vec<String>, E> {
            Ok(vec![one.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, more: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(more))
        }
    }

    d.deserialize_any(OneOrMore)
}
