//! Between the gateway and a broker: sees every publish, and which of them the broker
//! confirmed. A broker that is killed forgets what it confirmed; this does not.

use crate::oracle::Oracle;
use crate::support::script::{self, field, packet};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Connections end, and new ones come to nothing.
    Cut,
    /// Connections stand, and nothing passes.
    Stalled,
}

pub struct Tap {
    port: u16,
    gate: watch::Sender<Gate>,
    _task: JoinSet<()>,
}

/// Publishes without a confirmation, of one connection: topic and payload.
type Outstanding = Mutex<HashMap<u16, (String, Vec<u8>)>>;

impl Tap {
    pub async fn start(broker: u16, sink: usize, oracle: Arc<Oracle>) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let gate = watch::Sender::new(Gate::Open);
        let mut task = JoinSet::new();
        task.spawn(serve(listener, broker, sink, oracle, gate.subscribe()));
        Tap { port, gate, _task: task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }
}

async fn serve(listener: TcpListener, broker: u16, sink: usize, oracle: Arc<Oracle>, gate: watch::Receiver<Gate>) {
    let mut connections = JoinSet::new();
    while let Ok((inside, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if *gate.borrow() == Gate::Cut {
            continue;
        }
        let (oracle, gate) = (oracle.clone(), gate.clone());
        connections.spawn(async move {
            let Ok(outside) = TcpStream::connect(("127.0.0.1", broker)).await else { return };
            for stream in [&inside, &outside] {
                stream.set_nodelay(true).expect("a socket option");
            }
            let mut cut = gate.clone();
            tokio::select! {
                _ = cut.wait_for(|gate| *gate == Gate::Cut) => {}
                () = carry(inside, outside, sink, &oracle, gate) => {}
            }
        });
    }
}

/// Ends when either side does; what the broker said by then counts.
async fn carry(inside: TcpStream, outside: TcpStream, sink: usize, oracle: &Oracle, gate: watch::Receiver<Gate>) {
    let outstanding = Outstanding::default();
    let (from_gateway, to_gateway) = inside.into_split();
    let (from_broker, to_broker) = outside.into_split();
    let up = async {
        let mut v5 = false;
        relay(from_gateway, to_broker, gate.clone(), |first, body| match first >> 4 {
            1 => v5 = body[field(body, 0).1] == 5,
            3 => publish(first, body, v5, &outstanding, oracle),
            _ => {}
        })
        .await;
        // Half closed, so that the last confirmations are seen.
    };
    let down = relay(from_broker, to_gateway, gate.clone(), |first, body| {
        if first >> 4 == 4 {
            let id = u16::from_be_bytes([body[0], body[1]]);
            let confirmed = outstanding.lock().expect("no panic there").remove(&id);
            let good = body.get(2).is_none_or(|reason| *reason < 0x80);
            if let (Some((topic, payload)), true) = (confirmed, good) {
                oracle.confirmed(sink, &topic, &payload);
            }
        }
    });
    tokio::join!(up, down);
}

fn publish(first: u8, body: &[u8], v5: bool, outstanding: &Outstanding, oracle: &Oracle) {
    let (topic, id, payload) = script::publish(body, v5);
    if first & 0x06 != 0x02 || topic.is_empty() {
        return oracle.wrong(format!("not published with QoS 1 and a topic: {topic:?}"));
    }
    outstanding.lock().expect("no panic there").insert(id, (topic, payload.to_vec()));
}

/// Carries packets until one side ends, and shows each before it goes on.
async fn relay<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: R,
    mut to: W,
    mut gate: watch::Receiver<Gate>,
    mut show: impl FnMut(u8, &[u8]),
) {
    let mut from = BufReader::new(from);
    while let Some((first, body)) = packet(&mut from).await {
        show(first, &body);
        if gate.wait_for(|gate| *gate != Gate::Stalled).await.is_err() {
            return;
        }
        let mut raw = vec![first];
        let mut length = body.len();
        loop {
            let more = length > 0x7f;
            raw.push((length & 0x7f) as u8 | if more { 0x80 } else { 0 });
            length >>= 7;
            if !more {
                break;
            }
        }
        raw.extend(body);
        if to.write_all(&raw).await.is_err() {
            // The other side may still have something to say to the oracle.
            continue;
        }
    }
    let _ = to.shutdown().await;
}
