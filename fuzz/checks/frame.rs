//! The frame decoder on an arbitrary stream: however it is cut, it finds the same
//! frames and accounts for every byte.
//!
//! Input: a byte that tells how large the pieces are, then the stream.

use std::ops::ControlFlow;
use tidegate::wire::frame::{CHECKSUM, Decoder, Event, FrameError, HEADER, Limits, Recovery, Version};

const LIMITS: Limits = Limits { max_body: 4096, require_checksum: false };

/// The bodies found, and how many bytes they and what was skipped took.
#[derive(Debug, Default, PartialEq)]
struct Found {
    frames: Vec<(u8, Vec<u8>)>,
    bytes: usize,
    failed: Option<FrameError>,
}

impl Found {
    fn on_event(&mut self, event: Event<'_>) -> ControlFlow<Limits> {
        match event {
            Event::Frame(frame) => {
                let checksum = if frame.format.version == Version::V2 { CHECKSUM } else { 0 };
                self.bytes += HEADER + frame.body.len() + checksum;
                self.frames.push((frame.kind, frame.body.to_vec()));
            }
            Event::Skipped { bytes } => self.bytes += bytes,
            Event::Invalid(_) => {}
        }
        ControlFlow::Continue(())
    }
}

/// What is found in the pieces. `looks`: each frame takes longer than it could.
fn decode(pieces: &mut dyn Iterator<Item = &[u8]>, recovery: Recovery, looks: bool) -> Found {
    let mut decoder = Decoder::new(LIMITS, recovery);
    let mut found = Found::default();
    for piece in pieces {
        if let Err(error) = decoder.push(piece, &mut |event| found.on_event(event)) {
            found.failed = Some(error);
            return found;
        }
        if looks {
            decoder.look_inside(&mut |event| found.on_event(event));
        }
        assert_eq!(decoder.position(), found.bytes as u64);
    }
    if recovery == Recovery::Resync {
        let given_up = decoder.give_up_partial(&mut |event| found.on_event(event));
        assert_eq!(given_up, Ok(()));
        assert!(!decoder.is_partial());
    }
    found
}

pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    let size = usize::from(*size).max(1);

    let whole = decode(&mut std::iter::once(stream), Recovery::Resync, false);
    assert_eq!(whole.bytes, stream.len());
    let cut = decode(&mut stream.chunks(size), Recovery::Resync, false);
    assert_eq!((&cut.frames, cut.bytes), (&whole.frames, whole.bytes));
    assert_eq!(decode(&mut stream.chunks(size), Recovery::Resync, true).bytes, stream.len());

    let whole = decode(&mut std::iter::once(stream), Recovery::Fail, false);
    let cut = decode(&mut stream.chunks(size), Recovery::Fail, false);
    assert_eq!(cut.frames, whole.frames);
    assert_eq!(cut.failed.is_some(), whole.failed.is_some());
}
