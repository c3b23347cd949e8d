//! Adapts the messages of a WebSocket to the stream of bytes that a session is driven over.
//!
//! The content of binary messages is passed on as it is. A text message is passed on behind a
//! header ([`text_header`]) that makes it a frame for the decoder, which bounds, charges and times
//! it like any other frame. Only a text message in several pieces is collected here, because its
//! length is not known before the last one.
//!
//! In the other direction each frame becomes a message, a text message if it holds text, and is
//! written whole before the next is taken. A close frame of the WebSocket follows a Goodbye.

use super::message_timeout::MessageTimeout;
use crate::net::Lease;
use crate::wire::codec::{GOODBYE, WELCOME, decode_gateway};
use crate::wire::frame::{
    Decoder, Event as FrameEvent, HEADER, Limits, MAX_BODY, Recovery, split_encoded, text_header, whole_length,
};
use crate::wire::message::{GatewayMessage, Goodbye, Reason};
use crate::wire::websocket::{self as frame, Event, Kind, Reader, Violation};
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at a time.
const READ: usize = 16 * 1024;
/// Reads in a row that may bring nothing to pass on before other tasks run.
const FRUITLESS: usize = 8;
/// Bytes of messages that are put together at a time, if there are several frames.
const AT_ONCE: usize = 4 * 1024;

/// Close code: the far end is done.
const NORMAL: u16 = 1000;
/// Close code: the far end violates a policy.
const POLICY: u16 = 1008;
/// Close code: there is no memory now.
const TRY_AGAIN_LATER: u16 = 1013;

/// Longest text message, in bytes: now, before the Welcome, and afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    pub now: usize,
    pub afterwards: usize,
}

/// A WebSocket over `S`, as a stream of frames.
pub struct Messages<S> {
    io: S,
    reader: Reader,
    inbox: Inbox,
    timeout: MessageTimeout,
    /// Bytes to write, and how many of them are written.
    out: Vec<u8>,
    written: usize,
    /// So many bytes of the caller's stand in `out`.
    accepted: usize,
    /// The last ping that is not answered yet.
    ping: Option<Vec<u8>>,
    /// Our close frame is written or stands in `out`.
    closing: bool,
}

/// What arrived and is to be passed on.
struct Inbox {
    lengths: Lengths,
    /// What is passed on before anything else.
    ready: Vec<u8>,
    passed_on: usize,
    /// A text message that comes in pieces, behind the room for its header.
    pieces: Vec<u8>,
    lease: Lease,
    cut: Cut,
    state: State,
    /// What was violated, until it is reported.
    wrong: Option<Violation>,
}

/// How incoming data is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A binary message is passed on, or there is none.
    Binary,
    /// A text message is passed on.
    Text,
    /// Nothing is passed on.
    Over,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Messages<S> {
    /// `lease` is charged for what is collected here; a message in pieces is given up if nothing of
    /// it arrives for `within`.
    pub fn new(io: S, lengths: Lengths, lease: Lease, within: Duration) -> Messages<S> {
        let inbox = Inbox {
            lengths,
            ready: Vec::new(),
            passed_on: 0,
            pieces: Vec::new(),
            lease,
            cut: Cut::default(),
            state: State::Binary,
            wrong: None,
        };
        Messages {
            io,
            reader: Reader::default(),
            inbox,
            timeout: MessageTimeout::new(within),
            out: Vec::new(),
            written: 0,
            accepted: 0,
            ping: None,
            closing: false,
        }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// The stream below.
    pub fn io(&mut self) -> &mut S {
        &mut self.io
    }

    /// Writes what is to be written.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty()
            && let Some(ping) = self.ping.take()
        {
            frame::put_pong(&ping, &mut self.out);
        }
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        (self.out, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Decodes what was read, and passes it on into `buffer` as far as that has room.
    fn take(&mut self, bytes: &mut [u8], buffer: &mut ReadBuf<'_>) {
        let (inbox, ping) = (&mut self.inbox, &mut self.ping);
        let mut left = false;
        let taken = self.reader.push(bytes, &mut |event| match event {
            _ if inbox.state == State::Over => Ok(()),
            Event::Begin { kind: Kind::Text, first, last, length } => inbox.begin_text(first, last, length, buffer),
            Event::Begin { kind: Kind::Binary, .. } => Ok(()),
            Event::Data(data) => {
                inbox.data(data, buffer);
                Ok(())
            }
            Event::Complete => {
                inbox.complete(buffer);
                Ok(())
            }
            Event::Ping(data) => {
                *ping = Some(data.to_vec());
                Ok(())
            }
            Event::Close(_) => {
                (inbox.state, left) = (State::Over, true);
                Ok(())
            }
        });
        if left {
            self.close(NORMAL, "");
        }
        if let Err(violation) = taken {
            return self.fail(violation);
        }
        if !self.inbox.is_collecting() {
            return self.timeout.rest();
        }
        self.timeout.renew();
        if self.timeout.is_abused(self.inbox.pieces.capacity(), &self.inbox.lease) {
            self.inbox.lease.pool().refused("frame");
            self.fail(Violation { code: TRY_AGAIN_LATER, why: "the memory for the message is needed for others" });
        }
    }

    fn fail(&mut self, violation: Violation) {
        (self.inbox.state, self.inbox.wrong) = (State::Over, Some(violation));
        self.close(violation.code, violation.why);
    }

    /// Reads, unless the next piece of a message is overdue.
    fn poll_more(&mut self, cx: &mut Context<'_>, raw: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, raw);
        if polled.is_pending() && self.inbox.is_collecting() && self.timeout.poll(cx).is_ready() {
            let violation = Violation { code: POLICY, why: "the rest of a message did not come in time" };
            self.fail(violation);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
        }
        polled
    }

    fn close(&mut self, code: u16, why: &str) {
        if !std::mem::replace(&mut self.closing, true) {
            frame::put_close(code, why, &mut self.out);
        }
    }

    /// Puts frames into messages. Returns how many of their bytes.
    fn wrap(&mut self, frames: &[u8]) -> usize {
        let mut rest = frames;
        while self.out.len() < AT_ONCE
            && !self.closing
            && let Some((encoded, behind)) = split_encoded(rest)
        {
            match encoded.text {
                Some(text) => frame::put_message(Kind::Text, text, &mut self.out),
                None => frame::put_message(Kind::Binary, encoded.whole, &mut self.out),
            }
            match encoded.kind {
                WELCOME => self.inbox.lengths.now = self.inbox.lengths.afterwards,
                GOODBYE => {
                    let Goodbye { reason, text } = goodbye(encoded.whole);
                    self.close(close_code(reason), &text);
                }
                _ => {}
            }
            rest = behind;
        }
        // Nothing follows a Goodbye.
        if self.closing { frames.len() } else { frames.len() - rest.len() }
    }
}

impl Inbox {
    /// Passes bytes on at once if there is room for them, else with the next read.
    fn pass_on(&mut self, bytes: &[u8], buffer: &mut ReadBuf<'_>) {
        let room = if self.ready.is_empty() { buffer.remaining().min(bytes.len()) } else { 0 };
        let (now, later) = bytes.split_at(room);
        buffer.put_slice(now);
        self.ready.extend_from_slice(later);
    }

    /// Passes on what had no room before.
    fn pass_on_rest(&mut self, buffer: &mut ReadBuf<'_>) {
        let rest = self.ready.get(self.passed_on..).unwrap_or_default();
        let now = rest.split_at(buffer.remaining().min(rest.len())).0;
        buffer.put_slice(now);
        self.passed_on += now.len();
        if self.passed_on >= self.ready.len() && !self.ready.is_empty() {
            (self.ready, self.passed_on) = (Vec::new(), 0);
            self.lease.hold(self.pieces.capacity());
        }
    }

    /// Whether a message is collected whose length is not known yet.
    fn is_collecting(&self) -> bool {
        !self.pieces.is_empty()
    }

    fn begin_text(&mut self, first: bool, last: bool, length: u64, buffer: &mut ReadBuf<'_>) -> Result<(), Violation> {
        if self.cut.is_within_a_frame() {
            return Err(Violation { code: frame::PROTOCOL_ERROR, why: "a text message came within a frame" });
        }
        if first && last {
            self.state = State::Text;
            self.pass_on(&text_header(length), buffer);
            return Ok(());
        }
        if first {
            self.pieces = vec![0; HEADER];
        }
        let all = length.saturating_add(self.pieces.len() as u64); // no target has more than 64 bits
        if all > (HEADER + self.lengths.now) as u64 {
            // The decoder reports what is wrong with that; the rest does not matter.
            let header = text_header(all - HEADER as u64); // it is more
            self.pass_on(&header, buffer);
            self.pieces = Vec::new();
            self.state = State::Over;
            return Ok(());
        }
        // It is no more than what fits.
        let all = usize::try_from(all).unwrap_or(usize::MAX);
        if !self.lease.reserve(all) {
            self.lease.pool().refused("frame");
            return Err(Violation { code: TRY_AGAIN_LATER, why: "the gateway is short of memory for large messages" });
        }
        self.pieces.reserve(all - self.pieces.len()); // it is no less
        self.lease.hold(self.pieces.capacity());
        Ok(())
    }

    fn data(&mut self, data: &[u8], buffer: &mut ReadBuf<'_>) {
        if self.is_collecting() {
            self.pieces.extend_from_slice(data);
            return;
        }
        if self.state == State::Binary {
            self.cut.pass(data);
        }
        self.pass_on(data, buffer);
    }

    /// A message is complete.
    fn complete(&mut self, buffer: &mut ReadBuf<'_>) {
        self.state = State::Binary;
        let mut pieces = std::mem::take(&mut self.pieces);
        if let Some(length) = pieces.len().checked_sub(HEADER) {
            pieces[..HEADER].copy_from_slice(&text_header(length as u64)); // so long it is
            self.pass_on(&pieces, buffer);
            self.lease.hold(self.ready.capacity());
        }
    }
}

/// The position in a frame of binary messages, which may cut frames anywhere.
#[derive(Debug, Default)]
struct Cut {
    header: [u8; HEADER],
    have: usize,
    left: usize,
}

impl Cut {
    fn is_within_a_frame(&self) -> bool {
        self.have > 0 || self.left > 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let missing = if self.left > 0 { self.left } else { HEADER - self.have };
            let (now, rest) = bytes.split_at(missing.min(bytes.len()));
            bytes = rest;
            if self.left > 0 {
                self.left -= now.len(); // it is no more
                continue;
            }
            self.header[self.have..self.have + now.len()].copy_from_slice(now); // it is no more than what is missing
            self.have += now.len();
            if self.have == HEADER {
                (self.have, self.left) = (0, whole_length(&self.header) - HEADER); // it is no less
            }
        }
    }
}

/// The Goodbye in a frame of our own.
fn goodbye(frame: &[u8]) -> Goodbye {
    let mut goodbye = Goodbye { reason: Reason::Normal, text: String::new() };
    let limits = Limits { max_body: MAX_BODY, require_checksum: false };
    // What we encoded can be decoded.
    let _ = Decoder::new(limits, Recovery::Fail).accept_text().push(frame, &mut |event| {
        if let FrameEvent::Frame(frame) = event
            && let Ok(GatewayMessage::Goodbye(said)) = decode_gateway(&frame)
        {
            goodbye = said;
        }
        ControlFlow::Continue(())
    });
    goodbye
}

/// The close code that is closest to the reason of a Goodbye.
fn close_code(reason: Reason) -> u16 {
    match reason {
        Reason::Normal => NORMAL,
        Reason::Stopping => 1001,
        Reason::BadFrame => 1007,
        Reason::TooLarge => 1009,
        Reason::Protocol | Reason::Timeout | Reason::TakenOver | Reason::Unauthorized => 1008,
        Reason::Busy => TRY_AGAIN_LATER,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Messages<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        for _ in 0..FRUITLESS {
            // A write that is pending does not keep a reader waiting.
            if let Poll::Ready(Err(why)) = this.poll_out(cx) {
                return Poll::Ready(Err(why));
            }
            this.inbox.pass_on_rest(buffer);
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if let Some(violation) = this.inbox.wrong.take() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
            if this.inbox.state == State::Over {
                return Poll::Ready(Ok(()));
            }
            let mut storage = [const { MaybeUninit::<u8>::uninit() }; READ];
            let mut raw = ReadBuf::uninit(&mut storage[..buffer.remaining().min(READ)]);
            ready!(this.poll_more(cx, &mut raw))?;
            if raw.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.take(raw.filled_mut(), buffer);
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Messages<S> {
    /// Takes whole frames. Until they are written, it must be called with the same ones.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, frames: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.accepted == 0 {
            if this.closing {
                return Poll::Ready(Ok(frames.len()));
            }
            this.accepted = this.wrap(frames);
        }
        ready!(this.poll_out(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut this.accepted)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.close(NORMAL, "");
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::net::{ALLOWANCE, Pool};
    use crate::wire::codec::encode_gateway;
    use crate::wire::frame::{BodyEncoding, Format, Version};
    use crate::wire::message::Ack;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const LENGTHS: Lengths = Lengths { now: 8 * 1024, afterwards: 8 * 1024 };
    const WITHIN: Duration = Duration::from_secs(2);

    fn over(pool: &Pool, room: usize) -> (DuplexStream, Messages<DuplexStream>) {
        let (far, near) = duplex(room);
        (far, Messages::new(near, LENGTHS, pool.another_lease(), WITHIN))
    }

    /// A frame of a client whose mask is 0, with a length of two bytes.
    fn piece(first: u8, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).expect("short").to_be_bytes();
        [&[first, 0xfe, length[0], length[1], 0, 0, 0, 0], data].concat()
    }

    #[tokio::test]
    async fn what_is_collected_is_charged_until_it_is_passed_on() {
        let metrics = Metrics::new();
        let pool = Pool::new(1 << 20, metrics.clone());
        let (mut far, mut near) = over(&pool, 64 * 1024);
        far.write_all(&[piece(0x01, &[b'x'; 3000]), piece(0x00, &[b'y'; 300])].concat()).await.expect("room");
        let nothing = tokio::time::timeout(Duration::from_millis(50), near.read_u8()).await;
        assert!(nothing.is_err(), "it is not complete");
        assert!(metrics.memory_links_bytes.get() >= 3300);
        far.write_all(&piece(0x80, &[b'z'; 200])).await.expect("room");
        let mut passed_on = [0; HEADER + 3500];
        near.read_exact(&mut passed_on[..20]).await.expect("it is complete");
        assert!(metrics.memory_links_bytes.get() >= 3300, "the rest is still there");
        near.read_exact(&mut passed_on[20..]).await.expect("all of it");
        assert_eq!(metrics.memory_links_bytes.get(), 0);
        assert_eq!((&passed_on[..HEADER], passed_on[HEADER + 3499]), (&text_header(3500)[..], b'z'));
    }

    #[tokio::test]
    async fn while_memory_is_short_only_small_messages_come_in_pieces() {
        let pool = Pool::new(1, Metrics::new());
        let (mut far, mut near) = over(&pool, 64 * 1024);
        let small = vec![b'x'; ALLOWANCE - HEADER];
        far.write_all(&[piece(0x01, &small), piece(0x80, b"")].concat()).await.expect("room");
        near.read_exact(&mut vec![0; HEADER + small.len()]).await.expect("a small one is passed on");
        far.write_all(&piece(0x01, &[b'x'; 3000])).await.expect("room");
        let refused = near.read_u8().await.expect_err("no memory");
        assert!(refused.to_string().contains("short of memory"), "{refused}");
        near.flush().await.expect("room");
        let mut close = [0; 4];
        far.read_exact(&mut close).await.expect("a close frame");
        assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, TRY_AGAIN_LATER));
    }

    /// Sends `data` in frames of a byte a second; after how long reading fails, and why.
    async fn dripped(pool: &Pool, first: u8, data: usize) -> (Duration, String) {
        let (mut far, mut near) = over(pool, 64 * 1024);
        let since = tokio::time::Instant::now();
        let dripping = async {
            far.write_all(&piece(first, &vec![b'x'; data])).await.expect("room");
            for _ in 0..60 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                far.write_all(&piece(0x00, b"x")).await.expect("room");
            }
            tokio::time::sleep(Duration::from_secs(600)).await;
        };
        tokio::select! {
            read = near.read_u8() => (since.elapsed(), read.expect_err("it never ends").to_string()),
            () = dripping => panic!("it is still waited for"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_in_pieces_is_given_up_when_no_more_of_it_comes() {
        let pool = Pool::new(1 << 20, Metrics::new());
        let (after, why) = dripped(&pool, 0x01, 3000).await;
        assert!(after >= Duration::from_secs(62) && after < Duration::from_secs(63), "{after:?}");
        assert!(why.contains("did not come in time (WebSocket close code 1008)"), "{why}");
        // Between messages there is no haste.
        let (mut far, mut near) = over(&pool, 64 * 1024);
        far.write_all(&[piece(0x01, b"x"), piece(0x80, b"y")].concat()).await.expect("room");
        near.read_exact(&mut [0; HEADER + 2]).await.expect("it is complete");
        assert!(tokio::time::timeout(100 * WITHIN, near.read_u8()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_that_others_need_the_memory_of_has_to_be_complete_in_time() {
        let pool = Pool::new(1 << 20, Metrics::new());
        let mut other = pool.lease();
        other.starve(true);
        let (after, why) = dripped(&pool, 0x01, 3000).await;
        assert!(after >= WITHIN && after < 2 * WITHIN, "{after:?}");
        assert!(why.contains("needed for others"), "{why}");
        // Small ones take nothing from them.
        assert!(dripped(&pool, 0x01, 100).await.0 > 10 * WITHIN);
    }

    #[tokio::test]
    async fn what_the_far_end_does_not_take_is_not_taken_from_the_writer_either() {
        let pool = Pool::new(1 << 20, Metrics::new());
        let (mut far, mut near) = over(&pool, 16);
        let mut frames = Vec::new();
        for seq in 1..=200 {
            let format = Format { version: Version::Text, encoding: BodyEncoding::Json };
            encode_gateway(&GatewayMessage::Ack(Ack { seq }), format, &mut frames);
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut near).poll_write(&mut cx, &frames).is_pending());
        assert!(near.out.len() < 2 * AT_ONCE, "{}", near.out.len());
        let writer = tokio::spawn(async move {
            near.write_all(&frames).await.expect("it is taken in the end");
            near
        });
        let (mut text, mut seqs) = (String::new(), 0);
        while seqs < 200 {
            let [first, length] = [far.read_u8().await.expect("a frame"), far.read_u8().await.expect("its length")];
            assert_eq!((first, length < 126), (0x81, true));
            text.clear();
            (&mut far).take(length.into()).read_to_string(&mut text).await.expect("its text");
            seqs += 1;
            assert_eq!(text, format!("{{\"command\":\"ack\",\"payload\":{{\"seq\":{seqs}}}}}"));
        }
        writer.await.expect("it is done");
    }
}
