//! The format of replies: that of the last frame of the device.

use super::SessionDriver;
use crate::link::context::LinkContext;
use crate::wire::codec::encode_gateway_in;
use crate::wire::frame::{BodyEncoding, CHECKSUM, Format, HEADER, Version};
use crate::wire::message::{Ack, GatewayMessage, Goodbye, Refused};
use crate::wire::text::Context;

/// The format before the first frame of a device.
pub const FIRST_FORMAT: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };
/// The same where devices may send text messages.
const FIRST_TEXT: Format = Format { version: Version::Text, encoding: BodyEncoding::Json };

/// The format on a link before the first frame of its device.
pub fn first(link: &LinkContext) -> Format {
    if link.text { FIRST_TEXT } else { FIRST_FORMAT }
}

/// Longest reason in a Goodbye, in characters.
const MAX_REASON: usize = 240;

/// Shortens a reason, which may repeat what the device sent.
pub fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_REASON) {
        text.truncate(end);
        text.push_str("...");
    }
}

impl SessionDriver<'_> {
    /// Readings behind lost ones were dropped. The last Ack sent again asks for what is missing.
    pub(super) fn lost(&mut self, ask: bool) {
        let Some(attachment) = self.attachment.as_ref().filter(|_| ask) else { return };
        let seq = attachment.acked();
        self.link.count_resend();
        self.say(&GatewayMessage::Ack(Ack { seq }));
    }

    /// Queues a message to be sent. A text is shortened to the largest frame that the device takes;
    /// other messages are small.
    pub(super) fn say(&mut self, message: &GatewayMessage) {
        let start = self.out.len();
        let Some(excess) = self.put(message) else { return };
        self.out.truncate(start);
        match with_shorter_text(message, excess) {
            Some(shorter) => self.say(&shorter),
            None => drop(self.put(message)),
        }
    }

    /// Appends a message to what is to be sent. Returns by how many bytes it is larger than the
    /// device takes, if it is.
    pub(super) fn put(&mut self, message: &GatewayMessage) -> Option<usize> {
        let start = self.out.len();
        self.silent_since = None;
        // A text message has no other time of sending.
        let is_text = self.format.version == Version::Text;
        let now = is_text.then(|| self.link.shared.clock.now().wall.0);
        let context = Context { now, ..self.session.context() };
        encode_gateway_in(message, self.format, context, &mut self.out);
        let most = self.session.max_frame() as usize; // at least 32 bits on every target
        let checksum = if self.format.version == Version::V2 { CHECKSUM } else { 0 };
        let body = (self.out.len() - start).saturating_sub(HEADER + checksum);
        (most > 0 && body > most).then(|| body - most)
    }
}

/// The same message with its text shortened by `excess` bytes; `None` if it has no text left.
fn with_shorter_text(message: &GatewayMessage, excess: usize) -> Option<GatewayMessage> {
    const DOTS: &str = "...";
    let shorter = |text: &str| {
        let most = text.len().saturating_sub(excess + DOTS.len());
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        if end == 0 { String::new() } else { format!("{}{DOTS}", text.split_at(end).0) }
    };
    match message {
        GatewayMessage::Goodbye(Goodbye { reason, text }) if !text.is_empty() => {
            Some(GatewayMessage::Goodbye(Goodbye { reason: *reason, text: shorter(text) }))
        }
        GatewayMessage::Refused(Refused { seq, count, text }) if !text.is_empty() => {
            Some(GatewayMessage::Refused(Refused { seq: *seq, count: *count, text: shorter(text) }))
        }
        _ => None,
    }
}
