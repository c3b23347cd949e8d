//! Presence: what the registry learns of the device, and of those behind it.

use super::SessionDriver;
use crate::clock::Now;
use crate::device::NotAdmitted;
use crate::link::protocol::Tick;
use crate::link::protocol::convert::Converted;
use crate::model::Cause;
use std::time::Duration;

impl SessionDriver<'_> {
    /// Registers a device behind this one whose readings arrived.
    pub(super) fn note_sub_device(&mut self, converted: &Converted) -> Result<(), NotAdmitted> {
        let Some(attachment) = &self.attachment else { return Ok(()) };
        let device = &converted.batch.device;
        if self.session.device() == Some(device) {
            return Ok(());
        }
        attachment.sub_device(device, None)
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
                if let Some(attachment) = &mut self.attachment {
                    attachment.silent(true);
                }
            }
            Some(Tick::Over(refusal)) => self.refuse(refusal, now),
        }
    }

    /// Sets the cause by which the device will be offline.
    pub(super) fn because(&mut self, cause: Cause) {
        if let Some(attachment) = &mut self.attachment {
            attachment.because(cause);
        }
    }
}
