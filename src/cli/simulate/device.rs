//! Runs a [`Client`] over real connections.

use super::access::Security;
use super::client::{Client, Step};
use super::report::{Latencies, Outcome};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::net::tls::FlushOnWrite;
use crate::stop;
use crate::wire::codec::decode_gateway;
use crate::wire::frame::{Decoder, Event, Limits, MAX_BODY, Recovery};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::client::TlsStream;

/// Shared by all devices of a run.
#[derive(Clone)]
pub struct RunContext {
    pub clock: Arc<dyn Clock>,
    pub latencies: Arc<Latencies>,
    /// TLS of the connections, if it is used.
    pub security: Option<Security>,
    /// Ends the run early when it turns true.
    pub stop: watch::Receiver<bool>,
    /// Whether the first problem was logged; the summary has the last.
    pub told: Arc<AtomicBool>,
}

impl RunContext {
    /// Time left until `time` on the monotonic clock.
    fn until(&self, time: Duration) -> Duration {
        time.saturating_sub(self.clock.now().monotonic)
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything was acknowledged and Goodbye said.
    Finished,
    /// Readings were not acknowledged in time.
    GaveUp,
    /// The run was stopped.
    Stopped,
    /// There was no Welcome.
    Refused(String),
    /// It was lost after the Welcome.
    Lost(String),
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to send Goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds of the pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Backoff is reset after a connection that lasted this long.
const STABLE: Duration = Duration::from_secs(1);
const READ_BUFFER: usize = 1024;

/// Connects `client` to one of `addresses` until it has finished, gives up or is stopped.
/// The first attempt is after `delay`.
pub async fn run(addresses: &[SocketAddr], mut client: Client, delay: Duration, around: RunContext) -> Outcome {
    let mut outcome = Outcome::default();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, STABLE, client.identity().session);
    let mut pause = delay;
    loop {
        let mut stop = around.stop.clone();
        let next = async {
            sleep(pause.min(around.until(client.gives_up_at()))).await;
            let now = around.clock.now().monotonic;
            if client.welcomed() > 0 && client.is_finished(now) || now >= client.gives_up_at() {
                return None; // without a connection
            }
            Some((now, connect(addresses, around.until(client.gives_up_at())).await))
        };
        let next = tokio::select! {
            next = next => next,
            () = stop::requested(&mut stop) => None,
        };
        let Some((began, connected)) = next else { break };
        let end = match (connected, &around.security) {
            (Ok(stream), None) => drive(stream, &mut client, Recovery::Fail, &around).await,
            (Ok(stream), Some(security)) => match secure(stream, security).await {
                Ok(stream) => drive(stream, &mut client, Recovery::Fail, &around).await,
                Err(why) => End::Refused(why),
            },
            (Err(why), _) => End::Refused(why),
        };
        client.disconnected();
        let trouble = match &end {
            End::Finished | End::GaveUp | End::Stopped => break,
            End::Refused(why) => {
                outcome.refused += 1;
                format!("{} was refused: {why}", client.identity().id)
            }
            End::Lost(why) => {
                outcome.disconnected += 1;
                format!("{} was disconnected: {why}", client.identity().id)
            }
        };
        if !around.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("{trouble}; retrying");
        }
        outcome.trouble = Some(trouble);
        if matches!(end, End::Lost(_)) {
            backoff.worked_for(around.clock.now().monotonic.saturating_sub(began));
        }
        pause = backoff.delay();
    }
    let now = around.clock.now().monotonic;
    let interrupted = *around.stop.borrow();
    Outcome {
        sent: client.sent(),
        acked: client.acked(),
        resent: client.resent(),
        welcomed: client.welcomed(),
        complete: if interrupted { client.is_settled() } else { client.is_finished(now) },
        ..outcome
    }
}

async fn connect(addresses: &[SocketAddr], left: Duration) -> Result<TcpStream, String> {
    let stream = match timeout(CONNECT_TIMEOUT.min(left), TcpStream::connect(addresses)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Err(why.to_string()),
        Err(_) => return Err("the connection was not established in time".into()),
    };
    stream.set_nodelay(true).map_err(|why| why.to_string())?;
    Ok(stream)
}

/// TLS handshake. When the run is stopped, it delays the end by its timeout at most.
async fn secure(stream: TcpStream, security: &Security) -> Result<FlushOnWrite<TlsStream<TcpStream>>, String> {
    let shaken = security.connector.connect(security.host.clone(), stream);
    match timeout(CONNECT_TIMEOUT, shaken).await {
        Ok(Ok(stream)) => Ok(FlushOnWrite::new(stream)),
        Ok(Err(why)) => Err(format!("TLS: {why}")),
        Err(_) => Err("the TLS handshake took too long".into()),
    }
}

/// Runs `client` over `stream`, which must not buffer writes. `recovery` is the decoder's
/// mode for bytes outside a frame.
pub async fn drive<S>(mut stream: S, client: &mut Client, recovery: Recovery, around: &RunContext) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = Limits { max_body: MAX_BODY, require_checksum: false };
    let mut decoder = Decoder::new(limits, recovery);
    let mut input = vec![0; READ_BUFFER];
    let mut output = Vec::new();
    let mut written = 0;
    let mut alarm = pin!(Alarm::new());
    let mut stop = around.stop.clone();
    let mut stopped = pin!(stop::requested(&mut stop));
    client.connected(around.clock.now(), &mut output);
    let mut due = true;
    loop {
        if *around.stop.borrow() {
            return End::Stopped; // checked here too, because a busy stream may never be idle
        }
        if due {
            if written == output.len() {
                output.clear();
                written = 0;
            }
            let now = around.clock.now();
            match client.poll(now, &mut output) {
                Step::Until(time) => alarm.as_mut().set(time, now.monotonic),
                Step::Silent(why) => return ended(client, why.into()),
                Step::GaveUp => return End::GaveUp,
                Step::Finished => {
                    let goodbye = async {
                        stream.write_all(&output[written..]).await?; // never more than was appended
                        stream.shutdown().await
                    };
                    let _ = timeout(GOODBYE_TIMEOUT, goodbye).await; // everything is acknowledged already
                    return End::Finished;
                }
            }
        }
        let happened = poll_fn(|cx| {
            let rest = &output[written..]; // likewise
            if let Poll::Ready(happened) = poll_stream(&mut stream, cx, &mut input, rest) {
                return Poll::Ready(happened);
            }
            let woken = alarm.as_mut().poll(cx).is_ready() || stopped.as_mut().poll(cx).is_ready();
            if woken { Poll::Ready(Ok(Happened::Woken)) } else { Poll::Pending }
        });
        match happened.await {
            Ok(Happened::Read(0)) => return ended(client, "the gateway closed the connection".into()),
            Ok(Happened::Wrote(0)) => return ended(client, "the connection takes no more bytes".into()),
            Ok(Happened::Read(n)) => {
                if let Err(why) = receive(client, &mut decoder, &input[..n], around) {
                    return ended(client, why); // n is what was read into it
                }
                due = written == output.len();
            }
            Ok(Happened::Wrote(n)) => {
                written += n;
                due = written == output.len();
            }
            Ok(Happened::Woken) => due = true,
            Err(why) => return ended(client, why.to_string()),
        }
    }
}

fn ended(client: &Client, why: String) -> End {
    if client.is_welcomed() { End::Lost(why) } else { End::Refused(why) }
}

enum Happened {
    Read(usize),
    Wrote(usize),
    Woken,
}

/// Reads what is there, else writes the output. Reading comes first, so that a stream that
/// always accepts writes does not delay Acks.
fn poll_stream<S>(
    stream: &mut S,
    cx: &mut Context<'_>,
    input: &mut [u8],
    output: &[u8],
) -> Poll<std::io::Result<Happened>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = ReadBuf::new(input);
    if let Poll::Ready(result) = Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
        return Poll::Ready(result.map(|()| Happened::Read(buffer.filled().len())));
    }
    if output.is_empty() {
        return Poll::Pending;
    }
    Pin::new(stream).poll_write(cx, output).map_ok(Happened::Wrote)
}

fn receive(client: &mut Client, decoder: &mut Decoder, bytes: &[u8], around: &RunContext) -> Result<(), String> {
    let now = around.clock.now();
    let mut latencies = around.latencies.of(client.identity().number).lock();
    let mut result = Ok(());
    let decoded = decoder.push(bytes, &mut |event| {
        if let (Event::Frame(frame), Ok(())) = (event, &result) {
            result = match decode_gateway(&frame) {
                Ok(message) => client.received(&message, now, &mut latencies),
                Err(why) => Err(format!("the gateway's message is invalid: {why}")),
            };
        }
        ControlFlow::Continue(())
    });
    result.and(decoded.map_err(|why| format!("the gateway's bytes are invalid: {why}")))
}

/// A timer that is set for every burst, but re-armed only if it would fire too late.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    armed: Duration,
}

impl Alarm {
    fn new() -> Alarm {
        Alarm { sleep: Box::pin(sleep(Duration::ZERO)), armed: Duration::ZERO }
    }

    /// Fires at `time` or earlier.
    fn set(mut self: Pin<&mut Self>, time: Duration, now: Duration) {
        if time < self.armed || now >= self.armed {
            // A sleep has a longest duration; firing early is harmless.
            let pause = time.saturating_sub(now).min(Duration::from_secs(3_600));
            self.sleep.as_mut().reset(Instant::now() + pause);
            self.armed = now + pause;
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }
}
