//! What brokers and the way to them do, one fault after the other, all gateways and versions at
//! once: nothing of it takes the processor.

use super::subject::{DELIVERED, Subject};
use super::{VERSIONS, name, told};
use crate::support::script::{Manners, Script};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinSet, LocalSet};

/// What goes wrong; how is told in `stage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ConfirmsNothing,
    ForgetsOne,
    StopsReading,
    AnswersAfter12s,
    FirstAddressIsDead,
    OversizedCommand,
    DeniesATopic,
    DiscardsOver100ASecond,
}

const ALL: [Fault; 8] = [
    Fault::ConfirmsNothing,
    Fault::ForgetsOne,
    Fault::StopsReading,
    Fault::AnswersAfter12s,
    Fault::FirstAddressIsDead,
    Fault::OversizedCommand,
    Fault::DeniesATopic,
    Fault::DiscardsOver100ASecond,
];

/// Has every gateway meet every fault, and tells how long it took until its readings were there.
pub async fn run(gateways: &[PathBuf], time: Duration) {
    let mut lines = LocalSet::new().run_until(all(gateways, time)).await;
    lines.sort();
    lines.iter().for_each(|line| println!("{line}"));
}

async fn all(gateways: &[PathBuf], time: Duration) -> Vec<String> {
    let mut running = JoinSet::new();
    for fault in ALL {
        for gateway in gateways {
            for version in VERSIONS {
                let gateway = gateway.clone();
                running.spawn_local(async move { meet(fault, &gateway, version, time).await });
            }
        }
    }
    running.join_all().await
}

/// Meets one fault; what came of it.
async fn meet(fault: Fault, gateway: &Path, version: &str, time: Duration) -> String {
    let good = Manners { v5: true, ..Manners::default() };
    let (mut keys, mut hosts, mut readings) = (String::new(), String::new(), 500);
    let mut scripts = Vec::new();
    let mut relays = JoinSet::new();
    let mut urls = Vec::new();
    match fault {
        // The second broker is fine.
        Fault::ConfirmsNothing => {
            scripts.push(Script::start(Manners { silent_after: Some(1), ..good.clone() }).await);
            scripts.push(Script::start(good).await);
        }
        Fault::ForgetsOne => scripts.push(Script::start(Manners { forgets: Some(10), ..good }).await),
        // The next connection is fine.
        Fault::StopsReading | Fault::AnswersAfter12s => {
            let script = Script::start(good).await;
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_recv_buffer_size(4096).expect("a socket option");
            socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
            let listener = socket.listen(8).expect("it listens");
            urls.push(format!("mqtt://{}", listener.local_addr().expect("an address")));
            let stops = fault == Fault::StopsReading;
            let late = Duration::from_secs(if stops { 0 } else { 12 });
            relays.spawn(relay(listener, script.port, stops, late));
            scripts.push(script);
            if stops {
                readings = 30_000;
            } else {
                (keys, readings) = ("connect_timeout = \"60s\"\nkeep_alive = \"60s\"\n".to_owned(), 5);
            }
        }
        Fault::FirstAddressIsDead => {
            // glibc puts the address first that is its own source.
            let script = Script::start(good).await;
            let good = TcpListener::bind("127.0.0.2:0").await.expect("a port");
            let port = good.local_addr().expect("an address").port();
            relays.spawn(relay(good, script.port, false, Duration::ZERO));
            relays.spawn(black_hole(port));
            hosts = "127.0.0.1 broker.test\n127.0.0.2 broker.test\n127.0.0.1 localhost\n".into();
            urls.push(format!("mqtt://broker.test:{port}"));
            scripts.push(script);
        }
        Fault::OversizedCommand => {
            let sends = oversized(version == "5");
            scripts.push(Script::start(Manners { sends, ..good }).await);
        }
        Fault::DeniesATopic => {
            keys = "topics = \"device\"\n".into();
            let denied: Option<fn(&str) -> bool> = Some(|topic| topic.ends_with("/bad/readings"));
            scripts.push(Script::start(Manners { denied, ..good }).await);
        }
        Fault::DiscardsOver100ASecond => {
            scripts.push(Script::start(Manners { most_a_second: Some(100), ..good }).await);
            (keys, readings) = ("max_batch = \"1KiB\"\n".into(), 20_000);
        }
    }
    if urls.is_empty() {
        urls.extend(scripts.iter().map(Script::url));
    }
    if fault == Fault::ForgetsOne {
        keys = "max_batch = \"1KiB\"\n".into();
    }
    let subject = Subject::start_with_hosts(gateway, &urls, version, (&keys, "[store]\n"), &hosts).await;
    let began = Instant::now();
    if fault == Fault::DeniesATopic {
        subject.device("bad").await.send(5).await;
    }
    let mut device = subject.device("good").await;
    for _ in 0..readings / 500 {
        device.send(500).await;
    }
    if readings < 500 {
        device.send(readings).await;
    }
    let took = match fault {
        // A refused reading may count as delivered or not: what the broker took is counted.
        Fault::DeniesATopic => until(time, async || good_ones(&scripts[0]) >= readings as usize).await,
        _ => subject.delivers(readings as f64, time).await,
    };
    let took = took.map(|_| began.elapsed());
    let came = match fault {
        Fault::DeniesATopic => good_ones(&scripts[0]) as f64,
        _ => subject.figure(DELIVERED).await,
    };
    let connections: usize = scripts.iter().map(|script| script.look(|seen| seen.connects.len())).sum();
    let rest = if took.is_none() { format!("; {came} of {readings} readings came") } else { String::new() };
    format!("{fault:?}: MQTT {version}, {}: {}, {connections} connections{rest}", name(gateway), told(took, time))
}

/// Waits until it is so; how long that took.
async fn until(time: Duration, mut done: impl AsyncFnMut() -> bool) -> Option<Duration> {
    let began = Instant::now();
    while !done().await {
        if began.elapsed() > time {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Some(began.elapsed())
}

/// Readings of the good device that the broker took, each once.
fn good_ones(script: &Script) -> usize {
    let payloads = script.look(|seen| {
        let good = seen.acked.iter().filter(|(topic, _)| topic.ends_with("/good/readings"));
        good.map(|(_, payload)| payload.clone()).collect::<Vec<_>>()
    });
    let readings = payloads.iter().flat_map(|payload| {
        tidegate::sink::encode::decode(payload).expect("a valid payload").readings.into_iter().filter_map(|r| r.origin)
    });
    readings.collect::<std::collections::BTreeSet<_>>().len()
}

/// A command of 300 KB with QoS 1.
fn oversized(v5: bool) -> Vec<u8> {
    let mut body = b"\x00\x13tidegate/gw/command\x00\x07".to_vec();
    if v5 {
        body.push(0);
    }
    body.resize(300_000, b'x');
    // 300,000 as a length of three bytes (MQTT 3.1.1, 2.2.3).
    [&[0x32, 0xe0, 0xa7, 0x12][..], &body].concat()
}

/// Takes connections and carries them to the broker on this port, whose answers come late. Of the
/// first one it reads no more after 64 KiB, if it `stops`.
async fn relay(listener: TcpListener, to: u16, stops: bool, late: Duration) {
    let mut connections = JoinSet::new();
    let mut is_first = true;
    while let Ok((near, _)) = listener.accept().await {
        let stops = std::mem::take(&mut is_first) && stops;
        let far = TcpStream::connect(("127.0.0.1", to)).await.expect("the broker listens");
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        connections.spawn(async move {
            tokio::select! {
                () = carry(near_in, far_out, if stops { 65_536 } else { usize::MAX }) => {}
                () = carry_late(far_in, near_out, late) => {}
            }
        });
    }
}

/// Reads no more, and does not end, after `most` bytes.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, most: usize) {
    let (mut bytes, mut carried) = ([0; 4096], 0);
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
        carried += read;
        if carried > most {
            std::future::pending::<()>().await;
        }
    }
}

async fn carry_late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, late: Duration) {
    let (later, mut due) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut bytes).await {
            if later.send((Instant::now() + late, bytes[..read].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

/// Listens at 127.0.0.1 and takes no connection, with no room for those that wait.
async fn black_hole(port: u16) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], port).into()).expect("the port is free there");
    let _listener = socket.listen(1).expect("it listens");
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        waiting.spawn(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    // Those that came in stay open; the others are never answered.
    let mut open = Vec::new();
    while let Some(outcome) = waiting.join_next().await {
        open.push(outcome);
    }
    std::future::pending::<()>().await;
}
