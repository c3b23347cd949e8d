//! Authorizes a device before its session begins, and ends the session when its key is revoked.

use super::{SessionDriver, busy, or_never};
use crate::clock::Now;
use crate::device::auth::{Attempt, AuthError, Origin, certifies};
use crate::link::protocol::{Refusal, Step};
use crate::model::DeviceId;
use crate::wire::frame::Limits;
use crate::wire::message::Reason;
use std::ops::ControlFlow;

impl SessionDriver<'_> {
    /// Checks the device's name against the configuration and its certificate, and refuses the
    /// device if one does not fit. Returns whether the session goes on.
    pub(super) fn authorize_or_refuse(&mut self, device: &DeviceId, now: Now) -> bool {
        let fault = match &self.remote.certificate {
            _ if !self.link.shared.authenticator.allows(device) => AuthError::NotAllowed,
            Some(certificate) if !certifies(certificate, device) => AuthError::Certificate,
            _ => return true,
        };
        self.unauthorized(fault, device, None, now);
        false
    }

    /// A device sent its Hello: admits it if its certificate proves who it is, else challenges it.
    pub(super) fn introduced(&mut self, device: &DeviceId, now: Now) -> ControlFlow<Limits> {
        // On a line that does not break, the session before is over.
        self.part();
        self.credential = None;
        if !self.authorize_or_refuse(device, now) {
            return ControlFlow::Continue(());
        }
        if self.remote.certificate.is_some() {
            return self.admit(now);
        }
        if self.is_locked_out(now) {
            self.unauthorized(AuthError::LockedOut, device, None, now);
            return ControlFlow::Continue(());
        }
        match self.link.shared.authenticator.nonce() {
            Ok(nonce) => {
                let challenge = self.session.challenge(nonce);
                self.say(&challenge);
            }
            Err(why) => {
                tracing::error!(link = %self.link.name, why = format!("{why:#}"), "devices cannot be authenticated");
                let text = "the gateway cannot authenticate devices now; try again later".into();
                self.refuse(Refusal { reason: Reason::Busy, text }, now);
            }
        }
        ControlFlow::Continue(())
    }

    /// Admits the device if it answered its challenge right, else refuses it.
    pub(super) fn authenticate(&mut self, attempt: &Attempt, now: Now) -> ControlFlow<Limits> {
        let verified = match self.is_locked_out(now) {
            // Others of the same address may have failed meanwhile.
            true => Err(AuthError::LockedOut),
            false => self.link.shared.authenticator.verify(attempt, self.link.parameters.authentication),
        };
        match verified {
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
        ControlFlow::Break(self.link.limits)
    }

    /// Admits the device to the listener, in place of its older connection if it `takes_over`, or
    /// refuses it because a limit is reached. Returns whether it was admitted.
    pub(super) fn admit_or_refuse(&mut self, takes_over: bool, now: Now) -> bool {
        let (label, text) = if self.remote.address_slot.as_mut().is_some_and(|slot| !slot.admit(takes_over)) {
            ("address", "as many devices of this address are connected as this gateway allows")
        } else if !self.slot.admit(takes_over) {
            ("too_many", "as many devices are connected as this gateway allows; try again later")
        } else {
            return true;
        };
        self.link.count_refused(label);
        self.refuse(busy(text), now);
        false
    }

    fn origin(&self) -> Origin {
        match self.remote.address {
            Some(address) => address.into(),
            None => Origin::Line(self.link.name.clone()),
        }
    }

    fn is_locked_out(&self, now: Now) -> bool {
        self.link.shared.authenticator.locked_out(&self.origin(), now.monotonic).is_some()
    }

    /// Refuses the device. It learns no more than it needs.
    fn unauthorized(&mut self, fault: AuthError, device: &DeviceId, key: Option<&str>, now: Now) {
        let (link, from) = (&self.link.name, &self.remote.name);
        let (reason, hint) = (fault.label(), fault.hint());
        match fault != AuthError::LockedOut {
            true => tracing::info!(%link, %device, from, key, reason, hint, "device not let in"),
            false => tracing::debug!(%link, %device, from, key, reason, hint, "device not let in"),
        }
        self.link.failed(&self.origin(), fault, from, now.monotonic);
        let text = match fault {
            AuthError::NotAllowed => "this gateway lets in no device of that name",
            AuthError::LockedOut => "too many attempts failed; try again later",
            _ => "authentication failed",
        };
        self.refuse(Refusal { reason: Reason::Unauthorized, text: text.into() }, now);
    }

    /// Waits until the keys change, by which the device's may be revoked.
    pub fn keys_changed(&self) -> impl Future<Output = ()> + Send + use<> {
        or_never(self.credential.as_ref().map(|credential| credential.changed()))
    }

    /// Ends the session if the device's key is revoked.
    pub fn check_key(&mut self, now: Now) {
        if self.credential.as_mut().is_some_and(|credential| credential.is_revoked()) {
            self.credential = None;
            let text = "the key was revoked".into();
            self.refuse(Refusal { reason: Reason::Unauthorized, text }, now);
        }
    }
}
