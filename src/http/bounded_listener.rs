//! How many may ask at one time, and for how long they may keep a place.
//!
//! A connection that becomes a device's WebSocket moves on and gives its place up; the
//! link that it moves to has places of its own.

mod client;
mod cut;
mod timer;

pub use client::Client;
pub(super) use client::WithClient;
pub(super) use cut::Cut;

use crate::clock::Clock;
use crate::net::tls::{self, Secure, Tls};
use crate::net::{Admission, Listening, Pool, hung_up};
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
use tokio::time::{Instant, sleep};

/// Connections served at one time; more wait in the system's backlog, until one that has
/// asked for nothing yet goes for them.
pub const MAX_CONNECTIONS: usize = 32;
/// A connection on which neither side sends for so long is closed, unless its answer is
/// being worked on.
const IDLE: Duration = Duration::from_secs(15);
/// No connection lasts longer, whatever it does: a byte now and then must not hold a
/// place for ever.
const LONGEST: Duration = Duration::from_secs(120);
/// After so long the next answer is the last, so that no request is cut for that.
const LAST_REQUEST: Duration = Duration::from_secs(100);
/// How long to wait when the system has no resources for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that serves a bounded number of connections, each for a bounded time.
pub struct BoundedListener {
    listening: Listening,
    admission: Admission,
    /// How long a request may take to come: the first from the connection on, another from
    /// its first byte.
    request_timeout: Duration,
    secure: Option<(Arc<Tls>, Pool)>,
    clock: Arc<dyn Clock>,
}

impl BoundedListener {
    pub fn new(listening: Listening, request_timeout: Duration, clock: Arc<dyn Clock>) -> BoundedListener {
        let admission = Admission::new(MAX_CONNECTIONS, Gauge::default());
        BoundedListener { listening, admission, request_timeout, secure: None, clock }
    }

    /// Has everybody speak TLS; what that takes in memory is charged to `pool`.
    pub fn secure(mut self, tls: Arc<Tls>, pool: Pool) -> BoundedListener {
        self.secure = Some((tls, pool));
        self
    }

    /// What it listens by.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// Takes the next connection as soon as somebody may come.
    async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.admission.room(&*self.clock, || false).await;
        self.listening.accept().await
    }

    /// A connection's visit; `None` if there is no place for it after all.
    fn stream(&self, stream: TcpStream, from: SocketAddr) -> Option<(BoundedStream, Client)> {
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
            heard: false,
            midway: false,
            leaving: None,
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
            match self.next().await {
                Ok((stream, from)) => {
                    if let Some(stream) = self.stream(stream, from) {
                        return stream;
                    }
                }
                Err(why) => {
                    self.listening.failed(&why);
                    tracing::debug!(%why, "cannot accept an HTTP connection");
                    // A file descriptor is what is missing most likely.
                    self.admission.evict_oldest();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Client> {
        Ok(self.listening.address().into())
    }
}

/// One connection and its place. Reading and writing fail when its time is over.
pub struct BoundedStream {
    io: Io,
    from: SocketAddr,
    certificate: Arc<OnceLock<CertificateDer<'static>>>,
    state: Arc<Mutex<ConnectionState>>,
    /// How long a request may take to come.
    request_timeout: Duration,
    begun: Instant,
    progress: Instant,
    /// None once it moved on.
    timer: Option<Timer>,
    evicted: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whether anything came.
    heard: bool,
    /// Whether the last write did not write everything.
    midway: bool,
    /// It is cut, and until when its answer may go out.
    leaving: Option<Instant>,
    closing: Option<ClosingResponse>,
}

enum Io {
    Plain(TcpStream),
    Handshake(Pin<Box<dyn Future<Output = io::Result<Secure>> + Send>>),
    Secure(Box<Secure>),
    Failed,
}

/// What is asked of the connection itself.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

impl BoundedStream {
    /// Whether the far end sends no more, also while something that it sent is not read yet.
    pub fn hung_up(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => hung_up(stream),
            Io::Secure(stream) => stream.hung_up(),
            Io::Handshake(_) | Io::Failed => false,
        }
    }

    /// The connection, once it can be read and written.
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

    /// Passes on what the stream came to, unless its time is over.
    fn timed<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(timer) = &mut self.timer else { return polled };
        if polled.is_ready() {
            self.progress = Instant::now();
        }
        let mut state = self.state.lock();
        let until = match (self.leaving, state.phase) {
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
        // What was heard is answered, whoever needs the place.
        let crowded = state.phase != Phase::Waiting && self.evicted.as_mut().poll(cx).is_ready();
        if !late && !crowded {
            return polled;
        }
        // It may not be polled again, and is of no meaning any more.
        self.evicted = Box::pin(std::future::pending());
        let cut = if late { Cut::Late } else { Cut::Crowded };
        match state.phase {
            _ if self.leaving.is_some() => {}
            // Whoever waits for the body says why it does not come.
            Phase::Arriving { .. } if state.has_head => {
                state.cut = Some(cut);
                self.leaving = Some(Instant::now() + CLOSE_WITHIN);
            }
            Phase::Arriving { .. } if (self.heard || !late) && !self.midway => {
                self.closing = Some(ClosingResponse::telling(cut));
            }
            // The answer is under way.
            Phase::Asking if self.midway && !late => {
                self.leaving = Some(Instant::now() + CLOSE_WITHIN);
                return polled;
            }
            _ => {}
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ready when the last words were said, if there are any.
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
            if self.leaving.is_some() {
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
                self.heard = true;
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
        self.midway = !matches!(&polled, Poll::Ready(Ok(written)) if *written == bytes.len());
        let polled = self.timed(cx, polled);
        // Nothing is said in the middle of an answer.
        self.closing = None;
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.leaving.is_some() {
            self.closing.get_or_insert_with(ClosingResponse::answered);
            return self.poll_closing(cx).map(Ok);
        }
        Pin::new(ready!(self.poll_io(cx))?).poll_shutdown(cx)
    }
}
