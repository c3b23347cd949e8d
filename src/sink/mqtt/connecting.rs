//! Connecting to one of a sink's brokers.

use super::candidates::{Candidate, Fruit};
use super::capabilities::ConnectPlan;
use super::commands::Intake;
use super::connection::{Inbound, status_confirmed};
use super::leaving::{Leaving, Preferred};
use super::statuses::{self, Statuses};
use super::watch::Watch;
use super::{MqttConnection, MqttDestination, OVERHEAD, STATUS};
use crate::backoff::Failure;
use crate::config::Way;
use crate::mqtt::{Cause, Connection, Options, Refusal};
use anyhow::Result;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// So often a broker is asked in a row, each time for less.
const MAX_ATTEMPTS: u32 = 4;

impl MqttDestination {
    /// Connects to a candidate, on the terms on which the broker lets the gateway in.
    pub(super) async fn connect_with_fallback(
        &mut self,
        number: usize,
        now: Duration,
    ) -> Result<MqttConnection, Failure> {
        let mut attempt = 1;
        loop {
            let candidate = &self.candidates[number]; // from their order
            let plan = candidate.capabilities.ask(self.wanted, now);
            let (outcome, broker) = (self.connect_to(candidate, plan).await, candidate.target());
            let capabilities = &mut self.candidates[number].capabilities;
            let (learnt, outcome) = match outcome {
                Ok(link) => (
                    capabilities.accepted(self.wanted, plan, !link.connection.allowance().no_retain, now),
                    Some(Ok(link)),
                ),
                Err(Refusal { failure, cause }) => {
                    let mut learnt = capabilities.refused(self.wanted, plan, &cause, now);
                    let candidate = &mut self.candidates[number];
                    let went_back = learnt.is_none() && candidate.goes_back();
                    candidate.learn(&cause, now);
                    if matches!(cause, Cause::Elsewhere { .. }) && candidate.is_redirected() {
                        learnt = Some("the broker sends its clients to another server, which is tried");
                    } else if went_back {
                        learnt = Some("the server that the broker named cannot be used; the next one is tried");
                    }
                    let over = learnt.is_none() || attempt == MAX_ATTEMPTS;
                    (learnt, over.then_some(Err(failure)))
                }
            };
            if let Some(learnt) = learnt {
                tracing::info!(sink = self.name, %broker, "{learnt}");
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
            attempt += 1;
        }
    }

    async fn connect_to(&self, candidate: &Candidate, plan: ConnectPlan) -> Result<MqttConnection, Refusal> {
        let (way, Candidate { position, feature_breaker, worked, .. }) = (candidate.target(), candidate);
        let options = self
            .options(&way, plan)
            // What is missing may come any moment, and looking for it costs nobody else anything.
            .map_err(|why| Failure::transient(format!("cannot connect to {way}: {why:#}")))?;
        let failed = |why: Failure| Failure { what: format!("{way}: {why}"), permanent: why.permanent };
        let mut connection = Connection::open_at(&options, *worked)
            .await
            .map_err(|refusal| Refusal { failure: failed(refusal.failure), ..refusal })?;
        if let Some((learnt, ago)) = candidate.pace(self.status.clock.now().monotonic) {
            connection.begin_with(learnt, ago);
        }
        if connection.allowance().no_qos_1 {
            let what = "the broker takes QoS 0 only, with which no reading is confirmed; use another broker";
            return Err(failed(Failure::permanent(what)).into());
        }
        let status = self.status.retained(plan.retain && !connection.allowance().no_retain);
        let since = Instant::now();
        let failed = |why| failed(self.client.ended(why, since.elapsed()));
        // What the broker kept may come before anything else.
        let intake = self
            .commands
            .as_ref()
            .map(|(taker, subscribing)| Intake::new(&self.topics, subscribing.clone(), taker.clone()));
        let watch = Watch::new(self.watching.clone(), plan.version, status.clone(), &self.topics);
        let mut inbound = Inbound { intake, watch };
        connection.publish(STATUS, status.message("online", None)).map_err(failed)?;
        if let Err(why) = status_confirmed(&mut connection, &mut inbound).await {
            return Err(Refusal { failure: failed(why), cause: connection.cause() });
        }
        if let Some(intake) = &mut inbound.intake {
            intake.subscribe(&mut connection).map_err(failed)?;
        }
        // What a broker that forgot this client still has of devices is not known.
        if !connection.session_present() {
            position.store(0, Ordering::Relaxed);
        }
        tracing::info!(sink = self.name, broker = %way, version = ?options.version, client_id = options.client_id, "connected to the broker");
        let max_packet = connection.max_packet().unwrap_or(u32::MAX).min(options.max_packet);
        let max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX);
        let max_payload = max_packet.min(self.most).saturating_sub(self.topics.longest() + OVERHEAD).max(1);
        Ok(MqttConnection {
            window: usize::from(
                options
                    .window
                    .min(connection.receive_maximum().unwrap_or(u16::MAX))
                    .saturating_sub(statuses::WINDOW)
                    .max(1),
            ),
            statuses: self.registry.as_ref().map(|registry| {
                let (gateway, now) = (self.status.identity.gateway.clone(), self.status.clock.now().monotonic);
                let (known, note) = ((position.clone(), feature_breaker.clone()), self.presence_note.clone());
                Statuses::new(registry.clone(), self.topics.clone(), gateway, known, status.retain, note, now)
            }),
            max_payload,
            tells_size: connection.max_packet().is_some() || self.most < usize::MAX,
            connection,
            fruit: Fruit::default(),
            has_others: self.candidates.len() > 1,
            leaving: Leaving::new(
                self.ways.clone(),
                self.preferred_to(candidate),
                self.return_after,
                self.ways.secrets.renew_after(),
            ),
            left: None,
            status,
            inbound,
            client: self.client.clone(),
            since,
        })
    }

    /// The options for one way, with secrets and certificates read afresh: they
    /// may have been renewed since.
    fn options(&self, way: &Way, plan: ConnectPlan) -> Result<Options> {
        let credentials = self.ways.secrets.login(&way.broker, self.status.clock.now())?;
        let will = plan.will.then(|| self.status.retained(plan.retain).message("offline", Some("connection lost")));
        Ok(Options { version: plan.version, credentials, will, ..self.ways.to(way)? })
    }

    /// Those that stand before it.
    fn preferred_to(&self, candidate: &Candidate) -> Vec<Preferred> {
        let now = self.status.clock.now().monotonic;
        let before = self.candidates.iter().take_while(|one| one.way != candidate.way);
        before
            .map(|one| Preferred { way: one.way.clone(), worked: one.worked, rests_for: one.rests_for(now) })
            .collect()
    }
}
