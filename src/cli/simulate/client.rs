//! A device's side of the protocol, without I/O or clock: the driver passes in messages
//! and the time, and writes the output.

use super::access::Holder;
use super::pace::Pace;
use super::values::{channel_names, channel_units, measure};
use crate::clock::Now;
use crate::model::Value;
use crate::wire::codec::encode_device;
use crate::wire::frame::{BodyEncoding, Format, Version};
use crate::wire::message::{
    Authenticate, ChannelDeclaration, ChannelRef, Command, CommandResult, DeviceClock, DeviceMessage, GatewayMessage,
    Goodbye, Heartbeat, Hello, Readings, Reason, ResultState, Sample, SubCommand, Welcome,
};
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Identity of a simulated device.
#[derive(Debug, Clone)]
pub struct Identity {
    pub id: String,
    /// Its number in the run, from 1; with `seed`, it determines the values.
    pub number: u64,
    pub session: u64,
    pub seed: u64,
    pub encoding: BodyEncoding,
    /// Its key, if any.
    pub holder: Option<Arc<Holder>>,
}

/// How long a device waits for the gateway.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From Hello to Welcome.
    pub welcome: Duration,
    /// For the next Ack while readings are outstanding; then it reconnects.
    pub ack: Duration,
    /// After its last reading; then it gives up.
    pub give_up: Duration,
}

/// One device. It keeps readings until they are acknowledged, and resends them.
#[derive(Debug)]
pub struct Client {
    identity: Identity,
    pace: Pace,
    timeouts: Timeouts,
    stage: Stage,
    /// The response to a Challenge, until it is sent.
    answer: Option<Authenticate>,
    /// Readings from `settled + 1` on.
    unacked: VecDeque<Taken>,
    settled: u64,
    /// The next to send on this connection.
    next: u64,
    /// The first that was never sent.
    fresh: u64,
    window: u64,
    heartbeat: Duration,
    last_sent: Duration,
    last_progress: Duration,
    last_taken: Duration,
    last_time: i64,
    /// Readings fell due while none could be taken; their latency counts from then.
    held: bool,
    resent: u64,
    welcomed: u64,
    /// Ids of commands that are done and not answered yet.
    done: Vec<String>,
    /// Reused for each reading; always a [`DeviceMessage::Readings`] of one sample.
    reading: DeviceMessage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Offline,
    Greeting,
    Welcomed,
}

/// What is kept of a reading; its values are computed again.
#[derive(Debug, Clone, Copy)]
struct Taken {
    time: i64,
    at: Duration,
}

/// What the driver does after it has written the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Poll again when the output is written, when something was received, or at this
    /// time, which is in the future.
    Until(Duration),
    /// Everything is acknowledged, and Goodbye is written.
    Finished,
    /// Readings were not acknowledged in time.
    GaveUp,
    /// Welcome or Ack is overdue: reconnect.
    Silent(&'static str),
}

/// Upper bound of a reading's body, in bytes.
const LARGEST_READING: u32 = 200;

impl Client {
    pub fn new(identity: Identity, pace: Pace, timeouts: Timeouts) -> Client {
        let reading = blank_reading(identity.encoding);
        Client {
            identity,
            pace,
            timeouts,
            stage: Stage::Offline,
            answer: None,
            unacked: VecDeque::new(),
            settled: 0,
            next: 1,
            fresh: 1,
            window: 0,
            heartbeat: Duration::ZERO,
            last_sent: Duration::ZERO,
            last_progress: Duration::ZERO,
            last_taken: Duration::ZERO,
            last_time: i64::MIN,
            held: false,
            resent: 0,
            welcomed: 0,
            done: Vec::new(),
            reading,
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Distinct readings that were sent at least once.
    pub fn sent(&self) -> u64 {
        self.fresh - 1
    }

    pub fn acked(&self) -> u64 {
        self.settled
    }

    /// Readings that were sent again, each time counted.
    pub fn resent(&self) -> u64 {
        self.resent
    }

    /// Number of Welcomes.
    pub fn welcomed(&self) -> u64 {
        self.welcomed
    }

    /// Whether it is connected and has a Welcome.
    pub fn is_welcomed(&self) -> bool {
        self.stage == Stage::Welcomed
    }

    /// Whether every reading taken so far is acknowledged.
    pub fn is_settled(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Whether every reading of its plan is acknowledged and its time is over.
    pub fn is_finished(&self, now: Duration) -> bool {
        self.is_settled() && self.pace.burst(self.taken(), now) == 0 && now >= self.pace.stay()
    }

    /// When it stops waiting for Acks.
    pub fn gives_up_at(&self) -> Duration {
        self.last_taken.max(self.pace.end()).saturating_add(self.timeouts.give_up)
    }

    /// A connection was opened: appends Hello.
    pub fn connected(&mut self, now: Now, out: &mut Vec<u8>) {
        self.stage = Stage::Greeting;
        self.last_sent = now.monotonic;
        self.last_progress = now.monotonic;
        let hello = DeviceMessage::Hello(Hello {
            device: self.identity.id.clone(),
            session: self.identity.session,
            clock: DeviceClock::Wall,
            time: now.wall.0,
            firmware: None,
            channels: declarations(self.identity.encoding),
            first: self.settled + 1,
            max_frame: 0,
        });
        self.put(&hello, out);
    }

    /// The connection is lost. Whether its last messages arrived is unknown.
    pub fn disconnected(&mut self) {
        (self.stage, self.answer) = (Stage::Offline, None);
        self.done.clear();
        self.held = self.welcomed > 0 && self.pace.is_timed();
    }

    /// Handles a message, and records the latency of each reading that it acknowledges.
    ///
    /// # Errors
    /// Why the connection must end.
    pub fn received(
        &mut self,
        message: &GatewayMessage,
        now: Now,
        latencies: &mut Histogram<u64>,
    ) -> Result<(), String> {
        match (message, self.stage) {
            // On a serial line an Ack may be left over from the last session.
            (GatewayMessage::Welcome(welcome), _) if welcome.session.is_some_and(|s| s != self.identity.session) => {
                Ok(())
            }
            (GatewayMessage::Welcome(welcome), Stage::Greeting) => self.welcome(welcome, now, latencies),
            (GatewayMessage::Ack(ack), Stage::Welcomed) => self.settle(ack.seq, now, latencies),
            (GatewayMessage::Ack(_), Stage::Greeting) => Ok(()),
            (GatewayMessage::HeartbeatReply(_), _) => Ok(()),
            (GatewayMessage::Command(Command { id, .. }) | GatewayMessage::SubCommand(SubCommand { id, .. }), _) => {
                self.done.push(id.clone());
                Ok(())
            }
            (GatewayMessage::Goodbye(goodbye), _) => {
                Err(format!("the gateway said goodbye ({:?}): {}", goodbye.reason, goodbye.text))
            }
            (GatewayMessage::Challenge(challenge), Stage::Greeting) => {
                let Identity { id, session, holder, .. } = &self.identity;
                let holder = holder.as_ref().ok_or("the gateway asks for a key: give --key and --secret-file")?;
                self.answer = Some(holder.answer(&challenge.nonce, id, *session));
                Ok(())
            }
            (unexpected, stage) => Err(format!("the gateway sent {unexpected:?} while {stage:?}")),
        }
    }

    fn welcome(&mut self, welcome: &Welcome, now: Now, latencies: &mut Histogram<u64>) -> Result<(), String> {
        if welcome.max_frame < LARGEST_READING {
            return Err(format!("the gateway takes frames of {} bytes at most, too small", welcome.max_frame));
        }
        self.settle(welcome.settled, now, latencies)?;
        self.stage = Stage::Welcomed;
        self.welcomed += 1;
        self.window = u64::from(welcome.window).max(1);
        // Early, since timers are late and the line delays.
        self.heartbeat = Duration::from_secs(u64::from(welcome.heartbeat_interval).max(1)) * 9 / 10;
        self.last_progress = now.monotonic;
        // A gateway that settled by delivery may have lost acknowledged seqs; those readings
        // are dropped here and not resent.
        self.next = self.settled + 1;
        Ok(())
    }

    fn settle(&mut self, seq: u64, now: Now, latencies: &mut Histogram<u64>) -> Result<(), String> {
        if seq >= self.fresh {
            return Err(format!("the gateway acknowledged {seq}, but only {} were sent", self.sent()));
        }
        while self.settled < seq {
            let Some(taken) = self.unacked.pop_front() else { break };
            let latency = now.monotonic.saturating_sub(taken.at);
            latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            self.settled += 1;
            self.last_progress = now.monotonic;
        }
        self.next = self.next.max(self.settled + 1);
        Ok(())
    }

    /// Takes the readings that are due and appends the next messages, a burst at most.
    pub fn poll(&mut self, now: Now, out: &mut Vec<u8>) -> Step {
        if now.monotonic >= self.gives_up_at() {
            return Step::GaveUp;
        }
        match self.stage {
            Stage::Offline => Step::Until(self.gives_up_at()),
            Stage::Greeting => {
                if let Some(answer) = self.answer.take() {
                    self.put(&DeviceMessage::Authenticate(answer), out);
                }
                let until = self.last_sent.saturating_add(self.timeouts.welcome);
                if now.monotonic >= until {
                    return Step::Silent("no Welcome came");
                }
                Step::Until(until.min(self.gives_up_at()))
            }
            Stage::Welcomed => self.poll_welcomed(now, out),
        }
    }

    fn poll_welcomed(&mut self, now: Now, out: &mut Vec<u8>) -> Step {
        if self.next == self.settled + 1 {
            self.last_progress = now.monotonic; // nothing is owed
        }
        let next_due = if self.next > self.taken() { self.take(now) } else { None };
        self.send(now.monotonic, out);
        for id in std::mem::take(&mut self.done) {
            let result = CommandResult { id, state: ResultState::Done, payload: None };
            self.put(&DeviceMessage::CommandResult(result), out);
        }
        if self.is_finished(now.monotonic) {
            self.put(&DeviceMessage::Goodbye(Goodbye { reason: Reason::Normal, text: String::new() }), out);
            return Step::Finished;
        }
        let mut until = self.gives_up_at();
        if self.next > self.settled + 1 {
            let ack = self.last_progress.saturating_add(self.timeouts.ack);
            if now.monotonic >= ack {
                return Step::Silent("no Ack came");
            }
            until = until.min(ack);
        }
        if now.monotonic >= self.last_sent.saturating_add(self.heartbeat) {
            self.put(&DeviceMessage::Heartbeat(Heartbeat { time: now.wall.0 }), out);
            self.last_sent = now.monotonic;
        }
        until = until.min(self.last_sent.saturating_add(self.heartbeat));
        if self.unacked.is_empty() && now.monotonic < self.pace.stay() {
            until = until.min(self.pace.stay());
        }
        Step::Until(next_due.map_or(until, |due| until.min(due)))
    }

    /// Number of readings taken so far.
    fn taken(&self) -> u64 {
        self.settled + self.unacked.len() as u64
    }

    /// Takes a burst of readings if it is due and fits into the window. Otherwise returns
    /// when it is due, if that is in the future.
    fn take(&mut self, now: Now) -> Option<Duration> {
        let taken = self.taken();
        let burst = self.pace.burst(taken, now.monotonic).min(self.window);
        if burst == 0 {
            return None;
        }
        let due = self.pace.due(taken + burst - 1);
        if due > now.monotonic {
            self.held = false;
            return Some(due);
        }
        if taken - self.settled + burst > self.window {
            self.held = self.pace.is_timed();
            return None;
        }
        for seq in taken..taken + burst {
            let at = if self.held { self.pace.due(seq) } else { now.monotonic };
            let ago = i64::try_from(now.monotonic.saturating_sub(at).as_micros()).unwrap_or(i64::MAX);
            // Each reading has its own time, even after the clock was set back.
            self.last_time = now.wall.0.saturating_sub(ago).max(self.last_time.saturating_add(1));
            self.unacked.push_back(Taken { time: self.last_time, at });
        }
        self.last_taken = now.monotonic;
        None
    }

    /// Appends the next readings: at most a burst, and no more than the window allows.
    fn send(&mut self, now: Duration, out: &mut Vec<u8>) {
        let end =
            (self.taken() + 1).min(self.settled + 1 + self.window).min(self.next.saturating_add(self.pace.most()));
        let format = self.format();
        while self.next < end {
            let Some(taken) = usize::try_from(self.next - self.settled - 1).ok().and_then(|i| self.unacked.get(i))
            else {
                break;
            };
            if let DeviceMessage::Readings(readings) = &mut self.reading {
                readings.seq = self.next;
                for sample in &mut readings.samples {
                    sample.time = taken.time;
                    let values = measure(self.identity.seed, self.identity.number, self.next);
                    for (slot, value) in sample.values.iter_mut().zip(values) {
                        slot.1 = Value::Float(value);
                    }
                }
            }
            encode_device(&self.reading, format, out);
            if self.next == self.fresh {
                self.fresh += 1;
            } else {
                self.resent += 1;
            }
            self.next += 1;
            self.last_sent = now;
        }
    }

    fn format(&self) -> Format {
        Format { version: Version::V2, encoding: self.identity.encoding }
    }

    fn put(&self, message: &DeviceMessage, out: &mut Vec<u8>) {
        encode_device(message, self.format(), out);
    }
}

/// Before Welcome the gateway accepts small frames only. Four declarations fit in
/// postcard and Protobuf, not in JSON, so JSON devices name their channels in each reading.
fn declarations(encoding: BodyEncoding) -> Vec<ChannelDeclaration> {
    match encoding {
        BodyEncoding::Json => Vec::new(),
        BodyEncoding::Postcard | BodyEncoding::Protobuf => (0..)
            .zip(channel_names().into_iter().zip(channel_units()))
            .map(|(index, (name, unit))| ChannelDeclaration { index, name: name.into(), unit: Some(unit.into()) })
            .collect(),
    }
}

fn blank_reading(encoding: BodyEncoding) -> DeviceMessage {
    let channel = |(index, name): (u16, &str)| match encoding {
        BodyEncoding::Json => ChannelRef::Name(name.into()),
        BodyEncoding::Postcard | BodyEncoding::Protobuf => ChannelRef::Index(index),
    };
    let values = (0..).zip(channel_names()).map(|numbered| (channel(numbered), Value::Float(0.0))).collect();
    DeviceMessage::Readings(Readings { seq: 0, sub: None, samples: vec![Sample { time: 0, values }] })
}

#[cfg(test)]
mod tests;
