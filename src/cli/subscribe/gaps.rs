//! Finds missing readings, and why they are missing.
//!
//! A gateway numbers the readings of an epoch without holes. So the seqs between two
//! readings are in flight, since batches overtake each other; or removed, with a `gap`
//! event that has the reason; or lost. Holes are reported once they were open for a
//! while.

use crate::model::{Epoch, GatewayId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The scope of a sequence of seqs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    pub gateway: GatewayId,
    pub epoch: Epoch,
}

/// Finds holes in the seqs of each line, from the first seq that it sees. Pure: time
/// is passed in.
///
/// Memory is bounded: with too many holes or lines, the oldest hole, or the line that was
/// quiet longest, is reported and forgotten.
#[derive(Debug)]
pub struct Gaps {
    /// Younger holes may be filled by messages in flight.
    grace: Duration,
    lines: HashMap<Line, State>,
    /// Holes of all lines.
    holes: usize,
    totals: Totals,
}

#[derive(Debug, Default)]
struct State {
    highest: Option<u64>,
    /// The first seq received.
    lowest: Option<u64>,
    /// The line that this one continues, with its last seq; its holes are reported first.
    after: Option<(Line, u64)>,
    /// By first seq; disjoint and below `highest`.
    holes: BTreeMap<u64, Hole>,
    /// For seqs above `highest`, oldest first.
    explanations: VecDeque<(u64, u64, Arc<str>)>,
    last_used: Duration,
}

#[derive(Debug, Clone)]
struct Hole {
    last: u64,
    since: Duration,
    told: bool,
    explained: Option<Arc<str>>,
}

/// Number of missing seqs and gaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    pub gaps: u64,
    pub seqs: u64,
}

/// Missing seqs, with and without a `gap` event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub explained: Missing,
    pub unexplained: Missing,
}

/// A notice about the seqs from `first` to `last`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub line: Line,
    pub first: u64,
    pub last: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// They are missing without a reason.
    Missing,
    /// They are missing for this reason.
    Explained(Arc<str>),
    /// They were reported as missing, and arrived later.
    Filled,
}

const MAX_HOLES: usize = 65_536;
const MAX_LINES: usize = 10_000;
const MAX_EXPLANATIONS: usize = 256;

impl Gaps {
    /// Reports holes that stay open for `grace`.
    pub fn new(grace: Duration) -> Gaps {
        Gaps { grace, lines: HashMap::new(), holes: 0, totals: Totals::default() }
    }

    /// A reading arrived: the seqs between it and the highest one before are missing.
    pub fn saw(&mut self, line: &Line, seq: u64, now: Duration, notices: &mut Vec<Notice>) {
        let highest = self.state(line, now, notices).highest;
        match highest {
            Some(highest) if seq <= highest => return self.fill(line, seq, notices),
            Some(highest) if seq - highest > 1 => self.open(line, highest + 1, seq - 1, now, notices),
            Some(_) | None => {}
        }
        let state = self.state(line, now, notices);
        state.highest = Some(seq);
        state.lowest.get_or_insert(seq);
        state.explanations.retain(|(_, last, _)| *last > seq);
        if let Some((before, last)) = state.after.take() {
            self.end(&before, last, now, notices);
        }
    }

    /// A reading arrived that only fills holes: it neither begins nor continues a line.
    pub fn fill(&mut self, line: &Line, seq: u64, notices: &mut Vec<Notice>) {
        let Some((first, hole)) = self.hole_at(line, seq) else { return };
        self.remove(line, first);
        if first < seq {
            self.insert(line, first, Hole { last: seq - 1, ..hole.clone() });
        }
        if seq < hole.last {
            self.insert(line, seq + 1, hole.clone());
        }
        if hole.told {
            match notices.last_mut() {
                Some(notice) if notice.what == What::Filled && notice.last + 1 == seq && notice.line == *line => {
                    notice.last = seq;
                }
                _ => notices.push(Notice { line: line.clone(), first: seq, last: seq, what: What::Filled }),
            }
        }
    }

    /// An `epoch` event: the line begins with `first`, where the one `before` ends. Once a
    /// reading of the line arrives, the missing seqs of both up to there are final.
    pub fn begin(&mut self, line: &Line, first: u64, before: &Line, now: Duration, notices: &mut Vec<Notice>) {
        let state = self.state(line, now, notices);
        let Some(lowest) = state.lowest else {
            state.highest = state.highest.max(Some(first.saturating_sub(1)));
            state.after = Some((before.clone(), first.saturating_sub(1)));
            return;
        };
        if lowest > first {
            state.lowest = Some(first);
            self.open(line, first, lowest - 1, now, notices);
        }
        self.end(before, first.saturating_sub(1), now, notices);
    }

    /// The line ends with `last`: the seqs from its highest reading to there are missing, and
    /// those of the lines before it.
    fn end(&mut self, line: &Line, last: u64, now: Duration, notices: &mut Vec<Notice>) {
        let mut ends = vec![(line.clone(), last)];
        while let Some((line, last)) = ends.pop() {
            self.end_one(&line, last, now, notices);
            ends.extend(self.lines.get_mut(&line).and_then(|state| state.after.take()));
        }
    }

    fn end_one(&mut self, line: &Line, last: u64, now: Duration, notices: &mut Vec<Notice>) {
        let highest = self.lines.get(line).and_then(|state| state.highest);
        if let Some(highest) = highest.filter(|highest| *highest < last) {
            self.open(line, highest + 1, last, now, notices);
            self.state(line, now, notices).highest = Some(last);
        }
    }

    /// A `gap` event: the reason why the seqs from `first` to `last` may be missing.
    pub fn explain(
        &mut self,
        line: &Line,
        (first, last): (u64, u64),
        reason: &Arc<str>,
        now: Duration,
        notices: &mut Vec<Notice>,
    ) {
        self.explain_holes(line, (first, last), reason, notices);
        let state = self.state(line, now, notices);
        if state.highest.is_none_or(|highest| last > highest) {
            if state.explanations.len() == MAX_EXPLANATIONS {
                state.explanations.pop_front();
            }
            state.explanations.push_back((first, last, reason.clone()));
        }
    }

    /// Reports the holes that are older than the grace.
    pub fn tick(&mut self, now: Duration, notices: &mut Vec<Notice>) {
        for (line, state) in &mut self.lines {
            for (first, hole) in &mut state.holes {
                if !hole.told && now.saturating_sub(hole.since) >= self.grace {
                    hole.told = true;
                    notices.push(hole.notice(line, *first));
                }
            }
        }
    }

    /// Reports the holes that were not reported yet.
    pub fn finish(&mut self, notices: &mut Vec<Notice>) {
        self.tick(Duration::MAX, notices);
    }

    /// Whether a hole may still be filled or explained before it is reported.
    pub fn is_waiting(&self) -> bool {
        self.lines.values().flat_map(|state| state.holes.values()).any(|hole| !hole.told && hole.explained.is_none())
    }

    /// Seqs missing until now, including those younger than the grace.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn open(&mut self, line: &Line, first: u64, last: u64, now: Duration, notices: &mut Vec<Notice>) {
        if self.holes >= MAX_HOLES {
            self.forget_lowest(line, notices);
        }
        self.insert(line, first, Hole { last, since: now, told: false, explained: None });
        let known = self.lines.get(line).map(|state| state.explanations.clone()).unwrap_or_default();
        for (explained_first, explained_last, reason) in known {
            self.explain_holes(line, (explained_first, explained_last), &reason, notices);
        }
    }

    fn explain_holes(&mut self, line: &Line, range: (u64, u64), reason: &Arc<str>, notices: &mut Vec<Notice>) {
        let Some(state) = self.lines.get(line) else { return };
        let from = self.hole_at(line, range.0).map_or(range.0, |(first, _)| first);
        let overlapping: Vec<_> = state
            .holes
            .range(from..=range.1.max(from))
            .filter(|(first, hole)| hole.explained.is_none() && **first <= range.1)
            .map(|(first, hole)| (*first, hole.clone()))
            .collect();
        for (first, hole) in overlapping {
            self.remove(line, first);
            let (from, upto) = (range.0.max(first), range.1.min(hole.last));
            if first < from {
                self.insert(line, first, Hole { last: from - 1, ..hole.clone() });
            }
            if upto < hole.last {
                self.insert(line, upto + 1, hole.clone());
            }
            let explained = Hole { last: upto, explained: Some(reason.clone()), ..hole };
            if explained.told {
                notices.push(explained.notice(line, from));
            }
            self.insert(line, from, explained);
        }
    }

    /// The line's state, created if needed.
    fn state(&mut self, line: &Line, now: Duration, notices: &mut Vec<Notice>) -> &mut State {
        if self.lines.len() >= MAX_LINES && !self.lines.contains_key(line) {
            let quiet = self.lines.iter().min_by_key(|(_, state)| state.last_used).map(|(line, _)| line.clone());
            if let Some(quiet) = quiet {
                while self.forget_lowest(&quiet, notices) {}
                self.lines.remove(&quiet);
            }
        }
        let state = self.lines.entry(line.clone()).or_default();
        state.last_used = now;
        state
    }

    /// The hole that contains `seq`, with its first seq.
    fn hole_at(&self, line: &Line, seq: u64) -> Option<(u64, Hole)> {
        let (first, hole) = self.lines.get(line)?.holes.range(..=seq).next_back()?;
        (seq <= hole.last).then(|| (*first, hole.clone()))
    }

    fn insert(&mut self, line: &Line, first: u64, hole: Hole) {
        if let Some(state) = self.lines.get_mut(line) {
            let total = self.totals.of(&hole);
            total.gaps += 1;
            total.seqs += hole.seqs(first);
            self.holes += 1;
            state.holes.insert(first, hole);
        }
    }

    fn remove(&mut self, line: &Line, first: u64) {
        if let Some(hole) = self.lines.get_mut(line).and_then(|state| state.holes.remove(&first)) {
            let total = self.totals.of(&hole);
            total.gaps -= 1;
            total.seqs -= hole.seqs(first);
            self.holes -= 1;
        }
    }

    /// Forgets the line's lowest hole, which the totals still count. False if there is none.
    fn forget_lowest(&mut self, line: &Line, notices: &mut Vec<Notice>) -> bool {
        let Some((first, hole)) = self.lines.get_mut(line).and_then(|state| state.holes.pop_first()) else {
            return false;
        };
        self.holes -= 1;
        if !hole.told {
            notices.push(hole.notice(line, first));
        }
        true
    }
}

impl Hole {
    fn seqs(&self, first: u64) -> u64 {
        (self.last - first).saturating_add(1) // last is never below first
    }

    fn notice(&self, line: &Line, first: u64) -> Notice {
        let what = self.explained.clone().map_or(What::Missing, What::Explained);
        Notice { line: line.clone(), first, last: self.last, what }
    }
}

impl Totals {
    fn of(&mut self, hole: &Hole) -> &mut Missing {
        if hole.explained.is_some() { &mut self.explained } else { &mut self.unexplained }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Notice { line: Line { gateway, epoch }, first, last, what } = self;
        let label = if *what == What::Filled { "gap filled" } else { "gap" };
        let count = (last - first).saturating_add(1);
        write!(f, "{label}: {gateway} epoch {epoch}: seqs {first} to {last} ({count})")?;
        match what {
            What::Missing => f.write_str(" are missing, unexplained"),
            // It comes from outside: quoted if it is not plain.
            What::Explained(reason) if reason.chars().any(char::is_control) => {
                write!(f, " are missing, explained: {reason:?}")
            }
            What::Explained(reason) => write!(f, " are missing, explained: {reason}"),
            What::Filled => f.write_str(" came after all"),
        }
    }
}

#[cfg(test)]
mod tests;
