//! Messages from the broker until they are confirmed, in the order of arrival (MQTT 3.1.1 and
//! 5, 4.6): a broker may end the connection at a confirmation out of order.

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Incoming(VecDeque<Message>);

#[derive(Debug)]
struct Message {
    packet: u16,
    /// The owner confirms it.
    handed_on: bool,
    taken: bool,
}

impl Incoming {
    /// A message arrived that needs a confirmation. If it is not `handed_on`, it is confirmed
    pub fn came(&mut self, packet: u16, handed_on: bool) {
        self.0.push_back(Message { packet, handed_on, taken: !handed_on });
    }

    /// The owner has accepted the message in this packet.
    pub fn taken(&mut self, packet: u16) {
        let found = self.0.iter_mut().find(|message| message.packet == packet && !message.taken);
        found.into_iter().for_each(|message| message.taken = true);
    }

    /// The next message to confirm, and whether it was handed on.
    pub fn next(&mut self) -> Option<(u16, bool)> {
        let message = self.0.front().filter(|message| message.taken)?;
        let next = (message.packet, message.handed_on);
        self.0.pop_front();
        Some(next)
    }
}
