//! What a sink shows to its brokers of itself, read from files that may be renewed.

use crate::config::{self, Broker};
use crate::credentials::Credential;
use crate::mqtt::{self, ClientTls, Transport};
use anyhow::Result;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Secrets {
    sink: config::Mqtt,
    /// None if no broker is reached over TLS.
    tls: Option<Arc<ClientTls>>,
}

impl Secrets {
    /// Those that a sink is configured with. Certificates are read now, for the case that
    /// what they are renewed with does not fit.
    pub fn of(sink: &config::Mqtt, now: Duration) -> Secrets {
        Secrets { sink: sink.clone(), tls: mqtt::tls_of(sink, now) }
    }

    /// What has to be watched, if anything.
    pub fn credential(&self) -> Option<Arc<dyn Credential>> {
        Some(self.tls.clone()?)
    }

    /// What to shake hands with this broker with, if it is reached over TLS.
    ///
    /// # Errors
    /// If the files never were in order.
    pub fn tls(&self, broker: &Broker) -> Result<Option<Arc<ClientConfig>>> {
        let tls = self.tls.as_ref().filter(|_| broker.tls).map(|tls| tls.afresh());
        tls.transpose().map_err(anyhow::Error::msg)
    }

    /// The way to this broker.
    ///
    /// # Errors
    /// If the proxy's password cannot be read, or the environment's proxy cannot be used.
    pub fn transport(&self, broker: &Broker) -> Result<Transport> {
        Transport::of_sink(&self.sink, broker)
    }

    /// User and password, if there are any.
    ///
    /// # Errors
    /// If the password cannot be read.
    pub fn login(&self) -> Result<Option<(String, String)>> {
        let Some(username) = &self.sink.username else { return Ok(None) };
        let password = self.sink.password_file.as_ref().map(|path| config::read_password(path)).transpose()?;
        Ok(Some((username.clone(), password.unwrap_or_default())))
    }
}
