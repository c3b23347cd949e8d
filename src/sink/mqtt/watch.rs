//! The gateway's own topics, watched: what others see of it is made right, a second gateway
//! with its id is noticed, and under MQTT 3.1.1 it is tried whether the broker delivers what
//! it confirms.
//!
//! Subscriptions are asked for one after the other, behind those of commands, and left out
//! for a while where connections end at them.

use super::feature_breaker::FeatureBreaker;
use super::status::Status;
use crate::backoff::Failure;
use crate::config::MqttVersion;
use crate::model::Epochs;
use crate::mqtt::{Connection, Message, Publish, Topics};
use crate::notes::{Note, Notes};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The token of the message that is to come back.
pub(super) const TEST: u64 = u64::MAX - 1;
/// How long that may take.
const TEST_WITHIN: Duration = Duration::from_secs(10);
/// The own status is repeated no more often.
const REPEAT_EVERY: Duration = Duration::from_secs(2);
/// How long health tells of another gateway with the same id.
const TOLD_FOR: Duration = Duration::from_secs(3600);

/// What is the same for all connections of one sink.
pub(super) struct Watching {
    /// The gateway's status is watched.
    status: bool,
    /// Whether the broker delivers is tried, with MQTT 3.1.1.
    test: bool,
    epochs: Epochs,
    feature_breaker: FeatureBreaker,
    twin_note: Note,
    test_note: Note,
}

impl Watching {
    pub fn new(config: &crate::config::Mqtt, epochs: Epochs, notes: &Notes) -> Arc<Watching> {
        Arc::new(Watching {
            // The clouds know no topics but those that are documented.
            status: config.watch_status && config.profile.is_none(),
            test: config.self_test && config.profile.is_none(),
            epochs,
            feature_breaker: FeatureBreaker::default(),
            twin_note: notes.about(config.name.as_str()),
            test_note: notes.about(config.name.as_str()),
        })
    }
}

/// One of the gateway's own topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    Status,
    Test,
}

/// The watch over one connection.
pub(super) struct Watch {
    shared: Arc<Watching>,
    status: Status,
    test_topic: String,
    /// Subscriptions that are still to be asked for, and the one that is asked for.
    ahead: Vec<Own>,
    asked: Option<Own>,
    /// Until when none is asked for.
    rests_until: Option<Instant>,
    since: Instant,
    /// What is to come back until then, and whether it was confirmed.
    test: Option<(String, Instant)>,
    test_unanswered: bool,
    /// When the status is to be repeated, and not before when.
    repeat_at: Option<Instant>,
    repeat_from: Instant,
    twin_until: Option<Instant>,
}

impl Watch {
    pub fn new(shared: Arc<Watching>, version: MqttVersion, status: Status, topics: &Topics) -> Watch {
        // The last one is asked for first.
        let mut ahead = Vec::new();
        ahead.extend((shared.test && version == MqttVersion::V3_1_1).then_some(Own::Test));
        ahead.extend(shared.status.then_some(Own::Status));
        let rest = shared.feature_breaker.rest(status.clock.now().monotonic);
        if let Some(rest) = rest {
            let rest = humantime::format_duration(Duration::from_secs(rest.as_secs()));
            tracing::warn!(
                "the broker ends connections when the gateway watches its own topics; this one goes without for {rest}: \
                 let it subscribe to PREFIX/GATEWAY/status and PREFIX/GATEWAY/test, or set watch_status and self_test = \
                 false"
            );
        }
        let since = Instant::now();
        Watch {
            shared,
            status,
            test_topic: topics.test(),
            ahead,
            asked: None,
            rests_until: rest.map(|rest| since + rest),
            since,
            test: None,
            test_unanswered: false,
            repeat_at: None,
            repeat_from: since,
            twin_until: None,
        }
    }

    /// Does what is to be done next.
    pub fn go_on(&mut self, connection: &mut Connection, others_are_subscribed: bool) {
        let now = Instant::now();
        if let Some(own) = self.wanted(others_are_subscribed, now) {
            let filter = if own == Own::Status { &self.status.topic } else { &self.test_topic };
            // When the connection is gone, the next one does it.
            if connection.subscribe(filter).is_ok() {
                self.asked = Some(own);
            }
        }
        if self.repeat_at.is_some_and(|at| at <= now)
            && connection.publish(super::STATUS, self.status.message("online", None)).is_ok()
        {
            (self.repeat_at, self.repeat_from) = (None, now + REPEAT_EVERY);
        }
        if self.test.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.test = None;
            let why = format!(
                "the broker confirms what it does not deliver: a message to {} did not come back. Readings may be lost \
                 like that: give the gateway the rights to publish to its topics, and to {} (read and write), use \
                 version = \"5\", or set self_test = false",
                self.test_topic, self.test_topic
            );
            tracing::error!(why, "the self-test failed");
            self.shared.test_note.is_down(why, self.status.clock.now().monotonic);
        }
        if self.twin_until.is_some_and(|until| until <= now) {
            self.twin_until = None;
            self.shared.twin_note.works();
        }
    }

    /// What is to be asked for now.
    fn wanted(&mut self, others_are_subscribed: bool, now: Instant) -> Option<Own> {
        self.rests_until = self.rests_until.filter(|until| *until > now);
        let waits = !others_are_subscribed || self.rests_until.is_some() || self.asked.is_some();
        if waits { None } else { self.ahead.pop() }
    }

    /// Waits until there is something to do; for ever if there is nothing. Cancel-safe.
    pub async fn due(&self) {
        let times = [self.repeat_at, self.test.as_ref().map(|(_, until)| *until), self.twin_until, self.rests_until];
        match times.into_iter().flatten().min() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// A subscription was answered.
    pub fn subscribed(&mut self, outcome: Result<(), Failure>, connection: &mut Connection) {
        let Some(own) = self.asked.take() else { return };
        self.shared.feature_breaker.confirmed();
        match (own, outcome) {
            (Own::Test, Ok(())) => {
                let proof = format!("{:016x}", fastrand::u64(..));
                let publish = Publish {
                    topic: self.test_topic.clone(),
                    payload: proof.clone().into(),
                    retain: false,
                    content_type: "text/plain",
                    encoding: "text",
                };
                if connection.publish(TEST, publish).is_ok() {
                    self.test = Some((proof, Instant::now() + TEST_WITHIN));
                    self.test_unanswered = true;
                }
            }
            (Own::Test, Err(why)) => {
                let topic = &self.test_topic;
                tracing::info!(topic, %why, "whether the broker delivers what it confirms cannot be tried");
            }
            (Own::Status, Err(why)) => {
                let topic = &self.status.topic;
                tracing::info!(topic, %why, "the gateway cannot watch its own status");
            }
            (Own::Status, Ok(())) => {}
        }
    }

    /// A publish of the watch's own was confirmed or refused.
    pub fn answered(&mut self, token: u64) {
        if token == TEST {
            self.test_unanswered = false;
        }
    }

    /// Takes a message by one of the own topics; false if it is none.
    pub fn take(&mut self, message: &Message) -> bool {
        if message.topic == self.test_topic {
            if self.test.as_ref().is_some_and(|(proof, _)| proof.as_bytes() == &*message.payload) {
                self.test = None;
                self.shared.test_note.works();
            }
        } else if message.topic == self.status.topic {
            if self.shared.status {
                self.see(&message.payload);
            }
        } else {
            return false;
        }
        message.acker.ack();
        true
    }

    /// What others see as the gateway's status.
    fn see(&mut self, payload: &[u8]) {
        let status = serde_json::from_slice::<Value>(payload).unwrap_or_default();
        let is_online = status.get("state").is_some_and(|state| state == "online");
        let epoch = status.get("epoch").and_then(Value::as_u64);
        let mut ours = self.shared.epochs.former().iter().map(|(_, epoch)| *epoch);
        let current = u64::from(self.shared.epochs.current().0);
        let is_current = epoch == Some(current) || epoch == Some(u64::from(self.status.identity.epoch.0));
        if is_online && is_current {
            self.repeat_at = None;
        } else if is_online && !ours.any(|former| Some(u64::from(former.0)) == epoch) {
            self.twin(epoch);
        } else {
            // A late Last Will of an earlier connection, or of somebody else.
            self.repeat_at = Some(self.repeat_from);
        }
    }

    fn twin(&mut self, epoch: Option<u64>) {
        let gateway = &self.status.identity.gateway;
        let why = format!(
            "another gateway uses the id {gateway} too: {} tells of the epoch {}, this gateway's is {}. Consumers take \
             both for one; give each its own [gateway] id (a cloned card? see docs/install.md)",
            self.status.topic,
            epoch.map_or("unknown".to_owned(), |epoch| epoch.to_string()),
            self.shared.epochs.current().0
        );
        if self.twin_until.is_none() {
            tracing::error!(why, "two gateways have one id");
        }
        self.twin_until = Some(Instant::now() + TOLD_FOR);
        self.shared.twin_note.is_down(why, self.status.clock.now().monotonic);
    }

    /// The connection ended.
    pub fn lost(&self) {
        if self.asked.is_some() || self.test_unanswered {
            self.shared.feature_breaker.lost();
        } else if self.rests_until.is_some() {
            self.shared.feature_breaker.lost_without(self.since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Identity;
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::{Epoch, GatewayId};

    #[tokio::test(start_paused = true)]
    async fn own_topics_that_end_connections_are_asked_for_again_on_the_one_that_stands() {
        let gateway = GatewayId::new("gw").expect("a valid name");
        let topics = Topics::new("tidegate", &gateway);
        let shared = Arc::new(Watching {
            status: true,
            test: true,
            epochs: Epochs::new(Vec::new(), Epoch(7)),
            feature_breaker: FeatureBreaker::default(),
            twin_note: Note::new("mqtt"),
            test_note: Note::new("mqtt"),
        });
        let status = Status {
            topic: "tidegate/gw/status".into(),
            retain: true,
            identity: Identity { gateway, epoch: Epoch(7) },
            clock: Arc::new(SystemClock::new()),
        };
        let watch = || Watch::new(shared.clone(), MqttVersion::V3_1_1, status.clone(), &topics);
        let three_are_lost = || {
            for _ in 0..3 {
                let mut lost = watch();
                lost.asked = lost.wanted(true, Instant::now());
                assert_eq!(lost.asked, Some(Own::Status));
                lost.lost();
            }
        };
        three_are_lost();
        let mut flaps = watch();
        assert_eq!(flaps.wanted(true, Instant::now()), None);
        flaps.lost();
        // It went without and ended all the same: it is something else.
        three_are_lost();
        let (mut watch, began) = (watch(), Instant::now());
        assert_eq!(watch.wanted(true, Instant::now()), None);
        watch.due().await;
        assert!(began.elapsed() <= Duration::from_secs(60), "{:?}", began.elapsed());
        assert_eq!(watch.wanted(false, Instant::now()), None, "those of commands come first");
        assert_eq!(watch.wanted(true, Instant::now()), Some(Own::Status));
    }
}
