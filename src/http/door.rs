//! How many may ask at one time, and for how long they may keep a place.
//!
//! A connection that becomes a device's WebSocket moves on and gives its place up; the
//! link that it moves to has places of its own.

use crate::clock::{Clock, Excuses, LAST_LOOK};
use crate::link::tls::{self, Secure, Tls};
use crate::link::{Place, Pool, Porch};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Connections served at one time; more wait in the system's backlog, until one that has
/// asked for nothing yet goes for them.
pub const MAX_CONNECTIONS: usize = 32;
/// A connection on which neither side sends for so long is closed, unless its answer is
/// being worked on.
const IDLE: Duration = Duration::from_secs(15);
/// No connection lasts longer, whatever it does: a byte now and then must not hold a
/// place for ever.
const LONGEST: Duration = Duration::from_secs(120);
/// How long to wait when the system has no resources for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that serves a bounded number of connections, each for a bounded time.
pub struct Door {
    listener: TcpListener,
    porch: Porch,
    /// How long a request may take to come: the first from the connection on, another from
    /// its first byte.
    patience: Duration,
    secure: Option<(Arc<Tls>, Pool)>,
    clock: Arc<dyn Clock>,
}

impl Door {
    pub fn new(listener: TcpListener, patience: Duration, clock: Arc<dyn Clock>) -> Door {
        let porch = Porch::new(MAX_CONNECTIONS, Gauge::default());
        Door { listener, porch, patience, secure: None, clock }
    }

    /// Has everybody speak TLS; what that takes in memory is charged to `pool`.
    pub fn secure(mut self, tls: Arc<Tls>, pool: Pool) -> Door {
        self.secure = Some((tls, pool));
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As the operating system gives them.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes the next connection as soon as somebody may come.
    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.porch.room(&*self.clock, || false).await;
        self.listener.accept().await
    }

    /// A connection's visit; `None` if there is no place for it after all.
    fn visit(&self, stream: TcpStream, from: SocketAddr) -> Option<(Visit, Visitor)> {
        let now = self.clock.now().monotonic;
        let mut place = self.porch.arrive(now)?;
        let evicted = Box::pin(place.evicted());
        let certificate = Arc::new(OnceLock::new());
        let io = match &self.secure {
            None => Io::Plain(stream),
            Some((tls, pool)) => {
                let (config, pool, turn) = (tls.current(now)?, pool.clone(), place.turn());
                Io::Handshake(Box::pin(async move { tls::accept(stream, config, &pool, turn).await }))
            }
        };
        let begun = Instant::now();
        let phase = Phase::Arriving { until: begun + self.patience };
        let stay = Arc::new(Mutex::new(Stay { place: Some(place), phase, asks_since: begun }));
        let timer = Some(Timer::new(self.clock.clone(), self.patience));
        let visitor = Visitor { from, certificate: certificate.clone(), stay: Some(stay.clone()) };
        let patience = self.patience;
        Some((Visit { io, from, certificate, stay, patience, begun, progress: begun, timer, evicted }, visitor))
    }
}

impl Listener for Door {
    type Io = Visit;
    type Addr = Visitor;

    async fn accept(&mut self) -> (Visit, Visitor) {
        loop {
            match self.next().await {
                Ok((stream, from)) => {
                    if let Some(visit) = self.visit(stream, from) {
                        return visit;
                    }
                }
                Err(why) => {
                    tracing::debug!(%why, "cannot accept an HTTP connection");
                    // A file descriptor is what is missing most likely.
                    self.porch.evict_one();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Visitor> {
        self.address().map(Visitor::from)
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Visitor {
    pub from: SocketAddr,
    certificate: Arc<OnceLock<CertificateDer<'static>>>,
    stay: Option<Arc<Mutex<Stay>>>,
}

/// A connection's place, and what it is there for.
#[derive(Debug)]
struct Stay {
    place: Option<Place>,
    phase: Phase,
    /// When the request began to come that came last: the first with the connection.
    asks_since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
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
    fn asks_again(&mut self, patience: Duration) {
        if self.phase == Phase::Asking {
            self.asks_since = Instant::now();
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
pub(super) struct Announced<L>(pub L);

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

/// One connection and its place. Reading and writing fail when its time is over.
pub struct Visit {
    io: Io,
    from: SocketAddr,
    certificate: Arc<OnceLock<CertificateDer<'static>>>,
    stay: Arc<Mutex<Stay>>,
    /// How long a request may take to come.
    patience: Duration,
    begun: Instant,
    progress: Instant,
    /// None once it moved on.
    timer: Option<Timer>,
    evicted: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Runs out at a time that pauses of the gateway put off, by this at most.
struct Timer {
    most: Duration,
    clock: Arc<dyn Clock>,
    excuses: Excuses,
    until: Instant,
    sleep: Pin<Box<Sleep>>,
    last_look: bool,
}

impl Timer {
    fn new(clock: Arc<dyn Clock>, most: Duration) -> Timer {
        let (excuses, until) = (Excuses::from(clock.put_off()), Instant::now() + most);
        Timer { most, clock, excuses, until, sleep: Box::pin(sleep_until(until)), last_look: false }
    }

    fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.until != until {
            (self.until, self.last_look) = (until, false);
            self.sleep.as_mut().reset(until);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let put_off = self.excuses.look(self.clock.put_off(), Duration::ZERO).min(self.most);
            if put_off.is_zero() && self.last_look {
                return Poll::Ready(());
            }
            self.last_look = put_off.is_zero();
            self.sleep.as_mut().reset(Instant::now() + put_off.max(LAST_LOOK));
        }
    }
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

impl Visit {
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
                    match tls::trouble(&why) {
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
        let phase = self.stay.lock().phase;
        let until = match phase {
            Phase::Arriving { until } => until.min(self.begun + LONGEST),
            Phase::Waiting => self.begun + LONGEST,
            Phase::Asking => (self.progress + IDLE).min(self.begun + LONGEST),
            Phase::MovedOn => {
                self.timer = None;
                self.evicted = Box::pin(std::future::pending());
                return polled;
            }
        };
        if timer.poll(until, cx).is_ready() || self.evicted.as_mut().poll(cx).is_ready() {
            // It may not be polled again.
            self.evicted = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = match self.poll_io(cx) {
            Poll::Ready(Ok(io)) => Pin::new(io).poll_read(cx, buffer),
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            Poll::Pending => Poll::Pending,
        };
        if self.timer.is_some() && buffer.filled().len() > before {
            self.stay.lock().asks_again(self.patience);
        }
        self.timed(cx, polled)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match self.poll_io(cx) {
            Poll::Ready(Ok(io)) => Pin::new(io).poll_write(cx, bytes),
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            Poll::Pending => Poll::Pending,
        };
        self.timed(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_shutdown(cx)
    }
}
