//! Drives the session of one device over any stream.
//!
//! Bytes are read into a buffer that lives only while they are decoded, so a connection that says
//! nothing holds no memory for it. Reading pauses while more Readings wait for room in the log or
//! in the device's window than may, while it sends more messages than it may, while the device does
//! not take what it is answered, and while the memory for all connections is used up and the frame
//! under way is a large one.

mod driver;
mod hangup;

use super::context::LinkContext;
use super::remote::RemoteInfo;
use crate::clock::{Excuses, LAST_LOOK};
use crate::net::{ALLOWANCE, AdmissionSlot, Lease};
use crate::stop;
use crate::wire::frame::Decoder;
pub(super) use driver::reply_format::FIRST_FORMAT;
use driver::{SessionDriver, SessionEnd};
use hangup::Hangup;
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
/// Bytes read at a time while the connection takes its steps in turns.
const EARLY: usize = ALLOWANCE;
/// Answers that may wait for the device to take them, in bytes.
const MAX_OUT: usize = 16 * 1024;
/// How often a connection that waits for memory looks again: there may be as much now as it wants,
/// and others may wait that it stands in the way of.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a stop waits for the device's readings to settle.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);
/// How long the Goodbye may take to be sent.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);
/// Sleep when nothing is to be waited for.
const LONG: Duration = Duration::from_secs(3600);

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum Closed {
    /// Either side sent a Goodbye, or the gateway stops.
    Ended,
    /// The far end closed without a Goodbye.
    Gone,
    /// Reading or writing failed.
    Failed(io::Error),
    /// Its slot was needed for another connection.
    Evicted,
}

struct Connection<'a, S> {
    io: &'a mut S,
    link: &'a LinkContext,
    decoder: Decoder,
    /// When the last byte came, if the decoder holds an incomplete frame.
    partial_since: Option<Duration>,
    /// Where in the stream that frame begins, and when it did.
    begun: (u64, Duration),
    /// When the frame that is incomplete began, while another waits for its memory.
    frame_since: Option<Duration>,
    driver: SessionDriver<'a>,
    lease: Lease,
    /// Why it is not read, beside the reasons that the driver knows.
    gate: Gate,
    hangup: Hangup,
    /// Bytes that were read, and are decoded when the turn comes.
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

/// Serves the device at the far end of `io` until either side closes it or `stop` turns true.
/// `slot` is the slot that it was accepted with. `hung_up` tells whether the far end closed `io`,
/// which is asked while it is not read.
pub(super) async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    hung_up: fn(&S) -> bool,
    link: &LinkContext,
    remote: RemoteInfo,
    slot: AdmissionSlot,
    mut stop: watch::Receiver<bool>,
) -> Closed {
    let clock = &link.shared.clock;
    let decoder = Decoder::new(link.before_hello, link.recovery);
    let excuses = Excuses::from(clock.put_off());
    let mut connection = Connection {
        io,
        link,
        decoder: if link.text { decoder.accept_text() } else { decoder },
        partial_since: None,
        begun: (0, Duration::ZERO),
        frame_since: None,
        driver: SessionDriver::new(link, remote, slot, clock.now()),
        lease: link.shared.pool.lease(),
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
        if let Some(end) = connection.driver.ended() {
            connection.driver.slot.acquire_turn().await;
            connection.say_farewell(end).await;
            return Closed::Ended;
        }
        let is_unread = connection.driver.is_backed_up() || connection.gate == Gate::Memory;
        let paused = connection.stop_at.is_none() && is_unread;
        if connection.hangup.is_due(paused, now.monotonic) && hung_up(connection.io) {
            connection.driver.vacate_in_turn().await;
            connection.driver.gone("the far end closed the connection, while nothing of what it sent could be stored");
            return Closed::Gone;
        }
        let wait = connection.deadline(now.monotonic).map_or(LONG, |at| at.saturating_sub(now.monotonic));
        let at = Instant::now() + wait;
        // Moving the timer forward costs more than waking up for nothing.
        if at < timer.deadline() || timer.is_elapsed() {
            timer.as_mut().reset(at);
        }
        let settled = connection.driver.settled(now.monotonic);
        let called = connection.driver.called();
        let evicted = connection.driver.slot.evicted();
        let keys = connection.driver.keys_changed();
        let room = connection.driver.room();
        let starved = connection.gate == Gate::Memory;
        let granted = connection.lease.granted();
        tokio::select! {
            biased;
            () = stop::requested(&mut stop), if connection.stop_at.is_none() => {
                connection.stop_at = Some(clock.now().monotonic + SETTLE_WITHIN);
            }
            () = called => connection.driver.answer_calls(),
            () = evicted => {
                connection.say_evicted();
                return Closed::Evicted;
            }
            () = keys => connection.driver.check_key(clock.now()),
            () = settled => {
                if connection.driver.slot.is_paced() {
                    connection.driver.slot.acquire_turn().await;
                }
            }
            () = room => {
                if connection.driver.brings_much() {
                    connection.driver.slot.acquire_read().await;
                }
            }
            () = granted, if starved => connection.gate = Gate::Open,
            io = poll_fn(|cx| connection.poll_io(cx)) => match io {
                Ok(true) if !connection.early.is_empty() => {
                    connection.driver.slot.acquire_turn().await;
                    connection.hear();
                }
                Ok(true) if connection.much => {
                    connection.much = false;
                    connection.driver.slot.acquire_read().await;
                }
                Ok(true) => {}
                Ok(false) => {
                    connection.driver.vacate_in_turn().await;
                    connection.driver.gone("the far end closed the connection");
                    return Closed::Gone;
                }
                Err(error) => {
                    connection.driver.vacate_in_turn().await;
                    connection.driver.gone(&error.to_string());
                    return Closed::Failed(error);
                }
            },
            // Only now it is known that there is nothing to read.
            () = &mut timer => connection.on_timeout(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    /// The time. A pause of the gateway is not counted as silence of the device.
    fn excuse(&mut self) -> crate::clock::Now {
        let clock = &self.link.shared.clock;
        // In this order: the excuse for a pause must not be used up by a time before it.
        let (put_off, now) = (clock.put_off(), clock.now());
        let by = self.excuses.look(put_off, now.monotonic);
        if by.is_zero() {
            return now;
        }
        self.driver.excuse(by, now);
        for since in [&mut self.partial_since, &mut self.frame_since].into_iter().flatten() {
            *since = (*since + by).min(now.monotonic);
        }
        self.begun.1 = (self.begun.1 + by).min(now.monotonic);
        now
    }

    /// Does what has become due, except for [`Connection::on_timeout`].
    fn advance(&mut self, now: crate::clock::Now) {
        self.driver.advance(now);
        if let Some(at) = self.stop_at {
            if self.driver.is_settled() || now.monotonic >= at {
                self.driver.stop();
            }
            return;
        }
        if matches!(self.gate, Gate::Rate(until) if now.monotonic >= until) {
            self.gate = Gate::Open;
        }
        if self.driver.is_backed_up() || self.gate != Gate::Open {
            // Silence is not counted while the device is not read.
            self.driver.heard(now);
            self.partial_since = self.partial_since.map(|_| now.monotonic);
            self.begun.1 = now.monotonic;
            self.look_at_pressure(now);
            self.driver.reassure(now);
            return;
        }
        self.driver.is_read();
        self.look_at_pressure(now);
    }

    /// When silence, or a frame that stays incomplete, becomes a timeout.
    fn silence_deadline(&self) -> Option<Duration> {
        let partial = self.partial_since.map(|since| since + self.link.frame_timeout);
        [partial, self.overdue(), self.driver.silence_deadline()].into_iter().flatten().min()
    }

    /// Acts on a silence that lasted too long, if there was nothing to read at its end, nor at
    /// another look.
    fn on_timeout(&mut self) {
        let now = self.excuse();
        if self.gate == Gate::Memory && !self.lease.is_queued() {
            self.readable();
        }
        let reads = self.stop_at.is_none() && self.gate == Gate::Open && !self.driver.is_backed_up();
        let late = reads && self.silence_deadline().is_some_and(|deadline| now.monotonic >= deadline);
        if !late || !std::mem::replace(&mut self.last_look, true) {
            self.last_look &= late;
            return;
        }
        self.last_look = false;
        let driver = &mut self.driver;
        if self.partial_since.is_some_and(|since| now.monotonic >= since + self.link.frame_timeout) {
            if let Err(error) = self.decoder.give_up_partial(&mut |event| driver.take(event, now)) {
                driver.broken(error, now);
            }
            self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
            driver.store();
        } else if self.overdue().is_some_and(|at| now.monotonic >= at) {
            let driver = &mut self.driver;
            self.decoder.look_inside(&mut |event| driver.take(event, now));
            self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
            self.begun = (self.decoder.position(), now.monotonic);
            driver.store();
        }
        self.driver.check_silence(now);
    }

    /// When the incomplete frame has taken longer than the line needs, so that another may be
    /// hidden in it.
    fn overdue(&self) -> Option<Duration> {
        let (_, whole) = self.decoder.partial();
        let begun = self.partial_since.map(|_| self.begun.1);
        begun.filter(|_| self.link.parameters.restart).map(|begun| begun + self.link.frame_within(whole))
    }

    /// While others wait for memory, a large frame has to be complete within the frame timeout: its
    /// sender must not keep the memory by a byte now and then.
    fn look_at_pressure(&mut self, now: crate::clock::Now) {
        if self.frame_since.is_some() {
            self.excuse();
        }
        let wanted = self.lease.pool().is_wanted() && self.decoder.memory() > ALLOWANCE;
        if !wanted || self.driver.is_stalled() || self.link.parameters.restart {
            self.frame_since = None;
        } else if now.monotonic >= *self.frame_since.get_or_insert(now.monotonic) + self.link.frame_timeout {
            self.lease.pool().refused("frame");
            self.driver.short_of_memory(now);
        }
    }

    /// How many bytes may be read now. Sets the gate: it shuts if there are none.
    fn readable(&mut self) -> usize {
        let (partial, whole) = self.decoder.partial();
        let roomy = self.lease.pool().has_room();
        // A serial port cannot wait, and there are few of them.
        let most = if self.link.shared.ingest.is_saturated() { BRIEF } else { READ };
        let readable = if self.link.parameters.restart || roomy && whole <= ALLOWANCE {
            most
        } else if whole <= ALLOWANCE {
            ALLOWANCE - partial // the whole is no less
        } else if self.lease.reserve_in_turn(whole + self.driver.memory()) {
            if roomy { most } else { (whole - partial).clamp(1, most) }
        } else {
            0
        };
        self.gate = if readable == 0 { Gate::Memory } else { Gate::Open };
        self.lease.starve(readable == 0);
        readable
    }

    /// Charges the lease for what is held after a read.
    fn settle_lease(&mut self) {
        let (_, whole) = self.decoder.partial();
        // The room for a large frame that was reserved is kept for it.
        let frame = if whole > ALLOWANCE && !self.lease.is_starved() { whole } else { 0 };
        if !self.lease.pool().has_room() {
            self.driver.free_caches();
        }
        let held = self.decoder.memory().max(1) + self.driver.memory();
        self.lease.hold_for(held, frame + self.driver.memory());
    }

    /// When the next timer is due.
    fn deadline(&self, now: Duration) -> Option<Duration> {
        let ack = self.driver.ack_due(now);
        if let Some(stop) = self.stop_at {
            return Some(ack.map_or(stop, |ack| ack.min(stop)));
        }
        let look = (self.gate == Gate::Memory || self.frame_since.is_some()).then_some(now + LOOK_AGAIN);
        if self.driver.is_backed_up() || self.gate != Gate::Open {
            let rate = if let Gate::Rate(until) = self.gate { Some(until) } else { None };
            return [ack, look, rate, self.driver.reassures_at(), self.hangup.due()].into_iter().flatten().min();
        }
        let silence = if self.last_look { Some(now + LAST_LOOK) } else { self.silence_deadline() };
        [ack, look, silence].into_iter().flatten().min()
    }

    /// Writes the answers and reads once. Ready with false at the end of the stream.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.driver.out.is_empty() {
            while let Poll::Ready(written) = Pin::new(&mut *self.io).poll_write(cx, &self.driver.out) {
                match written? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => drop(self.driver.out.drain(..written)),
                }
                if self.driver.out.is_empty() {
                    self.driver.out = Vec::new();
                    self.driver.answer_calls();
                    if self.driver.out.is_empty() {
                        break;
                    }
                }
            }
        }
        let max_out = if self.lease.pool().has_room() { MAX_OUT } else { ALLOWANCE };
        let shut = self.gate != Gate::Open;
        if self.stop_at.is_some() || shut || self.driver.is_backed_up() || self.driver.out.len() > max_out {
            return Poll::Pending;
        }
        let readable = self.readable();
        if readable == 0 {
            return Poll::Ready(Ok(true)); // what to wait for is another thing now
        }
        let mut storage = [const { MaybeUninit::<u8>::uninit() }; READ];
        let is_paced = self.driver.slot.is_paced();
        let most = if is_paced { readable.min(EARLY) } else { readable };
        let mut buffer = ReadBuf::uninit(&mut storage[..most]); // READ at most
        ready!(Pin::new(&mut *self.io).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(false));
        }
        if is_paced {
            self.early = buffer.filled().to_vec();
            self.driver.slot.ready();
        } else {
            self.much = buffer.filled().len() >= BRIEF;
            self.take(buffer.filled());
        }
        Poll::Ready(Ok(true))
    }

    /// Decodes bytes and acts on their messages.
    fn take(&mut self, bytes: &[u8]) {
        let now = self.excuse();
        let driver = &mut self.driver;
        let goes_on = self.decoder.is_partial();
        if let Err(error) = self.decoder.push(bytes, &mut |event| driver.take(event, now)) {
            driver.broken(error, now);
        }
        self.partial_since = self.decoder.is_partial().then_some(now.monotonic);
        if !goes_on || self.begun.0 != self.decoder.position() {
            self.begun = (self.decoder.position(), now.monotonic);
        }
        driver.store();
        self.settle_lease();
        if let Some(until) = self.driver.throttled_until(now.monotonic) {
            self.gate = Gate::Rate(until);
        }
    }

    /// Decodes the bytes that were read before the turn, and ends it.
    fn hear(&mut self) {
        let early = std::mem::take(&mut self.early);
        self.take(&early);
        self.driver.slot.release();
    }

    /// Sends the Goodbye of an eviction, as far as that needs no waiting.
    fn say_evicted(&mut self) {
        self.driver.say_evicted();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // It fits an empty send buffer; if not, the closed connection says enough.
        let _ = Pin::new(&mut *self.io).poll_write(&mut cx, &self.driver.out);
    }

    async fn say_farewell(&mut self, end: SessionEnd) {
        self.driver.farewell(end);
        let send = poll_fn(|cx| {
            while !self.driver.out.is_empty() {
                match ready!(Pin::new(&mut *self.io).poll_write(cx, &self.driver.out)) {
                    Ok(0) | Err(_) => break,
                    Ok(written) => drop(self.driver.out.drain(..written)),
                }
            }
            Poll::Ready(())
        });
        // A device that does not read misses the Goodbye.
        let _ = tokio::time::timeout(FAREWELL_WITHIN, send).await;
    }
}
