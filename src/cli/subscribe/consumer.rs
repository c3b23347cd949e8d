//! Turns a broker's messages into readings, each once, and notices about what is missing.

use super::gaps::{self, Gaps, Line, Totals};
use super::seen::Seen;
use crate::model::{BootId, DeviceId, Epoch, EpochRange, GatewayId, InvalidTime, Seq, Timestamp};
use crate::sink::encode::{self, Delivered};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Drops duplicates and finds gaps. Pure: payloads and times go in, readings and notices
/// come out.
#[derive(Debug)]
pub struct Consumer {
    seen: Seen,
    gaps: Gaps,
    /// How many readings to return; `None`: all.
    limit: Option<u64>,
    readings: u64,
    duplicates: u64,
    undecodable: u64,
}

/// A reading that is not a duplicate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fresh {
    pub gateway: GatewayId,
    pub epoch: Epoch,
    #[serde(flatten)]
    pub reading: Delivered,
}

/// An event to report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Gap(gaps::Notice),
    /// The time of this boot of the gateway is known: its readings have a time now.
    Boot {
        gateway: GatewayId,
        boot: BootId,
        began: Timestamp,
    },
    /// The gateway continues under another epoch.
    Epoch(NewEpoch),
    /// A command ended.
    Ended(Ended),
    Undecodable {
        topic: String,
        why: String,
    },
}

/// An epoch began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEpoch {
    pub gateway: GatewayId,
    pub epoch: Epoch,
    /// The epoch before.
    pub was: Epoch,
    /// Its first seq; the epoch before ends there.
    pub first: u64,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ended {
    pub gateway: GatewayId,
    /// `None`: it was for the gateway itself.
    #[serde(default)]
    pub device: Option<DeviceId>,
    /// `None`: it had none, and was rejected for that.
    pub id: Option<String>,
    pub state: String,
    #[serde(default)]
    pub payload: serde_json::Value,
}

/// The result of a message.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    pub readings: Vec<Fresh>,
    pub notices: Vec<Notice>,
}

/// Totals of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub readings: u64,
    pub duplicates: u64,
    pub undecodable: u64,
    pub missing: Totals,
}

impl Consumer {
    /// Returns `limit` readings, and reports gaps that stay open for `grace`.
    pub fn new(limit: Option<u64>, grace: Duration) -> Consumer {
        Consumer { seen: Seen::default(), gaps: Gaps::new(grace), limit, readings: 0, duplicates: 0, undecodable: 0 }
    }

    /// Handles a message from a topic of readings, events or results. Readings beyond the limit
    /// are not returned, but still fill gaps between those before it.
    pub fn take(&mut self, topic: &str, payload: &[u8], now: Duration) -> Taken {
        let mut taken = Taken::default();
        let done = if topic.ends_with("/events") || topic.ends_with("/result") {
            self.take_event(payload, now, &mut taken)
        } else {
            self.take_readings(payload, now, &mut taken)
        };
        if let Err(why) = done {
            self.undecodable += 1;
            taken.notices.push(Notice::Undecodable { topic: topic.to_owned(), why });
        }
        taken
    }

    /// Reports gaps that are due.
    pub fn tick(&mut self, now: Duration) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.gaps.tick(now, &mut notices);
        notices.into_iter().map(Notice::Gap).collect()
    }

    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.readings >= limit)
    }

    /// Whether a gap may still be filled or explained.
    pub fn is_waiting(&self) -> bool {
        self.gaps.is_waiting()
    }

    /// Reports the gaps that were not reported yet, and returns the totals.
    pub fn finish(mut self) -> (Vec<Notice>, Summary) {
        let mut notices = Vec::new();
        self.gaps.finish(&mut notices);
        let Consumer { readings, duplicates, undecodable, .. } = self;
        let summary = Summary { readings, duplicates, undecodable, missing: self.gaps.totals() };
        (notices.into_iter().map(Notice::Gap).collect(), summary)
    }

    fn take_readings(&mut self, payload: &[u8], now: Duration, taken: &mut Taken) -> Result<(), String> {
        let delivery = encode::decode(payload).map_err(|why| why.to_string())?;
        let line = Line { gateway: delivery.gateway, epoch: delivery.epoch };
        let mut notices = Vec::new();
        for reading in delivery.readings {
            if self.is_full() {
                self.gaps.fill(&line, reading.seq.0, &mut notices);
                continue;
            }
            self.gaps.saw(&line, reading.seq.0, now, &mut notices);
            if self.seen.insert(&line.gateway, line.epoch, &reading) {
                self.readings += 1;
                let Line { gateway, epoch } = line.clone();
                taken.readings.push(Fresh { gateway, epoch, reading });
            } else {
                self.duplicates += 1;
            }
        }
        taken.notices.extend(notices.into_iter().map(Notice::Gap));
        Ok(())
    }

    fn take_event(&mut self, payload: &[u8], now: Duration, taken: &mut Taken) -> Result<(), String> {
        let event: Event = serde_json::from_slice(payload).map_err(|why| format!("invalid event: {why}"))?;
        match event.kind.as_str() {
            "gap" => {}
            "clock" => {
                let no_clock = |why: String| format!("invalid clock event: {why}");
                let ClockEvent { gateway, boot, began } =
                    serde_json::from_slice(payload).map_err(|why| no_clock(why.to_string()))?;
                let began = began.parse().map_err(|why: InvalidTime| no_clock(why.to_string()))?;
                taken.notices.push(Notice::Boot { gateway, boot, began });
                return Ok(());
            }
            "epoch" => {
                let EpochEvent { gateway, epoch, begins, was, first } =
                    serde_json::from_slice(payload).map_err(|why| format!("invalid epoch event: {why}"))?;
                let epoch = begins.unwrap_or(epoch);
                let line = |epoch| Line { gateway: gateway.clone(), epoch };
                let mut notices = Vec::new();
                self.gaps.begin(&line(epoch), first, &line(was), now, &mut notices);
                taken.notices.push(Notice::Epoch(NewEpoch { gateway, epoch, was, first }));
                taken.notices.extend(notices.into_iter().map(Notice::Gap));
                return Ok(());
            }
            "command-result" => {
                let ended = serde_json::from_slice(payload).map_err(|why| format!("invalid result: {why}"))?;
                taken.notices.push(Notice::Ended(ended));
                return Ok(());
            }
            _ => return Ok(()),
        }
        let gap: GapEvent = serde_json::from_slice(payload).map_err(|why| format!("invalid gap event: {why}"))?;
        if gap.first > gap.last {
            return Err(format!("invalid gap event: it begins at {} and ends at {}", gap.first, gap.last));
        }
        if &*gap.reason == NOT_HERE {
            return Ok(());
        }
        let mut notices = Vec::new();
        for part in gap.parts() {
            let line = Line { gateway: gap.gateway.clone(), epoch: part.epoch };
            self.gaps.explain(&line, (part.first.0, part.last.0), &gap.reason, now, &mut notices);
        }
        taken.notices.extend(notices.into_iter().map(Notice::Gap));
        Ok(())
    }
}

/// Reason of a gap that concerns another sink only.
const NOT_HERE: &str = "forgotten";

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct ClockEvent {
    gateway: GatewayId,
    boot: BootId,
    began: String,
}

#[derive(Deserialize)]
struct EpochEvent {
    gateway: GatewayId,
    /// The epoch that began; earlier versions publish the event under it.
    epoch: Epoch,
    begins: Option<Epoch>,
    was: Epoch,
    first: u64,
}

#[derive(Deserialize)]
struct GapEvent {
    gateway: GatewayId,
    epoch: Epoch,
    /// Epoch of the seqs, if it is not `epoch`.
    of_epoch: Option<Epoch>,
    first: u64,
    last: u64,
    reason: Arc<str>,
    /// The ranges, where the seqs are of several epochs.
    #[serde(default)]
    parts: Vec<EpochRange>,
}

impl GapEvent {
    fn parts(&self) -> Vec<EpochRange> {
        if self.parts.is_empty() {
            let epoch = self.of_epoch.unwrap_or(self.epoch);
            return vec![EpochRange { epoch, first: Seq(self.first), last: Seq(self.last) }];
        }
        self.parts.iter().filter(|part| part.first <= part.last).copied().collect()
    }
}

impl fmt::Display for Fresh {
    /// One line: time and its quality, gateway/device, and each channel with its value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fresh { gateway, reading: Delivered { device, time, quality, values, .. }, .. } = self;
        write!(f, "{time}{quality} {gateway}/{device}")?;
        for (channel, value) in values {
            // Names come from outside: quoted where they are ambiguous.
            if channel.is_empty() || channel.chars().any(|c| c.is_control() || c.is_whitespace() || "=\"".contains(c)) {
                write!(f, " {channel:?}=")?;
            } else {
                write!(f, " {channel}=")?;
            }
            f.write_str(&serde_json::to_string(value).map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Gap(gap) => gap.fmt(f),
            Notice::Boot { gateway, boot, began } => write!(f, "{gateway}: boot {boot} began at {began}"),
            Notice::Epoch(NewEpoch { gateway, epoch, was, first }) => {
                write!(f, "{gateway}: epoch {was} ended before seq {first}, where epoch {epoch} begins")
            }
            Notice::Ended(Ended { gateway, device, id, state, payload }) => {
                let device = device.as_ref().map_or(String::new(), |device| format!("/{device}"));
                // A rejected id may be any text.
                let id = id.as_deref().unwrap_or("without an id");
                write!(f, "{gateway}{device}: command {id:?} {state:?}")?;
                if payload.is_null() { Ok(()) } else { write!(f, " {payload}") }
            }
            Notice::Undecodable { topic, why } => write!(f, "warning: message on {topic:?} is left out: {why}"),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { readings, duplicates, undecodable, missing: Totals { explained, unexplained } } = self;
        writeln!(f, "readings            {readings}")?;
        writeln!(f, "duplicates dropped  {duplicates}")?;
        write!(f, "gaps                explained {} ({} seqs), ", explained.gaps, explained.seqs)?;
        write!(f, "unexplained {} ({} seqs)", unexplained.gaps, unexplained.seqs)?;
        if *undecodable > 0 {
            write!(f, "\nmessages left out   {undecodable}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
