//! One connection to a broker, as the pump uses it.

use super::STATUS;
use super::candidates::Fruit;
use super::commands::Intake;
use super::leaving::{self, Leaving};
use super::status::Status;
use super::statuses::Statuses;
use super::watch::{self, Watch};
use crate::backoff::Failure;
use crate::mqtt::{Cause, Connection, Event, Publish};
use crate::sink::{Outcome, SinkConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A connection to a broker.
pub struct MqttConnection {
    pub(super) connection: Connection,
    pub(super) fruit: Fruit,
    /// Whether the sink has other brokers, too.
    pub(super) has_others: bool,
    pub(super) leaving: Leaving,
    /// Why it was left, if it was.
    pub(super) left: Option<Failure>,
    pub(super) window: usize,
    pub(super) max_payload: usize,
    /// Whether the broker said that, or its cloud does.
    pub(super) tells_size: bool,
    pub(super) status: Status,
    pub(super) statuses: Option<Statuses>,
    pub(super) inbound: Inbound,
    pub(super) client: Client,
    /// When the broker let the gateway in.
    pub(super) since: Instant,
}

/// What comes from the broker.
pub(super) struct Inbound {
    pub intake: Option<Intake>,
    pub watch: Watch,
}

/// As what the gateway is known to brokers. Clones share how that went.
#[derive(Debug, Clone)]
pub(super) struct Client {
    id: String,
    /// Connections in a row that ended soon.
    short_lived: Arc<AtomicU32>,
}

/// Connections that end within that time, so often in a row, may be cut off by another client.
const SHORT: Duration = Duration::from_secs(60);
const OFTEN: u32 = 3;

/// Waits until the broker has the gateway's status. What it sends meanwhile is taken, for some
/// brokers answer nothing while much of that is unconfirmed.
pub(super) async fn status_confirmed(connection: &mut Connection, inbound: &mut Inbound) -> Result<(), Failure> {
    loop {
        let event = tokio::select! {
            event = connection.event() => event,
            forwarded = forward(&mut inbound.intake) => {
                forwarded?;
                continue;
            }
        };
        match event {
            Event::Acked(STATUS) => return Ok(()),
            Event::Refused(STATUS, why) => {
                tracing::warn!(%why, "the broker does not take the gateway's status; readings go on without");
                return Ok(());
            }
            Event::Closed(failure) => return Err(failure),
            event => inbound.see(event, connection),
        }
    }
}

/// Waits until something is done for commands; for ever without any. Cancel-safe.
async fn forward(intake: &mut Option<Intake>) -> Result<(), Failure> {
    match intake {
        Some(intake) => intake.forward().await,
        None => std::future::pending().await,
    }
}

impl Inbound {
    /// What happened that is about commands or the gateway's own topics.
    fn see(&mut self, event: Event, connection: &mut Connection) {
        match (event, &mut self.intake) {
            (Event::Unusable { topic, size, why }, _) => {
                tracing::warn!(topic, size, "a message from the broker {why}; it was confirmed and passed over");
            }
            (Event::Confirmed(messages), Some(intake)) => intake.confirmed(messages),
            (Event::Message(message), intake) => match (self.watch.take(&message), intake) {
                (true, Some(intake)) => intake.passed_by(),
                (false, Some(intake)) => intake.take(message),
                (_, None) => {}
            },
            (Event::Subscribed(outcome), Some(intake)) if !intake.is_subscribed() => intake.subscribed(outcome),
            (Event::Subscribed(outcome), _) => self.watch.subscribed(outcome, connection),
            _ => {}
        }
    }

    fn go_on(&mut self, connection: &mut Connection) {
        if let Some(intake) = &mut self.intake {
            intake.go_on(connection);
        }
        self.watch.go_on(connection, self.intake.as_ref().is_none_or(Intake::is_subscribed));
    }
}

impl Client {
    pub fn new(id: String) -> Client {
        Client { id, short_lived: Arc::default() }
    }

    /// Why a connection ended that had `lasted` since the broker let the gateway in, and what
    /// that may mean.
    pub fn ended(&self, Failure { mut what, permanent }: Failure, lasted: Duration) -> Failure {
        let times = match lasted < SHORT {
            true => self.short_lived.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            false => {
                self.short_lived.store(0, Ordering::Relaxed);
                0
            }
        };
        let id = &self.id;
        if times >= OFTEN && (!permanent || what.contains("same client id")) {
            what += &format!(
                "; connections end again and again soon after the broker let the gateway in: another gateway may use the \
                 client id {id} too, and they cut each other off; give each its own [gateway] id or client_id"
            );
        } else if what.contains("same client id") {
            what += &format!("; the client id here is {id}");
        }
        Failure { what, permanent }
    }
}

impl MqttConnection {
    /// Begins to take leave of the broker.
    ///
    /// # Errors
    /// If that is over.
    fn leave(&mut self, why: &leaving::Why) -> Result<(), Failure> {
        match why {
            leaving::Why::Return(_) => {
                // It is the last that is published there.
                let offline = self.status.message("offline", Some("moved"));
                self.connection.publish(STATUS, offline)?;
            }
            // The next connection is to the same broker.
            leaving::Why::Renew => self.connection.leave(),
            leaving::Why::Overdue => return Err(self.left.take().unwrap_or_else(|| why.failure())),
        }
        self.leaving.begun();
        self.left = Some(why.failure());
        Ok(())
    }

    fn lost(&mut self, mut failure: Failure) -> Failure {
        self.fruit.learnt(self.connection.learnt());
        if let Some(left) = self.left.take() {
            return left;
        }
        let cause = self.connection.cause();
        // There is another one to go to, at once.
        let goes_on = matches!(cause, Cause::Elsewhere { .. }) || cause == Cause::Busy && self.has_others;
        failure.permanent &= !goes_on;
        self.fruit.ended_by(cause);
        self.statuses.iter().for_each(Statuses::lost);
        self.inbound.watch.lost();
        self.inbound.intake.iter().for_each(Intake::lost);
        self.client.ended(failure, self.since.elapsed())
    }
}

impl SinkConnection for MqttConnection {
    type Payload = Publish;

    fn tells_size(&self) -> bool {
        self.tells_size
    }

    fn window(&self) -> usize {
        if self.connection.has_room() { self.window } else { 0 }
    }

    fn batch(&self) -> usize {
        self.connection.batch()
    }

    fn take_unexpected(&mut self) -> u64 {
        self.connection.take_unexpected()
    }

    fn is_limited(&self) -> bool {
        self.connection.is_limited()
    }

    fn max_payload(&self) -> usize {
        self.max_payload
    }

    fn send(&mut self, token: u64, payload: Publish) -> Result<(), Failure> {
        self.fruit.sent();
        self.connection.publish(token, payload)
    }

    async fn outcome(&mut self) -> Outcome {
        loop {
            if let Some(statuses) = &mut self.statuses {
                statuses.send(&mut self.connection);
            }
            if self.left.is_none() {
                self.inbound.go_on(&mut self.connection);
            }
            let news = async {
                match &mut self.statuses {
                    Some(statuses) => statuses.news().await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.connection.event() => event,
                why = self.leaving.due() => match self.leave(&why) {
                    Ok(()) => continue,
                    Err(failure) => return Outcome::Lost(failure),
                },
                () = news => continue,
                () = self.inbound.watch.due(), if self.left.is_none() => continue,
                forwarded = forward(&mut self.inbound.intake) => match forwarded {
                    Ok(()) => continue,
                    Err(failure) => return Outcome::Lost(failure),
                },
            };
            match event {
                Event::Acked(token) if self.statuses.as_mut().is_some_and(|s| s.confirmed(token)) => {
                    return Outcome::Room;
                }
                Event::Refused(token, why) if self.statuses.as_mut().is_some_and(|s| s.refused(token, &why)) => {}
                Event::Acked(STATUS) | Event::Refused(STATUS, _) if self.left.is_some() => self.connection.leave(),
                Event::Room => return Outcome::Room,
                Event::Acked(token @ (STATUS | watch::TEST)) | Event::Refused(token @ (STATUS | watch::TEST), _) => {
                    self.inbound.watch.answered(token);
                }
                Event::Acked(token) => {
                    self.fruit.confirmed();
                    return Outcome::Confirmed(token);
                }
                Event::Refused(token, failure) => return Outcome::Refused(token, failure),
                Event::Closed(failure) => return Outcome::Lost(self.lost(failure)),
                event => self.inbound.see(event, &mut self.connection),
            }
        }
    }

    async fn close(mut self, within: Duration) {
        let said = async {
            let offline = self.status.message("offline", Some("stopped"));
            if self.connection.publish(STATUS, offline).is_ok() {
                return status_confirmed(&mut self.connection, &mut self.inbound).await.is_ok();
            }
            false
        };
        if !tokio::time::timeout(within, said).await.unwrap_or(false) {
            tracing::warn!(topic = self.status.topic, "the broker did not confirm the offline status");
        }
        self.connection.close(within).await;
    }
}
