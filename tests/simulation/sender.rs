//! Whoever gives commands: through a broker or on the gateway itself, to devices that
//! are there or not, again and again.

use super::context::Context;
use super::gateway::{Gateway, SinkPlan};
use super::mailbox::Letter;
use fastrand::Rng;
use std::collections::VecDeque;
use std::time::Duration;
use tidegate::model::{DeviceId, Target};
use tokio::time::Instant;

pub struct Sender {
    random: Rng,
    /// The time between commands; none are given if there is none.
    pace: Option<Duration>,
    due: Instant,
    count: u64,
    /// Those given last, and for how long each is wanted.
    recent: VecDeque<(Letter, Duration)>,
}

/// Commands that may be given again.
const RECENT: usize = 30;

impl Sender {
    pub fn new(mut random: Rng) -> Sender {
        let pace = [None, Some(300), Some(2000), Some(2000), Some(10_000)][random.usize(..5)];
        Sender { random, pace: pace.map(Duration::from_millis), due: Instant::now(), count: 0, recent: VecDeque::new() }
    }

    /// Gives no more.
    pub fn stop(&mut self) {
        self.pace = None;
    }

    pub fn is_due(&self) -> bool {
        self.pace.is_some() && self.due <= Instant::now()
    }

    /// Gives what is due to some of `targets`.
    pub fn work(&mut self, context: &Context, targets: &[String], sinks: &[SinkPlan], gateway: Option<&mut Gateway>) {
        let Some(pace) = self.pace else { return };
        self.due = Instant::now() + pace.mul_f64(2.0 * self.random.f64());
        let random = &mut self.random;
        // As many as a device's queue holds and more, now and then.
        let count = if random.u8(..10) == 0 { random.usize(2..24) } else { 1 };
        let target = &targets[random.usize(..targets.len())];
        let mut local = gateway;
        for _ in 0..count {
            let random = &mut self.random;
            let again = random.u8(..6) == 0 && !self.recent.is_empty();
            let (letter, lifetime) = match again {
                true => self.recent[random.usize(..self.recent.len())].clone(),
                false => self.letter(target),
            };
            let broker = &sinks[self.random.usize(..sinks.len())].broker;
            let by_broker = self.random.bool();
            let way = by_broker.then(|| (broker.number, broker.mailbox.next()));
            context.trace(format_args!("{:?} is given by {way:?}: {}", letter.key, letter.body));
            context.oracle(|oracle| oracle.orders.given(&letter.key, lifetime, way));
            match (by_broker, &mut local) {
                (true, _) => broker.mailbox.post(letter),
                (false, Some(gateway)) => gateway.submit(letter),
                (false, None) => {}
            }
        }
    }

    fn letter(&mut self, target: &str) -> (Letter, Duration) {
        self.count += 1;
        let seconds = [1, 3, 10, 30, 60][self.random.usize(..5)];
        let id = format!("c{}", self.count);
        let name = if target.is_empty() { "ping" } else { "turn" };
        let body = format!("{{\"id\":\"{id}\",\"name\":\"{name}\",\"payload\":[1],\"expires\":\"{seconds}s\"}}");
        let device = DeviceId::new(target).ok();
        let letter =
            Letter { key: (target.to_owned(), id), target: device.map_or(Target::Gateway, Target::Device), body };
        let given = (letter, Duration::from_secs(seconds));
        self.recent.push_back(given.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        given
    }
}
