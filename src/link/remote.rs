//! Who is at the far end of a connection, as far as its link can tell.

use crate::net::Visit;
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The far end of a connection.
#[derive(Debug)]
pub struct Caller {
    /// Its address, or the port's path: what logs call it.
    pub name: String,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// Its place among those of its address, where they are counted.
    pub visit: Option<Visit>,
    /// When it came, on the monotonic clock, if that was before its session begins.
    pub since: Option<Duration>,
    /// The certificate that it proved to have.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Caller {
    /// One of whom nothing but the name is known.
    pub fn named(name: impl Into<String>) -> Caller {
        Caller { name: name.into(), address: None, visit: None, since: None, certificate: None }
    }

    /// One that came from an address.
    pub fn from(address: SocketAddr) -> Caller {
        Caller { address: Some(address.ip()), ..Caller::named(address.to_string()) }
    }
}
