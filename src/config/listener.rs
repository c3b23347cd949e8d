//! What a listener for devices demands of them.

use super::Tcp;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// How devices prove who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// They need not.
    #[default]
    None,
    /// By a secret that they send, or as with `Hmac`.
    Token,
    /// By a secret that they do not send: they put it to use on what the gateway sends.
    Hmac,
}

impl Authentication {
    /// How devices do where the configuration does not say: whoever is on this machine
    /// is trusted.
    pub fn of(listen: SocketAddr) -> Authentication {
        if listen.ip().to_canonical().is_loopback() { Authentication::None } else { Authentication::Hmac }
    }
}

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
    /// How devices prove who they are.
    pub fn authentication(&self) -> Authentication {
        self.authentication.unwrap_or(Authentication::of(self.listen))
    }

    /// Whether devices from elsewhere get in that proved nothing.
    pub fn is_open(&self) -> bool {
        let certified = self.client_ca_file.is_some() && self.client_certificates == ClientCertificates::Required;
        self.is_public() && self.authentication() == Authentication::None && !certified
    }

    /// Whether devices send their secrets so that others can read them.
    pub fn is_tapped(&self) -> bool {
        self.is_public() && self.authentication() == Authentication::Token && self.cert_file.is_none()
    }

    fn is_public(&self) -> bool {
        Authentication::of(self.listen) != Authentication::None
    }

    /// What it speaks TLS with, if it does.
    pub fn tls(&self) -> Option<ServerTls> {
        let (cert, key) = self.cert_file.clone().zip(self.key_file.clone())?;
        let (client_ca, client_certificates) = (self.client_ca_file.clone(), self.client_certificates);
        Some(ServerTls { cert, key, client_ca, client_certificates })
    }
}
