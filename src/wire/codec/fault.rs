//! Locates and describes the fault in a postcard body, which the library does not. Only for
//! bodies that it refused.

use postcard::de_flavors::Flavor;
use postcard::{Deserializer, Error};
use serde::de::{DeserializeOwned, DeserializeSeed, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// The fault of `body`, which was refused as a `T` for `why`.
pub(super) fn of<T: DeserializeOwned>(body: &[u8], why: Error) -> String {
    let field = Cell::new(None);
    let mut deserializer = Deserializer::from_flavor(Counted { body, read: 0 });
    // It fails again; how far it gets is what counts.
    let _ = T::deserialize(Watched { deserializer: &mut deserializer, field: &field });
    let read = deserializer.finalize().unwrap_or_default();
    let place = match field.get() {
        Some(name) => format!("{name}, byte {read} of {}", body.len()),
        None => format!("byte {read} of {}", body.len()),
    };
    format!("{place}: {}", plain(why))
}

fn plain(why: Error) -> &'static str {
    match why {
        Error::DeserializeUnexpectedEnd => "the body ends there",
        Error::DeserializeBadVarint => "the number is too large for its field",
        Error::DeserializeBadBool => "a boolean is 0 or 1",
        Error::DeserializeBadChar | Error::DeserializeBadUtf8 => "the text is not UTF-8",
        Error::DeserializeBadOption => "whether a value follows is 0 or 1",
        Error::DeserializeBadEnum => "the kind of value is unknown",
        _ => "the value is not valid for this field",
    }
}

/// A body that is read byte by byte; what is left shows where it failed.
struct Counted<'de> {
    body: &'de [u8],
    read: usize,
}

impl<'de> Flavor<'de> for Counted<'de> {
    type Remainder = usize;
    type Source = ();

    fn pop(&mut self) -> postcard::Result<u8> {
        let byte = self.body.get(self.read).copied().ok_or(Error::DeserializeUnexpectedEnd)?;
        self.read += 1;
        Ok(byte)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.body.len().saturating_sub(self.read))
    }

    fn try_take_n(&mut self, count: usize) -> postcard::Result<&'de [u8]> {
        let rest = self.body.get(self.read..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(Error::DeserializeUnexpectedEnd)?;
        self.read += count;
        Ok(taken)
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.read)
    }
}

/// Records which field of a message is being decoded.
struct Watched<'a, D> {
    deserializer: D,
    field: &'a Cell<Option<&'static str>>,
}

impl<'de, D: serde::Deserializer<'de>> serde::Deserializer<'de> for Watched<'_, D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.deserializer.deserialize_struct(name, fields, Fields { visitor, fields, field: self.field })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserializer.deserialize_any(visitor) // no message is anything else
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Fields<'a, V> {
    visitor: V,
    fields: &'static [&'static str],
    field: &'a Cell<Option<&'static str>>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Fields<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Named { seq, fields: self.fields.iter(), field: self.field })
    }
}

struct Named<'a, A> {
    seq: A,
    fields: std::slice::Iter<'static, &'static str>,
    field: &'a Cell<Option<&'static str>>,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Named<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.field.set(self.fields.next().copied());
        self.seq.next_element_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Authenticate, Hello, Readings};

    fn said<T: DeserializeOwned>(body: &[u8]) -> String {
        let why = postcard::take_from_bytes::<T>(body).map(drop).expect_err("it is wrong");
        of::<T>(body, why)
    }

    #[test]
    fn the_field_and_the_byte_are_named() {
        assert_eq!(said::<Readings>(&[1, 0, 1, 2]), "samples, byte 4 of 4: the body ends there");
        assert_eq!(said::<Readings>(&[1, 7, 0]), "sub, byte 2 of 3: whether a value follows is 0 or 1");
        assert_eq!(said::<Readings>(&[0xff; 12]), "seq, byte 10 of 12: the number is too large for its field");
        assert_eq!(said::<Hello>(&[1, 0xff]), "device, byte 2 of 2: the text is not UTF-8");
        assert_eq!(said::<Authenticate>(&[]), "key, byte 0 of 0: the body ends there");
    }
}
