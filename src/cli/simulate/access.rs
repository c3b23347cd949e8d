//! How simulated devices authenticate and connect: keys and TLS.

use crate::device::auth::{Secret, from_hex};
use crate::files::read_secret;
use crate::mqtt::{TlsFiles, client_config};
use crate::wire::message::Authenticate;
use anyhow::{Context, Result};
use rustls::pki_types::ServerName;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_rustls::TlsConnector;

/// 64 digits and a line break.
const MOST_SECRET_BYTES: u64 = 80;

/// How the devices authenticate and connect.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Access {
    /// Authenticate with the key of this name, see `tidegate key new`
    #[arg(long, value_name = "NAME", requires = "secret_file")]
    pub key: Option<String>,
    /// File with the key's secret, 64 hexadecimal digits; only its owner may read it
    #[arg(long, value_name = "FILE", requires = "key")]
    pub secret_file: Option<PathBuf>,
    /// Send the secret itself: the key is a token
    #[arg(long, requires = "key")]
    pub token: bool,
    /// Connect over TLS
    #[arg(long)]
    pub tls: bool,
    /// PEM file of trusted authorities; default: the system's
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate; it has to name the device
    #[arg(long, value_name = "FILE", requires_all = ["tls", "key_file"])]
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
}

/// A key of the devices.
#[derive(Debug)]
pub struct Holder {
    pub name: String,
    pub secret: Secret,
    pub token: bool,
}

impl Holder {
    /// The response to a Challenge with `nonce`.
    pub fn answer(&self, nonce: &[u8], device: &str, session: u64) -> Authenticate {
        let proof = match self.token {
            true => self.secret.0.to_vec(),
            false => self.secret.hmac(nonce, device, session),
        };
        Authenticate { key: self.name.clone(), proof }
    }
}

/// TLS of the connections.
#[derive(Clone)]
pub struct Security {
    pub connector: TlsConnector,
    /// Name that the gateway's certificate must have.
    pub host: ServerName<'static>,
}

impl Access {
    /// The devices' key, if there is one.
    ///
    /// # Errors
    /// If the file holds no secret, or others may read it.
    pub fn holder(&self) -> Result<Option<Arc<Holder>>> {
        let Some((name, file)) = self.key.as_ref().zip(self.secret_file.as_ref()) else { return Ok(None) };
        let content = read_secret(file, MOST_SECRET_BYTES)?;
        let secret = std::str::from_utf8(&content).ok().and_then(|text| from_hex(text.trim_ascii()));
        let secret = secret.with_context(|| format!("{} does not hold 64 hexadecimal digits", file.display()))?;
        Ok(Some(Arc::new(Holder { name: name.clone(), secret: Secret(secret), token: self.token })))
    }

    /// TLS to `gateway`, HOST:PORT, if it is used.
    ///
    /// # Errors
    /// If a file cannot be used, or the host cannot be a certificate's name.
    pub fn security(&self, gateway: &str) -> Result<Option<Security>> {
        if !self.tls {
            return Ok(None);
        }
        let (ca, cert, key) = (self.ca_file.clone(), self.cert_file.clone(), self.key_file.clone());
        let files = TlsFiles { ca, cert, key, ..TlsFiles::default() };
        let host = gateway.rsplit_once(':').map_or(gateway, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned());
        let host = name.with_context(|| format!("{host:?} is neither a host's name nor an address"))?;
        Ok(Some(Security { connector: Arc::new(client_config(&files)?).into(), host }))
    }
}
