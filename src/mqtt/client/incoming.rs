//! Messages from the broker until they are confirmed, which has to be in the order in which
//! they came (MQTT 3.1.1 and 5, 4.6): brokers end the connection at one that is out of turn.

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Incoming(VecDeque<Message>);

#[derive(Debug)]
struct Message {
    packet: u16,
    /// It is the owner's to confirm.
    handed_on: bool,
    taken: bool,
}

impl Incoming {
    /// A message came that is to be confirmed. If it is not `handed_on`, nobody wants it.
    pub fn came(&mut self, packet: u16, handed_on: bool) {
        self.0.push_back(Message { packet, handed_on, taken: !handed_on });
    }

    /// The owner has taken the message in this packet.
    pub fn taken(&mut self, packet: u16) {
        let found = self.0.iter_mut().find(|message| message.packet == packet && !message.taken);
        found.into_iter().for_each(|message| message.taken = true);
    }

    /// The next that is to be confirmed, and whether it was the owner's.
    pub fn next(&mut self) -> Option<(u16, bool)> {
        let message = self.0.front().filter(|message| message.taken)?;
        let next = (message.packet, message.handed_on);
        self.0.pop_front();
        Some(next)
    }
}
