//! Drives one device session over anything that reads and writes.
//!
//! Bytes are read into a buffer that lives only while they are decoded, so a
//! connection that says nothing holds no memory for it. Reading pauses while the
//! log has no room, while the device's window is used up, and while the device
//! does not take what it is answered.

mod peer;

use super::line::Line;
use crate::stop;
use crate::wire::frame::Decoder;
pub(super) use peer::FIRST_FORMAT;
use peer::{End, Peer};
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Bytes read at a time.
const READ: usize = 16 * 1024;
/// Answers that may wait for the device to take them, in bytes.
const MAX_OUT: usize = 16 * 1024;
/// How long a stop waits for the device's readings to settle.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);
/// How long the last words may take to be sent.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);
/// Sleep when nothing is to be waited for.
const LONG: Duration = Duration::from_secs(3600);

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Closed {
    /// A Goodbye was said, from either side, or the gateway stops.
    Ended,
    /// The far end closed without a word.
    Gone,
    /// Reading or writing failed.
    Failed(io::Error),
}

struct Connection<'a, S> {
    io: &'a mut S,
    line: &'a Line,
    decoder: Decoder,
    /// When the last byte came, if the decoder holds an incomplete frame.
    partial_since: Option<Duration>,
    peer: Peer<'a>,
    /// Set when the gateway stops: nothing more is read.
    stop_at: Option<Duration>,
}

/// Serves the device at the far end of `io` until either side ends it or `stop`
/// turns true. `from` says who it is in logs.
pub(super) async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    line: &Line,
    from: &str,
    mut stop: watch::Receiver<bool>,
) -> Closed {
    let clock = &line.shared.clock;
    let decoder = Decoder::new(line.before_hello, line.recovery);
    let peer = Peer::new(line, from, clock.now());
    let mut connection = Connection { io, line, decoder, partial_since: None, peer, stop_at: None };
    let mut timer = pin!(sleep(LONG));
    loop {
        let now = clock.now();
        connection.advance(now);
        if let Some(end) = connection.peer.ended() {
            connection.say_farewell(end).await;
            return Closed::Ended;
        }
        let wait = connection.deadline(now.monotonic).map_or(LONG, |at| at.saturating_sub(now.monotonic));
        let at = Instant::now() + wait;
        // Moving the timer forward costs more than waking up for nothing.
        if at < timer.deadline() || timer.is_elapsed() {
            timer.as_mut().reset(at);
        }
        let settled = connection.peer.settled(now.monotonic);
        let replaced = connection.peer.replaced();
        let stalled = connection.peer.is_stalled();
        tokio::select! {
            biased;
            () = stop::requested(&mut stop), if connection.stop_at.is_none() => {
                connection.stop_at = Some(clock.now().monotonic + SETTLE_WITHIN);
            }
            () = replaced => connection.peer.replace(),
            () = settled => {}
            () = line.shared.log.room(), if stalled => {}
            io = poll_fn(|cx| connection.poll_io(cx)) => match io {
                Ok(true) => {}
                Ok(false) => {
                    connection.peer.gone("the far end closed the connection");
                    return Closed::Gone;
                }
                Err(error) => {
                    connection.peer.gone(&error.to_string());
                    return Closed::Failed(error);
                }
            },
            () = &mut timer => {}
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    /// Does what has become due without anything read.
    fn advance(&mut self, now: crate::clock::Now) {
        self.peer.advance(now);
        if let Some(at) = self.stop_at {
            if self.peer.is_settled() || now.monotonic >= at {
                self.peer.stop();
            }
            return;
        }
        if self.is_paused() {
            // The device is not to blame for a silence that it cannot break.
            self.peer.heard(now);
            self.partial_since = self.partial_since.map(|_| now.monotonic);
            return;
        }
        if self.partial_since.is_some_and(|since| now.monotonic >= since + self.line.frame_timeout) {
            let peer = &mut self.peer;
            if let Err(error) = self.decoder.give_up_partial(&mut |event| peer.take(event, now)) {
                peer.broken(error, now);
            }
            self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
        }
        self.peer.check_silence(now);
    }

    /// Whether it is the gateway that does not read.
    fn is_paused(&self) -> bool {
        self.peer.is_stalled() || self.peer.window_is_full()
    }

    /// When something becomes due by itself.
    fn deadline(&self, now: Duration) -> Option<Duration> {
        let ack = self.peer.ack_due(now);
        if let Some(stop) = self.stop_at {
            return Some(ack.map_or(stop, |ack| ack.min(stop)));
        }
        if self.is_paused() {
            return ack;
        }
        let partial = self.partial_since.map(|since| since + self.line.frame_timeout);
        [ack, partial, self.peer.silence_deadline()].into_iter().flatten().min()
    }

    /// Sends what is to be sent and reads once. Ready with false at the end of the
    /// stream.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.peer.out.is_empty() {
            while let Poll::Ready(written) = Pin::new(&mut *self.io).poll_write(cx, &self.peer.out) {
                match written? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => drop(self.peer.out.drain(..written)),
                }
                if self.peer.out.is_empty() {
                    self.peer.out = Vec::new();
                    break;
                }
            }
        }
        if self.stop_at.is_some() || self.is_paused() || self.peer.out.len() > MAX_OUT {
            return Poll::Pending;
        }
        let mut storage = [const { MaybeUninit::<u8>::uninit() }; READ];
        let mut buffer = ReadBuf::uninit(&mut storage);
        ready!(Pin::new(&mut *self.io).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(false));
        }
        let now = self.line.shared.clock.now();
        let peer = &mut self.peer;
        if let Err(error) = self.decoder.push(buffer.filled(), &mut |event| peer.take(event, now)) {
            peer.broken(error, now);
        }
        self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
        peer.store();
        Poll::Ready(Ok(true))
    }

    async fn say_farewell(&mut self, end: End) {
        self.peer.farewell(end);
        let send = poll_fn(|cx| {
            while !self.peer.out.is_empty() {
                match ready!(Pin::new(&mut *self.io).poll_write(cx, &self.peer.out)) {
                    Ok(0) | Err(_) => break,
                    Ok(written) => drop(self.peer.out.drain(..written)),
                }
            }
            Poll::Ready(())
        });
        // Whoever does not listen misses the last words.
        let _ = tokio::time::timeout(FAREWELL_WITHIN, send).await;
    }
}
