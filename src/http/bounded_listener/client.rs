//! The client of a connection, as requests see it, and the state of its request.

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

/// The client that sent a request.
#[derive(Debug, Clone)]
pub struct Client {
    pub from: SocketAddr,
    pub(super) certificate: Arc<OnceLock<CertificateDer<'static>>>,
    pub(super) state: Option<Arc<Mutex<ConnectionState>>>,
}

/// A connection's slot, and the state of its request.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub slot: Option<AdmissionSlot>,
    pub begun: Instant,
    pub phase: Phase,
    /// When the last request began to arrive; the first one begins with the connection.
    pub request_since: Instant,
    /// Whether the head of that request was received.
    pub has_head: bool,
    /// Why the rest of it will not arrive.
    pub cut: Option<Cut>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request is arriving, and has to be complete by then.
    Arriving { until: Instant },
    /// The request is complete and being handled.
    Waiting,
    /// The response is being sent, or the connection is idle.
    Asking,
    /// The connection is a device's WebSocket.
    Upgraded,
}

impl ConnectionState {
    /// Bytes were received: begins the next request, unless one is arriving.
    pub fn next_request(&mut self, request_timeout: Duration) {
        if self.phase == Phase::Asking {
            self.request_since = Instant::now();
            self.has_head = false;
            self.phase = Phase::Arriving { until: self.request_since + request_timeout };
        }
    }
}

impl From<SocketAddr> for Client {
    /// A client whose connection is not bounded.
    fn from(from: SocketAddr) -> Client {
        Client { from, certificate: Arc::default(), state: None }
    }
}

/// A listener that lets requests find their [`Client`].
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
    /// The client certificate that the TLS handshake verified.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.certificate.get().cloned()
    }

    /// How long ago its request began to arrive.
    pub fn request_age(&self) -> Duration {
        self.state.as_ref().map_or(Duration::ZERO, |state| state.lock().request_since.elapsed())
    }

    /// The head of a request was received. Returns whether its response has to be the last.
    pub fn head_arrived(&self) -> bool {
        self.state.as_ref().is_some_and(|state| {
            let mut state = state.lock();
            state.has_head = true;
            state.begun.elapsed() >= LAST_REQUEST
        })
    }

    /// Why the gateway did not wait for the rest of its request, if so.
    pub(in crate::http) fn cut(&self) -> Option<Cut> {
        self.state.as_ref().and_then(|state| state.lock().cut)
    }

    /// Whether its request is complete and being handled.
    pub fn is_waiting(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.lock().phase == Phase::Waiting)
    }

    /// The request is complete: the connection is not evicted until it is answered.
    pub fn request_complete(&self) {
        self.change(Phase::Waiting, |slot| {
            if let Some(slot) = slot {
                slot.ready();
            }
        });
    }

    /// The response is being sent.
    pub fn response_started(&self) {
        self.change(Phase::Asking, |slot| {
            if let Some(slot) = slot {
                slot.release();
            }
        });
    }

    /// The connection is a device's WebSocket from here on.
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
