//! Devices over TCP: one listener, one task for each connection.

use super::context::{LinkContext, Shared};
use super::remote::RemoteInfo;
use super::session::{self, Closed, FIRST_FORMAT};
use crate::clock::patiently;
use crate::config;
use crate::device::auth::AuthError;
use crate::net::tls::{self, Secure, Tls};
use crate::net::{
    self, Acceptor, AdmissionError, AdmissionSlot, ListenerAdmission, Listening, hung_up, lingering_close, max_open,
};
use crate::stop;
use crate::wire::codec::encode_gateway;
use crate::wire::message::{GatewayMessage, Goodbye, Reason};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Largest frame body before a device is welcomed, in bytes.
const BEFORE_HELLO: usize = 256;

/// Serves devices, over TLS if `tls` is given, until `stop` turns true and the last connection has
/// ended.
pub async fn serve(
    listening: Listening,
    config: config::Tcp,
    tls: Option<Arc<Tls>>,
    shared: Shared,
    stop: watch::Receiver<bool>,
) {
    let (pool, clock) = (shared.pool.clone(), shared.clock.clone());
    let link = Arc::new(link_context(&config, shared));
    let listener = config.listener();
    link.guard(&listener);
    let admission = link.admission(&listener);
    let acceptor = Acceptor::new(link.name.clone(), listening, admission.slots().clone(), Some(pool), clock);
    let server = Server { link: link.clone(), admission, tls, stop: stop.clone() };
    let serve = |(stream, from), connections: &mut _| server.serve_or_refuse(stream, from, connections);
    net::serve(acceptor, max_open(config.max_connections), |up| link.up(up), serve, stop).await;
}

/// What the connections that a listener accepts are served with.
struct Server {
    link: Arc<LinkContext>,
    admission: ListenerAdmission,
    tls: Option<Arc<Tls>>,
    stop: watch::Receiver<bool>,
}

impl Server {
    /// Spawns the task that serves a new connection, or refuses the connection.
    fn serve_or_refuse(&self, stream: TcpStream, from: SocketAddr, connections: &mut JoinSet<()>) {
        let slots =
            self.admission.claim_address(from).and_then(|address_slot| Ok((address_slot, self.admission.claim()?)));
        let (address_slot, slot) = match slots {
            Ok(slots) => slots,
            Err(why) => return self.refuse(&stream, from, why),
        };
        let remote = RemoteInfo { address_slot, ..RemoteInfo::from(from) };
        let (link, stop) = (self.link.clone(), self.stop.clone());
        match self.tls.as_ref().map(|tls| tls.current(self.admission.now())) {
            None => drop(connections.spawn(serve_plain(stream, remote, slot, link, stop))),
            Some(Some(tls)) => drop(connections.spawn(serve_secure(stream, remote, slot, link, tls, stop))),
            Some(None) => self.refuse(&stream, from, AdmissionError::NoCertificate),
        }
    }

    /// Sends a Goodbye that says why the connection is refused, as far as that needs no waiting.
    fn refuse(&self, stream: &TcpStream, from: SocketAddr, why: AdmissionError) {
        self.admission.count_refused(from, why);
        if self.tls.is_some() {
            return; // a client that expects TLS understands nothing else
        }
        let reason = match why {
            AdmissionError::LockedOut => Reason::Unauthorized,
            AdmissionError::AddressLimit
            | AdmissionError::ConnectionLimit
            | AdmissionError::OutOfMemory
            | AdmissionError::NoCertificate => Reason::Busy,
        };
        let goodbye = GatewayMessage::Goodbye(Goodbye { reason, text: why.to_string() });
        let mut bytes = Vec::new();
        encode_gateway(&goodbye, FIRST_FORMAT, &mut bytes);
        // It fits an empty send buffer; if not, the closed connection says enough.
        let _ = stream.try_write(&bytes);
    }
}

/// Serves one device as [`serve`] does, over a stream that no listener accepted, until either side
/// closes it or `stop` turns true.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    from: &str,
    config: &config::Tcp,
    shared: Shared,
    stop: watch::Receiver<bool>,
) {
    super::serve_stream(stream, from, &link_context(config, shared), stop).await;
}

fn link_context(config: &config::Tcp, shared: Shared) -> LinkContext {
    LinkContext::of_listener(config.name.as_str().into(), &config.listener(), BEFORE_HELLO, false, shared)
}

async fn serve_plain(
    mut stream: TcpStream,
    remote: RemoteInfo,
    slot: AdmissionSlot,
    link: Arc<LinkContext>,
    stop: watch::Receiver<bool>,
) {
    let admission = slot.admission().clone();
    set_nodelay(&stream, &remote);
    let closed = session::drive(&mut stream, hung_up, &link, remote, slot, stop).await;
    if let Closed::Ended = closed {
        lingering_close(&admission, stream, |stream| stream).await;
    }
}

/// As [`serve_plain`], behind a TLS handshake.
async fn serve_secure(
    stream: TcpStream,
    remote: RemoteInfo,
    mut slot: AdmissionSlot,
    link: Arc<LinkContext>,
    tls: Arc<ServerConfig>,
    mut stop: watch::Receiver<bool>,
) {
    let admission = slot.admission().clone();
    set_nodelay(&stream, &remote);
    let left = (slot.since() + link.handshake_timeout()).saturating_sub(link.shared.clock.now().monotonic);
    let evicted = slot.evicted();
    let turn = async {
        slot.ready();
        slot.acquire_turn().await;
        slot.release();
    };
    let handshake = tls::accept(stream, tls, &link.shared.pool, turn);
    let handshake = tokio::select! {
        biased;
        () = stop::requested(&mut stop) => return,
        () = evicted => return link.count_refused("evicted"),
        done = patiently(&*link.shared.clock, left, handshake) => done.unwrap_or(Err(io::ErrorKind::TimedOut.into())),
    };
    let mut stream = match handshake {
        Ok(stream) => stream,
        Err(why) => return handshake_failed(&link, &remote, &why),
    };
    let remote = RemoteInfo { since: Some(slot.since()), certificate: stream.certificate(), ..remote };
    let closed = session::drive(&mut stream, Secure::hung_up, &link, remote, slot, stop).await;
    if let Closed::Ended = closed {
        lingering_close(&admission, stream, |stream| stream).await;
    }
}

fn handshake_failed(link: &LinkContext, remote: &RemoteInfo, why: &io::Error) {
    link.count_refused("tls");
    let from = &remote.name;
    match tls::explain(why) {
        Some(why) => tracing::info!(link = %link.name, from, why, "no TLS connection came about"),
        None => tracing::debug!(link = %link.name, from, %why, "no TLS connection came about"),
    }
    if let (true, Some(address)) = (tls::is_for_certificate(why), remote.address) {
        let now = link.shared.clock.now().monotonic;
        link.failed(&address.into(), AuthError::Certificate, from, now);
    }
}

fn set_nodelay(stream: &TcpStream, remote: &RemoteInfo) {
    if let Err(why) = stream.set_nodelay(true) {
        tracing::debug!(from = remote.name, %why, "cannot disable Nagle's algorithm");
    }
}
