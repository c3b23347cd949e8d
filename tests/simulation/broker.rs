//! Brokers: one for each sink, up or down, slow or quick, and connections to them
//! that break with messages and confirmations under way.

use super::context::Context;
use super::mailbox::{self, Mailbox};
use fastrand::Rng;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate::backoff::Failure;
use tidegate::clock::Now;
use tidegate::config::Encoding;
use tidegate::model::{BootId, Epochs, InboundCommand, Seq, SequencedBatch};
use tidegate::sink::encode::{self, Fit, Replay};
use tidegate::sink::{Budget, Destination, Encoded, Identity, Outcome, Part, SinkConnection, Unencodable};
use tidegate::store::{LogEvent, with_epoch};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// What the operator does to a broker.
#[derive(Debug, Clone)]
pub struct Weather {
    pub up: bool,
    pub latency: Duration,
    /// How long a connection lasts, at most.
    pub lifetime: Duration,
    pub window: usize,
}

#[derive(Clone)]
pub struct Broker {
    context: Context,
    sink: String,
    state: Arc<Mutex<(Weather, Rng)>>,
    /// The operator restarted it so many times.
    restarts: Arc<AtomicU64>,
    /// By which it is told from others, whatever it is called.
    pub number: u64,
    /// Commands for the gateway.
    pub mailbox: Mailbox,
}

impl Broker {
    pub fn new(context: &Context, sink: &str, weather: Weather, seed: u64) -> Broker {
        let state = Arc::new(Mutex::new((weather, Rng::with_seed(seed))));
        Broker {
            context: context.clone(),
            sink: sink.to_owned(),
            state,
            restarts: Arc::default(),
            number: seed,
            mailbox: Mailbox::default(),
        }
    }

    pub fn set(&self, weather: Weather) {
        self.context.trace(format_args!("broker {}: {weather:?}", self.sink));
        self.state.lock().0 = weather;
    }

    /// Connections made before are lost.
    pub fn restart(&self, weather: Weather) {
        self.set(weather);
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub fn renamed(&self, sink: &str) -> Broker {
        Broker { sink: sink.to_owned(), ..self.clone() }
    }

    fn is_up(&self) -> bool {
        self.state.lock().0.up
    }
}

pub struct SimulatedDestination {
    pub broker: Broker,
    pub boot: BootId,
    pub identity: Identity,
    pub epochs: Epochs,
    pub encoding: Encoding,
    pub taker: mpsc::Sender<InboundCommand>,
}

pub enum Payload {
    Readings(Vec<u8>),
    Event(LogEvent),
}

pub struct SimulatedConnection {
    broker: Broker,
    breaks: Instant,
    restarts: u64,
    latency: Duration,
    window: usize,
    /// Messages on their way there, and confirmations on their way back.
    going: VecDeque<(Instant, u64, Payload)>,
    coming: VecDeque<(Instant, u64)>,
    last: u64,
    commands: mailbox::Delivery,
}

fn lost(what: &str) -> Failure {
    Failure { what: what.to_owned(), permanent: false }
}

impl Destination for SimulatedDestination {
    type Payload = Payload;
    type Connection = SimulatedConnection;

    async fn connect(&mut self) -> Result<SimulatedConnection, Failure> {
        let latency = self.broker.state.lock().0.latency;
        sleep(latency * 2).await;
        let broker = self.broker.clone();
        let (weather, random) = &mut *self.broker.state.lock();
        if !weather.up {
            return Err(lost("the broker is down"));
        }
        let breaks = Instant::now() + weather.lifetime.mul_f64(random.f64());
        self.broker.context.trace(format_args!("sink {} connected", self.broker.sink));
        Ok(SimulatedConnection {
            commands: mailbox::Delivery::new(&broker.context, &broker.mailbox, self.taker.clone(), latency),
            restarts: broker.restarts.load(Ordering::Relaxed),
            broker,
            breaks,
            latency,
            window: weather.window,
            going: VecDeque::new(),
            coming: VecDeque::new(),
            last: 0,
        })
    }

    fn encode(
        &self,
        chunk: &[SequencedBatch],
        after: Seq,
        budget: Budget,
        now: Now,
    ) -> Result<Encoded<Payload>, Unencodable> {
        let entries = encode::entries(chunk, after, Replay::new(Duration::from_secs(60), now, self.boot));
        let (identity, entries) = encode::of_one_epoch(&self.identity, &self.epochs, entries);
        let mut writer = encode::writer(self.encoding, &identity);
        match encode::payload(&mut *writer, entries, budget) {
            Ok((payload, upto, readings)) => {
                let size = payload.len();
                let payload = Payload::Readings(payload);
                Ok(Encoded {
                    payloads: vec![Part { payload, size, readings, first: after.next(), last: upto }],
                    upto,
                    readings,
                })
            }
            Err((Fit::TooLarge, seq)) => Err(Unencodable::TooLarge(seq)),
            Err(_) => Err(Unencodable::Nothing),
        }
    }

    fn event(&self, event: &LogEvent) -> Payload {
        Payload::Event(LogEvent { body: with_epoch(event.body.clone(), &self.epochs), ..event.clone() })
    }

    fn lane(payload: &Payload) -> &'static str {
        match payload {
            Payload::Readings(_) => "readings",
            Payload::Event(_) => "events",
        }
    }
}

impl SimulatedConnection {
    /// What has arrived at the broker by now.
    fn arrive(&mut self) {
        let now = Instant::now();
        while let Some((at, ..)) = self.going.front()
            && *at <= now.min(self.breaks)
        {
            let Some((_, token, payload)) = self.going.pop_front() else { return };
            self.take(token, &payload);
            self.coming.push_back((now + self.latency, token));
        }
    }

    fn take(&mut self, token: u64, payload: &Payload) {
        // What is tried out of turn comes again in its turn, with a token that counts up.
        let mut none = 0;
        let last = if token < 1 << 61 { &mut self.last } else { &mut none };
        let Broker { context, sink, .. } = &self.broker;
        match payload {
            Payload::Readings(bytes) => match encode::decode(bytes) {
                Ok(delivery) => {
                    let range = delivery.readings.first().zip(delivery.readings.last());
                    if let Some((first, last)) = range {
                        context.trace(format_args!("{sink} gets {}..{}", first.seq, last.seq));
                    }
                    context.delivered(sink, &delivery, last);
                }
                Err(why) => context.oracle(|oracle| oracle.violated(format!("{sink} cannot decode: {why}"))),
            },
            Payload::Event(event) => {
                context.trace(format_args!("{sink} gets event {} {:?}", event.id, event.body));
                context.event(sink, event.id, &event.body);
            }
        }
    }
}

impl SinkConnection for SimulatedConnection {
    type Payload = Payload;

    fn window(&self) -> usize {
        self.window
    }

    fn max_payload(&self) -> usize {
        64 * 1024
    }

    fn tells_size(&self) -> bool {
        false
    }

    fn send(&mut self, token: u64, payload: Payload) -> Result<(), Failure> {
        self.arrive();
        self.going.push_back((Instant::now() + self.latency, token, payload));
        Ok(())
    }

    async fn outcome(&mut self) -> Outcome {
        loop {
            self.arrive();
            let now = Instant::now();
            // A broker that goes down takes its connections along.
            let restarted = self.broker.restarts.load(Ordering::Relaxed) != self.restarts;
            if now >= self.breaks || restarted || !self.broker.is_up() {
                self.breaks = self.breaks.min(now);
                return Outcome::Lost(lost("the connection broke"));
            }
            if let Some((at, token)) = self.coming.front().copied()
                && at <= now
            {
                self.coming.pop_front();
                return Outcome::Confirmed(token);
            }
            let next = self.going.front().map(|(at, ..)| *at).into_iter().chain(self.coming.front().map(|(at, _)| *at));
            let patience = now + Duration::from_millis(500);
            tokio::select! {
                biased;
                () = self.commands.step() => {}
                () = sleep_until(next.min().unwrap_or(patience).min(self.breaks).min(patience)) => {}
            }
        }
    }

    async fn close(self, _within: Duration) {}
}

impl Drop for SimulatedConnection {
    /// What was sent may arrive although the sender is gone.
    fn drop(&mut self) {
        self.arrive();
        let some = self.broker.state.lock().1.usize(..=self.going.len());
        if Instant::now() < self.breaks {
            for (_, token, payload) in std::mem::take(&mut self.going).into_iter().take(some) {
                self.take(token, &payload);
            }
        }
    }
}
