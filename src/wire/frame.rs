//! Frames: from a stream of bytes and back, without any I/O.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `0x1234567F` |
//! | 4 | 1 | version: 1 without, 2 with a checksum |
//! | 5 | 1 | type: bit 7 from the gateway, bits 6-4 body encoding, bits 3-0 message |
//! | 6 | 4 | length of the body |
//! | 10 | n | body |
//! | 10+n | 4 | version 2: CRC-32 (ISO-HDLC) over all before it |
//!
//! Numbers are big-endian. See `docs/protocol.md`, "Frames".

use super::message::Reason;
use memchr::memmem;
use std::ops::ControlFlow;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = [0x12, 0x34, 0x56, 0x7f];
/// Bytes before the body.
pub const HEADER: usize = 10;
/// Bytes of a version 2 frame's checksum.
pub const CHECKSUM: usize = 4;
/// In place of the version: the body is a text message.
const TEXT: u8 = 0xff;
/// No link may accept bodies larger than this, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// The frame format's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No checksum.
    V1,
    /// CRC-32 behind the body.
    V2,
    /// No frame at all: a text message of a WebSocket, see [`super::text`]. It stands in
    /// a frame only between a link and its decoder, see [`Decoder::accept_text`].
    Text,
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEncoding {
    Postcard,
    Json,
    Protobuf,
}

/// The shape in which a peer speaks and is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub version: Version,
    pub encoding: BodyEncoding,
}

/// A whole, checked frame, still in the buffer it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    pub format: Format,
    /// Bits 7 and 3-0 of the type byte: direction and message.
    pub kind: u8,
    pub body: &'a [u8],
}

/// What a link accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest body in bytes, [`MAX_BODY`] at most.
    pub max_body: usize,
    /// Refuse version 1.
    pub require_checksum: bool,
}

/// What happens after bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The stream cannot be trusted any more: fail.
    Fail,
    /// The line is noisy: go on with the next valid frame.
    Resync,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("expected the magic 12 34 56 7f at the start of a frame, got {0:02x?}")]
    BadMagic([u8; 4]),
    #[error("frame version {0} is unknown; this gateway speaks 1 and 2")]
    Version(u8),
    #[error("version 1 frames carry no checksum and are refused on this link; send version 2")]
    ChecksumRequired,
    #[error("body encoding {0} is unknown; this gateway speaks 0 (postcard), 1 (JSON) and 2 (Protobuf)")]
    Encoding(u8),
    #[error("a body of {got} bytes is larger than the {max} accepted now")]
    TooLarge { got: usize, max: usize },
    #[error("the frame's checksum is {got:08x}, its bytes give {expected:08x}")]
    Checksum { expected: u32, got: u32 },
    #[error("the frame was not complete in time")]
    Incomplete,
}

impl FrameError {
    /// A short constant name for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            FrameError::BadMagic(_) => "bad_magic",
            FrameError::Version(_) => "version",
            FrameError::ChecksumRequired => "checksum_required",
            FrameError::Encoding(_) => "encoding",
            FrameError::TooLarge { .. } => "too_large",
            FrameError::Checksum { .. } => "checksum",
            FrameError::Incomplete => "incomplete",
        }
    }

    /// What the peer is told in a Goodbye.
    pub fn reason(&self) -> Reason {
        match self {
            FrameError::TooLarge { .. } => Reason::TooLarge,
            FrameError::Incomplete => Reason::Timeout,
            _ => Reason::BadFrame,
        }
    }
}

/// What a decoder found.
#[derive(Debug)]
pub enum Event<'a> {
    Frame(FrameRef<'a>),
    /// Bytes that belong to no frame were skipped ([`Recovery::Resync`] only).
    Skipped {
        bytes: usize,
    },
    /// What looked like a frame is none ([`Recovery::Resync`] only).
    Invalid(FrameError),
}

/// Called with each event; `Break` sets new limits for what stands behind it.
pub type OnEvent<'f> = dyn FnMut(Event<'_>) -> ControlFlow<Limits> + 'f;

/// Finds frames in a stream. Parses straight from the input while nothing is left
/// over from before, and holds on to no more than one partial frame.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    recovery: Recovery,
    text: bool,
    partial: Vec<u8>,
}

/// What stands at the start of a buffer.
enum Head<'a> {
    Frame(FrameRef<'a>, usize),
    /// More bytes are needed.
    Partial,
    Invalid(FrameError),
}

impl Decoder {
    pub fn new(limits: Limits, recovery: Recovery) -> Decoder {
        Decoder { limits, recovery, text: false, partial: Vec::new() }
    }

    /// Takes text messages too, around which the link has put a frame ([`text_header`]).
    /// A device that puts it there itself says nothing that it could not say otherwise.
    pub fn accept_text(mut self) -> Decoder {
        self.text = true;
        self
    }

    /// What is accepted from the next frame on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether a frame has begun and is not complete.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Bytes of the frame that has begun, and how many it is going to have as far as
    /// that can be told.
    pub fn partial(&self) -> (usize, usize) {
        let len = self.partial.len();
        (len, claimed(&self.partial).unwrap_or(0).max(len))
    }

    /// Memory that the decoder holds, in bytes.
    pub fn memory(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes the next bytes of the stream and reports what they complete.
    ///
    /// # Errors
    /// With [`Recovery::Fail`], the first thing that is no frame. The stream
    /// cannot be continued then.
    pub fn push(&mut self, input: &[u8], on_event: &mut OnEvent<'_>) -> Result<(), FrameError> {
        if self.partial.is_empty() {
            let used = self.scan(input, on_event)?;
            self.partial.extend_from_slice(&input[used..]); // scan used no more than there is
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            // All that the frame is going to take at once, and nothing beyond it.
            let whole = claimed(&joined).unwrap_or(0).max(joined.len() + input.len());
            joined.reserve_exact(whole - joined.len()); // it is no less
            joined.extend_from_slice(input);
            match self.scan(&joined, on_event)? {
                0 => self.partial = joined,
                used => self.partial = joined[used..].to_vec(), // scan used no more than there is
            }
        }
        Ok(())
    }

    /// The rest of a partial frame is not coming: with [`Recovery::Resync`], looks
    /// for frames behind its magic.
    ///
    /// # Errors
    /// With [`Recovery::Fail`], [`FrameError::Incomplete`].
    pub fn give_up_partial(&mut self, on_event: &mut OnEvent<'_>) -> Result<(), FrameError> {
        if self.recovery == Recovery::Fail {
            return Err(FrameError::Incomplete);
        }
        let bytes = std::mem::take(&mut self.partial);
        if bytes.is_empty() {
            return Ok(());
        }
        let skipped = bytes.len().min(MAGIC.len());
        self.apply(on_event(Event::Invalid(FrameError::Incomplete)));
        self.apply(on_event(Event::Skipped { bytes: skipped }));
        self.push(&bytes[skipped..], on_event) // skipped is at most its length
    }

    fn apply(&mut self, flow: ControlFlow<Limits>) {
        if let ControlFlow::Break(limits) = flow {
            self.limits = limits;
        }
    }

    /// Reports every frame in `input` and returns how many of its bytes are done with.
    fn scan(&mut self, input: &[u8], on_event: &mut OnEvent<'_>) -> Result<usize, FrameError> {
        let mut at = 0;
        loop {
            let rest = &input[at..]; // at never passes the end
            if rest.is_empty() {
                return Ok(at);
            }
            match head(rest, self.limits, self.text) {
                Head::Frame(frame, length) => {
                    at += length;
                    self.apply(on_event(Event::Frame(frame)));
                }
                Head::Partial => return Ok(at),
                Head::Invalid(error) if self.recovery == Recovery::Fail => return Err(error),
                Head::Invalid(error) => {
                    // A claimed length is never trusted: only the magic is passed over.
                    let magic = if matches!(error, FrameError::BadMagic(_)) { 0 } else { MAGIC.len() };
                    let skip = magic + to_magic(&rest[magic..]); // a whole magic was there
                    if magic > 0 {
                        self.apply(on_event(Event::Invalid(error)));
                    }
                    at += skip;
                    self.apply(on_event(Event::Skipped { bytes: skip }));
                }
            }
        }
    }
}

/// How long the whole frame at the start of `bytes` says it is. Only of bytes that
/// [`head`] took for the start of a frame.
fn claimed(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk::<HEADER>().map(whole_length)
}

/// How long a frame with this header says it is, no longer than any may be.
pub fn whole_length(header: &[u8; HEADER]) -> usize {
    let [.., version, _, l0, l1, l2, l3] = *header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize; // at least 32 bits on every target
    HEADER + length.min(MAX_BODY) + if version == 2 { CHECKSUM } else { 0 }
}

/// How many bytes stand before the next magic, or before what may become one.
fn to_magic(bytes: &[u8]) -> usize {
    if let Some(at) = memmem::find(bytes, &MAGIC) {
        return at;
    }
    let begun = (1..MAGIC.len()).rev().find(|n| bytes.ends_with(&MAGIC[..*n])).unwrap_or(0);
    bytes.len() - begun
}

fn head(bytes: &[u8], limits: Limits, text: bool) -> Head<'_> {
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
    let got = u32::from_be_bytes(*checksum);
    let expected = crc32fast::hash(&bytes[..end]); // the body was found before it
    if got != expected {
        return Head::Invalid(FrameError::Checksum { expected, got });
    }
    Head::Frame(frame, end + CHECKSUM)
}

/// What a link puts before a text message of so many bytes on its way to a decoder.
pub fn text_header(length: u64) -> [u8; HEADER] {
    let [m0, m1, m2, m3] = MAGIC;
    // What is too long for the field is longer than any limit.
    let [l0, l1, l2, l3] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [m0, m1, m2, m3, TEXT, 1 << 4, l0, l1, l2, l3]
}

/// The first frame of `bytes`, which [`encode`] made, and what follows it: all its bytes,
/// the kind as in [`FrameRef`], and its body alone if it is a text message.
pub fn split_encoded(bytes: &[u8]) -> Option<(Encoded<'_>, &[u8])> {
    let (whole, rest) = bytes.split_at_checked(claimed(bytes)?)?;
    let [_, _, _, _, version, kind, ..] = *whole.first_chunk::<HEADER>()?;
    let text = (version == TEXT).then(|| whole.split_at(HEADER).1);
    Some((Encoded { whole, kind: kind & 0x8f, text }, rest))
}

/// See [`split_encoded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded<'a> {
    pub whole: &'a [u8],
    pub kind: u8,
    pub text: Option<&'a [u8]>,
}

/// Appends a frame around the body that `body` appends.
///
/// `kind` holds direction and message as in [`FrameRef::kind`]. The body must not
/// be longer than [`MAX_BODY`], which no message of ours is.
pub fn encode(format: Format, kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let version = match format.version {
        Version::V1 => 1,
        Version::V2 => 2,
        Version::Text => TEXT,
    };
    let encoding = match format.encoding {
        BodyEncoding::Postcard => 0,
        BodyEncoding::Json => 1,
        BodyEncoding::Protobuf => 2,
    };
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[version, kind | encoding << 4, 0, 0, 0, 0]);
    body(out);
    let length = u32::try_from(out.len() - start - HEADER).unwrap_or(u32::MAX);
    out[start + 6..start + HEADER].copy_from_slice(&length.to_be_bytes()); // the header was just written
    if format.version == Version::V2 {
        let checksum = crc32fast::hash(&out[start..]); // likewise
        out.extend_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
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

        /// Garbage that holds no magic costs no frame, however it is cut, and every
        /// byte of it is counted.
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

        /// Whatever happens to one frame, those behind it arrive once it is given up.
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
            // A body may hold a frame of its own, which shows when its frame is gone.
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
