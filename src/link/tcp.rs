//! Devices over TCP: one listener, one task a connection.

use super::context::{LinkContext, Shared};
use super::reception::Reception;
use super::remote::RemoteInfo;
use super::session::{self, Closed, FIRST_FORMAT};
use crate::clock::patiently;
use crate::config;
use crate::device::auth::Fault;
use crate::net::tls::{self, Secure, Tls};
use crate::net::{AdmissionSlot, Listening, hung_up, max_open};
use crate::stop;
use crate::wire::codec::encode_gateway;
use crate::wire::message::{GatewayMessage, Goodbye, Reason};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Largest frame body before a device is welcomed, in bytes.
const BEFORE_HELLO: usize = 256;
/// How long to wait when the system has no resources for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a closed connection is read on, so that its last words arrive: data
/// left unread would reset it.
const LINGER: Duration = Duration::from_millis(500);

/// Serves devices, with TLS if there is any, until `stop` turns true and the last of them is
/// gone.
pub async fn serve(
    mut listening: Listening,
    config: config::Tcp,
    tls: Option<Arc<Tls>>,
    shared: Shared,
    mut stop: watch::Receiver<bool>,
) {
    let reception = Reception::new(&config.listener(), link_context(&config, shared));
    let acceptor = Acceptor { reception: reception.clone(), tls, stop: stop.clone() };
    let Reception { link, admission, .. } = &reception;
    link.up(false);
    tokio::select! {
        biased;
        () = stop::requested(&mut stop) => return,
        () = listening.bound() => link.up(true),
    }
    let most = max_open(config.max_connections);
    let mut told = false;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop::requested(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&mut listening, &reception), if connections.len() < most => match accepted {
                Ok((stream, from)) => {
                    told = false;
                    acceptor.serve(stream, from, &mut connections);
                }
                Err(why) => {
                    listening.failed(&why);
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(link = %link.name, %why, "cannot accept connections; trying on");
                    }
                    // A file descriptor is what is missing most likely.
                    admission.evict_oldest();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listening);
    link.up(false);
    while connections.join_next().await.is_some() {}
}

/// What becomes of the connections that a listener accepts.
struct Acceptor {
    reception: Reception,
    tls: Option<Arc<Tls>>,
    stop: watch::Receiver<bool>,
}

impl Acceptor {
    /// Has a new connection served, or turns it away.
    fn serve(&self, stream: TcpStream, from: SocketAddr, connections: &mut JoinSet<()>) {
        let admitted = self.reception.look_at(from).and_then(|address_slot| Ok((address_slot, self.reception.slot()?)));
        let (address_slot, slot) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => return self.turn_away(&stream, from, reason),
        };
        let remote = RemoteInfo { address_slot, ..RemoteInfo::from(from) };
        let (link, stop) = (self.reception.link.clone(), self.stop.clone());
        match self.tls.as_ref().map(|tls| tls.current(self.reception.now())) {
            None => drop(connections.spawn(serve_one(stream, remote, slot, link, stop))),
            Some(Some(tls)) => drop(connections.spawn(serve_secure(stream, remote, slot, link, tls, stop))),
            Some(None) => self.turn_away(&stream, from, "tls"),
        }
    }

    /// Tells one connection too many so, as far as that goes without waiting.
    fn turn_away(&self, stream: &TcpStream, from: SocketAddr, reason: &'static str) {
        self.reception.turned_away(from, reason);
        if self.tls.is_some() {
            return; // whoever expects TLS understands nothing but TLS
        }
        let (reason, text) = match reason {
            "locked_out" => (Reason::Unauthorized, "too many attempts failed; try again later"),
            _ => (Reason::Busy, "as many devices are connected as this gateway has room for; try again later"),
        };
        let goodbye = GatewayMessage::Goodbye(Goodbye { reason, text: text.into() });
        let mut bytes = Vec::new();
        encode_gateway(&goodbye, FIRST_FORMAT, &mut bytes);
        // It fits an empty send buffer; if not, the closed connection says enough.
        let _ = stream.try_write(&bytes);
    }
}

/// Takes the next connection as soon as somebody may come. Cancel-safe.
async fn accept(listening: &mut Listening, reception: &Reception) -> io::Result<(TcpStream, SocketAddr)> {
    reception.room().await;
    listening.accept().await
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
    session::drive(
        stream,
        |_| false,
        &link_context(config, shared),
        RemoteInfo::named(from),
        AdmissionSlot::exclusive(),
        stop,
    )
    .await;
}

fn link_context(config: &config::Tcp, shared: Shared) -> LinkContext {
    LinkContext::of_listener(config.name.as_str().into(), &config.listener(), BEFORE_HELLO, false, shared)
}

async fn serve_one(
    mut stream: TcpStream,
    remote: RemoteInfo,
    slot: AdmissionSlot,
    link: Arc<LinkContext>,
    stop: watch::Receiver<bool>,
) {
    let admission = slot.admission().clone();
    hasten(&stream, &remote);
    let closed = session::drive(&mut stream, hung_up, &link, remote, slot, stop).await;
    if let (Closed::Ended, Some(_leave)) = (closed, admission.try_linger()) {
        linger(stream).await;
    }
}

/// As [`serve_one`], for a connection whose first words are those of TLS.
async fn serve_secure(
    stream: TcpStream,
    remote: RemoteInfo,
    mut slot: AdmissionSlot,
    link: Arc<LinkContext>,
    tls: Arc<ServerConfig>,
    mut stop: watch::Receiver<bool>,
) {
    let admission = slot.admission().clone();
    hasten(&stream, &remote);
    let left = (slot.since() + link.handshake_timeout()).saturating_sub(link.shared.clock.now().monotonic);
    let evicted = slot.evicted();
    let turn = async {
        slot.ready();
        slot.acquire_turn().await;
        slot.release();
    };
    let handshake = tls::accept(stream, tls, &link.shared.pool, turn);
    let shaken = tokio::select! {
        biased;
        () = stop::requested(&mut stop) => return,
        () = evicted => return link.turned_away("evicted"),
        shaken = patiently(&*link.shared.clock, left, handshake) => shaken.unwrap_or(Err(io::ErrorKind::TimedOut.into())),
    };
    let mut stream = match shaken {
        Ok(stream) => stream,
        Err(why) => return not_shaken(&link, &remote, &why),
    };
    let remote = RemoteInfo { since: Some(slot.since()), certificate: stream.certificate(), ..remote };
    let closed = session::drive(&mut stream, Secure::hung_up, &link, remote, slot, stop).await;
    if let (Closed::Ended, Some(_leave)) = (closed, admission.try_linger()) {
        linger(stream).await;
    }
}

fn not_shaken(link: &LinkContext, remote: &RemoteInfo, why: &io::Error) {
    link.turned_away("tls");
    let from = &remote.name;
    match tls::explain(why) {
        Some(why) => tracing::info!(link = %link.name, from, why, "no TLS connection came about"),
        None => tracing::debug!(link = %link.name, from, %why, "no TLS connection came about"),
    }
    if let (true, Some(address)) = (tls::is_for_certificate(why), remote.address) {
        let now = link.shared.clock.now().monotonic;
        link.failed(&address.into(), Fault::Certificate, from, now);
    }
}

fn hasten(stream: &TcpStream, remote: &RemoteInfo) {
    if let Err(why) = stream.set_nodelay(true) {
        tracing::debug!(from = remote.name, %why, "cannot disable Nagle's algorithm");
    }
}

async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let _ = tokio::time::timeout(LINGER, async {
        if stream.shutdown().await.is_ok() {
            let mut rest = [0; 512];
            while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
    })
    .await;
}
