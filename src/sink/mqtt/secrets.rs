//! What a sink shows to its brokers of itself, read from files that may be renewed.

use super::sas;
use crate::clock::Now;
use crate::config::{self, Broker, Way};
use crate::credentials::Credential;
use crate::mqtt::{self, ClientTls, Transport};
use anyhow::{Result, bail};
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;

/// The part of its lifetime after which a token is renewed.
const RENEWED_AT: f64 = 0.8;

pub(super) struct Secrets {
    sink: config::Mqtt,
    client_id: String,
    /// None if no broker is reached over TLS.
    tls: Option<Arc<ClientTls>>,
}

impl Secrets {
    /// Those that a sink is configured with. Certificates are read now, for the case that
    /// what they are renewed with does not fit.
    pub fn of(sink: &config::Mqtt, client_id: String, now: Duration) -> Secrets {
        Secrets { tls: mqtt::tls_of(sink, now), sink: sink.clone(), client_id }
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
        let tls = tls.transpose().map_err(anyhow::Error::msg)?;
        let Some(protocol) = self.sink.alpn(broker) else { return Ok(tls) };
        Ok(tls.map(|tls| {
            let mut config = ClientConfig::clone(&tls);
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        }))
    }

    /// How to go this way.
    ///
    /// # Errors
    /// If the proxy's password cannot be read, or the environment's proxy cannot be used.
    pub fn transport(&self, way: &Way) -> Result<Transport> {
        Transport::of_sink(&self.sink, way)
    }

    /// User and password for this broker, if there are any.
    ///
    /// # Errors
    /// If the password cannot be read, or no token be made.
    pub fn login(&self, broker: &Broker, now: Now) -> Result<Option<(String, String)>> {
        let Some(username) = self.sink.username(broker, &self.client_id) else { return Ok(None) };
        if let Some(path) = &self.sink.shared_access_key_file {
            if !now.trusted {
                bail!("a token needs the time, which is not known yet; docs/time.md says why");
            }
            let key = config::read_access_key(path)?;
            let lifetime = i64::try_from(self.sink.token_lifetime.as_secs()).unwrap_or(i64::MAX);
            let expires = (now.wall.0 / 1_000_000).saturating_add(lifetime);
            return Ok(Some((username, sas::token(&broker.host, &self.client_id, &key, expires))));
        }
        let password = self.sink.password_file.as_ref().map(|path| config::read_password(path)).transpose()?;
        Ok(Some((username, password.unwrap_or_default())))
    }

    /// How long a connection may last until a new token is needed, if it ever is.
    pub fn renew_after(&self) -> Option<Duration> {
        self.sink.shared_access_key_file.as_ref().map(|_| self.sink.token_lifetime.mul_f64(RENEWED_AT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Profile;

    #[test]
    fn what_is_spoken_behind_port_443_of_aws_is_told_in_the_handshake() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).expect("a file");
        let (profile, ca_file) = (Some(Profile::AwsIot), Some(ca));
        let brokers = vec!["mqtts://localhost:443".to_owned(), "mqtts://localhost".to_owned()];
        let sink = config::Mqtt { profile, ca_file, brokers, ..config::Mqtt::default() };
        let secrets = Secrets::of(&sink, "gw".to_owned(), Duration::ZERO);
        let spoken = |url: &str| {
            let tls = secrets.tls(&url.parse().expect("an address")).expect("they are in order").expect("TLS");
            tls.alpn_protocols.clone()
        };
        assert_eq!(spoken("mqtts://localhost:443"), [b"x-amzn-mqtt-ca".to_vec()]);
        assert!(spoken("mqtts://localhost").is_empty());
    }
}
