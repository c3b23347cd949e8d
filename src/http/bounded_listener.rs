//! How many may ask at one time, and for how long they may keep a place.
//!
//! A connection that becomes a device's WebSocket moves on and gives its place up; the
//! link that it moves to has places of its own.

mod client;
mod cut;
mod timer;

pub(super) use client::Announced;
pub use client::Visitor;
pub(super) use cut::Cut;

use crate::clock::Clock;
use crate::net::tls::{self, Secure, Tls};
use crate::net::{Listening, Pool, Porch, hung_up};
use axum::serve::Listener;
use client::{Phase, Stay};
use cut::{Farewell, LAST_WORDS};
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
pub struct Door {
    listening: Listening,
    porch: Porch,
    /// How long a request may take to come: the first from the connection on, another from
    /// its first byte.
    patience: Duration,
    secure: Option<(Arc<Tls>, Pool)>,
    clock: Arc<dyn Clock>,
}

impl Door {
    pub fn new(listening: Listening, patience: Duration, clock: Arc<dyn Clock>) -> Door {
        let porch = Porch::new(MAX_CONNECTIONS, Gauge::default());
        Door { listening, porch, patience, secure: None, clock }
    }

    /// Has everybody speak TLS; what that takes in memory is charged to `pool`.
    pub fn secure(mut self, tls: Arc<Tls>, pool: Pool) -> Door {
        self.secure = Some((tls, pool));
        self
    }

    /// What it listens by.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// Takes the next connection as soon as somebody may come.
    async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.porch.room(&*self.clock, || false).await;
        self.listening.accept().await
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
        let stay = Stay { place: Some(place), begun, phase, asks_since: begun, is_asked: false, cut: None };
        let stay = Arc::new(Mutex::new(stay));
        let timer = Some(Timer::new(self.clock.clone(), self.patience));
        let visitor = Visitor { from, certificate: certificate.clone(), stay: Some(stay.clone()) };
        let patience = self.patience;
        let visit = Visit {
            io,
            from,
            certificate,
            stay,
            patience,
            begun,
            progress: begun,
            timer,
            evicted,
            heard: false,
            midway: false,
            leaving: None,
            farewell: None,
        };
        Some((visit, visitor))
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
                    self.listening.failed(&why);
                    tracing::debug!(%why, "cannot accept an HTTP connection");
                    // A file descriptor is what is missing most likely.
                    self.porch.evict_one();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Visitor> {
        Ok(self.listening.address().into())
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
    /// Whether anything came.
    heard: bool,
    /// Whether the last write did not write everything.
    midway: bool,
    /// It is cut, and until when its answer may go out.
    leaving: Option<Instant>,
    farewell: Option<Farewell>,
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
        let mut stay = self.stay.lock();
        let until = match (self.leaving, stay.phase) {
            (Some(until), _) => until,
            (None, Phase::Arriving { until }) => until.min(self.begun + LONGEST),
            (None, Phase::Waiting) => self.begun + LONGEST,
            (None, Phase::Asking) => (self.progress + IDLE).min(self.begun + LONGEST),
            (None, Phase::MovedOn) => {
                self.timer = None;
                self.evicted = Box::pin(std::future::pending());
                return polled;
            }
        };
        let late = timer.poll(until, cx).is_ready();
        // What was heard is answered, whoever needs the place.
        let crowded = stay.phase != Phase::Waiting && self.evicted.as_mut().poll(cx).is_ready();
        if !late && !crowded {
            return polled;
        }
        // It may not be polled again, and is of no meaning any more.
        self.evicted = Box::pin(std::future::pending());
        let cut = if late { Cut::Late } else { Cut::Crowded };
        match stay.phase {
            _ if self.leaving.is_some() => {}
            // Whoever waits for the body says why it does not come.
            Phase::Arriving { .. } if stay.is_asked => {
                stay.cut = Some(cut);
                self.leaving = Some(Instant::now() + LAST_WORDS);
            }
            Phase::Arriving { .. } if (self.heard || !late) && !self.midway => {
                self.farewell = Some(Farewell::telling(cut));
            }
            // The answer is under way.
            Phase::Asking if self.midway && !late => {
                self.leaving = Some(Instant::now() + LAST_WORDS);
                return polled;
            }
            _ => {}
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ready when the last words were said, if there are any.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(mut farewell) = self.farewell.take() else { return Poll::Ready(()) };
        let said = match self.poll_io(cx) {
            Poll::Ready(Ok(io)) => farewell.poll(io, cx),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(()),
        };
        if said.is_pending() {
            self.farewell = Some(farewell);
        }
        said
    }
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_none() {
            if self.leaving.is_some() {
                let answered = self.stay.lock().phase == Phase::Asking;
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
                self.stay.lock().asks_again(self.patience);
            }
            let polled = self.timed(cx, polled);
            if self.farewell.is_none() {
                return polled;
            }
        }
        self.poll_farewell(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.farewell.is_some() {
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
        self.farewell = None;
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_io(cx))?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.leaving.is_some() {
            self.farewell.get_or_insert_with(Farewell::answered);
            return self.poll_farewell(cx).map(Ok);
        }
        Pin::new(ready!(self.poll_io(cx))?).poll_shutdown(cx)
    }
}
