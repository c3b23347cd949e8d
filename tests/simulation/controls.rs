//! What the operator does to devices, and sees of them.

use super::context::Context;
use super::network::{Line, Relay};
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What the operator may do to a device.
#[derive(Clone)]
pub struct Controls(Arc<Mutex<State>>);

/// How a device is, as it and the operator know it.
pub struct State {
    /// The lines it has, the newest last; older ones the gateway may not know to be dead.
    pub relays: Vec<Relay>,
    /// Its line damages what is said on it.
    pub noisy: bool,
    pub reboot: bool,
    /// The time between readings; none are taken while it is zero.
    pub pace: Duration,
    pub session: u64,
    /// It is switched off, with a Goodbye or without.
    pub off: Option<bool>,
    /// It does at once what it is told, and answers.
    pub obedient: bool,
    /// It is welcome, and its connection is not known to be gone.
    pub there: bool,
    /// Devices behind it, and what it says of them.
    pub subs: Vec<(&'static str, bool)>,
    /// Its key counts no more.
    pub revoked: Option<Instant>,
}

impl Controls {
    pub fn new(pace: Duration, session: u64, subs: Vec<(&'static str, bool)>) -> Controls {
        Controls(Arc::new(Mutex::new(State {
            relays: Vec::new(),
            noisy: false,
            reboot: false,
            pace,
            session,
            off: None,
            obedient: false,
            there: false,
            subs,
            revoked: None,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    pub fn reboot(&self) {
        self.lock().reboot = true;
    }

    pub fn set_pace(&self, pace: Duration) {
        self.lock().pace = pace;
    }

    pub fn set_line(&self, context: &Context, device: &str, line: Line) {
        if let Some(relay) = self.lock().relays.last() {
            relay.set(context, device, line);
        }
    }

    /// Switches it off, with or without a Goodbye, or on.
    pub fn switch(&self, context: &Context, device: &str, off: Option<bool>) {
        context.trace(format_args!("{device} is switched off: {off:?}"));
        self.lock().off = off;
    }

    pub fn is_off(&self) -> bool {
        self.lock().off.is_some()
    }

    pub fn obey(&self) {
        self.lock().obedient = true;
    }

    /// Takes its key away, or gives it back.
    pub fn revoke(&self, revoked: bool) {
        self.lock().revoked = revoked.then(Instant::now);
    }

    pub fn is_revoked(&self) -> bool {
        self.lock().revoked.is_some()
    }

    pub fn is_there(&self) -> bool {
        self.lock().there
    }

    /// Whether nothing ever happened to its line, nor to what was said on it.
    pub fn is_quiet(&self) -> bool {
        let state = self.lock();
        !state.noisy && state.relays.last().is_some_and(Relay::is_quiet)
    }

    /// The devices behind it, and whether they are there as far as it knows.
    pub fn subs(&self) -> Vec<(&'static str, bool)> {
        self.lock().subs.clone()
    }

    /// The session that it is in.
    pub fn session(&self) -> u64 {
        self.lock().session
    }

    /// Lines that fell silent break at last.
    pub fn clear_lines(&self) {
        self.lock().relays.clear();
    }
}
