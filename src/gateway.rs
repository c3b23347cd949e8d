//! The composition root: opens, connects and starts the parts in order, and stops
//! them in the order that loses nothing.

mod groups;
mod health;
mod limits;
mod opening;
mod operator;
mod pressure;
mod runtime;
mod service;
mod sinks;
mod timekeeper;

pub use service::run;

use crate::clock::{self, Clock, SystemClock};
use crate::config::{self, Config};
use crate::credentials::{self, Credential};
use crate::device::auth::Doorman;
use crate::device::{Registry, attendance};
use crate::downlink::Downlink;
use crate::http;
use crate::link;
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::model::GatewayId;
use crate::net::tls::{self, Tls};
use crate::net::{Listening, Pool};
use crate::notes::Notes;
use crate::sink::{self, CommandIntake, Identity, Sink};
use crate::store::{Log, Opened, Writer};
use anyhow::{Context, Result};
use health::Overview;
use operator::Operator;
use sinks::Sinks;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use timekeeper::Witnesses;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests for metrics that may wait to be accepted.
const HTTP_BACKLOG: usize = 128;

/// A running gateway. Dropping it cuts it off as a crash would; [`Gateway::stop`]
/// takes leave of everybody.
pub struct Gateway {
    links: Part,
    downlinks: Part,
    sinks: Part,
    http: Part,
    /// What keeps time and attendance.
    keepers: Part,
    log: Log,
    writer: Writer,
    overview: Arc<Overview>,
    tcp_addresses: Vec<SocketAddr>,
    http_address: Option<SocketAddr>,
    shutdown_timeout: Duration,
}

/// Tasks that stop together.
struct Part {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Part {
    fn new() -> Part {
        Part { stop: watch::Sender::new(false), tasks: JoinSet::new() }
    }

    /// Asks the tasks to stop and waits until they have, `within` at most.
    async fn stop(mut self, within: Duration, what: &str) {
        self.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(within, all).await.is_err() {
            tracing::warn!(what, ?within, "did not stop in time and is cut off");
        }
    }
}

impl Gateway {
    /// Starts everything that `config` names. Needs no network: sinks connect by and
    /// by. While the disk is full it waits, and its health tells.
    ///
    /// # Errors
    /// If the log can never be opened.
    pub async fn start(config: Config) -> Result<Gateway> {
        Gateway::start_with(Path::new("/"), None, config, Vec::new(), false).await
    }

    /// Starts it with further sinks beside those of `config`, each of a name of its own.
    ///
    /// # Errors
    /// As [`Gateway::start`], or if two sinks have one name.
    pub async fn start_with_sinks(config: Config, others: Vec<Sink>) -> Result<Gateway> {
        Gateway::start_with(Path::new("/"), None, config, others, false).await
    }

    /// Starts it with the serial ports of the system whose root directory is `root`.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with_ports_of(root: &Path, config: Config) -> Result<Gateway> {
        Gateway::start_with(root, None, config, Vec::new(), false).await
    }

    /// With `again`, an earlier one in this process may not have let go of the log yet.
    async fn start_with(
        root: &Path,
        logging: Option<Logging>,
        mut config: Config,
        others: Vec<Sink>,
        again: bool,
    ) -> Result<Gateway> {
        let system_clock = Arc::new(SystemClock::since_boot());
        let clock: Arc<dyn Clock> = system_clock.clone();
        let metrics = Metrics::with(logging.as_ref().map(Logging::counts).unwrap_or_default());
        let groups = limits::groups();
        let memory = limits::memory(&config, &others, &groups);
        let sinks = sinks::all(&config, others)?;
        limits::open_files(&mut config);
        metrics.memory_limit_bytes.set(i64::try_from(memory.limit).unwrap_or(i64::MAX));
        let gateway = gateway_id(&config.gateway)?;
        let pool = Pool::new(usize::try_from(memory.links).unwrap_or(usize::MAX), metrics.clone());
        let notes = Notes::default();
        let overview = Arc::new(Overview::new(notes.clone(), metrics.clone(), clock.clone()));
        let mut http = Part::new();
        let (mut http_address, mut listens) = (None, None);
        let upgrades = config.http.serves_devices().then(http::Devices::default);
        let api = http::Later::default();
        if config.http.enabled {
            let now = clock.now().monotonic;
            let access = http::Access::new(&config.http, now);
            let tls = tls::of_listener("http", &config.http.listener(), now);
            let own =
                tls.clone().map(|tls| tls as Arc<dyn Credential>).into_iter().chain(access.credential()).collect();
            let (by, stop) = (clock.clone(), http.stop.subscribe());
            http.tasks.spawn(credentials::watch(own, by, notes.clone(), metrics.clone(), stop));
            let site = http::Site {
                metrics: metrics.clone(),
                health: overview.clone(),
                access,
                parts: api.clone(),
                devices: upgrades.clone(),
            };
            let http_listener = http_listener(&config.http, tls, &notes, clock.clone(), &pool);
            http_address = Some(http_listener.listening().address());
            listens = Some(http_listener.listening().up());
            http.tasks.spawn(http::serve(http_listener, site, http.stop.subscribe()));
        }
        let given = std::env::var_os(runtime::VARIABLE);
        config.store.runtime_directory = runtime::directory(config.store.runtime_directory.take(), given);
        let opened = opening::open_log(&config, &sinks, &clock, &metrics, &overview, again).await?;
        let Opened { log, cursors, devices, writer } = opened;
        log.remember_devices(memory.devices());
        let identity = Identity { gateway, epoch: log.epoch() };
        let mut keepers = keep_time(&config.gateway, system_clock, &log, &metrics);
        // Whoever may be connected may be known.
        let mut connections = config.tcp.iter().map(|tcp| tcp.max_connections).sum::<usize>() + config.serial.len();
        if config.http.serves_devices() {
            connections += config.http.max_connections;
        }
        config.devices.max_known = config.devices.max_known.max(connections);
        let registry = Registry::new(&config.devices, clock.clone(), metrics.clone());
        registry.restore(devices);
        keepers.tasks.spawn(attendance::keep(registry.clone(), log.clone(), clock.clone(), keepers.stop.subscribe()));
        tracing::info!(
            gateway = %identity.gateway,
            epoch = %identity.epoch,
            version = env!("CARGO_PKG_VERSION"),
            log = %config.store.directory.display(),
            "starting"
        );

        let listeners: Vec<_> = config.tcp.iter().map(|tcp| listen(tcp, &notes, &clock)).collect();
        let tcp_addresses = listeners.iter().map(Listening::address).collect();
        let now = clock.now().monotonic;
        let tls: Vec<_> = config.tcp.iter().map(|tcp| tls::of_listener(&tcp.name, &tcp.listener(), now)).collect();
        let mut kept: Vec<_> = tls.iter().flatten().map(|tls| tls.clone() as Arc<dyn Credential>).collect();
        let (commands_in, commands_out) = CommandIntake::new(&config.commands);
        let context = sink::Context {
            identity: identity.clone(),
            epochs: log.epochs().clone(),
            registry: registry.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            notes: notes.clone(),
            commands: commands_in,
        };
        let Sinks { part: sinks, watched, restarters, credentials: of_sinks } =
            sinks::start(sinks, cursors, &context, config.gateway.shutdown_timeout / 5)?;
        kept.extend(of_sinks);
        overview.opened(log.clone(), watched);
        let (by, stop) = (clock.clone(), keepers.stop.subscribe());
        keepers.tasks.spawn(credentials::watch(kept, by, notes.clone(), metrics.clone(), stop));
        let operator = Operator {
            identity,
            log: log.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            started: clock.now().monotonic,
            sinks: restarters,
            logging,
        };
        let (downlink, commands) = Downlink::new(
            &config.commands,
            log.clone(),
            registry.clone(),
            clock.clone(),
            metrics.clone(),
            Arc::new(operator),
            commands_out,
        );
        let mut downlinks = Part::new();
        downlinks.tasks.spawn(downlink.run(downlinks.stop.subscribe()));
        // It is set once.
        let _ = api.set(http::Parts { registry: registry.clone(), log: log.clone(), commands });
        let shared = link::Shared {
            log: log.clone(),
            registry,
            doorman: Doorman::new(&config.devices, &config.store, metrics.clone()),
            devices: config.devices,
            pool,
            clock,
            metrics,
            notes,
        };
        let mut links = Part::new();
        links.tasks.spawn(shared.doorman.clone().watch(links.stop.subscribe()));
        links.tasks.spawn(pressure::watch(groups, shared.pool.clone(), links.stop.subscribe()));
        for ((listening, tcp), tls) in listeners.into_iter().zip(config.tcp).zip(tls) {
            if listening.is_up() {
                tracing::info!(link = %tcp.name, address = %listening.address(), "listening for devices");
            }
            links.tasks.spawn(link::tcp::serve(listening, tcp, tls, shared.clone(), links.stop.subscribe()));
        }
        if let (Some(devices), Some(listens)) = (upgrades, listens.clone()) {
            let (upgrades, server) = link::websocket::open(&config.http, shared.clone());
            // It is set here only.
            let _ = devices.set(upgrades);
            links.tasks.spawn(server.serve(listens, links.stop.subscribe()));
        }
        let ports = link::serial::Ports::new(root, &config.serial);
        for serial in config.serial {
            links.tasks.spawn(link::serial::serve(serial, ports.clone(), shared.clone(), links.stop.subscribe()));
        }
        if let (Some(address), true) = (http_address, listens.is_some_and(|listens| *listens.borrow())) {
            tracing::info!(%address, devices = config.http.serves_devices(), "listening for HTTP requests");
        }
        Ok(Gateway {
            links,
            downlinks,
            sinks,
            http,
            keepers,
            log,
            writer,
            overview,
            tcp_addresses,
            http_address,
            shutdown_timeout: config.gateway.shutdown_timeout,
        })
    }

    /// Where devices connect over TCP, in the order of the configuration, or will as soon as
    /// the address can be had.
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp_addresses
    }

    /// Where metrics and health are, if anywhere.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Stops within the configured time: devices are told, what they sent is settled,
    /// what is in flight is waited for, and the log is closed.
    pub async fn stop(self) {
        let total = self.shutdown_timeout;
        self.overview.stopping();
        // Devices are acknowledged what is flushed before they are told goodbye.
        let flush = async {
            if let Err(why) = self.log.flush().await {
                tracing::error!(why, "the log could not be written while stopping");
            }
        };
        let _ = timeout(total * 2 / 5, async { tokio::join!(self.links.stop(total, "links"), flush) }).await;
        self.downlinks.stop(total / 10, "commands").await;
        self.sinks.stop(total * 2 / 5, "sinks").await;
        self.keepers.stop(total / 10, "keepers").await;
        self.log.close();
        let closed = tokio::task::spawn_blocking(move || self.writer.join());
        if timeout(total / 5, closed).await.is_err() {
            tracing::error!("the log was not closed in time; what is not on disk was not acknowledged");
        }
        self.http.stop(total / 10, "http").await;
        tracing::info!("stopped");
    }
}

/// Has the clock watched; believes it now if somebody who answers at once vouches for it.
fn keep_time(config: &config::Gateway, clock: Arc<SystemClock>, log: &Log, metrics: &Metrics) -> Part {
    let witnesses = Witnesses::new(config);
    let earlier = log.is_synchronised().then_some("an earlier run in this boot");
    if let Some(witness) = earlier.or_else(|| witnesses.at_once()).or_else(|| witnesses.battery(clock.now().wall)) {
        clock.believe();
        tracing::debug!(witness, "the clock is set");
    }
    let mut part = Part::new();
    part.tasks.spawn(clock::keep(clock.clone() as Arc<dyn Clock>, part.stop.subscribe()));
    part.tasks.spawn(timekeeper::keep(clock, witnesses, log.clone(), metrics.clone(), part.stop.subscribe()));
    part
}

/// The configured id, or the host's name.
///
/// # Errors
/// If that is none.
pub fn gateway_id(config: &config::Gateway) -> Result<GatewayId> {
    if let Some(id) = &config.id {
        return Ok(id.clone());
    }
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    GatewayId::new(&host).with_context(|| format!("this host's name {host:?} is no gateway id; set [gateway] id"))
}

fn listen(config: &config::Tcp, notes: &Notes, clock: &Arc<dyn Clock>) -> Listening {
    let (section, note) = (format!("[[tcp]] {:?}", config.name), notes.about(config.name.as_str()));
    Listening::new(section, config.listen, config.max_connections, note, clock.clone())
}

fn http_listener(
    config: &config::Http,
    tls: Option<Arc<Tls>>,
    notes: &Notes,
    clock: Arc<dyn Clock>,
    pool: &Pool,
) -> http::BoundedListener {
    let backlog = if config.devices { HTTP_BACKLOG.max(config.max_connections) } else { HTTP_BACKLOG };
    let listening = Listening::new("[http]".to_owned(), config.listen, backlog, notes.about("http"), clock.clone());
    let http_listener = http::BoundedListener::new(listening, config.handshake_timeout, clock);
    match tls {
        Some(tls) => http_listener.secure(tls, pool.clone()),
        None => http_listener,
    }
}
