//! The client side of one connection: what to write next, what a packet means, and when to
//! give up. Without clock and socket.
//!
//! A publish is in flight from when it is written until its PUBACK, found by its packet id.
//! One without a PUBACK, or refused for a quota, is written again as a new message, and
//! publishes are slowed down if that happens more than once ([`Pacing`]).
//!
//! Two things end a connection that is still open: nothing is received after a ping, or the
//! oldest publish is not confirmed. The latter counts from when no other publish is before it,
//! so that a slow link with a full window is not taken for dead.

mod incoming;
mod outgoing;

use super::cause::Cause;
use super::message::{Event, Message, Publish};
use super::options::Options;
use super::pacing::Pacing;
use super::packet::{Allowance, Codec, Packet};
use crate::backoff::Failure;
use crate::clock::LAST_LOOK;
use bytes::{Buf, BytesMut};
use incoming::Incoming;
use outgoing::{Answered, Outgoing};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Least throughput expected of a link, in bytes a second.
const SLOWEST_LINK: u64 = 600;
/// Most packet ids that may be unconfirmed; there are 65,535.
const MOST_PACKETS: usize = 60_000;
/// Publishes that may wait to be written, beside the window.
const SPARE: usize = 8;

#[derive(Debug)]
pub struct Client {
    codec: Codec,
    /// Output that is not written yet.
    out: BytesMut,
    /// Publishes in flight.
    outgoing: Outgoing,
    /// Since when no publish has been before the oldest one.
    waited_since: Duration,
    /// When to check for overdue publishes, and whether it is the second check.
    look: Option<Duration>,
    doubted: bool,
    /// Estimates of link and broker.
    pub(super) pacing: Pacing,
    /// When to send the owner [`Event::Room`].
    room_at: Option<Duration>,
    /// Publishes that wait because too many are in flight.
    waiting: VecDeque<(u64, Publish)>,
    window: usize,
    subscribing: HashSet<u16>,
    /// Unconfirmed messages, in the order of arrival.
    incoming: Incoming,
    last_packet: u16,
    allowance: Option<Allowance>,
    /// Why the broker refused or ended the connection.
    cause: Cause,
    max_packet: usize,
    keep_alive: Duration,
    confirm_timeout: Duration,
    /// When something was last read, and last written.
    read_at: Duration,
    written_at: Duration,
    /// When a ping was added, while nothing was received since.
    pinged: Option<Duration>,
    /// PUBACKs for packet ids that are not in flight.
    unexpected: u64,
}

/// What a packet means for the driver.
#[derive(Debug)]
pub enum Seen {
    Connected,
    Event(Event),
    /// With its packet id; 0 if it needs no confirmation.
    Message(Message, u16),
}

impl Client {
    /// A client that begins with CONNECT.
    pub fn new(options: &Options, now: Duration) -> Client {
        let codec = Codec::new(options);
        let mut out = BytesMut::new();
        codec.connect(options, &mut out);
        Client {
            codec,
            out,
            outgoing: Outgoing::default(),
            waited_since: now,
            look: None,
            doubted: false,
            pacing: Pacing::new(options.confirm_timeout),
            room_at: None,
            waiting: VecDeque::new(),
            window: usize::from(options.window.max(1)) + SPARE,
            subscribing: HashSet::new(),
            incoming: Incoming::default(),
            last_packet: 0,
            allowance: None,
            cause: Cause::default(),
            max_packet: usize::try_from(options.max_packet).unwrap_or(usize::MAX),
            keep_alive: options.keep_alive,
            confirm_timeout: options.confirm_timeout,
            read_at: now,
            written_at: now,
            pinged: None,
            unexpected: 0,
        }
    }

    /// Writes a publish, or queues it until the broker allows one more.
    ///
    /// # Errors
    /// If more are under way than the window allows.
    pub fn publish(&mut self, token: u64, publish: Publish, now: Duration) -> Result<Option<Event>, Failure> {
        if self.outgoing.len() + self.waiting.len() >= self.window {
            return Err(Failure::transient("more publishes are under way than the window allows"));
        }
        if !self.is_free(now) || self.outgoing.is_due() || !self.waiting.is_empty() {
            self.waiting.push_back((token, publish));
            return Ok(None);
        }
        Ok(self.write_publish(token, publish, now))
    }

    /// Publishes that may be in flight.
    fn allowed(&self) -> usize {
        self.allowance.and_then(|told| told.receive_maximum).map_or(MOST_PACKETS, usize::from).clamp(1, MOST_PACKETS)
    }

    /// Whether a publish may be written now.
    fn is_free(&self, now: Duration) -> bool {
        self.outgoing.packets() < self.allowed() && self.pacing.next() <= now
    }

    /// Whether another batch would be written at once.
    pub fn has_room(&self, now: Duration) -> bool {
        self.is_free(now)
            && !self.outgoing.is_due()
            && self.waiting.is_empty()
            && self.pacing.has_room(self.outgoing.bytes())
    }

    /// Number of PUBACKs for packet ids that are not in flight, since the last call.
    pub fn take_unexpected(&mut self) -> u64 {
        std::mem::take(&mut self.unexpected)
    }

    fn write_publish(&mut self, token: u64, publish: Publish, now: Duration) -> Option<Event> {
        let packet = self.next_packet();
        let Some(size) = self.codec.publish(publish.clone(), packet, self.max_packet, &mut self.out) else {
            let (topic, most) = (publish.topic, self.max_packet);
            let what = format!("a publish to {topic} exceeds the {most} bytes allowed");
            return Some(Event::Refused(token, Failure::permanent(what)));
        };
        if self.outgoing.len() == 0 {
            self.waited_since = now;
        }
        self.outgoing.add(packet, token, publish, size, now);
        self.wrote(1, now);
        None
    }

    fn wrote(&mut self, writings: u32, now: Duration) {
        let look = now + self.pacing.resend_after(writings);
        self.look = Some(self.look.map_or(look, |before| before.min(look)));
        self.pacing.wrote(now);
        self.room_at = Some(self.pacing.next()).filter(|next| *next > now);
    }

    /// Writes waiting publishes as far as allowed; first those that are to be written again.
    fn write_more(&mut self, now: Duration, seen: &mut Vec<Seen>) {
        while self.is_free(now) {
            if let Some((place, publish)) = self.outgoing.due() {
                let packet = self.next_packet();
                // It was written before, so it is not too large.
                if self.codec.publish(publish, packet, self.max_packet, &mut self.out).is_some() {
                    let writings = self.outgoing.again(place, packet, now);
                    self.wrote(writings, now);
                }
            } else if let Some((token, publish)) = self.waiting.pop_front() {
                seen.extend(self.write_publish(token, publish, now).map(Seen::Event));
            } else {
                return;
            }
        }
    }

    /// A packet id that is not in use.
    fn next_packet(&mut self) -> u16 {
        loop {
            self.last_packet = self.last_packet.checked_add(1).unwrap_or(1);
            // The window is much smaller than the number of ids.
            if !self.outgoing.has(self.last_packet) && !self.subscribing.contains(&self.last_packet) {
                return self.last_packet;
            }
        }
    }

    pub fn subscribe(&mut self, filter: &str) {
        let packet = self.next_packet();
        self.subscribing.insert(packet);
        self.codec.subscribe(filter, packet, &mut self.out);
    }

    /// Confirms the message in this packet, after those that arrived before it (MQTT 5, 4.6).
    /// Returns how many messages that were handed on this confirms.
    pub fn confirm(&mut self, packet: u16) -> usize {
        self.incoming.taken(packet);
        let mut confirmed = 0;
        while let Some((packet, handed_on)) = self.incoming.next() {
            Codec::pub_ack(packet, &mut self.out);
            confirmed += usize::from(handed_on);
        }
        confirmed
    }

    /// Adds DISCONNECT, so that the broker discards the Last Will.
    pub fn disconnect(&mut self) {
        Codec::disconnect(&mut self.out);
    }

    /// Output to write.
    pub fn output(&self) -> &BytesMut {
        &self.out
    }

    /// `bytes` of the output were written.
    pub fn written(&mut self, bytes: usize, now: Duration) {
        self.out.advance(bytes.min(self.out.len()));
        self.written_at = now;
        if self.out.is_empty() && self.out.capacity() > KEPT {
            self.out = BytesMut::new();
        }
    }

    /// Something was read.
    pub fn heard(&mut self, now: Duration) {
        self.read_at = now;
        self.pinged = None;
    }

    /// Decodes one packet of the input and adds its meaning to `seen`; false if none is
    /// complete.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn take(&mut self, input: &mut BytesMut, now: Duration, seen: &mut Vec<Seen>) -> Result<bool, Failure> {
        let Some(packet) = self.codec.decode(input)? else { return Ok(false) };
        match (packet, self.allowance) {
            (Packet::ConnAck(answer), None) => {
                match answer {
                    Ok(allowance) => self.set_allowance(allowance),
                    Err((why, cause)) => return Err(self.ended(why, cause)),
                }
                seen.push(Seen::Connected);
            }
            (Packet::ConnAck(_), Some(_)) => {
                return Err(Failure::transient("the broker answered the connection twice"));
            }
            (_, None) => return Err(Failure::transient("the broker sent something before it accepted the connection")),
            (Packet::PubAck(packet, outcome), _) => self.confirmed(packet, outcome, now, seen),
            (Packet::NotNow(packet, why), _) => self.put_off(packet, &why, now),
            (Packet::SubAck(packet, outcome), _) => {
                if self.subscribing.remove(&packet) {
                    seen.push(Seen::Event(Event::Subscribed(outcome)));
                }
            }
            (Packet::Publish(message, packet), _) => {
                if packet != 0 {
                    self.incoming.came(packet, true);
                }
                seen.push(Seen::Message(message, packet));
            }
            (Packet::Unusable { topic, size, why, packet }, _) => {
                // It would be sent again with each connection.
                if packet != 0 {
                    self.incoming.came(packet, false);
                    self.confirm(packet);
                }
                seen.push(Seen::Event(Event::Unusable { topic, size, why }));
            }
            (Packet::Disconnect(why, cause), _) => return Err(self.ended(why, cause)),
            (Packet::Other, _) => {}
        }
        Ok(true)
    }

    fn ended(&mut self, why: Failure, cause: Cause) -> Failure {
        self.cause = cause;
        why
    }

    /// Why the broker refused or ended the connection, as far as it said.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// What the broker allows, once it has accepted the connection.
    pub fn allowance(&self) -> Option<Allowance> {
        self.allowance
    }

    fn set_allowance(&mut self, allowance: Allowance) {
        self.allowance = Some(allowance);
        let max_packet = allowance.max_packet.and_then(|bytes| usize::try_from(bytes).ok());
        self.max_packet = self.max_packet.min(max_packet.unwrap_or(usize::MAX));
        if let Some(told) = allowance.keep_alive.filter(|told| !told.is_zero()) {
            self.keep_alive = self.keep_alive.min(told);
        }
    }

    fn confirmed(&mut self, packet: u16, outcome: Result<(), Failure>, now: Duration, seen: &mut Vec<Seen>) {
        let in_flight = self.outgoing.bytes();
        match self.outgoing.answered(packet) {
            (Answered::Nothing, _) => {
                self.unexpected += 1;
                tracing::debug!(packet, "the broker confirmed a publish that is not in flight");
            }
            (Answered::Superseded { written }, _) => self.pacing.confirmed(0, 0, written, now),
            (Answered::Publish { token, topic, size, written }, moved) => {
                if moved {
                    self.waited_since = now;
                }
                self.pacing.confirmed(size, in_flight, written, now);
                seen.push(Seen::Event(match outcome {
                    Ok(()) => Event::Acked(token),
                    Err(Failure { what, permanent }) => {
                        let what = format!("the broker refused a publish to {topic}: {what}");
                        Event::Refused(token, Failure { what, permanent })
                    }
                }));
            }
        }
        // The round trip may show that others are overdue earlier.
        let look = now + self.pacing.resend_after(1);
        self.look = self.look.map(|before| before.min(look)).filter(|_| self.outgoing.len() > 0);
        self.write_more(now, seen);
    }

    fn put_off(&mut self, packet: u16, why: &Failure, now: Duration) {
        let Some(written) = self.outgoing.put_off(packet) else { return };
        if self.pacing.refused(written, now) {
            tracing::warn!(why = why.what, "the broker refuses publishes for now; sending fewer in a second");
        }
        self.room_at = Some(self.pacing.next());
    }

    /// When to call [`Client::tick`] next.
    pub fn due(&self) -> Duration {
        let unconfirmed = self.outgoing.first().map(|size| self.waited_since + self.confirm_within(size));
        let unheard = self.pinged.map_or_else(|| self.ping_due(), |pinged| pinged + self.answer_within());
        [unconfirmed, self.look, self.room_at].into_iter().flatten().fold(unheard, Duration::min)
    }

    /// Time for a publish of this size to be confirmed once none is before it.
    fn confirm_within(&self, size: usize) -> Duration {
        self.confirm_timeout + transmission_time(size)
    }

    /// Time for the answer to a ping, behind the publishes in flight.
    fn answer_within(&self) -> Duration {
        self.keep_alive + self.outgoing.first().map_or(Duration::ZERO, transmission_time)
    }

    fn ping_due(&self) -> Duration {
        self.read_at.min(self.written_at) + self.keep_alive
    }

    /// Does what is due, after all received bytes were handled, and returns the events.
    ///
    /// # Errors
    /// If the connection is to be given up.
    pub fn tick(&mut self, now: Duration) -> Result<Vec<Seen>, Failure> {
        let shown = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
        if let Some(size) = self.outgoing.first()
            && self.waited_since + self.confirm_within(size) <= now
        {
            let (since, waiting) = (shown(now - self.waited_since), self.outgoing.len());
            return Err(Failure::transient(format!(
                "the broker is connected and did not confirm a publish for {since} ({waiting} are under way)"
            )));
        }
        let superseded = self.outgoing.superseded();
        if superseded * 2 > self.allowed() {
            return Err(Failure::transient(format!("the broker left {superseded} publishes unconfirmed")));
        }
        match self.pinged {
            Some(pinged) if pinged + self.answer_within() <= now => {
                let since = shown(now - self.read_at);
                return Err(Failure::transient(format!(
                    "nothing came from the broker for {since}, not even an answer to a ping"
                )));
            }
            None if self.ping_due() <= now => {
                Codec::ping(&mut self.out);
                self.pinged = Some(now);
            }
            _ => {}
        }
        let mut seen = Vec::new();
        if self.look.is_some_and(|look| look <= now) {
            // After a pause of the process the answers may still be unread.
            self.doubted = !self.doubted;
            match self.doubted {
                true => self.look = Some(now + LAST_LOOK),
                false => self.look_for_missing(now),
            }
        }
        if self.room_at.take_if(|at| *at <= now).is_some() {
            self.write_more(now, &mut seen);
            seen.push(Seen::Event(Event::Room));
        }
        Ok(seen)
    }

    fn look_for_missing(&mut self, now: Duration) {
        let (missing, next) = self.outgoing.overdue(|writings| self.pacing.resend_after(writings), now);
        self.look = next;
        for written in missing {
            if self.pacing.missing(written, now) {
                let most = self.pacing.limit(now).unwrap_or_default().ceil();
                tracing::warn!(most, "the broker leaves publishes unconfirmed; sending fewer in a second");
            }
        }
        if self.outgoing.is_due() {
            self.room_at = Some(self.pacing.next().max(now));
        }
    }
}

/// Time that `size` bytes take on the slowest link.
fn transmission_time(size: usize) -> Duration {
    Duration::from_millis(size as u64 * 1000 / SLOWEST_LINK)
}

/// Larger buffers are freed once written.
const KEPT: usize = 64 * 1024;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
