//! Recognises duplicate readings.

use super::ranges::Ranges;
use crate::model::{DeviceId, Epoch, GatewayId};
use crate::sink::encode::Delivered;
use std::collections::HashMap;
use std::hash::Hash;

/// Identifies readings by the device's own session and seq where it sent them, else by
/// gateway, epoch and seq.
///
/// Memory is bounded: the [`REMEMBERED`] sessions and epochs that sent readings last are
/// known, at most twice as many. A reading of a forgotten one counts as new.
#[derive(Debug)]
pub struct Seen {
    ranges: Recent<Source, Ranges>,
}

/// At about 200 bytes each.
const REMEMBERED: usize = 50_000;

/// A source of numbers, each of which it uses once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Session(GatewayId, DeviceId, u64),
    Log(GatewayId, Epoch),
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { ranges: Recent::new(REMEMBERED) }
    }
}

impl Seen {
    /// Adds the reading. False if it is a duplicate.
    pub fn insert(&mut self, gateway: &GatewayId, epoch: Epoch, reading: &Delivered) -> bool {
        // Readings with an origin too, or the others' seqs would have many holes.
        let log = Source::Log(gateway.clone(), epoch);
        let new_in_log = self.ranges.entry(log).insert(reading.seq.0);
        match reading.origin {
            None => new_in_log,
            Some((session, seq)) => {
                // A hub numbers the readings of all its sub-devices in one sequence.
                let session = Source::Session(gateway.clone(), reading.device.hub(), session);
                self.ranges.entry(session).insert(seq)
            }
        }
    }
}

/// A map of recently used entries, in two generations: when the young one is full, the
/// old one is dropped; a used entry moves to the young one.
#[derive(Debug)]
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Eq + Hash, V: Default> Recent<K, V> {
    fn new(capacity: usize) -> Recent<K, V> {
        Recent { young: HashMap::new(), old: HashMap::new(), capacity }
    }

    fn entry(&mut self, key: K) -> &mut V {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            let value = self.old.remove(&key);
            self.old = std::mem::take(&mut self.young);
            return self.young.entry(key).or_insert(value.unwrap_or_default());
        }
        let old = &mut self.old;
        match self.young.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let value = old.remove(entry.key()).unwrap_or_default();
                entry.insert(value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Seq, Timestamp};
    use crate::sink::encode::Quality;

    fn gateway() -> GatewayId {
        GatewayId::new("gw").expect("a valid name")
    }

    fn reading(seq: u64, device: &str, origin: Option<(u64, u64)>) -> Delivered {
        let device = DeviceId::new(device).expect("a valid name");
        Delivered {
            seq: Seq(seq),
            device,
            origin,
            time: Timestamp(0),
            quality: Quality::Good,
            replay: false,
            values: Vec::new(),
        }
    }

    #[test]
    fn a_reading_with_a_new_seq_but_a_known_origin_is_a_duplicate() {
        let mut seen = Seen::default();
        let mut new = |seq, device, origin| seen.insert(&gateway(), Epoch(1), &reading(seq, device, origin));
        assert!(new(1, "a", Some((7, 1))));
        assert!(!new(1, "a", Some((7, 1))));
        assert!(!new(1_000_001, "a", Some((7, 1))), "delivered, lost in a crash, sent again");
        assert!(new(1_000_002, "a", Some((8, 1))), "another session");
        assert!(new(1_000_003, "b", Some((7, 1))), "another device");
    }

    #[test]
    fn readings_without_an_origin_are_known_by_epoch_and_seq() {
        let mut seen = Seen::default();
        let mut new = |epoch, seq| seen.insert(&gateway(), Epoch(epoch), &reading(seq, "a", None));
        assert!(new(1, 5) && !new(1, 5) && new(1, 4) && new(2, 5));
    }

    #[test]
    fn a_hub_s_sub_devices_share_its_numbers() {
        let mut seen = Seen::default();
        for seq in 1..=5_000 {
            let device = if seq % 2 == 0 { "hub/a" } else { "hub/b" };
            assert!(seen.insert(&gateway(), Epoch(1), &reading(seq, device, Some((7, seq)))));
        }
        // Kept apart they would make thousands of ranges, and the lowest would be forgotten.
        assert!(!seen.insert(&gateway(), Epoch(1), &reading(9_999, "hub/b", Some((7, 1)))));
    }

    #[test]
    fn what_was_used_lately_is_kept_and_the_rest_bounded() {
        let mut recent: Recent<u32, u32> = Recent::new(10);
        *recent.entry(0) = 42;
        for key in 1..1_000 {
            recent.entry(key);
            assert_eq!(*recent.entry(0), 42, "after {key}");
            assert!(recent.young.len() <= 10 && recent.old.len() <= 10);
        }
        *recent.entry(999) = 7;
        for key in 2_000..2_010 {
            recent.entry(key);
        }
        assert_eq!(*recent.entry(999), 7, "ten others do not displace it");
        for key in 3_000..3_100 {
            recent.entry(key);
        }
        assert_eq!(*recent.entry(999), 0, "a hundred do");
    }
}
