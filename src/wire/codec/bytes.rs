//! Byte strings: base64 in JSON, plain in postcard.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return serializer.serialize_str(&STANDARD.encode(bytes));
    }
    bytes.serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    if deserializer.is_human_readable() {
        return STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom);
    }
    Vec::deserialize(deserializer)
}
