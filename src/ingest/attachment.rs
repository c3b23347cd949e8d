//! What a source has of one device while it is attached.

use super::acks::Acks;
use super::{Ingest, Refused, RefusedSamples};
use crate::clock::Now;
use crate::device::{Call, Connected, NotAdmitted};
use crate::metrics::ReasonLabel;
use crate::model::{Basis, Batch, Cause, CommandResult, DeviceId};
use crate::store::{HighWater, Saturated, Share};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A device of a source, with those behind it. Given up when dropped; what was pushed and not
/// handed over is lost then, and is not settled.
pub struct Attachment {
    ingest: Ingest,
    link: Arc<str>,
    connected: Connected,
    high_water: Arc<HighWater>,
    share: Share,
    acks: Acks,
    /// Readings that the log has not taken yet.
    batches: VecDeque<Batch>,
    /// Whether room is waited for.
    waits: bool,
    /// What they take in memory while they wait, in bytes.
    waiting_bytes: usize,
    /// Whether it was logged that the device's clock is absurd.
    clock_told: bool,
    /// Whether it was logged that samples are refused.
    refused_told: bool,
}

impl Attachment {
    pub(super) fn new(
        ingest: Ingest,
        link: Arc<str>,
        connected: Connected,
        high_water: Arc<HighWater>,
        window: u32,
    ) -> Attachment {
        let (acks, share) = (Acks::new(window, high_water.settled()), ingest.0.log.share());
        Attachment {
            ingest,
            link,
            connected,
            high_water,
            share,
            acks,
            batches: VecDeque::new(),
            waits: false,
            waiting_bytes: 0,
            clock_told: false,
            refused_told: false,
        }
    }

    /// Takes readings over, in the order of their numbers, until [`Attachment::flush`].
    pub fn push(&mut self, batch: Batch) {
        let Some(last) = batch.readings.last() else { return };
        self.acks.received(last.origin_seq);
        self.ingest.0.metrics.readings_received.inc_by(batch.readings.len() as u64);
        self.count_unreliable_times(&batch);
        match self.batches.back_mut() {
            Some(open) if open.device == batch.device && open.basis == batch.basis => {
                open.readings.extend(batch.readings);
            }
            _ => self.batches.push_back(batch),
        }
    }

    /// The device sent all up to `last`, of which it had sent `repeated` before.
    pub fn received(&mut self, last: u64, repeated: u64) {
        self.acks.received(last);
        if last <= self.acks.acked() {
            self.acks.repeated();
        }
        let metrics = &self.ingest.0.metrics;
        metrics.readings_received.inc_by(repeated);
        metrics.readings_duplicate.inc_by(repeated);
    }

    /// Hands what was pushed to the log, as far as it has room; waits for more, see
    /// [`Attachment::room`].
    pub fn flush(&mut self) {
        if self.flush_and_keep_grant() {
            self.share.release();
        }
    }

    /// The same of a source that is going to push more as soon as there is room. Returns whether
    /// the log took all.
    pub fn flush_and_keep_grant(&mut self) -> bool {
        if std::mem::replace(&mut self.waits, false) && self.share.is_waiting() {
            self.waits = true;
            return false;
        }
        while let Some(batch) = self.batches.pop_front() {
            if let Err(Saturated(batch)) = self.share.append(Some(&self.high_water), batch) {
                self.batches.push_front(batch);
                self.waiting_bytes = self.pushed_bytes();
                self.ask_for_room(self.waiting_bytes);
                return false;
            }
        }
        self.batches = VecDeque::new();
        self.waiting_bytes = 0;
        true
    }

    /// Asks for room for so many bytes of batches that are not pushed yet.
    pub fn ask_for_room(&mut self, bytes: usize) {
        self.waits = true;
        self.share.wait_for(bytes);
    }

    /// Whether room is waited for: for what was pushed, or was asked for.
    pub fn waits_for_room(&self) -> bool {
        self.waits
    }

    /// Whether it was granted room that it has not used.
    pub fn has_grant(&self) -> bool {
        self.share.has_grant()
    }

    /// Waits until there is room for what waits; then [`Attachment::flush`] again. Cancel-safe.
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        self.share.room()
    }

    /// Memory of what was pushed and the log has not taken, in bytes.
    pub fn pushed_bytes(&self) -> usize {
        self.batches.iter().map(Batch::memory).sum()
    }

    /// The same as of the last flush.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The session's last reading that is settled, as are all before it: on disk, or with every
    /// sink. 0 if none. The source need not keep it.
    pub fn settled(&self) -> u64 {
        self.high_water.settled()
    }

    /// Waits until [`Attachment::settled`] is above `seen`, and returns it. Cancel-safe.
    pub fn settled_after(&self, seen: u64) -> impl Future<Output = u64> + Send + use<> {
        let high_water = self.high_water.clone();
        async move { high_water.settled_after(seen).await }
    }

    /// Whether as many readings are outstanding as may: no more are to be pushed until some settle.
    pub fn is_window_full(&self) -> bool {
        self.acks.is_full(self.high_water.settled())
    }

    /// Whether everything received is settled, and was acknowledged by [`Attachment::ack`].
    pub fn is_settled(&self) -> bool {
        self.batches.is_empty() && self.acks.is_complete()
    }

    /// What to acknowledge to the device now, if an Ack is due: they keep a distance.
    pub fn ack(&mut self, now: Duration) -> Option<u64> {
        self.acks.due(self.high_water.settled(), now)
    }

    /// What was acknowledged last.
    pub fn acked(&self) -> u64 {
        self.acks.acked()
    }

    /// When an Ack that waits for its distance from the last one is due.
    pub fn ack_due(&self, now: Duration) -> Option<Duration> {
        let waits = self.acks.is_waiting(self.high_water.settled()) || !self.acks.is_complete();
        self.acks.held_until(now).filter(|_| waits)
    }

    /// Waits until there is something new to acknowledge; `None` while no Ack may follow the last
    /// one yet. Cancel-safe.
    pub fn acknowledgeable(&self, now: Duration) -> Option<impl Future<Output = u64> + Send + use<>> {
        self.acks.held_until(now).is_none().then(|| self.settled_after(self.acks.acked()))
    }

    /// Waits until the source is called, see [`Attachment::take_call`]. Cancel-safe.
    pub fn called(&self) -> impl Future<Output = ()> + Send + use<> {
        self.connected.called()
    }

    /// What the source is asked to do next; no command unless the device has `room` for one.
    pub fn take_call(&self, room: bool) -> Option<Call> {
        self.connected.take(room)
    }

    /// How a command ended that the source was given.
    pub fn answer(&self, result: CommandResult) {
        self.connected.answered(result);
    }

    /// The device said something.
    pub fn heard(&self, now: Duration) {
        self.connected.heard(now);
    }

    /// The device is silent, or is heard again.
    pub fn silent(&mut self, silent: bool) {
        self.connected.silent(silent);
    }

    /// A device behind this one is there or not, or was heard. Batches may be of it from then on.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn sub_device(&self, sub: &DeviceId, there: Option<bool>) -> Result<(), NotAdmitted> {
        self.connected.sub_device(sub, there)
    }

    /// By what the device will be offline.
    pub fn because(&mut self, cause: Cause) {
        self.connected.because(cause);
    }

    /// Counts readings whose times are unreliable, and logs an absurd clock once a session.
    fn count_unreliable_times(&mut self, batch: &Batch) {
        let metrics = &self.ingest.0.metrics;
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
                    let (link, device) = (&self.link, &batch.device);
                    tracing::warn!(%link, %device, %claimed, %received, "the device's clock is absurd; its readings are flagged");
                }
            }
        }
    }

    /// `all` samples of `device`, which came `from` there, can never be taken: counts them, and tells
    /// upstream and the log of `runs`. Call it before the readings in their places are pushed.
    pub fn refuse(&mut self, device: &DeviceId, runs: &[Refused], all: u64, from: &str, now: Now) {
        let Some(first) = runs.first() else { return };
        let (ingest, link, session) = (&self.ingest.0, &self.link, self.high_water.session());
        let count = |reason, count| {
            ingest.metrics.readings_refused.get_or_create(&ReasonLabel { reason }).inc_by(count);
        };
        let mut events = Vec::new();
        for run in runs {
            count(run.reason, run.count);
            let (device, link) = (device.clone(), link.clone());
            let entry = RefusedSamples { time: now.wall, device, link, session, refused: run.clone() };
            events.extend(ingest.refused.add(entry, ingest.log.may_tell(), now.monotonic));
        }
        let more = all - runs.iter().map(|run| run.count).sum::<u64>();
        if more > 0 {
            count("others", more);
            ingest.refused.untold(more);
        }
        // In the same commit as the readings, or before.
        ingest.log.tell(events);
        if !std::mem::replace(&mut self.refused_told, true) {
            let (seq, why, sample) = (first.seq, first.text.as_str(), first.sample.as_str());
            tracing::warn!(
                %link, %device, from, session, seq, count = all, why, sample,
                "samples can never be taken and are refused; `tidegate devices --refused` lists them"
            );
        }
    }
}
