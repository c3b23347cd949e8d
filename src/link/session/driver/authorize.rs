//! Who the device is: whether it may come in, and whether it still may.

use super::{Peer, busy};
use crate::clock::Now;
use crate::device::auth::{Attempt, Fault, Origin, certifies};
use crate::device::{Refusal, Step};
use crate::model::DeviceId;
use crate::wire::frame::Limits;
use crate::wire::message::Reason;
use std::future::pending;
use std::ops::ControlFlow;

impl Peer<'_> {
    /// A device of this name says that it is there. False if it is refused for its name
    /// or its certificate.
    pub(super) fn is_let_in(&mut self, device: &DeviceId, now: Now) -> bool {
        let fault = match &self.caller.certificate {
            _ if !self.line.shared.doorman.allows(device) => Fault::NotAllowed,
            Some(certificate) if !certifies(certificate, device) => Fault::Certificate,
            _ => return true,
        };
        self.unauthorized(fault, device, None, now);
        false
    }

    /// The device has to prove who it is, unless its certificate did.
    pub(super) fn introduced(&mut self, device: &DeviceId, now: Now) -> ControlFlow<Limits> {
        // On a line that cannot break, whoever was there is gone.
        self.part();
        self.credential = None;
        if !self.is_let_in(device, now) {
            return ControlFlow::Continue(());
        }
        if self.caller.certificate.is_some() {
            return self.admit(now);
        }
        if self.is_locked_out(now) {
            self.unauthorized(Fault::LockedOut, device, None, now);
            return ControlFlow::Continue(());
        }
        match self.line.shared.doorman.nonce() {
            Ok(nonce) => {
                let challenge = self.session.challenge(nonce);
                self.say(&challenge);
            }
            Err(why) => {
                tracing::error!(link = %self.line.name, why = format!("{why:#}"), "devices cannot be authenticated");
                let text = "the gateway cannot authenticate devices now; try again later".into();
                self.refuse(Refusal { reason: Reason::Busy, text }, now);
            }
        }
        ControlFlow::Continue(())
    }

    /// The device answered its challenge.
    pub(super) fn authenticate(&mut self, attempt: &Attempt, now: Now) -> ControlFlow<Limits> {
        let judged = match self.is_locked_out(now) {
            // What others of the same address did meanwhile counts.
            true => Err(Fault::LockedOut),
            false => self.line.shared.doorman.judge(attempt, self.line.grants.authentication),
        };
        match judged {
            Ok(credential) => {
                self.credential = Some(Box::new(credential));
                self.admit(now)
            }
            Err(fault) => {
                self.unauthorized(fault, &attempt.device, Some(&attempt.key), now);
                ControlFlow::Continue(())
            }
        }
    }

    fn admit(&mut self, now: Now) -> ControlFlow<Limits> {
        let Some(Step::Establish { device, session, first, firmware }) = self.session.admit(now) else {
            return ControlFlow::Continue(());
        };
        self.establish(&device, session, first, firmware.as_deref(), now);
        ControlFlow::Break(self.line.limits)
    }

    /// Takes a place for the device, in that of its older connection if it `takes_over`.
    /// False if it is refused for want of one.
    pub(super) fn enters(&mut self, takes_over: bool, now: Now) -> bool {
        let (label, text) = if self.caller.visit.as_mut().is_some_and(|visit| !visit.enter(takes_over)) {
            ("address", "as many devices of this address are connected as this gateway allows")
        } else if !self.place.enter(takes_over) {
            ("too_many", "as many devices are connected as this gateway allows; try again later")
        } else {
            return true;
        };
        self.line.turned_away(label);
        self.refuse(busy(text), now);
        false
    }

    fn origin(&self) -> Origin {
        match self.caller.address {
            Some(address) => address.into(),
            None => Origin::Line(self.line.name.clone()),
        }
    }

    fn is_locked_out(&self, now: Now) -> bool {
        self.line.shared.doorman.locked_out(&self.origin(), now.monotonic).is_some()
    }

    /// Refuses the device without telling it more than it has to know.
    fn unauthorized(&mut self, fault: Fault, device: &DeviceId, key: Option<&str>, now: Now) {
        let (line, from) = (self.line, &self.caller.name);
        let (link, reason, hint) = (&line.name, fault.label(), fault.hint());
        match fault != Fault::LockedOut {
            true => tracing::info!(%link, %device, from, key, reason, hint, "device not let in"),
            false => tracing::debug!(%link, %device, from, key, reason, hint, "device not let in"),
        }
        line.failed(&self.origin(), fault, from, now.monotonic);
        let text = match fault {
            Fault::NotAllowed => "this gateway lets in no device of that name",
            Fault::LockedOut => "too many attempts failed; try again later",
            _ => "authentication failed",
        };
        self.refuse(Refusal { reason: Reason::Unauthorized, text: text.into() }, now);
    }

    /// Waits until it may be that the device's key is gone.
    pub fn keys_changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let changed = self.credential.as_ref().map(|credential| credential.changed());
        async move {
            match changed {
                Some(changed) => changed.await,
                None => pending().await,
            }
        }
    }

    /// Ends the session if the device's key is gone.
    pub fn look_at_key(&mut self, now: Now) {
        if self.credential.as_mut().is_some_and(|credential| credential.is_revoked()) {
            self.credential = None;
            let text = "the key was revoked".into();
            self.refuse(Refusal { reason: Reason::Unauthorized, text }, now);
        }
    }
}
