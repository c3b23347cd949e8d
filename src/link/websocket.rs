//! Devices over WebSocket: serves the connections that the HTTP server upgrades.

mod message_timeout;
mod messages;

use super::context::{LinkContext, Shared};
use super::remote::RemoteInfo;
use super::session::{self, Closed};
use crate::clock::patiently;
use crate::config;
use crate::net::{
    self, AddressSlot, AdmissionError, AdmissionSlot, ListenerAdmission, Source, lingering_close, max_open,
};
use messages::{Lengths, Messages};
use rustls::pki_types::CertificateDer;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Names the link in logs and metrics.
pub const NAME: &str = "websocket";
/// Largest frame body, and longest text message, before a device is welcomed, in bytes.
/// A Hello of 256 bytes in a frame takes somewhat more as text.
const BEFORE_HELLO: usize = 1024;
/// Upgraded connections that may wait to be served.
const QUEUE: usize = 64;
/// Requests that may wait for a slot. They occupy the HTTP server meanwhile, which others need.
const MAX_WAITING: usize = 8;

/// A connection that becomes a WebSocket when the HTTP server has answered.
pub type Upgrade = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// What a WebSocket runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether the far end sends no more, as far as that is known without reading.
    fn hung_up(&self) -> bool;
}

/// Hands upgraded connections to the [`WebSocketServer`]. Clones share it.
#[derive(Clone)]
pub struct UpgradeSender {
    admission: ListenerAdmission,
    handshake_timeout: Duration,
    waiting: Arc<Semaphore>,
    upgraded: mpsc::Sender<Upgraded>,
}

/// Serves upgraded connections.
pub struct WebSocketServer {
    link: Arc<LinkContext>,
    max_open: usize,
    upgraded: mpsc::Receiver<Upgraded>,
}

struct Upgraded {
    upgrade: Upgrade,
    remote: RemoteInfo,
    slot: AdmissionSlot,
}

/// What a request needs to become a WebSocket: its slots, and room in the queue.
pub struct UpgradePermit {
    slot: AdmissionSlot,
    address_slot: Option<AddressSlot>,
    /// When the request began, on the monotonic clock.
    since: Duration,
    queue: mpsc::OwnedPermit<Upgraded>,
}

/// Why a request cannot become a WebSocket now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    #[error("{0}")]
    NotAdmitted(AdmissionError),
    #[error("the gateway is stopping; try again later")]
    Stopping,
}

/// The server for the WebSockets of `config`, and what hands it connections.
pub fn open(config: &config::Http, shared: Shared) -> (UpgradeSender, WebSocketServer) {
    let config = config.listener();
    let link = Arc::new(LinkContext::of_listener(NAME.into(), &config, BEFORE_HELLO, true, shared));
    link.guard(&config);
    let (sender, upgraded) = mpsc::channel(QUEUE);
    let sender = UpgradeSender {
        admission: link.admission(&config),
        handshake_timeout: config.handshake_timeout,
        waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        upgraded: sender,
    };
    (sender, WebSocketServer { link, max_open: max_open(config.max_connections), upgraded })
}

impl UpgradeSender {
    /// Waits until a request from this address, which began `age` ago, may become a WebSocket.
    ///
    /// # Errors
    /// If it may not, or not before the handshake's timeout.
    pub async fn admit(&self, from: SocketAddr, age: Duration) -> Result<UpgradePermit, UpgradeError> {
        let admission = &self.admission;
        let since = admission.now().saturating_sub(age);
        let until = Instant::now() + self.handshake_timeout.saturating_sub(age);
        let refuse = |why| {
            admission.count_refused(from, why);
            UpgradeError::NotAdmitted(why)
        };
        let address_slot = admission.claim_address(from).map_err(refuse)?;
        if admission.is_full() {
            let Ok(_waits) = self.waiting.try_acquire() else { return Err(refuse(AdmissionError::ConnectionLimit)) };
            if timeout_at(until, admission.room()).await.is_err() {
                return Err(refuse(AdmissionError::ConnectionLimit));
            }
        }
        let slot = admission.claim().map_err(refuse)?;
        match timeout_at(until, self.upgraded.clone().reserve_owned()).await {
            Ok(Ok(queue)) => Ok(UpgradePermit { slot, address_slot, since, queue }),
            Ok(Err(_)) => Err(UpgradeError::Stopping),
            Err(_) => Err(refuse(AdmissionError::ConnectionLimit)),
        }
    }
}

impl UpgradePermit {
    /// Hands over a connection that the HTTP server is about to upgrade. The far end proved that
    /// it has `certificate`, if any.
    pub fn send(self, from: SocketAddr, certificate: Option<CertificateDer<'static>>, upgrade: Upgrade) {
        let UpgradePermit { slot, address_slot, since, queue } = self;
        let remote = RemoteInfo { address_slot, since: Some(since), certificate, ..RemoteInfo::from(from) };
        queue.send(Upgraded { upgrade, remote, slot });
    }
}

impl WebSocketServer {
    /// Serves devices until `stop` turns true and the last connection has ended. `listens` turns
    /// true when the HTTP server listens.
    pub async fn serve(self, listens: watch::Receiver<bool>, stop: watch::Receiver<bool>) {
        let WebSocketServer { link, max_open, upgraded } = self;
        let (context, stop_one) = (link.clone(), stop.clone());
        let serve = |upgraded, connections: &mut JoinSet<()>| {
            connections.spawn(serve_upgraded(upgraded, context.clone(), stop_one.clone()));
        };
        net::serve(Queue { upgraded, listens }, max_open, |up| link.up(up), serve, stop).await;
    }
}

/// The connections that the HTTP server hands over.
struct Queue {
    upgraded: mpsc::Receiver<Upgraded>,
    listens: watch::Receiver<bool>,
}

impl Source for Queue {
    type Connection = Upgraded;

    async fn up(&mut self) {
        if self.listens.wait_for(|listens| *listens).await.is_err() {
            // The HTTP server is gone, and no connection will come.
            pending().await
        }
    }

    async fn next(&mut self) -> Option<Upgraded> {
        self.upgraded.recv().await
    }
}

async fn serve_upgraded(upgraded: Upgraded, link: Arc<LinkContext>, stop: watch::Receiver<bool>) {
    let Upgraded { upgrade, remote, slot } = upgraded;
    let admission = slot.admission().clone();
    let from = remote.name.as_str();
    let now = link.shared.clock.now().monotonic;
    let within = (remote.since.unwrap_or(now) + link.handshake_timeout()).saturating_sub(now);
    let stream = match patiently(&*link.shared.clock, within, upgrade).await {
        Some(Ok(stream)) => stream,
        Some(Err(why)) => return tracing::debug!(link = %link.name, from, %why, "no WebSocket came of it"),
        None => return tracing::debug!(link = %link.name, from, "no WebSocket came of it in time"),
    };
    let lengths = Lengths { now: link.before_hello.max_body, afterwards: link.limits.max_body };
    let mut messages = Messages::new(stream, lengths, link.shared.pool.another_lease(), link.frame_timeout);
    let hung_up = |messages: &Messages<Box<dyn Stream>>| messages.get_ref().hung_up();
    let closed = session::drive(&mut messages, hung_up, &link, remote, slot, stop).await;
    match closed {
        Closed::Failed(why) if why.kind() == io::ErrorKind::InvalidData => link.count_invalid(NAME),
        // There is nobody to send a close frame to.
        Closed::Failed(_) => return,
        Closed::Ended | Closed::Gone | Closed::Evicted => {}
    }
    lingering_close(&admission, messages, Messages::io).await;
}
