//! Readings put together as messages: one topic for all devices, or one for each.

use super::{MqttDestination, content_type};
use crate::model::{DeviceId, Seq};
use crate::mqtt::Publish;
use crate::sink::encode::{self, Entry, Fit, Writer};
use crate::sink::{Budget, Encoded, Identity, Part, Unencodable};

impl MqttDestination {
    fn publish(&self, topic: String, payload: Vec<u8>) -> (Publish, usize) {
        let size = payload.len();
        let (content_type, encoding) = content_type(self.encoding);
        (Publish { topic, payload: payload.into(), retain: false, content_type, encoding }, size)
    }

    /// One payload of all devices' readings.
    pub(super) fn all<'a>(
        &self,
        identity: &Identity,
        entries: impl Iterator<Item = Entry<'a>>,
        budget: Budget,
    ) -> Result<Encoded<Publish>, Unencodable> {
        let mut writer = encode::writer(self.encoding, identity);
        let mut entries = entries.peekable();
        let first = entries.peek().map_or(Seq::ZERO, |entry| entry.seq);
        let (payload, upto, readings) = encode::payload(&mut *writer, entries, budget).map_err(unencodable)?;
        let (payload, size) = self.publish(self.topics.readings(), payload);
        Ok(Encoded { payloads: vec![Part { payload, size, readings, first, last: upto }], upto, readings })
    }

    /// A payload for each device, until one of them or all together are as large as
    /// a batch may be.
    pub(super) fn each_device<'a>(
        &self,
        identity: &Identity,
        entries: impl Iterator<Item = Entry<'a>>,
        budget: Budget,
    ) -> Result<Encoded<Publish>, Unencodable> {
        let mut open: Vec<(&DeviceId, Box<dyn Writer>, u64, (Seq, Seq))> = Vec::new();
        let (mut upto, mut readings, mut total) = (Seq::ZERO, 0, 0);
        for entry in entries {
            let place = match open.iter().position(|(device, ..)| *device == entry.device) {
                Some(place) => place,
                None => {
                    open.push((entry.device, encode::writer(self.encoding, identity), 0, (entry.seq, entry.seq)));
                    open.len() - 1
                }
            };
            let (_, writer, count, (_, last)) = &mut open[place]; // found or just made
            let before = writer.size();
            match encode::add(&mut **writer, *count, &entry, budget) {
                Fit::Fits => {
                    (*count, *last) = (*count + 1, entry.seq);
                    total += writer.size() - before;
                    (upto, readings) = (entry.seq, readings + 1);
                }
                Fit::TooLarge if readings == 0 => return Err(Unencodable::TooLarge(entry.seq)),
                Fit::TooLarge | Fit::Full => break,
            }
            if total >= budget.batch {
                break;
            }
        }
        let payloads: Vec<_> = open
            .into_iter()
            .filter(|(_, _, count, _)| *count > 0)
            .map(|(device, mut writer, readings, (first, last))| {
                let (payload, size) = self.publish(self.topics.device_readings(device), writer.finish());
                Part { payload, size, readings, first, last }
            })
            .collect();
        if payloads.is_empty() { Err(Unencodable::Nothing) } else { Ok(Encoded { payloads, upto, readings }) }
    }
}

fn unencodable((fit, seq): (Fit, Seq)) -> Unencodable {
    match fit {
        Fit::TooLarge => Unencodable::TooLarge(seq),
        Fit::Fits | Fit::Full => Unencodable::Nothing,
    }
}
