//! Drives a device's session: what its messages do to the log and the registry, and what is
//! answered.

mod authorize;
mod commands;
mod presence;
mod readings;
pub(in crate::link) mod reply_format;

use super::super::context::LinkContext;
use super::super::remote::RemoteInfo;
use crate::clock::Now;
use crate::device::auth::Credential;
use crate::device::{Introduction, NotAdmitted};
use crate::ingest::{Attachment, Bucket};
use crate::link::protocol::{Refusal, Session, Step};
use crate::model::{Cause, DeviceId};
use crate::net::AdmissionSlot;
use crate::wire::codec::{BodyError, decode_device_in};
use crate::wire::frame::{Event, Format, FrameError, FrameRef, Limits};
use crate::wire::message::{Ack, DeviceMessage, GatewayMessage, Goodbye, Reason};
use crate::wire::sift::sift;
use prometheus_client::metrics::counter::Counter;
use readings::Waiting;
use std::future::{Future, pending};
use std::ops::ControlFlow;
use std::time::Duration;

/// On a line that outlives its sessions, refusals are sent this often at most: a device may send a
/// whole queue of readings before its Hello.
const REFUSE_EVERY: Duration = Duration::from_secs(1);

/// Longest firmware that is kept of a Hello, in characters.
const MAX_FIRMWARE: usize = 64;

/// How a session ends.
#[derive(Debug)]
pub enum SessionEnd {
    /// The device sent a Goodbye.
    Left,
    /// The gateway sends a Goodbye.
    Refused(Refusal),
}

pub struct SessionDriver<'a> {
    link: &'a LinkContext,
    remote: RemoteInfo,
    frames: Counter,
    rate: Bucket,
    /// Whether it was logged that the device sends too many messages.
    rate_told: bool,
    session: Session,
    format: Format,
    /// Its admission to the listener.
    pub slot: AdmissionSlot,
    /// Of the device, once it is welcomed.
    attachment: Option<Attachment>,
    /// The key by which the device authenticated.
    credential: Option<Box<Credential>>,
    /// What came and has still to wait for its turn.
    waiting: Waiting,
    /// How many times as much memory Readings take as they have bytes, about.
    growth: usize,
    /// Bytes to send.
    pub out: Vec<u8>,
    end: Option<SessionEnd>,
    refused_at: Option<Duration>,
    /// Since when nothing was sent to a device that is not read.
    silent_since: Option<Duration>,
}

impl<'a> SessionDriver<'a> {
    pub fn new(link: &'a LinkContext, remote: RemoteInfo, slot: AdmissionSlot, now: Now) -> SessionDriver<'a> {
        let since = Now { monotonic: remote.since.unwrap_or(now.monotonic), ..now };
        SessionDriver {
            link,
            remote,
            frames: link.frames(),
            rate: Bucket::new(link.shared.devices.max_message_rate, link.shared.devices.message_burst),
            rate_told: false,
            session: Session::new(link.parameters, since),
            format: reply_format::first(link),
            slot,
            attachment: None,
            credential: None,
            waiting: Waiting::default(),
            growth: readings::GROWTH,
            out: Vec::new(),
            end: None,
            refused_at: None,
            silent_since: None,
        }
    }

    /// Acts on an event of the decoder.
    pub fn take(&mut self, event: Event<'_>, now: Now) -> ControlFlow<Limits> {
        match event {
            Event::Frame(frame) if self.link.is_echo(&frame) => {}
            Event::Frame(frame) => return self.frame(&frame, now),
            Event::Skipped { bytes } => self.link.skipped(bytes),
            Event::Invalid(error) => self.link.invalid(error),
        }
        ControlFlow::Continue(())
    }

    /// The stream cannot be decoded any further.
    pub fn broken(&mut self, error: FrameError, now: Now) {
        self.link.invalid(error);
        self.refuse(Refusal { reason: error.reason(), text: error.to_string() }, now);
    }

    fn frame(&mut self, frame: &FrameRef<'_>, now: Now) -> ControlFlow<Limits> {
        if self.end.is_some() {
            return ControlFlow::Continue(());
        }
        self.format = frame.format;
        self.frames.inc();
        self.rate.take(now.monotonic);
        let message = decode_device_in(frame, self.session.context());
        if !self.waits(frame, &message) {
            return self.act(frame, Some(message), now);
        }
        self.session.heard(now);
        self.is_heard(now);
        ControlFlow::Continue(())
    }

    fn is_heard(&mut self, now: Now) {
        if let Some(attachment) = &mut self.attachment {
            attachment.heard(now.monotonic);
            attachment.silent(self.session.is_idle());
        }
    }

    /// Acts on a frame. Its `message` is decoded here if it is not given.
    fn act(
        &mut self,
        frame: &FrameRef<'_>,
        message: Option<Result<DeviceMessage, BodyError>>,
        now: Now,
    ) -> ControlFlow<Limits> {
        let step = match message.unwrap_or_else(|| decode_device_in(frame, self.session.context())) {
            Ok(message) => self.session.take(message, now),
            Err(why) => {
                self.link.count_invalid("body");
                match self.attachment.as_ref().and_then(|_| sift(frame, self.session.context())) {
                    Some(sifted) => self.session.sift(sifted, now),
                    None => Err(Refusal { reason: Reason::BadFrame, text: why.to_string() }),
                }
            }
        };
        self.is_heard(now);
        match step {
            Ok(Step::Reply(reply)) => self.say(&reply),
            Ok(Step::Establish { device, session, first, firmware }) => {
                if self.authorize_or_refuse(&device, now) {
                    self.establish(&device, session, first, firmware.as_deref(), now);
                    return ControlFlow::Break(self.link.limits);
                }
            }
            Ok(Step::Introduced(device)) => return self.introduced(&device, now),
            Ok(Step::Authenticate(attempt)) => return self.authenticate(&attempt, now),
            Ok(Step::Store(converted)) => self.take_readings(converted, None, now),
            Ok(Step::StorePart(converted, refusal)) => self.take_readings(converted, Some(refusal), now),
            Ok(Step::Answer(result)) => self.take_result(result),
            Ok(Step::SubDevice { device, there }) => {
                if let Some(attachment) = &self.attachment
                    && let Err(why) = attachment.sub_device(&device, Some(there))
                {
                    self.refuse(busy(&why.to_string()), now);
                }
            }
            Ok(Step::Lost { ask }) => self.lost(ask),
            Ok(Step::Leave) => self.leave(now),
            Err(refusal) => self.refuse(refusal, now),
        }
        ControlFlow::Continue(())
    }

    /// Until when the device is not read, if it sent more messages than it may.
    pub fn throttled_until(&mut self, now: Duration) -> Option<Duration> {
        let until = self.rate.closed_until(now)?;
        self.link.throttled();
        if !std::mem::replace(&mut self.rate_told, true) {
            let (link, device, from) =
                (&self.link.name, self.session.device().map(DeviceId::as_str), self.remote.name.as_str());
            let most = self.link.shared.devices.max_message_rate;
            tracing::warn!(%link, device, from, most, "more messages a second than allowed; reading them more slowly");
        }
        Some(until)
    }

    fn establish(&mut self, device: &DeviceId, session: u64, first: u64, firmware: Option<&str>, now: Now) {
        // A device that restarts on the same line ends its session before.
        self.part();
        let firmware = firmware.map(|text| text.chars().take(MAX_FIRMWARE).collect::<String>().into());
        let shared = &self.link.shared;
        let takes_over = shared.ingest.is_attached(device);
        if !self.admit_or_refuse(takes_over, now) {
            return;
        }
        let (link, alive_within) = (&self.link.name, self.link.parameters.idle_after);
        let proven = self.credential.is_some() || self.remote.certificate.is_some();
        let who = Introduction { device, session, link, firmware, proven, alive_within };
        let attachment = match shared.ingest.attach(who, self.link.parameters.window) {
            Ok(attachment) => attachment,
            Err(why) => {
                let (label, reason) = match why {
                    NotAdmitted::DuplicateId => ("rival", Reason::TakenOver),
                    NotAdmitted::Unproven => ("unproven", Reason::Unauthorized),
                    NotAdmitted::RegistryFull | NotAdmitted::TooManySubDevices => ("registry_full", Reason::Busy),
                };
                self.link.count_refused(label);
                self.refuse(Refusal { reason, text: why.to_string() }, now);
                return;
            }
        };
        let settled = attachment.settled();
        self.attachment = Some(attachment);
        let welcome = self.session.welcome(first, settled, now);
        self.say(&welcome);
        let key = self.credential.as_ref().map(|credential| credential.key());
        tracing::info!(%link, %device, from = self.remote.name, session, settled, key, "device connected");
    }

    /// Retries what the log had no room for, and acknowledges what has settled.
    pub fn advance(&mut self, now: Now) {
        if self.is_stalled() {
            self.store();
        }
        self.go_on(now);
        if let Some(seq) = self.attachment.as_mut().and_then(|attachment| attachment.ack(now.monotonic)) {
            self.session.acknowledged(seq);
            self.say(&GatewayMessage::Ack(Ack { seq }));
        }
    }

    /// Memory that is held beside the frame under way, in bytes.
    pub fn memory(&self) -> usize {
        let pushed = self.attachment.as_ref().map_or(0, Attachment::waiting_bytes);
        self.out.capacity() + pushed + self.waiting.memory() + self.session.memory()
    }

    /// Frees caches.
    pub fn free_caches(&mut self) {
        self.session.forget();
    }

    /// Memory is short, and the device held some for too long.
    pub fn short_of_memory(&mut self, now: Now) {
        self.refuse(
            busy("the gateway is short of memory for large frames; send smaller ones, or try again later"),
            now,
        );
    }

    /// The connection ended: vacates its slot, and waits for the turn of its last step.
    pub async fn vacate_in_turn(&mut self) {
        self.slot.vacate();
        self.slot.acquire_turn().await;
    }

    /// Says Goodbye to an evicted connection.
    pub fn say_evicted(&mut self) {
        self.link.count_refused("evicted");
        self.log_refusal("many connections wait, and it said no Hello for longest");
        self.goodbye(busy("too many connections wait for their Hello; try again later"));
    }

    /// Whether everything received is settled and acknowledged.
    pub fn is_settled(&self) -> bool {
        self.attachment.as_ref().is_none_or(Attachment::is_settled)
    }

    /// When an Ack that waits for its distance from the last one is due.
    pub fn ack_due(&self, now: Duration) -> Option<Duration> {
        self.attachment.as_ref()?.ack_due(now)
    }

    /// Waits until there is something new to acknowledge; for ever while no Ack may
    /// follow the last one yet.
    pub fn settled(&self, now: Duration) -> impl Future<Output = ()> + Send + use<> {
        let settled = self.attachment.as_ref().and_then(|attachment| attachment.acknowledgeable(now));
        async move {
            or_never(settled).await;
        }
    }

    /// The gateway stops.
    pub fn stop(&mut self) {
        let text = "the gateway is stopping";
        self.because(Cause::GatewayStopping);
        self.end(SessionEnd::Refused(Refusal { reason: Reason::Stopping, text: text.into() }));
    }

    pub fn heard(&mut self, now: Now) {
        self.session.heard(now);
    }

    pub fn silence_deadline(&self) -> Option<Duration> {
        self.session.deadline()
    }

    fn leave(&mut self, now: Now) {
        self.because(Cause::Goodbye);
        if self.link.parameters.restart {
            self.log_end("the device said Goodbye");
            self.forget(now);
        } else {
            self.end(SessionEnd::Left);
        }
    }

    fn refuse(&mut self, mut refusal: Refusal, now: Now) {
        reply_format::shorten(&mut refusal.text);
        self.because(if refusal.reason == Reason::Timeout { Cause::Timeout } else { Cause::Refused });
        if !self.link.parameters.restart {
            self.end(SessionEnd::Refused(refusal));
            return;
        }
        let had_session = self.attachment.is_some();
        if had_session || self.refused_at.is_none_or(|at| now.monotonic >= at + REFUSE_EVERY) {
            self.refused_at = Some(now.monotonic);
            self.log_refusal(&refusal.text);
            self.goodbye(refusal);
        }
        self.forget(now);
    }

    /// The session ended; the line stays.
    fn forget(&mut self, now: Now) {
        self.part();
        self.credential = None;
        self.session.reset(now);
    }

    /// Ends the established session. The readings that the log has no room for are dropped: they
    /// were not acknowledged, and the next session counts from its own.
    fn part(&mut self) {
        self.store();
        self.forget_waiting();
        self.attachment = None;
    }

    fn end(&mut self, end: SessionEnd) {
        self.end.get_or_insert(end);
    }

    /// How the session ended, if it did.
    pub fn ended(&mut self) -> Option<SessionEnd> {
        self.end.take()
    }

    /// Queues the Goodbye, if one is due, and logs the end.
    pub fn farewell(&mut self, end: SessionEnd) {
        self.store();
        match end {
            SessionEnd::Left => self.log_end("the device said Goodbye"),
            SessionEnd::Refused(refusal) => {
                self.log_refusal(&refusal.text);
                self.goodbye(refusal);
            }
        }
    }

    fn goodbye(&mut self, refusal: Refusal) {
        let Refusal { reason, text } = refusal;
        self.say(&GatewayMessage::Goodbye(Goodbye { reason, text }));
    }

    /// The connection broke.
    pub fn gone(&mut self, why: &str) {
        self.store();
        self.log_end(why);
    }

    fn log_end(&self, why: &str) {
        let (link, from) = (&self.link.name, &self.remote.name);
        match self.session.device() {
            Some(device) => tracing::info!(%link, %device, from, why, "device disconnected"),
            // A port scan ends so.
            None => tracing::debug!(%link, from, why, "connection ended before a device was known"),
        }
    }

    fn log_refusal(&self, why: &str) {
        match self.session.device() {
            Some(_) => self.log_end(why),
            None => {
                let (link, from) = (&self.link.name, &self.remote.name);
                tracing::info!(%link, from, why, "connection refused before a device was known");
            }
        }
    }
}

/// What the future comes to; never, if there is none.
async fn or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

fn busy(text: &str) -> Refusal {
    Refusal { reason: Reason::Busy, text: text.to_owned() }
}

#[cfg(test)]
mod tests;
