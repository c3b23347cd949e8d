//! Presence: what the registry learns of the device, and of those behind it.

use super::SessionDriver;
use crate::clock::Now;
use crate::device::{Converted, NotAdmitted, Tick};
use crate::model::{Basis, Batch, Cause};
use std::time::Duration;

impl SessionDriver<'_> {
    /// Registers a device behind this one whose readings arrived.
    pub(super) fn note_sub_device(&mut self, converted: &Converted) -> Result<(), NotAdmitted> {
        let Some(established) = &self.established else { return Ok(()) };
        let device = &converted.batch.device;
        if self.session.device() == Some(device) {
            return Ok(());
        }
        established.connected.sub_device(device, None)
    }

    /// Counts readings whose times are unreliable, and logs an absurd clock once a session.
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

    /// The gateway paused for `by`: silence counts so much less, and messages that wait to be read
    /// did not arrive at once.
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

    /// Sets the cause by which the device will be offline.
    pub(super) fn because(&mut self, cause: Cause) {
        if let Some(established) = &mut self.established {
            established.connected.because(cause);
        }
    }
}
