//! Commands that come from a broker, on their way to whoever carries them out.
//!
//! They stay the broker's until they are confirmed. Those that are not taken at once wait
//! here, a bounded number of them; what is more is left to the broker, which sends it
//! again when the gateway connects again, as it does once the others are taken.

use crate::backoff::Failure;
use crate::model::Target;
use crate::mqtt::{Acker, Connection, Message, Topics};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;

/// Somebody wants something done.
#[derive(Debug)]
pub struct Instruction {
    pub target: Target,
    pub body: Bytes,
    /// For how long it is wanted, if the broker knows that.
    pub wanted_for: Option<Duration>,
    pub acker: Acker,
}

/// The commands of one connection.
pub(super) struct Intake {
    topics: Topics,
    taker: mpsc::Sender<Instruction>,
    waiting: VecDeque<Instruction>,
    left_to_broker: bool,
}

/// More than brokers mostly have outstanding.
const MAX_WAITING: usize = 256;

impl Intake {
    /// Subscribes to commands.
    pub fn begin(
        connection: &Connection,
        topics: &Topics,
        taker: mpsc::Sender<Instruction>,
    ) -> Result<Intake, Failure> {
        for filter in topics.command_filters() {
            connection.subscribe(&filter)?;
        }
        Ok(Intake { topics: topics.clone(), taker, waiting: VecDeque::new(), left_to_broker: false })
    }

    /// A message came.
    pub fn take(&mut self, message: Message) {
        let Message { topic, payload, retained, wanted_for, acker } = message;
        let Some(target) = self.topics.commanded(&topic) else {
            tracing::warn!(topic, "a message came by a topic of no device; it is passed over");
            return acker.ack();
        };
        if retained {
            // It would come anew with each connection, long after it was wanted.
            tracing::warn!(topic, "a retained command is passed over; publish commands without the retain flag");
            return acker.ack();
        }
        if self.waiting.len() < MAX_WAITING && !self.left_to_broker {
            self.waiting.push_back(Instruction { target, body: payload, wanted_for, acker });
        } else {
            self.left_to_broker = true;
        }
    }

    /// Waits until one more is taken; for ever if none is there. Cancel-safe.
    ///
    /// # Errors
    /// If the rest is to be fetched by another connection.
    pub async fn forward(&mut self) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            if self.left_to_broker {
                let what = "more commands came at once than the broker is left with; connecting again for the rest";
                return Err(Failure { what: what.into(), permanent: false });
            }
            return std::future::pending().await;
        }
        match self.taker.reserve().await {
            Ok(room) => {
                if let Some(instruction) = self.waiting.pop_front() {
                    room.send(instruction);
                }
            }
            // Nobody takes any more; the broker keeps them.
            Err(_) => self.waiting.clear(),
        }
        Ok(())
    }
}
