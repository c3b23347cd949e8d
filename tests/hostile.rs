//! Floods, crowds and connections that mean no good: other devices go on.
//!
//! By the ten thousand: `cargo test --release --test torture -- storm`, and `flood`.

use crate::support::crowd::{Crowd, Others};
use crate::support::device::{POSTCARD, START, Talk, hello};
use crate::support::gateway::{Gateway, figure};
use crate::support::watch::Watch;
use crate::support::{PATIENCE, eventually};
use std::io::Write;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tidegate::config::{Config, Tcp};
use tidegate::wire::codec::encode_device;
use tidegate::wire::message::{DeviceMessage, GatewayMessage, Heartbeat, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
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
    let mut talk = Talk::persistent(&address, "pump", 1, &AtomicU64::new(0)).await;
    talk.readings(1, 1, 5).await;
    talk.acked(5).await;
    let mut oldest = Talk::over(silent.remove(0), POSTCARD);
    assert_eq!(oldest.goodbye().await.reason, Reason::Busy);
    let evicted = gateway.figure("tidegate_connections_refused_total{link=\"tcp\",reason=\"evicted\"}").await;
    assert!(evicted >= 10.0, "{evicted}");
}

#[tokio::test]
async fn what_is_no_device_stands_in_the_log_with_where_it_came_from() {
    let gateway = offline("", "").started().await;
    let mut stream = TcpStream::connect(gateway.tcp_address()).await.expect("the gateway listens");
    let from = stream.local_addr().expect("an address").to_string();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it is taken");
    gateway.says("connection refused before a device was known").await;
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("before a device was known")).expect("the line");
    assert!(line.contains("link=tcp") && line.contains(&from) && line.contains("HTTP"), "{line}");
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
    let mut other = Talk::persistent(&address, "valve", 1, &AtomicU64::new(0)).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_devices_come_back_at_once_while_others_go_on() {
    const DEVICES: u64 = 400;
    const OTHERS: u64 = 20;
    const LIMIT_MIB: u64 = 64;
    let max = format!("max_connections = {}\n", DEVICES + OTHERS);
    let mut gateway = offline(&max, "[store]\nmax_pending = \"4MiB\"\ncommit_within = \"10ms\"\n");
    gateway.keys("[gateway]", &format!("memory_limit = \"{LIMIT_MIB}MiB\"\n"));
    let mut gateway = gateway.started().await;
    let watch = Watch::start(gateway.process().id());
    let address = gateway.tcp_address();
    let others = Others::start(&address, OTHERS);
    let mut crowd = Crowd::connect(&address, 0..DEVICES, 5).await;

    // When all of them lose their connections and come back, until the others had time
    // for some readings; with and without the gateway noticing that they were gone.
    let before = others.acked();
    let gained = async || before.iter().zip(others.acked()).map(|(before, now)| now - before).collect::<Vec<_>>();
    for round in 0.. {
        let back = crowd.comes_back(round % 2 == 1).await;
        assert_eq!(back.times.len() as u64, DEVICES);
        if gained().await.into_iter().max() >= Some(10) {
            break;
        }
    }

    // Then each of the others had its share, and all are there.
    let gained = gained().await;
    assert!(gained.iter().min() >= Some(&5), "some were acknowledged too seldom: {gained:?}");
    println!("the slowest Ack to one of the others took {:?}", others.latencies().last());
    others.stop().await;
    gateway.figure_becomes("tidegate_devices_connected", |n| n == DEVICES as f64).await;
    gateway.figure_becomes("tidegate_connections_waiting{link=\"tcp\"}", |n| n == 0.0).await;
    watch.bounded(LIMIT_MIB, "all devices came back");
}

/// On one thread, where what is ready runs in order.
#[tokio::test]
async fn a_crowd_does_not_keep_those_who_are_there_from_being_heard() {
    const CROWD: usize = 300;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut config = Config { tcp: vec![Tcp { listen: any, ..Tcp::default() }], ..Config::default() };
    config.store.directory = directory.path().join("log");
    config.http.listen = any;
    let gateway = tidegate::gateway::Gateway::start(config).await.expect("it starts");
    let address = gateway.tcp_addresses()[0].to_string();
    let http = gateway.http_address().expect("HTTP listens").to_string();
    let waiting = async |count: usize| {
        eventually("so many wait", async || {
            figure(&http, "tidegate_connections_waiting{link=\"tcp\"}").await == count as f64
        })
        .await;
    };
    // Given a device that has been there for a while, and a crowd that has not said Hello.
    let (mut talk, _) = Talk::welcomed(&address, "pump", 5).await;
    for seq in 1..=20 {
        talk.readings(1, seq, 1).await;
        talk.acked(seq).await;
    }
    let crowd: Vec<_> = (0..CROWD).map(|_| std::net::TcpStream::connect(&address).expect("it listens")).collect();
    waiting(CROWD).await;

    // When the crowd speaks all at once, and then the device.
    for (number, mut stream) in crowd.iter().enumerate() {
        let mut bytes = Vec::new();
        encode_device(&hello(&format!("crowd-{number}"), 1, 1), POSTCARD, &mut bytes);
        stream.write_all(&bytes).expect("a Hello fits");
        stream.set_nonblocking(true).expect("a socket option");
    }
    talk.say(&DeviceMessage::Heartbeat(Heartbeat { time: START })).await;
    assert!(matches!(talk.hear().await, Some(GatewayMessage::HeartbeatReply(_))));

    // Then it was answered before most of them.
    let welcomed = crowd.iter().filter(|stream| stream.peek(&mut [0]).is_ok()).count();
    assert!(welcomed < CROWD / 4, "{welcomed} of {CROWD} were heard first");
    waiting(0).await;
    gateway.stop().await;
}
