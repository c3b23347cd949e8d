//! What a sink shows to its brokers of itself, read from files that may be renewed.

use crate::config::{self, Broker};
use crate::credentials::Credential;
use crate::mqtt::{self, ClientTls};
use anyhow::Result;
use rustls::ClientConfig;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Secrets {
    username: Option<String>,
    password_file: Option<PathBuf>,
    /// None if no broker is reached over TLS.
    tls: Option<Arc<ClientTls>>,
}

impl Secrets {
    /// Those that a sink is configured with. Certificates are read now, for the case that
    /// what they are renewed with does not fit.
    pub fn of(sink: &config::Mqtt, now: Duration) -> Secrets {
        let (username, password_file) = (sink.username.clone(), sink.password_file.clone());
        Secrets { username, password_file, tls: mqtt::tls_of(sink, now) }
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

    /// User and password, if there are any.
    ///
    /// # Errors
    /// If the password cannot be read.
    pub fn login(&self) -> Result<Option<(String, String)>> {
        let Some(username) = &self.username else { return Ok(None) };
        let password = self.password_file.as_ref().map(|path| config::read_password(path)).transpose()?;
        Ok(Some((username.clone(), password.unwrap_or_default())))
    }
}
