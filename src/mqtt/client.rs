//! One connection's client side, without the connection: what to write next, what a
//! packet means, and when to give up. No clock and no socket.
//!
//! A publish is in flight from when it is written until its PUBACK, found by its packet id.
//! Two things end a connection that still stands: nothing comes though a ping was sent, or
//! the publish that has waited longest is not confirmed. The latter counts from when nothing
//! stood before it, so that a slow link with a full window is no dead one.

use super::cause::Cause;
use super::message::{Event, Message, Publish};
use super::options::Options;
use super::packet::{Allowance, Codec, Packet};
use crate::backoff::Failure;
use bytes::{Buf, BytesMut};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// A link is expected to carry so many bytes in a second, at the least.
const SLOWEST_LINK: u64 = 600;
/// Beside the window, so many publishes may wait to be written.
const SPARE: usize = 8;

#[derive(Debug)]
pub(super) struct Client {
    codec: Codec,
    /// To be written.
    out: BytesMut,
    /// Publishes in flight, in the order in which they were written.
    order: VecDeque<Sent>,
    /// Where in `order` the publish with this packet id stands, counted from `taken`.
    places: HashMap<u16, u64>,
    /// How many have left `order` at its front.
    taken: u64,
    /// Since when the front of `order` has had nothing before it.
    waited_since: Duration,
    /// Publishes that wait until the broker allows more in flight.
    waiting: VecDeque<(u64, Publish)>,
    window: usize,
    subscribing: HashSet<u16>,
    last_packet: u16,
    allowance: Option<Allowance>,
    /// Why the broker refused or ended the connection.
    cause: Cause,
    max_packet: usize,
    keep_alive: Duration,
    confirm_timeout: Duration,
    /// When something was read last, and something written.
    read_at: Duration,
    written_at: Duration,
    /// When a ping was added that nothing has come after.
    pinged: Option<Duration>,
    /// PUBACKs for what is not in flight.
    unexpected: u64,
}

#[derive(Debug)]
struct Sent {
    token: u64,
    topic: Box<str>,
    size: usize,
    confirmed: bool,
}

/// What the driver is to know of a packet.
#[derive(Debug)]
pub(super) enum Seen {
    Connected,
    Event(Event),
    /// With the id of its packet; 0 if it wants no confirmation.
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
            order: VecDeque::new(),
            places: HashMap::new(),
            taken: 0,
            waited_since: now,
            waiting: VecDeque::new(),
            window: usize::from(options.window.max(1)) + SPARE,
            subscribing: HashSet::new(),
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

    /// Writes a publish, or keeps it until the broker allows one more.
    ///
    /// # Errors
    /// If more are under way than the window has room for.
    pub fn publish(&mut self, token: u64, publish: Publish, now: Duration) -> Result<Option<Event>, Failure> {
        if self.places.len() + self.waiting.len() >= self.window {
            return Err(lost("more publishes are under way than the window allows"));
        }
        if self.places.len() >= self.allowed() || !self.waiting.is_empty() {
            self.waiting.push_back((token, publish));
            return Ok(None);
        }
        Ok(self.write_publish(token, publish, now))
    }

    /// How many may be in flight.
    fn allowed(&self) -> usize {
        self.allowance.and_then(|told| told.receive_maximum).map_or(usize::MAX, usize::from).max(1)
    }

    fn write_publish(&mut self, token: u64, publish: Publish, now: Duration) -> Option<Event> {
        let (packet, topic) = (self.next_packet(), Box::<str>::from(publish.topic.as_str()));
        let Some(size) = self.codec.publish(publish, packet, self.max_packet, &mut self.out) else {
            let what = format!("a publish to {topic} has more than the {} bytes that are taken", self.max_packet);
            return Some(Event::Refused(token, Failure { what, permanent: true }));
        };
        if self.order.is_empty() {
            self.waited_since = now;
        }
        self.places.insert(packet, self.taken + self.order.len() as u64);
        self.order.push_back(Sent { token, topic, size, confirmed: false });
        None
    }

    /// An id that nothing under way has.
    fn next_packet(&mut self) -> u16 {
        loop {
            self.last_packet = self.last_packet.checked_add(1).unwrap_or(1);
            // The window is much smaller than the number of ids.
            if !self.places.contains_key(&self.last_packet) && !self.subscribing.contains(&self.last_packet) {
                return self.last_packet;
            }
        }
    }

    pub fn subscribe(&mut self, filter: &str) {
        let packet = self.next_packet();
        self.subscribing.insert(packet);
        self.codec.subscribe(filter, packet, &mut self.out);
    }

    /// Confirms a message.
    pub fn confirm(&mut self, packet: u16) {
        Codec::pub_ack(packet, &mut self.out);
    }

    /// Takes leave, so that the broker forgets the Last Will.
    pub fn disconnect(&mut self) {
        Codec::disconnect(&mut self.out);
    }

    /// What is to be written.
    pub fn output(&self) -> &BytesMut {
        &self.out
    }

    /// So many bytes of it were written.
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

    /// Takes one packet out of what was read, and adds what it shows to `seen`; false if none
    /// is whole.
    ///
    /// # Errors
    /// If the connection is over.
    pub fn take(&mut self, input: &mut BytesMut, now: Duration, seen: &mut Vec<Seen>) -> Result<bool, Failure> {
        let Some(packet) = self.codec.decode(input)? else { return Ok(false) };
        match (packet, self.allowance) {
            (Packet::ConnAck(answer), None) => {
                match answer {
                    Ok(allowance) => self.allowed_is(allowance),
                    Err((why, cause)) => return Err(self.ended(why, cause)),
                }
                seen.push(Seen::Connected);
            }
            (Packet::ConnAck(_), Some(_)) => return Err(lost("the broker answered the connection twice")),
            (_, None) => return Err(lost("the broker sent something before it accepted the connection")),
            (Packet::PubAck(packet, outcome), _) => self.confirmed(packet, outcome, now, seen),
            (Packet::SubAck(packet, outcome), _) => {
                if self.subscribing.remove(&packet) {
                    seen.push(Seen::Event(Event::Subscribed(outcome)));
                }
            }
            (Packet::Publish(message, packet), _) => seen.push(Seen::Message(message, packet)),
            (Packet::Unusable { topic, size, why, packet }, _) => {
                // Or it would come again with each connection.
                if packet != 0 {
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

    fn allowed_is(&mut self, allowance: Allowance) {
        self.allowance = Some(allowance);
        let max_packet = allowance.max_packet.and_then(|bytes| usize::try_from(bytes).ok());
        self.max_packet = self.max_packet.min(max_packet.unwrap_or(usize::MAX));
        if let Some(told) = allowance.keep_alive.filter(|told| !told.is_zero()) {
            self.keep_alive = self.keep_alive.min(told);
        }
    }

    fn confirmed(&mut self, packet: u16, outcome: Result<(), Failure>, now: Duration, seen: &mut Vec<Seen>) {
        let place = self.places.remove(&packet).and_then(|place| usize::try_from(place - self.taken).ok());
        let Some(sent) = place.and_then(|place| self.order.get_mut(place)) else {
            self.unexpected += 1;
            tracing::debug!(
                packet,
                unexpected = self.unexpected,
                "the broker confirmed a publish that is not in flight"
            );
            return;
        };
        sent.confirmed = true;
        let token = sent.token;
        seen.push(Seen::Event(match outcome {
            Ok(()) => Event::Acked(token),
            Err(Failure { what, permanent }) => {
                let what = format!("the broker refused a publish to {}: {what}", sent.topic);
                Event::Refused(token, Failure { what, permanent })
            }
        }));
        while self.order.front().is_some_and(|sent| sent.confirmed) {
            self.order.pop_front();
            self.taken += 1;
            self.waited_since = now;
        }
        while self.places.len() < self.allowed()
            && let Some((token, publish)) = self.waiting.pop_front()
        {
            seen.extend(self.write_publish(token, publish, now).map(Seen::Event));
        }
    }

    /// When there is something to do though nothing happens.
    pub fn due(&self) -> Duration {
        let unconfirmed = self.order.front().map(|sent| self.waited_since + self.patience(sent.size));
        let unheard = self.pinged.map_or_else(|| self.ping_due(), |pinged| pinged + self.answer_within());
        unconfirmed.map_or(unheard, |unconfirmed| unconfirmed.min(unheard))
    }

    /// How long a publish of that size may take to be confirmed once nothing is before it.
    fn patience(&self, size: usize) -> Duration {
        self.confirm_timeout + on_the_way(size)
    }

    /// How long a ping may go unanswered, behind what is on its way.
    fn answer_within(&self) -> Duration {
        self.keep_alive + self.order.front().map_or(Duration::ZERO, |sent| on_the_way(sent.size))
    }

    fn ping_due(&self) -> Duration {
        self.read_at.min(self.written_at) + self.keep_alive
    }

    /// Does what is due, after everything that has come was read.
    ///
    /// # Errors
    /// If the connection is to be given up.
    pub fn tick(&mut self, now: Duration) -> Result<(), Failure> {
        let shown = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
        if let Some(sent) = self.order.front()
            && self.waited_since + self.patience(sent.size) <= now
        {
            let (since, waiting) = (shown(now - self.waited_since), self.places.len());
            return Err(lost(&format!(
                "the broker is connected and did not confirm a publish for {since} ({waiting} are under way)"
            )));
        }
        match self.pinged {
            Some(pinged) if pinged + self.answer_within() <= now => {
                let since = shown(now - self.read_at);
                Err(lost(&format!("nothing came from the broker for {since}, not even an answer to a ping")))
            }
            None if self.ping_due() <= now => {
                Codec::ping(&mut self.out);
                self.pinged = Some(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// How long so many bytes take on the slowest link.
fn on_the_way(size: usize) -> Duration {
    Duration::from_millis(size as u64 * 1000 / SLOWEST_LINK)
}

/// Written buffers that are larger are given back.
const KEPT: usize = 64 * 1024;

fn lost(what: &str) -> Failure {
    Failure { what: what.to_owned(), permanent: false }
}

#[cfg(test)]
mod tests;
