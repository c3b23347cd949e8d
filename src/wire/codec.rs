//! (under construction by the wire helper)
pub mod bytes {
    pub fn serialize<S: serde::Serializer>(b: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(b)
    }
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        serde::Deserialize::deserialize(d)
    }
}
pub mod values {
    use crate::{model::Value, wire::message::ChannelRef};
    pub fn serialize<S: serde::Serializer>(_: &[(ChannelRef, Value)], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_unit()
    }
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(_: D) -> Result<Vec<(ChannelRef, Value)>, D::Error> {
        unimplemented!()
    }
}
