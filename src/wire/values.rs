//! A sample's values: a list of pairs in postcard; in JSON an object whose keys are channel
//! names, or `#` and a channel's index.

use crate::model::Value;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A channel by its declared index or by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelRef {
    Index(u16),
    Name(String),
}

type Values = Vec<(ChannelRef, Value)>;

pub fn serialize<S: Serializer>(values: &[(ChannelRef, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return values.serialize(serializer);
    }
    let mut map = serializer.serialize_map(Some(values.len()))?;
    for (channel, value) in values {
        match channel {
            ChannelRef::Index(index) => map.serialize_entry(&format_args!("#{index}"), value)?,
            ChannelRef::Name(name) => map.serialize_entry(name, value)?,
        }
    }
    map.end()
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Values, D::Error> {
    if !deserializer.is_human_readable() {
        return Values::deserialize(deserializer);
    }
    deserializer.deserialize_map(Object)
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of channels and their values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
        let mut values = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let channel = match key.strip_prefix('#') {
                Some(index) => ChannelRef::Index(index.parse().map_err(|_| {
                    de::Error::custom(format!("{key:?} is no channel index: '#' and a number up to {}", u16::MAX))
                })?),
                None => ChannelRef::Name(key),
            };
            values.push((channel, map.next_value()?));
        }
        Ok(values)
    }
}
