//! Which readings are to outlive others: those that a `[[route]]` marks.

use crate::config::{Priority, Route};
use crate::model::{Channels, DeviceId, Reading, SequencedBatch, glob};

/// The routes of high priority.
#[derive(Debug, Default)]
pub(in crate::store) struct PriorityRoutes {
    high: Vec<Route>,
}

impl PriorityRoutes {
    pub fn new(routes: &[Route]) -> PriorityRoutes {
        PriorityRoutes { high: routes.iter().filter(|route| route.priority == Priority::High).cloned().collect() }
    }

    /// Whether there is but one priority.
    pub fn is_single(&self) -> bool {
        self.high.is_empty()
    }

    /// Tells this set of routes from others, for what is counted by it on disk.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = crc32fast::Hasher::new();
        for route in &self.high {
            for pattern in route.devices.iter().chain(["\0".to_owned()].iter()).chain(&route.channels) {
                hash.update(pattern.as_bytes());
                hash.update(b"\n");
            }
        }
        u64::from(hash.finalize())
    }

    /// Whether the reading outlives those of low priority.
    pub fn is_high(&self, device: &DeviceId, reading: &Reading) -> bool {
        self.matches(device, reading.channels())
    }

    fn matches(&self, device: &DeviceId, channels: &Channels) -> bool {
        let device = device.as_str();
        let any = |patterns: &[String], name: &str| patterns.iter().any(|pattern| glob(pattern, name));
        self.high.iter().any(|route| {
            (route.devices.is_empty() || any(&route.devices, device))
                && (route.channels.is_empty() || channels.iter().any(|channel| any(&route.channels, channel.as_str())))
        })
    }

    /// How many of the readings are of high priority.
    pub fn count_high(&self, batches: &[SequencedBatch]) -> u64 {
        if self.is_single() {
            return 0;
        }
        let mut count = 0;
        for SequencedBatch { batch, .. } in batches {
            // Neighbours mostly share their list of channels.
            let mut last: Option<(&Channels, bool)> = None;
            for reading in &batch.readings {
                let channels = reading.channels();
                let high = match last {
                    Some((same, high)) if std::sync::Arc::ptr_eq(same, channels) => high,
                    _ => self.matches(&batch.device, channels),
                };
                last = Some((channels, high));
                count += u64::from(high);
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Basis, Batch, ChannelName, Seq, Timestamp, Value};
    use std::sync::Arc;

    #[test]
    fn a_reading_is_high_if_its_device_and_any_of_its_channels_match() {
        let route = |devices: &[&str], channels: &[&str], priority| Route {
            devices: devices.iter().map(ToString::to_string).collect(),
            channels: channels.iter().map(ToString::to_string).collect(),
            priority,
            ..Route::default()
        };
        let priority = PriorityRoutes::new(&[
            route(&["pump-*"], &["alarm*"], Priority::High),
            route(&["valve"], &[], Priority::High),
            route(&[], &["temperature"], Priority::Normal),
        ]);
        let high = |device: &str, names: &[&str]| {
            let channels: Channels = names.iter().map(|n| ChannelName::new(n).expect("a valid name")).collect();
            let values: Vec<Value> = names.iter().map(|_| Value::Boolean(true)).collect();
            let reading = Reading::new(1, Timestamp(0), channels, values.into()).expect("it fits");
            let device = DeviceId::new(device).expect("a valid name");
            let batch = Arc::new(Batch {
                device: device.clone(),
                session: None,
                basis: Basis::Wall,
                readings: vec![reading.clone()],
            });
            let counted = priority.count_high(&[SequencedBatch { first: Seq(1), batch }]);
            assert_eq!(counted == 1, priority.is_high(&device, &reading));
            counted == 1
        };
        assert!(high("pump-1", &["temperature", "alarm.hot"]));
        assert!(!high("pump-1", &["temperature"]));
        assert!(!high("fan", &["alarm.hot"]));
        assert!(high("valve", &["temperature"]));
        assert!(PriorityRoutes::new(&[]).is_single() && !priority.is_single());
        assert_ne!(priority.fingerprint(), PriorityRoutes::new(&[]).fingerprint());
    }
}
