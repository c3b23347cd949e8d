//! The readings of a session on their way to the log.
//!
//! While the device's window is used up, or the log has no room, Readings wait here and what
//! else the device says is taken: its Heartbeats are answered. What waits is bounded; when it
//! is too much, nothing more is read.

use super::{SessionDriver, busy, or_never};
use crate::clock::Now;
use crate::fair_queue;
use crate::ingest::Attachment;
use crate::link::protocol::Refusal;
use crate::link::protocol::convert::Converted;
use crate::wire::codec::BodyError;
use crate::wire::frame::{Format, FrameRef};
use crate::wire::message::{DeviceMessage, GatewayMessage, Refused};
use crate::wire::sift::may_be_readings;
use std::collections::VecDeque;
use std::time::Duration;

/// Nothing is read while so many bytes of Readings wait.
const MAX_WAITING: usize = 4 * 1024;
/// Readings of more bytes than this wait as they came while the log is short of room: what they
/// say takes several times as much memory.
const LARGE: usize = 1024;
/// How many times as much, of a device of which nothing was taken yet, and at most.
pub(super) const GROWTH: usize = 4;
const MAX_GROWTH: usize = 64;
/// The device is not told of refused samples while it leaves so much untaken, in bytes.
const MAX_TOLD: usize = 8 * 1024;

/// Frames that are taken in their turn.
#[derive(Default)]
pub(super) struct Waiting {
    frames: VecDeque<(Format, u8, Vec<u8>)>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, frame: &FrameRef<'_>) {
        self.bytes += frame.body.len();
        self.frames.push_back((frame.format, frame.kind, frame.body.to_vec()));
    }

    fn pop(&mut self) -> Option<(Format, u8, Vec<u8>)> {
        let frame = self.frames.pop_front();
        match &frame {
            Some((.., body)) => self.bytes -= body.len(),
            None => self.frames = VecDeque::new(),
        }
        frame
    }

    pub fn memory(&self) -> usize {
        self.bytes + self.frames.capacity() * size_of::<(Format, u8, Vec<u8>)>()
    }
}

impl SessionDriver<'_> {
    /// Has a frame wait whose turn it is not yet. What would be taken at once is not put
    /// behind Readings that wait, unless it means something else there.
    pub(super) fn waits(&mut self, frame: &FrameRef<'_>, message: &Result<DeviceMessage, BodyError>) -> bool {
        let behind_others = !self.waiting.frames.is_empty();
        let waits = match message {
            Ok(DeviceMessage::Heartbeat(_) | DeviceMessage::CommandResult(_)) => false,
            // Where there is no other connection to come: what waits is of the session before.
            Ok(DeviceMessage::Hello(_)) if self.link.parameters.restart => false,
            Ok(DeviceMessage::Readings(_)) => behind_others || self.has_no_room() || self.must_ask(frame.body.len()),
            Ok(_) => behind_others,
            Err(_) => behind_others || (may_be_readings(frame) && self.has_no_room()),
        };
        if waits {
            self.waiting.push(frame);
        }
        waits
    }

    fn has_no_room(&self) -> bool {
        self.is_stalled() || self.window_is_full()
    }

    /// Whether Readings of so many bytes have to ask for room before they are taken.
    fn must_ask(&self, bytes: usize) -> bool {
        let asks = self.attachment.as_ref().is_some_and(|attachment| !attachment.has_grant());
        bytes > LARGE && asks && self.link.shared.ingest.is_saturated()
    }

    /// Whether the log has no room for what was received, or is asked for room.
    pub fn is_stalled(&self) -> bool {
        self.attachment.as_ref().is_some_and(Attachment::waits_for_room)
    }

    pub fn window_is_full(&self) -> bool {
        self.attachment.as_ref().is_some_and(Attachment::is_window_full)
    }

    /// Whether more than a little is to be done once the log has room.
    pub fn brings_much(&self) -> bool {
        let pushed = self.attachment.as_ref().map_or(0, Attachment::waiting_bytes);
        pushed + self.waiting.bytes > fair_queue::LITTLE
    }

    /// Takes what waited, as far as there is room.
    pub(super) fn go_on(&mut self, now: Now) {
        let mut taken = 0;
        while self.end.is_none()
            && !self.has_no_room()
            && let Some((_, _, next)) = self.waiting.frames.front()
        {
            if self.must_ask(next.len()) {
                self.ask();
                break;
            }
            let Some((format, kind, body)) = self.waiting.pop() else { break };
            let _ = self.act(&FrameRef { format, kind, body: &body }, None, now);
            taken += body.len();
        }
        if taken > LARGE && self.end.is_none() {
            let memory = self.attachment.as_ref().map_or(0, Attachment::pushed_bytes);
            self.growth = memory.div_ceil(taken).clamp(1, MAX_GROWTH);
        }
        if taken > 0 {
            self.store();
        }
    }

    /// Asks for room for what waits.
    fn ask(&mut self) {
        if let Some(attachment) = &mut self.attachment {
            attachment.ask_for_room(self.waiting.bytes * self.growth);
        }
    }

    /// Whether so much waits that nothing more is to be read.
    pub fn is_backed_up(&self) -> bool {
        let most = if self.link.shared.pool.has_room() { MAX_WAITING } else { 1 };
        self.waiting.bytes >= most
    }

    /// Waits until the log has room for what was received; for ever if nothing waits for that.
    /// Cancel-safe.
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let attachment = self.attachment.as_ref().filter(|attachment| attachment.waits_for_room());
        or_never(attachment.map(Attachment::room))
    }

    /// Takes Readings over, and ends the session where they are only a part of what came.
    pub(super) fn take_readings(&mut self, converted: Converted, end: Option<Refusal>, now: Now) {
        if let Err(why) = self.note_sub_device(&converted) {
            self.refuse(busy(&why.to_string()), now);
            return;
        }
        self.received(converted, now);
        if let Some(refusal) = end {
            self.store();
            self.refuse(refusal, now);
        }
    }

    fn received(&mut self, converted: Converted, now: Now) {
        self.tell_refused(&converted, now);
        let Some(attachment) = &mut self.attachment else { return };
        let Converted { batch, more, last, repeated, skipped_from, .. } = converted;
        attachment.received(last, repeated);
        if let Some(expected) = skipped_from {
            let (link, device) = (&self.link.name, &batch.device);
            let first = batch.readings.first().map(|reading| reading.origin_seq);
            tracing::info!(
                %link, %device, expected, first,
                "the device goes on behind samples that it has no more; a Hello with `first` would say so"
            );
        }
        for batch in std::iter::once(batch).chain(more) {
            attachment.push(batch);
        }
    }

    /// Tells of refused samples, before the readings that stand in their places: upstream, whoever
    /// looks after the gateway, and the device.
    fn tell_refused(&mut self, converted: &Converted, now: Now) {
        let (refused, device) = (&converted.refused, &converted.batch.device);
        if let Some(attachment) = &mut self.attachment {
            attachment.refuse(device, refused.runs(), refused.count(), &self.remote.name, now);
        }
        for run in refused.runs() {
            if self.out.len() < MAX_TOLD {
                let (seq, count, text) = (run.seq, run.count, run.text.clone());
                self.say(&GatewayMessage::Refused(Refused { seq, count, text }));
            }
        }
    }

    /// Hands what was received to the log, as far as it has room; waits for more.
    pub fn store(&mut self) {
        match &mut self.attachment {
            None => {}
            Some(attachment) if self.waiting.frames.is_empty() => attachment.flush(),
            Some(attachment) => drop(attachment.flush_and_keep_grant()),
        }
    }

    /// While the device is not read, it is told now and then that the gateway is there: its
    /// Heartbeats may stand behind what is not read.
    pub fn reassure(&mut self, now: Now) {
        if self.attachment.is_none() {
            return;
        }
        let since = *self.silent_since.get_or_insert(now.monotonic);
        if now.monotonic < since + self.link.parameters.heartbeat_interval {
            return;
        }
        // Whoever does not take what it is told need not be told more.
        if self.out.is_empty() {
            let reply = self.session.reminder(now);
            self.say(&reply);
        }
        self.silent_since = Some(now.monotonic);
    }

    /// When that is due.
    pub fn reassures_at(&self) -> Option<Duration> {
        Some(self.silent_since? + self.link.parameters.heartbeat_interval)
    }

    /// The device is read again.
    pub fn is_read(&mut self) {
        self.silent_since = None;
    }

    pub(super) fn forget_waiting(&mut self) {
        self.waiting = Waiting::default();
    }
}
