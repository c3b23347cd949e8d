//! Bounds the HTTP server's connections: their number, and the time of each.
//!
//! A connection that is upgraded to a device's WebSocket gives its slot up; the WebSocket link has
//! slots of its own.

mod client;
mod cut;
mod timer;

pub use client::Client;
pub(super) use client::WithClient;
pub(super) use cut::Cut;

use crate::clock::Clock;
use crate::net::tls::{self, Secure, Tls};
use crate::net::{Acceptor, Admission, Listening, Pool, hung_up};
use axum::serve::Listener;
use client::{ConnectionState, Phase};
use cut::{CLOSE_WITHIN, ClosingResponse};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use timer::Timer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Connections served at a time. More wait in the system's backlog, until one without a request
/// is evicted for them.
pub const MAX_CONNECTIONS: usize = 32;
/// A connection on which neither side sends for so long is closed, unless its request is being
/// handled.
const IDLE: Duration = Duration::from_secs(15);
/// No connection lasts longer, whatever it does: a byte now and then must not keep a slot for ever.
const LONGEST: Duration = Duration::from_secs(120);
/// After so long the next response closes the connection, so that no request is cut by [`LONGEST`].
const LAST_REQUEST: Duration = Duration::from_secs(100);

/// A listener that serves a bounded number of connections, each for a bounded time.
pub struct BoundedListener {
    acceptor: Acceptor,
    admission: Admission,
    /// How long a request may take to come: the first from the connection on, another from its
    /// first byte.
    request_timeout: Duration,
    secure: Option<(Arc<Tls>, Pool)>,
    clock: Arc<dyn Clock>,
}

impl BoundedListener {
    pub fn new(listening: Listening, request_timeout: Duration, clock: Arc<dyn Clock>) -> BoundedListener {
        let admission = Admission::new(MAX_CONNECTIONS, Gauge::default());
        let acceptor = Acceptor::new("http".into(), listening, admission.clone(), None, clock.clone());
        BoundedListener { acceptor, admission, request_timeout, secure: None, clock }
    }

    /// Serves every connection over TLS, the memory of which is charged to `pool`.
    pub fn secure(mut self, tls: Arc<Tls>, pool: Pool) -> BoundedListener {
        self.secure = Some((tls, pool));
        self
    }

    /// The listening socket's properties.
    pub fn listening(&self) -> &Listening {
        self.acceptor.listening()
    }

    /// Bounds a connection; `None` if there is no slot, or no certificate, for it.
    fn bound(&self, stream: TcpStream, from: SocketAddr) -> Option<(BoundedStream, Client)> {
        let now = self.clock.now().monotonic;
        let mut slot = self.admission.claim(now)?;
        let evicted = Box::pin(slot.evicted());
        let certificate = Arc::new(OnceLock::new());
        let io = match &self.secure {
            None => Io::Plain(stream),
            Some((tls, pool)) => {
                let (config, pool, turn) = (tls.current(now)?, pool.clone(), slot.acquire_turn());
                Io::Handshake(Box::pin(async move { tls::accept(stream, config, &pool, turn).await }))
            }
        };
        let begun = Instant::now();
        let phase = Phase::Arriving { until: begun + self.request_timeout };
        let state =
            ConnectionState { slot: Some(slot), begun, phase, request_since: begun, has_head: false, cut: None };
        let state = Arc::new(Mutex::new(state));
        let timer = Some(Timer::new(self.clock.clone(), self.request_timeout));
        let client = Client { from, certificate: certificate.clone(), state: Some(state.clone()) };
        let request_timeout = self.request_timeout;
        let stream = BoundedStream {
            io,
            from,
            certificate,
            state,
            request_timeout,
            begun,
            progress: begun,
            timer,
            evicted,
            received: false,
            partial_write: false,
            cut_until: None,
            closing: None,
        };
        Some((stream, client))
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = Client;

    async fn accept(&mut self) -> (BoundedStream, Client) {
        loop {
            let (stream, from) = self.acceptor.accept().await;
            if let Some(bounded) = self.bound(stream, from) {
                return bounded;
            }
        }
    }

    fn local_addr(&self) -> io::Result<Client> {
        Ok(self.listening().address().into())
    }
}

/// A connection with its slot and its deadlines. Reading and writing fail when a deadline has
/// passed.
pub struct BoundedStream {
    io: Io,
    from: SocketAddr,
    certificate: Arc<OnceLock<CertificateDer<'static>>>,
    state: Arc<Mutex<ConnectionState>>,
    /// How long a request may take to come.
    request_timeout: Duration,
    begun: Instant,
    progress: Instant,
    /// None once it is upgraded.
    timer: Option<Timer>,
    evicted: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whether anything was received.
    received: bool,
    /// Whether the last write was partial.
    partial_write: bool,
    /// Set when it is cut: until when its response may be sent.
    cut_until: Option<Instant>,
    closing: Option<ClosingResponse>,
}

enum Io {
    Plain(TcpStream),
    Handshake(Pin<Box<dyn Future<Output = io::Result<Secure>> + Send>>),
    Secure(Box<Secure>),
    Failed,
}

/// What reads and writes.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

impl BoundedStream {
    /// Whether the far end sends no more, even while something that it sent is not read yet.
    pub fn hung_up(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => hung_up(stream),
            Io::Secure(stream) => stream.hung_up(),
            Io::Handshake(_) | Io::Failed => false,
        }
    }

    /// The connection, once its TLS handshake is done.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut dyn Duplex>> {
        if let Io::Handshake(handshake) = &mut self.io {
            self.io = match ready!(handshake.as_mut().poll(cx)) {
                Ok(secure) => {
                    if let Some(certificate) = secure.certificate() {
                        // It is set here only, once.
                        let _ = self.certificate.set(certificate);
                    }
                    Io::Secure(Box::new(secure))
                }
                Err(why) => {
                    let from = self.from;
                    match tls::explain(&why) {
                        Some(why) => tracing::info!(link = "http", %from, why, "no TLS connection came about"),
                        None => tracing::debug!(link = "http", %from, %why, "no TLS connection came about"),
                    }
                    Io::Failed
                }
            };
        }
        Poll::Ready(match &mut self.io {
            Io::Plain(stream) => Ok(stream),
            Io::Secure(stream) => Ok(stream),
            Io::Handshake(_) | Io::Failed => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }

    /// Passes `polled` on, unless a deadline has passed.
    fn timed<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(timer) = &mut self.timer else { return polled };
        if polled.is_ready() {
            self.progress = Instant::now();
        }
        let mut state = self.state.lock();
        let until = match (self.cut_until, state.phase) {
            (Some(until), _) => until,
            (None, Phase::Arriving { until }) => until.min(self.begun + LONGEST),
            (None, Phase::Waiting) => self.begun + LONGEST,
            (None, Phase::Asking) => (self.progress + IDLE).min(self.begun + LONGEST),
            (None, Phase::Upgraded) => {
                self.timer = None;
                self.evicted = Box::pin(std::future::pending());
                return polled;
            }
        };
        let late = timer.poll(until, cx).is_ready();
        // A complete request is answered, whatever connection needs the slot.
        let crowded = state.phase != Phase::Waiting && self.evicted.as_mut().poll(cx).is_ready();
        if !late && !crowded {
            return polled;
        }
        // It must not be polled again.
        self.evicted = Box::pin(std::future::pending());
        let cut = if late { Cut::Late } else { Cut::Crowded };
        match state.phase {
            _ if self.cut_until.is_some() => {}
            // The handler that waits for the body responds with the reason.
            Phase::Arriving { .. } if state.has_head => {
                state.cut = Some(cut);
                self.cut_until = Some(Instant::now() + CLOSE_WITHIN);
            }
            Phase::Arriving { .. } if (self.received || !late) && !self.partial_write => {
                self.closing = Some(ClosingResponse::with_reason(cut));
            }
            // The response is being sent.
            Phase::Asking if self.partial_write && !late => {
                self.cut_until = Some(Instant::now() + CLOSE_WITHIN);
                return polled;
            }
            _ => {}
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ready when the closing response, if there is one, was sent.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut closing) = self.closing.take() else { return Poll::Ready(()) };
        let said = match self.poll_io(cx) {
            Poll::Ready(Ok(io)) => closing.poll(io, cx),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(()),
        };
        if said.is_pending() {
            self.closing = Some(closing);
        }
        said
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            if self.cut_until.is_some() {
                let answered = self.state.lock().phase == Phase::Asking;
                let polled = if answered { Poll::Pending } else { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) };
                return self.timed(cx, polled);
            }
            let before = buffer.filled().len();
            let polled = match self.poll_io(cx) {
                Poll::Ready(Ok(io)) => Pin::new(io).poll_read(cx, buffer),
                Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
                Poll::Pending => Poll::Pending,
            };
            if self.timer.is_some() && buffer.filled().len() > before {
                self.received = true;
                self.state.lock().next_request(self.request_timeout);
            }
            let polled = self.timed(cx, polled);
            if self.closing.is_none() {
                return polled;
            }
        }
        self.poll_closing(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.closing.is_some() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let polled = match self.poll_io(cx) {
            Poll::Ready(Ok(io)) => Pin::new(io).poll_write(cx, bytes),
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            Poll::Pending => Poll::Pending,
        };
        self.partial_write = !matches!(&polled, Poll::Ready(Ok(written)) if *written == bytes.len());
        let polled = self.timed(cx, polled);
        // No closing response is sent within a response.
        self.closing = None;
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut_until.is_some() {
            self.closing.get_or_insert_with(ClosingResponse::empty);
            return self.poll_closing(cx).map(Ok);
        }
        Pin::new(ready!(self.poll_io(cx))?).poll_shutdown(cx)
    }
}
