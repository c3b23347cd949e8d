//! The brokers of one sink, and which is tried next.
//!
//! They are tried in the order of the configuration. One that lets the gateway in and then
//! confirms no reading counts as down, too: it rests, longer each time, and those behind it
//! come first meanwhile.

use super::reception::Reception;
use super::statuses::Position;
use crate::config::Broker;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a broker rests after the first connection without fruit; it doubles with each.
const REST: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(30 * 60);

/// A broker, and what is known of it.
pub(super) struct Candidate {
    pub broker: Broker,
    /// How far it knows the presence of devices.
    pub position: Position,
    /// How it takes that.
    pub reception: Reception,
    /// Its address that worked last.
    pub worked: Option<SocketAddr>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// Connections without fruit in a row.
    fruitless: u32,
    rests_until: Duration,
}

/// What came of a connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Fruit(Arc<(AtomicBool, AtomicBool)>);

impl Fruit {
    /// Something was sent that is to be confirmed.
    pub fn sent(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }

    /// Something of it was confirmed.
    pub fn confirmed(&self) {
        self.0.1.store(true, Ordering::Relaxed);
    }
}

impl Candidate {
    pub fn new(broker: Broker) -> Candidate {
        Candidate {
            broker,
            position: Position::default(),
            reception: Reception::default(),
            worked: None,
            standing: Standing::default(),
        }
    }

    /// A connection to it is over.
    pub fn ended(&mut self, fruit: &Fruit, now: Duration) {
        let (sent, confirmed) = (fruit.0.0.load(Ordering::Relaxed), fruit.0.1.load(Ordering::Relaxed));
        self.standing.ended(sent, confirmed, now);
    }
}

impl Standing {
    fn ended(&mut self, sent: bool, confirmed: bool, now: Duration) {
        if confirmed {
            *self = Standing::default();
        } else if sent {
            let rest = REST.saturating_mul(1 << self.fruitless.min(16)).min(REST_MAX);
            self.fruitless = self.fruitless.saturating_add(1);
            self.rests_until = now + rest;
        }
    }
}

/// The numbers of the candidates in the order in which they are tried.
pub(super) fn order(candidates: &[Candidate], now: Duration) -> Vec<usize> {
    ordered(candidates.iter().map(|candidate| candidate.standing), now)
}

fn ordered(standings: impl Iterator<Item = Standing>, now: Duration) -> Vec<usize> {
    let mut order: Vec<_> = standings.map(|standing| standing.rests_until).enumerate().collect();
    order.sort_by_key(|(_, until)| if *until > now { *until } else { Duration::ZERO });
    order.into_iter().map(|(number, _)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_bears_no_fruit_rests_longer_each_time_and_comes_back_first() {
        let at = Duration::from_secs;
        let mut three = [Standing::default(); 3];
        let order = |three: &[Standing; 3], now| ordered(three.iter().copied(), now);
        three[0].ended(false, false, at(100));
        assert_eq!(order(&three, at(100)), [0, 1, 2], "nothing was sent");
        three[0].ended(true, false, at(100));
        assert_eq!(order(&three, at(100)), [1, 2, 0]);
        three[1].ended(true, false, at(110));
        assert_eq!(order(&three, at(110)), [2, 0, 1]);
        assert_eq!(order(&three, at(160)), [0, 2, 1]);
        three[0].ended(true, false, at(160));
        assert_eq!(order(&three, at(279)), [1, 2, 0], "twice as long");
        assert_eq!(order(&three, at(280)), [0, 1, 2]);
        three[0].ended(true, true, at(300));
        three[0].ended(true, false, at(400));
        assert_eq!(order(&three, at(460)), [0, 1, 2], "it began anew");
        for _ in 0..100 {
            three[0].ended(true, false, at(1000));
        }
        assert_eq!(order(&three, at(1000) + REST_MAX), [0, 1, 2]);
    }
}
