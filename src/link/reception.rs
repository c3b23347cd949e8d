//! What every listener for devices does with those that come to it.

use super::context::Line;
use crate::config::Terms;
use crate::net::{Addresses, Place, Porch, Visit};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where newcomers are looked at. Clones share it.
#[derive(Clone)]
pub struct Reception {
    pub line: Arc<Line>,
    pub porch: Porch,
    /// Where connections are limited by address.
    addresses: Option<Addresses>,
    /// Whether devices prove who they are, and so may fail to.
    guarded: bool,
}

impl Reception {
    pub fn new(terms: &Terms, line: Line) -> Reception {
        line.guard(terms);
        let porch = Porch::new(terms.max_connections, line.waiting());
        let addresses = terms.max_connections_per_address.map(Addresses::new);
        Reception { line: Arc::new(line), porch, addresses, guarded: terms.is_guarded() }
    }

    /// Whether somebody from this address may come at all: its visit, where those are
    /// counted.
    ///
    /// # Errors
    /// The reason for which it is to be turned away.
    pub fn look_at(&self, from: SocketAddr) -> Result<Option<Visit>, &'static str> {
        let address = from.ip();
        if self.guarded && self.line.shared.doorman.locked_out(&address.into(), self.now()).is_some() {
            return Err("locked_out");
        }
        let Some(addresses) = &self.addresses else { return Ok(None) };
        addresses.arrive(address).map(Some).ok_or("address")
    }

    /// A place for a newcomer that may come.
    ///
    /// # Errors
    /// The reason for which it is to be turned away.
    pub fn place(&self) -> Result<Place, &'static str> {
        if self.is_short() && !self.porch.evict_one() {
            self.line.shared.pool.refused("connection");
            return Err("memory");
        }
        self.porch.arrive(self.now()).ok_or("too_many")
    }

    /// Whether a newcomer has to wait.
    pub fn is_full(&self) -> bool {
        self.porch.full_for(self.now(), self.is_short()).is_some()
    }

    /// Waits until a newcomer need wait no longer. Cancel-safe, for one who waits.
    pub async fn room(&self) {
        self.porch.room(&*self.line.shared.clock, || self.is_short()).await;
    }

    /// Counts and logs that somebody was turned away.
    pub fn turned_away(&self, from: SocketAddr, reason: &'static str) {
        self.line.turned_away(reason);
        tracing::debug!(link = %self.line.name, %from, reason, "connection refused");
    }

    pub fn now(&self) -> Duration {
        self.line.shared.clock.now().monotonic
    }

    /// Whether there is no memory for another connection.
    fn is_short(&self) -> bool {
        !self.line.shared.pool.admits()
    }
}
