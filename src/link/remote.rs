//! What a link knows of the far end of a connection.

use crate::net::AddressSlot;
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The far end of a connection.
#[derive(Debug)]
pub struct RemoteInfo {
    /// Its address, or the path of its port: its name in logs.
    pub name: String,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// Its slot among those of its address, where they are limited.
    pub address_slot: Option<AddressSlot>,
    /// When it connected, on the monotonic clock, if that was before the session driver starts.
    pub since: Option<Duration>,
    /// The client certificate that the TLS handshake verified.
    pub certificate: Option<CertificateDer<'static>>,
}

impl RemoteInfo {
    /// A far end of which only the name is known.
    pub fn named(name: impl Into<String>) -> RemoteInfo {
        RemoteInfo { name: name.into(), address: None, address_slot: None, since: None, certificate: None }
    }

    /// A far end with an address.
    pub fn from(address: SocketAddr) -> RemoteInfo {
        RemoteInfo { address: Some(address.ip()), ..RemoteInfo::named(address.to_string()) }
    }
}
