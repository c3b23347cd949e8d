//! Which publish a PUBACK is for.
//!
//! rumqttc gives no handle for a publish. What it does give, in this order:
//! 1. publishes leave its queue first in, first out;
//! 2. as each leaves, an `Outgoing::Publish` names its packet id;
//! 3. a PUBACK names the packet id again.
//!
//! So tokens wait in a queue until (2) pairs them with an id, and (3) redeems it.

use std::collections::{HashMap, VecDeque};

/// The tokens of publishes that are not acknowledged, and their topics.
#[derive(Debug, Default)]
pub struct Inflight {
    queued: VecDeque<(u64, Box<str>)>,
    sent: HashMap<u16, (u64, Box<str>)>,
}

impl Inflight {
    /// A publish is about to be queued.
    pub fn queue(&mut self, token: u64, topic: &str) {
        self.queued.push_back((token, topic.into()));
    }

    /// The publish that was queued last was not taken after all.
    pub fn unqueue(&mut self) {
        self.queued.pop_back();
    }

    /// The oldest queued publish left with this packet id.
    pub fn sent(&mut self, packet: u16) {
        if let Some(publish) = self.queued.pop_front() {
            self.sent.insert(packet, publish);
        }
    }

    /// The token of the publish that was acknowledged, and its topic; `None` for an id that is not
    /// in flight, such as a PUBACK that comes twice.
    pub fn acked(&mut self, packet: u16) -> Option<(u64, Box<str>)> {
        self.sent.remove(&packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ack_for_nothing_in_flight_is_no_ack() {
        let mut inflight = Inflight::default();
        inflight.queue(1, "a");
        assert_eq!(inflight.acked(1), None, "it was not sent yet");
        inflight.sent(1);
        assert_eq!(inflight.acked(1), Some((1, "a".into())));
        assert_eq!(inflight.acked(1), None, "twice");
        inflight.sent(2);
        assert_eq!(inflight.acked(2), None, "nothing was queued");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever order a broker acknowledges in, each token is redeemed once.
        #[test]
        fn every_publish_gets_its_own_ack(order in Just((1..=50u16).collect::<Vec<_>>()).prop_shuffle()) {
            let mut inflight = Inflight::default();
            for token in 1..=50u64 {
                inflight.queue(token * 10, "a");
            }
            inflight.queue(999, "b");
            inflight.unqueue();
            for packet in 1..=50 {
                inflight.sent(packet);
            }
            for packet in order {
                prop_assert_eq!(inflight.acked(packet), Some((u64::from(packet) * 10, "a".into())));
            }
        }
    }
}
