//! Protobuf's wire format: encoding and decoding of fields.
//!
//! Everything is decoded in place. Only the message's own fields are allocated.

/// The fault of a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("it ends in the middle of a field")]
    Cut,
    #[error("a number is longer than 64 bits")]
    TooLong,
    #[error("{0} is no tag of a field")]
    Tag(u64),
    #[error("wire type {got} where {expected} is expected")]
    WireType { got: u8, expected: u8 },
    #[error("the text is not UTF-8")]
    Utf8,
    #[error("{got} is above {max}")]
    TooLarge { got: u64, max: u64 },
    #[error("{0} is none of its values")]
    Variant(u64),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field}: {why}")]
    In { field: &'static str, why: Box<Why> },
}

impl Why {
    pub fn within(self, field: &'static str) -> Why {
        Why::In { field, why: Box::new(self) }
    }
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// A field's content by its wire type.
#[derive(Debug, Clone, Copy)]
enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of one message.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

/// A field, and the fields after it.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    pub number: u64,
    raw: Raw<'a>,
    rest: Fields<'a>,
}

impl<'a> Fields<'a> {
    pub fn of(body: &'a [u8]) -> Fields<'a> {
        Fields(body)
    }

    /// # Errors
    /// If the bytes are not a valid field. Groups, which proto3 does not have, are invalid.
    #[inline(always)] // a fifth of the time to decode Readings
    pub fn next(&mut self) -> Result<Option<Found<'a>>, Why> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || tag > u64::from(u32::MAX) {
            return Err(Why::Tag(tag));
        }
        let raw = match (tag & 7) as u8 {
            VARINT => Raw::Varint(self.varint()?),
            FIXED64 => Raw::Fixed64(u64::from_le_bytes(self.array()?)),
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| Why::Cut)?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or(Why::Cut)?;
                self.0 = rest;
                Raw::Bytes(bytes)
            }
            FIXED32 => {
                self.array::<4>()?;
                Raw::Fixed32
            }
            _ => return Err(Why::Tag(tag)),
        };
        Ok(Some(Found { number, raw, rest: *self }))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Why> {
        if let Some((byte, rest)) = self.0.split_first()
            && *byte < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, Why> {
        const MOST: usize = 10;
        let mut value = 0;
        for (i, byte) in self.0.iter().take(MOST).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if *byte < 0x80 {
                // The tenth byte has room for one bit only.
                if i == MOST - 1 && *byte > 1 {
                    return Err(Why::TooLong);
                }
                self.0 = &self.0[i + 1..]; // i counts them
                return Ok(value);
            }
        }
        Err(if self.0.len() < MOST { Why::Cut } else { Why::TooLong })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Why> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Why::Cut)?;
        self.0 = rest;
        Ok(*array)
    }

    /// Number of fields with this number.
    fn count(mut self, number: u64) -> usize {
        let mut count = 0;
        while let Ok(Some(found)) = self.next() {
            count += usize::from(found.number == number);
        }
        count
    }
}

impl Found<'_> {
    fn wrong(&self, expected: u8) -> Why {
        let got = match self.raw {
            Raw::Varint(_) => VARINT,
            Raw::Fixed64(_) => FIXED64,
            Raw::Bytes(_) => BYTES,
            Raw::Fixed32 => FIXED32,
        };
        Why::WireType { got, expected }
    }

    pub fn varint(&self) -> Result<u64, Why> {
        match self.raw {
            Raw::Varint(value) => Ok(value),
            _ => Err(self.wrong(VARINT)),
        }
    }

    /// A number that must fit its type.
    fn small<T: TryFrom<u64>>(&self, max: T) -> Result<T, Why>
    where
        u64: From<T>,
    {
        let got = self.varint()?;
        T::try_from(got).map_err(|_| Why::TooLarge { got, max: max.into() })
    }

    pub fn bytes(&self) -> Result<&[u8], Why> {
        match self.raw {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong(BYTES)),
        }
    }
}

/// The type of a field.
pub trait Field: Sized {
    /// The value of a missing field.
    fn absent() -> Self;
    fn is_absent(&self) -> bool;
    /// Merges an encoded field. The last one counts; lists are appended to.
    fn merge(&mut self, found: Found<'_>) -> Result<(), Why>;
    fn put(&self, number: u8, out: &mut Vec<u8>);
}

/// A message, inside another or as a whole body.
pub trait Message: Sized {
    fn read(fields: Fields<'_>) -> Result<Self, Why>;
    fn write(&self, out: &mut Vec<u8>);
}

/// The value of a field by itself.
pub fn one<T: Field>(found: Found<'_>, name: &'static str) -> Result<T, Why> {
    let mut value = T::absent();
    value.merge(found).map_err(|why| why.within(name))?;
    Ok(value)
}

macro_rules! field {
    ($type:ty, $absent:expr, |$found:ident| $take:expr, |$value:ident, $number:ident, $out:ident| $put:expr) => {
        impl Field for $type {
            fn absent() -> $type {
                $absent
            }

            fn is_absent(&self) -> bool {
                *self == Self::absent()
            }

            fn merge(&mut self, $found: Found<'_>) -> Result<(), Why> {
                *self = $take;
                Ok(())
            }

            fn put(&self, $number: u8, $out: &mut Vec<u8>) {
                let $value = self;
                $put
            }
        }
    };
}

/// An integer with its sign in the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zigzag(pub i64);

field!(u16, 0, |found| found.small(u16::MAX)?, |value, number, out| put_varint(number, u64::from(*value), out));
field!(u32, 0, |found| found.small(u32::MAX)?, |value, number, out| put_varint(number, u64::from(*value), out));
field!(u64, 0, |found| found.varint()?, |value, number, out| put_varint(number, *value, out));
field!(i64, 0, |found| found.varint()?.cast_signed(), |value, number, out| {
    put_varint(number, value.cast_unsigned(), out)
});
field!(bool, false, |found| found.varint()? != 0, |value, number, out| put_varint(number, u64::from(*value), out));
field!(
    Zigzag,
    Zigzag(0),
    |found| {
        let zigzag = found.varint()?;
        Zigzag((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    },
    |value, number, out| put_varint(number, (value.0 << 1 ^ value.0 >> 63).cast_unsigned(), out)
);
field!(
    f64,
    0.0,
    |found| match found.raw {
        Raw::Fixed64(bits) => f64::from_bits(bits),
        _ => return Err(found.wrong(FIXED64)),
    },
    |value, number, out| {
        put_tag(number, FIXED64, out);
        out.extend_from_slice(&value.to_le_bytes());
    }
);
field!(
    String,
    String::new(),
    |found| std::str::from_utf8(found.bytes()?).map_err(|_| Why::Utf8)?.to_owned(),
    |value, number, out| put_bytes(number, value.as_bytes(), out)
);
field!(Vec<u8>, Vec::new(), |found| found.bytes()?.to_owned(), |value, number, out| put_bytes(number, value, out));

impl<T: Field> Field for Option<T> {
    fn absent() -> Option<T> {
        None
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn merge(&mut self, found: Found<'_>) -> Result<(), Why> {
        self.insert(T::absent()).merge(found)
    }

    fn put(&self, number: u8, out: &mut Vec<u8>) {
        if let Some(value) = self {
            value.put(number, out);
        }
    }
}

impl<T: Message> Field for Vec<T> {
    fn absent() -> Vec<T> {
        Vec::new()
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn merge(&mut self, found: Found<'_>) -> Result<(), Why> {
        if self.is_empty() {
            // Reserved once: growing would take twice the memory.
            self.reserve_exact(1 + found.rest.count(found.number));
        }
        self.push(T::read(Fields(found.bytes()?))?);
        Ok(())
    }

    fn put(&self, number: u8, out: &mut Vec<u8>) {
        for message in self {
            put_tag(number, BYTES, out);
            let start = out.len();
            out.push(0);
            message.write(out);
            let length = out.len() - start - 1;
            match u8::try_from(length) {
                Ok(short) if short < 0x80 => out[start] = short, // it was just pushed
                _ => {
                    let mut varint = Vec::with_capacity(3);
                    put_number(length as u64, &mut varint);
                    out.splice(start..=start, varint); // pushed above
                }
            }
        }
    }
}

fn put_number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8); // it is below 0x80
}

fn put_tag(number: u8, wire_type: u8, out: &mut Vec<u8>) {
    put_number(u64::from(number) << 3 | u64::from(wire_type), out);
}

fn put_varint(number: u8, value: u64, out: &mut Vec<u8>) {
    put_tag(number, VARINT, out);
    put_number(value, out);
}

pub fn put_bytes(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    put_tag(number, BYTES, out);
    put_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
