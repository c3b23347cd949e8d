//! Frames: decoding from a stream of bytes and encoding, without any I/O.
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

mod decoder;

pub use decoder::{Decoder, Event, OnEvent};

use super::message::Reason;

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
/// Bit 7 of a frame's type: from the gateway.
pub const FROM_GATEWAY: u8 = 0x80;

/// The frame format's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No checksum.
    V1,
    /// CRC-32 behind the body.
    V2,
    /// Not a frame: a text message of a WebSocket, see [`super::text`]. A frame around it
    /// exists only between a link and its decoder, see [`Decoder::accept_text`].
    Text,
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEncoding {
    Postcard,
    Json,
    Protobuf,
}

/// The format in which a peer sends, and in which it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub version: Version,
    pub encoding: BodyEncoding,
}

/// A complete, checked frame, still in the buffer it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    pub format: Format,
    /// Bits 7 and 3-0 of the type byte: direction and message.
    pub kind: u8,
    pub body: &'a [u8],
}

impl FrameRef<'_> {
    /// The type byte as received, body encoding included.
    pub fn type_byte(&self) -> u8 {
        self.kind | number(self.format.encoding) << 4
    }

    /// Whether the gateway sent it; received by the gateway, it is an echo of its own frame.
    pub fn is_from_gateway(&self) -> bool {
        self.kind & FROM_GATEWAY != 0
    }
}

/// Limits of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest body in bytes, [`MAX_BODY`] at most.
    pub max_body: usize,
    /// Refuse version 1.
    pub require_checksum: bool,
}

/// Reaction to bytes outside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The stream cannot be trusted any more: fail.
    Fail,
    /// The line is noisy: continue with the next valid frame.
    Resync,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("expected the magic 12 34 56 7f at the start of a frame, got {}{}", hex(.0), likely(.0))]
    BadMagic([u8; 4]),
    #[error("frame version {0} is unknown; this gateway speaks 1 and 2")]
    Version(u8),
    #[error("version 1 frames carry no checksum and are refused on this link; send version 2")]
    ChecksumRequired,
    #[error("body encoding {0} is unknown; this gateway speaks 0 (postcard), 1 (JSON) and 2 (Protobuf)")]
    Encoding(u8),
    #[error("a body of {got} bytes is larger than the {max} accepted now{}", if is_reversed(*.got, *.max) { REVERSED } else { "" })]
    TooLarge { got: usize, max: usize },
    #[error("the frame's checksum is {got:08x}, its bytes give {expected:08x}{}", if .got.swap_bytes() == *.expected { REVERSED } else { "" })]
    Checksum { expected: u32, got: u32 },
    #[error("the frame was not complete in time")]
    Incomplete,
}

/// Hint for a number that is plausible with its bytes reversed.
const REVERSED: &str = ": its bytes are in reverse order; send the most significant one first (big-endian)";

/// Whether a length above the limit is within it with its bytes reversed.
fn is_reversed(got: usize, max: usize) -> bool {
    u32::try_from(got).is_ok_and(|got| (1..=max).contains(&(got.swap_bytes() as usize))) // at least 32 bits everywhere
}

fn hex(bytes: &[u8; 4]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(" ")
}

/// The protocol that begins with these bytes, if it is known.
fn likely(bytes: &[u8; 4]) -> &'static str {
    match bytes {
        [0x7f, 0x56, 0x34, 0x12] => REVERSED,
        [0x16, 3, ..] => {
            ": that is TLS; give the link `cert_file` and `key_file`, or have the device connect without TLS"
        }
        b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" => {
            ": that is HTTP; HTTP and WebSocket are served at [http] listen, this link takes frames"
        }
        [0x10, _, 0, 4 | 6] => ": that is MQTT; this link takes frames",
        _ => "",
    }
}

impl FrameError {
    /// A constant name for metrics.
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

    /// The reason in a Goodbye to the peer.
    pub fn reason(&self) -> Reason {
        match self {
            FrameError::TooLarge { .. } => Reason::TooLarge,
            FrameError::Incomplete => Reason::Timeout,
            _ => Reason::BadFrame,
        }
    }
}

/// Number of a body encoding, bits 6-4 of the type byte.
fn number(encoding: BodyEncoding) -> u8 {
    match encoding {
        BodyEncoding::Postcard => 0,
        BodyEncoding::Json => 1,
        BodyEncoding::Protobuf => 2,
    }
}

/// Length of the frame at the start of `bytes` by its header. Only for bytes that [`head`]
/// accepts as the start of a frame.
fn claimed(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk::<HEADER>().map(whole_length)
}

/// Length of the frame with this header, at most the longest frame.
pub fn whole_length(header: &[u8; HEADER]) -> usize {
    let [.., version, _, l0, l1, l2, l3] = *header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize; // at least 32 bits on every target
    HEADER + length.min(MAX_BODY) + if version == 2 { CHECKSUM } else { 0 }
}

/// The header that a link puts before a text message of `length` bytes for its decoder.
pub fn text_header(length: u64) -> [u8; HEADER] {
    let [m0, m1, m2, m3] = MAGIC;
    // A length beyond the field is above any limit.
    let [l0, l1, l2, l3] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [m0, m1, m2, m3, TEXT, 1 << 4, l0, l1, l2, l3]
}

/// The first frame of `bytes`, which [`encode`] wrote, and the bytes after it: the whole frame,
/// its kind as in [`FrameRef`], and for a text message its body only.
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
/// `kind` holds direction and message as in [`FrameRef::kind`]. The body must not exceed
/// [`MAX_BODY`]; no message of the gateway does.
pub fn encode(format: Format, kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    let version = match format.version {
        Version::V1 => 1,
        Version::V2 => 2,
        Version::Text => TEXT,
    };
    let encoding = number(format.encoding);
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
