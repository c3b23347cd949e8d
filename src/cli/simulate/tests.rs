//! The verb against a small gateway in this process.

use super::*;
use crate::wire::codec::{decode_device, encode_gateway};
use crate::wire::frame::{Decoder, Event, Format, Limits, Recovery, Version};
use crate::wire::message::{Ack, ChannelRef, DeviceMessage, GatewayMessage, Goodbye, Hello, Reason, Welcome};
use clap::Parser;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::ControlFlow;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(line: &str) -> Result<Args, clap::Error> {
    Cli::try_parse_from(["simulate"].into_iter().chain(line.split_whitespace())).map(|cli| cli.args)
}

/// How the gateway treats its connections.
#[derive(Debug, Clone, Copy, Default)]
struct Behaviour {
    /// The first connections that are refused as busy.
    refuse: u64,
    /// The first sessions that are cut at the tenth reading, unacknowledged.
    cut: u64,
    never_ack: bool,
    window: u32,
}

#[derive(Debug, Default)]
struct State {
    refused: u64,
    cut: u64,
    goodbyes: u64,
    devices: HashMap<String, Device>,
}

#[derive(Debug, Default)]
struct Device {
    session: u64,
    settled: u64,
    frames: u64,
    /// Most readings in one read.
    most_at_once: u64,
}

struct Gateway {
    address: String,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    async fn start(behaviour: Behaviour) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("tcp://{}", listener.local_addr().expect("it is bound"));
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, behaviour, shared.clone()));
            }
        });
        Gateway { address, state, task }
    }

    /// They arrive after the run has ended.
    async fn heard_goodbyes(&self, count: u64) {
        let heard = async {
            while self.state.lock().goodbyes < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), heard).await.expect("every device says goodbye");
    }

    async fn simulate(&self, line: &str) -> Report {
        let (_stop, stopped) = watch::channel(false);
        simulate(&args(&format!("{} {line}", self.address)).expect("valid arguments"), stopped).await.expect("it runs")
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, behaviour: Behaviour, state: Arc<Mutex<State>>) {
    let mut decoder = Decoder::new(Limits { max_body: 1024, require_checksum: true }, Recovery::Fail);
    let mut connection = Connection { behaviour, state, device: String::new(), readings: 0, open: true };
    let mut input = vec![0; 4096];
    let mut output = Vec::new();
    while let Ok(n @ 1..) = stream.read(&mut input).await {
        let before = connection.readings;
        decoder
            .push(&input[..n], &mut |event| {
                if let Event::Frame(frame) = event {
                    let message = decode_device(&frame).expect("a valid message");
                    connection.take(message, frame.format, &mut output);
                }
                ControlFlow::Continue(())
            })
            .expect("valid frames");
        let at_once = connection.readings - before;
        if let Some(device) = connection.state.lock().devices.get_mut(&connection.device) {
            device.most_at_once = device.most_at_once.max(at_once);
        }
        if stream.write_all(&output).await.is_err() || !connection.open {
            return;
        }
        output.clear();
    }
}

struct Connection {
    behaviour: Behaviour,
    state: Arc<Mutex<State>>,
    device: String,
    readings: u64,
    open: bool,
}

impl Connection {
    fn take(&mut self, message: DeviceMessage, format: Format, output: &mut Vec<u8>) {
        assert_eq!(format.version, Version::V2);
        let state = self.state.clone();
        let mut state = state.lock();
        let answer = match message {
            _ if !self.open => return,
            DeviceMessage::Hello(hello) => self.welcome(hello, &mut state),
            DeviceMessage::Readings(readings) => {
                let device = state.devices.get_mut(&self.device).expect("it was welcomed");
                device.frames += 1;
                self.readings += 1;
                let number = self.device.trim_start_matches("sim-").parse().expect("its number");
                let mut expected = values::sample(5, number, readings.seq);
                if format.encoding == BodyEncoding::Json {
                    for (slot, name) in expected.iter_mut().zip(values::channel_names()) {
                        slot.0 = ChannelRef::Name(name.into());
                    }
                }
                assert_eq!(readings.samples.len(), 1);
                assert_eq!(readings.samples[0].values, expected);
                if self.readings == 10 && state.cut < self.behaviour.cut {
                    state.cut += 1;
                    self.open = false;
                    return;
                }
                if self.behaviour.never_ack || self.behaviour.cut > state.cut {
                    return;
                }
                let device = state.devices.get_mut(&self.device).expect("it was welcomed");
                assert!(readings.seq <= device.settled + 1, "{} after {}", readings.seq, device.settled);
                device.settled = device.settled.max(readings.seq);
                GatewayMessage::Ack(Ack { seq: device.settled })
            }
            DeviceMessage::Goodbye(goodbye) => {
                assert_eq!(goodbye.reason, Reason::Normal);
                state.goodbyes += 1;
                return;
            }
            _ => return,
        };
        encode_gateway(&answer, format, output);
    }

    fn welcome(&mut self, hello: Hello, state: &mut State) -> GatewayMessage {
        if state.refused < self.behaviour.refuse {
            state.refused += 1;
            self.open = false;
            return GatewayMessage::Goodbye(Goodbye { reason: Reason::Busy, text: "too many connections".into() });
        }
        let device = state.devices.entry(hello.device.clone()).or_default();
        assert!(device.session == 0 || device.session == hello.session, "it changed its session");
        device.session = hello.session;
        self.device = hello.device;
        GatewayMessage::Welcome(Welcome {
            settled: device.settled,
            time: 0,
            time_trusted: true,
            heartbeat_interval: 30,
            max_frame: 1024,
            window: self.behaviour.window,
            session: None,
        })
    }
}

#[tokio::test]
async fn a_run_against_a_sound_gateway_ends_with_everything_acknowledged() {
    for encoding in ["postcard", "json"] {
        let gateway = Gateway::start(Behaviour { window: 64, ..Behaviour::default() }).await;
        let line = format!("--devices 7 --rate max --readings 1000 --burst 16 --seed 5 --encoding {encoding}");
        let report = gateway.simulate(&line).await;
        assert!(report.complete, "{report}");
        assert_eq!((report.sent, report.acked, report.resent), (1_000, 1_000, 0));
        assert_eq!((report.devices, report.connected, report.refused, report.disconnected), (7, 7, 0, 0));
        assert!(report.ack_ms.is_some_and(|ms| ms.p50 > 0.0 && ms.p50 <= ms.p999 && ms.p999 <= ms.max));
        gateway.heard_goodbyes(7).await;
        let state = gateway.state.lock();
        let mut settled: Vec<u64> = state.devices.values().map(|device| device.settled).collect();
        settled.sort_unstable();
        assert_eq!(settled, [142, 143, 143, 143, 143, 143, 143]);
        assert!(state.devices.values().all(|device| device.most_at_once >= 16), "{state:?}");
    }
}

#[tokio::test]
async fn cut_connections_and_refusals_are_counted_and_made_good() {
    let gateway = Gateway::start(Behaviour { refuse: 2, cut: 3, window: 20, ..Behaviour::default() }).await;
    let report = gateway.simulate("--devices 3 --rate 0 --readings 300 --seed 5").await;
    assert!(report.complete, "{report}");
    assert_eq!((report.sent, report.acked, report.connected), (300, 300, 3));
    assert_eq!((report.refused, report.disconnected), (2, 3));
    assert!(report.resent >= 30, "{report}");
    assert!(report.trouble.is_some());
    let state = gateway.state.lock();
    let frames: u64 = state.devices.values().map(|device| device.frames).sum();
    assert!((300 + 30..=300 + report.resent).contains(&frames), "{frames} frames, {report}");
}

#[tokio::test]
async fn a_gateway_that_never_acknowledges_is_given_up() {
    let gateway = Gateway::start(Behaviour { never_ack: true, window: 5, ..Behaviour::default() }).await;
    let report = gateway.simulate("--devices 2 --rate max --readings 100 --seed 5 --give-up 2s").await;
    assert!(!report.complete, "{report}");
    assert_eq!((report.sent, report.acked, report.ack_ms), (10, 0, None));
    assert!(report.elapsed_s < 30.0, "{report}");
}

#[tokio::test]
async fn without_a_gateway_every_attempt_is_counted_as_refused() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = free.local_addr().expect("it is bound");
    drop(free);
    let line = format!("tcp://{address} --devices 1 --readings 1 --give-up 500ms");
    let (_stop, stopped) = watch::channel(false);
    let report = simulate(&args(&line).expect("valid arguments"), stopped).await.expect("it runs");
    assert!(!report.complete && report.refused >= 2, "{report}");
    assert!(report.trouble.is_some_and(|why| why.contains("refused")));
}

#[tokio::test]
async fn a_timed_run_takes_its_time_and_sends_at_its_rate() {
    let gateway = Gateway::start(Behaviour { window: 64, ..Behaviour::default() }).await;
    let report = gateway.simulate("--devices 4 --rate 200 --duration 500ms --seed 5").await;
    assert!(report.complete && report.acked == 100, "{report}");
    assert!((0.5..5.0).contains(&report.elapsed_s), "{report}");
    assert!(gateway.state.lock().devices.values().all(|device| device.settled == 25));
}

#[tokio::test]
async fn a_run_that_is_stopped_reports_what_was_done_so_far() {
    let gateway = Gateway::start(Behaviour { window: 64, ..Behaviour::default() }).await;
    let (stop, stopped) = watch::channel(false);
    let args = args(&format!("{} --devices 2 --rate 100 --duration 1h --seed 5", gateway.address)).expect("valid");
    let run = tokio::spawn(async move { simulate(&args, stopped).await });
    while gateway.state.lock().devices.values().filter(|device| device.settled > 3).count() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send_replace(true);
    let report = run.await.expect("no panic").expect("it runs");
    // On a slow machine many may be in flight.
    assert!(report.acked >= 8 && report.sent >= report.acked, "{report}");
    assert_eq!(report.complete, report.acked == report.sent);
}

#[tokio::test]
async fn a_client_can_talk_over_anything_that_reads_and_writes() {
    let args = args("tcp://h:1 --devices 1 --rate max --readings 50 --seed 5").expect("valid arguments");
    let mut client = Client::new(identity(&args, 1, 9, None).expect("a valid id"), pace(&args, 1), timeouts(&args));
    let (_stop, stop) = watch::channel(false);
    let latencies = Arc::new(Latencies::new().expect("the bounds are valid"));
    let around =
        RunContext { clock: Arc::new(SystemClock::new()), latencies, security: None, stop, told: Arc::default() };
    let (near, far) = tokio::io::duplex(100);
    let behaviour = Behaviour { window: 7, ..Behaviour::default() };
    let gateway = tokio::spawn(serve(far, behaviour, Arc::default()));
    let end = device::drive(near, &mut client, Recovery::Resync, &around).await;
    assert_eq!((end, client.acked()), (device::End::Finished, 50));
    gateway.await.expect("no panic");
}

#[test]
fn arguments_are_checked_before_anything_runs() {
    let valid = args("tcp://[::1]:7000 --rate 2.5 --duration 90s --give-up 5s").expect("valid arguments");
    assert_eq!((valid.gateway.as_str(), valid.rate), ("[::1]:7000", Rate::PerSecond(2.5)));
    assert_eq!((valid.duration, valid.burst, valid.encoding), (Some(Duration::from_secs(90)), 1, Encoding::Postcard));
    assert_eq!(args("tcp://h:1 --rate 0 --readings 1").map(|args| args.rate).ok(), Some(Rate::Max));
    for bad in [
        "tcp://h:1",
        "tcp://h:1 --readings 5 --duration 1s",
        "h:1 --readings 1",
        "tcp://h --readings 1",
        "tcp://:1 --readings 1",
        "tcp://h:99999 --readings 1",
        "tcp://h:1 --readings 1 --rate -1",
        "tcp://h:1 --readings 1 --rate inf",
        "tcp://h:1 --readings 1 --devices 0",
        "tcp://h:1 --readings 1 --burst 0",
        "tcp://h:1 --readings 1 --duration soon",
    ] {
        assert!(args(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn the_readings_are_shared_out_and_spread_in_time() {
    let args = args("tcp://h:1 --devices 3 --rate 30 --readings 8").expect("valid arguments");
    let shares = [1, 2, 3].map(|number| pace(&args, number).burst(0, Duration::ZERO));
    assert_eq!(shares, [1, 1, 1]);
    let due = [1, 2, 3].map(|number| (pace(&args, number).due(0) - APART * 3).as_millis());
    assert_eq!(due, [0, 33, 66]);
    let ends = [1, 2, 3].map(|number| (pace(&args, number).end() - APART * 3).as_millis());
    assert_eq!(ends, [200, 233, 166]);
    assert!(identity(&Args { prefix_id: "a b".into(), ..args }, 1, 0, None).is_err());
}
