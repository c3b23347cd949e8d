//! The brokers of one sink, by each way out, and which is tried next.
//!
//! They are tried in the order of the configuration, all by the first way out, then all by the next. One that lets the gateway in and then
//! confirms no reading counts as down, too: it rests, longer each time, and those behind it
//! come first meanwhile.

use super::capabilities::Capabilities;
use super::feature_breaker::FeatureBreaker;
use super::statuses::Position;
use crate::config::{Broker, Way};
use crate::mqtt::{Cause, Learnt};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a broker rests after the first connection without fruit; it doubles with each.
const REST: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(30 * 60);

/// A broker by one way out, and what is known of it.
pub(super) struct Candidate {
    pub way: Way,
    /// How far it knows the presence of devices.
    pub position: Position,
    /// How it takes that.
    pub feature_breaker: FeatureBreaker,
    /// Its address that worked last.
    pub worked: Option<SocketAddr>,
    /// How it lets the gateway in.
    pub capabilities: Capabilities,
    /// What the last connection learnt of a server's pace, and when that ended.
    pace: Option<(Broker, Learnt, Duration)>,
    standing: Standing,
    /// Servers that the broker sends its clients to.
    elsewhere: Vec<Broker>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// Connections without fruit in a row.
    fruitless: u32,
    rests_until: Duration,
}

/// What came of a connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Fruit(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicBool,
    confirmed: AtomicBool,
    /// Why the broker ended it, and what was learnt of its pace.
    cause: OnceLock<Cause>,
    learnt: OnceLock<Learnt>,
}

impl Fruit {
    /// Something was sent that is to be confirmed.
    pub fn sent(&self) {
        self.0.sent.store(true, Ordering::Relaxed);
    }

    /// Something of it was confirmed.
    pub fn confirmed(&self) {
        self.0.confirmed.store(true, Ordering::Relaxed);
    }

    /// It is over, and this was learnt of the broker's pace.
    pub fn learnt(&self, learnt: Learnt) {
        let _ = self.0.learnt.set(learnt);
    }

    /// The broker ended it, for this reason.
    pub fn ended_by(&self, cause: Cause) {
        let _ = self.0.cause.set(cause);
    }
}

impl Candidate {
    /// What `others` know of the same broker by other ways out, it shares.
    pub fn new(way: Way, others: &[Candidate]) -> Candidate {
        let same = others.iter().find(|other| other.way.broker == way.broker);
        Candidate {
            position: same.map(|same| same.position.clone()).unwrap_or_default(),
            feature_breaker: same.map(|same| same.feature_breaker.clone()).unwrap_or_default(),
            way,
            worked: None,
            capabilities: Capabilities::default(),
            pace: None,
            standing: Standing::default(),
            elsewhere: Vec::new(),
        }
    }

    /// A connection to it is over.
    pub fn ended(&mut self, fruit: &Fruit, now: Duration) {
        let (sent, confirmed) = (fruit.0.sent.load(Ordering::Relaxed), fruit.0.confirmed.load(Ordering::Relaxed));
        self.standing.ended(sent, confirmed, now);
        if let Some(learnt) = fruit.0.learnt.get() {
            self.pace = Some((self.target().broker, *learnt, now));
        }
        if let Some(cause) = fruit.0.cause.get() {
            self.learn(cause, now);
        }
    }

    /// The broker refused or ended a connection: what follows for which one is used next.
    pub fn learn(&mut self, cause: &Cause, now: Duration) {
        match cause {
            Cause::Busy => self.standing.rests(now),
            Cause::Retain => self.capabilities.retains_nothing(now),
            Cause::Elsewhere { servers, for_good } => {
                self.elsewhere = named(servers, self.way.broker.tls);
                if *for_good {
                    tracing::warn!(broker = %self.way.broker, servers, "the broker has moved; change brokers");
                }
            }
            _ => {}
        }
    }

    /// Where to connect: to where the broker sends its clients, or to itself.
    pub fn target(&self) -> Way {
        let broker = self.elsewhere.first().unwrap_or(&self.way.broker).clone();
        Way { broker, bind: self.way.bind.clone() }
    }

    /// What was learnt of the target's pace, and how long ago.
    pub fn pace(&self, now: Duration) -> Option<(Learnt, Duration)> {
        let (_, learnt, at) = self.pace.as_ref().filter(|(server, ..)| *server == self.target().broker)?;
        Some((*learnt, now.saturating_sub(*at)))
    }

    /// Whether that is another server.
    pub fn is_redirected(&self) -> bool {
        !self.elsewhere.is_empty()
    }

    /// The target was not reached. If another one is left that the broker named, or the broker
    /// itself, that is the target from now on; false if it was.
    pub fn goes_back(&mut self) -> bool {
        let was_elsewhere = self.is_redirected();
        if was_elsewhere {
            self.elsewhere.remove(0);
        }
        was_elsewhere
    }

    /// How long it is not to be used, from now on.
    pub fn rests_for(&self, now: Duration) -> Duration {
        self.standing.rests_until.saturating_sub(now)
    }
}

impl Standing {
    fn ended(&mut self, sent: bool, confirmed: bool, now: Duration) {
        if confirmed {
            *self = Standing::default();
        } else if sent {
            self.rests(now);
        }
    }

    fn rests(&mut self, now: Duration) {
        let rest = REST.saturating_mul(1 << self.fruitless.min(16)).min(REST_MAX);
        self.fruitless = self.fruitless.saturating_add(1);
        self.rests_until = now + rest;
    }
}

/// The servers of a reference (MQTT 5, 4.11), `HOST[:PORT]` with blanks between them. TLS stays.
fn named(servers: &str, tls: bool) -> Vec<Broker> {
    const MOST: usize = 4;
    let scheme = if tls { "mqtts" } else { "mqtt" };
    servers.split_whitespace().filter_map(|server| format!("{scheme}://{server}").parse().ok()).take(MOST).collect()
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
    fn a_broker_s_reference_is_followed_until_it_leads_nowhere() {
        let way = Way { broker: "mqtts://first".parse().expect("an address"), bind: None };
        let mut candidate = Candidate::new(way, &[]);
        let servers = "second:8884 [fd00::3] /no/server".to_owned();
        candidate.learn(&Cause::Elsewhere { servers, for_good: false }, Duration::ZERO);
        assert_eq!(candidate.target().to_string(), "mqtts://second:8884");
        assert!(candidate.goes_back());
        assert_eq!(candidate.target().to_string(), "mqtts://[fd00::3]:8883");
        assert!(candidate.goes_back());
        assert_eq!(candidate.target().to_string(), "mqtts://first:8883");
        assert!(!candidate.goes_back());
        let servers = "/no/server".to_owned();
        candidate.learn(&Cause::Elsewhere { servers, for_good: true }, Duration::ZERO);
        assert!(!candidate.is_redirected());
    }

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
