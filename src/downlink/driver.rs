//! Moves commands from senders to the [`Queue`], from there to the log and to devices, and
//! answers back.

use super::queue::{Action, Dispatch, Queue, Receipt, Refusal, Rules};
use super::request::{CommandRequest, Invalid, Limits};
use super::result;
use crate::clock::{Clock, Excuses, LONGEST_NAP};
use crate::config;
use crate::device::{Answer, Registry};
use crate::metrics::{Metrics, SourceLabel, StateLabel};
use crate::model::{
    Command, CommandId, CommandKey, CommandOutcome, CommandResult, CommandState, Confirmation, DeviceCommand,
    InboundCommand, Source, Target,
};
use crate::stop;
use crate::store::{Log, Record};
use anyhow::Result;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// Carries out commands to the gateway itself.
pub trait GatewayCommands: Send + Sync {
    fn execute(&self, name: &str, payload: Option<&str>) -> GatewayOutcome;
}

/// The result of a command to the gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayOutcome {
    Done(Value),
    Failed(String),
    Rejected(String),
}

/// The task that moves commands.
pub struct Downlink {
    queue: Queue,
    limits: Limits,
    log: Log,
    registry: Registry,
    clock: Arc<dyn Clock>,
    excuses: Excuses,
    metrics: Metrics,
    gateway: Arc<dyn GatewayCommands>,
    inbound: mpsc::Receiver<InboundCommand>,
    requests: mpsc::Receiver<Request>,
    /// Changes on disk.
    written: u64,
    /// Senders to confirm to once this many changes are on disk, in the order in which their
    /// commands arrived.
    unconfirmed: VecDeque<(u64, Confirm)>,
    /// Requests that wait for the end of a command.
    waiting: HashMap<CommandKey, Vec<oneshot::Sender<()>>>,
}

/// Sends commands from this machine, and looks them up. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    log: Log,
    limits: Limits,
}

/// A request to the task.
enum Request {
    Submit {
        request: CommandRequest,
        reply: oneshot::Sender<Result<CommandState, Refusal>>,
    },
    /// Wait for the end of a command.
    Await {
        key: CommandKey,
        reply: oneshot::Sender<()>,
    },
}

/// How to confirm to a sender that its command is on disk.
enum Confirm {
    Destination(Confirmation),
    Local(oneshot::Sender<Result<CommandState, Refusal>>, CommandState),
}

/// The gateway is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the gateway is stopping")]
pub struct Stopping;

/// Commands that are being written for the first time; no more are accepted meanwhile.
const MAX_UNCONFIRMED: usize = 64;
/// Requests that may be queued.
const REQUESTS: usize = 32;
/// Least time between two reactions to devices that connect or disconnect.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Downlink {
    /// Continues from the commands in the log.
    pub fn new(
        config: &config::Commands,
        log: Log,
        registry: Registry,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        gateway: Arc<dyn GatewayCommands>,
        inbound: mpsc::Receiver<InboundCommand>,
    ) -> (Downlink, Handle) {
        let bytes = |size: bytesize::ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let rules = Rules {
            devices: config.devices.clone(),
            max_queued: config.max_queued,
            max_live: config.max_live,
            max_bytes: bytes(bytesize::ByteSize(config::COMMAND_BYTES)),
            max_result: bytes(config.max_result),
            max_expiry: config.max_expiry,
            retry_after: config.retry_after,
            answer_within: config.answer_within,
            remember: config.remember,
        };
        let (max_payload, max_body) = (bytes(config.max_payload), config.max_body());
        let limits = Limits { max_payload, max_body, default_expiry: config.default_expiry };
        log.remember_commands(config.remember, config.remember_for);
        let now = clock.now();
        let mut queue = Queue::new(rules, clock.boot(), log.take_commands(), now);
        if !config.enabled {
            queue.disable(now);
        }
        let (requests_in, requests) = mpsc::channel(REQUESTS);
        let handle = Handle { requests: requests_in, log: log.clone(), limits };
        let downlink = Downlink {
            queue,
            limits,
            log,
            registry,
            excuses: Excuses::from(clock.put_off()),
            clock,
            metrics,
            gateway,
            inbound,
            requests,
            written: 0,
            unconfirmed: VecDeque::new(),
            waiting: HashMap::new(),
        };
        (downlink, handle)
    }

    /// Runs until `stop` turns true; answers that arrived by then are written.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let Some(mut answers) = self.registry.answers() else {
            tracing::error!("another task has the devices' answers; no commands are carried out");
            return;
        };
        let mut changes = self.registry.changes();
        let mut looked = Instant::now();
        let (mut upstream, mut locals) = (true, true);
        self.advance();
        loop {
            let written = self.flush();
            let now = self.clock.now();
            let due =
                self.queue.due(now).map(|due| Instant::now() + due.saturating_sub(now.monotonic).min(LONGEST_NAP));
            let room = self.unconfirmed.len() < MAX_UNCONFIRMED;
            let busy = !self.queue.is_empty();
            tokio::select! {
                biased;
                () = stop::requested(&mut stop) => break,
                count = self.log.commands_written(self.written), if self.written < written => self.written(count),
                Some(answer) = answers.recv() => self.answered(answer),
                () = changed(&mut changes, looked + LOOK_EVERY), if busy => {
                    looked = Instant::now();
                    self.advance();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.advance(),
                request = self.requests.recv(), if room && locals => match request {
                    Some(request) => self.local_request(request),
                    None => locals = false,
                },
                command = self.inbound.recv(), if room && upstream => match command {
                    Some(command) => self.inbound_command(command),
                    None => upstream = false,
                },
            }
        }
        while let Ok(answer) = answers.try_recv() {
            self.answered(answer);
        }
        while self.written < self.flush() {
            let count = self.log.commands_written(self.written).await;
            self.written(count);
        }
    }

    /// Hands changes to the log, carries out actions, and returns the number of changes so
    /// far.
    fn flush(&mut self) -> u64 {
        loop {
            let (changes, actions) = (self.queue.take_changes(), self.queue.take_actions());
            self.log.change_commands(changes);
            if actions.is_empty() {
                break;
            }
            actions.into_iter().for_each(|action| self.act(action));
        }
        self.metrics.commands_live.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
        self.queue.changes()
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(dispatch) => self.send(dispatch),
            Action::Ended { key, ending, took } => {
                self.metrics.commands_ended.get_or_create(&StateLabel { state: ending.state.name() }).inc();
                let answered = matches!(ending.state, CommandState::Done | CommandState::Failed);
                if let Some(came) = took.filter(|_| answered) {
                    let took = self.clock.now().monotonic.saturating_sub(came);
                    self.metrics.command_seconds.observe(took.as_secs_f64());
                }
                tracing::debug!(target = %key.target, id = %key.id, state = ending.state.name(), "a command ended");
                for waiting in self.waiting.remove(&key).unwrap_or_default() {
                    // The receiver may be dropped.
                    let _ = waiting.send(());
                }
            }
        }
    }

    fn send(&mut self, dispatch: Dispatch) {
        let Dispatch { place, target, connection, id, name, payload, expires_in, again } = dispatch;
        let now = self.clock.now();
        self.metrics.commands_repeated.inc_by(u64::from(again));
        match &target {
            Target::Device(device) => {
                let command = DeviceCommand { device: device.clone(), id, name, payload, expires_in: Some(expires_in) };
                let worked = self.registry.command(connection, command);
                self.queue.handed(place, worked, now);
            }
            Target::Gateway => {
                self.queue.handed(place, true, now);
                let (outcome, payload) = match self.gateway.execute(&name, payload.as_deref()) {
                    GatewayOutcome::Done(value) => (CommandOutcome::Done, value.to_string()),
                    GatewayOutcome::Failed(why) => (CommandOutcome::Failed, result::error(&why)),
                    GatewayOutcome::Rejected(why) => (CommandOutcome::Rejected, result::error(&why)),
                };
                let result = CommandResult { id, outcome, payload: Some(payload) };
                self.queue.answered(&target, result, &reach(&self.registry), now);
            }
        }
    }

    fn advance(&mut self) {
        let now = self.clock.now();
        let excused = self.excuses.look(self.clock.put_off(), now.monotonic);
        if !excused.is_zero() {
            self.queue.extend_answer_time(excused, now);
        }
        self.queue.advance_all(&reach(&self.registry), now);
    }

    /// This many changes are on disk.
    fn written(&mut self, count: u64) {
        self.written = count;
        self.queue.written(count, &reach(&self.registry), self.clock.now());
        while self.unconfirmed.front().is_some_and(|(needed, _)| *needed <= count) {
            match self.unconfirmed.pop_front().map(|(_, confirm)| confirm) {
                None => {}
                Some(Confirm::Destination(confirmation)) => confirmation.confirm(),
                Some(Confirm::Local(reply, state)) => drop(reply.send(Ok(state))),
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let Answer { from, result } = answer;
        let id = result.id.clone();
        let known =
            self.queue.answered(&Target::Device(from.clone()), result, &reach(&self.registry), self.clock.now());
        if !known {
            self.metrics.commands_late_results.inc();
            tracing::debug!(device = %from, id, "ignoring an answer to a command that has ended or is unknown");
        }
    }

    fn count_received(&self, source: Source) {
        self.metrics.commands_received.get_or_create(&SourceLabel { source: source.name() }).inc();
    }

    /// A request from this machine.
    fn local_request(&mut self, request: Request) {
        match request {
            Request::Await { key, reply } if self.queue.is_live(&key) => {
                let waiting = self.waiting.entry(key).or_default();
                waiting.retain(|other| !other.is_closed());
                waiting.push(reply);
            }
            Request::Await { reply, .. } => drop(reply.send(())),
            Request::Submit { request, reply } => {
                let receipt = self.queue.receive(request, Source::Http, &reach(&self.registry), self.clock.now());
                match receipt {
                    Receipt::Taken(count) => {
                        self.count_received(Source::Http);
                        self.unconfirmed.push_back((count, Confirm::Local(reply, CommandState::Queued)));
                    }
                    Receipt::Known(state, count) => {
                        self.unconfirmed.push_back((count, Confirm::Local(reply, state)));
                        self.confirm_known();
                    }
                    Receipt::Refused(refusal) => drop(reply.send(Err(refusal))),
                }
            }
        }
    }

    /// A command from a sink's destination. Its result is the only answer to its sender.
    fn inbound_command(&mut self, command: InboundCommand) {
        let InboundCommand { source, target, body, wanted_for, confirmation } = command;
        let now = self.clock.now();
        let count = match CommandRequest::parse(target.clone(), &body, None, self.limits) {
            Ok(request) => {
                let request = request.within(wanted_for);
                let receipt = self.queue.receive(request.clone(), source, &reach(&self.registry), now);
                match receipt {
                    Receipt::Taken(count) => {
                        self.count_received(source);
                        count
                    }
                    Receipt::Known(_, count) => count,
                    Receipt::Refused(refusal) => self.reject(request, source, &refusal.to_string()),
                }
            }
            Err(invalid) => match *invalid {
                Invalid { request: Some(request), why, .. } => self.reject(request, source, &why),
                Invalid { id, why, .. } => {
                    tracing::warn!(%target, why, "a command is rejected");
                    self.queue.publish_event(result::no_command(&target, id, &why))
                }
            },
        };
        self.unconfirmed.push_back((count, Confirm::Destination(confirmation)));
        self.confirm_known();
    }

    fn reject(&mut self, request: CommandRequest, source: Source, why: &str) -> u64 {
        tracing::warn!(target = %request.target, id = %request.id, why, "a command is rejected");
        self.queue.reject(request, source, why, self.clock.now())
    }

    /// A command that changes nothing may be confirmed at once.
    fn confirm_known(&mut self) {
        if self.unconfirmed.front().is_some_and(|(count, _)| *count <= self.written) {
            self.written(self.written);
        }
    }
}

/// The connection by which a target can be reached; the gateway always can.
fn reach(registry: &Registry) -> impl Fn(&Target) -> Option<u64> {
    move |target| match target {
        Target::Gateway => Some(0),
        Target::Device(device) => registry.connection(device),
    }
}

/// Waits until devices connected or disconnected, and not before `earliest`. Cancel-safe.
async fn changed(changes: &mut watch::Receiver<()>, earliest: Instant) {
    sleep_until(earliest).await;
    if changes.changed().await.is_err() {
        // The registry is dropped: there are no more changes.
        std::future::pending::<()>().await;
    }
}

impl Handle {
    /// Parses a request; one without an id gets one.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn request(&self, target: Target, body: &[u8]) -> Result<CommandRequest, Box<Invalid>> {
        CommandRequest::parse(target, body, Some(CommandId::random()), self.limits)
    }

    /// Largest text of a request, in bytes.
    pub fn max_request(&self) -> usize {
        self.limits.max_body
    }

    /// Sends a command; returns once it is on disk, with its state if it was known before.
    ///
    /// # Errors
    /// If the gateway is stopping, or as the inner result says.
    pub async fn submit(&self, request: CommandRequest) -> Result<Result<CommandState, Refusal>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Submit { request, reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Waits for the end of a command, for `within` at most.
    pub async fn ended(&self, key: &CommandKey, within: Duration) {
        let (reply, ended) = oneshot::channel();
        let wait = async {
            if self.requests.send(Request::Await { key: key.clone(), reply }).await.is_ok() {
                // The task has ended: the gateway is stopping.
                let _ = ended.await;
            }
        };
        let _ = timeout(within, wait).await;
    }

    /// A command that has not ended, or is remembered.
    ///
    /// # Errors
    /// If the log cannot be read; a retry may succeed.
    pub async fn command(&self, key: &CommandKey) -> Result<Option<Record>> {
        self.log.command(key).await
    }

    /// The latest commands of one device, or of the gateway, of which more than the state is
    /// remembered.
    ///
    /// # Errors
    /// If the log cannot be read; a retry may succeed.
    pub async fn commands(&self, target: &Target, most: u32) -> Result<Vec<Command>> {
        self.log.commands(target, most).await
    }
}

#[cfg(test)]
mod tests;
