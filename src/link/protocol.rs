//! One device's conversation with the gateway, message by message.
//!
//! connecting --Hello--> established <--silence, a word--> idle; from all of them
//! --Goodbye, more silence or a mistake--> closed. Where devices authenticate, they are
//! introduced between the two: Hello --> introduced --Authenticate, or a
//! certificate--> established.
//! See `docs/protocol.md`, "Sessions".

pub mod convert;
mod gaps;

use crate::clock::Now;
use crate::config::Authentication;
use crate::device::auth::{Attempt, Nonce};
use crate::model::DeviceId;
use crate::wire::message::{
    Authenticate, Challenge, CommandResult, DeviceMessage, GatewayMessage, HeartbeatReply, Hello, Reason, SubDevice,
    Welcome,
};
use crate::wire::sift::Sifted;
use crate::wire::text::Context;
use convert::{ConvertError, Converted, Converter, TimeRules};
use gaps::{Behind, Gaps};
use std::time::Duration;

/// The parameters of the sessions on a link.
#[derive(Debug, Clone, Copy)]
pub struct SessionParameters {
    /// Time from the connection to Hello; `None` where a silent line is no fault.
    pub handshake_timeout: Option<Duration>,
    pub heartbeat_interval: Duration,
    /// Silence after which a device is idle, and sent a reminder.
    pub idle_after: Duration,
    /// Silence that ends a session.
    pub idle_timeout: Duration,
    /// Samples that may be outstanding.
    pub window: u32,
    /// Largest frame body, in bytes.
    pub max_frame: u32,
    /// Whether a Hello may begin a new session on the same line: a device on a
    /// serial line restarts without its line noticing.
    pub restart: bool,
    /// How devices' times are taken.
    pub times: TimeRules,
    /// How devices prove who they are.
    pub authentication: Authentication,
}

/// Why a session ends, in the words of the Goodbye that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub text: String,
}

/// What a message asks of the link.
#[derive(Debug, PartialEq)]
pub enum Step {
    Reply(GatewayMessage),
    /// A device introduced itself: look up what of its session is settled, and
    /// [`Session::welcome`] it. Nothing before `first` is going to come.
    Establish {
        device: DeviceId,
        session: u64,
        first: u64,
        firmware: Option<String>,
    },
    /// A device introduced itself and has to prove that it is who it says it is:
    /// [`Session::challenge`] it, or [`Session::admit`] it if it did so already.
    Introduced(DeviceId),
    /// It answered the challenge: judge the answer, and [`Session::admit`] the device or
    /// refuse it.
    Authenticate(Attempt),
    /// Readings to store; none if the device sent only what it had sent before on
    /// this connection.
    Store(Converted),
    /// Readings to store, of a message of which no more can be taken: the session is over
    /// then.
    StorePart(Converted, Refusal),
    /// Readings came behind lost ones, on a line that loses frames, and were dropped: `ask`
    /// for what is missing, or go on.
    Lost {
        ask: bool,
    },
    /// How a command ended.
    Answer(CommandResult),
    /// A device behind this one is there, or is not.
    SubDevice {
        device: DeviceId,
        there: bool,
    },
    /// The device takes its leave.
    Leave,
}

/// What time brings.
#[derive(Debug, PartialEq)]
pub enum Tick {
    /// The device has become idle; this reminds it.
    Idle(GatewayMessage),
    /// The session is over.
    Over(Refusal),
}

/// The state of one conversation.
#[derive(Debug)]
pub struct Session {
    parameters: SessionParameters,
    introduced: Option<Box<Introduced>>,
    device: Option<Box<Converter>>,
    /// The largest body that the device takes, as far as it said so; else 0.
    max_frame: u32,
    gaps: Gaps,
    heard: Duration,
    idle: bool,
}

/// A device that has still to prove who it is.
#[derive(Debug)]
struct Introduced {
    converter: Box<Converter>,
    session: u64,
    first: u64,
    firmware: Option<String>,
    /// What it has to prove it with, once.
    nonce: Option<Nonce>,
}

impl Session {
    /// A connection was made.
    pub fn new(parameters: SessionParameters, now: Now) -> Session {
        let gaps = Gaps::default();
        Session { parameters, introduced: None, device: None, max_frame: 0, gaps, heard: now.monotonic, idle: false }
    }

    /// The device, once it is known to be who it says it is.
    pub fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref().map(|device| device.device())
    }

    /// What text messages say of the device, once it has said who it is.
    pub fn context(&self) -> Context<'_> {
        let introduced = self.introduced.as_ref().map(|introduced| &introduced.converter);
        let device = self.device.as_ref().or(introduced);
        device.map_or_else(Context::default, |device| Context {
            device: Some(device.device().as_str()),
            clock: Some(device.clock()),
            now: None,
        })
    }

    /// The largest body that the device takes, in bytes; 0 if it did not say.
    pub fn max_frame(&self) -> u32 {
        self.max_frame
    }

    /// The device is told that everything up to `seq` is settled.
    pub fn acknowledged(&mut self, seq: u64) {
        if let Some(device) = &mut self.device {
            device.acknowledged(seq);
        }
    }

    /// Memory that the session holds to be fast, in bytes.
    pub fn memory(&self) -> usize {
        self.device.as_ref().map_or(0, |device| device.memory())
    }

    /// Gives that memory back.
    pub fn forget(&mut self) {
        if let Some(device) = &mut self.device {
            device.forget();
        }
    }

    /// Forgets the device: the next message must be a Hello.
    pub fn reset(&mut self, now: Now) {
        (self.introduced, self.device, self.max_frame) = (None, None, 0);
        self.heard(now);
    }

    /// The device is not silent: either it said something or it cannot be heard.
    pub fn heard(&mut self, now: Now) {
        self.heard = now.monotonic;
        self.idle = false;
    }

    /// Nobody listened to the device for a while: its silence counts `by` so much less.
    pub fn excuse(&mut self, by: Duration, now: Now) {
        self.heard = (self.heard + by).min(now.monotonic);
        if let Some(device) = &mut self.device {
            device.excuse(by, now);
        }
    }

    /// Whether the device is silent for longer than it should be.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// When [`Session::tick`] has something to say, on the monotonic clock, unless
    /// something is heard.
    pub fn deadline(&self) -> Option<Duration> {
        match self.device {
            Some(_) if self.idle => Some(self.heard + self.parameters.idle_timeout),
            Some(_) => Some(self.heard + self.parameters.idle_after.min(self.parameters.idle_timeout)),
            None => self.parameters.handshake_timeout.map(|timeout| self.heard + timeout),
        }
    }

    /// A sign of life.
    pub fn reminder(&self, now: Now) -> GatewayMessage {
        time_of(now)
    }

    /// What has become due at `now` for want of a word from the device.
    pub fn tick(&mut self, now: Now) -> Option<Tick> {
        if self.deadline().is_none_or(|deadline| now.monotonic < deadline) {
            return None;
        }
        let over = self.device.is_none() || now.monotonic >= self.heard + self.parameters.idle_timeout;
        if over {
            return Some(Tick::Over(self.timeout()));
        }
        self.idle = true;
        Some(Tick::Idle(time_of(now)))
    }

    fn timeout(&self) -> Refusal {
        let (what, limit) = match (&self.device, self.parameters.handshake_timeout) {
            (None, Some(limit)) if self.introduced.is_some() => ("no proof came", limit),
            (None, Some(limit)) => ("no Hello came", limit),
            _ => ("nothing was heard", self.parameters.idle_timeout),
        };
        refusal(Reason::Timeout, format!("{what} within {}", humantime::format_duration(limit)))
    }

    /// Takes a message from the device.
    ///
    /// # Errors
    /// If it does not belong there or makes no sense; the session is over then.
    pub fn take(&mut self, message: DeviceMessage, now: Now) -> Result<Step, Refusal> {
        if self.device.is_some() {
            self.heard(now);
        }
        let introduced = self.introduced.is_some();
        match (message, &mut self.device) {
            (DeviceMessage::Goodbye(_), _) => Ok(Step::Leave),
            (DeviceMessage::Authenticate(answer), _) => self.answered(answer),
            (DeviceMessage::Hello(_), device) if !self.parameters.restart && (device.is_some() || introduced) => {
                Err(protocol("a second Hello came"))
            }
            (DeviceMessage::Hello(hello), _) => self.hello(hello, now),
            (_, None) if introduced => Err(protocol("answer the Challenge first")),
            (_, None) => Err(protocol("send Hello first")),
            (DeviceMessage::Readings(mut readings), Some(device)) => {
                let too_many = cut_to_window(&mut readings.samples, self.parameters.window);
                let converted = device.convert(readings, now).map(|converted| (converted, too_many));
                taken(converted, &mut self.gaps, self.parameters.restart, now)
            }
            (DeviceMessage::Heartbeat(heartbeat), Some(device)) => {
                device.synchronise(heartbeat.time, now);
                Ok(Step::Reply(time_of(now)))
            }
            (DeviceMessage::CommandResult(result), Some(_)) => Ok(Step::Answer(result)),
            (DeviceMessage::SubDevice(SubDevice { sub, online, .. }), Some(device)) => {
                match device.device().sub_device(&sub) {
                    Ok(device) => Ok(Step::SubDevice { device, there: online }),
                    Err(why) => Err(senseless(ConvertError::SubDevice(sub, why))),
                }
            }
        }
    }

    /// Takes Readings of which some samples cannot be read.
    ///
    /// # Errors
    /// As of [`Session::take`].
    pub fn sift(&mut self, mut sifted: Sifted, now: Now) -> Result<Step, Refusal> {
        self.heard(now);
        let Some(device) = &mut self.device else { return Err(protocol("send Hello first")) };
        let too_many = cut_to_window(&mut sifted.samples, self.parameters.window);
        if too_many.is_some() {
            (sifted.hidden, sifted.cut) = (0, false);
        }
        sifted.hidden = sifted.hidden.min(self.parameters.window.into());
        let last =
            sifted.samples.last().and_then(|sample| sample.as_ref().err()).map(|unreadable| unreadable.why.clone());
        let unreadable = |seq| {
            let why = last.unwrap_or_default();
            let text =
                format!("sample {seq} cannot be read ({why}), nor what stands behind it; go on after Welcome.settled");
            refusal(Reason::BadFrame, text)
        };
        let converted = device.sift(sifted, now).map(|(converted, end)| (converted, too_many.or(end.map(unreadable))));
        taken(converted, &mut self.gaps, self.parameters.restart, now)
    }

    fn hello(&mut self, hello: Hello, now: Now) -> Result<Step, Refusal> {
        let device = match DeviceId::new(&hello.device) {
            Ok(device) if !hello.device.contains('/') => device,
            Ok(_) => return Err(protocol(&format!("device id {:?} has a slash", hello.device))),
            Err(why) => return Err(protocol(&format!("device id {:?} {why}", hello.device))),
        };
        let mut converter =
            Converter::new(device.clone(), hello.session, hello.clock, self.parameters.times, &hello.channels);
        converter.synchronise(hello.time, now);
        self.max_frame = hello.max_frame;
        let converter = Box::new(converter);
        self.gaps = Gaps::default();
        let Hello { session, first, firmware, .. } = hello;
        if self.parameters.authentication == Authentication::None {
            self.device = Some(converter);
            self.heard(now);
            return Ok(Step::Establish { device, session, first, firmware });
        }
        self.device = None;
        self.introduced = Some(Box::new(Introduced { converter, session, first, firmware, nonce: None }));
        Ok(Step::Introduced(device))
    }

    /// Has the device that introduced itself prove who it is, with a `nonce` that nobody
    /// could know before.
    pub fn challenge(&mut self, nonce: Nonce) -> GatewayMessage {
        if let Some(introduced) = &mut self.introduced {
            introduced.nonce = Some(nonce);
        }
        GatewayMessage::Challenge(Challenge { nonce: nonce.to_vec() })
    }

    fn answered(&mut self, answer: Authenticate) -> Result<Step, Refusal> {
        let open = self.introduced.as_mut().and_then(|introduced| {
            let nonce = introduced.nonce.take()?;
            Some((introduced.converter.device().clone(), introduced.session, nonce))
        });
        let Some((device, session, nonce)) = open else {
            return Err(protocol("Authenticate came without a Challenge"));
        };
        Ok(Step::Authenticate(Attempt { device, session, nonce, key: answer.key, proof: answer.proof }))
    }

    /// The device that introduced itself is who it says it is: a step to establish the
    /// session, unless nobody was introduced.
    pub fn admit(&mut self, now: Now) -> Option<Step> {
        let introduced = self.introduced.take()?;
        let Introduced { converter, session, first, firmware, .. } = *introduced;
        let device = converter.device().clone();
        self.device = Some(converter);
        self.heard(now);
        Some(Step::Establish { device, session, first, firmware })
    }

    /// The answer to a Hello that named `first`, when everything up to `settled` of
    /// the session is.
    pub fn welcome(&mut self, first: u64, settled: u64, now: Now) -> GatewayMessage {
        if let Some(device) = &mut self.device {
            // Where a frame may be lost, what comes first may not be the oldest that there is.
            let anywhere = first == 0 && !self.parameters.restart;
            device.go_on_after(settled.max(first.saturating_sub(1)), anywhere);
        }
        let seconds = u32::try_from(self.parameters.heartbeat_interval.as_secs()).unwrap_or(u32::MAX);
        GatewayMessage::Welcome(Welcome {
            settled,
            time: now.wall.0,
            time_trusted: now.trusted,
            heartbeat_interval: seconds,
            max_frame: self.parameters.max_frame,
            window: self.parameters.window,
            session: self.device.as_ref().map(|device| device.session()),
        })
    }
}

/// Leaves no more samples than a message may hold; says so if there were more.
fn cut_to_window<T>(samples: &mut Vec<T>, window: u32) -> Option<Refusal> {
    let (count, most) = (samples.len(), usize::try_from(window).unwrap_or(usize::MAX));
    if count <= most {
        return None;
    }
    samples.truncate(most);
    Some(protocol(&format!(
        "{count} samples in one message are more than the window of {window}, of which the first {window} are taken; \
         send smaller messages"
    )))
}

/// What converted Readings ask for; the session is over then if they are only a part. On a `lossy` line a gap in their numbering is no mistake of
/// the device.
fn taken(
    converted: Result<(Converted, Option<Refusal>), ConvertError>,
    gaps: &mut Gaps,
    lossy: bool,
    now: Now,
) -> Result<Step, Refusal> {
    match converted {
        Ok((converted, end)) => {
            gaps.none();
            Ok(match end {
                Some(why) => Step::StorePart(converted, why),
                None => Step::Store(converted),
            })
        }
        Err(why @ ConvertError::Gap { got, .. }) if lossy => match gaps.behind(got, now.monotonic) {
            Behind::Ask => Ok(Step::Lost { ask: true }),
            Behind::Wait => Ok(Step::Lost { ask: false }),
            Behind::GiveUp => Err(senseless(why)),
        },
        Err(why) => Err(senseless(why)),
    }
}

fn time_of(now: Now) -> GatewayMessage {
    GatewayMessage::HeartbeatReply(HeartbeatReply { time: now.wall.0, time_trusted: now.trusted })
}

fn refusal(reason: Reason, text: String) -> Refusal {
    Refusal { reason, text }
}

fn protocol(text: &str) -> Refusal {
    refusal(Reason::Protocol, text.to_owned())
}

fn senseless(why: ConvertError) -> Refusal {
    refusal(Reason::Protocol, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootId, Timestamp};
    use crate::wire::message::{DeviceClock, Goodbye, Heartbeat, Readings, ResultState, Sample};

    const PARAMETERS: SessionParameters = SessionParameters {
        handshake_timeout: Some(Duration::from_secs(5)),
        heartbeat_interval: Duration::from_secs(30),
        idle_after: Duration::from_secs(45),
        idle_timeout: Duration::from_secs(90),
        window: 100,
        max_frame: 1000,
        restart: false,
        times: TimeRules { boot: BootId([0; 16]), max_ahead: Duration::from_secs(600), earliest: Timestamp(0) },
        authentication: Authentication::None,
    };

    fn at(seconds: u64) -> Now {
        Now { wall: Timestamp(1_000_000), trusted: true, monotonic: Duration::from_secs(seconds) }
    }

    fn hello(device: &str) -> DeviceMessage {
        DeviceMessage::Hello(Hello {
            device: device.into(),
            session: 7,
            clock: DeviceClock::Wall,
            time: 0,
            firmware: None,
            channels: Vec::new(),
            first: 1,
            max_frame: 0,
        })
    }

    fn reading(seq: u64) -> DeviceMessage {
        let samples = vec![Sample { time: 0, values: Vec::new() }];
        DeviceMessage::Readings(Readings { seq, sub: None, samples })
    }

    #[test]
    fn a_session_begins_with_hello_and_stores_what_follows() {
        let mut session = Session::new(PARAMETERS, at(0));
        assert_eq!(session.take(reading(1), at(1)).expect_err("no Hello").text, "send Hello first");
        let step = session.take(hello("pump"), at(1)).expect("a fine Hello");
        assert!(matches!(step, Step::Establish { session: 7, .. }), "{step:?}");
        let GatewayMessage::Welcome(welcome) = session.welcome(1, 12, at(1)) else { panic!("no Welcome") };
        assert_eq!((welcome.settled, welcome.heartbeat_interval, welcome.window), (12, 30, 100));
        let step = session.take(reading(13), at(2));
        assert!(matches!(&step, Ok(Step::Store(c)) if c.last == 13 && c.batch.readings.len() == 1), "{step:?}");
        let goodbye = Goodbye { reason: Reason::Normal, text: String::new() };
        assert_eq!(session.take(DeviceMessage::Goodbye(goodbye), at(2)), Ok(Step::Leave));
    }

    #[test]
    fn what_the_device_gave_up_is_not_waited_for() {
        let mut session = Session::new(PARAMETERS, at(0));
        assert!(session.take(hello("pump"), at(0)).is_ok());
        session.welcome(500, 12, at(0));
        assert!(session.take(reading(501), at(0)).is_err());
        assert!(session.take(reading(500), at(0)).is_ok());
    }

    #[test]
    fn a_device_that_does_not_say_what_it_has_goes_on_where_it_is_unless_frames_may_be_lost() {
        for (restart, goes_on) in [(false, true), (true, false)] {
            let mut session = Session::new(SessionParameters { restart, ..PARAMETERS }, at(0));
            assert!(session.take(hello("pump"), at(0)).is_ok());
            session.welcome(0, 0, at(0));
            let step = session.take(reading(31), at(0));
            match goes_on {
                true => assert!(matches!(&step, Ok(Step::Store(converted)) if converted.last == 31), "{step:?}"),
                false => assert_eq!(step, Ok(Step::Lost { ask: true })),
            }
        }
    }

    #[test]
    fn a_welcome_names_its_session() {
        let mut session = Session::new(PARAMETERS, at(0));
        assert!(session.take(hello("pump"), at(0)).is_ok());
        let GatewayMessage::Welcome(welcome) = session.welcome(1, 0, at(0)) else { panic!("no Welcome") };
        assert_eq!(welcome.session, Some(7));
    }

    #[test]
    fn messages_out_of_place_end_the_session() {
        let mut session = Session::new(PARAMETERS, at(0));
        for bad in ["a/b", "", "a b"] {
            assert_eq!(session.take(hello(bad), at(0)).expect_err("a bad id").reason, Reason::Protocol);
        }
        let authenticate = DeviceMessage::Authenticate(Authenticate { key: String::new(), proof: Vec::new() });
        assert!(session.take(authenticate, at(0)).is_err());
        assert!(session.take(hello("pump"), at(0)).is_ok());
        assert!(session.take(hello("pump"), at(0)).is_err());
    }

    #[test]
    fn one_message_holds_no_more_than_the_window() {
        let mut session = Session::new(PARAMETERS, at(0));
        assert!(session.take(hello("pump"), at(0)).is_ok());
        session.welcome(1, 0, at(0));
        let readings = |count| {
            let samples = vec![Sample { time: 0, values: Vec::new() }; count];
            DeviceMessage::Readings(Readings { seq: 1, sub: None, samples })
        };
        assert!(session.take(readings(100), at(0)).is_ok());
        session.welcome(1, 0, at(0));
        let Ok(Step::StorePart(part, refusal)) = session.take(readings(101), at(0)) else { panic!("all or nothing") };
        assert_eq!((part.last, part.batch.readings.len(), refusal.reason), (100, 100, Reason::Protocol));
        assert!(refusal.text.contains("101 samples in one message are more than the window of 100"), "{refusal:?}");
    }

    #[test]
    fn where_a_line_cannot_break_hello_starts_anew() {
        let mut session =
            Session::new(SessionParameters { restart: true, handshake_timeout: None, ..PARAMETERS }, at(0));
        assert_eq!(session.deadline(), None);
        for name in ["pump", "pump", "valve"] {
            assert!(session.take(hello(name), at(0)).is_ok());
            assert_eq!(session.device().map(DeviceId::as_str), Some(name));
            session.welcome(1, 0, at(0));
            assert!(session.take(reading(1), at(0)).is_ok());
        }
    }

    fn answer(proof: u8) -> DeviceMessage {
        DeviceMessage::Authenticate(Authenticate { key: "k".into(), proof: vec![proof] })
    }

    #[test]
    fn a_device_proves_who_it_is_before_it_is_known() {
        let parameters = SessionParameters { authentication: Authentication::Hmac, ..PARAMETERS };
        let mut session = Session::new(parameters, at(0));
        let step = session.take(hello("pump"), at(2));
        assert!(matches!(&step, Ok(Step::Introduced(device)) if device.as_str() == "pump"), "{step:?}");
        assert!(session.take(answer(1), at(2)).is_err(), "there is no challenge yet");
        assert!(matches!(session.challenge([9; 32]), GatewayMessage::Challenge(c) if c.nonce == [9; 32]));
        assert_eq!((session.device(), session.deadline()), (None, Some(Duration::from_secs(5))));
        assert_eq!(session.timeout().text, "no proof came within 5s");
        assert!(session.take(hello("valve"), at(2)).is_err() && session.take(reading(1), at(2)).is_err());
        let Ok(Step::Authenticate(attempt)) = session.take(answer(7), at(3)) else { panic!("no attempt") };
        assert_eq!((attempt.device.as_str(), attempt.session, attempt.nonce), ("pump", 7, [9; 32]));
        assert!(session.take(answer(7), at(3)).is_err(), "a nonce is good for one attempt");
        let step = session.admit(at(4));
        assert!(matches!(step, Some(Step::Establish { session: 7, first: 1, .. })), "{step:?}");
        assert_eq!(session.deadline(), Some(Duration::from_secs(49)));
        session.welcome(1, 0, at(4));
        assert!(session.take(reading(1), at(4)).is_ok());
        assert_eq!(session.admit(at(5)), None, "nobody waits any more");
    }

    #[test]
    fn where_a_line_cannot_break_each_hello_has_to_be_proven() {
        let parameters = SessionParameters {
            restart: true,
            handshake_timeout: None,
            authentication: Authentication::Token,
            ..PARAMETERS
        };
        let mut session = Session::new(parameters, at(0));
        assert!(matches!(session.take(hello("pump"), at(0)), Ok(Step::Introduced(_))));
        session.challenge([1; 32]);
        assert!(matches!(session.take(answer(0), at(0)), Ok(Step::Authenticate(_))));
        session.admit(at(0));
        assert!(session.device().is_some());
        assert!(matches!(session.take(hello("valve"), at(1)), Ok(Step::Introduced(_))));
        assert!(session.device().is_none() && session.take(reading(1), at(1)).is_err());
        session.challenge([2; 32]);
        assert!(matches!(session.take(hello("pump"), at(1)), Ok(Step::Introduced(_))));
        assert!(session.take(answer(0), at(1)).is_err(), "that challenge was another Hello's");
    }

    #[test]
    fn silence_makes_a_session_idle_and_ends_it_unless_something_is_heard() {
        let mut session = Session::new(PARAMETERS, at(10));
        assert_eq!(session.deadline(), Some(Duration::from_secs(15)));
        assert_eq!(session.tick(at(14)), None);
        let Some(Tick::Over(refusal)) = session.tick(at(15)) else { panic!("it goes on") };
        assert_eq!(refusal.text, "no Hello came within 5s");

        assert!(session.take(hello("pump"), at(12)).is_ok());
        assert_eq!(session.deadline(), Some(Duration::from_secs(57)));
        let reminder = session.tick(at(57));
        assert!(matches!(reminder, Some(Tick::Idle(GatewayMessage::HeartbeatReply(r))) if r.time == 1_000_000));
        assert_eq!((session.is_idle(), session.deadline()), (true, Some(Duration::from_secs(102))));

        let reply = session.take(DeviceMessage::Heartbeat(Heartbeat { time: 0 }), at(60));
        assert!(matches!(reply, Ok(Step::Reply(GatewayMessage::HeartbeatReply(r))) if r.time == 1_000_000));
        assert_eq!((session.is_idle(), session.deadline()), (false, Some(Duration::from_secs(105))));
        assert!(matches!(session.tick(at(150)), Some(Tick::Over(refusal)) if refusal.reason == Reason::Timeout));
    }

    #[test]
    fn results_and_word_of_sub_devices_are_passed_on() {
        let mut session = Session::new(PARAMETERS, at(0));
        assert!(session.take(hello("hub"), at(0)).is_ok());
        let result = CommandResult { id: "c".into(), state: ResultState::Done, payload: None };
        assert_eq!(session.take(DeviceMessage::CommandResult(result.clone()), at(0)), Ok(Step::Answer(result)));
        let about = |sub: &str| DeviceMessage::SubDevice(SubDevice { sub: sub.into(), online: false, reason: None });
        let device = DeviceId::new("hub/door").expect("a valid name");
        assert_eq!(session.take(about("door"), at(0)), Ok(Step::SubDevice { device, there: false }));
        assert!(session.take(about("a/b"), at(0)).is_err());
    }
}
