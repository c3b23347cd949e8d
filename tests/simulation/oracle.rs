//! What must hold, whatever happens. Knows only what devices and consumers see.

use super::clock::Taken;
use super::orders::Orders;
use super::plan::ALARM;
use super::presence::PresenceTable;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidegate::model::{BootId, Timestamp, Value};
use tidegate::sink::encode::{Delivered, Delivery, Quality};

/// How the names of devices begin that know only the time since their boot.
pub const CLOCKLESS: &str = "boot";

/// Whether a reading has the time it should have: what its device knows, the reading as
/// it came, and how late the gateway may have learnt of the device's clock.
pub type Judge<'a> = &'a dyn Fn(Taken, &Delivered, Duration) -> Result<(), String>;

/// A device's name, its session and its own seq in it.
pub type Origin = (String, u64, u64);

#[derive(Default)]
pub struct Oracle {
    /// The first promise seen broken.
    violation: Option<String>,
    /// What the log calls the seqs that it gives out, as its last start decided.
    epoch: Option<u32>,
    /// The reading that each seq of an epoch stands for, wherever it was seen.
    names: BTreeMap<(u32, u64), Origin>,
    /// By device and session.
    sessions: BTreeMap<(String, u64), Told>,
    sinks: BTreeMap<String, Sink>,
    /// What the log knew was taken back, by a power cut or an old copy of it.
    pub lossy: bool,
    /// So few events are kept that some go before sinks have them: of presence, commands and
    /// the clock nothing can be asked then.
    pub few_events: bool,
    /// What sinks that were away for a while were told is missing.
    pub told_missing: u64,
    /// An old copy of the log was put back, which takes seqs along that nothing tells of.
    pub restored: bool,
    /// How long the log keeps readings, if there is a bound, and when the simulation began.
    pub max_age: Option<(Duration, Timestamp)>,
    pub orders: Orders,
    pub roll: PresenceTable,
    pub deliveries: u64,
    pub duplicates: u64,
    /// Events that told of refused samples.
    pub refused: u64,
    /// Deliveries whose times were found after the fact, are not known, or are by a
    /// wrong clock of the device.
    pub qualities: [u64; 3],
}

/// What a device was told about a session.
#[derive(Default)]
struct Told {
    taken: u64,
    /// When each reading was taken.
    times: Vec<Taken>,
    /// How long the gateway took at most to answer a Hello.
    slack: Duration,
    acked: u64,
    /// What the device had no room to keep, before it was acknowledged.
    given_up: BTreeSet<u64>,
}

/// What a consumer has.
#[derive(Default, Clone)]
struct Sink {
    /// It stands in the configuration, and did at all times.
    configured: bool,
    stayed: bool,
    /// What it was called; a gap from before it was renamed has the name of that time.
    names: BTreeSet<String>,
    /// Readings that each session had taken before the sink was configured.
    before: BTreeMap<(String, u64), u64>,
    received: BTreeSet<Origin>,
    /// The last one that came for the first time, by session.
    newest: BTreeMap<(String, u64), u64>,
    /// Gaps by epoch and event id.
    gaps: BTreeMap<(u32, u64), Gap>,
    /// Seqs that came or of which a gap told: first and last of ranges, in no order.
    accounted: Vec<(u64, u64)>,
    /// Boots from which readings count that came without a time, and those of which it
    /// is known by now when they began.
    untimed: BTreeSet<BootId>,
    placed: BTreeSet<BootId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Gap {
    reason: String,
    first: u64,
    last: u64,
    /// Readings of this sink.
    lost: u64,
}

/// Whether the device makes such a sample that no gateway can take it.
pub fn is_senseless(session: u64, seq: u64) -> bool {
    session.is_multiple_of(3) && seq % 50 == 7
}

/// The values of a reading follow from its name, so that any copy can be checked. What was
/// refused comes without any.
pub fn content(session: u64, seq: u64) -> Vec<(String, Value)> {
    if is_senseless(session, seq) {
        return Vec::new();
    }
    let mut random = fastrand::Rng::with_seed(session ^ seq.rotate_left(32));
    let mut values = vec![("n".to_owned(), Value::Integer(seq as i64)), ("f".to_owned(), Value::Float(random.f64()))];
    if is_alarm(seq) {
        values.push((ALARM.to_owned(), Value::Boolean(true)));
    }
    if random.bool() {
        let length = random.usize(..40);
        let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(length).collect();
        values.push(("text".to_owned(), Value::Text(text.into())));
    }
    values
}

/// One reading in a hundred.
fn is_alarm(seq: u64) -> bool {
    seq.is_multiple_of(100)
}

impl Sink {
    /// Readings of which a gap says that their seqs are of none any more: history that a
    /// crash took, and that only a sink misses that was away when others confirmed it.
    fn seqs_of_nothing(&self, names: &BTreeMap<(u32, u64), Origin>) -> BTreeSet<Origin> {
        let gone: Vec<_> = self.gaps.values().filter(|gap| gap.lost == 0 && !self.stayed).collect();
        let is_gone = |seq: u64| gone.iter().any(|gap| (gap.first..=gap.last).contains(&seq));
        names.iter().filter(|((_, seq), _)| is_gone(*seq)).map(|(_, origin)| origin.clone()).collect()
    }

    fn may_miss(&self, reason: &str, allowed: &[&str]) -> bool {
        allowed.contains(&reason) || (reason == "no_history" && !self.stayed)
    }
}

impl Oracle {
    pub fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// What follows from what the log knew, which nobody can count on if it was lossy.
    pub fn judge(&mut self, verdict: Result<(), String>) {
        if let Err(what) = verdict
            && !self.lossy
        {
            self.violated(what);
        }
    }

    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// The gateway has started, and goes on under this epoch. `same`: whether nothing but
    /// the process ended since it started before; `copied`: whether what it found may be an
    /// old copy of its log.
    pub fn began(&mut self, epoch: u32, same: bool, copied: bool) {
        let Some(before) = self.epoch.replace(epoch) else { return };
        if same && before != epoch {
            self.violated(format!("epoch {epoch} begins after {before}, though no copy can have been put back"));
        } else if !same && !copied && before == epoch {
            self.violated(format!("epoch {epoch} goes on, though nothing proves that the log is no old copy"));
        }
    }

    /// A device took a reading.
    pub fn taken(&mut self, device: &str, session: u64, seq: u64, time: Taken) {
        let told = self.sessions.entry((device.to_owned(), session)).or_default();
        told.taken = seq;
        told.times.push(time);
    }

    /// A device was welcomed so long after its Hello.
    pub fn welcomed(&mut self, device: &str, session: u64, after: Duration) {
        let told = self.sessions.entry((device.to_owned(), session)).or_default();
        told.slack = told.slack.max(after);
    }

    /// A device forgot a reading that was not acknowledged.
    pub fn gave_up(&mut self, device: &str, session: u64, seq: u64) {
        self.sessions.entry((device.to_owned(), session)).or_default().given_up.insert(seq);
    }

    /// A device was told that everything of the session up to `seq` is safe.
    pub fn acked(&mut self, device: &str, session: u64, seq: u64) {
        let told = self.sessions.entry((device.to_owned(), session)).or_default();
        if seq > told.taken {
            let taken = told.taken;
            self.violated(format!("{device} was acknowledged {seq} of session {session}, but took only {taken}"));
            return;
        }
        told.acked = told.acked.max(seq);
    }

    /// A sink is configured from now on.
    pub fn add_sink(&mut self, name: &str, now: Duration) {
        self.orders.add_sink(name, now);
        self.roll.add_sink(name, now);
        let before = self.sessions.iter().map(|(session, told)| (session.clone(), told.taken)).collect();
        let names = BTreeSet::from([name.to_owned()]);
        let sink = Sink { configured: true, stayed: true, names, before, ..Sink::default() };
        self.sinks.insert(name.to_owned(), sink);
    }

    /// A sink goes on under another name.
    pub fn rename_sink(&mut self, from: &str, to: &str) {
        self.orders.rename_sink(from, to);
        self.roll.rename_sink(from, to);
        if let Some(mut sink) = self.sinks.remove(from) {
            sink.names.insert(to.to_owned());
            self.sinks.insert(to.to_owned(), sink);
        }
    }

    /// A sink is taken out of the configuration.
    pub fn remove_sink(&mut self, name: &str) {
        if let Some(sink) = self.sinks.get_mut(name) {
            (sink.configured, sink.stayed) = (false, false);
        }
    }

    /// A sink that was taken out comes back under its name.
    pub fn return_sink(&mut self, name: &str) {
        if let Some(sink) = self.sinks.get_mut(name) {
            sink.configured = true;
        }
    }

    /// A payload reached a consumer; `last` is the seq that came before it on its
    /// connection.
    pub fn delivered(&mut self, sink: &str, delivery: &Delivery, last: &mut u64, judge: Judge<'_>) {
        let epoch = delivery.epoch.0;
        for reading in &delivery.readings {
            self.deliveries += 1;
            let seq = reading.seq.0;
            if seq <= *last {
                self.violated(format!("{sink} got seq {seq} after {last} on one connection"));
            }
            *last = seq;
            let Some((session, origin)) = reading.origin else {
                self.violated(format!("{sink} got seq {seq} without its origin"));
                continue;
            };
            let device = reading.device.to_string();
            let values = content(session, origin);
            let same = reading.values.len() == values.len() && reading.values.iter().zip(&values).all(|(a, b)| a == b);
            if !same {
                self.violated(format!(
                    "{sink} got seq {seq} = {device} {session}/{origin} with {:?} instead of {values:?}",
                    reading.values
                ));
            }
            if let Some((taken, slack)) = self.time(&device, session, origin)
                && let Err(why) = judge(taken, reading, slack)
            {
                let Delivered { time, quality, .. } = reading;
                self.violated(format!(
                    "{sink} got {device} {session}/{origin} of {time} ({quality:?}) that was taken at {}: {why}",
                    taken.at
                ));
            }
            match reading.quality {
                Quality::Good => {}
                Quality::Resynchronised => self.qualities[0] += 1,
                Quality::Unsynchronised { .. } => self.qualities[1] += 1,
                Quality::DeviceClock { .. } | Quality::DeviceClockSince { .. } => self.qualities[2] += 1,
            }
            if let Quality::Unsynchronised { boot, .. } | Quality::DeviceClockSince { boot, .. } = reading.quality
                && let Some(known) = self.sinks.get_mut(sink)
            {
                known.untimed.insert(boot);
            }
            let name = (device, session, origin);
            let known = self.names.entry((epoch, seq)).or_insert_with(|| name.clone());
            if *known != name {
                let known = known.clone();
                self.violated(format!("seq {seq} of epoch {epoch} stood for {known:?}, and now for {name:?}"));
            }
            self.first_arrival(sink, seq, name);
            if let Some(known) = self.sinks.get_mut(sink) {
                match known.accounted.last_mut() {
                    Some((_, last)) if *last + 1 == seq => *last = seq,
                    _ => known.accounted.push((seq, seq)),
                }
            }
        }
    }

    /// When the device took the reading, and how late the gateway learns of its clock.
    fn time(&self, device: &str, session: u64, seq: u64) -> Option<(Taken, Duration)> {
        let told = self.sessions.get(&(device.to_owned(), session))?;
        let taken = told.times.get(usize::try_from(seq).ok()?.checked_sub(1)?)?;
        Some((*taken, told.slack))
    }

    fn first_arrival(&mut self, sink: &str, seq: u64, name: Origin) {
        let key = (name.0.clone(), name.1);
        let taken = self.sessions.get(&key).map_or(0, |told| told.taken);
        if name.2 > taken {
            self.violated(format!("{sink} got {name:?}, which no device took"));
        }
        let Some(known) = self.sinks.get_mut(sink).filter(|known| known.configured) else {
            self.violated(format!("{sink} got readings, but is not configured"));
            return;
        };
        let order = name.2;
        if !known.received.insert(name) {
            self.duplicates += 1;
            return;
        }
        let newest = known.newest.entry(key.clone()).or_default();
        // A copy may bring readings back that had left the log, or a sink that it does not know.
        if order < *newest && !self.restored {
            let newest = *newest;
            self.violated(format!("{sink} got {key:?} {order} as seq {seq} for the first time after {newest}"));
        } else {
            *newest = order;
        }
    }

    /// An event reached a consumer.
    pub fn event(
        &mut self,
        sink: &str,
        id: u64,
        body: &serde_json::Map<String, serde_json::Value>,
        began: &dyn Fn(BootId, Timestamp) -> bool,
        now: Duration,
    ) {
        let text = |key: &str| body.get(key).and_then(|text| text.as_str());
        match text("type") {
            Some("gap") => {}
            Some("command-result") => {
                let verdict = self.orders.ended(sink, id, body);
                return self.judge(verdict);
            }
            Some("presence") => {
                let verdict = self.roll.told(sink, id, body, now);
                return self.judge(if self.few_events { Ok(()) } else { verdict });
            }
            Some("refused") => return self.refused(sink, body),
            Some("clock") => return self.boot_began(sink, text("boot"), text("began"), began),
            _ => return,
        }
        let reason = body.get("reason").and_then(|reason| reason.as_str()).unwrap_or_default().to_owned();
        let number = |key: &str| body.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
        let Some(known) = self.sinks.get_mut(sink) else { return };
        let undelivered = body.get("undelivered").and_then(|all| all.as_object());
        let named = undelivered.into_iter().flatten().filter(|(name, _)| known.names.contains(*name));
        let lost = named.filter_map(|(_, lost)| lost.as_u64()).sum();
        let gap = Gap { reason, first: number("first"), last: number("last"), lost };
        known.accounted.push((gap.first, gap.last));
        let epoch = u32::try_from(number("epoch")).unwrap_or_default();
        let told = known.gaps.entry((epoch, id)).or_insert_with(|| gap.clone()).clone();
        if gap.first == 0 || gap.lost > (gap.last + 1).saturating_sub(gap.first) {
            self.violated(format!("{sink} was told of an impossible gap: {gap:?}"));
        } else if told != gap {
            self.violated(format!("{sink} was told of event {id} as {told:?} and as {gap:?}"));
        } else if gap.reason == "max_age" && !self.lossy {
            self.check_age(sink, &gap, now);
        }
    }

    /// What went for its age was so old in true time, as far as another sink tells what it was.
    fn check_age(&mut self, sink: &str, gap: &Gap, now: Duration) {
        let Some((max_age, begin)) = self.max_age else { return };
        let taken_by = begin.plus(now.saturating_sub(max_age));
        let gone = self.names.iter().filter(|((_, seq), _)| (gap.first..=gap.last).contains(seq));
        let young = |(_, (device, session, seq)): &(&(u32, u64), &Origin)| {
            self.time(device, *session, *seq).is_some_and(|(taken, _)| taken.at > taken_by)
        };
        let found = gone.filter(|known| young(known)).map(|((_, seq), name)| format!("{seq} ({name:?})")).next();
        if let Some(young) = found {
            self.violated(format!("{sink} was told that seq {young} is older than {max_age:?}"));
        }
    }

    fn refused(&mut self, sink: &str, body: &serde_json::Map<String, serde_json::Value>) {
        let number = |key: &str| body.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
        let (session, first, last) = (number("session"), number("first"), number("last"));
        self.refused += 1;
        if first == 0 || !(first..=last).all(|seq| is_senseless(session, seq)) {
            self.violated(format!("{sink} was told that {first} to {last} of session {session} are refused"));
        }
    }

    fn boot_began(
        &mut self,
        sink: &str,
        boot: Option<&str>,
        at: Option<&str>,
        began: &dyn Fn(BootId, Timestamp) -> bool,
    ) {
        let told = boot.and_then(|boot| boot.parse().ok()).zip(at.and_then(|at| at.parse().ok()));
        match told.filter(|(boot, at)| began(*boot, *at)) {
            Some((boot, _)) => {
                if let Some(known) = self.sinks.get_mut(sink) {
                    known.placed.insert(boot);
                }
            }
            None => self.violated(format!("{sink} was told that boot {boot:?} began at {at:?}, which no log was told")),
        }
    }

    /// Everything has healed and drained: consumers can place all readings of boots of
    /// which the log knows when they began.
    pub fn settle_boots(&mut self, sink: &str, known: &dyn Fn(BootId) -> bool) {
        let Some(told) = self.sinks.get(sink).filter(|_| !self.few_events) else { return };
        let waits = told.untimed.iter().find(|boot| !told.placed.contains(*boot) && known(**boot)).copied();
        if let Some(boot) = waits {
            self.violated(format!("{sink} has readings of boot {boot}, and was never told when that began"));
        }
    }

    /// Everything has healed and drained: what was acknowledged is delivered, or
    /// reported as lost for a reason that is allowed; alarms may have to be delivered even so.
    pub fn settle(&mut self, sink: &str, allowed: &[&str], with_alarms: bool) {
        let Some(known) = self.sinks.get(sink) else { return };
        let seqs = known.seqs_of_nothing(&self.names);
        let mut missing = 0;
        let mut alarm = None;
        let mut example = None;
        for (session, told) in &self.sessions {
            let before = known.before.get(session).copied().unwrap_or_default();
            for seq in before + 1..=told.acked {
                let name = (session.0.clone(), session.1, seq);
                if !known.received.contains(&name) && !told.given_up.contains(&seq) && !seqs.contains(&name) {
                    missing += 1;
                    if is_alarm(seq) {
                        alarm.get_or_insert_with(|| name.clone());
                    }
                    example.get_or_insert(name);
                }
            }
        }
        // Of an event that is told again under a later epoch only the latter counts.
        let gaps: BTreeMap<u64, &Gap> = known.gaps.iter().map(|((_, id), gap)| (*id, gap)).collect();
        let reported: u64 = gaps.values().map(|gap| gap.lost).sum();
        let losses = gaps.values().filter(|gap| gap.lost > 0);
        let reasons: BTreeSet<_> = losses.map(|gap| gap.reason.clone()).collect();
        if missing > reported {
            self.violated(format!(
                "{sink} misses {missing} acknowledged readings, such as {example:?}, and was told of {reported} lost"
            ));
        } else if let Some(alarm) = alarm.filter(|_| with_alarms && known.stayed) {
            self.violated(format!("{sink} misses {alarm:?}, an alarm, though others could have gone ({reasons:?})"));
        } else if reasons.iter().any(|reason| !known.may_miss(reason, allowed)) {
            self.violated(format!("{sink} was told of {reported} readings lost ({reasons:?}); there was no reason"));
        } else if !known.stayed {
            self.told_missing += reported;
        }
    }

    /// Everything has drained: each seq before the last one came, or a gap told of it.
    pub fn account(&mut self, sink: &str) {
        if self.restored {
            return;
        }
        let Some(known) = self.sinks.get(sink).filter(|known| known.before.is_empty()) else { return };
        let mut ranges = known.accounted.clone();
        ranges.sort_unstable();
        let mut end = 0;
        for (first, last) in ranges {
            if first > end + 1 {
                self.violated(format!("{sink} got no seq from {} to {}, and was told of no gap", end + 1, first - 1));
                return;
            }
            end = end.max(last);
        }
    }

    /// How many readings devices still have that are not acknowledged, as far as
    /// these are their `sessions`.
    pub fn unacked(&self, sessions: &[(String, u64)]) -> u64 {
        let told = sessions.iter().filter_map(|session| self.sessions.get(session));
        told.map(|told| told.taken - told.acked).sum()
    }
}
