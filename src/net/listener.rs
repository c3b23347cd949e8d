//! Admission to a listener for devices: lockouts, the slots of each address and of the listener,
//! and memory.

use super::address_slots::{AddressSlot, AddressSlots};
use super::admission::{Admission, AdmissionSlot};
use super::memory::Pool;
use crate::clock::Clock;
use crate::config::ListenerConfig;
use crate::metrics::{LinkLabel, LinkReasonLabel, Metrics};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Whether an address is locked out, at a time on the monotonic clock.
pub type LockedOut = Arc<dyn Fn(IpAddr, Duration) -> bool + Send + Sync>;

/// Why a connection is not admitted, in words for its far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    #[error("too many attempts failed; try again later")]
    LockedOut,
    #[error("as many devices of this address are connected as this gateway allows; try again later")]
    AddressLimit,
    #[error("as many devices are connected as this gateway has room for; try again later")]
    ConnectionLimit,
    #[error("as many devices are connected as this gateway has room for; try again later")]
    OutOfMemory,
    /// No TLS connection can be made: the certificate cannot be used.
    #[error("the gateway has no certificate that it can use; try again later")]
    NoCertificate,
}

impl AdmissionError {
    /// Names it in metrics.
    pub fn label(self) -> &'static str {
        match self {
            AdmissionError::LockedOut => "locked_out",
            AdmissionError::AddressLimit => "address",
            AdmissionError::ConnectionLimit => "too_many",
            AdmissionError::OutOfMemory => "memory",
            AdmissionError::NoCertificate => "tls",
        }
    }
}

/// What bounds the connections of one listener for devices. Clones share it.
#[derive(Clone)]
pub struct ListenerAdmission {
    link: Arc<str>,
    slots: Admission,
    /// Where connections are limited by address.
    addresses: Option<AddressSlots>,
    /// Where devices authenticate, and may fail to.
    locked_out: Option<LockedOut>,
    pool: Pool,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl ListenerAdmission {
    /// The admission of the listener called `link`.
    pub fn new(
        link: Arc<str>,
        config: &ListenerConfig,
        locked_out: Option<LockedOut>,
        pool: Pool,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> ListenerAdmission {
        let waiting = metrics.connections_waiting.get_or_create(&LinkLabel { link: link.clone() }).clone();
        let slots = Admission::new(config.max_connections, waiting);
        let addresses = config.max_connections_per_address.map(AddressSlots::new);
        ListenerAdmission { link, slots, addresses, locked_out, pool, clock, metrics }
    }

    /// The slots of the listener.
    pub fn slots(&self) -> &Admission {
        &self.slots
    }

    /// Takes a slot among those of the address, where they are limited.
    ///
    /// # Errors
    /// If the address is locked out, or has no slot left.
    pub fn claim_address(&self, from: SocketAddr) -> Result<Option<AddressSlot>, AdmissionError> {
        let address = from.ip();
        if self.locked_out.as_ref().is_some_and(|locked_out| locked_out(address, self.now())) {
            return Err(AdmissionError::LockedOut);
        }
        let Some(addresses) = &self.addresses else { return Ok(None) };
        addresses.claim(address).map(Some).ok_or(AdmissionError::AddressLimit)
    }

    /// Takes a slot of the listener.
    ///
    /// # Errors
    /// If there is none, or no memory for another connection, and no connection can be evicted.
    pub fn claim(&self) -> Result<AdmissionSlot, AdmissionError> {
        if self.is_short() && !self.slots.evict_oldest() {
            self.pool.refused("connection");
            return Err(AdmissionError::OutOfMemory);
        }
        self.slots.claim(self.now()).ok_or(AdmissionError::ConnectionLimit)
    }

    /// Whether a new connection has to wait.
    pub fn is_full(&self) -> bool {
        self.slots.full_for(self.now(), self.is_short()).is_some()
    }

    /// Waits until a new connection need not wait. Cancel-safe, for one that waits at a time.
    pub async fn room(&self) {
        self.slots.room(&*self.clock, || self.is_short()).await;
    }

    /// Counts and logs that a connection is refused.
    pub fn count_refused(&self, from: SocketAddr, why: AdmissionError) {
        let (link, reason) = (self.link.clone(), why.label());
        tracing::debug!(%link, %from, reason, "connection refused");
        self.metrics.connections_refused.get_or_create(&LinkReasonLabel { link, reason }).inc();
    }

    /// The time on the monotonic clock.
    pub fn now(&self) -> Duration {
        self.clock.now().monotonic
    }

    /// Whether there is no memory for another connection.
    fn is_short(&self) -> bool {
        !self.pool.admits()
    }
}
