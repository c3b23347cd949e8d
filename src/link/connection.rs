//! Drives one device session over anything that reads and writes.
//!
//! Bytes are read into a buffer that lives only while they are decoded, so a
//! connection that says nothing holds no memory for it. Reading pauses while more Readings
//! wait for room in the log or in the device's window than may, while it sends more messages
//! than it may, while the device does not take what it is answered, and while the memory for all
//! connections is used up and the frame under way is a large one.

pub(super) mod hangup;
mod peer;

use super::caller::Caller;
use super::line::Line;
use super::pool::{ALLOWANCE, Lease};
use super::porch::Place;
use crate::clock::{Excuses, LAST_LOOK};
use crate::stop;
use crate::wire::frame::Decoder;
use hangup::Hangup;
pub(super) use peer::voice::FIRST_FORMAT;
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
/// Bytes read at a time while the log is short of room: what is read waits in memory.
const BRIEF: usize = 4 * 1024;
/// Bytes read at a time while a connection gives way to others.
const EARLY: usize = ALLOWANCE;
/// Answers that may wait for the device to take them, in bytes.
const MAX_OUT: usize = 16 * 1024;
/// How often a connection that waits for memory looks again, should it have missed that
/// some was given back.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
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
    /// Its place was needed for somebody else.
    Evicted,
}

struct Connection<'a, S> {
    io: &'a mut S,
    line: &'a Line,
    decoder: Decoder,
    /// When the last byte came, if the decoder holds an incomplete frame.
    partial_since: Option<Duration>,
    /// Where in the stream that frame begins, and when it did.
    begun: (u64, Duration),
    /// When the frame that is incomplete began, while another waits for its memory.
    frame_since: Option<Duration>,
    peer: Peer<'a>,
    lease: Lease,
    /// Why it is not read, beside what the peer knows.
    gate: Gate,
    hangup: Hangup,
    /// What was read and is heard when its turn comes.
    early: Vec<u8>,
    /// So much was read at once that there may be more: others have their turn first.
    much: bool,
    /// Set when the gateway stops: nothing more is read.
    stop_at: Option<Duration>,
    excuses: Excuses,
    /// The device is late, and is given up unless something can be read now.
    last_look: bool,
}

/// Whether a connection is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// There is no memory for a frame as large as the one under way.
    Memory,
    /// The device sent more messages than it may; until then.
    Rate(Duration),
}

/// Serves the device at the far end of `io` until either side ends it or `stop`
/// turns true. `place` is where it waits to be let in. What `hung_up` tells of `io` shows while
/// it is not read.
pub(super) async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    hung_up: fn(&S) -> bool,
    line: &Line,
    caller: Caller,
    place: Place,
    mut stop: watch::Receiver<bool>,
) -> Closed {
    let clock = &line.shared.clock;
    let decoder = Decoder::new(line.before_hello, line.recovery);
    let excuses = Excuses::from(clock.put_off());
    let mut connection = Connection {
        io,
        line,
        decoder: if line.text { decoder.accept_text() } else { decoder },
        partial_since: None,
        begun: (0, Duration::ZERO),
        frame_since: None,
        peer: Peer::new(line, caller, place, clock.now()),
        lease: line.shared.pool.lease(),
        gate: Gate::Open,
        hangup: Hangup::default(),
        early: Vec::new(),
        much: false,
        stop_at: None,
        excuses,
        last_look: false,
    };
    let mut timer = pin!(sleep(LONG));
    loop {
        let now = clock.now();
        connection.advance(now);
        if let Some(end) = connection.peer.ended() {
            connection.peer.place.turn().await;
            connection.say_farewell(end).await;
            return Closed::Ended;
        }
        let paused = connection.stop_at.is_none() && connection.peer.is_backed_up();
        if connection.hangup.is_due(paused, now.monotonic) && hung_up(connection.io) {
            connection.peer.leaves().await;
            connection.peer.gone("the far end closed the connection, while nothing of what it sent could be stored");
            return Closed::Gone;
        }
        let wait = connection.deadline(now.monotonic).map_or(LONG, |at| at.saturating_sub(now.monotonic));
        let at = Instant::now() + wait;
        // Moving the timer forward costs more than waking up for nothing.
        if at < timer.deadline() || timer.is_elapsed() {
            timer.as_mut().reset(at);
        }
        let settled = connection.peer.settled(now.monotonic);
        let called = connection.peer.called();
        let evicted = connection.peer.place.evicted();
        let keys = connection.peer.keys_changed();
        let room = connection.peer.room();
        let starved = connection.gate == Gate::Memory;
        let freed = line.shared.pool.freed();
        tokio::select! {
            biased;
            () = stop::requested(&mut stop), if connection.stop_at.is_none() => {
                connection.stop_at = Some(clock.now().monotonic + SETTLE_WITHIN);
            }
            () = called => connection.peer.answer_calls(),
            () = evicted => {
                connection.say_busy();
                return Closed::Evicted;
            }
            () = keys => connection.peer.look_at_key(clock.now()),
            () = settled => {
                if connection.peer.place.gives_way() {
                    connection.peer.place.turn().await;
                }
            }
            () = room => {
                if connection.peer.brings_much() {
                    connection.peer.place.reading_turn().await;
                }
            }
            () = freed, if starved => connection.gate = Gate::Open,
            io = poll_fn(|cx| connection.poll_io(cx)) => match io {
                Ok(true) if !connection.early.is_empty() => {
                    connection.peer.place.turn().await;
                    connection.hear();
                }
                Ok(true) if connection.much => {
                    connection.much = false;
                    connection.peer.place.reading_turn().await;
                }
                Ok(true) => {}
                Ok(false) => {
                    connection.peer.leaves().await;
                    connection.peer.gone("the far end closed the connection");
                    return Closed::Gone;
                }
                Err(error) => {
                    connection.peer.leaves().await;
                    connection.peer.gone(&error.to_string());
                    return Closed::Failed(error);
                }
            },
            // Only now it is known that there is nothing to read.
            () = &mut timer => connection.judge(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    /// What time it is. The device is not to blame for a silence while the gateway did not
    /// listen.
    fn excuse(&mut self) -> crate::clock::Now {
        let clock = &self.line.shared.clock;
        // In this order: the excuse for a pause must not be used up for a time before it.
        let (put_off, now) = (clock.put_off(), clock.now());
        let by = self.excuses.look(put_off, now.monotonic);
        if by.is_zero() {
            return now;
        }
        self.peer.excuse(by, now);
        for since in [&mut self.partial_since, &mut self.frame_since].into_iter().flatten() {
            *since = (*since + by).min(now.monotonic);
        }
        self.begun.1 = (self.begun.1 + by).min(now.monotonic);
        now
    }

    /// Does what has become due, but for [`Connection::judge`].
    fn advance(&mut self, now: crate::clock::Now) {
        self.peer.advance(now);
        if let Some(at) = self.stop_at {
            if self.peer.is_settled() || now.monotonic >= at {
                self.peer.stop();
            }
            return;
        }
        if matches!(self.gate, Gate::Rate(until) if now.monotonic >= until) {
            self.gate = Gate::Open;
        }
        if self.peer.is_backed_up() || self.gate != Gate::Open {
            // The device is not to blame for a silence that it cannot break.
            self.peer.heard(now);
            self.partial_since = self.partial_since.map(|_| now.monotonic);
            self.begun.1 = now.monotonic;
            self.look_at_pressure(now);
            self.peer.reassure(now);
            return;
        }
        self.peer.is_read();
        self.look_at_pressure(now);
    }

    /// When the device has been silent for too long, or in the middle of a frame.
    fn silence_deadline(&self) -> Option<Duration> {
        let partial = self.partial_since.map(|since| since + self.line.frame_timeout);
        [partial, self.overdue(), self.peer.silence_deadline()].into_iter().flatten().min()
    }

    /// Draws conclusions from a silence, if there was nothing to read when it had lasted too
    /// long, nor at another look.
    fn judge(&mut self) {
        let now = self.excuse();
        let reads = self.stop_at.is_none() && self.gate == Gate::Open && !self.peer.is_backed_up();
        let late = reads && self.silence_deadline().is_some_and(|deadline| now.monotonic >= deadline);
        if !late || !std::mem::replace(&mut self.last_look, true) {
            self.last_look &= late;
            return;
        }
        self.last_look = false;
        let peer = &mut self.peer;
        if self.partial_since.is_some_and(|since| now.monotonic >= since + self.line.frame_timeout) {
            if let Err(error) = self.decoder.give_up_partial(&mut |event| peer.take(event, now)) {
                peer.broken(error, now);
            }
            self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
            peer.store();
        } else if self.overdue().is_some_and(|at| now.monotonic >= at) {
            let peer = &mut self.peer;
            self.decoder.look_inside(&mut |event| peer.take(event, now));
            self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
            self.begun = (self.decoder.position(), now.monotonic);
            peer.store();
        }
        self.peer.check_silence(now);
    }

    /// When the frame under way has taken longer than it could, if another may stand in it.
    fn overdue(&self) -> Option<Duration> {
        let (_, whole) = self.decoder.partial();
        let begun = self.partial_since.map(|_| self.begun.1);
        begun.filter(|_| self.line.grants.restart).map(|begun| begun + self.line.frame_within(whole))
    }

    /// While others wait for memory, a large frame has to be complete in good time: its
    /// sender must not hold on to the memory with a byte now and then.
    fn look_at_pressure(&mut self, now: crate::clock::Now) {
        if self.frame_since.is_some() {
            self.excuse();
        }
        let wanted = self.lease.pool().is_wanted() && self.decoder.memory() > ALLOWANCE;
        if !wanted || self.peer.is_stalled() || self.line.grants.restart {
            self.frame_since = None;
        } else if now.monotonic >= *self.frame_since.get_or_insert(now.monotonic) + self.line.frame_timeout {
            self.lease.pool().refused("frame");
            self.peer.short_of_memory(now);
        }
    }

    /// How many bytes may be read now; none if the gate is shut, which is noted.
    fn readable(&mut self) -> usize {
        let (partial, whole) = self.decoder.partial();
        let roomy = self.lease.pool().has_room();
        // A serial port cannot wait, and there are few.
        let most = if self.line.shared.log.is_saturated() { BRIEF } else { READ };
        let readable = if self.line.grants.restart || roomy && whole <= ALLOWANCE {
            most
        } else if whole <= ALLOWANCE {
            ALLOWANCE - partial // the whole is no less
        } else if self.lease.reserve(whole + self.peer.memory()) {
            if roomy { most } else { (whole - partial).clamp(1, most) }
        } else {
            0
        };
        self.gate = if readable == 0 { Gate::Memory } else { Gate::Open };
        self.lease.starve(readable == 0);
        readable
    }

    /// Accounts for what is held after a read.
    fn settle_lease(&mut self) {
        let (_, whole) = self.decoder.partial();
        // The room for a large frame that was reserved is kept for it.
        let frame = if whole > ALLOWANCE && !self.lease.is_starved() { whole } else { 0 };
        if !self.lease.pool().has_room() {
            self.peer.forget_luxuries();
        }
        let held = self.decoder.memory().max(1) + self.peer.memory();
        let wanted = frame + self.peer.memory();
        let granted = wanted > held && self.lease.reserve(wanted);
        self.lease.hold(if granted { wanted } else { held });
    }

    /// When something becomes due by itself.
    fn deadline(&self, now: Duration) -> Option<Duration> {
        let ack = self.peer.ack_due(now);
        if let Some(stop) = self.stop_at {
            return Some(ack.map_or(stop, |ack| ack.min(stop)));
        }
        let look = (self.gate == Gate::Memory || self.frame_since.is_some()).then_some(now + LOOK_AGAIN);
        if self.peer.is_backed_up() || self.gate != Gate::Open {
            let rate = if let Gate::Rate(until) = self.gate { Some(until) } else { None };
            return [ack, look, rate, self.peer.reassures_at(), self.hangup.due()].into_iter().flatten().min();
        }
        let silence = if self.last_look { Some(now + LAST_LOOK) } else { self.silence_deadline() };
        [ack, look, silence].into_iter().flatten().min()
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
                    self.peer.answer_calls();
                    if self.peer.out.is_empty() {
                        break;
                    }
                }
            }
        }
        let max_out = if self.lease.pool().has_room() { MAX_OUT } else { ALLOWANCE };
        let shut = self.gate != Gate::Open;
        if self.stop_at.is_some() || shut || self.peer.is_backed_up() || self.peer.out.len() > max_out {
            return Poll::Pending;
        }
        let readable = self.readable();
        if readable == 0 {
            return Poll::Ready(Ok(true)); // what to wait for is another thing now
        }
        let mut storage = [const { MaybeUninit::<u8>::uninit() }; READ];
        let gives_way = self.peer.place.gives_way();
        let most = if gives_way { readable.min(EARLY) } else { readable };
        let mut buffer = ReadBuf::uninit(&mut storage[..most]); // READ at most
        ready!(Pin::new(&mut *self.io).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(false));
        }
        if gives_way {
            self.early = buffer.filled().to_vec();
            self.peer.place.line_up();
        } else {
            self.much = buffer.filled().len() >= BRIEF;
            self.take(buffer.filled());
        }
        Poll::Ready(Ok(true))
    }

    /// Takes in what came.
    fn take(&mut self, bytes: &[u8]) {
        let now = self.excuse();
        let peer = &mut self.peer;
        let goes_on = self.decoder.is_partial();
        if let Err(error) = self.decoder.push(bytes, &mut |event| peer.take(event, now)) {
            peer.broken(error, now);
        }
        self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
        if !goes_on || self.begun.0 != self.decoder.position() {
            self.begun = (self.decoder.position(), now.monotonic);
        }
        peer.store();
        self.settle_lease();
        if let Some(until) = self.peer.throttled_until(now.monotonic) {
            self.gate = Gate::Rate(until);
        }
    }

    /// It is its turn: what was read is heard.
    fn hear(&mut self) {
        let early = std::mem::take(&mut self.early);
        self.take(&early);
        self.peer.place.step_back();
    }

    /// Tells the device that its place is needed, as far as that goes without waiting.
    fn say_busy(&mut self) {
        self.peer.make_room();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // It fits an empty send buffer; if not, the closed connection says enough.
        let _ = Pin::new(&mut *self.io).poll_write(&mut cx, &self.peer.out);
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
