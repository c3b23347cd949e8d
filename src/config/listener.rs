//! What a listener for devices demands of them.

use super::Tcp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Whether devices must show a certificate, where there are authorities for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificates {
    /// Who shows none is not let in.
    Required,
    /// Who shows none authenticates as the listener says.
    Optional,
}

/// What a listener speaks TLS with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// PEM file of the certificate chain.
    pub cert: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
    /// PEM file of the authorities that vouch for clients; none are asked for a
    /// certificate if not given.
    pub client_ca: Option<PathBuf>,
    pub client_certificates: ClientCertificates,
}

impl Tcp {
    /// What it speaks TLS with, if it does.
    pub fn tls(&self) -> Option<ServerTls> {
        let (cert, key) = self.cert_file.clone().zip(self.key_file.clone())?;
        let (client_ca, client_certificates) = (self.client_ca_file.clone(), self.client_certificates);
        Some(ServerTls { cert, key, client_ca, client_certificates })
    }
}
