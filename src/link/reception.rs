//! What every listener for devices does with those that come to it.

use super::context::LinkContext;
use crate::config::ListenerConfig;
use crate::net::{AddressSlot, AddressSlots, Admission, AdmissionSlot};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where newcomers are looked at. Clones share it.
#[derive(Clone)]
pub struct Reception {
    pub link: Arc<LinkContext>,
    pub admission: Admission,
    /// Where connections are limited by address.
    addresses: Option<AddressSlots>,
    /// Whether devices prove who they are, and so may fail to.
    guarded: bool,
}

impl Reception {
    pub fn new(config: &ListenerConfig, link: LinkContext) -> Reception {
        link.guard(config);
        let admission = Admission::new(config.max_connections, link.waiting());
        let addresses = config.max_connections_per_address.map(AddressSlots::new);
        Reception { link: Arc::new(link), admission, addresses, guarded: config.is_guarded() }
    }

    /// Whether somebody from this address may come at all: its visit, where those are
    /// counted.
    ///
    /// # Errors
    /// The reason for which it is to be turned away.
    pub fn look_at(&self, from: SocketAddr) -> Result<Option<AddressSlot>, &'static str> {
        let address = from.ip();
        if self.guarded && self.link.shared.doorman.locked_out(&address.into(), self.now()).is_some() {
            return Err("locked_out");
        }
        let Some(addresses) = &self.addresses else { return Ok(None) };
        addresses.claim(address).map(Some).ok_or("address")
    }

    /// A place for a newcomer that may come.
    ///
    /// # Errors
    /// The reason for which it is to be turned away.
    pub fn slot(&self) -> Result<AdmissionSlot, &'static str> {
        if self.is_short() && !self.admission.evict_oldest() {
            self.link.shared.pool.refused("connection");
            return Err("memory");
        }
        self.admission.claim(self.now()).ok_or("too_many")
    }

    /// Whether a newcomer has to wait.
    pub fn is_full(&self) -> bool {
        self.admission.full_for(self.now(), self.is_short()).is_some()
    }

    /// Waits until a newcomer need wait no longer. Cancel-safe, for one who waits.
    pub async fn room(&self) {
        self.admission.room(&*self.link.shared.clock, || self.is_short()).await;
    }

    /// Counts and logs that somebody was turned away.
    pub fn turned_away(&self, from: SocketAddr, reason: &'static str) {
        self.link.turned_away(reason);
        tracing::debug!(link = %self.link.name, %from, reason, "connection refused");
    }

    pub fn now(&self) -> Duration {
        self.link.shared.clock.now().monotonic
    }

    /// Whether there is no memory for another connection.
    fn is_short(&self) -> bool {
        !self.link.shared.pool.admits()
    }
}
