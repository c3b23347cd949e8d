//! Frames of a WebSocket (RFC 6455), of clients and servers, without any I/O. Only the payload
//! of control frames is buffered: a message's payload is passed on as it arrives, whatever its
//! length.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// The GUID of the handshake (1.3).
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key` (4.2.2).
pub fn accept(key: &[u8]) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC.as_bytes()].concat()))
}

/// Largest payload of a control frame, in bytes.
pub const MAX_CONTROL: usize = 125;
/// The longest header: two bytes, a length of eight and the mask.
const MAX_HEADER: usize = 14;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// Bit 7 of the first byte: the message's last frame.
const LAST: u8 = 0x80;
/// Bit 7 of the second byte.
const MASKED: u8 = 0x80;

/// Why a connection is closed; sent to the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{why} (WebSocket close code {code})")]
pub struct Violation {
    pub code: u16,
    pub why: &'static str,
}

/// The far end violated the WebSocket protocol.
pub const PROTOCOL_ERROR: u16 = 1002;

fn violation(why: &'static str) -> Violation {
    Violation { code: PROTOCOL_ERROR, why }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
}

/// A decoded event.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A frame of a message begins, with `length` bytes. It is the message's first if `first`,
    /// and its last if `last`.
    Begin {
        kind: Kind,
        first: bool,
        last: bool,
        length: u64,
    },
    /// Part of the frame's payload.
    Data(&'a [u8]),
    /// The message is complete.
    Complete,
    Ping(&'a [u8]),
    /// A close frame: empty, or a code of two bytes and a reason as text.
    Close(&'a [u8]),
}

/// Decodes frames.
#[derive(Debug, Default)]
pub struct Reader {
    /// The frames are a server's, which are not masked.
    from_server: bool,
    header: [u8; MAX_HEADER],
    have: usize,
    frame: Option<Frame>,
    /// The kind of the message that is being received.
    message: Option<Kind>,
    /// Payload of a control frame received so far.
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: u8,
    last: bool,
    left: u64,
    /// Rotated so that its first byte applies to the next byte.
    mask: [u8; 4],
}

impl Reader {
    /// For a server's frames; [`Reader::default`] is for a client's.
    pub fn of_server() -> Reader {
        Reader { from_server: true, ..Reader::default() }
    }

    /// Decodes the next bytes of the stream, which are unmasked in place, and reports the
    /// events.
    ///
    /// # Errors
    /// If they violate the protocol, or `on_event` fails.
    pub fn push(
        &mut self,
        mut bytes: &mut [u8],
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let Some(mut frame) = self.frame else {
                let taken = self.take_header(bytes, on_event)?;
                bytes = bytes.split_at_mut(taken).1; // no more than there is
                continue;
            };
            let length = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len());
            let (data, rest) = bytes.split_at_mut(length);
            bytes = rest;
            for (at, byte) in data.iter_mut().enumerate() {
                *byte ^= frame.mask[at % 4]; // a remainder by its length
            }
            frame.mask.rotate_left(length % 4); // likewise
            frame.left -= length as u64; // it is no more
            self.frame = Some(frame);
            if frame.opcode >= CLOSE {
                self.control.extend_from_slice(data);
            } else {
                on_event(Event::Data(data))?;
            }
            if frame.left == 0 {
                self.complete(frame, on_event)?;
            }
        }
        Ok(())
    }

    /// Takes header bytes; returns how many.
    fn take_header(
        &mut self,
        bytes: &[u8],
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Violation>,
    ) -> Result<usize, Violation> {
        for (taken, byte) in bytes.iter().enumerate() {
            self.header[self.have] = *byte; // it is complete before it is full
            self.have += 1;
            if self.have == 2 {
                self.check_header()?;
            }
            if let Some(frame) = self.whole_header()? {
                self.have = 0;
                self.begin(frame, on_event)?;
                return Ok(taken + 1);
            }
        }
        Ok(bytes.len())
    }

    /// Checks the first two bytes.
    fn check_header(&self) -> Result<(), Violation> {
        let [first, second, ..] = self.header;
        let (opcode, length) = (first & 0x0f, second & 0x7f);
        if first & 0x70 != 0 {
            return Err(violation("a reserved bit is set"));
        }
        match (self.from_server, second & MASKED == 0) {
            (false, true) => return Err(violation("a frame from a client is not masked")),
            (true, false) => return Err(violation("a frame from a server is masked")),
            _ => {}
        }
        match opcode {
            CONTINUATION if self.message.is_none() => Err(violation("a message begins with a continuation")),
            TEXT | BINARY if self.message.is_some() => Err(violation("a message begins within another")),
            CONTINUATION | TEXT | BINARY => Ok(()),
            CLOSE | PING | PONG if first & LAST == 0 => Err(violation("a control frame is in pieces")),
            CLOSE | PING | PONG if usize::from(length) > MAX_CONTROL => Err(violation("a control frame is too long")),
            CLOSE if length == 1 => Err(violation("a close code has only one byte")),
            CLOSE | PING | PONG => Ok(()),
            _ => Err(violation("the opcode is unknown")),
        }
    }

    /// The frame that the header announces, once the header is complete.
    fn whole_header(&self) -> Result<Option<Frame>, Violation> {
        let [first, second, l0, l1, l2, l3, l4, l5, l6, l7, ..] = self.header;
        let (length, before_mask) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([l0, l1])), 4),
            127 => (u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]), 10),
            short => (u64::from(short), 2),
        };
        let mask_length = if self.from_server { 0 } else { 4 };
        if self.have < before_mask + mask_length {
            return Ok(None);
        }
        if length > i64::MAX as u64 {
            return Err(violation("the length has its highest bit set"));
        }
        let mut mask = [0; 4];
        if !self.from_server {
            mask.copy_from_slice(&self.header[before_mask..before_mask + 4]); // at most 10 and 4
        }
        Ok(Some(Frame { opcode: first & 0x0f, last: first & LAST != 0, left: length, mask }))
    }

    fn begin(
        &mut self,
        frame: Frame,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let length = frame.left;
        self.frame = Some(frame);
        if frame.opcode < CLOSE {
            let kind = match frame.opcode {
                TEXT => Kind::Text,
                BINARY => Kind::Binary,
                _ => self.message.unwrap_or(Kind::Binary), // there is one, as was checked
            };
            let first = self.message.replace(kind).is_none();
            on_event(Event::Begin { kind, first, last: frame.last, length })?;
        }
        if length == 0 { self.complete(frame, on_event) } else { Ok(()) }
    }

    /// The frame is complete.
    fn complete(
        &mut self,
        frame: Frame,
        on_event: &mut dyn FnMut(Event<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        self.frame = None;
        let control = std::mem::take(&mut self.control);
        match frame.opcode {
            CLOSE => on_event(Event::Close(&control)),
            PING => on_event(Event::Ping(&control)),
            PONG => Ok(()),
            _ if frame.last => {
                self.message = None;
                on_event(Event::Complete)
            }
            _ => Ok(()),
        }
    }
}

/// Appends a whole message in one frame.
pub fn put_message(kind: Kind, data: &[u8], out: &mut Vec<u8>) {
    let opcode = match kind {
        Kind::Text => TEXT,
        Kind::Binary => BINARY,
    };
    put(opcode, data, None, out);
}

/// Appends a binary message of a client in one frame.
pub fn put_masked(data: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    put(BINARY, data, Some(mask), out);
}

/// Appends the answer to a ping.
pub fn put_pong(data: &[u8], out: &mut Vec<u8>) {
    put(PONG, data, None, out);
}

/// Appends a client's answer to a ping.
pub fn put_masked_pong(data: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    put(PONG, data, Some(mask), out);
}

/// Appends a close frame with a reason, shortened if necessary.
pub fn put_close(code: u16, why: &str, out: &mut Vec<u8>) {
    let room = MAX_CONTROL - 2; // the code takes two bytes
    let end = (0..=room.min(why.len())).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
    let why = why.split_at(end).0;
    let data = [&code.to_be_bytes(), why.as_bytes()].concat();
    put(CLOSE, &data, None, out);
}

fn put(opcode: u8, data: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let masked = if mask.is_some() { MASKED } else { 0 };
    out.push(LAST | opcode);
    match data.len() {
        short @ 0..=125 => out.push(masked | short as u8), // it fits
        medium @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes()); // it fits
        }
        long => {
            out.push(masked | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes()); // no target has more than 64 bits
        }
    }
    match mask {
        None => out.extend_from_slice(data),
        Some(mask) => {
            out.extend_from_slice(&mask);
            let before = out.len();
            out.extend_from_slice(data);
            for (at, byte) in out.iter_mut().skip(before).enumerate() {
                *byte ^= mask[at % 4]; // a remainder by its length
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame as a client sends it.
    fn masked(first: u8, data: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut frame = Vec::new();
        put(first & 0x0f, data, Some(mask), &mut frame);
        frame[0] = first;
        frame
    }

    #[derive(Debug, PartialEq)]
    enum Came {
        Message(Kind, Vec<u8>),
        Ping(Vec<u8>),
        Close,
    }

    fn read(stream: &[u8], at_a_time: usize) -> Result<Vec<Came>, Violation> {
        read_by(Reader::default(), stream, at_a_time)
    }

    fn read_by(mut reader: Reader, stream: &[u8], at_a_time: usize) -> Result<Vec<Came>, Violation> {
        let (mut came, mut open) = (Vec::new(), None);
        for piece in stream.chunks(at_a_time) {
            reader.push(&mut piece.to_vec(), &mut |event| {
                match event {
                    Event::Begin { kind, first: true, .. } => open = Some((kind, Vec::new())),
                    Event::Begin { .. } => {}
                    Event::Data(data) => open.as_mut().expect("it began").1.extend_from_slice(data),
                    Event::Complete => {
                        let (kind, data) = open.take().expect("it began");
                        came.push(Came::Message(kind, data));
                    }
                    Event::Ping(data) => came.push(Came::Ping(data.to_vec())),
                    Event::Close(_) => came.push(Came::Close),
                }
                Ok(())
            })?;
        }
        Ok(came)
    }

    #[test]
    fn the_standards_own_examples_are_read() {
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&hello, 1), Ok(vec![Came::Message(Kind::Text, b"Hello".to_vec())]));
        let mut unmasked = Vec::new();
        put_message(Kind::Text, b"Hello", &mut unmasked);
        assert_eq!(unmasked, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        let mut long = Vec::new();
        put_message(Kind::Binary, &[7; 65_536], &mut long);
        assert_eq!(long[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_client_masks_and_reads_what_is_not_masked() {
        let mut masked = Vec::new();
        put_masked(b"Hello", [0x37, 0xfa, 0x21, 0x3d], &mut masked);
        assert_eq!(masked, [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        assert_eq!(read(&masked, 1), Ok(vec![Came::Message(Kind::Binary, b"Hello".to_vec())]));
        let why = read_by(Reader::of_server(), &masked, 1).expect_err("it is masked").why;
        assert_eq!(why, "a frame from a server is masked");
        let mut plain = Vec::new();
        for length in [0, 5, 126, 70_000] {
            plain.clear();
            put_message(Kind::Binary, &vec![9; length], &mut plain);
            for at_a_time in [1, 7, 100_000] {
                let came = read_by(Reader::of_server(), &plain, at_a_time);
                assert_eq!(came, Ok(vec![Came::Message(Kind::Binary, vec![9; length])]));
            }
        }
    }

    #[test]
    fn control_frames_come_within_messages() {
        let mask = [1, 2, 3, 4];
        let stream = [
            masked(TEXT, b"ab", mask),
            masked(LAST | PING, b"?", mask),
            masked(LAST | PONG, b"!", mask),
            masked(CONTINUATION, b"", mask),
            masked(LAST | CONTINUATION, b"c", mask),
            masked(LAST | CLOSE, b"", mask),
        ]
        .concat();
        let came = read(&stream, 3).expect("all of it is right");
        assert_eq!(came, [Came::Ping(b"?".to_vec()), Came::Message(Kind::Text, b"abc".to_vec()), Came::Close]);
    }

    #[test]
    fn what_is_against_the_protocol_is_refused_by_its_first_two_bytes() {
        for (bytes, why) in [
            ([0xc1, 0x81], "reserved"),
            ([0x81, 0x01], "not masked"),
            ([0x80, 0x81], "begins with a continuation"),
            ([0x83, 0x81], "opcode"),
            ([0x09, 0x81], "in pieces"),
            ([0x89, 0xfe], "too long"),
            ([0x88, 0x81], "a close code has only one byte"),
        ] {
            let refused = read(&bytes, 1).expect_err(why);
            assert!(refused.why.contains(why) && refused.code == PROTOCOL_ERROR, "{bytes:02x?}: {refused}");
        }
        let within = [masked(TEXT, b"a", [0; 4]), masked(LAST | BINARY, b"b", [0; 4])].concat();
        assert_eq!(read(&within, 5).expect_err("within").why, "a message begins within another");
        let endless = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(read(&endless, 4).is_err());
    }

    #[test]
    fn a_reason_that_is_too_long_is_cut_between_characters() {
        let mut out = Vec::new();
        put_close(1008, &"é".repeat(100), &mut out);
        assert_eq!((out[0], out.len()), (LAST | CLOSE, 2 + 2 + 122));
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn messages_are_read_however_they_are_cut(
            messages in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..5),
            pieces in 1usize..200,
            at_a_time in 1usize..64,
            mask in any::<[u8; 4]>(),
        ) {
            let (mut stream, mut sent) = (Vec::new(), Vec::new());
            for (text, data) in messages {
                let (kind, opcode) = if text { (Kind::Text, TEXT) } else { (Kind::Binary, BINARY) };
                let chunks: Vec<&[u8]> = if data.is_empty() { vec![&[]] } else { data.chunks(pieces).collect() };
                for (i, chunk) in chunks.iter().enumerate() {
                    let last = if i + 1 == chunks.len() { LAST } else { 0 };
                    stream.extend(masked(last | if i == 0 { opcode } else { CONTINUATION }, chunk, mask));
                }
                sent.push(Came::Message(kind, data));
            }
            prop_assert_eq!(read(&stream, at_a_time), Ok(sent));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at_a_time in 1usize..50) {
            let _ = read(&bytes, at_a_time);
        }
    }
}
