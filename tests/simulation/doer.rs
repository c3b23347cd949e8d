//! What a device does when it is told to: at once or later, well or badly, and answers
//! in good time, late, twice or never. It remembers what it did last.

use super::context::Context;
use fastrand::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tidegate::wire::message::{CommandResult, DeviceMessage, ResultState};
use tokio::time::Instant;

/// A device's commands, and those of the devices behind it.
pub struct Doer {
    context: Context,
    random: Rng,
    /// What was asked of each, the oldest first.
    asked: BTreeMap<String, VecDeque<Asked>>,
    /// Of each so many are remembered, and whether a reboot leaves them.
    remembers: usize,
    lasting: bool,
}

/// A command as the device knows it.
struct Asked {
    id: String,
    /// When it begins, and until when it may; not once it has begun or will never.
    begins: Option<(Instant, Instant)>,
    outcome: ResultState,
    /// When it is answered next, if it is, and how often then.
    answers: Option<(Instant, u8)>,
    /// It is never answered.
    mute: bool,
}

/// A command as it came.
pub struct Told<'a> {
    pub target: &'a str,
    pub id: &'a str,
    /// For how long it is still wanted.
    pub wanted: Duration,
}

impl Doer {
    pub fn new(context: &Context, mut random: Rng) -> Doer {
        let remembers = [1, 1, 4, 16][random.usize(..4)];
        let lasting = random.u8(..3) > 0;
        Doer { context: context.clone(), random, asked: BTreeMap::new(), remembers, lasting }
    }

    /// What was under way is lost, and what was done as well unless that is written down.
    pub fn reboot(&mut self) {
        for asked in self.asked.values_mut() {
            match self.lasting {
                true => asked.retain(|asked| asked.begins.is_none()),
                false => asked.clear(),
            }
            asked.iter_mut().for_each(|asked| asked.answers = None);
        }
    }

    /// A command came. One that is known is answered again, and no more.
    pub fn told(&mut self, told: &Told<'_>, obedient: bool) {
        let Told { target, id, wanted } = *told;
        let now = Instant::now();
        let random = &mut self.random;
        let known = self.asked.entry(target.to_owned()).or_default();
        self.context.trace(format_args!("{target} is told {id}, wanted for {wanted:?}"));
        if let Some(asked) = known.iter_mut().find(|asked| asked.id == id) {
            asked.mute &= !obedient;
            if asked.begins.is_none() && !asked.mute {
                asked.answers.get_or_insert((now, 1));
            }
            return;
        }
        // It comes when those before it are wanted no more.
        for older in known.iter_mut().filter(|older| older.begins.is_some()) {
            (older.begins, older.outcome) = (None, ResultState::Rejected);
        }
        let ms = Duration::from_millis;
        let begins = if random.u8(..4) > 0 || obedient { now } else { now + ms(random.u64(..8000)) };
        let mute = random.u8(..12) == 0 && !obedient;
        let takes = if obedient { Duration::ZERO } else { ms([0, 0, 0, 100, 3000, 40_000][random.usize(..6)]) };
        let outcome = match random.u8(..8) {
            0 => ResultState::Failed,
            1 => ResultState::Rejected,
            _ => ResultState::Done,
        };
        let times = if random.u8(..8) == 0 { 2 } else { 1 };
        let answers = (!mute).then(|| (begins + takes.mul_f64(random.f64()), times));
        let begins = (outcome != ResultState::Rejected).then_some((begins, now + wanted));
        known.push_back(Asked { id: id.to_owned(), begins, outcome, answers, mute });
        while known.len() > self.remembers {
            known.pop_front();
        }
        self.work();
    }

    /// Begins what is due.
    pub fn work(&mut self) {
        let now = Instant::now();
        for (target, asked) in &mut self.asked {
            for asked in asked {
                let Some((_, until)) = asked.begins.take_if(|(begins, _)| *begins <= now) else { continue };
                if until < now {
                    asked.outcome = ResultState::Rejected;
                } else {
                    self.context.trace(format_args!("{target} does {}", asked.id));
                    self.context.executed(target, &asked.id, !self.lasting);
                }
            }
        }
    }

    /// The next answer that is due.
    pub fn answer(&mut self) -> Option<DeviceMessage> {
        let now = Instant::now();
        for (target, asked) in &mut self.asked {
            for asked in asked.iter_mut().filter(|asked| asked.begins.is_none()) {
                let Some((at, times)) = asked.answers.take_if(|(at, _)| *at <= now) else { continue };
                asked.answers = (times > 1).then_some((at, times - 1));
                let (id, state) = (asked.id.clone(), asked.outcome);
                self.context.trace(format_args!("{target} answers {id}: {state:?}"));
                self.context.oracle(|oracle| oracle.orders.answered(target, &id, state));
                let payload = Some(format!("{{\"of\":\"{id}\"}}"));
                return Some(DeviceMessage::CommandResult(CommandResult { id, state, payload }));
            }
        }
        None
    }
}
