//! Who is at the far end of a connection, and how far its request is.

use super::{Cut, LAST_REQUEST};
use crate::net::AdmissionSlot;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Client {
    pub from: SocketAddr,
    pub(super) certificate: Arc<OnceLock<CertificateDer<'static>>>,
    pub(super) state: Option<Arc<Mutex<ConnectionState>>>,
}

/// A connection's place, and what it is there for.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub slot: Option<AdmissionSlot>,
    pub begun: Instant,
    pub phase: Phase,
    /// When the request began to come that came last: the first with the connection.
    pub request_since: Instant,
    /// Whether the head of that request is there.
    pub has_head: bool,
    /// Why the rest of it will not come.
    pub cut: Option<Cut>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request has to be there by then.
    Arriving { until: Instant },
    /// Its answer is being worked on.
    Waiting,
    /// It takes its answer in, or says nothing.
    Asking,
    /// It is a device's WebSocket.
    Upgraded,
}

impl ConnectionState {
    /// Something came: if no request was under way, one is now.
    pub fn next_request(&mut self, request_timeout: Duration) {
        if self.phase == Phase::Asking {
            self.request_since = Instant::now();
            self.has_head = false;
            self.phase = Phase::Arriving { until: self.request_since + request_timeout };
        }
    }
}

impl From<SocketAddr> for Client {
    /// One whose connection nobody bounds.
    fn from(from: SocketAddr) -> Client {
        Client { from, certificate: Arc::default(), state: None }
    }
}

/// A listener whose visitors requests can find.
pub(in crate::http) struct WithClient<L>(pub L);

impl<L: Listener<Addr = Client>> Listener for WithClient<L> {
    type Io = L::Io;
    type Addr = Client;

    fn accept(&mut self) -> impl Future<Output = (L::Io, Client)> + Send {
        self.0.accept()
    }

    fn local_addr(&self) -> io::Result<Client> {
        self.0.local_addr()
    }
}

impl<L: Listener<Addr = Client>> Connected<IncomingStream<'_, WithClient<L>>> for Client {
    fn connect_info(stream: IncomingStream<'_, WithClient<L>>) -> Client {
        stream.remote_addr().clone()
    }
}

impl Client {
    /// The certificate that it proved to have.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.certificate.get().cloned()
    }

    /// How long ago its request began to come.
    pub fn request_age(&self) -> Duration {
        self.state.as_ref().map_or(Duration::ZERO, |state| state.lock().request_since.elapsed())
    }

    /// The head of a request is there. Returns whether its answer is to be the last.
    pub fn head_arrived(&self) -> bool {
        self.state.as_ref().is_some_and(|state| {
            let mut state = state.lock();
            state.has_head = true;
            state.begun.elapsed() >= LAST_REQUEST
        })
    }

    /// Why the rest of its request did not come, if that is the gateway's doing.
    pub(in crate::http) fn cut(&self) -> Option<Cut> {
        self.state.as_ref().and_then(|state| state.lock().cut)
    }

    /// Whether its request is there, and being answered.
    pub fn is_waiting(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.lock().phase == Phase::Waiting)
    }

    /// A request is there: nobody takes its place until it is answered.
    pub fn request_complete(&self) {
        self.change(Phase::Waiting, |slot| {
            if let Some(slot) = slot {
                slot.ready();
            }
        });
    }

    /// The answer is on its way.
    pub fn response_started(&self) {
        self.change(Phase::Asking, |slot| {
            if let Some(slot) = slot {
                slot.release();
            }
        });
    }

    /// It is a device's connection from here on.
    pub fn upgraded(&self) {
        self.change(Phase::Upgraded, |slot| *slot = None);
    }

    fn change(&self, phase: Phase, change: impl FnOnce(&mut Option<AdmissionSlot>)) {
        let Some(state) = &self.state else { return };
        let mut state = state.lock();
        if state.phase != Phase::Upgraded {
            change(&mut state.slot);
            state.phase = phase;
        }
    }
}
