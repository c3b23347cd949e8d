//! The client against a gateway that says what the real one would not, or not when a test
//! needs it.

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::device::POSTCARD;
use crate::support::pty::Line;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tidegate::wire::codec::{decode_device, encode_gateway};
use tidegate::wire::frame::{Decoder, Event, Limits, Recovery};
use tidegate::wire::message::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_serial::{SerialPortBuilderExt, SerialStream};

/// 2026-01-01T00:00:00Z in microseconds.
const NOW: i64 = 1_767_225_600_000_000;

/// The gateway's side of a link, played by the test.
struct Fake<S> {
    stream: S,
    decoder: Decoder,
    heard: VecDeque<DeviceMessage>,
    /// Whether the line brings back to the client what it says.
    echoes: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Fake<S> {
    fn over(stream: S) -> Fake<S> {
        let limits = Limits { max_body: 1024, require_checksum: true };
        Fake { stream, decoder: Decoder::new(limits, Recovery::Resync), heard: VecDeque::new(), echoes: false }
    }

    async fn say(&mut self, message: GatewayMessage) {
        let mut bytes = Vec::new();
        encode_gateway(&message, POSTCARD, &mut bytes);
        self.write(&bytes).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the client is there");
    }

    /// The next message; none if the client goes.
    async fn next(&mut self) -> Option<DeviceMessage> {
        let until = Instant::now() + PATIENCE;
        while self.heard.is_empty() {
            let mut bytes = [0; 4096];
            let read = tokio::time::timeout_at(until.into(), self.stream.read(&mut bytes)).await;
            let read = read.expect("the client says something").unwrap_or(0);
            if read == 0 {
                return None;
            }
            if self.echoes {
                self.write(&bytes[..read]).await;
            }
            let heard = &mut self.heard;
            let pushed = self.decoder.push(&bytes[..read], &mut |event| {
                match event {
                    Event::Frame(frame) => heard.push_back(decode_device(&frame).expect("the client speaks properly")),
                    other => panic!("no frame: {other:?}"),
                }
                ControlFlow::Continue(())
            });
            pushed.expect("resynchronising does not fail");
        }
        self.heard.pop_front()
    }

    async fn hello(&mut self) -> Hello {
        match self.next().await {
            Some(DeviceMessage::Hello(hello)) => hello,
            other => panic!("no Hello: {other:?}"),
        }
    }

    async fn welcome(&mut self, settled: u64) {
        self.say(GatewayMessage::Welcome(welcome(settled))).await;
    }

    /// The next Readings, which are acknowledged.
    async fn readings(&mut self) -> Readings {
        loop {
            match self.next().await {
                Some(DeviceMessage::Readings(readings)) => {
                    let seq = readings.seq + readings.samples.len() as u64 - 1;
                    self.say(GatewayMessage::Ack(Ack { seq })).await;
                    return readings;
                }
                Some(DeviceMessage::Heartbeat(_)) => {}
                other => panic!("no Readings: {other:?}"),
            }
        }
    }

    /// The next CommandResult; Readings meanwhile are acknowledged.
    async fn result(&mut self) -> CommandResult {
        loop {
            match self.next().await {
                Some(DeviceMessage::CommandResult(result)) => return result,
                Some(DeviceMessage::Readings(readings)) => {
                    let seq = readings.seq + readings.samples.len() as u64 - 1;
                    self.say(GatewayMessage::Ack(Ack { seq })).await;
                }
                Some(DeviceMessage::Heartbeat(_)) => {}
                other => panic!("no CommandResult: {other:?}"),
            }
        }
    }
}

fn welcome(settled: u64) -> Welcome {
    Welcome {
        settled,
        time: 0,
        time_trusted: false,
        heartbeat_interval: 30,
        max_frame: 4096,
        window: 100,
        session: None,
    }
}

fn command(id: &str, name: &str, payload: Option<&str>) -> GatewayMessage {
    let payload = payload.map(str::to_owned);
    GatewayMessage::Command(Command { id: id.into(), name: name.into(), payload, expires_in: Some(10_000) })
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

async fn accepted(listener: &TcpListener) -> Fake<TcpStream> {
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await.expect("the client connects");
    Fake::over(accepted.expect("a connection").0)
}

#[tokio::test]
async fn a_command_that_comes_again_is_answered_again_and_not_done_again() {
    let (listener, address) = listener().await;
    let client = Client::over_tcp(&address, &["--device", "mc", "--count", "1000000", "--interval-ms", "100"]);
    let done = |id: &str, payload: &str| CommandResult {
        id: id.into(),
        state: ResultState::Done,
        payload: Some(payload.into()),
    };
    let mut fake = accepted(&listener).await;
    fake.hello().await;
    fake.welcome(0).await;
    for _ in 0..3 {
        fake.say(command("c-1", "set-interval", Some(r#"{"ms":50}"#))).await;
        assert_eq!(fake.result().await, done("c-1", r#"{"before":100}"#));
    }
    // One that takes a while, repeated meanwhile; and one that is too large to be seen.
    fake.say(command("c-4", "blink", None)).await;
    fake.say(command("large", "explode", Some(&"x".repeat(2000)))).await;
    fake.say(command("c-4", "blink", None)).await;
    assert_eq!(fake.result().await, done("c-4", r#"{"blinks":3}"#));
    assert_eq!(client.said("command: blink"), 1, "{}", client.log());
    assert_eq!(client.said("a message is larger than TG_MAX_BODY"), 1, "{}", client.log());
    // In the next session it knows them still.
    drop(fake);
    let mut fake = accepted(&listener).await;
    fake.hello().await;
    fake.welcome(0).await;
    fake.say(command("c-1", "set-interval", Some(r#"{"ms":50}"#))).await;
    assert_eq!(fake.result().await, done("c-1", r#"{"before":100}"#));
    assert_eq!(client.said("command: set-interval"), 1, "{}", client.log());
}

#[tokio::test]
async fn the_client_sends_heartbeats_and_learns_the_time_from_who_knows_it() {
    let (listener, address) = listener().await;
    let client = Client::over_tcp(&address, &["--device", "mc", "--count", "1000000"]);
    let mut fake = accepted(&listener).await;
    let hello = fake.hello().await;
    assert_eq!((hello.clock, hello.firmware.as_deref()), (DeviceClock::SinceBoot, Some("posix.c 1")));
    fake.say(GatewayMessage::Welcome(Welcome { time: 5, heartbeat_interval: 1, ..welcome(0) })).await;
    let mut heartbeats = Vec::new();
    let heard = async |fake: &mut Fake<TcpStream>| loop {
        match fake.next().await {
            Some(DeviceMessage::Heartbeat(heartbeat)) => return heartbeat.time,
            Some(DeviceMessage::Readings(_)) => {}
            other => panic!("no Heartbeat: {other:?}"),
        }
    };
    for trusted in [false, true, true] {
        heartbeats.push(heard(&mut fake).await);
        assert!(!client.log().contains("the time is") || heartbeats.len() == 3, "{}", client.log());
        fake.say(GatewayMessage::HeartbeatReply(HeartbeatReply { time: NOW, time_trusted: trusted })).await;
    }
    assert!(heartbeats.windows(2).all(|pair| (700..1800).contains(&(pair[1] - pair[0]))), "{heartbeats:?}");
    let time: i64 = client.told("the time is").expect("it says so").parse().expect("a number");
    assert!((NOW..NOW + 1_000_000).contains(&time), "{time}");
    // Asked whether it is still there, it answers at once.
    let asked = Instant::now();
    fake.say(GatewayMessage::HeartbeatReply(HeartbeatReply { time: NOW, time_trusted: true })).await;
    heard(&mut fake).await;
    assert!(asked.elapsed() < Duration::from_millis(600), "{:?}", asked.elapsed());
    // It leaves a gateway that is silent.
    while fake.next().await.is_some() {}
    assert_eq!(client.said("the gateway is silent"), 1, "{}", client.log());
}

#[tokio::test]
async fn a_session_id_that_was_used_before_gives_way_to_a_new_one() {
    let (listener, address) = listener().await;
    let mut client = Client::over_tcp(&address, &["--device", "mc", "--count", "5", "--interval-ms", "1"]);
    let mut fake = accepted(&listener).await;
    let session = fake.hello().await.session;
    fake.welcome(1000).await;
    assert_eq!(fake.next().await, None);
    let mut fake = accepted(&listener).await;
    let hello = fake.hello().await;
    assert!(hello.session != session && hello.first == 1, "{hello:?}");
    fake.welcome(0).await;
    let readings = fake.readings().await;
    assert_eq!((readings.seq, readings.samples.len()), (1, 5));
    client.succeeds().await;
}

/// On a serial line what was said to the device's earlier life may still be under way.
#[tokio::test]
async fn a_welcome_that_is_not_for_this_session_costs_no_reading() {
    const COUNT: u64 = 25;
    let count = COUNT.to_string();
    let (_line, mut fake, mut client) = on_a_line(&["--count", &count, "--interval-ms", "1"]).await;
    let hello = fake.hello().await;
    assert_eq!(hello.max_frame, 512);
    // All its readings are taken by then, and none is sent.
    tokio::time::sleep(Duration::from_millis(300)).await;
    fake.say(GatewayMessage::Welcome(Welcome { session: Some(!hello.session), ..welcome(20) })).await;
    fake.welcome(20).await; // of a gateway that names no session
    fake.say(GatewayMessage::Welcome(Welcome { session: Some(hello.session), ..welcome(0) })).await;
    let mut next = 1;
    while next <= COUNT {
        let readings = fake.readings().await;
        assert_eq!(readings.seq, next, "{}", client.log());
        next += readings.samples.len() as u64;
    }
    client.succeeds().await;
    assert_eq!(client.said("welcomed"), 1, "{}", client.log());
}

async fn on_a_line(arguments: &[&str]) -> (Line, Fake<SerialStream>, Client) {
    let line = Line::new().await;
    let port = tokio_serial::new(line.gateway_end().to_string_lossy(), 115_200).open_native_async();
    let fake = Fake::over(port.expect("the line's end"));
    let end = line.device_end().display().to_string();
    let client = Client::start(&[&["--serial", &end, "--device", "mc"], arguments].concat());
    (line, fake, client)
}

#[tokio::test]
async fn the_client_does_not_take_what_it_says_itself_for_the_gateways_words() {
    let (_line, mut fake, client) = on_a_line(&["--count", "1000000", "--interval-ms", "20"]).await;
    fake.echoes = true;
    fake.hello().await;
    fake.say(GatewayMessage::Welcome(Welcome { heartbeat_interval: 1, ..welcome(0) })).await;
    for _ in 0..5 {
        fake.readings().await;
    }
    assert_eq!(client.said("welcomed"), 1, "{}", client.log());
    // Then it hears nobody but itself.
    let until = Instant::now() + PATIENCE;
    while client.said("the gateway is silent") == 0 {
        assert!(Instant::now() < until, "{}", client.log());
        fake.next().await;
    }
}

#[tokio::test]
async fn the_client_hears_a_welcome_within_a_second_whatever_has_begun_before_it() {
    let (_line, mut fake, client) = on_a_line(&["--count", "1", "--interval-ms", "1"]).await;
    fake.hello().await;
    let mut head = Vec::new();
    encode_gateway(&command("c", "n", Some(&"x".repeat(200))), POSTCARD, &mut head);
    fake.write(&head[..14].repeat(30)).await;
    fake.welcome(0).await;
    let said = Instant::now();
    fake.readings().await;
    assert!(said.elapsed() < Duration::from_secs(1), "{:?}\n{}", said.elapsed(), client.log());
}

/// On a serial line anything may come; the sanitizers watch.
#[tokio::test]
async fn no_garbage_confuses_the_client() {
    let (_line, mut fake, mut client) = on_a_line(&["--count", "200", "--interval-ms", "1"]).await;
    let text = "x".repeat(300);
    let messages = [
        GatewayMessage::Challenge(Challenge { nonce: vec![7; 32] }),
        GatewayMessage::Welcome(Welcome { time: NOW, time_trusted: true, ..welcome(3) }),
        GatewayMessage::Welcome(Welcome { time: i64::MIN, time_trusted: true, window: 0, ..welcome(0) }),
        GatewayMessage::Ack(Ack { seq: 5 }),
        GatewayMessage::HeartbeatReply(HeartbeatReply { time: i64::MAX, time_trusted: true }),
        command("c", "set-interval", Some(r#"{"ms":1}"#)),
        command(&text, &text, None),
        GatewayMessage::Goodbye(Goodbye { reason: Reason::Busy, text }),
    ];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..3000 {
        let mut bytes = Vec::new();
        match random.u8(..4) {
            0 => bytes.extend((0..random.usize(..600)).map(|_| random.u8(..))),
            1 => bytes.extend([0x12, 0x34, 0x56, 0x7f].iter().cycle().take(random.usize(..40))),
            damage => {
                encode_gateway(&messages[random.usize(..messages.len())], POSTCARD, &mut bytes);
                let body = 10..bytes.len() - 4;
                if damage == 2 && !body.is_empty() {
                    // A sound frame with a senseless body.
                    bytes.truncate(body.start + random.usize(..body.len()));
                    for _ in 0..random.usize(..4) {
                        let at = random.usize(5..bytes.len());
                        bytes[at] = random.u8(..);
                    }
                    let length = (bytes.len() - 10) as u32;
                    bytes[6..10].copy_from_slice(&length.to_be_bytes());
                    let checksum = crc32(&bytes);
                    bytes.extend(checksum.to_be_bytes());
                } else {
                    let at = random.usize(..bytes.len());
                    bytes[at] ^= 1 << random.u8(..8);
                }
            }
        }
        fake.write(&bytes).await;
        // What the client says to that is of no interest.
        let mut said = [0; 4096];
        let _ = tokio::time::timeout(Duration::from_micros(200), fake.stream.read(&mut said)).await;
        assert!(client.process.is_running(), "{}", client.log());
    }
    // And it still does its work.
    let mut settled = 0;
    let until = Instant::now() + PATIENCE;
    while settled < 200 {
        assert!(Instant::now() < until, "{settled}\n{}", client.log());
        match fake.next().await {
            Some(DeviceMessage::Hello(hello)) => {
                settled = settled.max(hello.first - 1);
                fake.welcome(settled).await;
            }
            Some(DeviceMessage::Readings(readings)) => {
                settled = readings.seq + readings.samples.len() as u64 - 1;
                fake.say(GatewayMessage::Ack(Ack { seq: settled })).await;
            }
            Some(_) => {}
            None => panic!("the line is gone"),
        }
    }
    client.succeeds().await;
}

/// The checksum of a frame so far.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}
