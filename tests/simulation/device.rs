//! Devices as `docs/protocol.md` wants them: a buffer in memory, a session, and
//! everything kept and sent again until it is acknowledged.

use super::clock::Taken;
use super::context::Context;
use super::controls::Controls;
use super::doer::{self, Doer};
use super::gateway::Door;
use super::oracle::{CLOCKLESS, content, is_senseless};
use super::serial::SerialLine;
use fastrand::Rng;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;
use tidegate::device::auth::Secret;
use tidegate::model::{Timestamp, Value};
use tidegate::wire::codec::{decode_gateway, encode_device};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, Limits, MAX_BODY, Recovery, Version};
use tidegate::wire::message::{
    Authenticate, ChannelDeclaration, ChannelRef, Command, DeviceClock, DeviceMessage, GatewayMessage, Goodbye,
    Heartbeat, Hello, Readings, Reason, Sample, SubCommand, SubDevice, Welcome,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

/// Readings that a device keeps; it gives up the oldest for newer ones.
const KEEPS: usize = 3000;
/// Silence after which a device connects anew.
const GIVES_UP: Duration = Duration::from_secs(20);
/// On a serial line a frame that does not go on is given up after so long.
const FRAME_TIMEOUT: Duration = Duration::from_millis(500);
/// There, readings are sent again after so long without an Ack.
const RESENDS: Duration = Duration::from_secs(3);
/// And Hello without a Welcome, and so long at most.
const UNWELCOME: Duration = Duration::from_secs(1);
const UNWELCOME_MOST: Duration = Duration::from_secs(5);

/// How long a device without a key may be served by a gateway that does not know yet.
const REVOKED_WITHIN: Duration = Duration::from_secs(20);

pub struct Device {
    context: Context,
    name: String,
    door: Door,
    controls: Controls,
    random: Rng,
    format: Format,
    session: u64,
    /// Taken and not acknowledged, with their seqs.
    kept: VecDeque<(u64, i64, Vec<(String, Value)>)>,
    next: u64,
    /// Sent on this connection up to here.
    sent: u64,
    window: u64,
    next_reading: Instant,
    booted: Instant,
    /// How far its clock is off, in microseconds.
    off: i64,
    said_hello: Instant,
    doer: Doer,
    secret: Secret,
    /// If it is on a serial line.
    serial: Option<SerialLine>,
    /// When an Ack brought news, or there was nothing outstanding.
    progress: Instant,
    /// How long a message took of late until the gateway took it, and until when what
    /// came meanwhile may still be there to read.
    lag: (Duration, Instant),
    /// Whether its Hello says what it still has.
    says_first: bool,
    /// What an earlier session was told.
    stale: Option<Welcome>,
    /// What is to be said beside readings.
    outbox: VecDeque<DeviceMessage>,
}

impl Device {
    pub fn new(
        context: &Context,
        name: &str,
        door: Door,
        pace: Duration,
        off: i64,
        mut random: Rng,
    ) -> (Device, Controls) {
        let session = random.u64(1..);
        let mut more = Rng::with_seed(!session);
        let subs = ["door", "lamp"].into_iter().filter_map(|sub| Some((sub, more.bool())).filter(|_| more.bool()));
        let mut subs: Vec<_> = subs.collect();
        let version = if random.bool() { Version::V1 } else { Version::V2 };
        let serial = (version == Version::V2 && more.bool()).then(|| SerialLine::draw(more.fork()));
        if serial.is_some() {
            subs.clear(); // what is said of them may be lost
        }
        let controls = Controls::new(pace, session, subs);
        controls.lock().noisy = serial.as_ref().is_some_and(SerialLine::is_noisy);
        let encoding = match random.u8(..3) {
            0 => BodyEncoding::Json,
            1 => BodyEncoding::Postcard,
            _ => BodyEncoding::Protobuf,
        };
        let says_first = more.bool() || serial.is_some();
        let device = Device {
            context: context.clone(),
            name: name.to_owned(),
            door,
            controls: controls.clone(),
            format: Format { version, encoding },
            session,
            random,
            kept: VecDeque::new(),
            next: 1,
            sent: 0,
            window: 0,
            next_reading: Instant::now(),
            booted: Instant::now(),
            off,
            said_hello: Instant::now(),
            doer: Doer::new(context, more),
            secret: secret(name),
            serial,
            progress: Instant::now(),
            lag: (Duration::ZERO, Instant::now()),
            says_first,
            stale: None,
            outbox: VecDeque::new(),
        };
        (device, controls)
    }

    /// Lives until it is dropped.
    pub async fn run(mut self) {
        loop {
            self.take();
            while self.controls.is_off() {
                sleep(Duration::from_millis(200)).await;
                self.next_reading = Instant::now();
            }
            if let Some((stream, relay)) = self.door.enter(&self.name, self.serial.is_some(), self.random.u64(..)) {
                {
                    let mut state = self.controls.lock();
                    state.relays.push(relay);
                    // An old line is sometimes left to the gateway, as if it had not broken yet.
                    let old = state.relays.len() - 1;
                    if old > 0 && self.random.bool() {
                        state.relays.drain(..old);
                    }
                }
                let why = self.converse(stream).await;
                self.controls.lock().there = false;
                self.context.trace(format_args!("{} disconnected: {why}", self.name));
            }
            let pause = Duration::from_millis(self.random.u64(20..2000));
            sleep(pause).await;
            self.reboots();
        }
    }

    /// Takes the readings that are due.
    fn take(&mut self) {
        self.doer.work();
        let pace = self.controls.lock().pace;
        let now = Instant::now();
        if pace.is_zero() {
            self.next_reading = now;
            return;
        }
        while self.next_reading <= now {
            self.next_reading += pace;
            let time = self.clock();
            let said = (!self.is_clockless()).then_some(Timestamp(time));
            let taken = Taken { at: self.context.wall(), said };
            let (session, seq) = (self.session, self.next);
            self.next += 1;
            self.kept.push_back((seq, time, content(session, seq)));
            self.context.oracle(|oracle| oracle.taken(&self.name, session, seq, taken));
            if self.kept.len() > KEEPS
                && let Some((seq, ..)) = self.kept.pop_front()
            {
                self.context.oracle(|oracle| oracle.gave_up(&self.name, session, seq));
            }
        }
    }

    fn clock(&self) -> i64 {
        match self.is_clockless() {
            true => i64::try_from(self.booted.elapsed().as_millis()).unwrap_or(i64::MAX),
            false => self.context.wall().0 + self.off,
        }
    }

    fn is_clockless(&self) -> bool {
        self.name.starts_with(CLOCKLESS)
    }

    fn reboots(&mut self) -> bool {
        if !std::mem::take(&mut self.controls.lock().reboot) {
            return false;
        }
        self.context.trace(format_args!("{} reboots, {} kept are lost", self.name, self.kept.len()));
        self.session = self.random.u64(1..);
        self.controls.lock().session = self.session;
        self.doer.reboot();
        self.kept.clear();
        self.next = 1;
        self.booted = Instant::now();
        true
    }

    async fn converse(&mut self, mut stream: DuplexStream) -> &'static str {
        let limits = Limits { max_body: MAX_BODY, require_checksum: self.serial.is_some() };
        let recovery = if self.serial.is_some() { Recovery::Resync } else { Recovery::Fail };
        let mut decoder = Decoder::new(limits, recovery);
        self.said_hello = Instant::now();
        let hello = self.hello();
        if let Some(serial) = &mut self.serial {
            let mut bytes = Vec::new();
            encode_device(&hello, self.format, &mut bytes);
            let heads = serial.heads(&bytes);
            let _ = timeout(GIVES_UP, stream.write_all(&heads)).await;
        }
        if !self.say(&mut stream, &hello).await {
            return "Hello was not sent";
        }
        let (mut greeted, mut patient) = (Instant::now(), UNWELCOME);
        self.window = 0;
        self.outbox.clear();
        if let Some(stale) = self.stale.take() {
            self.told(GatewayMessage::Welcome(stale));
        }
        let mut heard = Instant::now();
        let mut said = heard;
        let mut buffer = vec![0; 2048];
        loop {
            if self.reboots() {
                return "rebooted";
            }
            let off = self.controls.lock().off;
            if let Some(polite) = off {
                if polite {
                    let goodbye = Goodbye { reason: Reason::Normal, text: String::new() };
                    self.say(&mut stream, &DeviceMessage::Goodbye(goodbye)).await;
                }
                return "switched off";
            }
            self.take();
            if self.serial.is_some() && self.window == 0 && greeted.elapsed() > patient {
                let hello = self.hello();
                if !self.say(&mut stream, &hello).await {
                    return "Hello was not sent again";
                }
                (greeted, patient) = (Instant::now(), (patient * 2).min(UNWELCOME_MOST));
            }
            if self.window > 0 {
                self.outbox.extend(self.doer.answer());
                self.look_behind();
            }
            while let Some(message) = self.outbox.pop_front() {
                if !self.say(&mut stream, &message).await {
                    return "a message was not sent";
                }
                said = Instant::now();
            }
            if self.window > 0 {
                if self.kept.front().is_some_and(|(seq, ..)| *seq > self.sent + 1) {
                    return "gave up what was not sent yet";
                }
                if let Some(message) = self.readings() {
                    if !self.say(&mut stream, &message).await {
                        return "a write failed";
                    }
                    said = Instant::now();
                } else if said.elapsed() > Duration::from_secs(5) {
                    let heartbeat = DeviceMessage::Heartbeat(Heartbeat { time: self.clock() });
                    if !self.say(&mut stream, &heartbeat).await {
                        return "a heartbeat was not sent";
                    }
                    said = Instant::now();
                }
                if self.random.u32(..20_000) == 0 {
                    let noise: Vec<u8> = std::iter::repeat_with(|| self.random.u8(..)).take(40).collect();
                    let _ = timeout(GIVES_UP, stream.write_all(&noise)).await;
                }
            }
            if self.serial.is_some() && self.sent >= self.next_kept() && self.progress.elapsed() > RESENDS {
                self.sent = self.next_kept() - 1;
            }
            let patience = Duration::from_millis(self.random.u64(5..200));
            let mut messages = Vec::new();
            let mut on_event = |event: Event<'_>| {
                if let Event::Frame(frame) = event {
                    messages.push(decode_gateway(&frame));
                }
                ControlFlow::Continue(())
            };
            match timeout(patience, stream.read(&mut buffer)).await {
                Err(_) if heard.elapsed() > GIVES_UP => return "nothing heard",
                Err(_) if self.serial.is_some() && decoder.is_partial() && heard.elapsed() > FRAME_TIMEOUT => {
                    self.lag = (heard.elapsed(), Instant::now() + Duration::from_secs(5));
                    let _ = decoder.give_up_partial(&mut on_event);
                }
                Err(_) => continue,
                Ok(Err(_) | Ok(0)) => return "closed",
                Ok(Ok(read)) => {
                    heard = Instant::now();
                    let bytes = &mut buffer[..read];
                    if let Some(serial) = &mut self.serial {
                        if serial.echoes {
                            let _ = timeout(GIVES_UP, stream.write_all(bytes)).await;
                        }
                        serial.damage(bytes);
                    }
                    if decoder.push(bytes, &mut on_event).is_err() {
                        self.context.oracle(|oracle| oracle.violated("the gateway sent no frame".into()));
                    }
                }
            }
            for message in messages {
                match message {
                    Ok(GatewayMessage::Goodbye(goodbye)) => {
                        self.dismissed(&goodbye);
                        return "Goodbye";
                    }
                    Ok(message) => self.told(message),
                    Err(why) => self.context.oracle(|oracle| oracle.violated(why.to_string())),
                }
            }
        }
    }

    /// Whoever says something in time, over a line that carries it, is not given up.
    fn dismissed(&self, goodbye: &Goodbye) {
        if goodbye.reason == Reason::Timeout && self.controls.is_quiet() {
            let what = format!("{} is dismissed, though it spoke in time: {}", self.name, goodbye.text);
            self.context.oracle(|oracle| oracle.violated(what));
        }
    }

    fn hello(&self) -> DeviceMessage {
        let clock = if self.is_clockless() { DeviceClock::SinceBoot } else { DeviceClock::Wall };
        DeviceMessage::Hello(Hello {
            device: self.name.clone(),
            session: self.session,
            clock,
            time: self.clock(),
            firmware: None,
            channels: vec![ChannelDeclaration { index: 0, name: "n".into(), unit: None }],
            first: if self.says_first { self.next_kept() } else { 0 },
            max_frame: 0,
        })
    }

    /// The oldest that it keeps, or will take next.
    fn next_kept(&self) -> u64 {
        self.kept.front().map_or(self.next, |(seq, ..)| *seq)
    }

    /// Now and then a device behind it comes or goes.
    fn look_behind(&mut self) {
        let mut state = self.controls.lock();
        if state.obedient || state.subs.is_empty() || self.random.u32(..300) > 0 {
            return;
        }
        let which = self.random.usize(..state.subs.len());
        let (sub, online) = &mut state.subs[which];
        *online = !*online;
        self.outbox.push_back(about(sub, *online));
    }

    fn commanded(&mut self, sub: Option<&str>, command: &Command) {
        let target = sub.map_or(self.name.clone(), |sub| format!("{}/{sub}", self.name));
        let obedient = self.controls.lock().obedient;
        let wanted = Duration::from_millis(command.expires_in.unwrap_or(u64::MAX));
        let late = if Instant::now() < self.lag.1 { self.lag.0 } else { Duration::ZERO };
        self.doer.told(&doer::Told { target: &target, id: &command.id, wanted, late }, obedient);
    }

    fn told(&mut self, message: GatewayMessage) {
        if let GatewayMessage::Welcome(welcome) = &message
            && welcome.session != Some(self.session)
        {
            // What is left of another session is passed over; nobody else has settled so much.
            if welcome.settled != u64::MAX {
                let what = format!("{} is welcomed for another session than its own: {welcome:?}", self.name);
                self.context.oracle(|oracle| oracle.violated(what));
            }
            return;
        }
        let revoked = self.controls.lock().revoked;
        let long = |revoked: Instant| {
            let since = revoked.elapsed();
            since > REVOKED_WITHIN + self.context.paused(since)
        };
        if revoked.is_some_and(long) && !matches!(message, GatewayMessage::Challenge(_)) {
            let what = format!("{} is told {message:?}, long after its key was revoked", self.name);
            self.context.oracle(|oracle| oracle.violated(what));
        }
        if matches!(message, GatewayMessage::Welcome(_)) && revoked.is_some_and(|revoked| revoked < self.said_hello) {
            self.context.oracle(|oracle| oracle.violated(format!("{} is let in without a key", self.name)));
        }
        let upto = match message {
            GatewayMessage::Challenge(challenge) => {
                let proof = self.secret.hmac(&challenge.nonce, &self.name, self.session);
                let answer = Authenticate { key: self.name.clone(), proof };
                return self.outbox.push_back(DeviceMessage::Authenticate(answer));
            }
            GatewayMessage::Command(command) => return self.commanded(None, &command),
            GatewayMessage::SubCommand(SubCommand { sub, id, name, payload, expires_in }) => {
                return self.commanded(Some(&sub), &Command { id, name, payload, expires_in });
            }
            GatewayMessage::Welcome(welcome) => {
                self.stale = Some(Welcome { settled: u64::MAX, session: Some(!self.session), ..welcome });
                let subs = {
                    let mut state = self.controls.lock();
                    state.there = true;
                    state.subs.clone()
                };
                self.outbox.extend(subs.into_iter().map(|(sub, online)| about(sub, online)));
                self.window = u64::from(welcome.window);
                self.sent = (self.next_kept() - 1).max(welcome.settled);
                self.progress = Instant::now();
                self.context.trace(format_args!("{} welcomed at {}", self.name, welcome.settled));
                let after = self.said_hello.elapsed();
                let now = self.context.elapsed();
                self.context.oracle(|oracle| {
                    oracle.welcomed(&self.name, self.session, after);
                    oracle.roll.welcomed(&self.name, now);
                });
                welcome.settled
            }
            GatewayMessage::Ack(ack) => {
                self.context.trace(format_args!("{} acked {}", self.name, ack.seq));
                if self.serial.is_some() && self.window > 0 && ack.seq < self.next_kept() {
                    self.sent = ack.seq; // it asks for what stands behind that
                }
                ack.seq
            }
            _ => return,
        };
        if upto >= self.next_kept() {
            self.progress = Instant::now();
            self.sent = self.sent.max(upto);
        }
        self.context.oracle(|oracle| oracle.acked(&self.name, self.session, upto));
        while self.kept.front().is_some_and(|(seq, ..)| *seq <= upto) {
            self.kept.pop_front();
        }
    }

    /// The next Readings, if the window has room; sometimes one that was sent before.
    fn readings(&mut self) -> Option<DeviceMessage> {
        let oldest = self.kept.front().map(|(seq, ..)| *seq)?;
        // What was given up meanwhile cannot be left out in the middle of a connection.
        let outstanding = (self.sent + 1).saturating_sub(oldest);
        let again = outstanding > 0 && self.random.u8(..40) == 0;
        let from = if again { oldest + self.random.u64(..outstanding) } else { self.sent + 1 };
        let room = self.window.saturating_sub(outstanding);
        let most = if self.serial.is_some() { 8 } else { 50 };
        if outstanding == 0 {
            self.progress = Instant::now();
        }
        let count = self.random.u64(1..=most).min(if again { 50 } else { room });
        let mut samples = Vec::new();
        let mut next = from;
        for (seq, time, values) in self.kept.iter().skip_while(|(seq, ..)| *seq < from) {
            if *seq != next || samples.len() as u64 >= count {
                break;
            }
            next += 1;
            let values = match is_senseless(self.session, *seq) {
                true => senseless(*seq),
                false => values.iter().map(|(name, value)| (channel(name), value.clone())).collect(),
            };
            samples.push(Sample { time: *time, values });
        }
        if samples.is_empty() {
            return None;
        }
        self.sent = self.sent.max(next - 1);
        Some(DeviceMessage::Readings(Readings { seq: from, sub: None, samples }))
    }

    async fn say(&mut self, stream: &mut DuplexStream, message: &DeviceMessage) -> bool {
        let mut bytes = Vec::new();
        encode_device(message, self.format, &mut bytes);
        if let Some(serial) = &mut self.serial {
            serial.damage(&mut bytes);
        }
        let began = Instant::now();
        let said = timeout(GIVES_UP, stream.write_all(&bytes)).await.is_ok_and(|written| written.is_ok());
        let took = began.elapsed();
        if took > Duration::from_millis(100) {
            self.lag = (took, Instant::now() + Duration::from_secs(5));
        }
        said
    }
}

fn channel(name: &str) -> ChannelRef {
    if name == "n" { ChannelRef::Index(0) } else { ChannelRef::Name(name.to_owned()) }
}

/// What no gateway can take.
fn senseless(seq: u64) -> Vec<(ChannelRef, Value)> {
    let channels = match seq % 3 {
        0 => vec![ChannelRef::Name("x".repeat(65))],
        1 => vec![ChannelRef::Index(0), ChannelRef::Name("n".into())],
        _ => vec![ChannelRef::Index(9)],
    };
    channels.into_iter().map(|channel| (channel, Value::Integer(1))).collect()
}

/// What a device and the gateway share.
pub fn secret(name: &str) -> Secret {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(name.bytes().cycle()).for_each(|(byte, of)| *byte = of);
    Secret(bytes)
}

fn about(sub: &str, online: bool) -> DeviceMessage {
    DeviceMessage::SubDevice(SubDevice { sub: sub.to_owned(), online, reason: None })
}
