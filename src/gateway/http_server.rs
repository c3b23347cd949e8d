//! Starts the HTTP server. It serves health while the log is being opened, and everything afterwards.

use super::health::Overview;
use super::parts::{Base, Part};
use crate::config;
use crate::credentials::{self, Credential};
use crate::http::{self, Access, BoundedListener, Site};
use crate::net::{Listening, tls};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Connections that may wait to be accepted, without devices.
const BACKLOG: usize = 128;

/// The gateway's HTTP server.
pub(super) struct HttpServer {
    pub part: Part,
    /// Its address, if it is enabled; it may not listen there yet.
    pub address: Option<SocketAddr>,
    /// Turns true once it listens; `None` if it is disabled.
    pub listens: Option<watch::Receiver<bool>>,
    serves_devices: bool,
    parts: http::Later,
}

pub(super) fn start(config: &config::Http, base: &Base, health: Arc<Overview>) -> HttpServer {
    let mut server = HttpServer {
        part: Part::new(),
        address: None,
        listens: None,
        serves_devices: config.serves_devices(),
        parts: http::Later::default(),
    };
    if !config.enabled {
        return server;
    }
    let Base { clock, metrics, notes, pool } = base.clone();
    let now = clock.now().monotonic;
    let access = Access::new(config, now);
    let tls = tls::of_listener("http", &config.listener(), now);
    let mut own: Vec<Arc<dyn Credential>> = access.credential().into_iter().collect();
    own.extend(tls.clone().map(|tls| tls as Arc<dyn Credential>));
    let backlog = if config.devices { BACKLOG.max(config.max_connections) } else { BACKLOG };
    let listening = Listening::new("[http]".to_owned(), config.listen, backlog, notes.about("http"), clock.clone());
    let mut listener = BoundedListener::new(listening, config.handshake_timeout, clock.clone());
    if let Some(tls) = tls {
        listener = listener.secure(tls, pool);
    }
    (server.address, server.listens) = (Some(listener.listening().address()), Some(listener.listening().up()));
    let (parts, devices) = (server.parts.clone(), config.serves_devices());
    let site = Site { metrics: metrics.clone(), health, access, parts, devices };
    server.part.spawn(|stop| credentials::watch(own, clock, notes, metrics, stop));
    server.part.spawn(|stop| http::serve(listener, site, stop));
    server
}

impl HttpServer {
    /// The log is open: from now on all paths are served.
    pub fn serve(&self, parts: http::Parts) {
        // It is set here only.
        let _ = self.parts.set(parts);
        if let Some(address) = self.address.filter(|_| self.listens.as_ref().is_some_and(|listens| *listens.borrow())) {
            tracing::info!(%address, devices = self.serves_devices, "listening for HTTP requests");
        }
    }
}
