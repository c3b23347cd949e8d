//! The gateway as `src/gateway.rs` puts it together, from the same parts, on one
//! thread: sessions over simulated lines, pumps to simulated brokers, and the
//! writer stepped in virtual time.

use super::broker::{Broker, SimulatedDestination};
use super::context::Context;
use super::freezer::{Freezer, Thawing};
use super::mailbox::Letter;
use super::network::{self, Relay};
use super::plan::Plan;
use super::vfs::FaultyVfs;
use fastrand::Rng;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tidegate::backoff::Backoff;
use tidegate::clock::{self, Clock};
use tidegate::config::{self, Encoding};
use tidegate::device::auth::Authenticator;
use tidegate::device::{PresenceUpdate, Registry, presence_task};
use tidegate::downlink::{Downlink, GatewayCommands, GatewayOutcome, Handle};
use tidegate::ingest::Ingest;
use tidegate::link::{self, serial, tcp};
use tidegate::metrics::{Metrics, SinkLabel};
use tidegate::model::{DeviceId, DeviceStatus, GatewayId, Presence};
use tidegate::net::Pool;
use tidegate::notes::Notes;
use tidegate::sink::{Identity, Liveness, Pump};
use tidegate::store::{Log, OpenError, Opened, Stepped, Stepper};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A sink and where it sends to.
#[derive(Clone)]
pub struct SinkPlan {
    pub name: String,
    pub broker: Broker,
    pub encoding: Encoding,
}

/// Where devices come in, whichever process listens.
#[derive(Clone)]
pub struct Door {
    context: Context,
    latency: Duration,
    listener: Arc<Mutex<Option<Listener>>>,
}

struct Listener {
    shared: link::Shared,
    tcp: Arc<config::Tcp>,
    serial: Arc<config::Serial>,
    /// One for each connection: those who wait for one signal wake in an order that
    /// tokio draws at random.
    stops: Vec<watch::Sender<bool>>,
    connections: JoinSet<()>,
    freezer: Freezer,
}

pub struct Gateway {
    context: Context,
    door: Door,
    pub log: Log,
    pub metrics: Metrics,
    pumps: JoinSet<()>,
    stop_pumps: Vec<watch::Sender<bool>>,
    writer: JoinSet<()>,
    time: JoinSet<()>,
    /// What carries commands, and who waits for word of one.
    downlink: JoinSet<()>,
    stop_downlink: watch::Sender<bool>,
    commands: Handle,
    requests: JoinSet<()>,
    /// The tasks for presence, clock and keys.
    maintenance: JoinSet<()>,
    stop_maintenance: watch::Sender<bool>,
    registry: Registry,
    /// What the log knew of devices.
    pub restored: Vec<DeviceStatus>,
    max_pending: u64,
    /// What all of it runs under.
    pub freezer: Freezer,
}

/// Commands from brokers that may wait to be taken over.
const INBOUND_COMMANDS: usize = 64;

/// The gateway itself can be told one thing.
struct GatewayCommandHandler;

impl GatewayCommands for GatewayCommandHandler {
    fn execute(&self, name: &str, _payload: Option<&str>) -> GatewayOutcome {
        match name {
            "ping" => GatewayOutcome::Done("pong".into()),
            other => GatewayOutcome::Rejected(format!("no {other}")),
        }
    }
}

impl Door {
    pub fn new(context: &Context, latency: Duration) -> Door {
        Door { context: context.clone(), latency, listener: Arc::default() }
    }

    /// Connects a device, if somebody listens, by a serial line or otherwise.
    pub fn enter(&self, device: &str, by_serial: bool, seed: u64) -> Option<(DuplexStream, Relay)> {
        let mut listener = self.listener.lock();
        let Listener { shared, tcp, serial, stops, connections, freezer } = listener.as_mut()?;
        while let Some(ended) = connections.try_join_next() {
            report_panic(&self.context, "a connection", ended);
        }
        let network::Connected { device: near, gateway: far, relay } = network::connect(self.latency, seed);
        let stop = watch::Sender::new(false);
        let (shared, tcp, serial) = (shared.clone(), tcp.clone(), serial.clone());
        let (stopped, from) = (stop.subscribe(), device.to_owned());
        stops.retain(|stop| !stop.is_closed());
        stops.push(stop);
        let mut far = Thawing::new(far, freezer);
        connections.spawn(freezer.run(async move {
            match by_serial {
                true => serial::serve_stream(&mut far, &from, &serial, shared, stopped).await,
                false => tcp::serve_stream(&mut far, &from, &tcp, shared, stopped).await,
            }
        }));
        Some((near, relay))
    }
}

fn report_panic(context: &Context, what: &str, ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        context.oracle(|oracle| oracle.violated(format!("{what} panicked")));
    }
}

impl Gateway {
    /// Starts the gateway.
    ///
    /// # Errors
    /// If the log does not open.
    pub fn start(
        context: &Context,
        door: &Door,
        vfs: &FaultyVfs,
        plan: &Plan,
        sinks: &[SinkPlan],
        random: &mut Rng,
    ) -> Result<Gateway, OpenError> {
        let (clock, metrics, freezer) = (context.clock(), Metrics::new(), Freezer::default());
        let names: Vec<_> = sinks.iter().map(|sink| sink.name.as_str()).collect();
        let disk = vfs.clone();
        let gauge = Arc::new(move || Some(disk.disk().space()));
        let Opened { log, cursors, writer, devices: restored } =
            Log::open_stepped(&plan.store, &plan.routes, &names, clock.clone(), metrics.clone(), gauge)?;
        clock.begin(&log);
        let gateway = GatewayId::new("simulated").expect("a valid name");
        let identity = Identity { gateway, epoch: log.epoch() };
        let devices = config::Devices { window: [16, 200, 4096][random.usize(..3)], ..plan.sessions.clone() };
        let registry = Registry::new(&devices, clock.clone(), metrics.clone());
        let statuses = restored.statuses.clone();
        registry.restore(restored);
        let now = context.elapsed();
        context.oracle(|oracle| oracle.roll.began(now));
        let (mut maintenance, stop_maintenance) = (JoinSet::new(), watch::Sender::new(false));
        let attended = presence_task::run(registry.clone(), log.clone(), clock.clone(), stop_maintenance.subscribe());
        maintenance.spawn(freezer.run(attended));
        maintenance.spawn(freezer.run(clock::keep(clock.clone() as Arc<dyn Clock>, stop_maintenance.subscribe())));
        let (taker, inbound) = mpsc::channel(INBOUND_COMMANDS);
        let mut stop_pumps = Vec::new();
        let mut pumps = JoinSet::new();
        for (sink, cursor) in sinks.iter().zip(cursors) {
            let destination = SimulatedDestination {
                broker: sink.broker.clone(),
                boot: clock.boot(),
                identity: identity.clone(),
                epochs: log.epochs().clone(),
                encoding: sink.encoding,
                taker: taker.clone(),
            };
            let (min, max) = (Duration::from_millis(500), Duration::from_secs(20));
            let backoff = Backoff::new(min, max, Duration::from_secs(30), random.u64(..));
            let liveness = Liveness::new(clock.now().monotonic);
            let max_batch = [512, 4096, 16 * 1024][random.usize(..3)];
            let pump = Pump::new(destination, cursor, backoff, max_batch, clock.clone(), metrics.clone(), liveness);
            let stop = watch::Sender::new(false);
            pumps.spawn(freezer.run(pump.run(stop.subscribe(), Duration::from_secs(2))));
            stop_pumps.push(stop);
        }
        let (moving, commands) = Downlink::new(
            &plan.commands,
            log.clone(),
            registry.clone(),
            clock.clone(),
            metrics.clone(),
            Arc::new(GatewayCommandHandler),
            inbound,
        );
        let (mut downlink, stop_downlink) = (JoinSet::new(), watch::Sender::new(false));
        downlink.spawn(freezer.run(moving.run(stop_downlink.subscribe())));
        let authenticator = Authenticator::new(&devices, &plan.store, metrics.clone());
        maintenance.spawn(freezer.run(authenticator.clone().watch(stop_maintenance.subscribe())));
        let shared = link::Shared {
            ingest: Ingest::new(log.clone(), registry.clone(), clock.clone(), metrics.clone()),
            authenticator,
            devices,
            clock: clock.clone(),
            metrics: metrics.clone(),
            pool: Pool::new(64 << 20, metrics.clone()),
            notes: Notes::default(),
        };
        let tcp = Arc::new(config::Tcp { authentication: Some(plan.authentication), ..config::Tcp::default() });
        let serial = Arc::new(config::Serial { authentication: plan.authentication, ..config::Serial::default() });
        let (stops, connections) = (Vec::new(), JoinSet::new());
        let listener = Listener { shared, tcp, serial, stops, connections, freezer: freezer.clone() };
        *door.listener.lock() = Some(listener);
        let mut stepping = JoinSet::new();
        stepping.spawn(freezer.run(step(context.clone(), clock.clone(), vfs.clone(), writer)));
        let mut time = JoinSet::new();
        let (known, disk) = (log.clone(), vfs.clone());
        time.spawn(freezer.run(async move { clock.keep(&known, &disk).await }));
        Ok(Gateway {
            context: context.clone(),
            door: door.clone(),
            log,
            metrics,
            pumps,
            stop_pumps,
            writer: stepping,
            time,
            downlink,
            stop_downlink,
            commands,
            requests: JoinSet::new(),
            maintenance,
            stop_maintenance,
            registry,
            restored: statuses,
            max_pending: plan.store.max_pending.as_u64(),
            freezer,
        })
    }

    /// Stops as `Gateway::stop` does.
    pub async fn stop(mut self) {
        let began = Instant::now();
        let listener = self.door.listener.lock().take();
        let flush = async {
            let flushed = self.log.flush().await;
            self.context.trace(format_args!("flushed: {}", flushed.is_ok()));
        };
        let links = async {
            if let Some(mut listener) = listener {
                for stop in &listener.stops {
                    stop.send_replace(true);
                }
                while let Some(ended) = listener.connections.join_next().await {
                    report_panic(&self.context, "a connection", ended);
                }
            }
        };
        let _ = timeout(Duration::from_secs(4), async { tokio::join!(links, flush) }).await;
        self.stop_downlink.send_replace(true);
        let downlink = async {
            while let Some(ended) = self.downlink.join_next().await {
                report_panic(&self.context, "the downlink", ended);
            }
        };
        let _ = timeout(Duration::from_secs(1), downlink).await;
        self.downlink.shutdown().await;
        for stop in &self.stop_pumps {
            stop.send_replace(true);
        }
        let pumps = async {
            while let Some(ended) = self.pumps.join_next().await {
                report_panic(&self.context, "a pump", ended);
            }
        };
        let _ = timeout(Duration::from_secs(4), pumps).await;
        self.pumps.shutdown().await;
        self.stop_maintenance.send_replace(true);
        let maintenance = async { while self.maintenance.join_next().await.is_some() {} };
        let _ = timeout(Duration::from_secs(1), maintenance).await;
        self.maintenance.shutdown().await;
        self.requests.shutdown().await;
        self.time.shutdown().await;
        self.log.close();
        let closed = timeout(Duration::from_secs(2), self.writer.join_next()).await;
        self.context.trace(format_args!("stopped within {:?}, closed: {}", began.elapsed(), closed.is_ok()));
        self.writer.shutdown().await;
        self.ended();
    }

    fn ended(&self) {
        let now = self.context.elapsed();
        self.context.oracle(|oracle| oracle.roll.ended(now));
    }

    /// Ends at once. What its memory held is gone.
    pub async fn crash(mut self) {
        self.ended();
        for tasks in [&mut self.requests, &mut self.downlink, &mut self.maintenance] {
            tasks.shutdown().await;
        }
        let listener = self.door.listener.lock().take();
        if let Some(mut listener) = listener {
            listener.connections.shutdown().await;
        }
        self.pumps.shutdown().await;
        self.time.shutdown().await;
        self.writer.shutdown().await;
    }

    /// How many readings wait for the sink, as the metrics say.
    pub fn pending(&self, sink: &str) -> i64 {
        self.metrics.sink_pending.get_or_create(&SinkLabel { sink: sink.into() }).get()
    }

    /// Somebody on this machine gives a command.
    pub fn submit(&mut self, letter: Letter) {
        let (context, commands) = (self.context.clone(), self.commands.clone());
        while self.requests.try_join_next().is_some() {}
        self.requests.spawn(self.freezer.run(async move {
            let Letter { key, target, body } = letter;
            let Ok(request) = commands.request(target, body.as_bytes()) else { return };
            let now = context.elapsed();
            context.oracle(|oracle| oracle.orders.handed(&key, now));
            if let Ok(answer) = commands.submit(request).await {
                context.trace(format_args!("{key:?} is answered {answer:?}"));
                if answer.is_ok() {
                    let now = context.elapsed();
                    context.oracle(|oracle| oracle.orders.confirmed(&key, now));
                }
            }
        }));
    }

    /// The devices of which it was told last that they are there.
    pub fn told_there(&self) -> BTreeSet<String> {
        let all = std::iter::successors(self.registry.told_after(0), |(version, _)| self.registry.told_after(*version));
        all.filter_map(|(_, told)| match told {
            PresenceUpdate::Status(status) if status.state != Presence::Offline => Some(status.device.to_string()),
            _ => None,
        })
        .collect()
    }

    /// Whether the device is connected, for all that the gateway knows.
    pub fn sees(&self, device: &str) -> bool {
        DeviceId::new(device).is_ok_and(|device| self.registry.is_connected(&device))
    }

    /// Whether no command is live, and nothing is to be told of devices.
    pub fn is_quiet(&self) -> bool {
        self.unrest() == (0, None)
    }

    /// How many commands are live, and when something of devices is to be told next.
    pub fn unrest(&self) -> (i64, Option<Duration>) {
        (self.metrics.commands_live.get(), self.registry.due())
    }

    /// Looks whether a part ended that should be running, and whether the bounds are
    /// kept. True if the writer gave the log up as damaged: the gateway starts anew then.
    pub fn check(&mut self) -> bool {
        let mut gave_up = false;
        while let Some(ended) = self.pumps.try_join_next() {
            report_panic(&self.context, "a pump", ended);
            self.context.oracle(|oracle| oracle.violated("a pump ended by itself".into()));
        }
        for (tasks, what) in [(&mut self.downlink, "the downlink"), (&mut self.maintenance, "maintenance")] {
            while let Some(ended) = tasks.try_join_next() {
                report_panic(&self.context, what, ended);
                self.context.oracle(|oracle| oracle.violated(format!("{what} ended by itself")));
            }
        }
        while let Some(ended) = self.writer.try_join_next() {
            report_panic(&self.context, "the writer", ended);
            gave_up = true;
        }
        let pending = u64::try_from(self.metrics.store_pending_bytes.get()).unwrap_or(0);
        if pending > self.max_pending + MAX_BATCH {
            let max = self.max_pending;
            self.context.oracle(|oracle| oracle.violated(format!("{pending} bytes are pending, {max} are allowed")));
        }
        gave_up
    }
}

/// One batch may go beyond the bound on what is pending.
const MAX_BATCH: u64 = 64 * 1024;
/// The writer looks this often for work that nobody announces.
const LOOK: Duration = Duration::from_millis(20);

async fn step(context: Context, clock: Arc<dyn Clock>, vfs: FaultyVfs, mut writer: Stepper) {
    loop {
        let operations = vfs.disk().operations;
        let stepped = writer.step();
        if vfs.disk().is_dead() {
            // Whatever it was told, the process does not see it any more.
            std::future::pending::<()>().await;
        }
        match stepped {
            Stepped::Idle(due) => {
                let now = clock.now().monotonic;
                let wait = due.map_or(LOOK, |due| due.saturating_sub(now).min(LOOK)).max(Duration::from_millis(1));
                sleep(wait).await;
            }
            Stepped::Tried => {
                let changes = vfs.disk().operations - operations;
                context.trace(format_args!("commit, {changes} changes"));
                sleep(Duration::from_millis(1)).await;
            }
            Stepped::Looked => sleep(Duration::from_millis(1)).await,
            Stepped::Closed => return,
        }
    }
}
