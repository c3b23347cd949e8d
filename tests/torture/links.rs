//! A backlog over a slow link, or to a broker that takes so many publishes in a second and
//! discards the rest: how much of what there is carries readings for the first time.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate::sink::encode::decode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

#[derive(clap::Args)]
pub struct Args {
    /// Bytes a second that the link carries each way, above TCP; 0 for as many as there are.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Milliseconds from one end of the link to the other.
    #[arg(long, default_value_t = 250)]
    delay: u64,
    /// Publishes a second that the broker takes; 0 for all.
    #[arg(long, default_value_t = 0)]
    limit: u32,
    /// Speak MQTT 5, which refuses what exceeds the limit instead of discarding it.
    #[arg(long)]
    v5: bool,
    /// Readings that wait.
    #[arg(long, default_value_t = 20_000)]
    backlog: u64,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Further keys of the sink, such as `encoding = "postcard"`.
    #[arg(long, default_value = "")]
    keys: String,
}

/// Reports; false if the connection was lost, or nothing came.
pub async fn run(args: &Args) -> bool {
    let most_a_second = usize::try_from(args.limit).ok().filter(|limit| *limit > 0);
    let script = Script::start(Manners { v5: args.v5, most_a_second, ..Manners::default() }).await;
    let (link, carried) = (TcpListener::bind("127.0.0.1:0").await.expect("a port"), Arc::new(AtomicU64::new(0)));
    let address = link.local_addr().expect("an address");
    let mut running = JoinSet::new();
    running.spawn(carry(link, script.port, args.rate, Duration::from_millis(args.delay), carried.clone()));
    let version = if args.v5 { "5" } else { "3.1.1" };
    let keys = format!("version = \"{version}\"\n{}\n", args.keys);
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &keys).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    for first in (1..=args.backlog).step_by(100) {
        talk.readings(1, first, 100.min(args.backlog + 1 - first)).await;
        talk.acked((first + 99).min(args.backlog)).await;
    }
    gateway.terminate().await;
    gateway.use_broker(&format!("mqtt://{address}"));
    gateway.start().await;
    let began = Instant::now();
    sleep(Duration::from_secs(args.seconds)).await;
    let took = began.elapsed().as_secs_f64();

    let (connects, discarded, payloads) = script.look(|seen| {
        let payloads = seen.acked.iter().filter(|(topic, _)| topic.ends_with("/readings"));
        (seen.connects.len(), seen.discarded, payloads.map(|(_, payload)| payload.clone()).collect::<Vec<_>>())
    });
    let (mut first, mut first_bytes, mut again) = (BTreeSet::new(), 0, 0);
    for payload in &payloads {
        let readings = decode(payload).expect("a valid payload").readings;
        let (count, before) = (readings.len(), first.len());
        first.extend(readings.into_iter().filter_map(|reading| reading.origin));
        let new = first.len() - before;
        again += count - new;
        first_bytes += payload.len() * new / count.max(1);
    }
    let carried = carried.load(Ordering::Relaxed);
    println!("connections     {connects}");
    println!("publishes       {} confirmed, {discarded} discarded or refused", payloads.len());
    println!("readings        {} for the first time, {again} again", first.len());
    println!("bytes           {carried} carried, {first_bytes} of them payload for the first time");
    if args.rate > 0 {
        println!("share           {:.1} % of the link", 100.0 * first_bytes as f64 / took / f64::from(args.rate));
    }
    if args.limit > 0 {
        println!("share           {:.1} % of the limit", 100.0 * payloads.len() as f64 / took / f64::from(args.limit));
    }
    gateway.kill();
    connects == 1 && !first.is_empty()
}

/// Takes connections and carries them to the broker on this port.
async fn carry(listener: TcpListener, port: u16, rate: u32, delay: Duration, carried: Arc<AtomicU64>) {
    let mut ways = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let far = TcpStream::connect(("127.0.0.1", port)).await.expect("the broker listens");
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        ways.spawn(one_way(near_in, far_out, rate, delay, carried.clone()));
        ways.spawn(one_way(far_in, near_out, rate, delay, Arc::default()));
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, rate: u32, delay: Duration, carried: Arc<AtomicU64>) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let arriving = async move {
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let leaving = async move {
        // A twentieth of a second at a time.
        let mut room = vec![0; if rate == 0 { 16_384 } else { usize::try_from(rate / 20).expect("small").max(1) }];
        let mut free = tokio::time::Instant::now();
        while let Ok(bytes @ 1..) = from.read(&mut room).await {
            carried.fetch_add(bytes as u64, Ordering::Relaxed);
            if rate > 0 {
                let takes = Duration::from_secs_f64(bytes as f64 / f64::from(rate));
                free = free.max(tokio::time::Instant::now()) + takes;
                sleep_until(free).await;
            }
            if sender.send((tokio::time::Instant::now() + delay, room[..bytes].to_vec())).is_err() {
                return;
            }
        }
    };
    tokio::join!(arriving, leaving);
}
