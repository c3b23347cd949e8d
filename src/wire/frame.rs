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
/// No link may accept bodies larger than this, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// The frame format's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No checksum.
    V1,
    /// CRC-32 behind the body.
    V2,
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEncoding {
    Postcard,
    Json,
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
    #[error("body encoding {0} is unknown; this gateway speaks 0 (postcard) and 1 (JSON)")]
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

/// Called with each event; `Break` stops the decoder right behind that frame,
/// the rest of the input being kept for the next call.
pub type OnEvent<'f> = dyn FnMut(Event<'_>) -> ControlFlow<Limits> + 'f;

/// Finds frames in a stream. Parses straight from the input while nothing is left
/// over from before, and holds on to no more than one partial frame.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    recovery: Recovery,
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
        Decoder { limits, recovery, partial: Vec::new() }
    }

    /// What is accepted from the next frame on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether a frame has begun and is not complete.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Takes the next bytes of the stream and reports what they complete. The
    /// callback may change the limits for what follows by breaking with new ones.
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
            joined.extend_from_slice(input);
            let used = self.scan(&joined, on_event)?;
            if used < joined.len() {
                joined.drain(..used);
                self.partial = joined;
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
            match head(rest, self.limits) {
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

/// How many bytes stand before the next magic, or before what may become one.
fn to_magic(bytes: &[u8]) -> usize {
    if let Some(at) = memmem::find(bytes, &MAGIC) {
        return at;
    }
    let begun = (1..MAGIC.len()).rev().find(|n| bytes.ends_with(&MAGIC[..*n])).unwrap_or(0);
    bytes.len() - begun
}

fn head(bytes: &[u8], limits: Limits) -> Head<'_> {
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
        other => return Head::Invalid(FrameError::Version(other)),
    };
    let encoding = match kind >> 4 & 0x7 {
        0 => BodyEncoding::Postcard,
        1 => BodyEncoding::Json,
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
    if version == Version::V1 {
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

/// Appends a frame around the body that `body` appends.
///
/// `kind` holds direction and message as in [`FrameRef::kind`]. The body must not
/// be longer than [`MAX_BODY`], which no message of ours is.
pub fn encode(format: Format, kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let version = match format.version {
        Version::V1 => 1,
        Version::V2 => 2,
    };
    let encoding = match format.encoding {
        BodyEncoding::Postcard => 0,
        BodyEncoding::Json => 1,
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
