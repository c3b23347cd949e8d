//! Values in messages and payloads.
//!
//! Binary formats carry the variant's index and the plain value. In JSON a number
//! without fraction and exponent is an integer and any other a float; bytes are
//! `{"base64": "..."}`; floats without a JSON number are `{"float": "NaN"}`, `"inf"` or
//! `"-inf"`. `{"float": 21}` is accepted too: not every language can write 21.0.

use super::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return match self {
                Value::Float(float) => serializer.serialize_newtype_variant("Value", 0, "Float", float),
                Value::Integer(integer) => serializer.serialize_newtype_variant("Value", 1, "Integer", integer),
                Value::Boolean(boolean) => serializer.serialize_newtype_variant("Value", 2, "Boolean", boolean),
                Value::Text(text) => serializer.serialize_newtype_variant("Value", 3, "Text", text),
                Value::Bytes(bytes) => serializer.serialize_newtype_variant("Value", 4, "Bytes", bytes),
            };
        }
        match self {
            Value::Float(float) if float.is_finite() => serializer.serialize_f64(*float),
            Value::Float(float) => object(serializer, "float", &float.to_string()),
            Value::Integer(integer) => serializer.serialize_i64(*integer),
            Value::Boolean(boolean) => serializer.serialize_bool(*boolean),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => object(serializer, "base64", &STANDARD.encode(bytes)),
        }
    }
}

fn object<S: Serializer>(serializer: S, key: &str, value: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        if deserializer.is_human_readable() {
            return deserializer.deserialize_any(Readable);
        }
        Ok(match Binary::deserialize(deserializer)? {
            Binary::Float(float) => Value::Float(float),
            Binary::Integer(integer) => Value::Integer(integer),
            Binary::Boolean(boolean) => Value::Boolean(boolean),
            Binary::Text(text) => Value::Text(text),
            Binary::Bytes(bytes) => Value::Bytes(bytes),
        })
    }
}

/// The binary form; variants in the order of the indexes above.
#[derive(serde::Deserialize)]
enum Binary {
    Float(f64),
    Integer(i64),
    Boolean(bool),
    Text(Box<str>),
    Bytes(Box<[u8]>),
}

struct Readable;

impl<'de> Visitor<'de> for Readable {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, true, false, a string, {\"base64\": \"...\"}, {\"float\": 21} or {\"float\": \"NaN\"}")
    }

    fn visit_f64<E>(self, float: f64) -> Result<Value, E> {
        Ok(Value::Float(float))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Value, E> {
        Ok(Value::Integer(integer))
    }

    fn visit_u64<E: de::Error>(self, integer: u64) -> Result<Value, E> {
        match i64::try_from(integer) {
            Ok(integer) => Ok(Value::Integer(integer)),
            Err(_) => Err(E::custom(format!("integer {integer} is above {}; send it as a float", i64::MAX))),
        }
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Value, E> {
        Ok(Value::Boolean(boolean))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let key = map.next_key::<String>()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        let value = match key.as_str() {
            "base64" => Value::Bytes(STANDARD.decode(map.next_value::<String>()?).map_err(de::Error::custom)?.into()),
            "float" => Value::Float(map.next_value::<Float>()?.0),
            _ => return Err(de::Error::invalid_value(de::Unexpected::Str(&key), &self)),
        };
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(more) => Err(de::Error::invalid_value(de::Unexpected::Str(&more), &self)),
        }
    }
}

/// A float in an object: a number, or the name of a float that JSON cannot express.
struct Float(f64);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Float, D::Error> {
        struct Named;
        impl Visitor<'_> for Named {
            type Value = Float;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"NaN\", \"inf\" or \"-inf\"")
            }

            fn visit_f64<E>(self, float: f64) -> Result<Float, E> {
                Ok(Float(float))
            }

            fn visit_i64<E>(self, integer: i64) -> Result<Float, E> {
                Ok(Float(integer as f64)) // the nearest float is meant
            }

            fn visit_u64<E>(self, integer: u64) -> Result<Float, E> {
                Ok(Float(integer as f64)) // the nearest float is meant
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Float, E> {
                match name {
                    "NaN" => Ok(Float(f64::NAN)),
                    "inf" => Ok(Float(f64::INFINITY)),
                    "-inf" => Ok(Float(f64::NEG_INFINITY)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(name), &self)),
                }
            }
        }
        deserializer.deserialize_any(Named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_tells_integers_from_floats() {
        let values: Vec<Value> =
            serde_json::from_str(r#"[21, 21.0, -3, 1e3, true, "x", {"base64":"AQI="}, {"float":"-inf"}]"#)
                .expect("valid values");
        let expected = [
            Value::Integer(21),
            Value::Float(21.0),
            Value::Integer(-3),
            Value::Float(1000.0),
            Value::Boolean(true),
            Value::Text("x".into()),
            Value::Bytes([1, 2].into()),
            Value::Float(f64::NEG_INFINITY),
        ];
        assert_eq!(values, expected);
        let text = serde_json::to_string(&expected).expect("plain values");
        assert_eq!(text, r#"[21,21.0,-3,1000.0,true,"x",{"base64":"AQI="},{"float":"-inf"}]"#);
    }

    #[test]
    fn a_float_without_a_fraction_can_be_written_as_one() {
        let values: Vec<Value> =
            serde_json::from_str(r#"[{"float":21}, {"float":-3}, {"float":2.5}]"#).expect("valid values");
        assert_eq!(values, [Value::Float(21.0), Value::Float(-3.0), Value::Float(2.5)]);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for bad in ["null", "[]", "{}", r#"{"base64":"?"}"#, r#"{"float":"1"}"#, r#"{"base64":"","x":""}"#] {
            assert!(serde_json::from_str::<Value>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Value>("18446744073709551615").is_err());
    }

    #[test]
    fn postcard_carries_the_variants_index() {
        let value = |value: &Value| postcard::to_stdvec(value).expect("plain values");
        assert_eq!(value(&Value::Integer(-1)), [1, 1]);
        assert_eq!(value(&Value::Bytes([9, 8].into())), [4, 2, 9, 8]);
        assert_eq!(postcard::from_bytes::<Value>(&[3, 1, b'x']), Ok(Value::Text("x".into())));
        assert!(postcard::from_bytes::<Value>(&[5, 0]).is_err());
    }
}
