//! The client against a broker and a network with faults, in virtual time, determined by a
//! plan and a seed.

use super::tests::{options, publish};
use super::*;
use crate::config::MqttVersion as Version;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Faults of broker and network, for so many of a thousand publishes each.
#[derive(Debug, Clone)]
struct Plan {
    version: Version,
    seed: u64,
    /// Bytes a second, each way, and the latency.
    rate: u64,
    delay: Duration,
    /// Size of the client's socket buffer, in bytes.
    socket: usize,
    receive_maximum: Option<u16>,
    /// Received and not confirmed; lost; confirmed twice; confirmed up to 20 s late.
    forgotten: u32,
    discarded: u32,
    doubled: u32,
    late: u32,
    /// Publishes a second that are accepted; others are discarded, or refused for a quota.
    limit: Option<u32>,
    /// Times at which the broker stops confirming; the link is cut; the client is paused for
    /// 3 s; the broker sends DISCONNECT.
    silent_at: Option<Duration>,
    cut_at: Option<Duration>,
    paused_at: Option<Duration>,
    disconnect_at: Option<Duration>,
}

impl Plan {
    /// Without faults, over a link of `rate` bytes a second.
    fn good(version: Version, rate: u64) -> Plan {
        Plan {
            version,
            seed: 1,
            rate,
            delay: Duration::from_millis(250),
            socket: 1 << 20,
            receive_maximum: None,
            forgotten: 0,
            discarded: 0,
            doubled: 0,
            late: 0,
            limit: None,
            silent_at: None,
            cut_at: None,
            paused_at: None,
            disconnect_at: None,
        }
    }
}

/// An event at a time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Arrival {
    AtBroker(Vec<u8>),
    AtClient(Vec<u8>),
    /// The socket has room.
    Sent(usize),
    Cut,
    Pause,
    Nothing,
}

/// One direction of the link.
#[derive(Debug, Default)]
struct Way {
    free: Duration,
    /// Bytes arrive in order.
    last: Duration,
}

struct World {
    plan: Plan,
    random: fastrand::Rng,
    now: Duration,
    arrivals: BinaryHeap<Reverse<(Duration, u64, Arrival)>>,
    number: u64,
    up: Way,
    down: Way,
    in_socket: usize,
    /// Bytes received and not read.
    unread: BytesMut,
    at_broker: BytesMut,
    client: Client,
    connected: bool,
    cut: bool,
    stands_still_until: Duration,
    doubted: Option<Duration>,
    // What the broker did.
    taken: BTreeMap<u64, u32>,
    refused: BTreeSet<u64>,
    second: (u64, u32),
    // What the owner knows.
    next_token: u64,
    /// Payloads by token, with their sizes.
    outstanding: BTreeMap<u64, usize>,
    acked: BTreeSet<u64>,
    acked_bytes: usize,
    progress: Duration,
}

const WINDOW: usize = 32;
const STILL: Duration = Duration::from_secs(3);

impl World {
    fn new(plan: &Plan) -> World {
        let options = Options {
            max_packet: 256 * 1024,
            window: WINDOW as u16,
            keep_alive: Duration::from_secs(30),
            ..options(plan.version)
        };
        let mut world = World {
            plan: plan.clone(),
            random: fastrand::Rng::with_seed(plan.seed),
            now: Duration::ZERO,
            arrivals: BinaryHeap::new(),
            number: 0,
            up: Way::default(),
            down: Way::default(),
            in_socket: 0,
            unread: BytesMut::new(),
            at_broker: BytesMut::new(),
            client: Client::new(&options, Duration::ZERO),
            connected: false,
            cut: false,
            stands_still_until: Duration::ZERO,
            doubted: None,
            taken: BTreeMap::new(),
            refused: BTreeSet::new(),
            second: (0, 0),
            next_token: 0,
            outstanding: BTreeMap::new(),
            acked: BTreeSet::new(),
            acked_bytes: 0,
            progress: Duration::ZERO,
        };
        for (at, what) in [(plan.cut_at, Arrival::Cut), (plan.paused_at, Arrival::Pause)] {
            if let Some(at) = at {
                world.at(at, what);
            }
        }
        world
    }

    fn at(&mut self, at: Duration, what: Arrival) {
        self.number += 1;
        self.arrivals.push(Reverse((at, self.number, what)));
    }

    fn chance(&mut self, of_a_thousand: u32) -> bool {
        self.random.u32(..1000) < of_a_thousand
    }

    /// Runs until the connection ends, until `until` at most; returns why it ended. The owner has
    /// `backlog` publishes, of the recommended size.
    fn run(&mut self, backlog: u64, until: Duration) -> Option<Failure> {
        let mut steps = 0;
        while self.now < until {
            steps += 1;
            assert!(steps < 2_000_000, "time stands still at {:?}", self.now);
            if self.now >= self.stands_still_until
                && let Err(why) = self.turn(backlog)
            {
                return Some(why);
            }
            self.hold_to_deadline();
            let next = self.arrivals.peek().map_or(until, |Reverse((at, ..))| *at);
            let due = match self.doubted {
                Some(since) => since + LAST_LOOK,
                None => self.client.due(),
            };
            let next = next.min(due.max(self.stands_still_until)).max(self.now);
            self.now = next.min(until);
            while let Some(Reverse((at, ..))) = self.arrivals.peek()
                && *at <= self.now
                && let Some(Reverse((_, _, arrival))) = self.arrivals.pop()
            {
                self.arrive(arrival);
            }
        }
        None
    }

    /// What the driver does when it wakes.
    fn turn(&mut self, backlog: u64) -> Result<(), Failure> {
        let mut seen = Vec::new();
        if !self.unread.is_empty() {
            self.client.heard(self.now);
            self.doubted = None;
            let mut input = std::mem::take(&mut self.unread);
            while self.client.take(&mut input, self.now, &mut seen)? {}
            self.unread = input;
        }
        if self.client.due() <= self.now || self.doubted.is_some_and(|since| since + LAST_LOOK <= self.now) {
            match (self.client.tick(self.now), self.doubted) {
                (Ok(more), _) => {
                    self.doubted = None;
                    seen.extend(more);
                }
                (Err(why), Some(since)) if since + LAST_LOOK <= self.now => return Err(why),
                (Err(_), _) => self.doubted = self.doubted.or(Some(self.now)),
            }
        }
        for seen in seen {
            self.see(seen);
        }
        while self.connected
            && self.next_token < backlog
            && self.outstanding.len() < WINDOW
            && self.client.has_room(self.now)
        {
            let size = self.client.pacing.batch().min(16 * 1024);
            let mut payload = self.next_token.to_be_bytes().to_vec();
            payload.resize(size.max(8), b'x');
            let publish = Publish { topic: "tidegate/gw/readings".into(), payload: payload.into(), ..publish() };
            if self.outstanding.is_empty() {
                self.progress = self.now;
            }
            self.outstanding.insert(self.next_token, size.max(8));
            let event = self.client.publish(self.next_token, publish, self.now).expect("the window is kept to");
            self.next_token += 1;
            event.into_iter().for_each(|event| self.see(Seen::Event(event)));
        }
        if self.cut {
            return Err(Failure::transient("cut"));
        }
        self.write();
        Ok(())
    }

    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Connected => self.connected = true,
            Seen::Event(Event::Acked(token)) => {
                let size = self.outstanding.remove(&token).expect("what is confirmed is outstanding");
                self.acked_bytes += size;
                assert!(self.taken.contains_key(&token), "{token} is confirmed, and the broker does not have it");
                self.acked.insert(token);
                self.progress = self.now;
            }
            Seen::Event(Event::Refused(token, _)) => panic!("{token} is refused"),
            Seen::Event(Event::Room) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Writes as much as the socket accepts, in parts.
    fn write(&mut self) {
        while !self.client.output().is_empty() && self.in_socket <= self.plan.socket * 3 / 4 {
            let most = (self.plan.rate / 20).clamp(50, 100_000) as usize;
            let most = most.min(self.plan.socket - self.in_socket).min(self.client.output().len());
            let bytes = self.random.usize(1..=most).max(most / 2);
            let part = self.client.output()[..bytes].to_vec();
            self.client.written(bytes, self.now);
            self.in_socket += bytes;
            let way = &mut self.up;
            way.free = way.free.max(self.now) + Duration::from_micros(bytes as u64 * 1_000_000 / self.plan.rate);
            let (sent, arrives) = (way.free, way.free + self.plan.delay);
            self.at(sent, Arrival::Sent(bytes));
            self.at(arrives, Arrival::AtBroker(part));
        }
    }

    /// The broker sends bytes, not before `later`.
    fn say(&mut self, bytes: &[u8], later: Duration) {
        let way = &mut self.down;
        way.free = way.free.max(self.now) + Duration::from_micros(bytes.len() as u64 * 1_000_000 / self.plan.rate);
        let mut at = way.free + self.plan.delay + later;
        if later.is_zero() {
            at = at.max(way.last);
            way.last = at;
        }
        self.at(at, Arrival::AtClient(bytes.to_vec()));
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Sent(bytes) => self.in_socket -= bytes,
            _ if self.cut => {}
            Arrival::AtClient(bytes) => self.unread.extend_from_slice(&bytes),
            Arrival::AtBroker(bytes) => {
                self.at_broker.extend_from_slice(&bytes);
                while let Some((first, body)) = packet(&mut self.at_broker) {
                    self.serve(first, &body);
                }
            }
            Arrival::Cut => self.cut = true,
            Arrival::Pause => {
                self.stands_still_until = self.now + STILL;
                self.at(self.now + STILL, Arrival::Nothing);
            }
            Arrival::Nothing => {}
        }
    }

    fn serve(&mut self, first: u8, body: &[u8]) {
        match first >> 4 {
            1 if self.plan.version == Version::V3_1_1 => self.say(&[0x20, 2, 0, 0], Duration::ZERO),
            1 => match self.plan.receive_maximum {
                Some(most) => {
                    let [high, low] = most.to_be_bytes();
                    self.say(&[0x20, 6, 0, 0, 3, 0x21, high, low], Duration::ZERO);
                }
                None => self.say(&[0x20, 3, 0, 0, 0], Duration::ZERO),
            },
            3 => self.published(body),
            12 => self.say(&[0xd0, 0], Duration::ZERO),
            _ => {}
        }
    }

    fn published(&mut self, body: &[u8]) {
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let id = [body[2 + topic], body[3 + topic]];
        let payload = match self.plan.version {
            Version::V3_1_1 => &body[4 + topic..],
            Version::V5 => &body[5 + topic + usize::from(body[4 + topic])..],
        };
        let token = u64::from_be_bytes(payload[..8].try_into().expect("eight bytes"));
        if self.plan.disconnect_at.take_if(|at| *at <= self.now).is_some() && self.plan.version == Version::V5 {
            self.say(&[0xe0, 1, 0x97], Duration::ZERO);
        }
        if self.second.0 != self.now.as_secs() {
            self.second = (self.now.as_secs(), 0);
        }
        if self.plan.limit.is_some_and(|limit| self.second.1 >= limit) {
            if self.plan.version == Version::V5 {
                self.refused.insert(token);
                self.say(&[0x40, 3, id[0], id[1], 0x97], Duration::ZERO);
            }
            return;
        }
        self.second.1 += 1;
        if self.chance(self.plan.discarded) {
            return;
        }
        *self.taken.entry(token).or_default() += 1;
        if self.plan.silent_at.is_some_and(|at| at <= self.now) || self.chance(self.plan.forgotten) {
            return;
        }
        let later = if self.chance(self.plan.late) { self.random.u64(1..20_000) } else { 0 };
        self.say(&[0x40, 2, id[0], id[1]], Duration::from_millis(later));
        if self.chance(self.plan.doubled) {
            self.say(&[0x40, 2, id[0], id[1]], Duration::ZERO);
        }
    }

    /// No publish waits for ever: one is confirmed, or the connection ends.
    fn hold_to_deadline(&self) {
        if self.outstanding.is_empty() || self.now < self.stands_still_until {
            return;
        }
        // The deadline, and the pause after a broker refuses everything.
        let most = Duration::from_secs(30) + transmission_time(17 * 1024) + STILL + Duration::from_secs(20);
        let waits = self.now.saturating_sub(self.progress);
        assert!(waits <= most, "nothing was confirmed for {waits:?}, {} outstanding", self.outstanding.len());
    }
}

/// The next packet: its first byte and its body.
fn packet(bytes: &mut BytesMut) -> Option<(u8, BytesMut)> {
    let (mut length, mut header) = (0, 1);
    loop {
        let byte = *bytes.get(header)?;
        length |= usize::from(byte & 0x7f) << (7 * (header - 1));
        header += 1;
        if byte < 0x80 {
            break;
        }
    }
    if bytes.len() < header + length {
        return None;
    }
    let mut packet = bytes.split_to(header + length);
    let first = packet[0];
    packet.advance(header);
    Some((first, packet))
}

mod tests;
