//! All that a broker can say, from its first byte on. What the client sees of it does not depend
//! on how it is cut; each publish is answered for once at the most; what the client writes is
//! packets, with a confirmation for each message that wants one and for nothing else.
//!
//! Input: a byte that tells version (bit 0) and whether a CONNACK goes before the stream (bit 1),
//! a byte that tells how large the pieces are, then the stream.

use bytes::BytesMut;
use std::collections::HashSet;
use std::time::Duration;
use tidegate::mqtt::{Client, Event, Options, Publish, Seen, Version};

/// A broker's words are cut short in messages; names of topics are not.
const LONGEST: usize = 2000;
/// Smaller than pieces that the fuzzer finds, so that some are too large.
const MAX_PACKET: u32 = 600;
const WINDOW: usize = 8;
/// With whatever the owner publishes, beside the window.
const MOST_UNDER_WAY: usize = 64;

fn options(version: Version) -> Options {
    Options {
        version,
        keep_alive: Duration::from_secs(20),
        confirm_timeout: Duration::from_secs(15),
        max_packet: MAX_PACKET,
        window: WINDOW as u16,
        clean_session: false,
        manual_acks: true,
        ..Options::new("", 1883, "gw")
    }
}

pub fn check(input: &[u8]) {
    let Some(([how, size], stream)) = input.split_first_chunk() else { return };
    let version = if how & 1 == 0 { Version::V3_1_1 } else { Version::V5 };
    let connack: &[u8] = match (how & 2 == 0, version) {
        (true, _) => &[],
        (false, Version::V3_1_1) => &[0x20, 2, 0, 0],
        (false, Version::V5) => &[0x20, 3, 0, 0, 0],
    };
    let stream = [connack, stream].concat();
    let size = usize::from(*size).max(1);

    let (whole, cut) = (seen(version, &stream, usize::MAX), seen(version, &stream, size));
    assert_eq!(whole, cut);

    Owner::new(version).live(&stream, size);
}

/// What a client sees of the stream in pieces of this size, and whether that ends it.
fn seen(version: Version, stream: &[u8], size: usize) -> (Vec<String>, bool) {
    let mut client = Client::new(&options(version), Duration::ZERO);
    let (mut input, mut seen, mut ended) = (BytesMut::new(), Vec::new(), false);
    for piece in stream.chunks(size) {
        input.extend_from_slice(piece);
        while !ended {
            match client.take(&mut input, Duration::ZERO, &mut seen) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => {
                    assert!(!why.what.is_empty() && why.what.len() <= LONGEST, "{why}");
                    ended = true;
                }
            }
        }
    }
    (seen.iter().map(|seen| format!("{seen:?}")).collect(), ended)
}

/// Publishes and confirms messages whenever it can, and does what is due.
struct Owner {
    client: Client,
    now: Duration,
    connected: bool,
    next_token: u64,
    /// Tokens that nothing was said of.
    open: HashSet<u64>,
    /// Packet ids of messages that are to be confirmed, all that were seen.
    messages: Vec<u16>,
    confirmed: usize,
    unusable: usize,
    written: Vec<u8>,
}

impl Owner {
    fn new(version: Version) -> Owner {
        Owner {
            client: Client::new(&options(version), Duration::ZERO),
            now: Duration::ZERO,
            connected: false,
            next_token: 0,
            open: HashSet::new(),
            messages: Vec::new(),
            confirmed: 0,
            unusable: 0,
            written: Vec::new(),
        }
    }

    fn live(mut self, stream: &[u8], size: usize) {
        let mut input = BytesMut::new();
        'pieces: for piece in stream.chunks(size) {
            // Time goes as the fuzzer likes it.
            self.now += Duration::from_millis(u64::from(piece.first().copied().unwrap_or_default()) * 10);
            input.extend_from_slice(piece);
            self.client.heard(self.now);
            loop {
                let mut seen = Vec::new();
                let taken = self.client.take(&mut input, self.now, &mut seen);
                self.see(seen);
                match taken {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => break 'pieces,
                }
            }
            if !self.tick() {
                break;
            }
            self.publish();
            self.write();
        }
        self.confirm_all();
        self.write();
        self.judge();
    }

    fn see(&mut self, seen: Vec<Seen>) {
        for seen in seen {
            match seen {
                Seen::Connected => {
                    assert!(!std::mem::replace(&mut self.connected, true));
                    self.client.subscribe("devices/+/command");
                }
                Seen::Message(_, 0) => {}
                Seen::Message(_, packet) => self.messages.push(packet),
                Seen::Event(Event::Acked(token) | Event::Refused(token, _)) => {
                    assert!(self.open.remove(&token), "{token} was answered for, or never published");
                }
                Seen::Event(Event::Unusable { why, .. }) => {
                    assert!(!why.is_empty());
                    self.unusable += 1;
                }
                Seen::Event(Event::Subscribed(_) | Event::Room) => {}
                Seen::Event(event) => panic!("{event:?} is the driver's to say"),
            }
        }
    }

    /// False if the connection is to be given up.
    fn tick(&mut self) -> bool {
        for _ in 0..16 {
            if self.client.due() > self.now {
                return true;
            }
            match self.client.tick(self.now) {
                Ok(seen) => self.see(seen),
                Err(why) => {
                    assert!(!why.what.is_empty() && why.what.len() <= LONGEST, "{why}");
                    return false;
                }
            }
        }
        panic!("something stays due at {:?}", self.now);
    }

    fn publish(&mut self) {
        while self.connected && self.client.has_room(self.now) && self.open.len() < WINDOW {
            let payload = vec![1; 10 + self.next_token as usize % 700];
            let publish = Publish {
                topic: "readings".into(),
                payload: payload.into(),
                retain: false,
                content_type: "",
                encoding: "",
            };
            self.open.insert(self.next_token);
            let event = self.client.publish(self.next_token, publish, self.now).expect("there was room");
            self.see(event.map(Seen::Event).into_iter().collect());
            self.next_token += 1;
        }
        assert!(self.open.len() <= MOST_UNDER_WAY);
        // Some messages take longer than others.
        if self.next_token.is_multiple_of(3) {
            self.confirm_all();
        }
    }

    /// The last message is ready first.
    fn confirm_all(&mut self) {
        let ready: Vec<u16> = self.messages[self.confirmed..].iter().rev().copied().collect();
        let confirmed: usize = ready.into_iter().map(|packet| self.client.confirm(packet)).sum();
        self.confirmed += confirmed;
        assert_eq!(self.confirmed, self.messages.len());
    }

    fn write(&mut self) {
        let bytes = self.client.output().len();
        self.written.extend_from_slice(self.client.output());
        self.client.written(bytes, self.now);
        assert!(self.client.output().is_empty());
    }

    /// What was written is CONNECT and packets that follow it.
    fn judge(&self) {
        let mut rest = &self.written[..];
        let (mut kinds, mut acks) = (Vec::new(), Vec::new());
        while let Some((first, behind)) = rest.split_first() {
            let mut length = 0;
            let mut digits = 0;
            while let Some(digit) = behind.get(digits) {
                length |= usize::from(digit & 0x7f) << (7 * digits);
                digits += 1;
                if digit & 0x80 == 0 {
                    break;
                }
            }
            let body = behind.get(digits..digits + length).expect("a whole packet");
            rest = &behind[digits + length..];
            kinds.push(first >> 4);
            assert!(1 + digits + length <= MAX_PACKET as usize || first >> 4 == 1);
            if first >> 4 == 4 {
                acks.push(u16::from_be_bytes([body[0], body[1]]));
            }
        }
        assert_eq!(kinds.first(), Some(&1));
        assert!(kinds[1..].iter().all(|kind| [3, 4, 8, 12].contains(kind)), "{kinds:?}");
        // Those of unusable messages stand between those of the others.
        assert!((self.messages.len()..=self.messages.len() + self.unusable).contains(&acks.len()));
        let mut acks = acks.into_iter();
        assert!(self.messages.iter().all(|message| acks.any(|ack| ack == *message)), "out of turn");
    }
}
