//! The client for microcontrollers, `examples/client/`, built with all warnings and run
//! under the address and undefined behaviour sanitizers: against the gateway, and against
//! a gateway that says what the real one would not.

use crate::support::broker::Broker;
use crate::support::device::POSTCARD;
use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::pty::Line;
use crate::support::subscriber::{Subscriber, options};
use crate::support::{PATIENCE, eventually, real_services_are_required};
use ring::hmac;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate::model::Value;
use tidegate::wire::codec::{decode_device, encode_gateway};
use tidegate::wire::frame::{Decoder, Event, Limits, Recovery};
use tidegate::wire::message::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_serial::SerialPortBuilderExt;

/// 2026-01-01T00:00:00Z in microseconds.
const NOW: i64 = 1_767_225_600_000_000;
const SECRET: [u8; 32] = [0xa5; 32];

/// The client, running.
struct Client {
    directory: TempDir,
    process: Process,
}

impl Client {
    fn start(arguments: &[&str]) -> Client {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = std::process::Command::new(compiled(&directory));
        command.args(arguments).env("TIDEGATE_SECRET", SECRET.map(|byte| format!("{byte:02x}")).concat());
        let process = Process::start(command, &directory.path().join("client.log"));
        Client { directory, process }
    }

    fn over_tcp(address: &str, arguments: &[&str]) -> Client {
        let (host, port) = address.split_once(':').expect("HOST:PORT");
        Client::start(&[&["--tcp", host, port], arguments].concat())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("client.log")).unwrap_or_default()
    }

    fn said(&self, line: &str) -> usize {
        self.log().lines().filter(|said| *said == line).count()
    }

    async fn succeeds(&mut self) {
        let status = self.process.ended().await;
        assert!(status.success(), "{}", self.log());
    }
}

fn compiled(directory: &TempDir) -> PathBuf {
    let sources = ["posix.c", "tidegate_client.c", "sha256.c"];
    let binary = directory.path().join("client");
    let build = |sanitizers: &[&str]| {
        let mut cc = std::process::Command::new("cc");
        cc.args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O1"]).args(sanitizers);
        cc.args(sources.map(|name| format!("{}/examples/client/{name}", env!("CARGO_MANIFEST_DIR"))));
        let output = cc.arg("-o").arg(&binary).output();
        output.expect("a C compiler, which building tidegate needs too")
    };
    let output = build(&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    if !output.status.success() {
        assert!(!real_services_are_required(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = build(&[]); // a compiler without sanitizers
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    binary
}

/// All that the client took arrived, with the values that it gave, and what came twice is
/// known by its number.
fn assert_delivered(subscriber: &Subscriber, device: &str, seqs: impl Iterator<Item = u64>) {
    let (mut got, mut sessions) = (Vec::new(), Vec::new());
    for reading in subscriber.readings().iter().filter(|reading| reading.device.as_str() == device) {
        let (session, seq) = reading.origin.expect("it numbers its readings");
        let value = |name| reading.values.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        assert_eq!(value("count"), Some(Value::Integer(seq as i64)), "{reading:?}");
        assert_eq!(value("temperature"), Some(Value::Float(20.0 + (seq % 100) as f64 / 10.0)), "{reading:?}");
        sessions.push(session);
        got.push(seq);
    }
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "one numbering");
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, seqs.collect::<Vec<_>>());
}

const TUTORIAL: &str = include_str!("../docs/write-a-device.md");

/// The tutorial's pieces in a language.
fn snippets(language: &str) -> Vec<&'static str> {
    let blocks = TUTORIAL.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

#[test]
fn each_piece_of_c_in_the_tutorial_stands_in_the_client() {
    let sources = [
        include_str!("../examples/client/tidegate_client.h"),
        include_str!("../examples/client/tidegate_client.c"),
        include_str!("../examples/client/posix.c"),
    ];
    let snippets = snippets("c");
    assert!(snippets.len() > 10);
    for snippet in snippets {
        assert!(sources.iter().any(|source| source.contains(snippet)), "{snippet}");
    }
}

#[tokio::test]
async fn the_tutorials_first_steps_are_welcomed_and_acknowledged() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = snippets("python").concat().replace("(\"127.0.0.1\", 7411)", "tuple(__import__('sys').argv[1:])");
    let file = directory.path().join("first.py");
    std::fs::write(&file, program).expect("a file");
    let address = gateway.tcp_address();
    let mut python = std::process::Command::new("python3");
    python.arg(&file).args(address.split(':'));
    let output = tokio::task::spawn_blocking(move || python.output()).await.expect("it ends").expect("python3");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(r#"{"settled":0,"#) && said.contains(r#"{"seq":1}"#), "{said}");
}

/// A way to the gateway that can be cut.
struct Relay {
    port: u16,
    cut: watch::Sender<()>,
    _task: tokio::task::JoinSet<()>,
}

impl Relay {
    async fn start(to: String) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let cut = watch::Sender::new(());
        let (mut task, cuts) = (tokio::task::JoinSet::new(), cut.clone());
        task.spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, mut cut) = (to.clone(), cuts.subscribe());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Relay { port, cut, _task: task }
    }
}

#[tokio::test]
async fn nothing_is_lost_when_connections_and_the_gateway_die() {
    const COUNT: u64 = 600;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    let relay = Relay::start(gateway.tcp_address()).await;
    let address = format!("127.0.0.1:{}", relay.port);
    let mut client =
        Client::over_tcp(&address, &["--device", "mc", "--count", &COUNT.to_string(), "--interval-ms", "10"]);
    let arrived = async |part: u64| {
        eventually("readings arrive", async || subscriber.origins().len() as u64 >= part).await;
    };
    arrived(COUNT / 8).await;
    relay.cut.send_replace(());
    arrived(COUNT / 4).await;
    gateway.kill();
    gateway.start().await;
    arrived(COUNT / 2).await;
    gateway.terminate().await;
    gateway.start().await;
    client.succeeds().await;
    subscriber.heard(COUNT as usize).await;
    assert_delivered(&subscriber, "mc", 1..=COUNT);
    assert_eq!(client.said("client: given up: 0"), 1, "{}", client.log());
    assert!(client.said("client: welcomed") >= 4, "{}", client.log());
    assert!(client.log().contains("the gateway said Goodbye: the gateway is stopping"), "{}", client.log());
}

#[tokio::test]
async fn nothing_is_lost_over_a_serial_line_that_is_unplugged_and_a_gateway_that_dies() {
    const COUNT: u64 = 300;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut line = Line::new().await;
    let serial = format!("[[serial]]\nname = \"line\"\npath = {:?}\nreopen_interval = \"100ms\"\n", line.gateway_end());
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &serial).started().await;
    let end = line.device_end().display().to_string();
    let count = COUNT.to_string();
    let mut client = Client::start(&["--serial", &end, "--device", "mc", "--count", &count, "--interval-ms", "10"]);
    let arrived = async |part: u64| {
        eventually("readings arrive", async || subscriber.origins().len() as u64 >= part).await;
    };
    arrived(COUNT / 6).await;
    gateway.kill();
    gateway.start().await;
    arrived(COUNT / 3).await;
    line.unplug();
    tokio::time::sleep(Duration::from_millis(300)).await;
    line.plug().await;
    client.succeeds().await;
    subscriber.heard(COUNT as usize).await;
    assert_delivered(&subscriber, "mc", 1..=COUNT);
}

#[tokio::test]
async fn a_client_whose_memory_is_full_gives_up_its_oldest_readings_and_says_so() {
    const COUNT: u64 = 500;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "");
    let count = COUNT.to_string();
    let arguments = ["--device", "mc", "--count", &count, "--interval-ms", "2", "--memory", "2048", "--give-up-oldest"];
    let mut client = Client::over_tcp(&gateway.tcp_address(), &arguments);
    // By then all are taken, and most given up.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    gateway.start().await;
    client.succeeds().await;
    let log = client.log();
    let given_up = log.lines().find_map(|line| line.strip_prefix("client: given up: "));
    let given_up: u64 = given_up.expect("it says so").parse().expect("a number");
    assert!(given_up > COUNT / 2, "{log}");
    subscriber.heard((COUNT - given_up) as usize).await;
    assert_delivered(&subscriber, "mc", given_up + 1..=COUNT);
}

/// The gateway's side of a link, played by the test.
struct Fake<S> {
    stream: S,
    decoder: Decoder,
    heard: VecDeque<DeviceMessage>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Fake<S> {
    fn over(stream: S) -> Fake<S> {
        let limits = Limits { max_body: 1024, require_checksum: true };
        Fake { stream, decoder: Decoder::new(limits, Recovery::Resync), heard: VecDeque::new() }
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
    Welcome { settled, time: 0, time_trusted: false, heartbeat_interval: 30, max_frame: 4096, window: 100 }
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
async fn the_client_proves_that_it_has_the_key() {
    let (listener, address) = listener().await;
    let mut client =
        Client::over_tcp(&address, &["--device", "mc", "--count", "3", "--interval-ms", "1", "--key", "plant-a"]);
    let mut fake = accepted(&listener).await;
    let hello = fake.hello().await;
    let nonce: Vec<u8> = (0..32).collect();
    fake.say(GatewayMessage::Challenge(Challenge { nonce: nonce.clone() })).await;
    let Some(DeviceMessage::Authenticate(answer)) = fake.next().await else { panic!("no Authenticate") };
    assert_eq!(answer.key, "plant-a");
    let signed = [b"tidegate-hmac-v1\0", &nonce[..], b"mc\0", &hello.session.to_be_bytes()].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
    hmac::verify(&key, &signed, &answer.proof).expect("the right proof");
    fake.welcome(0).await;
    let mut last = 0;
    while last < 3 {
        let readings = fake.readings().await;
        last = readings.seq + readings.samples.len() as u64 - 1;
    }
    client.succeeds().await;
}

#[tokio::test]
async fn a_client_that_is_not_let_in_waits_long_before_it_tries_again() {
    let (listener, address) = listener().await;
    let client = Client::over_tcp(&address, &["--device", "mc"]);
    let mut fake = accepted(&listener).await;
    fake.hello().await;
    fake.say(GatewayMessage::Challenge(Challenge { nonce: vec![1; 16] })).await;
    assert_eq!(fake.next().await, None, "it has no key");
    let mut fake = accepted(&listener).await;
    fake.hello().await;
    let text = "this key was revoked".to_owned();
    fake.say(GatewayMessage::Goodbye(Goodbye { reason: Reason::Unauthorized, text })).await;
    assert_eq!(fake.next().await, None);
    assert!(tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.is_err(), "{}", client.log());
    assert_eq!(client.said("client: the gateway said Goodbye: this key was revoked"), 1, "{}", client.log());
}

#[tokio::test]
async fn each_command_is_done_once_and_answered_whenever_it_comes() {
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
    fake.say(command("c-2", "set-interval", None)).await;
    let failed = fake.result().await;
    assert_eq!((failed.id.as_str(), failed.state), ("c-2", ResultState::Failed));
    fake.say(command("c-3", "explode", None)).await;
    assert_eq!(fake.result().await.state, ResultState::Rejected);
    // One that takes a while, repeated meanwhile; and one that is too large to be seen.
    fake.say(command("c-4", "blink", None)).await;
    fake.say(command("large", "explode", Some(&"x".repeat(2000)))).await;
    fake.say(command("c-4", "blink", None)).await;
    assert_eq!(fake.result().await, done("c-4", r#"{"blinks":3}"#));
    assert_eq!(client.said("client: command: blink"), 1, "{}", client.log());
    assert_eq!(client.said("client: a message is larger than TG_MAX_BODY"), 1, "{}", client.log());
    // In the next session it knows them still.
    drop(fake);
    let mut fake = accepted(&listener).await;
    fake.hello().await;
    fake.welcome(0).await;
    fake.say(command("c-1", "set-interval", Some(r#"{"ms":50}"#))).await;
    assert_eq!(fake.result().await, done("c-1", r#"{"before":100}"#));
    assert_eq!(client.said("client: command: set-interval"), 2, "{}", client.log());
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
    let log = client.log();
    let time = log.lines().find_map(|line| line.strip_prefix("client: the time is: "));
    let time: i64 = time.expect("it says so").parse().expect("a number");
    assert!((NOW..NOW + 1_000_000).contains(&time), "{time}");
    // Asked whether it is still there, it answers at once.
    let asked = Instant::now();
    fake.say(GatewayMessage::HeartbeatReply(HeartbeatReply { time: NOW, time_trusted: true })).await;
    heard(&mut fake).await;
    assert!(asked.elapsed() < Duration::from_millis(600), "{:?}", asked.elapsed());
    // It leaves a gateway that is silent.
    while fake.next().await.is_some() {}
    assert_eq!(client.said("client: the gateway is silent"), 1, "{}", client.log());
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

/// On a serial line anything may come; the sanitizers watch.
#[tokio::test]
async fn no_garbage_confuses_the_client() {
    let line = Line::new().await;
    let port = tokio_serial::new(line.gateway_end().to_string_lossy(), 115_200).open_native_async();
    let mut fake = Fake::over(port.expect("the line's end"));
    let end = line.device_end().display().to_string();
    let mut client = Client::start(&["--serial", &end, "--device", "mc", "--count", "200", "--interval-ms", "1"]);
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
