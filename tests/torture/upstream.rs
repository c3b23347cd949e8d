//! A broker that can be killed: Mosquitto, or one that does as a script tells it.

use crate::support::broker::Broker;
use crate::support::script::{Manners, Script};
use fastrand::Rng;
use std::time::Duration;

pub enum Upstream {
    Mosquitto(Broker),
    /// The port stays the same.
    Scripted(u16, Option<Script>),
}

impl Upstream {
    pub async fn start(scripted: bool, random: &mut Rng) -> Upstream {
        if scripted {
            let script = Script::start(draw(random).1).await;
            return Upstream::Scripted(script.port, Some(script));
        }
        Upstream::Mosquitto(Broker::mosquitto("allow_anonymous true").await)
    }

    pub fn port(&self) -> u16 {
        match self {
            Upstream::Mosquitto(broker) => broker.port(),
            Upstream::Scripted(port, _) => *port,
        }
    }

    pub fn is_slow(&self) -> bool {
        matches!(self, Upstream::Scripted(..))
    }

    pub fn kill(&mut self) {
        match self {
            Upstream::Mosquitto(broker) => broker.kill(),
            Upstream::Scripted(_, script) => *script = None,
        }
    }

    /// Starts it again; what it does then.
    pub async fn resume(&mut self, random: &mut Rng) -> &'static str {
        match self {
            Upstream::Mosquitto(broker) => {
                broker.resume().await;
                "behaves"
            }
            Upstream::Scripted(port, script) => {
                let (how, manners) = draw(random);
                *script = Some(Script::start_on(*port, manners).await);
                how
            }
        }
    }
}

/// One way to be a nuisance, and its name.
fn draw(random: &mut Rng) -> (&'static str, Manners) {
    let manners = Manners { v5: true, ..Manners::default() };
    match random.u8(..4) {
        0 => ("confirms late", Manners { late: Some(Duration::from_secs(1)), ..manners }),
        1 => ("loses confirmations", Manners { loses: 30, ..manners }),
        2 => ("closes connections", Manners { closes: 10, ..manners }),
        _ => ("takes one publish at a time", Manners { receive_maximum: Some(1), ..manners }),
    }
}
