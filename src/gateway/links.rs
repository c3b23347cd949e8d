//! Starts the links.

use super::groups::Groups;
use super::parts::{Core, Part};
use super::pressure;
use crate::config::{self, Config};
use crate::credentials::{self, Credential};
use crate::device::auth::Authenticator;
use crate::ingest::Source;
use crate::link::websocket::UpgradeSender;
use crate::link::{self, serial, tcp, websocket};
use crate::net::{Listening, tls};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// The gateway's links.
pub(super) struct Links {
    shared: link::Shared,
    part: Part,
    /// Hands over upgraded connections of the HTTP server, if devices connect there.
    pub upgrades: Option<UpgradeSender>,
}

impl Links {
    /// The links of `config` over the HTTP server, which listens once `http` turns true.
    pub fn new(config: &Config, core: &Core, http: Option<&watch::Receiver<bool>>) -> Links {
        let base = core.base.clone();
        let shared = link::Shared {
            ingest: core.ingest.clone(),
            authenticator: Authenticator::new(&config.devices, &config.store, base.metrics.clone()),
            devices: config.devices.clone(),
            pool: base.pool,
            clock: base.clock,
            metrics: base.metrics,
            notes: base.notes,
        };
        let mut links = Links { shared, part: Part::new(), upgrades: None };
        if let Some(listens) = http.filter(|_| config.http.serves_devices()) {
            let (upgrades, server) = websocket::open(&config.http, links.shared.clone());
            links.upgrades = Some(upgrades);
            links.part.spawn(|stop| server.serve(listens.clone(), stop));
        }
        links
    }

    /// Starts all other links, with the serial ports of the system whose root directory is `root`,
    /// and `sources`. Returns the TCP addresses in the order of the configuration.
    pub fn start(
        mut self,
        config: &Config,
        root: &Path,
        groups: Groups,
        sources: Vec<Source>,
    ) -> (Part, Vec<SocketAddr>) {
        let shared = self.shared.clone();
        self.part.spawn(|stop| shared.authenticator.clone().watch(stop));
        self.part.spawn(|stop| pressure::watch(groups, shared.pool.clone(), stop));
        let addresses = start_tcp(&config.tcp, &shared, &mut self.part);
        let ports = serial::Ports::new(root, &config.serial);
        for section in &config.serial {
            self.part.spawn(|stop| serial::serve(section.clone(), ports.clone(), shared.clone(), stop));
        }
        for source in sources {
            self.part.spawn(|stop| source.run(shared.ingest.clone(), stop));
        }
        (self.part, addresses)
    }
}

fn start_tcp(sections: &[config::Tcp], shared: &link::Shared, part: &mut Part) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    let mut own: Vec<Arc<dyn Credential>> = Vec::new();
    for section in sections {
        let (place, note) = (format!("[[tcp]] {:?}", section.name), shared.notes.about(section.name.as_str()));
        let listening = Listening::new(place, section.listen, section.max_connections, note, shared.clock.clone());
        let address = listening.address();
        addresses.push(address);
        if listening.is_up() {
            tracing::info!(link = %section.name, %address, "listening for devices");
        }
        let tls = tls::of_listener(&section.name, &section.listener(), shared.clock.now().monotonic);
        own.extend(tls.clone().map(|tls| tls as Arc<dyn Credential>));
        part.spawn(|stop| tcp::serve(listening, section.clone(), tls, shared.clone(), stop));
    }
    let link::Shared { clock, notes, metrics, .. } = shared.clone();
    part.spawn(|stop| credentials::watch(own, clock, notes, metrics, stop));
    addresses
}
