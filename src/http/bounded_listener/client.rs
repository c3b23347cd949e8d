//! Who is at the far end of a connection, and how far its request is.

use super::{Cut, LAST_REQUEST};
use crate::net::Place;
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
pub struct Visitor {
    pub from: SocketAddr,
    pub(super) certificate: Arc<OnceLock<CertificateDer<'static>>>,
    pub(super) stay: Option<Arc<Mutex<Stay>>>,
}

/// A connection's place, and what it is there for.
#[derive(Debug)]
pub(super) struct Stay {
    pub place: Option<Place>,
    pub begun: Instant,
    pub phase: Phase,
    /// When the request began to come that came last: the first with the connection.
    pub asks_since: Instant,
    /// Whether the head of that request is there.
    pub is_asked: bool,
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
    MovedOn,
}

impl Stay {
    /// Something came: if no request was under way, one is now.
    pub fn asks_again(&mut self, patience: Duration) {
        if self.phase == Phase::Asking {
            self.asks_since = Instant::now();
            self.is_asked = false;
            self.phase = Phase::Arriving { until: self.asks_since + patience };
        }
    }
}

impl From<SocketAddr> for Visitor {
    /// One whose connection nobody bounds.
    fn from(from: SocketAddr) -> Visitor {
        Visitor { from, certificate: Arc::default(), stay: None }
    }
}

/// A listener whose visitors requests can find.
pub(in crate::http) struct Announced<L>(pub L);

impl<L: Listener<Addr = Visitor>> Listener for Announced<L> {
    type Io = L::Io;
    type Addr = Visitor;

    fn accept(&mut self) -> impl Future<Output = (L::Io, Visitor)> + Send {
        self.0.accept()
    }

    fn local_addr(&self) -> io::Result<Visitor> {
        self.0.local_addr()
    }
}

impl<L: Listener<Addr = Visitor>> Connected<IncomingStream<'_, Announced<L>>> for Visitor {
    fn connect_info(stream: IncomingStream<'_, Announced<L>>) -> Visitor {
        stream.remote_addr().clone()
    }
}

impl Visitor {
    /// The certificate that it proved to have.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.certificate.get().cloned()
    }

    /// How long ago its request began to come.
    pub fn asks_for(&self) -> Duration {
        self.stay.as_ref().map_or(Duration::ZERO, |stay| stay.lock().asks_since.elapsed())
    }

    /// The head of a request is there. Returns whether its answer is to be the last.
    pub fn asks(&self) -> bool {
        self.stay.as_ref().is_some_and(|stay| {
            let mut stay = stay.lock();
            stay.is_asked = true;
            stay.begun.elapsed() >= LAST_REQUEST
        })
    }

    /// Why the rest of its request did not come, if that is the gateway's doing.
    pub(in crate::http) fn cut(&self) -> Option<Cut> {
        self.stay.as_ref().and_then(|stay| stay.lock().cut)
    }

    /// Whether its request is there, and being answered.
    pub fn is_waiting(&self) -> bool {
        self.stay.as_ref().is_none_or(|stay| stay.lock().phase == Phase::Waiting)
    }

    /// A request is there: nobody takes its place until it is answered.
    pub fn is_heard(&self) {
        self.change(Phase::Waiting, |place| {
            if let Some(place) = place {
                place.line_up();
            }
        });
    }

    /// The answer is on its way.
    pub fn is_answered(&self) {
        self.change(Phase::Asking, |place| {
            if let Some(place) = place {
                place.step_back();
            }
        });
    }

    /// It is a device's connection from here on.
    pub fn moves_on(&self) {
        self.change(Phase::MovedOn, |place| *place = None);
    }

    fn change(&self, phase: Phase, change: impl FnOnce(&mut Option<Place>)) {
        let Some(stay) = &self.stay else { return };
        let mut stay = stay.lock();
        if stay.phase != Phase::MovedOn {
            change(&mut stay.place);
            stay.phase = phase;
        }
    }
}
