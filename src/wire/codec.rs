//! Encodes messages as frame bodies, and decodes them.

use super::frame::{self, BodyEncoding, FROM_GATEWAY, Format, FrameRef, Version};
use super::message::{DeviceMessage, GatewayMessage};
use super::text::{self, Context, TextError};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) mod bytes;
mod fault;
mod protobuf;

/// Message types that links use.
pub const READINGS: u8 = 3;
pub const WELCOME: u8 = FROM_GATEWAY | 2;
pub const GOODBYE: u8 = FROM_GATEWAY | 6;

/// A complete frame whose body is not a valid message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("message type {} is unknown here{}", format_args!("{:#04x}", .0), sender(*.0))]
    Unknown(u8),
    #[error("the body is not a valid {message}: {why}")]
    Malformed { message: &'static str, why: String },
    #[error(transparent)]
    Text(#[from] TextError),
}

/// Hint for an unknown type byte, if it shows the fault.
fn sender(kind: u8) -> &'static str {
    match kind & FROM_GATEWAY {
        0 => "",
        _ => ": its bit 7 says that a gateway sent it; a device leaves that bit 0",
    }
}

macro_rules! messages {
    ($message:ident, $direction:expr, $decode:ident, $decode_in:ident, $encode:ident, $encode_in:ident, $what:literal, $($variant:ident = $kind:literal $(with $appended:literal appended)?),*) => {
        #[doc = concat!("Decodes a message from ", $what, ".")]
        ///
        /// # Errors
        /// If the type is unknown there, or the body is malformed. Bytes behind a
        /// postcard body and unknown fields of the others are ignored: newer peers
        /// may append fields.
        pub fn $decode(frame: &FrameRef<'_>) -> Result<$message, BodyError> {
            $decode_in(frame, Context::default())
        }

        #[doc = concat!("Decodes a message from ", $what, " in a conversation, which text messages speak of.")]
        ///
        /// # Errors
        #[doc = concat!("As of [`", stringify!($decode), "`], and if a text message does not belong to the conversation.")]
        pub fn $decode_in(frame: &FrameRef<'_>, context: Context<'_>) -> Result<$message, BodyError> {
            if frame.format.version == Version::Text {
                return Ok(text::$decode(frame.body, context)?);
            }
            let kind = frame.kind ^ $direction;
            match kind {
                $($kind => body(frame, stringify!($variant), 0 $(+ $appended)?).map($message::$variant),)*
                _ => Err(BodyError::Unknown(frame.type_byte())),
            }
        }

        #[doc = concat!("Appends a message from ", $what, " as a frame.")]
        pub fn $encode(message: &$message, format: Format, out: &mut Vec<u8>) {
            $encode_in(message, format, Context::default(), out);
        }

        #[doc = concat!("Appends a message from ", $what, " as a frame, in a conversation, which text messages speak of.")]
        pub fn $encode_in(message: &$message, format: Format, context: Context<'_>, out: &mut Vec<u8>) {
            if format.version == Version::Text {
                let kind = $direction | match message { $($message::$variant(_) => $kind,)* };
                frame::encode(format, kind, out, |out| text::$encode(message, context, out));
                return;
            }
            match message {
                $($message::$variant(body) => put(body, $kind | $direction, format, out),)*
            }
        }
    };
}

messages!(
    DeviceMessage,
    0,
    decode_device,
    decode_device_in,
    encode_device,
    encode_device_in,
    "a device",
    Hello = 1 with 2 appended,
    Authenticate = 2,
    Readings = 3,
    Heartbeat = 4,
    CommandResult = 5,
    Goodbye = 6,
    SubDevice = 7
);
messages!(
    GatewayMessage,
    FROM_GATEWAY,
    decode_gateway,
    decode_gateway_in,
    encode_gateway,
    encode_gateway_in,
    "the gateway",
    Challenge = 1,
    Welcome = 2 with 1 appended,
    Ack = 3,
    HeartbeatReply = 4,
    Command = 5,
    Goodbye = 6,
    SubCommand = 7,
    Refused = 8
);

fn body<T: DeserializeOwned + protobuf::Message>(
    frame: &FrameRef<'_>,
    message: &'static str,
    appended: usize,
) -> Result<T, BodyError> {
    match frame.format.encoding {
        BodyEncoding::Postcard => postcard_body(frame.body, appended)
            .map_err(|why| BodyError::Malformed { message, why: fault::of::<T>(frame.body, why) }),
        BodyEncoding::Json => {
            serde_json::from_slice(frame.body).map_err(|why| BodyError::Malformed { message, why: why.to_string() })
        }
        BodyEncoding::Protobuf => protobuf::read(frame.body).map_err(|why| BodyError::Malformed { message, why }),
    }
}

/// Decodes a message to which `appended` fields were added later. An older peer omits them;
/// each then decodes from one zero byte, its empty value.
fn postcard_body<T: DeserializeOwned>(body: &[u8], appended: usize) -> postcard::Result<T> {
    if appended == 0 {
        return postcard::take_from_bytes(body).map(|(message, _)| message);
    }
    let mut whole = body.to_vec();
    whole.resize(body.len() + appended, 0);
    postcard::take_from_bytes(&whole).map(|(message, _)| message)
}

/// See [`super::sift`].
pub(super) fn sift_protobuf(body: &[u8]) -> Option<super::samples::Sifted> {
    protobuf::sift(body)
}

fn put<T: Serialize + protobuf::Message>(body: &T, kind: u8, format: Format, out: &mut Vec<u8>) {
    frame::encode(format, kind, out, |out| {
        // It cannot fail: the messages hold no map with other keys than strings, and the output is
        // in memory.
        match format.encoding {
            BodyEncoding::Postcard => {
                let _ = postcard::to_io(body, out);
            }
            BodyEncoding::Json => {
                let _ = serde_json::to_writer(out, body);
            }
            BodyEncoding::Protobuf => body.write(out),
        }
    });
}
