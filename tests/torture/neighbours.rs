//! Loud devices send as fast as they may. What do calm ones beside them notice, and do the
//! loud ones have equal shares?
//!
//! The gateway, the loud and the calm are processes of their own.

use crate::load::Load;
use crate::quantile;
use crate::support::broker::Broker;
use crate::support::device::{POSTCARD, START, hello};
use crate::support::gateway::Gateway;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate::model::Value;
use tidegate::wire::codec::{decode_gateway, encode_device};
use tidegate::wire::frame::{Decoder, Event, Limits, MAX_BODY, Recovery};
use tidegate::wire::message::{ChannelRef, DeviceMessage, GatewayMessage, Readings, Sample};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

#[derive(clap::Args)]
pub struct Args {
    /// Devices that send as fast as they may, 16 frames in a write
    #[arg(long, default_value_t = 400)]
    loud: u64,
    /// Devices that send a reading a second
    #[arg(long, default_value_t = 100)]
    calm: u64,
    /// How long, in seconds
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Over WebSocket instead of TCP
    #[arg(long)]
    websocket: bool,
    /// Without a broker
    #[arg(long)]
    offline: bool,
    /// Without the limit on messages a second
    #[arg(long)]
    unlimited: bool,
    /// The binary of another version of tidegate, to compare with
    #[arg(long)]
    gateway: Option<String>,
}

/// Frames, of one reading each, in one write of a loud device.
const BURST: u64 = 16;
/// Readings that a loud device has on the way.
const WINDOW: u64 = 4096;
/// From the first loud reading to the first calm one: the log is full by then.
const QUIET: Duration = Duration::from_secs(2);
/// What fair shares come to: the slowest of a hundred Acks; beside that, the least served gets half
/// the mean.
const ONLINE: Duration = Duration::from_millis(50);
const OFFLINE: Duration = Duration::from_millis(300);
/// Connections that are opened at a time.
const AT_A_TIME: usize = 50;

/// Runs it and reports; false if somebody had less than a fair share.
pub async fn run(args: &Args) -> bool {
    let broker = match args.offline {
        true => None,
        false => Some(Broker::mosquitto("allow_anonymous true").await),
    };
    let url = broker.as_ref().map_or_else(|| "mqtt://127.0.0.1:1".to_owned(), Broker::url);
    let sections = if args.unlimited { "[devices]\nmax_message_rate = 0\n" } else { "" };
    let mut gateway = Gateway::with_broker(&url, sections);
    gateway.keys("[http]", "devices = true\n");
    let wrapper = args.gateway.as_ref().map(|other| {
        let script = format!("exec {other} \"$@\"");
        ["sh".to_owned(), "-c".to_owned(), script]
    });
    gateway.launch_under(wrapper.as_ref().map_or(&[], |wrapper| wrapper), &[]);
    let link = if args.websocket { "websocket" } else { "tcp" };
    gateway.figure_becomes(&format!("tidegate_link_up{{link=\"{link}\"}}"), |up| up == 1.0).await;
    if broker.is_some() {
        gateway.connected().await;
    }
    let address = if args.websocket { gateway.http_address() } else { gateway.tcp_address() };
    let role = |name: &str, count: u64| {
        let (websocket, count, seconds) = (args.websocket.to_string(), count.to_string(), args.seconds.to_string());
        Load::start(0, &[name, &address, &websocket, &count, &seconds])
    };
    let (mut loud, mut calm) = (role("loud", args.loud), role("calm", args.calm));
    loud.line();
    calm.line();
    let cpu = crate::storm::cpu(gateway.process().id());
    loud.begin();
    tokio::time::sleep(QUIET).await;
    calm.begin();
    let both = tokio::task::spawn_blocking(move || (loud.numbers(), calm.numbers()));
    let (served, latencies) = both.await.expect("both loads end");
    let cpu = crate::storm::cpu(gateway.process().id()) - cpu;
    let latencies: Vec<_> = latencies.into_iter().map(Duration::from_micros).collect();
    report(args, &latencies, &served, cpu)
}

fn report(args: &Args, latencies: &[Duration], served: &[u64], cpu: Duration) -> bool {
    let how = |yes: bool, one: &'static str, other: &'static str| if yes { one } else { other };
    println!(
        "{} loud, {} calm, {}, {}, {}",
        args.loud,
        args.calm,
        how(args.websocket, "WebSocket", "TCP"),
        how(args.offline, "offline", "online"),
        how(args.unlimited, "without the message limit", "default limits"),
    );
    let ms = |share| quantile(latencies, share).as_secs_f64() * 1e3;
    println!("  calm: Ack p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {}", ms(0.5), ms(0.99), ms(1.0), latencies.len());
    let total: u64 = served.iter().sum();
    let mean = total as f64 / served.len().max(1) as f64;
    let (least, most) = (served.first().copied().unwrap_or(0), served.last().copied().unwrap_or(0));
    let fair = least as f64 / mean.max(1.0);
    println!(
        "  loud: least {least}, mean {mean:.0}, most {most} readings acknowledged; the least is {fair:.2} of the mean"
    );
    let second = total as f64 / (QUIET.as_secs() + args.seconds) as f64;
    println!("  {second:.0} readings/s, {:.2} us of CPU a reading", cpu.as_secs_f64() * 1e6 / total.max(1) as f64);
    let within = if args.offline { OFFLINE } else { ONLINE };
    let good = quantile(latencies, 0.99) < within && (fair >= 0.5 || served.is_empty());
    if !good {
        println!("  MISSED: p99 under {} ms, and half the mean", within.as_millis());
    }
    good
}

/// Loud devices, until it is over. Prints how many readings of each were acknowledged, the
/// least first.
pub async fn loud(address: &str, websocket: bool, count: u64, seconds: u64) {
    let lines = connect(address, websocket, count, "loud").await;
    crate::load::ready().await;
    let until = Instant::now() + QUIET + Duration::from_secs(seconds);
    let mut devices = JoinSet::new();
    for (number, (reader, writer)) in lines.into_iter().enumerate() {
        devices.spawn(async move {
            let acked = Arc::new((AtomicU64::new(0), Notify::new()));
            let _ = timeout_at(until.into(), async {
                tokio::join!(hear(reader, &acked), shout(writer, number as u64, &acked));
            })
            .await;
            acked.0.load(Ordering::Relaxed)
        });
    }
    let mut served = devices.join_all().await;
    served.sort_unstable();
    crate::load::tell_numbers(&served);
}

async fn hear(mut reader: Reader, acked: &(AtomicU64, Notify)) {
    while let Some(seq) = reader.acked().await {
        acked.0.fetch_max(seq, Ordering::Relaxed);
        acked.1.notify_one();
    }
}

async fn shout(mut writer: Writer, number: u64, acked: &(AtomicU64, Notify)) {
    let mut sent = 0;
    loop {
        while sent + BURST > acked.0.load(Ordering::Relaxed) + WINDOW {
            acked.1.notified().await;
        }
        let mut bytes = Vec::new();
        (sent + 1..=sent + BURST).for_each(|seq| encode_device(&reading(number, seq), POSTCARD, &mut bytes));
        sent += BURST;
        if !writer.send(bytes).await {
            return;
        }
    }
}

/// Calm devices, until it is over. Prints how long each Ack took, from when its reading was
/// due, in microseconds, the shortest first; one that did not come by the end counts as if it
/// came then.
pub async fn calm(address: &str, websocket: bool, count: u64, seconds: u64) {
    let lines = connect(address, websocket, count, "calm").await;
    crate::load::ready().await;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let mut devices = JoinSet::new();
    for (number, (mut reader, mut writer)) in lines.into_iter().enumerate() {
        let latencies = latencies.clone();
        devices.spawn(async move {
            let every = Duration::from_secs(1);
            let phase = every * number as u32 / count as u32;
            let mut tick = interval_at((began + phase).into(), every);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for seq in 1.. {
                let due = tick.tick().await;
                if due >= until.into() {
                    return;
                }
                let mut bytes = Vec::new();
                encode_device(&reading(number as u64, seq), POSTCARD, &mut bytes);
                let acked = async {
                    let sent = writer.send(bytes).await;
                    while sent && reader.acked().await.is_some_and(|acked| acked < seq) {}
                };
                let _ = timeout_at(until.into(), acked).await;
                latencies.lock().push(due.elapsed().as_micros() as u64);
            }
        });
    }
    devices.join_all().await;
    let mut latencies = std::mem::take(&mut *latencies.lock());
    latencies.sort_unstable();
    crate::load::tell_numbers(&latencies);
}

/// A reading of four floats.
fn reading(number: u64, seq: u64) -> DeviceMessage {
    let value =
        |i: u16| (ChannelRef::Name(["a", "b", "c", "d"][usize::from(i)].into()), Value::Float((number + seq) as f64));
    let sample = Sample { time: START + seq as i64 * 1000, values: (0..4).map(value).collect() };
    DeviceMessage::Readings(Readings { seq, sub: None, samples: vec![sample] })
}

/// Devices that are welcomed.
async fn connect(address: &str, websocket: bool, count: u64, name: &'static str) -> Vec<(Reader, Writer)> {
    let few = Arc::new(Semaphore::new(AT_A_TIME));
    let mut connecting = JoinSet::new();
    for number in 0..count {
        let (address, few) = (address.to_owned(), few.clone());
        connecting.spawn(async move {
            let _turn = few.acquire().await.expect("it is not closed");
            let stream = TcpStream::connect(&address).await.expect("the gateway listens");
            stream.set_nodelay(true).expect("a socket option");
            let (mut reader, mut writer) = halves(stream, &address, websocket).await;
            let mut bytes = Vec::new();
            encode_device(&hello(&format!("{name}-{number}"), 1, 1), POSTCARD, &mut bytes);
            assert!(writer.send(bytes).await, "a Hello");
            assert_eq!(reader.acked().await, Some(0), "a Welcome");
            (reader, writer)
        });
    }
    connecting.join_all().await
}

enum Way {
    Tcp(OwnedReadHalf),
    Web(SplitStream<WebSocketStream<TcpStream>>),
}

struct Reader {
    way: Way,
    decoder: Decoder,
}

enum Writer {
    Tcp(OwnedWriteHalf),
    Web(SplitSink<WebSocketStream<TcpStream>, Message>),
}

async fn halves(stream: TcpStream, address: &str, websocket: bool) -> (Reader, Writer) {
    let (way, writer) = if websocket {
        let url = format!("ws://{address}/ws/device");
        let (web, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
        let (sink, stream) = web.split();
        (Way::Web(stream), Writer::Web(sink))
    } else {
        let (reader, writer) = stream.into_split();
        (Way::Tcp(reader), Writer::Tcp(writer))
    };
    let limits = Limits { max_body: MAX_BODY, require_checksum: false };
    (Reader { way, decoder: Decoder::new(limits, Recovery::Fail) }, writer)
}

impl Reader {
    /// What is settled, by the next Acks or a Welcome; `None` at the end.
    async fn acked(&mut self) -> Option<u64> {
        let mut acked = None;
        while acked.is_none() {
            let bytes = match &mut self.way {
                Way::Tcp(reader) => {
                    let mut bytes = vec![0; 4096];
                    let read = reader.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
                    bytes.truncate(read);
                    bytes
                }
                Way::Web(stream) => stream.next().await?.ok()?.into_data().to_vec(),
            };
            let mut take = |event: Event<'_>| {
                if let Event::Frame(frame) = event {
                    match decode_gateway(&frame).expect("a message") {
                        GatewayMessage::Ack(ack) => acked = Some(ack.seq),
                        GatewayMessage::Welcome(welcome) => acked = Some(welcome.settled),
                        _ => {}
                    }
                }
                ControlFlow::Continue(())
            };
            self.decoder.push(&bytes, &mut take).expect("valid frames");
        }
        acked
    }
}

impl Writer {
    /// False if the connection is over.
    async fn send(&mut self, bytes: Vec<u8>) -> bool {
        match self {
            Writer::Tcp(writer) => writer.write_all(&bytes).await.is_ok(),
            Writer::Web(sink) => sink.send(Message::Binary(bytes.into())).await.is_ok(),
        }
    }
}
