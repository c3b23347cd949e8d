//! Devices over WebSocket: what the HTTP server has upgraded.

mod message_timeout;
mod messages;

use super::context::{LinkContext, Shared};
use super::reception::Reception;
use super::remote::RemoteInfo;
use super::session::{self, Closed};
use crate::clock::patiently;
use crate::config;
use crate::net::{AddressSlot, Admission, AdmissionSlot, max_open};
use crate::stop;
use messages::{Lengths, Messages};
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Names the link in logs and metrics.
pub const NAME: &str = "websocket";
/// Largest frame body, and longest text message, before a device is welcomed, in bytes.
/// What says Hello in 256 bytes of a frame takes somewhat more as text.
const BEFORE_HELLO: usize = 1024;
/// Guests on their way from the HTTP server.
const GUESTS: usize = 64;
/// Newcomers that may wait until there is a place on the porch. They keep places at the
/// HTTP server meanwhile, which others need.
const OUTSIDE: usize = 8;
/// How long a connection that is over may take to see it in the same way.
const LINGER: Duration = Duration::from_millis(500);

/// A connection that becomes a WebSocket's when the HTTP server has answered.
pub type Upgrade = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// What a WebSocket runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether the far end sends no more, as far as that can be told without reading.
    fn hung_up(&self) -> bool;
}

/// Where devices come in. Clones share it.
#[derive(Clone)]
pub struct UpgradeSender {
    reception: Reception,
    outside: Arc<Semaphore>,
    guests: mpsc::Sender<Upgraded>,
}

/// Where devices are that came in.
pub struct WebSocketServer {
    link: Arc<LinkContext>,
    admission: Admission,
    most: usize,
    guests: mpsc::Receiver<Upgraded>,
}

struct Upgraded {
    upgrade: Upgrade,
    remote: RemoteInfo,
    slot: AdmissionSlot,
}

/// Leave to come in.
pub struct UpgradePermit {
    slot: AdmissionSlot,
    address_slot: Option<AddressSlot>,
    /// When the newcomer began to ask.
    since: Duration,
    guests: mpsc::OwnedPermit<Upgraded>,
}

/// Why a device cannot come in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("as many devices are connected as this gateway has room for; try again later")]
    Full,
    #[error("as many devices of this address are connected as this gateway allows; try again later")]
    Address,
    #[error("too many attempts failed; try again later")]
    LockedOut,
    #[error("the gateway is stopping; try again later")]
    Stopping,
}

/// An entrance for devices, and the hall behind it.
pub fn open(config: &config::Http, shared: Shared) -> (UpgradeSender, WebSocketServer) {
    let config = config.listener();
    let reception = Reception::new(&config, LinkContext::of_listener(NAME.into(), &config, BEFORE_HELLO, true, shared));
    let Reception { link, admission, .. } = reception.clone();
    let most = max_open(config.max_connections);
    let (sender, guests) = mpsc::channel(GUESTS);
    let entrance = UpgradeSender { reception, outside: Arc::new(Semaphore::new(OUTSIDE)), guests: sender };
    (entrance, WebSocketServer { link, admission, most, guests })
}

impl UpgradeSender {
    /// Has a newcomer that has asked for some time already wait until it may come in.
    ///
    /// # Errors
    /// If it may not.
    pub async fn admit(&self, from: SocketAddr, asked_for: Duration) -> Result<UpgradePermit, Refused> {
        let reception = &self.reception;
        let since = reception.now().saturating_sub(asked_for);
        let until = Instant::now() + reception.link.handshake_timeout().saturating_sub(asked_for);
        let turn_away = |reason| {
            reception.turned_away(from, reason);
            Refused::of(reason)
        };
        let address_slot = reception.look_at(from).map_err(turn_away)?;
        if reception.is_full() {
            let Ok(_waits) = self.outside.try_acquire() else { return Err(turn_away("too_many")) };
            if timeout_at(until, reception.room()).await.is_err() {
                return Err(turn_away("too_many"));
            }
        }
        let slot = reception.slot().map_err(turn_away)?;
        match timeout_at(until, self.guests.clone().reserve_owned()).await {
            Ok(Ok(guests)) => Ok(UpgradePermit { slot, address_slot, since, guests }),
            Ok(Err(_)) => Err(Refused::Stopping),
            Err(_) => Err(turn_away("too_many")),
        }
    }
}

impl Refused {
    /// What a newcomer is told that is turned away for this reason.
    fn of(reason: &str) -> Refused {
        match reason {
            "locked_out" => Refused::LockedOut,
            "address" => Refused::Address,
            _ => Refused::Full,
        }
    }
}

impl UpgradePermit {
    /// The HTTP server is about to say that the connection is a WebSocket's from here on.
    /// The far end proved to have `certificate`, if any.
    pub fn enter(self, from: SocketAddr, certificate: Option<CertificateDer<'static>>, upgrade: Upgrade) {
        let UpgradePermit { slot, address_slot, since, guests } = self;
        let remote = RemoteInfo { address_slot, since: Some(since), certificate, ..RemoteInfo::from(from) };
        guests.send(Upgraded { upgrade, remote, slot });
    }
}

impl WebSocketServer {
    /// Serves devices until `stop` turns true and the last of them is gone. `listens` turns
    /// true when the HTTP server can be reached.
    pub async fn serve(mut self, mut listens: watch::Receiver<bool>, mut stop: watch::Receiver<bool>) {
        self.link.up(false);
        tokio::select! {
            biased;
            () = stop::requested(&mut stop) => {}
            () = reached(&mut listens) => self.link.up(true),
        }
        let mut connections = JoinSet::new();
        let stop_one = stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop::requested(&mut stop) => break,
                Some(_) = connections.join_next() => {}
                guest = self.guests.recv(), if connections.len() < self.most => {
                    let Some(guest) = guest else { break };
                    connections.spawn(serve_one(guest, self.link.clone(), self.admission.clone(), stop_one.clone()));
                }
            }
        }
        self.guests.close();
        self.link.up(false);
        while connections.join_next().await.is_some() {}
    }
}

async fn reached(listens: &mut watch::Receiver<bool>) {
    if listens.wait_for(|listens| *listens).await.is_err() {
        // Whoever listened is gone, and nobody will come.
        std::future::pending().await
    }
}

async fn serve_one(guest: Upgraded, link: Arc<LinkContext>, admission: Admission, stop: watch::Receiver<bool>) {
    let Upgraded { upgrade, remote, slot } = guest;
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
        // Nobody is left who could be told anything.
        Closed::Failed(_) => return,
        Closed::Ended | Closed::Gone | Closed::Evicted => {}
    }
    let Some(_leave) = admission.try_linger() else { return };
    let _ = timeout(LINGER, see_off(messages)).await;
}

/// Has the last words arrive: data left unread would reset the connection.
async fn see_off(mut messages: Messages<Box<dyn Stream>>) {
    if messages.shutdown().await.is_ok() {
        let mut rest = [0; 512];
        while messages.io().read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}
