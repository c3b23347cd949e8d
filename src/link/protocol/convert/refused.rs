//! Samples that can never be taken. Each keeps its seq, and travels on as a reading without
//! values; see `docs/decisions/0032-refused-samples.md`.

use super::ConvertError;
use crate::ingest::Refused;
use crate::wire::message::Sample;
use crate::wire::sift::{KEPT, Unreadable};

/// Of one message so many runs of refused samples are told of one by one.
const MOST: usize = 16;
/// Of what is wrong so many characters are told.
const LONGEST: usize = 240;

/// The refused samples of one message.
#[derive(Debug, Default, PartialEq)]
pub struct Refusals {
    runs: Vec<Refused>,
    /// Refused samples that are in no run.
    more: u64,
}

impl Refusals {
    /// What is told of one by one; never more than a few.
    pub fn runs(&self) -> &[Refused] {
        &self.runs
    }

    /// How many samples were refused.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum::<u64>() + self.more
    }

    pub(super) fn push(&mut self, seq: u64, why: &Why<'_>) {
        let (reason, text) = (why.reason(), why.text());
        let room = self.runs.len() < MOST;
        match self.runs.last_mut() {
            Some(run) if run.seq + run.count == seq && (run.reason, &run.text) == (reason, &text) => run.count += 1,
            _ if room => self.runs.push(Refused { seq, count: 1, reason, text, sample: why.sample() }),
            _ => self.more += 1,
        }
    }
}

/// Why a sample is refused.
pub(super) enum Why<'a> {
    Senseless(&'a ConvertError, &'a Sample),
    Unreadable(&'a Unreadable),
    /// It stands behind one that cannot be read, in a message that the device repeats.
    Hidden,
}

impl Why<'_> {
    fn reason(&self) -> &'static str {
        match self {
            Why::Senseless(why, _) => why.label(),
            Why::Unreadable(_) => "unreadable",
            Why::Hidden => "hidden",
        }
    }

    fn text(&self) -> String {
        match self {
            Why::Senseless(why, _) => cut(&why.to_string(), LONGEST),
            Why::Unreadable(unreadable) => cut(&unreadable.why, LONGEST),
            Why::Hidden => "it stands behind a sample that cannot be read, in a message that came again".to_owned(),
        }
    }

    fn sample(&self) -> String {
        match self {
            Why::Senseless(_, sample) => cut(&serde_json::to_string(sample).unwrap_or_default(), KEPT),
            Why::Unreadable(unreadable) => unreadable.sent.clone(),
            Why::Hidden => String::new(),
        }
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", text.split_at(end).0),
        None => text.to_owned(),
    }
}
