//! Floods, crowds and connections that mean no good: other devices go on.
//!
//! TIDEGATE_TEST_STORM sets how many devices come back at once; 500 if not given.

use crate::support::PATIENCE;
use crate::support::device::{POSTCARD, Talk, hello};
use crate::support::gateway::Gateway;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate::wire::message::{GatewayMessage, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

fn offline(tcp: &str, sections: &str) -> Gateway {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", sections);
    gateway.keys("[[tcp]]", tcp);
    gateway
}

#[tokio::test]
async fn silent_connections_make_room_for_a_device_that_says_hello() {
    let gateway = offline("max_connections = 16\nhandshake_timeout = \"10m\"\n", "").started().await;
    let address = gateway.tcp_address();
    // Many more than there are places, all alive and silent.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(&address).await.expect("the gateway listens"));
    }
    let mut talk = welcomed(&address, "pump", &AtomicU64::new(0)).await;
    talk.readings(1, 1, 5).await;
    talk.acked(5).await;
    let mut oldest = Talk::over(silent.remove(0), POSTCARD);
    assert_eq!(oldest.goodbye().await.reason, Reason::Busy);
    let evicted = gateway.figure("tidegate_connections_refused_total{link=\"tcp\",reason=\"evicted\"}").await;
    assert!(evicted >= 10.0, "{evicted}");
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_not_waited_for_longer() {
    let gateway = offline("handshake_timeout = \"500ms\"\nframe_timeout = \"10s\"\n", "").started().await;
    let mut stream = TcpStream::connect(gateway.tcp_address()).await.expect("the gateway listens");
    let drip = async {
        let hello = [0x12, 0x34, 0x56, 0x7f, 1, 1, 0, 0, 0, 200];
        for byte in hello.into_iter().chain(std::iter::repeat(7)) {
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, drip).await.expect("the connection is closed");
    gateway.figure_becomes("tidegate_devices_connected", |n| n == 0.0).await;
}

#[tokio::test]
async fn garbage_from_many_ends_only_those_who_send_it() {
    let gateway = offline("", "").started().await;
    let address = gateway.tcp_address();
    let (mut talk, _) = Talk::welcomed(&address, "pump", 5).await;
    let mut vandals = JoinSet::new();
    for seed in 0..200 {
        let address = address.clone();
        vandals.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut stream = TcpStream::connect(address).await.expect("the gateway listens");
            let mut garbage = vec![0; random.usize(1..5000)];
            random.fill(&mut garbage);
            if seed % 2 == 0 {
                garbage.splice(0..0, [0x12, 0x34, 0x56, 0x7f]);
            }
            let _ = stream.write_all(&garbage).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }
    for seq in 1..=20 {
        talk.readings(1, seq, 1).await;
        talk.acked(seq).await;
    }
    tokio::time::timeout(PATIENCE, vandals.join_all()).await.expect("each is closed");
}

#[tokio::test]
async fn open_files_that_run_out_end_nothing_but_new_connections() {
    let mut gateway = offline("handshake_timeout = \"10m\"\n", "");
    gateway.open_files(260);
    let gateway = gateway.started().await;
    let address = gateway.tcp_address();
    let (mut talk, _) = Talk::welcomed(&address, "pump", 5).await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(&address).await.expect("the system takes it"));
    }
    for seq in 1..=20 {
        talk.readings(1, seq, 1).await;
        talk.acked(seq).await;
    }
    drop(silent);
    let mut other = welcomed(&address, "valve", &AtomicU64::new(0)).await;
    other.readings(2, 1, 1).await;
    other.acked(1).await;
}

#[tokio::test]
async fn idle_and_endless_requests_do_not_keep_the_metrics_from_others() {
    let gateway = offline("", "").started().await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(gateway.http_address()).await.expect("HTTP listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").await.expect("it takes a few bytes");
        idle.push(stream);
    }
    assert!(gateway.get("/health/live").await.is_some());
}

/// A device that sends one reading a while and notes how long its Ack takes.
async fn calm(address: String, number: u64, latencies: Arc<parking_lot::Mutex<Vec<Duration>>>, stop: Arc<AtomicBool>) {
    let (mut talk, _) = Talk::welcomed(&address, &format!("calm-{number}"), 1).await;
    for seq in 1.. {
        let sent = Instant::now();
        talk.readings(number, seq, 1).await;
        talk.acked(seq).await;
        latencies.lock().push(sent.elapsed());
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn quantiles(latencies: &parking_lot::Mutex<Vec<Duration>>) -> String {
    let mut sorted = std::mem::take(&mut *latencies.lock());
    sorted.sort_unstable();
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    let ms = |share| at(share).map_or(0.0, |latency: &Duration| latency.as_secs_f64() * 1000.0);
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {}", ms(0.5), ms(0.99), ms(1.0), sorted.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_devices_come_back_at_once_while_others_go_on() {
    let count: usize = std::env::var("TIDEGATE_TEST_STORM").map_or(500, |n| n.parse().expect("a number of devices"));
    let others = (count / 5).clamp(1, 100);
    let max = format!("max_connections = {}\n", count + others);
    let mut gateway = offline(&max, "[store]\ncommit_within = \"10ms\"\n").started().await;
    let pid = gateway.process().id();
    let address = gateway.tcp_address();

    // Given devices that go on all the time, and many that are connected.
    let (latencies, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let mut calms = JoinSet::new();
    for number in 1..=others as u64 {
        calms.spawn(calm(address.clone(), number, Arc::clone(&latencies), stop.clone()));
    }
    let refused = Arc::new(AtomicU64::new(0));
    let (cut, back) = (Arc::new(Barrier::new(count + 1)), Arc::new(Barrier::new(count + 1)));
    let mut crowd = JoinSet::new();
    for number in 0..count {
        let (address, refused, cut, back) = (address.clone(), refused.clone(), cut.clone(), back.clone());
        crowd.spawn(async move {
            let unused = AtomicU64::new(0);
            let device = format!("crowd-{number}");
            let first = welcomed(&address, &device, &unused).await;
            cut.wait().await;
            drop(first);
            let again = welcomed(&address, &device, &refused).await;
            back.wait().await;
            again
        });
    }
    gateway.figure_becomes("tidegate_devices_connected", |n| n == (count + others) as f64).await;
    latencies.lock().clear();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = quantiles(&latencies);

    // When all of them lose their connections and come back at once.
    let began = Instant::now();
    cut.wait().await;
    tokio::time::timeout(5 * PATIENCE, back.wait()).await.expect("all are back");
    let took = began.elapsed();
    let during = quantiles(&latencies);

    // Then all are there, and nobody else was disturbed.
    let again = tokio::time::timeout(PATIENCE, crowd.join_all()).await.expect("they stay");
    assert_eq!(again.len(), count);
    stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(PATIENCE, calms.join_all()).await.expect("every reading is acknowledged");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the gateway runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?").trim();
    println!(
        "{count} devices back in {:.2} s, {} attempts refused",
        took.as_secs_f64(),
        refused.load(Ordering::Relaxed)
    );
    println!("Ack of {others} others before: {before}\nAck of {others} others during: {during}\nRSS at most: {peak}");
}

/// Connects until it is welcomed, as a device should: with a random pause that grows.
async fn welcomed(address: &str, device: &str, refused: &AtomicU64) -> Talk<TcpStream> {
    for attempt in 0u32.. {
        if let Ok(stream) = TcpStream::connect(address).await {
            let mut talk = Talk::over(stream, POSTCARD);
            talk.say(&hello(device, 1, 1)).await;
            if let Some(GatewayMessage::Welcome(_)) = talk.hear().await {
                return talk;
            }
        }
        refused.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..50 << attempt.min(6)))).await;
    }
    unreachable!("it tries for ever")
}
