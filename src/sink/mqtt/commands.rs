//! Commands that come from a broker, on their way to whoever carries them out.
//!
//! They stay the broker's until they are confirmed. Those that are not taken at once wait
//! here, a bounded number of them; what is more is left to the broker, which sends it
//! again when the gateway connects again, as it does once the others are taken.

use super::feature_breaker::FeatureBreaker;
use crate::backoff::Failure;
use crate::clock::Clock;
use crate::model::{Confirmation, InboundCommand, Source};
use crate::mqtt::{Connection, Message, Topics};
use crate::notes::Note;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Who takes them.
#[derive(Debug, Clone)]
pub(super) struct Taker {
    pub taker: mpsc::Sender<InboundCommand>,
    /// Larger ones are none, in bytes.
    pub max_body: usize,
}

/// What is known of all connections of one sink. Some brokers end the connection of a client that
/// may not subscribe.
pub(super) struct Subscribing {
    feature_breaker: FeatureBreaker,
    /// Tells if no commands come.
    note: Note,
    clock: Arc<dyn Clock>,
}

impl Subscribing {
    pub fn new(note: Note, clock: Arc<dyn Clock>) -> Subscribing {
        Subscribing { feature_breaker: FeatureBreaker::default(), note, clock }
    }

    fn is_denied(&self, why: &str) {
        self.note
            .is_down(format!("{why}; let the gateway subscribe, or set commands = false"), self.clock.now().monotonic);
    }
}

/// The commands of one connection.
pub(super) struct Intake {
    topics: Topics,
    subscribing: Arc<Subscribing>,
    taker: Taker,
    waiting: VecDeque<InboundCommand>,
    /// Memory of those, in bytes.
    bytes: usize,
    left_to_broker: bool,
    /// Subscriptions that the broker has not answered.
    unanswered: usize,
    /// Whether it answered one on this connection.
    answered: bool,
    since: Instant,
    /// Until when this connection goes without any.
    rests_until: Option<Instant>,
    /// That is over.
    rested: bool,
    /// Messages that were taken and are not confirmed to the broker yet.
    unconfirmed: usize,
}

/// Memory of commands that wait, in bytes: thousands of usual ones, more than brokers have
/// outstanding.
const MAX_WAITING: usize = 4 << 20;
/// What one takes beside its body, about.
const EACH: usize = 256;

/// What a command that is too large is called by, as far as it says that properly.
#[derive(Deserialize, Serialize)]
struct Named {
    id: Option<String>,
    name: Option<String>,
    expires: Option<String>,
    time: Option<String>,
}

/// More of each no command has, in bytes.
const LONGEST_NAME: usize = 64;

/// A copy of a command, for the message is a part of all that was read along with it. Of
/// one that has more than `most` bytes its names are kept, and as many bytes as show that.
fn kept(payload: &[u8], most: usize) -> Bytes {
    let Some(part) = payload.get(..=most) else { return Bytes::copy_from_slice(payload) };
    let named = serde_json::from_slice::<Named>(payload).ok().and_then(|named| {
        let Named { id, name, expires, time } = named;
        let [id, name, expires, time] =
            [id, name, expires, time].map(|text| text.filter(|text| text.len() <= LONGEST_NAME));
        serde_json::to_vec(&Named { id, name, expires, time }).ok()
    });
    match named.filter(|named| named.len() <= most) {
        Some(mut named) => {
            named.resize(part.len(), b' ');
            named.into()
        }
        None => Bytes::copy_from_slice(part),
    }
}

impl Intake {
    pub fn new(topics: &Topics, subscribing: Arc<Subscribing>, taker: Taker) -> Intake {
        Intake {
            topics: topics.clone(),
            subscribing,
            taker,
            waiting: VecDeque::new(),
            bytes: 0,
            unanswered: 0,
            answered: false,
            since: Instant::now(),
            rests_until: None,
            rested: false,
            left_to_broker: false,
            unconfirmed: 0,
        }
    }

    /// Subscribes to commands, unless that ended the last connections: then after a while.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn subscribe(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        if self.rests() { Ok(()) } else { self.ask(connection) }
    }

    fn rests(&mut self) -> bool {
        if let Some(rest) = self.subscribing.feature_breaker.rest(self.subscribing.clock.now().monotonic) {
            self.rests_until = Some(Instant::now() + rest);
            let rest = humantime::format_duration(Duration::from_secs(rest.as_secs()));
            self.subscribing.is_denied(&format!(
                "the broker ends connections when the gateway subscribes to commands: none come from it for {rest}"
            ));
            tracing::warn!(
                "the broker ends connections when the gateway subscribes to commands; this one goes without for {rest}: \
                 let the gateway subscribe, or set commands = false"
            );
        }
        self.rests_until.is_some()
    }

    /// Subscribes if that rested, and does no longer.
    pub fn go_on(&mut self, connection: &mut Connection) {
        // When the connection is gone, the next one does it.
        if std::mem::take(&mut self.rested) && self.ask(connection).is_err() {
            tracing::debug!("the connection ended before the gateway subscribed to commands");
        }
    }

    fn ask(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        let filters = self.topics.command_filters();
        let takes_all = !connection.allowance().no_wildcards;
        let (taken, refused): (Vec<_>, Vec<_>) =
            filters.iter().partition(|filter| takes_all || !filter.contains(['+', '#']));
        if !refused.is_empty() {
            tracing::warn!("the broker allows no wildcards: commands come for the gateway itself, and for no device");
        }
        for filter in taken {
            connection.subscribe(filter)?;
            self.unanswered += 1;
        }
        Ok(())
    }

    /// Whether the broker has answered all subscriptions.
    pub fn is_subscribed(&self) -> bool {
        self.unanswered == 0 && self.rests_until.is_none() && !self.rested
    }

    /// A message that is no command is being confirmed.
    pub fn passed_by(&mut self) {
        self.unconfirmed += 1;
    }

    /// The broker answered a subscription.
    pub fn subscribed(&mut self, outcome: Result<(), Failure>) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.answered = true;
        self.subscribing.feature_breaker.confirmed();
        match outcome {
            Ok(()) => self.subscribing.note.works(),
            Err(why) => {
                self.subscribing.is_denied(&format!("no commands come from this broker: {why}"));
                tracing::warn!(
                    %why,
                    "no commands will come from this broker; let the gateway subscribe, or set commands = false"
                );
            }
        }
    }

    /// The connection ended.
    pub fn lost(&self) {
        if self.unanswered > 0 && !self.answered {
            self.subscribing.feature_breaker.lost();
        } else if self.rests_until.is_some() {
            self.subscribing.feature_breaker.lost_without(self.since.elapsed());
        }
    }

    /// A message came.
    pub fn take(&mut self, message: Message) {
        let Message { topic, payload, retained, wanted_for, acker } = message;
        if self.bytes >= MAX_WAITING || self.left_to_broker {
            self.left_to_broker = true;
            return;
        }
        self.unconfirmed += 1;
        let Some(target) = self.topics.commanded(&topic) else {
            tracing::warn!(topic, "a message came by a topic of no device; it is passed over");
            return acker.ack();
        };
        if retained {
            // It would come anew with each connection, long after it was wanted.
            tracing::warn!(topic, "a retained command is passed over; publish commands without the retain flag");
            return acker.ack();
        }
        let body = kept(&payload, self.taker.max_body);
        self.bytes += body.len() + EACH;
        let confirmation = Confirmation::new(move || acker.ack());
        self.waiting.push_back(InboundCommand { source: Source::Mqtt, target, body, wanted_for, confirmation });
    }

    /// So many messages were confirmed to the broker.
    pub fn confirmed(&mut self, messages: usize) {
        self.unconfirmed = self.unconfirmed.saturating_sub(messages);
    }

    /// Waits until one more is taken, or subscribing rests no longer. Cancel-safe.
    ///
    /// # Errors
    /// If the rest is to be fetched by another connection.
    pub async fn forward(&mut self) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            // Not before those that were taken are confirmed, or the same would come again.
            if self.left_to_broker && self.unconfirmed == 0 {
                let what = "more commands came at once than the broker is left with; connecting again for the rest";
                return Err(Failure::transient(what));
            }
            let Some(until) = self.rests_until else { return std::future::pending().await };
            sleep_until(until).await;
            (self.rests_until, self.rested) = (None, true);
            return Ok(());
        }
        match self.taker.taker.reserve().await {
            Ok(room) => {
                if let Some(command) = self.waiting.pop_front() {
                    self.bytes = self.bytes.saturating_sub(command.body.len() + EACH);
                    room.send(command);
                }
            }
            // Nobody takes any more; the broker keeps them.
            Err(_) => {
                self.waiting.clear();
                self.bytes = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::GatewayId;

    #[tokio::test]
    async fn of_what_is_too_large_to_be_a_command_no_more_is_kept_than_shows_that() {
        let topics = Topics::new("tidegate", &GatewayId::new("gw").expect("a valid name"));
        let (taker, mut taken) = mpsc::channel(8);
        let subscribing = Arc::new(Subscribing::new(Note::new("mqtt"), Arc::new(SystemClock::new())));
        let mut intake = Intake::new(&topics, subscribing, Taker { taker, max_body: 100 });
        for size in [0, 100, 101, 200_000] {
            intake.take(Message {
                topic: "tidegate/gw/command".into(),
                payload: vec![b'x'; size].into(),
                retained: false,
                wanted_for: None,
                acker: crate::mqtt::Acker::default(),
            });
            intake.forward().await.expect("there is room");
            let body = taken.try_recv().expect("it was passed on").body;
            assert_eq!(body.len(), size.min(101), "{size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_subscribing_ends_connections_it_is_tried_again_on_the_one_that_stands() {
        let topics = Topics::new("tidegate", &GatewayId::new("gw").expect("a valid name"));
        let subscribing = Arc::new(Subscribing::new(Note::new("mqtt"), Arc::new(SystemClock::new())));
        let (taker, _taken) = mpsc::channel(8);
        let intake = || Intake::new(&topics, subscribing.clone(), Taker { taker: taker.clone(), max_body: 100 });
        for _ in 0..3 {
            let mut lost = intake();
            assert!(!lost.rests());
            lost.unanswered = 1;
            lost.lost();
        }
        let mut flaps = intake();
        assert!(flaps.rests());
        flaps.lost();
        assert!(!intake().rests(), "what ends connections without commands, too, is something else");
        for _ in 0..3 {
            let mut lost = intake();
            lost.unanswered = 1;
            lost.lost();
        }
        let (mut intake, began) = (intake(), Instant::now());
        assert!(intake.rests() && !intake.is_subscribed());
        intake.forward().await.expect("the connection stands");
        let rested = began.elapsed();
        assert!(rested > Duration::from_secs(50) && rested <= Duration::from_secs(60), "{rested:?}");
        assert!(intake.rested && !intake.is_subscribed());
        assert!(tokio::time::timeout(Duration::from_secs(9999), intake.forward()).await.is_err(), "once");
        intake.subscribed(Ok(()));
        intake.lost();
        assert!(!intake.rests());
    }

    #[test]
    fn what_is_too_large_keeps_its_names_wherever_they_stand() {
        let filler = "x".repeat(5000);
        for text in [
            format!(r#"{{"id":"c-1","name":"open","payload":"{filler}"}}"#),
            format!(r#"{{"payload":{{"id":"no","a":["{filler}"]}},"name":"open","id":"c-1"}}"#),
        ] {
            let kept = kept(text.as_bytes(), 2000);
            assert_eq!(kept.len(), 2001);
            let named: Named = serde_json::from_slice(&kept).expect("JSON");
            assert_eq!((named.id.as_deref(), named.name.as_deref()), (Some("c-1"), Some("open")));
        }
        let long = format!(r#"{{"id":"{filler}","name":"open"}}"#);
        let named: Named = serde_json::from_slice(&kept(long.as_bytes(), 2000)).expect("JSON");
        assert_eq!((named.id, named.name.as_deref()), (None, Some("open")));
    }
}
