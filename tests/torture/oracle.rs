//! What must be true of everything that was acknowledged, by whom it was delivered and
//! under which numbers.

use crate::support::device::sample;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tidegate::model::Value;
use tidegate::sink::encode::{Delivered, decode};
use tidegate::wire::message::ChannelRef;

/// One session of one device: readings 1, 2, 3 and so on, of known content.
pub struct Lane {
    index: usize,
    pub device: String,
    pub session: u64,
    /// What its readings' content derives from; of no other lane.
    number: u64,
    sent: AtomicU64,
    acked: AtomicU64,
}

impl Lane {
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// Call it before the reading leaves.
    pub fn sends(&self, upto: u64) {
        self.sent.fetch_max(upto, Ordering::AcqRel);
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }
}

/// Knows what devices sent and what they were acknowledged, is told what each broker
/// confirmed, and compares.
pub struct Oracle {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lanes: Vec<LaneSeen>,
    by_name: HashMap<(String, u64), usize>,
    /// The lane and the device's seq that each (epoch, seq) stands for.
    meaning: HashMap<(u32, u64), (usize, u64)>,
    sinks: Vec<Seen>,
    wrong: Vec<String>,
    wrongs: u64,
}

struct LaneSeen {
    lane: Arc<Lane>,
    /// For each sink.
    delivered: Vec<Ranges>,
    /// The gateway's epoch and seq of each of the device's, 0 if none came.
    last_seq: Vec<(u32, u64)>,
}

#[derive(Default)]
struct Seen {
    name: String,
    seqs: BTreeMap<u32, Ranges>,
    explained: BTreeMap<u32, Ranges>,
    readings: u64,
    again_by_seq: u64,
    again_by_origin: u64,
}

/// What is missing at one sink.
#[derive(Debug, Default)]
pub struct Missing {
    /// Acknowledged readings that the sink's broker never confirmed.
    pub lost: u64,
    /// Seqs without a reading that no gap event explains.
    pub unexplained: u64,
    /// A lost reading has one after it, of the same session, that is there.
    pub inside: u64,
    details: Vec<String>,
}

/// What it all amounts to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    pub acknowledged: u64,
    /// Different readings, of the sink that has most.
    pub delivered: u64,
    pub again_by_seq: u64,
    pub again_by_origin: u64,
    pub wrong: u64,
    pub epochs: usize,
}

/// Each start after a crash begins a new block of so many seqs.
const SEQ_BLOCK: u64 = 1 << 20;
const MAX_DETAILS: usize = 20;

impl Oracle {
    pub fn new(sinks: &[&str]) -> Arc<Oracle> {
        let sinks = sinks.iter().map(|name| Seen { name: (*name).to_owned(), ..Seen::default() }).collect();
        Arc::new(Oracle { state: Mutex::new(State { sinks, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no task panicked there")
    }

    /// A device begins a session.
    pub fn begin(&self, device: &str, session: u64) -> Arc<Lane> {
        let mut state = self.state();
        let index = state.lanes.len();
        let lane = Arc::new(Lane {
            index,
            device: device.to_owned(),
            session,
            number: index as u64 + 1,
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
        });
        let delivered = state.sinks.iter().map(|_| Ranges::default()).collect();
        state.lanes.push(LaneSeen { lane: lane.clone(), delivered, last_seq: Vec::new() });
        assert_eq!(state.by_name.insert((device.to_owned(), session), index), None, "a session of its own");
        lane
    }

    /// A device was told that everything up to `upto` is settled.
    pub fn acked(&self, lane: &Lane, upto: u64) {
        if upto > lane.sent() {
            let sent = lane.sent();
            self.wrong(format!("{} was acknowledged {upto} and had sent {sent}", lane.device));
        }
        lane.acked.fetch_max(upto, Ordering::AcqRel);
    }

    pub fn wrong(&self, what: String) {
        self.state().wrong(what);
    }

    /// A broker confirmed a message.
    pub fn confirmed(&self, sink: usize, topic: &str, payload: &[u8]) {
        if topic.ends_with("/status") || topic.ends_with("/test") {
            return;
        }
        let mut state = self.state();
        let taken = match topic.ends_with("/events") {
            true => state.event(sink, payload),
            false => state.readings(sink, topic, payload),
        };
        if let Err(why) = taken {
            state.wrong(format!("{topic}: {why}"));
        }
    }

    /// What is missing at each sink, by what was acknowledged up to now.
    pub fn missing(&self) -> Vec<Missing> {
        let state = self.state();
        (0..state.sinks.len()).map(|sink| state.missing(sink)).collect()
    }

    pub fn nothing_is_missing(&self) -> bool {
        self.missing().iter().all(|missing| missing.lost == 0 && missing.unexplained == 0)
    }

    /// What is lost is counted and not looked for any more.
    pub fn give_up(&self) -> u64 {
        let mut state = self.state();
        let mut lost = 0;
        for seen in &mut state.lanes {
            let acked = seen.lane.acked();
            for delivered in &mut seen.delivered {
                lost += acked - delivered.count_upto(acked);
                delivered.insert(1, acked);
            }
        }
        lost
    }

    /// The log is gone with its disk: what only it had is not looked for any more, nor what
    /// would have explained its seqs. Returns how many readings went with it.
    pub fn log_is_gone(&self) -> u64 {
        for sink in &mut self.state().sinks {
            for (epoch, seqs) in &sink.seqs {
                if seqs.last() > 0 {
                    sink.explained.entry(*epoch).or_default().insert(1, seqs.last());
                }
            }
        }
        self.give_up()
    }

    pub fn totals(&self) -> Totals {
        let state = self.state();
        let sum = |of: fn(&Seen) -> u64| state.sinks.iter().map(of).sum();
        Totals {
            acknowledged: state.lanes.iter().map(|seen| seen.lane.acked()).sum(),
            delivered: state.sinks.iter().map(|sink| sink.readings).max().unwrap_or(0),
            again_by_seq: sum(|sink| sink.again_by_seq),
            again_by_origin: sum(|sink| sink.again_by_origin),
            wrong: state.wrongs,
            epochs: state
                .sinks
                .iter()
                .flat_map(|sink| sink.seqs.keys())
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
        }
    }

    /// The first things that are wrong.
    pub fn wrongs(&self) -> Vec<String> {
        self.state().wrong.clone()
    }
}

impl State {
    fn wrong(&mut self, what: String) {
        self.wrongs += 1;
        if self.wrong.len() < MAX_DETAILS {
            self.wrong.push(what);
        }
    }

    fn readings(&mut self, sink: usize, topic: &str, payload: &[u8]) -> Result<(), String> {
        let delivery = decode(payload).map_err(|why| why.to_string())?;
        for reading in delivery.readings {
            let of_its_device = topic.split("/devices/").nth(1);
            if of_its_device.is_some_and(|device| device != format!("{}/readings", reading.device)) {
                self.wrong(format!("{} came on {topic}", reading.device));
            }
            if let Err(why) = self.reading(sink, delivery.epoch.0, &reading) {
                self.wrong(format!("{why}: {reading:?}"));
            }
        }
        Ok(())
    }

    fn reading(&mut self, sink: usize, epoch: u32, reading: &Delivered) -> Result<(), String> {
        let (session, origin) = reading.origin.ok_or("it has no origin")?;
        let name = (reading.device.to_string(), session);
        let index = *self.by_name.get(&name).ok_or("nobody has this session")?;
        let seen = &mut self.lanes[index];
        if origin == 0 || origin > seen.lane.sent() {
            return Err(format!("{} were sent", seen.lane.sent()));
        }
        content_is_right(seen.lane.number, origin, reading)?;

        let seq = reading.seq.0;
        let meaning = *self.meaning.entry((epoch, seq)).or_insert((index, origin));
        if meaning != (index, origin) {
            let other = &self.lanes[meaning.0].lane;
            return Err(format!("the seq stood for reading {} of {} {}", meaning.1, other.device, other.session));
        }
        let place = usize::try_from(origin - 1).expect("a count of readings");
        if seen.last_seq.len() <= place {
            seen.last_seq.resize(place + 1, (0, 0));
        }
        let before = std::mem::replace(&mut seen.last_seq[place], (epoch, seq));
        let sink = (&mut self.sinks[sink], &mut seen.delivered[sink]);
        if !sink.0.seqs.entry(epoch).or_default().insert(seq, seq) {
            sink.0.again_by_seq += 1;
        } else if !sink.1.insert(origin, origin) {
            sink.0.again_by_origin += 1;
        } else {
            sink.0.readings += 1;
        }
        let life = |seq: u64| seq.saturating_sub(1) / SEQ_BLOCK;
        if before.0 == epoch && before.1 != seq && life(before.1) == life(seq) {
            return Err(format!("one life of the log took it twice, as {} too", before.1));
        }
        Ok(())
    }

    fn event(&mut self, sink: usize, payload: &[u8]) -> Result<(), String> {
        let event: serde_json::Value = serde_json::from_slice(payload).map_err(|why| why.to_string())?;
        let number = |key: &str| event[key].as_u64().ok_or(format!("no {key} in {event}"));
        let named = |key: &str| u32::try_from(number(key)?).map_err(|why| why.to_string());
        if event["type"] == "epoch" {
            let before = number("first")?.saturating_sub(1);
            self.sinks[sink].explained.entry(named("begins")?).or_default().insert(1, before);
            return Ok(());
        }
        if event["type"] != "gap" {
            return Ok(());
        }
        let epoch = if event["of_epoch"].is_null() { named("epoch")? } else { named("of_epoch")? };
        let (first, last) = (number("first")?, number("last")?);
        if first > last || event["reason"] != "restart" {
            return Err(format!("nothing but restarts leaves gaps here: {event}"));
        }
        self.sinks[sink].explained.entry(epoch).or_default().insert(first, last);
        Ok(())
    }

    fn missing(&self, sink: usize) -> Missing {
        let mut missing = Missing::default();
        let seen = &self.sinks[sink];
        for (epoch, seqs) in &seen.seqs {
            let mut all = seqs.clone();
            if let Some(explained) = seen.explained.get(epoch) {
                for (first, last) in explained.iter() {
                    all.insert(first, last);
                }
            }
            for (first, last) in all.holes_upto(seqs.last()) {
                missing.unexplained += last - first + 1;
                missing.detail(|| format!("{}: nothing says where seqs {first} to {last} are", seen.name));
            }
        }
        for LaneSeen { lane, delivered, .. } in &self.lanes {
            let acked = lane.acked();
            for (first, last) in delivered[sink].holes_upto(acked) {
                missing.lost += last - first + 1;
                if last < acked {
                    missing.inside += last - first + 1;
                }
                let (device, session, name) = (&lane.device, lane.session, &seen.name);
                missing.detail(|| format!("{name}: {device}, session {session}: {first} to {last} are lost"));
            }
        }
        missing
    }
}

impl Missing {
    fn detail(&mut self, what: impl FnOnce() -> String) {
        if self.details.len() < MAX_DETAILS {
            self.details.push(what());
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lost, {} seqs unexplained", self.lost, self.unexplained)?;
        self.details.iter().try_for_each(|detail| write!(f, "\n  {detail}"))
    }
}

fn content_is_right(number: u64, origin: u64, reading: &Delivered) -> Result<(), String> {
    let expected = sample(number, origin);
    if reading.time.0 != expected.time {
        return Err(format!("its time should be {}", expected.time));
    }
    let mut wanted: Vec<(&str, &Value)> = expected
        .values
        .iter()
        .map(|(channel, value)| match channel {
            ChannelRef::Name(name) => (name.as_ref(), value),
            ChannelRef::Index(_) => ("level", value),
        })
        .collect();
    let mut got: Vec<(&str, &Value)> = reading.values.iter().map(|(name, value)| (name.as_str(), value)).collect();
    wanted.sort_by_key(|(name, _)| *name);
    got.sort_by_key(|(name, _)| *name);
    if wanted != got {
        return Err(format!("its values should be {wanted:?}"));
    }
    Ok(())
}

/// Disjoint ranges of numbers from 1, first to last, joined where they meet.
#[derive(Debug, Default, Clone)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// False if all of them were there already.
    fn insert(&mut self, mut first: u64, mut last: u64) -> bool {
        if let Some((start, end)) = self.0.range(..=first).next_back().map(|(start, end)| (*start, *end)) {
            if end >= last {
                return false;
            }
            if end + 1 >= first {
                first = start;
            }
        }
        while let Some((start, end)) = self.0.range(first..).next().map(|(start, end)| (*start, *end)) {
            if start > last + 1 {
                break;
            }
            self.0.remove(&start);
            last = last.max(end);
        }
        if first <= last {
            self.0.insert(first, last);
        }
        true
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    fn last(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, last)| *last)
    }

    fn count_upto(&self, upto: u64) -> u64 {
        self.0.range(..=upto).map(|(first, last)| last.min(&upto) - first + 1).sum()
    }

    fn holes_upto(&self, upto: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut next = 1;
        for (first, last) in self.iter().take_while(|(first, _)| *first <= upto) {
            if first > next {
                holes.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= upto {
            holes.push((next, upto));
        }
        holes
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane {} of {}", self.index, self.device)
    }
}
