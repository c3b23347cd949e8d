//! How the gateway speaks: as the device did last.

use super::Peer;
use crate::link::line::Line;
use crate::wire::codec::encode_gateway_in;
use crate::wire::frame::{BodyEncoding, Format, Version};
use crate::wire::message::{Ack, GatewayMessage};
use crate::wire::text::Context;

/// The gateway's format until the device has shown its own.
pub const FIRST_FORMAT: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };
/// The same where devices may speak in text messages.
const FIRST_TEXT: Format = Format { version: Version::Text, encoding: BodyEncoding::Json };

/// How the gateway speaks on a line until the device has spoken.
pub fn first(line: &Line) -> Format {
    if line.text { FIRST_TEXT } else { FIRST_FORMAT }
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

impl Peer<'_> {
    /// Readings behind lost ones were dropped. The last Ack said once more asks for what is
    /// missing.
    pub(super) fn lost(&mut self, ask: bool) {
        let Some(established) = self.established.as_ref().filter(|_| ask) else { return };
        let seq = established.acks.acked();
        self.line.asked_again();
        self.say(&GatewayMessage::Ack(Ack { seq }));
    }

    /// Puts a message into what is to be sent.
    pub(super) fn say(&mut self, message: &GatewayMessage) {
        // In a text nothing else says when it was sent.
        let is_text = self.format.version == Version::Text;
        let now = is_text.then(|| self.line.shared.clock.now().wall.0);
        let context = Context { now, ..self.session.context() };
        encode_gateway_in(message, self.format, context, &mut self.out);
    }
}
