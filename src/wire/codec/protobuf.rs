//! Bodies in Protobuf, as in `proto/tidegate.proto`; `tests/protobuf.rs` compares the two.
//!
//! Written by hand: see `docs/decisions/0015-protobuf-by-hand.md`.

mod wire;

pub(super) use wire::Message;

use crate::model::Value;
use crate::wire::message::{
    Ack, Authenticate, Challenge, ChannelDeclaration, ChannelRef, Command, CommandResult, DeviceClock, Goodbye,
    Heartbeat, HeartbeatReply, Hello, Readings, Reason, Refused, ResultState, Sample, SubCommand, SubDevice, Welcome,
};
use crate::wire::samples::{Sifted, Unreadable, hexadecimal};
use wire::{Field, Fields, Found, Why, Zigzag, one};

/// # Errors
/// If the body is invalid; the error describes the fault.
pub(super) fn read<T: Message>(body: &[u8]) -> Result<T, String> {
    T::read(Fields::of(body)).map_err(|why| why.to_string())
}

/// Decodes each sample of Readings by itself; `None` if another part is invalid.
pub(super) fn sift(body: &[u8]) -> Option<Sifted> {
    let mut sifted = Sifted { seq: 0, sub: None, samples: Vec::new(), hidden: 0, cut: false };
    let mut fields = Fields::of(body);
    while let Some(found) = fields.next().ok()? {
        match found.number {
            1 => sifted.seq.merge(found).ok()?,
            2 => sifted.sub.merge(found).ok()?,
            3 => {
                let sent = found.bytes().ok()?;
                sifted.samples.push(Sample::read(Fields::of(sent)).map_err(|why| Unreadable {
                    time: time_of(sent),
                    why: why.within("samples").to_string(),
                    sent: hexadecimal(sent),
                }));
            }
            _ => {}
        }
    }
    (sifted.seq != 0).then_some(sifted)
}

/// The time of an invalid sample.
fn time_of(sample: &[u8]) -> Option<i64> {
    let mut fields = Fields::of(sample);
    while let Ok(Some(found)) = fields.next() {
        if found.number == 1 {
            return one(found, "time").ok();
        }
    }
    None
}

/// A message of numbered fields. A `required` field is always written, and must be present
/// since its zero has no meaning; others are omitted if they are zero.
macro_rules! message {
    ($message:ident { $($number:literal $field:ident $($required:ident)?),* $(,)? }) => {
        impl $message {
            const REQUIRED: &[(u8, &'static str)] = &[$($(message!($required $number $field),)?)*];
        }

        impl Message for $message {
            fn read(mut fields: Fields<'_>) -> Result<$message, Why> {
                let mut message = $message { $($field: Field::absent()),* };
                let mut seen = 0u32;
                while let Some(found) = fields.next()? {
                    match found.number {
                        $($number => {
                            message.$field.merge(found).map_err(|why| why.within(stringify!($field)))?;
                            seen |= 1 << $number;
                        })*
                        _ => {}
                    }
                }
                match Self::REQUIRED.iter().find(|(number, _)| seen & 1 << number == 0) {
                    Some((_, field)) => Err(Why::Missing(field)),
                    None => Ok(message),
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                $(
                    if !self.$field.is_absent() || Self::REQUIRED.iter().any(|(number, _)| *number == $number) {
                        self.$field.put($number, out);
                    }
                )*
            }
        }
    };
    (required $number:literal $field:ident) => { ($number, stringify!($field)) };
}

message!(Hello { 1 device required, 2 session required, 3 clock, 4 time, 5 firmware, 6 channels, 7 first, 8 max_frame });
message!(ChannelDeclaration { 1 index, 2 name required, 3 unit });
message!(Authenticate { 1 key required, 2 proof required });
message!(Readings { 1 seq required, 2 sub, 3 samples });
message!(Sample { 1 time, 2 values });
message!(Heartbeat { 1 time });
message!(CommandResult { 1 id required, 2 state, 3 payload });
message!(SubDevice { 1 sub required, 2 online, 3 reason });
message!(Challenge { 1 nonce });
message!(Welcome { 1 settled, 2 time, 3 time_trusted, 4 heartbeat_interval, 5 max_frame, 6 window, 7 session });
message!(Ack { 1 seq });
message!(Refused { 1 seq, 2 count, 3 text });
message!(HeartbeatReply { 1 time, 2 time_trusted });
message!(Command { 1 id required, 2 name required, 3 payload, 4 expires_in });
message!(SubCommand { 1 sub required, 2 id required, 3 name required, 4 payload, 5 expires_in });
message!(Goodbye { 1 reason, 2 text });

/// The proto file's `ChannelValue`.
impl Message for (ChannelRef, Value) {
    fn read(mut fields: Fields<'_>) -> Result<(ChannelRef, Value), Why> {
        let (mut channel, mut value) = (None, None);
        while let Some(found) = fields.next()? {
            match found.number {
                1 => channel = Some(ChannelRef::Index(one(found, "index")?)),
                2 => channel = Some(ChannelRef::Name(one(found, "name")?)),
                3 => value = Some(Value::Float(one(found, "float_value")?)),
                4 => value = Some(Value::Integer(one::<Zigzag>(found, "integer_value")?.0)),
                5 => value = Some(Value::Boolean(one(found, "boolean_value")?)),
                6 => value = Some(Value::Text(one::<String>(found, "text_value")?.into())),
                7 => value = Some(Value::Bytes(one::<Vec<u8>>(found, "bytes_value")?.into())),
                _ => {}
            }
        }
        let channel = channel.ok_or(Why::Missing("the channel, index or name,"))?;
        Ok((channel, value.ok_or(Why::Missing("the value, of a type that is known,"))?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let (channel, value) = self;
        match channel {
            ChannelRef::Index(index) => index.put(1, out),
            ChannelRef::Name(name) => name.put(2, out),
        }
        match value {
            Value::Float(float) => float.put(3, out),
            Value::Integer(integer) => Zigzag(*integer).put(4, out),
            Value::Boolean(boolean) => boolean.put(5, out),
            Value::Text(text) => wire::put_bytes(6, text.as_bytes(), out),
            Value::Bytes(bytes) => wire::put_bytes(7, bytes, out),
        }
    }
}

/// An enum with the same variant numbers as in postcard; the first is 0.
macro_rules! variants {
    ($name:ident { $first:ident, $($number:literal $variant:ident),* }) => {
        impl Field for $name {
            fn absent() -> $name {
                $name::$first
            }

            fn is_absent(&self) -> bool {
                *self == $name::$first
            }

            fn merge(&mut self, found: Found<'_>) -> Result<(), Why> {
                *self = match found.varint()? {
                    0 => $name::$first,
                    $($number => $name::$variant,)*
                    other => return Err(Why::Variant(other)),
                };
                Ok(())
            }

            fn put(&self, number: u8, out: &mut Vec<u8>) {
                let value: u64 = match self {
                    $name::$first => 0,
                    $($name::$variant => $number,)*
                };
                value.put(number, out);
            }
        }
    };
}

variants!(DeviceClock { Wall, 1 SinceBoot });
variants!(ResultState { Done, 1 Failed, 2 Rejected });
variants!(Reason {
    Normal,
    1 Stopping,
    2 BadFrame,
    3 TooLarge,
    4 Protocol,
    5 Timeout,
    6 TakenOver,
    7 Unauthorized,
    8 Busy
});
