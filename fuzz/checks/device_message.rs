//! Bodies of arbitrary frames: what can be decoded can be encoded, and decoded again
//! to the same message.
//!
//! Input: a frame's type and its body, so that neither length nor checksum stand in
//! the fuzzer's way.

use std::fmt::Debug;
use std::ops::ControlFlow;
use tidegate::wire::codec::{BodyError, decode_device, decode_gateway, encode_device, encode_gateway};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, FrameRef, Limits, MAX_BODY, Recovery, Version};

const LIMITS: Limits = Limits { max_body: MAX_BODY, require_checksum: true };

/// Compared as texts, in which NaN equals itself.
fn round_trip<M: Debug>(
    frame: &FrameRef<'_>,
    decode: impl Fn(&FrameRef<'_>) -> Result<M, BodyError>,
    encode: impl Fn(&M, Format, &mut Vec<u8>),
) {
    let Ok(message) = decode(frame) else { return };
    let mut stream = Vec::new();
    encode(&message, frame.format, &mut stream);
    let mut again = None;
    let pushed = Decoder::new(LIMITS, Recovery::Fail).push(&stream, &mut |event| {
        if let Event::Frame(frame) = event {
            again = Some(format!("{:?}", decode(&frame)));
        }
        ControlFlow::Continue(())
    });
    assert_eq!(pushed, Ok(()));
    assert_eq!(again, Some(format!("Ok({message:?})")));
}

pub fn check(input: &[u8]) {
    let Some((kind, body)) = input.split_first() else { return };
    let encoding = match kind & 0x70 {
        0 => BodyEncoding::Postcard,
        0x20 => BodyEncoding::Protobuf,
        _ => BodyEncoding::Json,
    };
    let frame = FrameRef { format: Format { version: Version::V2, encoding }, kind: kind & 0x8f, body };
    round_trip(&frame, decode_device, encode_device);
    round_trip(&frame, decode_gateway, encode_gateway);
}
