//! Decodes the bytes of a serial line into messages and noise. Pure.

use crate::wire::codec::{BodyError, decode_device, decode_gateway};
use crate::wire::frame::{CHECKSUM, Decoder, Event, Format, FrameError, FrameRef, HEADER, Limits, Recovery, Version};
use crate::wire::message::{DeviceMessage, GatewayMessage};
use std::ops::ControlFlow;

/// A decoded part of the stream.
#[derive(Debug, PartialEq)]
pub struct Heard {
    /// Offset of its first byte in the stream.
    pub offset: u64,
    pub bytes: Vec<u8>,
    pub what: What,
}

#[derive(Debug, PartialEq)]
pub enum What {
    FromDevice(Format, DeviceMessage),
    FromGateway(Format, GatewayMessage),
    /// A complete frame whose body is not a valid message.
    Invalid {
        format: Format,
        from_gateway: bool,
        why: BodyError,
    },
    /// Bytes outside a frame; without a reason if nothing there looks like one.
    Noise(Option<FrameError>),
}

/// Noise is reported in pieces of this many bytes.
const PIECE: usize = 32;

/// Decodes the traffic of a line, in both directions.
#[derive(Debug)]
pub struct LineDecoder {
    decoder: Decoder,
    /// Bytes that are not decoded yet.
    window: Vec<u8>,
    /// Offset of the window in the stream.
    offset: u64,
    /// Bytes outside a frame that are not reported yet.
    noise: Vec<u8>,
    reason: Option<FrameError>,
}

impl LineDecoder {
    pub fn new(max_body: usize) -> LineDecoder {
        let limits = Limits { max_body, require_checksum: false };
        let decoder = Decoder::new(limits, Recovery::Resync);
        LineDecoder { decoder, window: Vec::new(), offset: 0, noise: Vec::new(), reason: None }
    }

    /// Decodes `bytes` and appends each part that they complete.
    pub fn push(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) {
        self.window.extend_from_slice(bytes);
        self.with_decoder(heard, |decoder, on_event| {
            // Only a decoder without resynchronisation fails.
            let _ = decoder.push(bytes, on_event);
        });
    }

    /// An incomplete frame takes long: reports a complete frame inside it, if there is one.
    pub fn look_inside(&mut self, heard: &mut Vec<Heard>) {
        self.with_decoder(heard, |decoder, on_event| decoder.look_inside(on_event));
    }

    /// Offset of the incomplete frame, if there is one.
    pub fn begun(&self) -> Option<u64> {
        self.decoder.is_partial().then(|| self.decoder.position())
    }

    /// The line is silent, or the input ends: abandons the incomplete frame.
    pub fn pause(&mut self, heard: &mut Vec<Heard>) {
        self.with_decoder(heard, |decoder, on_event| {
            let _ = decoder.give_up_partial(on_event);
        });
        self.report_noise(0, heard);
    }

    /// Whether there is an incomplete frame.
    pub fn is_waiting(&self) -> bool {
        self.decoder.is_partial() || !self.noise.is_empty()
    }

    fn with_decoder(
        &mut self,
        heard: &mut Vec<Heard>,
        work: impl FnOnce(&mut Decoder, &mut dyn FnMut(Event<'_>) -> ControlFlow<Limits>),
    ) {
        let idle = Decoder::new(Limits { max_body: 0, require_checksum: false }, Recovery::Resync);
        let mut decoder = std::mem::replace(&mut self.decoder, idle);
        work(&mut decoder, &mut |event| {
            self.event(event, heard);
            ControlFlow::Continue(())
        });
        self.decoder = decoder;
    }

    fn event(&mut self, event: Event<'_>, heard: &mut Vec<Heard>) {
        match event {
            Event::Frame(frame) => {
                self.report_noise(0, heard);
                let checksum = if frame.format.version == Version::V2 { CHECKSUM } else { 0 };
                let offset = self.offset;
                let bytes = self.take(HEADER + frame.body.len() + checksum);
                heard.push(Heard { offset, bytes, what: decoded(&frame) });
            }
            Event::Invalid(error) => {
                self.report_noise(0, heard);
                self.reason = Some(error);
            }
            Event::Skipped { bytes } => {
                let skipped = self.take(bytes);
                self.noise.extend(skipped);
                self.report_noise(PIECE, heard);
            }
        }
    }

    /// Reports noise in pieces while there are at least `least` bytes, and any at all.
    fn report_noise(&mut self, least: usize, heard: &mut Vec<Heard>) {
        while !self.noise.is_empty() && self.noise.len() >= least {
            let offset = self.offset - self.noise.len() as u64; // noise precedes the offset
            let bytes = self.noise.drain(..self.noise.len().min(PIECE)).collect();
            heard.push(Heard { offset, bytes, what: What::Noise(self.reason) });
        }
        if self.noise.is_empty() {
            self.reason = None;
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let taken: Vec<_> = self.window.drain(..count.min(self.window.len())).collect();
        self.offset += taken.len() as u64;
        taken
    }
}

fn decoded(frame: &FrameRef<'_>) -> What {
    let from_gateway = frame.is_from_gateway();
    let message = match from_gateway {
        true => decode_gateway(frame).map(|message| What::FromGateway(frame.format, message)),
        false => decode_device(frame).map(|message| What::FromDevice(frame.format, message)),
    };
    message.unwrap_or_else(|why| What::Invalid { format: frame.format, from_gateway, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::{encode_device, encode_gateway};
    use crate::wire::frame::BodyEncoding;
    use crate::wire::message::{Ack, Heartbeat};

    const FORMAT: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };

    fn heartbeat(time: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_device(&DeviceMessage::Heartbeat(Heartbeat { time }), FORMAT, &mut bytes);
        bytes
    }

    fn ack(version: Version) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_gateway(&GatewayMessage::Ack(Ack { seq: 7 }), Format { version, ..FORMAT }, &mut bytes);
        bytes
    }

    /// The parts of `stream` if it is read in pieces of `piece` bytes and then ends.
    fn heard(stream: &[u8], piece: usize) -> Vec<Heard> {
        let (mut decoder, mut heard) = (LineDecoder::new(1024), Vec::new());
        stream.chunks(piece).for_each(|bytes| decoder.push(bytes, &mut heard));
        decoder.pause(&mut heard);
        assert!(!decoder.is_waiting() && decoder.window.is_empty(), "nothing is held back");
        heard
    }

    #[test]
    fn messages_are_told_and_all_that_is_none_in_bytes() {
        let mut damaged = heartbeat(3);
        damaged[12] ^= 1;
        let stream = [&b"boot: ok\r\n"[..], &heartbeat(1), &ack(Version::V1), &damaged, &heartbeat(2)].concat();
        for piece in [1, 7, 1000] {
            let all = heard(&stream, piece);
            let together: Vec<u8> = all.iter().flat_map(|heard| heard.bytes.clone()).collect();
            assert_eq!(together, stream, "every byte is told once, in order");
            let mut at = 0;
            for heard in &all {
                assert_eq!(heard.offset, at);
                at += heard.bytes.len() as u64;
            }
            let whats: Vec<_> = all.iter().map(|heard| &heard.what).collect();
            let [What::Noise(None), What::FromDevice(FORMAT, _), What::FromGateway(_, _), noise @ .., last] =
                &whats[..]
            else {
                panic!("{whats:?}")
            };
            assert!(matches!(noise[0], What::Noise(Some(FrameError::Checksum { .. }))), "{noise:?}");
            assert_eq!(**last, What::FromDevice(FORMAT, DeviceMessage::Heartbeat(Heartbeat { time: 2 })));
        }
    }

    #[test]
    fn noise_is_told_in_pieces_and_no_later_than_the_next_pause() {
        let (mut decoder, mut heard) = (LineDecoder::new(1024), Vec::new());
        decoder.push(&[0xff; 70], &mut heard);
        assert_eq!(heard.iter().map(|heard| heard.bytes.len()).collect::<Vec<_>>(), [32, 32]);
        assert!(decoder.is_waiting());
        decoder.pause(&mut heard);
        assert_eq!(heard.len(), 3);
        assert!(!decoder.is_waiting());
    }

    #[test]
    fn half_a_frame_is_given_up_at_a_pause_and_what_it_hid_is_told() {
        let half = &heartbeat(1)[..9];
        let stream = [half, &heartbeat(2)].concat();
        let (mut decoder, mut told) = (LineDecoder::new(1024), Vec::new());
        decoder.push(&stream, &mut told);
        decoder.pause(&mut told);
        assert!(matches!(told[0].what, What::Noise(Some(_))), "{told:?}");
        assert!(matches!(told.last().map(|heard| &heard.what), Some(What::FromDevice(..))), "{told:?}");
    }

    #[test]
    fn what_takes_long_is_told_for_what_stands_in_it() {
        let mut damaged = heartbeat(1);
        damaged[8] = 3; // it now claims 768 bytes more
        let (mut decoder, mut told) = (LineDecoder::new(1024), Vec::new());
        decoder.push(&[damaged, heartbeat(2)].concat(), &mut told);
        assert_eq!((told.len(), decoder.begun()), (0, Some(0)));
        decoder.look_inside(&mut told);
        assert!(matches!(told.last().map(|heard| &heard.what), Some(What::FromDevice(..))), "{told:?}");
        assert_eq!(decoder.begun(), None);
    }

    #[test]
    fn a_frame_that_makes_no_sense_is_told_as_one() {
        let mut bytes = Vec::new();
        crate::wire::frame::encode(FORMAT, 0x03, &mut bytes, |body| body.extend_from_slice(b"{}"));
        let all = heard(&bytes, 100);
        let [Heard { what: What::Invalid { from_gateway: false, why, .. }, .. }] = &all[..] else { panic!("{all:?}") };
        assert!(why.to_string().contains("Readings"), "{why}");
    }
}
