//! On which terms one broker lets the gateway in: the version of the protocol, retained
//! messages, the Last Will. They follow from how it answered before. No clock and no socket.
//!
//! MQTT 5 is asked for first where the configuration names no version. A broker refuses it by
//! saying so (CONNACK 0x84, or CONNACK of MQTT 3.1.1), or by ending the connection before
//! any CONNACK while it has never spoken MQTT 5 to this gateway. MQTT 3.1.1 is tried at once
//! then. In the second case nothing is remembered unless that one is accepted: the broker
//! may just have been down. A broker that does not answer at all refuses nothing.

use crate::mqtt::{Cause, Version};
use std::time::Duration;

/// For how long what a broker said is remembered.
pub(super) const SAID: Duration = Duration::from_secs(24 * 3600);
/// For how long what only follows from closed connections is remembered.
pub(super) const INFERRED: Duration = Duration::from_secs(3600);
/// So many accepted connections in a row may end at the retained status, without a word, until
/// one goes without retain.
const MAX_HUNG_UP: u32 = 3;

/// What the configuration wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// None: the newest that the broker speaks.
    pub version: Option<Version>,
    pub retain: bool,
}

/// What one connection is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectPlan {
    pub version: Version,
    pub retain: bool,
    pub will: bool,
}

/// What is known of one broker.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Capabilities {
    /// It has accepted MQTT 5, and not refused it since.
    spoke_5: bool,
    /// It closed the connection at MQTT 5, and 3.1.1 is not tried yet.
    doubts_5: bool,
    /// Until when MQTT 3.1.1 is used.
    older_until: Duration,
    /// Until when nothing is retained.
    unretained_until: Duration,
    /// Until when there is no Last Will.
    no_will_until: Duration,
    hung_up: u32,
}

impl Capabilities {
    /// How to connect next.
    pub fn ask(&self, wanted: Wanted, now: Duration) -> ConnectPlan {
        let older = self.doubts_5 || now < self.older_until;
        ConnectPlan {
            version: wanted.version.unwrap_or(if older { Version::V3_1_1 } else { Version::V5 }),
            retain: wanted.retain && now >= self.unretained_until && self.hung_up < MAX_HUNG_UP,
            will: now >= self.no_will_until,
        }
    }

    /// The broker refused what it was asked for, or ended a connection. If another attempt is
    /// worth making at once, what is different then, for the log.
    pub fn refused(
        &mut self,
        wanted: Wanted,
        asked: ConnectPlan,
        cause: &Cause,
        now: Duration,
    ) -> Option<&'static str> {
        let chosen = wanted.version.is_none();
        self.doubts_5 = false;
        match (cause, asked.version) {
            (Cause::Version, Version::V5) if chosen => {
                (self.spoke_5, self.older_until) = (false, now + SAID);
                Some("the broker does not speak MQTT 5; MQTT 3.1.1 is used with it for a day")
            }
            (Cause::Version, Version::V3_1_1) if chosen && now < self.older_until => {
                self.older_until = Duration::ZERO;
                Some("the broker does not speak MQTT 3.1.1 any more; MQTT 5 is tried")
            }
            (Cause::NoAnswer, Version::V5) if chosen && !self.spoke_5 => {
                self.doubts_5 = true;
                Some("the broker closed the connection at MQTT 5; MQTT 3.1.1 is tried")
            }
            (Cause::Retain, _) if asked.retain => {
                self.retains_nothing(now);
                Some("the broker keeps no retained messages; the statuses go without retain for a day")
            }
            (Cause::WillTopic, _) if asked.will => {
                self.no_will_until = now + SAID;
                Some("the broker takes no Last Will to the gateway's status; there is none for a day")
            }
            (Cause::HungUp, _) => {
                self.hung_up = if asked.retain { self.hung_up + 1 } else { 0 };
                None
            }
            _ => None,
        }
    }

    /// The broker keeps no messages for whoever subscribes later.
    pub fn retains_nothing(&mut self, now: Duration) {
        self.unretained_until = now + SAID;
    }

    /// The broker accepted the connection and confirmed the status. `retains` is what it says
    /// of retained messages. Returns what was learnt, for the log.
    pub fn accepted(
        &mut self,
        wanted: Wanted,
        asked: ConnectPlan,
        retains: bool,
        now: Duration,
    ) -> Option<&'static str> {
        let without = std::mem::take(&mut self.hung_up) >= MAX_HUNG_UP && !asked.retain && wanted.retain;
        let doubted = std::mem::take(&mut self.doubts_5);
        self.spoke_5 |= asked.version == Version::V5;
        if doubted && asked.version == Version::V3_1_1 {
            self.older_until = now + INFERRED;
            return Some("the broker takes MQTT 3.1.1, which is used with it for an hour");
        }
        if without {
            self.unretained_until = now + INFERRED;
            return Some(
                "the broker closed connections at a retained message and takes others; the statuses go without \
                 retain for an hour: set retain = false, or let the gateway retain messages",
            );
        }
        if asked.retain && !retains {
            self.retains_nothing(now);
            return Some("the broker keeps no retained messages; the statuses go without retain for a day");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const AUTO: Wanted = Wanted { version: None, retain: true };

    fn version(capabilities: &Capabilities, now: Duration) -> Version {
        capabilities.ask(AUTO, now).version
    }

    #[test]
    fn what_refuses_version_5_in_words_gets_the_older_one_for_a_day() {
        let mut capabilities = Capabilities::default();
        let asked = capabilities.ask(AUTO, NOW);
        assert_eq!(asked, ConnectPlan { version: Version::V5, retain: true, will: true });
        assert!(capabilities.refused(AUTO, asked, &Cause::Version, NOW).is_some());
        assert_eq!(version(&capabilities, NOW + SAID - Duration::from_secs(1)), Version::V3_1_1);
        assert_eq!(version(&capabilities, NOW + SAID), Version::V5);
        // What was learnt may be wrong since.
        let asked = capabilities.ask(AUTO, NOW);
        assert!(capabilities.refused(AUTO, asked, &Cause::Version, NOW).is_some());
        assert_eq!(version(&capabilities, NOW), Version::V5);
    }

    #[test]
    fn a_closed_connection_refuses_version_5_only_if_the_older_one_is_let_in() {
        let mut capabilities = Capabilities::default();
        let five = capabilities.ask(AUTO, NOW);
        assert!(capabilities.refused(AUTO, five, &Cause::NoAnswer, NOW).is_some());
        let older = capabilities.ask(AUTO, NOW);
        assert_eq!(older.version, Version::V3_1_1);
        for cause in [Cause::NoAnswer, Cause::Other] {
            assert_eq!(capabilities.refused(AUTO, older, &cause, NOW), None, "it is just down");
            assert_eq!(capabilities.ask(AUTO, NOW), five);
            capabilities.refused(AUTO, five, &Cause::NoAnswer, NOW);
        }
        assert!(capabilities.accepted(AUTO, older, true, NOW).is_some());
        assert_eq!(version(&capabilities, NOW), Version::V3_1_1);
        assert_eq!(version(&capabilities, NOW + INFERRED), Version::V5);
    }

    #[test]
    fn what_has_spoken_version_5_does_not_refuse_it_by_closing_or_by_silence() {
        let mut capabilities = Capabilities::default();
        let five = capabilities.ask(AUTO, NOW);
        assert_eq!(capabilities.refused(AUTO, five, &Cause::Other, NOW), None, "no answer in time");
        assert_eq!(capabilities.accepted(AUTO, five, true, NOW), None);
        for cause in [Cause::NoAnswer, Cause::HungUp, Cause::Busy, Cause::Other] {
            assert_eq!(capabilities.refused(AUTO, five, &cause, NOW), None);
            assert_eq!(version(&capabilities, NOW), Version::V5, "{cause:?}");
        }
        assert!(capabilities.refused(AUTO, five, &Cause::Version, NOW).is_some(), "but in words");
    }

    #[test]
    fn a_version_that_is_configured_is_kept() {
        for named in [Version::V3_1_1, Version::V5] {
            let wanted = Wanted { version: Some(named), retain: true };
            let mut capabilities = Capabilities::default();
            for cause in [Cause::Version, Cause::NoAnswer] {
                let asked = capabilities.ask(wanted, NOW);
                assert_eq!(capabilities.refused(wanted, asked, &cause, NOW), None);
                assert_eq!(capabilities.ask(wanted, NOW).version, named);
            }
        }
    }

    #[test]
    fn nothing_is_retained_where_the_broker_says_so_or_closes_again_and_again() {
        let mut capabilities = Capabilities::default();
        let asked = capabilities.ask(AUTO, NOW);
        assert!(capabilities.refused(AUTO, asked, &Cause::Retain, NOW).is_some());
        assert!(!capabilities.ask(AUTO, NOW).retain && capabilities.ask(AUTO, NOW + SAID).retain);

        let mut capabilities = Capabilities::default();
        for _ in 0..MAX_HUNG_UP {
            let asked = capabilities.ask(AUTO, NOW);
            assert!(asked.retain);
            capabilities.refused(AUTO, asked, &Cause::HungUp, NOW);
        }
        let without = capabilities.ask(AUTO, NOW);
        assert!(!without.retain);
        let mut other = capabilities;
        other.refused(AUTO, without, &Cause::HungUp, NOW);
        assert!(other.ask(AUTO, NOW).retain, "it was something else");
        assert!(capabilities.accepted(AUTO, without, true, NOW).is_some());
        assert!(!capabilities.ask(AUTO, NOW).retain && capabilities.ask(AUTO, NOW + INFERRED).retain);

        let mut capabilities = Capabilities::default();
        assert!(capabilities.accepted(AUTO, asked, false, NOW).is_some(), "CONNACK says so");
        assert!(!capabilities.ask(AUTO, NOW).retain);
        assert!(!Capabilities::default().ask(Wanted { retain: false, ..AUTO }, NOW).retain);
    }

    #[test]
    fn a_last_will_that_is_refused_is_left_out() {
        let mut capabilities = Capabilities::default();
        let asked = capabilities.ask(AUTO, NOW);
        assert!(capabilities.refused(AUTO, asked, &Cause::WillTopic, NOW).is_some());
        let without = capabilities.ask(AUTO, NOW);
        assert!(!without.will && without.retain);
        assert_eq!(capabilities.refused(AUTO, without, &Cause::WillTopic, NOW), None);
    }
}
