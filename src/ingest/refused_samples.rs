//! The samples that were refused of late, for whoever looks after devices; and what is told
//! upstream of them.

use super::rate::Bucket;
use crate::model::{DeviceId, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Entries kept, the latest; each takes a few KiB at most.
const KEPT: usize = 256;
/// Events at once, and a second: a device that sends nothing but nonsense must not fill the
/// log with them.
const EVENTS: (u32, u32) = (64, 1);

/// Samples that follow each other and are refused for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The first one's seq.
    pub seq: u64,
    pub count: u64,
    /// A short constant name.
    pub reason: &'static str,
    /// What is wrong with the first, for people to read.
    pub text: String,
    /// The beginning of the first as it was sent: JSON, or bytes in hexadecimal.
    pub sample: String,
}

/// Samples of one session that follow each other and were refused for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedSamples {
    /// When the first of them came, by the gateway's clock.
    pub time: Timestamp,
    pub device: DeviceId,
    pub link: Arc<str>,
    pub session: u64,
    #[serde(flatten)]
    pub refused: Refused,
}

/// What is kept of refused samples. Clones share it.
#[derive(Debug, Clone)]
pub struct RefusedLog(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// The latest last.
    entries: VecDeque<RefusedSamples>,
    events: Bucket,
    /// Refused samples of which no event has told.
    untold: u64,
}

impl Default for RefusedLog {
    fn default() -> RefusedLog {
        let (burst, per_second) = EVENTS;
        let events = Bucket::new(per_second, burst);
        RefusedLog(Arc::new(Mutex::new(Inner { entries: VecDeque::new(), events, untold: 0 })))
    }
}

impl RefusedLog {
    /// Keeps what was refused. Returns the event that tells of it upstream, unless the log
    /// `may_tell` nothing now, or there were too many of late: the next one says how many
    /// samples were left out then.
    pub fn add(&self, new: RefusedSamples, may_tell: bool, now: Duration) -> Option<String> {
        let mut inner = self.0.lock();
        let event = if may_tell && inner.events.closed_until(now).is_none() {
            inner.events.take(now);
            Some(event(&new, std::mem::take(&mut inner.untold)))
        } else {
            inner.untold = inner.untold.saturating_add(new.refused.count);
            None
        };
        match inner.entries.back_mut() {
            Some(last) if last.goes_on_with(&new) => last.refused.count += new.refused.count,
            _ => {
                inner.entries.push_back(new);
                if inner.entries.len() > KEPT {
                    inner.entries.pop_front();
                }
            }
        }
        event
    }

    /// Samples were refused of which nothing more is told.
    pub fn untold(&self, count: u64) {
        let mut inner = self.0.lock();
        inner.untold = inner.untold.saturating_add(count);
    }

    /// What is kept, of one device or all, the newest first.
    pub fn list(&self, device: Option<&DeviceId>) -> Vec<RefusedSamples> {
        let inner = self.0.lock();
        let fits = |entry: &&RefusedSamples| device.is_none_or(|device| entry.device == *device);
        inner.entries.iter().rev().filter(fits).cloned().collect()
    }
}

impl RefusedSamples {
    fn goes_on_with(&self, new: &RefusedSamples) -> bool {
        let Refused { seq, count, reason, text, .. } = &self.refused;
        (&self.device, self.session, seq + count, reason, text)
            == (&new.device, new.session, new.refused.seq, &new.refused.reason, &new.refused.text)
    }
}

/// What a consumer needs to account for them, beside the readings without values that stand
/// in their places.
fn event(new: &RefusedSamples, untold: u64) -> String {
    let RefusedSamples { device, link, session, refused: Refused { seq, count, reason, text, sample }, .. } = new;
    let last = seq.saturating_add(count.saturating_sub(1));
    let mut event = json!({
        "type": "refused", "device": device, "link": **link, "session": session, "first": seq, "last": last,
        "count": count, "reason": reason, "text": text, "sample": sample,
    });
    if untold > 0 {
        event["untold"] = untold.into();
    }
    event.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(device: &str, seq: u64, count: u64) -> RefusedSamples {
        let refused = Refused { seq, count, reason: "channel_name", text: "too long".into(), sample: "{}".into() };
        let device = DeviceId::new(device).expect("a valid name");
        RefusedSamples { time: Timestamp(0), device, link: "tcp".into(), session: 7, refused }
    }

    #[test]
    fn what_goes_on_is_one_entry_and_the_latest_are_kept() {
        let log = RefusedLog::default();
        log.add(refused("a", 1, 2), true, Duration::ZERO);
        log.add(refused("a", 3, 1), true, Duration::ZERO);
        log.add(refused("a", 9, 1), true, Duration::ZERO);
        log.add(refused("b", 10, 1), true, Duration::ZERO);
        let seqs = |device: Option<&str>| -> Vec<(u64, u64)> {
            let device = device.map(|name| DeviceId::new(name).expect("a valid name"));
            log.list(device.as_ref()).iter().map(|entry| (entry.refused.seq, entry.refused.count)).collect()
        };
        assert_eq!(seqs(None), [(10, 1), (9, 1), (1, 3)]);
        assert_eq!(seqs(Some("a")), [(9, 1), (1, 3)]);
        (0..1000).for_each(|seq| drop(log.add(refused("c", 100 + 2 * seq, 1), true, Duration::ZERO)));
        assert_eq!(seqs(None).len(), KEPT);
        assert_eq!(seqs(None)[0], (2098, 1));
    }

    #[test]
    fn events_are_few_and_say_what_they_leave_out() {
        let log = RefusedLog::default();
        let mut told = 0;
        for seq in 0..1000 {
            told += u64::from(log.add(refused("a", 1 + 2 * seq, 1), true, Duration::from_secs(1)).is_some());
        }
        assert!((60..70).contains(&told), "{told}");
        log.untold(2);
        assert_eq!(log.add(refused("b", 1, 3), false, Duration::from_secs(10)), None);
        let event = log.add(refused("a", 5000, 2), true, Duration::from_secs(10)).expect("there is room again");
        let event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
        assert_eq!((&event["type"], &event["session"]), (&"refused".into(), &7.into()));
        assert_eq!((&event["first"], &event["last"], &event["count"]), (&5000.into(), &5001.into(), &2.into()));
        assert_eq!(event["untold"], 1000 - told + 5);
    }
}
