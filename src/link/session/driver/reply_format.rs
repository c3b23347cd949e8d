//! How the gateway speaks: as the device did last.

use super::SessionDriver;
use crate::link::context::LinkContext;
use crate::wire::codec::encode_gateway_in;
use crate::wire::frame::{BodyEncoding, CHECKSUM, Format, HEADER, Version};
use crate::wire::message::{Ack, Command, CommandResult, GatewayMessage, Goodbye, Refused, ResultState, SubCommand};
use crate::wire::text::Context;

/// The gateway's format until the device has shown its own.
pub const FIRST_FORMAT: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };
/// The same where devices may speak in text messages.
const FIRST_TEXT: Format = Format { version: Version::Text, encoding: BodyEncoding::Json };

/// How the gateway speaks on a line until the device has spoken.
pub fn first(link: &LinkContext) -> Format {
    if link.text { FIRST_TEXT } else { FIRST_FORMAT }
}

/// What a device is told of why its session ends has so many characters at most.
const MAX_REASON: usize = 240;

/// Cuts what may repeat what the device sent.
pub fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_REASON) {
        text.truncate(end);
        text.push_str("...");
    }
}

impl SessionDriver<'_> {
    /// Readings behind lost ones were dropped. The last Ack said once more asks for what is
    /// missing.
    pub(super) fn lost(&mut self, ask: bool) {
        let Some(established) = self.established.as_ref().filter(|_| ask) else { return };
        let seq = established.acks.acked();
        self.link.asked_again();
        self.say(&GatewayMessage::Ack(Ack { seq }));
    }

    /// Puts a message into what is to be sent. Texts are cut so far that the device has room
    /// for them; the other messages are small, or are not said at all.
    pub(super) fn say(&mut self, message: &GatewayMessage) {
        let start = self.out.len();
        let Some(excess) = self.put(message) else { return };
        self.out.truncate(start);
        match with_shorter_text(message, excess) {
            Some(shorter) => self.say(&shorter),
            None => drop(self.put(message)),
        }
    }

    /// Has the device do something, unless it has no room for that: then it did answer, in
    /// a way, and whoever gave the command is told.
    pub(super) fn order(&mut self, message: &GatewayMessage) {
        let start = self.out.len();
        let Some(excess) = self.put(message) else { return };
        self.out.truncate(start);
        let (GatewayMessage::Command(Command { id, .. }) | GatewayMessage::SubCommand(SubCommand { id, .. })) = message
        else {
            return;
        };
        let most = self.session.max_frame();
        let error = format!("the command has {} bytes, and the device takes {most}", most as usize + excess);
        let payload = Some(serde_json::json!({ "error": error }).to_string());
        if let Some(established) = &self.established {
            established.connected.answered(CommandResult { id: id.clone(), state: ResultState::Rejected, payload });
        }
    }

    /// Appends a message to what is to be sent. Says by how many bytes it is larger than
    /// the device takes, if it is.
    fn put(&mut self, message: &GatewayMessage) -> Option<usize> {
        let start = self.out.len();
        self.silent_since = None;
        // In a text nothing else says when it was sent.
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

/// The same message with a text that is shorter by so many bytes, if there is any left.
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
