//! `[[tcp]]`, and what all listeners for devices have in common.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The one list of the keys that all listeners for devices have, each with its meaning and its
/// default, for [`listener_section`] to make the section of a file with, beside its `own` keys,
/// and for [`listener_config`].
macro_rules! with_listener_keys {
    ($make:ident { $($own:tt)* }) => {
        $make! {
            { $($own)* }
            /// Of one address; no fewer than of all if not given.
            max_connections_per_address: Option<usize> = None,
            /// From the connection to the end of the handshake; with HTTP, also for a request to be
            /// complete.
            #[serde(with = "humantime_serde")]
            handshake_timeout: Duration = Duration::from_secs(5),
            /// Largest frame body, and longest text message, accepted, in bytes.
            max_frame: ByteSize = ByteSize::kib(64),
            /// How long a frame may stay incomplete without another byte.
            #[serde(with = "humantime_serde")]
            frame_timeout: Duration = Duration::from_secs(2),
            /// As in `[devices]`, if not given.
            #[serde(with = "humantime_serde")]
            heartbeat_interval: Option<Duration> = None,
            /// As in `[devices]`, if not given.
            #[serde(with = "humantime_serde")]
            idle_timeout: Option<Duration> = None,
            /// PEM file of the listener's certificate chain: it speaks TLS then.
            cert_file: Option<PathBuf> = None,
            /// PEM file of the certificate's private key.
            key_file: Option<PathBuf> = None,
            /// PEM file of the authorities that vouch for devices' certificates.
            client_ca_file: Option<PathBuf> = None,
            /// How devices prove who they are. By `listen` if not given, see [`Authentication::of`].
            authentication: Option<Authentication> = None,
        }
    };
}

/// A section of a file that is a listener for devices: its struct and its defaults, whose own
/// port and number of connections are given. Its method `client_certificates` completes its
/// [`ListenerConfig`].
macro_rules! listener_section {
    (
        {
            $(#[doc = $about:literal])*
            $section:ident(listen: $port:literal, max_connections: $connections:literal) {
                $($(#[$own_attribute:meta])* $own:ident: $own_type:ty = $own_default:expr,)*
            }
        }
        $($(#[doc = $doc:literal])* $(#[serde($($form:tt)*)])? $key:ident: $type:ty = $default:expr,)*
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $section {
            $($(#[$own_attribute])* pub $own: $own_type,)*
            pub listen: SocketAddr,
            /// Devices beyond this many are refused.
            pub max_connections: usize,
            $($(#[doc = $doc])* $(#[serde($($form)*)])? pub $key: $type,)*
        }

        impl Default for $section {
            fn default() -> $section {
                $section {
                    $($own: $own_default,)*
                    listen: SocketAddr::from(([127, 0, 0, 1], $port)),
                    max_connections: $connections,
                    $($key: $default,)*
                }
            }
        }

        impl $section {
            /// The settings of the listener.
            pub fn listener(&self) -> ListenerConfig {
                let client_certificates = self.client_certificates();
                let $section { listen, max_connections, $($key,)* .. } = self.clone();
                ListenerConfig { listen, max_connections, client_certificates, $($key,)* }
            }
        }
    };
}

macro_rules! listener_config {
    ({} $($(#[doc = $doc:literal])* $(#[serde($($form:tt)*)])? $key:ident: $type:ty = $default:expr,)*) => {
        /// The settings of a listener for devices, of whichever section it is.
        #[derive(Debug, Clone)]
        pub struct ListenerConfig {
            pub listen: SocketAddr,
            /// Devices beyond this many are refused.
            pub max_connections: usize,
            pub client_certificates: ClientCertificates,
            $($(#[doc = $doc])* pub $key: $type,)*
        }
    };
}

pub(super) use {listener_section, with_listener_keys};

with_listener_keys! {
    listener_section {
        /// `[[tcp]]`: a listener for devices.
        Tcp(listen: 7411, max_connections: 10_000) {
            /// Names the link in logs and metrics.
            name: String = "tcp".into(),
            client_certificates: ClientCertificates = ClientCertificates::Required,
        }
    }
}

with_listener_keys! { listener_config {} }

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
    fn client_certificates(&self) -> ClientCertificates {
        self.client_certificates
    }
}

impl ListenerConfig {
    /// How devices prove who they are.
    pub fn authentication(&self) -> Authentication {
        self.authentication.unwrap_or(Authentication::of(self.listen))
    }

    /// Whether devices authenticate, and so may fail to.
    pub fn is_guarded(&self) -> bool {
        self.authentication() != Authentication::None || self.client_ca_file.is_some()
    }

    /// Whether devices of other hosts are admitted without authentication.
    pub fn is_open(&self) -> bool {
        let certified = self.client_ca_file.is_some() && self.client_certificates == ClientCertificates::Required;
        self.is_public() && self.authentication() == Authentication::None && !certified
    }

    /// Whether devices of other hosts send their secrets in the clear.
    pub fn is_tapped(&self) -> bool {
        self.is_public() && self.authentication() == Authentication::Token && self.cert_file.is_none()
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
