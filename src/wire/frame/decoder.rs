//! Finds frames in a stream.

use super::{
    BodyEncoding, CHECKSUM, Format, FrameError, FrameRef, HEADER, Limits, MAGIC, MAX_BODY, Recovery, TEXT, Version,
    claimed,
};
use memchr::memmem;
use std::ops::ControlFlow;

/// Bytes that may be checksummed in vain for each byte of the stream, so that a stream full of
/// frame headers costs no more than its length allows.
const CHECKED_PER_BYTE: u64 = 64;
/// Most credit that may be saved; also the initial credit.
const MAX_CHECKED: i64 = MAX_BODY as i64; // far below its limit

/// An event of the decoder.
#[derive(Debug)]
pub enum Event<'a> {
    Frame(FrameRef<'a>),
    /// Bytes outside a frame were skipped ([`Recovery::Resync`] only).
    Skipped {
        bytes: usize,
    },
    /// Bytes that looked like a frame are none ([`Recovery::Resync`] only).
    Invalid(FrameError),
}

/// Called with each event; `Break` sets new limits for the following bytes.
pub type OnEvent<'f> = dyn FnMut(Event<'_>) -> ControlFlow<Limits> + 'f;

/// Finds frames in a stream. Parses directly from the input while no partial frame is stored,
/// and stores no more than one partial frame.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    recovery: Recovery,
    text: bool,
    partial: Vec<u8>,
    /// Where in `partial` the unprocessed bytes begin.
    start: usize,
    /// Bytes that may still be checksummed in vain; below 0 after too many.
    credit: i64,
    /// Bytes processed so far.
    done: u64,
}

/// What a buffer begins with.
enum Head<'a> {
    Frame(FrameRef<'a>, usize),
    /// More bytes are needed.
    Partial,
    Invalid(FrameError),
    /// Complete, but unchecked: the credit is used up.
    Unchecked,
}

impl Decoder {
    pub fn new(limits: Limits, recovery: Recovery) -> Decoder {
        Decoder { limits, recovery, text: false, partial: Vec::new(), start: 0, credit: MAX_CHECKED, done: 0 }
    }

    /// Also accepts text messages, around which the link has put a frame ([`super::text_header`]).
    /// A device that sends such a frame itself gains nothing by it.
    pub fn accept_text(mut self) -> Decoder {
        self.text = true;
        self
    }

    /// Limits from the next frame on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether there is an incomplete frame.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    fn begun(&self) -> &[u8] {
        self.partial.get(self.start..).unwrap_or_default()
    }

    /// Bytes of the incomplete frame received so far, and its length as far as it is known.
    pub fn partial(&self) -> (usize, usize) {
        let len = self.begun().len();
        (len, claimed(self.begun()).unwrap_or(0).max(len))
    }

    /// Offset of the incomplete frame in the stream.
    pub fn position(&self) -> u64 {
        self.done
    }

    /// Memory of the decoder, in bytes.
    pub fn memory(&self) -> usize {
        self.partial.capacity()
    }

    /// Decodes the next bytes of the stream and reports each event.
    ///
    /// # Errors
    /// With [`Recovery::Fail`], the first bytes outside a frame. The stream cannot be continued
    /// then.
    pub fn push(&mut self, input: &[u8], on_event: &mut OnEvent<'_>) -> Result<(), FrameError> {
        if self.partial.is_empty() {
            let used = self.scan(input, false, on_event)?;
            self.partial.extend_from_slice(&input[used..]); // scan uses at most the input
        } else {
            // Exactly what the frame needs.
            let (have, whole) = self.partial();
            let more = whole.max(have + input.len()) - have; // at least that
            let mut joined = std::mem::take(&mut self.partial);
            let start = std::mem::take(&mut self.start);
            match start {
                0 => joined.reserve_exact(more),
                _ => joined.reserve(more), // fewer moves while it grows in steps
            }
            joined.extend_from_slice(input);
            let done = start + self.scan(&joined[start..], false, on_event)?; // at most the length
            if done == start || self.recovery == Recovery::Resync && done < joined.len() / 2 {
                (self.partial, self.start) = (joined, done);
            } else {
                self.partial = joined[done..].to_vec(); // likewise
            }
        }
        Ok(())
    }

    /// The rest of an incomplete frame will not arrive: with [`Recovery::Resync`], searches for
    /// complete frames after its magic. Everything incomplete there is given up as well: no bytes
    /// are stored afterwards.
    ///
    /// # Errors
    /// With [`Recovery::Fail`], [`FrameError::Incomplete`].
    pub fn give_up_partial(&mut self, on_event: &mut OnEvent<'_>) -> Result<(), FrameError> {
        if self.recovery == Recovery::Fail {
            return Err(FrameError::Incomplete);
        }
        let (bytes, start) = (std::mem::take(&mut self.partial), std::mem::take(&mut self.start));
        self.scan(bytes.get(start..).unwrap_or_default(), true, on_event).map(drop)
    }

    /// The incomplete frame takes long: with [`Recovery::Resync`], it is given up if it contains a
    /// complete frame with a checksum. Since a body may contain one, call this only after the
    /// frame took longer than its length allows.
    pub fn look_inside(&mut self, on_event: &mut OnEvent<'_>) {
        let Some(found) = self.find_inside() else { return };
        let (bytes, start) = (std::mem::take(&mut self.partial), std::mem::take(&mut self.start));
        let (before, rest) = bytes.get(start..).unwrap_or_default().split_at(found); // it was found there
        // Only a decoder that does not resynchronise fails.
        let _ = self.scan(before, true, on_event);
        let _ = self.push(rest, on_event);
    }

    /// Offset of a complete frame after the magic of the incomplete one.
    fn find_inside(&mut self) -> Option<usize> {
        if self.recovery == Recovery::Fail {
            return None;
        }
        let begun = self.partial.get(self.start..)?;
        let mut at = 0;
        loop {
            let behind = begun.get(at..)?.get(MAGIC.len()..)?;
            at += MAGIC.len() + memmem::find(behind, &MAGIC)?;
            let rest = begun.get(at..)?;
            match head(rest, self.limits, false, self.credit > 0) {
                Head::Frame(frame, _) if frame.format.version == Version::V2 => return Some(at),
                Head::Invalid(FrameError::Checksum { .. }) => self.credit -= cost(rest),
                _ => {}
            }
        }
    }

    fn apply(&mut self, flow: ControlFlow<Limits>) {
        if let ControlFlow::Break(limits) = flow {
            self.limits = limits;
        }
    }

    /// Reports every frame in `input` and returns how many of its bytes are processed: all if the
    /// input `ended`, since an incomplete frame stays incomplete then.
    fn scan(&mut self, input: &[u8], ended: bool, on_event: &mut OnEvent<'_>) -> Result<usize, FrameError> {
        let mut at = 0;
        loop {
            let rest = &input[at..]; // at never passes the end
            if rest.is_empty() {
                return Ok(at);
            }
            let error = match head(rest, self.limits, self.text, self.credit > 0) {
                Head::Frame(frame, length) => {
                    at += length;
                    self.earn(length);
                    self.apply(on_event(Event::Frame(frame)));
                    continue;
                }
                Head::Partial if !ended => return Ok(at),
                Head::Partial => Some(FrameError::Incomplete),
                Head::Invalid(error) => Some(error),
                Head::Unchecked => None,
            };
            if let (Some(error), Recovery::Fail) = (error, self.recovery) {
                return Err(error);
            }
            // A claimed length is never trusted: only the magic is skipped.
            let begun = !matches!(error, Some(FrameError::BadMagic(_)));
            let magic = if begun { MAGIC.len().min(rest.len()) } else { 0 };
            let skip = magic + to_magic(&rest[magic..]); // within the input
            if let Some(error) = error.filter(|_| begun) {
                if matches!(error, FrameError::Checksum { .. }) {
                    self.credit -= cost(rest);
                }
                self.apply(on_event(Event::Invalid(error)));
            }
            at += skip;
            self.earn(skip);
            self.apply(on_event(Event::Skipped { bytes: skip }));
        }
    }

    /// `bytes` more are processed.
    fn earn(&mut self, bytes: usize) {
        let bytes = bytes as u64; // 64 bits at most on every target
        self.done = self.done.saturating_add(bytes);
        let earned = i64::try_from(bytes.saturating_mul(CHECKED_PER_BYTE)).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_add(earned).min(MAX_CHECKED);
    }
}

/// The bytes that a wrong checksum cost.
fn cost(bytes: &[u8]) -> i64 {
    claimed(bytes).and_then(|length| i64::try_from(length).ok()).unwrap_or(0)
}

/// Bytes before the next magic, or before an incomplete one at the end.
fn to_magic(bytes: &[u8]) -> usize {
    if let Some(at) = memmem::find(bytes, &MAGIC) {
        return at;
    }
    let begun = (1..MAGIC.len()).rev().find(|n| bytes.ends_with(&MAGIC[..*n])).unwrap_or(0);
    bytes.len() - begun
}

/// What `bytes` begin with. A checksum is computed only if the caller can `afford` one that
/// turns out wrong.
fn head(bytes: &[u8], limits: Limits, text: bool, afford: bool) -> Head<'_> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        let mut got = [0; 4];
        got[..known].copy_from_slice(&bytes[..known]);
        return Head::Invalid(FrameError::BadMagic(got));
    }
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Head::Partial };
    let [_, _, _, _, version, kind, l0, l1, l2, l3] = *header;
    let version = match version {
        1 if limits.require_checksum => return Head::Invalid(FrameError::ChecksumRequired),
        1 => Version::V1,
        2 => Version::V2,
        TEXT if text => Version::Text,
        other => return Head::Invalid(FrameError::Version(other)),
    };
    let encoding = match kind >> 4 & 0x7 {
        0 => BodyEncoding::Postcard,
        1 => BodyEncoding::Json,
        2 => BodyEncoding::Protobuf,
        other => return Head::Invalid(FrameError::Encoding(other)),
    };
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize; // at least 32 bits on every target
    let max = limits.max_body.min(MAX_BODY);
    if length > max {
        return Head::Invalid(FrameError::TooLarge { got: length, max });
    }
    let end = HEADER + length;
    let Some(body) = bytes.get(HEADER..end) else { return Head::Partial };
    let frame = FrameRef { format: Format { version, encoding }, kind: kind & 0x8f, body };
    if version != Version::V2 {
        return Head::Frame(frame, end);
    }
    let Some(checksum) = bytes.get(end..).and_then(|rest| rest.first_chunk::<CHECKSUM>()) else {
        return Head::Partial;
    };
    if !afford {
        return Head::Unchecked;
    }
    let got = u32::from_be_bytes(*checksum);
    let expected = crc32fast::hash(&bytes[..end]); // the body was found before it
    if got != expected {
        return Head::Invalid(FrameError::Checksum { expected, got });
    }
    Head::Frame(frame, end + CHECKSUM)
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { max_body: 300, require_checksum: false };

    #[derive(Debug, Clone, PartialEq)]
    enum Seen {
        Frame(Format, u8, Vec<u8>),
        Skipped(usize),
        Invalid(&'static str),
    }

    fn see(event: Event<'_>) -> Seen {
        match event {
            Event::Frame(frame) => Seen::Frame(frame.format, frame.kind, frame.body.to_vec()),
            Event::Skipped { bytes } => Seen::Skipped(bytes),
            Event::Invalid(error) => Seen::Invalid(error.label()),
        }
    }

    fn push(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Seen>, FrameError> {
        let mut seen = Vec::new();
        decoder.push(bytes, &mut |event| {
            seen.push(see(event));
            ControlFlow::Continue(())
        })?;
        Ok(seen)
    }

    fn frames(seen: &[Seen]) -> Vec<Seen> {
        seen.iter().filter(|seen| matches!(seen, Seen::Frame(..))).cloned().collect()
    }

    fn any_frame() -> impl Strategy<Value = Seen> {
        let version = prop_oneof![Just(Version::V1), Just(Version::V2)];
        any_frame_of(version)
    }

    fn any_frame_of(version: impl Strategy<Value = Version>) -> impl Strategy<Value = Seen> {
        let encoding =
            prop_oneof![Just(BodyEncoding::Postcard), Just(BodyEncoding::Json), Just(BodyEncoding::Protobuf)];
        let body = proptest::collection::vec(any::<u8>(), 0..80);
        (version, encoding, any::<bool>(), 0u8..16, body).prop_map(|(version, encoding, gateway, kind, body)| {
            Seen::Frame(Format { version, encoding }, kind | u8::from(gateway) << 7, body)
        })
    }

    fn bytes(frame: &Seen) -> Vec<u8> {
        let mut out = Vec::new();
        if let Seen::Frame(format, kind, body) = frame {
            encode(*format, *kind, &mut out, |out| out.extend_from_slice(body));
        }
        out
    }

    fn fed(decoder: &mut Decoder, stream: &[u8], cuts: &[prop::sample::Index]) -> Result<Vec<Seen>, FrameError> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let mut seen = Vec::new();
        for pair in cuts.windows(2) {
            seen.extend(push(decoder, &stream[pair[0]..pair[1]])?);
        }
        Ok(seen)
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_frames(
            sent in proptest::collection::vec(any_frame(), 0..8),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
            recovery in prop_oneof![Just(Recovery::Fail), Just(Recovery::Resync)],
        ) {
            let stream: Vec<u8> = sent.iter().flat_map(bytes).collect();
            let mut decoder = Decoder::new(LIMITS, recovery);
            prop_assert_eq!(fed(&mut decoder, &stream, &cuts), Ok(sent));
            prop_assert!(!decoder.is_partial());
        }

        /// Garbage without a magic costs no frame, however it is split, and every byte of it is
        /// counted.
        #[test]
        fn garbage_between_frames_is_skipped_and_counted(
            sent in proptest::collection::vec((proptest::collection::vec(0x80u8.., 0..30), any_frame()), 0..8),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let stream: Vec<u8> = sent.iter().flat_map(|(noise, frame)| [noise.clone(), bytes(frame)].concat()).collect();
            let seen = fed(&mut Decoder::new(LIMITS, Recovery::Resync), &stream, &cuts).expect("it resynchronises");
            let skipped: usize = seen.iter().map(|seen| if let Seen::Skipped(n) = seen { *n } else { 0 }).sum();
            prop_assert_eq!(skipped, sent.iter().map(|(noise, _)| noise.len()).sum::<usize>());
            prop_assert_eq!(frames(&seen), sent.into_iter().map(|(_, frame)| frame).collect::<Vec<_>>());
        }

        /// Whatever happens to one frame, the frames after it arrive once it is given up.
        #[test]
        fn a_damaged_frame_takes_no_other_with_it(
            damaged in any_frame_of(Just(Version::V2)),
            behind in proptest::collection::vec(any_frame_of(Just(Version::V2)), 1..6),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut stream = bytes(&damaged);
            let at = at.index(stream.len());
            stream[at] ^= flip;
            stream.extend(behind.iter().flat_map(bytes));
            let limits = Limits { require_checksum: true, ..LIMITS };
            let mut decoder = Decoder::new(limits, Recovery::Resync);
            let mut seen = push(&mut decoder, &stream).expect("it resynchronises");
            while decoder.is_partial() {
                decoder.give_up_partial(&mut |event| {
                    seen.push(see(event));
                    ControlFlow::Continue(())
                }).expect("it resynchronises");
            }
            // A body may contain a frame, which is found when the outer one is lost.
            let got = frames(&seen);
            prop_assert!(got.ends_with(&behind), "{:?}", got);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            stream in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..9),
        ) {
            let _ = fed(&mut Decoder::new(LIMITS, Recovery::Fail), &stream, &cuts);
            let _ = fed(&mut Decoder::new(LIMITS, Recovery::Resync), &stream, &cuts);
        }
    }

    const POSTCARD_V2: Format = Format { version: Version::V2, encoding: BodyEncoding::Postcard };

    fn frame_of(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(POSTCARD_V2, 3, &mut out, |out| out.extend_from_slice(body));
        out
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_is_refused_before_the_body_arrives() {
        let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
        let header = [0x12, 0x34, 0x56, 0x7f, 2, 3, 0, 0, 1, 45];
        assert_eq!(push(&mut decoder, &header), Err(FrameError::TooLarge { got: 301, max: 300 }));
    }

    #[test]
    fn a_corrupted_length_swallows_no_frame_behind_it() {
        let mut stream = frame_of(b"first");
        stream[8] = 1; // it now claims 261 bytes
        stream.extend(frame_of(b"second"));
        let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
        assert_eq!(push(&mut decoder, &stream), Ok(vec![]));
        let mut seen = Vec::new();
        let given_up = decoder.give_up_partial(&mut |event| {
            seen.push(see(event));
            ControlFlow::Continue(())
        });
        assert_eq!((given_up, frames(&seen)), (Ok(()), vec![Seen::Frame(POSTCARD_V2, 3, b"second".to_vec())]));
    }

    fn given_up(decoder: &mut Decoder) -> Vec<Seen> {
        let mut seen = Vec::new();
        let given_up = decoder.give_up_partial(&mut |event| {
            seen.push(see(event));
            ControlFlow::Continue(())
        });
        assert_eq!(given_up, Ok(()));
        seen
    }

    #[test]
    fn whatever_has_begun_before_a_whole_frame_is_given_up_by_one_silence() {
        let hello = frame_of(b"hello");
        for heads in [1, 20, 80, 400] {
            let stream = [frame_of(&[7; 250])[..14].repeat(heads), hello.clone(), hello[..3].to_vec()].concat();
            let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
            let mut seen = push(&mut decoder, &stream).expect("it resynchronises");
            seen.extend(given_up(&mut decoder));
            assert_eq!(frames(&seen), [Seen::Frame(POSTCARD_V2, 3, b"hello".to_vec())], "{heads} heads");
            assert!(!decoder.is_partial() && decoder.memory() == 0);
            let skipped: usize = seen.iter().map(|seen| if let Seen::Skipped(n) = seen { *n } else { 0 }).sum();
            assert_eq!(skipped, heads * 14 + 3);
        }
    }

    #[test]
    fn what_takes_long_is_given_up_for_a_whole_frame_in_it_and_for_nothing_else() {
        let large = frame_of(&[&b"before "[..], &frame_of(b"inside"), b" behind"].concat());
        let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
        let mut seen = push(&mut decoder, &large[..large.len() - 1]).expect("it resynchronises");
        assert!(decoder.is_partial() && seen.is_empty(), "the frame around it goes first");
        let look = |decoder: &mut Decoder, seen: &mut Vec<Seen>| {
            decoder.look_inside(&mut |event| {
                seen.push(see(event));
                ControlFlow::Continue(())
            });
        };
        look(&mut decoder, &mut seen);
        assert_eq!(frames(&seen), [Seen::Frame(POSTCARD_V2, 3, b"inside".to_vec())]);
        assert!(!decoder.is_partial());

        let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
        let unchecked = [&large[..20], &[0x12, 0x34, 0x56, 0x7f, 1, 3, 0, 0, 0, 0], &large[..14]].concat();
        let mut seen = push(&mut decoder, &unchecked).expect("it resynchronises");
        look(&mut decoder, &mut seen);
        assert!(seen.is_empty() && decoder.position() == 0, "{seen:?}");
    }

    /// Headers as close together as possible, each of a frame that becomes complete and is invalid.
    #[test]
    fn a_stream_full_of_heads_costs_no_more_than_its_length_allows() {
        let limits = Limits { max_body: MAX_BODY, require_checksum: true };
        let head = [0x12, 0x34, 0x56, 0x7f, 2, 3, 0, 7, 0xff, 0xf0]; // half a MiB
        let stream = head.repeat(100_000);
        let mut decoder = Decoder::new(limits, Recovery::Resync);
        let (mut wrong, mut skipped) = (0, 0);
        for piece in stream.chunks(100) {
            decoder
                .push(piece, &mut |event| {
                    match event {
                        Event::Invalid(FrameError::Checksum { .. }) => wrong += 1,
                        Event::Skipped { bytes } => skipped += bytes,
                        other => panic!("{other:?}"),
                    }
                    ControlFlow::Continue(())
                })
                .expect("it resynchronises");
        }
        let most = MAX_CHECKED.unsigned_abs() + CHECKED_PER_BYTE * stream.len() as u64 + MAX_BODY as u64;
        assert!(wrong * 0x7fff0 <= most, "{wrong} checksums");
        assert!(
            skipped >= stream.len() - 0x7fff0 - 14 && decoder.memory() <= 4 * MAX_BODY,
            "{skipped}, {}",
            decoder.memory()
        );
        // The frame after all that is found once the stream ends.
        let mut seen = push(&mut decoder, &frame_of(b"hello")).expect("it resynchronises");
        seen.extend(given_up(&mut decoder));
        assert_eq!(frames(&seen), [Seen::Frame(POSTCARD_V2, 3, b"hello".to_vec())]);
    }

    #[test]
    fn limits_may_change_between_two_frames_of_one_read() {
        let mut decoder = Decoder::new(Limits { max_body: 5, ..LIMITS }, Recovery::Fail);
        let stream = [frame_of(b"small"), frame_of(b"larger")].concat();
        let mut count = 0;
        let result = decoder.push(&stream, &mut |_| {
            count += 1;
            ControlFlow::Break(LIMITS)
        });
        assert_eq!((result, count), (Ok(()), 2));
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let fault = |change: fn(&mut Vec<u8>), require_checksum| {
            let mut stream = frame_of(b"body");
            change(&mut stream);
            push(&mut Decoder::new(Limits { require_checksum, ..LIMITS }, Recovery::Fail), &stream)
        };
        assert_eq!(fault(|s| s[0] = 0, false), Err(FrameError::BadMagic([0, 0x34, 0x56, 0x7f])));
        assert_eq!(fault(|s| s[4] = 3, false), Err(FrameError::Version(3)));
        assert_eq!(fault(|s| s[4] = 1, true), Err(FrameError::ChecksumRequired));
        assert_eq!(fault(|s| s[5] = 0x33, false), Err(FrameError::Encoding(3)));
        assert!(matches!(fault(|s| s[11] ^= 1, false), Err(FrameError::Checksum { .. })));
        assert_eq!(push(&mut Decoder::new(LIMITS, Recovery::Fail), b"GET "), Err(FrameError::BadMagic(*b"GET ")));
    }

    #[test]
    fn nothing_is_held_after_a_whole_frame() {
        let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
        let frame = frame_of(b"body");
        push(&mut decoder, &frame[..5]).expect("a partial frame");
        assert!(decoder.is_partial());
        assert_eq!(push(&mut decoder, &frame[5..]).map(|seen| seen.len()), Ok(1));
        assert_eq!(decoder.partial.capacity(), 0);
    }
}
