//! Devices over WebSocket: what the HTTP server has upgraded.

mod frame;
mod messages;
mod patience;

use super::addresses::{Addresses, Visit};
use super::caller::Caller;
use super::connection::{self, Closed};
use super::line::{Line, Shared};
use super::porch::{self, LEAVING, Place, Porch};
use crate::config::{self, Authentication};
use crate::device::Grants;
use crate::stop;
use crate::wire::frame::{Limits, Recovery};
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
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where devices come in. Clones share it.
#[derive(Clone)]
pub struct Entrance {
    line: Arc<Line>,
    /// Whether devices prove who they are, and so may fail to.
    guarded: bool,
    porch: Porch,
    /// Where they are limited by address.
    addresses: Option<Addresses>,
    outside: Arc<Semaphore>,
    guests: mpsc::Sender<Guest>,
}

/// Where devices are that came in.
pub struct Hall {
    line: Arc<Line>,
    porch: Porch,
    most: usize,
    guests: mpsc::Receiver<Guest>,
}

struct Guest {
    upgrade: Upgrade,
    caller: Caller,
    place: Place,
}

/// Leave to come in.
pub struct Admission {
    place: Place,
    visit: Option<Visit>,
    /// When the newcomer began to ask.
    since: Duration,
    guests: mpsc::OwnedPermit<Guest>,
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
pub fn open(config: &config::Http, shared: Shared) -> (Entrance, Hall) {
    let line = Arc::new(line(config, shared));
    line.guard(config.listen, config.is_open(), config.is_tapped());
    let guarded = config.authentication() != Authentication::None || config.client_ca_file.is_some();
    let porch = Porch::new(config.max_connections, line.waiting());
    // Those that go are still there for a while.
    let most = config.max_connections + 2 * porch::beyond(config.max_connections) + LEAVING;
    let (sender, guests) = mpsc::channel(GUESTS);
    let outside = Arc::new(Semaphore::new(OUTSIDE));
    let addresses = config.max_connections_per_address.map(Addresses::new);
    let entrance = Entrance { line: line.clone(), guarded, porch: porch.clone(), addresses, outside, guests: sender };
    (entrance, Hall { line, porch, most, guests })
}

impl Entrance {
    /// Has a newcomer that has asked for some time already wait until it may come in.
    ///
    /// # Errors
    /// If it may not.
    pub async fn admit(&self, from: SocketAddr, asked_for: Duration) -> Result<Admission, Refused> {
        let since = self.now().saturating_sub(asked_for);
        let until = Instant::now() + self.line.handshake_timeout().saturating_sub(asked_for);
        if self.guarded && self.line.shared.doorman.locked_out(&from.ip().into(), self.now()).is_some() {
            self.turn_away(from, "locked_out");
            return Err(Refused::LockedOut);
        }
        let visit = self.addresses.as_ref().map(|addresses| addresses.arrive(from.ip()));
        if let Some(None) = visit {
            self.turn_away(from, "address");
            return Err(Refused::Address);
        }
        if self.full_for().is_some() {
            let Ok(_waits) = self.outside.try_acquire() else { return Err(self.turn_away(from, "too_many")) };
            if timeout_at(until, self.has_room()).await.is_err() {
                return Err(self.turn_away(from, "too_many"));
            }
        }
        if !self.line.shared.pool.admits() && !self.porch.evict_one() {
            self.line.shared.pool.refused("connection");
            return Err(self.turn_away(from, "memory"));
        }
        let Some(place) = self.porch.arrive(self.now()) else { return Err(self.turn_away(from, "too_many")) };
        match timeout_at(until, self.guests.clone().reserve_owned()).await {
            Ok(Ok(guests)) => Ok(Admission { place, visit: visit.flatten(), since, guests }),
            Ok(Err(_)) => Err(Refused::Stopping),
            Err(_) => Err(self.turn_away(from, "too_many")),
        }
    }

    fn full_for(&self) -> Option<Duration> {
        self.porch.full_for(self.now(), !self.line.shared.pool.admits())
    }

    async fn has_room(&self) {
        while let Some(patience) = self.full_for() {
            let _ = timeout(patience, self.porch.left()).await;
        }
    }

    fn now(&self) -> Duration {
        self.line.shared.clock.now().monotonic
    }

    fn turn_away(&self, from: SocketAddr, reason: &'static str) -> Refused {
        self.line.turned_away(reason);
        tracing::debug!(link = %self.line.name, %from, reason, "connection refused");
        Refused::Full
    }
}

impl Admission {
    /// The HTTP server is about to say that the connection is a WebSocket's from here on.
    /// The far end proved to have `certificate`, if any.
    pub fn enter(self, from: SocketAddr, certificate: Option<CertificateDer<'static>>, upgrade: Upgrade) {
        let Admission { place, visit, since, guests } = self;
        let caller = Caller { visit, since: Some(since), certificate, ..Caller::from(from) };
        guests.send(Guest { upgrade, caller, place });
    }
}

impl Hall {
    /// Serves devices until `stop` turns true and the last of them is gone.
    pub async fn serve(mut self, mut stop: watch::Receiver<bool>) {
        self.line.up(true);
        let mut connections = JoinSet::new();
        let stop_one = stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop::requested(&mut stop) => break,
                Some(_) = connections.join_next() => {}
                guest = self.guests.recv(), if connections.len() < self.most => {
                    let Some(guest) = guest else { break };
                    connections.spawn(serve_one(guest, self.line.clone(), self.porch.clone(), stop_one.clone()));
                }
            }
        }
        self.guests.close();
        self.line.up(false);
        while connections.join_next().await.is_some() {}
    }
}

fn line(config: &config::Http, shared: Shared) -> Line {
    let max_body = usize::try_from(config.max_frame.as_u64()).unwrap_or(usize::MAX);
    let silence = shared.devices.silence(config.heartbeat_interval, config.idle_timeout);
    Line {
        name: NAME.into(),
        grants: Grants {
            handshake_timeout: Some(config.handshake_timeout),
            heartbeat_interval: silence.heartbeat_interval,
            idle_after: silence.idle_after(),
            idle_timeout: silence.idle_timeout,
            window: shared.devices.window,
            max_frame: u32::try_from(max_body).unwrap_or(u32::MAX),
            restart: false,
            times: shared.time_rules(),
            authentication: config.authentication(),
        },
        before_hello: Limits { max_body: BEFORE_HELLO.min(max_body), require_checksum: false },
        limits: Limits { max_body, require_checksum: false },
        recovery: Recovery::Fail,
        text: true,
        frame_timeout: config.frame_timeout,
        shared,
    }
}

async fn serve_one(guest: Guest, line: Arc<Line>, porch: Porch, stop: watch::Receiver<bool>) {
    let Guest { upgrade, caller, place } = guest;
    let from = caller.name.as_str();
    let now = line.shared.clock.now().monotonic;
    let within = (caller.since.unwrap_or(now) + line.handshake_timeout()).saturating_sub(now);
    let stream = match timeout(within, upgrade).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return tracing::debug!(link = %line.name, from, %why, "no WebSocket came of it"),
        Err(_) => return tracing::debug!(link = %line.name, from, "no WebSocket came of it in time"),
    };
    let lengths = Lengths { now: line.before_hello.max_body, afterwards: line.limits.max_body };
    let mut messages = Messages::new(stream, lengths, line.shared.pool.another_lease(), line.frame_timeout);
    let closed = connection::drive(&mut messages, &line, caller, place, stop).await;
    match closed {
        Closed::Failed(why) if why.kind() == io::ErrorKind::InvalidData => line.count_invalid(NAME),
        // Nobody is left who could be told anything.
        Closed::Failed(_) => return,
        Closed::Ended | Closed::Gone | Closed::Evicted => {}
    }
    let Some(_leave) = porch.linger() else { return };
    let _ = timeout(LINGER, see_off(messages)).await;
}

/// Has the last words arrive: data left unread would reset the connection.
async fn see_off(mut messages: Messages<Box<dyn Stream>>) {
    if messages.shutdown().await.is_ok() {
        let mut rest = [0; 512];
        while messages.io().read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}
