//! The session's part in the registry: who is there, and what it is asked to do.

use super::{End, SessionDriver};
use crate::clock::Now;
use crate::device::{Call, Converted, NotAdmitted, Refusal, Tick};
use crate::model::{Basis, Batch, Cause};
use crate::wire::message::Reason;
use std::future::{Future, pending};
use std::time::Duration;

/// Commands are not put to what the device has not taken yet beyond this, in bytes.
const MAX_CALLS_OUT: usize = 8 * 1024;

impl SessionDriver<'_> {
    /// Sees to it that a device behind this one is known whose readings came.
    pub(super) fn note_sub_device(&mut self, converted: &Converted) -> Result<(), NotAdmitted> {
        let Some(established) = &self.established else { return Ok(()) };
        let device = &converted.batch.device;
        if self.session.device() == Some(device) {
            return Ok(());
        }
        established.connected.sub_device(device, None)
    }

    /// Counts readings whose times are not good, and says so of a device once.
    pub(super) fn count_unreliable_times(&mut self, batch: &Batch) {
        let metrics = &self.link.shared.metrics;
        let count = batch.readings.len() as u64;
        match batch.basis {
            Basis::Wall | Basis::Resynchronised => {}
            Basis::Boot(_) => {
                metrics.readings_unsynchronised.inc_by(count);
            }
            Basis::DeviceClock { received } | Basis::DeviceClockSince { received, .. } => {
                metrics.readings_device_clock.inc_by(count);
                if !std::mem::replace(&mut self.clock_told, true) {
                    let time = batch.readings.first().map(|reading| reading.time);
                    let claimed = time.unwrap_or_default();
                    let (link, device) = (&self.link.name, &batch.device);
                    tracing::warn!(%link, %device, %claimed, %received, "the device's clock is absurd; its readings are flagged");
                }
            }
        }
    }

    /// Waits until the session is asked to do something. Cancel-safe.
    pub fn called(&self) -> impl Future<Output = ()> + Send + use<> {
        let called = self.established.as_ref().map(|e| e.connected.called());
        async move {
            match called {
                Some(called) => called.await,
                None => pending().await,
            }
        }
    }

    /// Does what the session is asked to do, as far as the device takes what it is told.
    pub fn answer_calls(&mut self) {
        loop {
            let room = self.out.len() < MAX_CALLS_OUT;
            let Some(call) = self.established.as_ref().and_then(|e| e.connected.take(room)) else { return };
            match call {
                Call::Say(message) => self.order(&message),
                Call::Replaced => {
                    self.slot.vacate();
                    let text = "the same device connected again";
                    self.end(End::Refused(Refusal { reason: Reason::TakenOver, text: text.into() }));
                    return;
                }
            }
        }
    }

    /// The gateway did not listen for a while: silence counts so much less, and what waits
    /// to be read did not come at once.
    pub fn excuse(&mut self, by: Duration, now: Now) {
        self.rate.excuse(by);
        self.session.excuse(by, now);
    }

    pub fn check_silence(&mut self, now: Now) {
        match self.session.tick(now) {
            None => {}
            Some(Tick::Idle(reminder)) => {
                self.say(&reminder);
                if let Some(established) = &mut self.established {
                    established.connected.silent(true);
                }
            }
            Some(Tick::Over(refusal)) => self.refuse(refusal, now),
        }
    }

    /// How it comes that the device will be gone.
    pub(super) fn because(&mut self, cause: Cause) {
        if let Some(established) = &mut self.established {
            established.connected.because(cause);
        }
    }
}
