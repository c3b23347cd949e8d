//! Who is at the far end of a connection, as far as its link can tell.

use crate::net::AddressSlot;
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The far end of a connection.
#[derive(Debug)]
pub struct RemoteInfo {
    /// Its address, or the port's path: what logs call it.
    pub name: String,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// Its place among those of its address, where they are counted.
    pub address_slot: Option<AddressSlot>,
    /// When it came, on the monotonic clock, if that was before its session begins.
    pub since: Option<Duration>,
    /// The certificate that it proved to have.
    pub certificate: Option<CertificateDer<'static>>,
}

impl RemoteInfo {
    /// One of whom nothing but the name is known.
    pub fn named(name: impl Into<String>) -> RemoteInfo {
        RemoteInfo { name: name.into(), address: None, address_slot: None, since: None, certificate: None }
    }

    /// One that came from an address.
    pub fn from(address: SocketAddr) -> RemoteInfo {
        RemoteInfo { address: Some(address.ip()), ..RemoteInfo::named(address.to_string()) }
    }
}
