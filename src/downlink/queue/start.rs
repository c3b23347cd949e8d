//! Continues from the commands that an earlier run of the gateway left.

use super::live::Phase;
use super::{Queue, Refusal, Rules, result};
use crate::clock::Now;
use crate::model::{BootId, CommandState, Target};
use crate::store::Commands;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Result of a command to the gateway that an earlier run may have begun.
const MAYBE_DONE: &str = "the gateway ended while it carried this out, and does not repeat it: check whether it took effect, \
                          and if not, send the command again with another id";

impl Queue {
    /// Continues from the commands that the last run left.
    pub fn new(rules: Rules, boot: BootId, left: Commands, now: Now) -> Queue {
        let mut queue = Queue {
            rules,
            enabled: true,
            boot,
            started: now.monotonic,
            live: BTreeMap::new(),
            keys: HashMap::new(),
            commands_of: BTreeMap::new(),
            ended: HashMap::new(),
            ended_order: VecDeque::new(),
            next_place: left.next_place.max(1),
            bytes: 0,
            changes: Vec::new(),
            count: 0,
            unwritten: VecDeque::new(),
            actions: Vec::new(),
        };
        for (key, state) in left.ended {
            queue.remember(key, state);
        }
        for command in left.live {
            let phase = if command.sent.is_some() { Phase::Marked } else { Phase::Waiting };
            queue.next_place = queue.next_place.max(command.place + 1);
            queue.admit(command, phase, None, now);
        }
        queue.give_up_own(now);
        queue
    }

    /// Ends commands that the gateway itself may have begun: one that crashed it would do so each time.
    fn give_up_own(&mut self, now: Now) {
        let is_own = |place: &u64| {
            self.live
                .get(place)
                .is_some_and(|live| live.phase == Phase::Marked && live.command.target == Target::Gateway)
        };
        let own: Vec<u64> = self.live.keys().copied().filter(is_own).collect();
        for place in own {
            self.end(place, CommandState::Unreachable, Some(result::error(&MAYBE_DONE)), now.wall);
        }
    }

    /// Accepts no more commands, and ends the live ones.
    pub fn disable(&mut self, now: Now) {
        self.enabled = false;
        let places: Vec<u64> = self.live.keys().copied().collect();
        for place in places {
            let handed = self.live.get(&place).is_some_and(|live| live.handed.is_some());
            match handed {
                true => self.end(place, CommandState::Unreachable, None, now.wall),
                false => self.end(place, CommandState::Rejected, Some(result::error(&Refusal::Disabled)), now.wall),
            }
        }
    }
}
