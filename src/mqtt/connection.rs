//! One connection to one broker: drives a [`Client`](super::client::Client) over a stream of
//! bytes.
//!
//! All I/O happens in [`Connection::event`], in the task that awaits it: it writes queued
//! publishes, as many at once as the link accepts, and reads. So a connection needs no task of
//! its own, and no wake-ups between two tasks.

mod room;

use super::cause::{Cause, Refusal};
use super::client::{Client, Seen};
use super::dial::{self, Stream};
use super::message::{Acker, Event, Publish};
use super::options::Options;
use super::packet::Allowance;
use crate::backoff::Failure;
use crate::clock::LAST_LOOK;
use crate::config::MqttVersion as Version;
use bytes::BytesMut;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// A live connection. Dropping it makes the broker publish the Last Will;
/// [`Connection::close`] sends DISCONNECT.
pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
    client: Client,
    /// Output was written since the last flush.
    flushing: bool,
    input: BytesMut,
    began: Instant,
    timer: Pin<Box<Sleep>>,
    /// Since when the connection would be given up, unless something is received.
    doubted: Option<Instant>,
    events: VecDeque<Event>,
    closed: Option<Failure>,
    /// The far end closed it.
    hung_up: bool,
    acks: mpsc::UnboundedReceiver<u16>,
    /// For messages with manual acknowledgement.
    acker: Option<mpsc::UnboundedSender<u16>>,
    connected_at: Option<Instant>,
    version: Version,
    /// Without TLS.
    plain: bool,
}

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Within this time, an end without a reason has one of the usual causes.
const SOON: Duration = Duration::from_secs(10);

impl Connection {
    /// Connects and waits for the broker's CONNACK.
    ///
    /// # Errors
    /// If the broker cannot be reached, does not answer in time, or refuses.
    pub async fn open(options: &Options) -> Result<Connection, Failure> {
        Connection::open_at(options, None).await.map_err(|refusal| refusal.failure)
    }

    /// The same, but first tries `worked`, the address that worked last.
    ///
    /// # Errors
    /// If the broker cannot be reached, does not answer in time, or refuses.
    pub async fn open_at(options: &Options, worked: Option<SocketAddr>) -> Result<Connection, Refusal> {
        let opened = async {
            let (stream, peer) = dial::dial(options, worked).await?;
            let mut connection = Connection::over(stream, peer, options);
            match connection.accepted().await {
                Ok(()) => Ok(connection),
                Err(failure) => Err(Refusal { failure, cause: connection.cause() }),
            }
        };
        timeout(options.connect_timeout, opened).await.unwrap_or_else(|_| {
            let what = format!("no answer within {}", humantime::format_duration(options.connect_timeout));
            Err(Failure::transient(what).into())
        })
    }

    pub(super) fn over(stream: Stream, peer: SocketAddr, options: &Options) -> Connection {
        let began = Instant::now();
        let (acks_in, acks) = mpsc::unbounded_channel();
        Connection {
            stream,
            peer,
            client: Client::new(options, Duration::ZERO),
            flushing: false,
            input: BytesMut::new(),
            began,
            timer: Box::pin(sleep_until(began)),
            doubted: None,
            events: VecDeque::new(),
            closed: None,
            hung_up: false,
            acks,
            acker: options.manual_acks.then_some(acks_in),
            connected_at: None,
            version: options.version,
            plain: options.tls.is_none() && options.transport.websocket.is_none(),
        }
    }

    /// Waits for CONNACK.
    pub(super) async fn accepted(&mut self) -> Result<(), Failure> {
        poll_fn(|cx| {
            while self.connected_at.is_none() {
                if let Some(why) = self.closed.clone() {
                    return Poll::Ready(Err(why));
                }
                ready!(self.poll_io(cx));
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Receive Maximum of the broker, if it sent one (MQTT 5).
    pub fn receive_maximum(&self) -> Option<u16> {
        self.client.allowance().and_then(|told| told.receive_maximum)
    }

    /// The largest packet the broker accepts, in bytes, if it said so (MQTT 5).
    pub fn max_packet(&self) -> Option<u32> {
        self.client.allowance().and_then(|told| told.max_packet)
    }

    /// What the broker allows; what it does not mention is allowed.
    pub fn allowance(&self) -> Allowance {
        self.client.allowance().unwrap_or_default()
    }

    /// Why the broker refused or ended the connection, as far as it said.
    pub fn cause(&self) -> Cause {
        match self.client.cause() {
            Cause::Other if self.hung_up && self.connected_at.is_none() => Cause::NoAnswer,
            Cause::Other if self.hung_up => Cause::HungUp,
            cause => cause.clone(),
        }
    }

    /// Whether the broker kept the session of an earlier connection.
    pub fn session_present(&self) -> bool {
        self.client.allowance().is_some_and(|told| told.session_present)
    }

    /// The broker's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Queues a publish; [`Event::Acked`] or [`Event::Refused`] reports its `token`.
    ///
    /// # Errors
    /// If more are under way than the window allows, or the connection has ended.
    pub fn publish(&mut self, token: u64, publish: Publish) -> Result<(), Failure> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        let now = self.now();
        self.events.extend(self.client.publish(token, publish, now)?);
        Ok(())
    }

    /// Subscribes with QoS 1; [`Event::Subscribed`] reports the result.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn subscribe(&mut self, filter: &str) -> Result<(), Failure> {
        if let Some(why) = &self.closed {
            return Err(why.clone());
        }
        self.client.subscribe(filter);
        Ok(())
    }

    /// Writes and reads until the next event. Cancel-safe.
    pub async fn event(&mut self) -> Event {
        poll_fn(|cx| {
            loop {
                if let Some(event) = self.events.pop_front() {
                    return Poll::Ready(event);
                }
                if let Some(why) = &self.closed {
                    return Poll::Ready(Event::Closed(why.clone()));
                }
                ready!(self.poll_io(cx));
            }
        })
        .await
    }

    /// Sends DISCONNECT: the broker discards the Last Will and closes the connection.
    pub fn leave(&mut self) {
        self.client.disconnect();
    }

    /// Sends DISCONNECT, and waits until the broker has closed the connection.
    pub async fn close(mut self, within: Duration) {
        self.client.disconnect();
        let closed = async { while !matches!(self.event().await, Event::Closed(_)) {} };
        // A broker that does not close in time is ignored.
        let _ = timeout(within, closed).await;
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ready if something may have changed. Input is handled before time: after a pause of this
    /// process the broker's answers wait in the socket.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut confirmed = 0;
        while let Poll::Ready(Some(packet)) = self.acks.poll_recv(cx) {
            confirmed += self.client.confirm(packet);
        }
        if let Poll::Ready(Err(why)) = self.poll_write(cx) {
            // Bytes that were received before are still read.
            while self.poll_read(cx).is_ready() && self.closed.is_none() {}
            let failure = self.broken_off(&why);
            self.end(failure);
            return Poll::Ready(());
        }
        if confirmed > 0 {
            self.events.push_back(Event::Confirmed(confirmed));
            return Poll::Ready(());
        }
        if self.poll_read(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let (now, due) = (self.now(), self.client.due());
            if due <= now {
                return match self.client.tick(now) {
                    Ok(seen) => {
                        seen.into_iter().for_each(|seen| self.see(seen));
                        Poll::Ready(())
                    }
                    Err(why) => self.poll_give_up(why, cx),
                };
            }
            // An early timer costs less than re-arming it each time.
            let due = self.began + due;
            if due < self.timer.deadline() || self.timer.is_elapsed() {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }

    /// Ends the connection if another turn of the event loop has nothing to read: after a pause
    /// of the process, timers fire before sockets are polled.
    fn poll_give_up(&mut self, why: Failure, cx: &mut Context<'_>) -> Poll<()> {
        match self.doubted {
            Some(since) if since.elapsed() >= LAST_LOOK => self.end(why),
            doubted => {
                let since = doubted.unwrap_or_else(Instant::now);
                self.doubted = Some(since);
                self.timer.as_mut().reset(since + LAST_LOOK);
                ready!(self.timer.as_mut().poll(cx));
            }
        }
        Poll::Ready(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.client.output().is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, self.client.output()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => {
                    let now = self.now();
                    self.client.written(bytes, now);
                    self.flushing = true;
                }
                Poll::Ready(Err(why)) => return Poll::Ready(Err(why)),
                Poll::Pending => break,
            }
        }
        if self.flushing {
            // TLS buffers what the socket did not accept.
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushing = false;
        }
        Poll::Pending
    }

    /// Reads once; ready if something was received.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut room = [std::mem::MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut room);
        let failure = match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
            Ok(()) if !read.filled().is_empty() => {
                self.input.extend_from_slice(read.filled());
                self.doubted = None;
                let now = self.now();
                self.client.heard(now);
                self.take_all(now);
                return Poll::Ready(());
            }
            Ok(()) => self.hung_up(),
            Err(why) => self.broken_off(&why),
        };
        self.end(failure);
        Poll::Ready(())
    }

    fn take_all(&mut self, now: Duration) {
        let mut seen = Vec::new();
        let end = loop {
            match self.client.take(&mut self.input, now, &mut seen) {
                Ok(true) => {}
                Ok(false) => break None,
                Err(why) => break Some(why),
            }
        };
        seen.into_iter().for_each(|seen| self.see(seen));
        if let Some(why) = end {
            self.end(why);
        }
    }

    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Connected => self.connected_at = Some(Instant::now()),
            Seen::Event(event) => self.events.push_back(event),
            Seen::Message(mut message, packet) => {
                match &self.acker {
                    _ if packet == 0 => {}
                    Some(acks) => message.acker = Acker::new(packet, acks.clone()),
                    None => drop(self.client.confirm(packet)),
                }
                self.events.push_back(Event::Message(message));
            }
        }
    }

    fn end(&mut self, why: Failure) {
        self.closed.get_or_insert(why);
    }

    /// The connection was reset, by the broker or on the way.
    fn broken_off(&mut self, why: &io::Error) -> Failure {
        match why.kind() {
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => self.hung_up(),
            _ => dial::broken_off(why),
        }
    }

    /// The broker closed the connection without a reason.
    fn hung_up(&mut self) -> Failure {
        self.hung_up = true;
        let causes = match self.connected_at {
            None if self.plain => "; if that port is for TLS, write mqtts:// in `brokers`",
            None => " before it answered",
            Some(at) if at.elapsed() > SOON => "",
            Some(_) => match self.version {
                Version::V3_1_1 => {
                    " soon, and MQTT 3.1.1 gives no reason; usual causes: another client with the same client id, a \
                     topic that is not allowed, a message that is too large"
                }
                Version::V5 => " soon and gave no reason; a usual cause: another client with the same client id",
            },
        };
        Failure::transient(format!("the broker closed the connection{causes}"))
    }
}
