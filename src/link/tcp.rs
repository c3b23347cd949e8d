//! Devices over TCP: one listener, one task a connection.

use super::connection::{self, Closed, FIRST_FORMAT};
use super::line::{Line, Shared};
use super::porch::{self, LEAVING, Place, Porch};
use crate::config;
use crate::device::Grants;
use crate::stop;
use crate::wire::codec::encode_gateway;
use crate::wire::frame::{Limits, Recovery};
use crate::wire::message::{GatewayMessage, Goodbye, Reason};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Largest frame body before a device is welcomed, in bytes.
const BEFORE_HELLO: usize = 256;
/// Connections that the system may hold before they are accepted: as many as may come at
/// once, but no more than can be seen to in a few seconds if all are silent.
const BACKLOG: std::ops::RangeInclusive<usize> = 128..=4096;
/// How long to wait when the system has no resources for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a closed connection is read on, so that its last words arrive: data
/// left unread would reset it.
const LINGER: Duration = Duration::from_millis(500);

/// Binds a listener for so many devices.
///
/// # Errors
/// As the operating system gives them: the address is in use, or not ours.
pub fn bind(listen: SocketAddr, max_connections: usize) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let backlog = max_connections.clamp(*BACKLOG.start(), *BACKLOG.end());
    socket.listen(u32::try_from(backlog).unwrap_or(u32::MAX))
}

/// Serves devices until `stop` turns true and the last of them is gone.
pub async fn serve(listener: TcpListener, config: config::Tcp, shared: Shared, mut stop: watch::Receiver<bool>) {
    let line = Arc::new(line(&config, shared));
    line.up(true);
    let porch = Porch::new(config.max_connections, line.waiting());
    // Those that go are still there for a while.
    let most = config.max_connections + 2 * porch::beyond(config.max_connections) + LEAVING;
    let mut told = false;
    let mut connections = JoinSet::new();
    let stop_one = stop.clone();
    loop {
        tokio::select! {
            biased;
            () = stop::requested(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &porch, &line), if connections.len() < most => match accepted {
                Ok((stream, from)) => {
                    told = false;
                    if !line.shared.pool.admits() && !porch.evict_one() {
                        line.shared.pool.refused("connection");
                        turn_away(&stream, from, &line, "memory");
                    } else if let Some(place) = porch.arrive(line.shared.clock.now().monotonic) {
                        connections.spawn(serve_one(stream, from, place, line.clone(), stop_one.clone()));
                    } else {
                        turn_away(&stream, from, &line, "too_many");
                    }
                }
                Err(why) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(link = %line.name, %why, "cannot accept connections; trying on");
                    }
                    // A file descriptor is what is missing most likely.
                    porch.evict_one();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    line.up(false);
    while connections.join_next().await.is_some() {}
}

/// Takes the next connection as soon as somebody may come. Cancel-safe.
async fn accept(listener: &TcpListener, porch: &Porch, line: &Line) -> io::Result<(TcpStream, SocketAddr)> {
    let full_for = || porch.full_for(line.shared.clock.now().monotonic, !line.shared.pool.admits());
    while let Some(patience) = full_for() {
        let _ = tokio::time::timeout(patience, porch.left()).await;
    }
    listener.accept().await
}

/// Serves one device as [`serve`] does, over a stream that no listener gave, until
/// either side ends it or `stop` turns true.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    from: &str,
    config: &config::Tcp,
    shared: Shared,
    stop: watch::Receiver<bool>,
) {
    connection::drive(stream, &line(config, shared), from, Place::granted(), stop).await;
}

fn line(config: &config::Tcp, shared: Shared) -> Line {
    let max_body = usize::try_from(config.max_frame.as_u64()).unwrap_or(usize::MAX);
    let silence = shared.devices.silence(config.heartbeat_interval, config.idle_timeout);
    Line {
        name: config.name.as_str().into(),
        grants: Grants {
            handshake_timeout: Some(config.handshake_timeout),
            heartbeat_interval: silence.heartbeat_interval,
            idle_after: silence.idle_after(),
            idle_timeout: silence.idle_timeout,
            window: shared.devices.window,
            max_frame: u32::try_from(max_body).unwrap_or(u32::MAX),
            restart: false,
            times: shared.time_rules(),
        },
        before_hello: Limits { max_body: BEFORE_HELLO, require_checksum: false },
        limits: Limits { max_body, require_checksum: false },
        recovery: Recovery::Fail,
        frame_timeout: config.frame_timeout,
        shared,
    }
}

async fn serve_one(
    mut stream: TcpStream,
    from: SocketAddr,
    place: Place,
    line: Arc<Line>,
    stop: watch::Receiver<bool>,
) {
    if let Err(why) = stream.set_nodelay(true) {
        tracing::debug!(%from, %why, "cannot disable Nagle's algorithm");
    }
    let porch = place.porch().clone();
    let closed = connection::drive(&mut stream, &line, &from.to_string(), place, stop).await;
    if let (Closed::Ended, Some(_leave)) = (closed, porch.linger()) {
        linger(stream).await;
    }
}

async fn linger(mut stream: TcpStream) {
    let _ = tokio::time::timeout(LINGER, async {
        if stream.shutdown().await.is_ok() {
            let mut rest = [0; 512];
            while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
    })
    .await;
}

/// Tells one connection too many so, as far as that goes without waiting.
fn turn_away(stream: &TcpStream, from: SocketAddr, line: &Line, reason: &'static str) {
    line.turned_away(reason);
    tracing::debug!(link = %line.name, %from, reason, "connection refused");
    let text = "as many devices are connected as this gateway has room for; try again later".into();
    let goodbye = GatewayMessage::Goodbye(Goodbye { reason: Reason::Busy, text });
    let mut bytes = Vec::new();
    encode_gateway(&goodbye, FIRST_FORMAT, &mut bytes);
    // It fits an empty send buffer; if not, the closed connection says enough.
    let _ = stream.try_write(&bytes);
}
