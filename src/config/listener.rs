//! `[[tcp]]`, and what all listeners for devices have in common.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[[tcp]]`: a listener for devices.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tcp {
    /// Names the link in logs and metrics.
    pub name: String,
    pub listen: SocketAddr,
    /// Connections beyond this many are refused.
    pub max_connections: usize,
    /// Of one address; no fewer than of all if not given.
    pub max_connections_per_address: Option<usize>,
    /// From the connection to the end of the handshake.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Largest frame body accepted, in bytes.
    pub max_frame: ByteSize,
    /// How long a frame may stay incomplete without another byte.
    #[serde(with = "humantime_serde")]
    pub frame_timeout: Duration,
    /// As in `[devices]`, if not given.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Option<Duration>,
    /// As in `[devices]`, if not given.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Option<Duration>,
    /// PEM file of the listener's certificate chain: it speaks TLS then.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    pub key_file: Option<PathBuf>,
    /// PEM file of the authorities that vouch for devices' certificates.
    pub client_ca_file: Option<PathBuf>,
    pub client_certificates: ClientCertificates,
    /// By `listen` if not given, see [`Authentication::of`].
    pub authentication: Option<Authentication>,
}

/// The settings of a listener for devices, of whichever section it is.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    pub listen: SocketAddr,
    pub max_connections: usize,
    pub max_connections_per_address: Option<usize>,
    pub handshake_timeout: Duration,
    pub max_frame: ByteSize,
    pub frame_timeout: Duration,
    pub heartbeat_interval: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub client_ca_file: Option<PathBuf>,
    pub client_certificates: ClientCertificates,
    pub authentication: Authentication,
}

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

impl Default for Tcp {
    fn default() -> Tcp {
        Tcp {
            name: "tcp".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7411)),
            max_connections: 10_000,
            max_connections_per_address: None,
            handshake_timeout: Duration::from_secs(5),
            max_frame: ByteSize::kib(64),
            frame_timeout: Duration::from_secs(2),
            heartbeat_interval: None,
            idle_timeout: None,
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            client_certificates: ClientCertificates::Required,
            authentication: None,
        }
    }
}

impl Tcp {
    pub fn listener(&self) -> ListenerConfig {
        ListenerConfig {
            listen: self.listen,
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            handshake_timeout: self.handshake_timeout,
            max_frame: self.max_frame,
            frame_timeout: self.frame_timeout,
            heartbeat_interval: self.heartbeat_interval,
            idle_timeout: self.idle_timeout,
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            client_ca_file: self.client_ca_file.clone(),
            client_certificates: self.client_certificates,
            authentication: self.authentication.unwrap_or(Authentication::of(self.listen)),
        }
    }
}

impl ListenerConfig {
    /// Whether devices authenticate, and so may fail to.
    pub fn is_guarded(&self) -> bool {
        self.authentication != Authentication::None || self.client_ca_file.is_some()
    }

    /// Whether devices of other hosts are admitted without authentication.
    pub fn is_open(&self) -> bool {
        let certified = self.client_ca_file.is_some() && self.client_certificates == ClientCertificates::Required;
        self.is_public() && self.authentication == Authentication::None && !certified
    }

    /// Whether devices of other hosts send their secrets in the clear.
    pub fn is_tapped(&self) -> bool {
        self.is_public() && self.authentication == Authentication::Token && self.cert_file.is_none()
    }

    fn is_public(&self) -> bool {
        Authentication::of(self.listen) != Authentication::None
    }

    /// What the listener speaks TLS with, if it does.
    pub fn tls(&self) -> Option<ServerTls> {
        let (cert, key) = self.cert_file.clone().zip(self.key_file.clone())?;
        let (client_ca, client_certificates) = (self.client_ca_file.clone(), self.client_certificates);
        Some(ServerTls { cert, key, client_ca, client_certificates })
    }
}
