//! The composition root: starts the parts in order, and stops them in the order that loses
//! nothing.

mod commands;
mod gateway_commands;
mod groups;
mod health;
mod http_server;
mod limits;
mod links;
mod maintenance;
mod opening;
mod parts;
mod pressure;
mod runtime;
mod service;
mod sinks;
mod timekeeper;

pub use service::run;

use crate::clock::SystemClock;
use crate::config::{self, Config};
use crate::device::Registry;
use crate::http;
use crate::ingest::{Ingest, Source};
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::model::GatewayId;
use crate::net::Pool;
use crate::notes::Notes;
use crate::sink::{Identity, Sink};
use crate::store::{Log, Opened, Writer};
use anyhow::{Context, Result};
use gateway_commands::GatewayCommandHandler;
use health::Overview;
use links::Links;
use parts::{Base, Core, Part};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A running gateway. Dropping it cuts it off as a crash would; [`Gateway::stop`] shuts it down
/// gracefully.
pub struct Gateway {
    links: Part,
    downlink: Part,
    sinks: Part,
    http: Part,
    /// The tasks for time and presence.
    maintenance: Part,
    log: Log,
    writer: Writer,
    overview: Arc<Overview>,
    tcp_addresses: Vec<SocketAddr>,
    http_address: Option<SocketAddr>,
    shutdown_timeout: Duration,
}

/// Parts of a gateway beside those of its configuration.
#[derive(Default)]
pub struct Additions {
    /// Each has a name of its own.
    pub sinks: Vec<Sink>,
    pub sources: Vec<Source>,
}

/// The environment of a gateway, beside its configuration.
struct Environment {
    /// The root directory of the system whose serial ports are used.
    root: PathBuf,
    /// None if the embedding program logs by other means.
    logging: Option<Logging>,
    additions: Additions,
    /// An earlier gateway in this process may not have released the log yet.
    again: bool,
}

impl Default for Environment {
    fn default() -> Environment {
        Environment { root: "/".into(), logging: None, additions: Additions::default(), again: false }
    }
}

impl Gateway {
    /// Starts everything in `config`. Needs no network: sinks connect later. While the disk is full
    /// it waits, and its health reports that.
    ///
    /// # Errors
    /// If the log can never be opened.
    pub async fn start(config: Config) -> Result<Gateway> {
        Gateway::start_in(Environment::default(), config).await
    }

    /// Starts a gateway with further sinks and sources beside those of `config`.
    ///
    /// # Errors
    /// As [`Gateway::start`], or if two sinks have one name.
    pub async fn start_with(config: Config, additions: Additions) -> Result<Gateway> {
        Gateway::start_in(Environment { additions, ..Environment::default() }, config).await
    }

    /// Starts a gateway with the serial ports of the system whose root directory is `root`.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with_ports_of(root: &Path, config: Config) -> Result<Gateway> {
        Gateway::start_in(Environment { root: root.to_owned(), ..Environment::default() }, config).await
    }

    async fn start_in(environment: Environment, mut config: Config) -> Result<Gateway> {
        let Environment { root, logging, additions: Additions { sinks, sources }, again } = environment;
        let system_clock = Arc::new(SystemClock::since_boot());
        let groups = limits::groups();
        let memory = limits::memory(&config, &sinks, &groups);
        let sinks = sinks::all(&config, sinks)?;
        limits::raise_open_files(&mut config);
        limits::raise_known_devices(&mut config);
        let id = gateway_id(&config.gateway)?;
        let metrics = Metrics::with(logging.as_ref().map(Logging::counts).unwrap_or_default());
        metrics.memory_limit_bytes.set(i64::try_from(memory.limit).unwrap_or(i64::MAX));
        let base = Base {
            clock: system_clock.clone(),
            pool: Pool::new(usize::try_from(memory.links).unwrap_or(usize::MAX), metrics.clone()),
            metrics,
            notes: Notes::default(),
        };
        let overview = Arc::new(Overview::new(base.notes.clone(), base.metrics.clone(), base.clock.clone()));
        let http = http_server::start(&config.http, &base, overview.clone());

        let given = std::env::var_os(runtime::VARIABLE);
        config.store.runtime_directory = runtime::directory(config.store.runtime_directory.take(), given);
        let opened = opening::open_log(&config, &sinks, &base.clock, &base.metrics, &overview, again).await?;
        let Opened { log, cursors, devices, writer } = opened;
        log.remember_devices(memory.devices());
        let registry = Registry::new(&config.devices, base.clock.clone(), base.metrics.clone());
        registry.restore(devices);
        let ingest = Ingest::new(log.clone(), registry.clone(), base.clock.clone(), base.metrics.clone());
        let core = Core { base, identity: Identity { gateway: id, epoch: log.epoch() }, log, registry, ingest };
        let maintenance = maintenance::start(&config.gateway, system_clock, &core);
        tracing::info!(
            gateway = %core.identity.gateway,
            epoch = %core.identity.epoch,
            version = env!("CARGO_PKG_VERSION"),
            log = %config.store.directory.display(),
            "starting"
        );
        let sinks = sinks::start(&config, sinks, cursors, &core)?;
        overview.opened(core.log.clone(), sinks.watched);
        let handler = GatewayCommandHandler::new(&core, sinks.restarters, logging);
        let (downlink, commands) = commands::start(&config.commands, &core, handler, sinks.commands);
        let links = Links::new(&config, &core, http.listens.as_ref());
        let Core { log, registry, ingest, .. } = core;
        let refused = ingest.refused().clone();
        http.serve(http::Parts { registry, refused, log: log.clone(), commands, devices: links.upgrades.clone() });
        let (links, tcp_addresses) = links.start(&config, &root, groups, sources);
        Ok(Gateway {
            links,
            downlink,
            sinks: sinks.part,
            http_address: http.address,
            http: http.part,
            maintenance,
            log,
            writer,
            overview,
            tcp_addresses,
            shutdown_timeout: config.gateway.shutdown_timeout,
        })
    }

    /// Where devices connect over TCP, in the order of the configuration; a listener may not have
    /// its address yet.
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp_addresses
    }

    /// The address of the HTTP server, if it is enabled.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Stops within the configured time: sessions end, readings that were received are settled,
    /// publishes in flight are awaited, and the log is closed.
    pub async fn stop(self) {
        let total = self.shutdown_timeout;
        self.overview.stopping();
        // Flushed readings are acknowledged before Goodbye.
        let flush = async {
            if let Err(why) = self.log.flush().await {
                tracing::error!(why, "the log could not be written while stopping");
            }
        };
        let _ = timeout(total * 2 / 5, async { tokio::join!(self.links.stop(total, "links"), flush) }).await;
        self.downlink.stop(total / 10, "commands").await;
        self.sinks.stop(total * 2 / 5, "sinks").await;
        self.maintenance.stop(total / 10, "maintenance").await;
        self.log.close();
        let closed = tokio::task::spawn_blocking(move || self.writer.join());
        if timeout(total / 5, closed).await.is_err() {
            tracing::error!("the log was not closed in time; what is not on disk was not acknowledged");
        }
        self.http.stop(total / 10, "http").await;
        tracing::info!("stopped");
    }
}

/// The configured id, or the host's name.
///
/// # Errors
/// If the host's name is not a valid id.
pub fn gateway_id(config: &config::Gateway) -> Result<GatewayId> {
    if let Some(id) = &config.id {
        return Ok(id.clone());
    }
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy();
    GatewayId::new(&host).with_context(|| format!("this host's name {host:?} is no gateway id; set [gateway] id"))
}
