use super::*;
use crate::model::Timestamp;

const RULES: Rules = Rules {
    offline_delay: Duration::from_secs(5),
    flap_damping: Duration::from_secs(30),
    return_within: Duration::from_secs(90),
    max_known: 3,
};

fn at(seconds: u64) -> Now {
    let monotonic = Duration::from_secs(seconds);
    Now { wall: wall(seconds), trusted: true, monotonic }
}

fn wall(seconds: u64) -> Timestamp {
    Timestamp(1_800_000_000_000_000).plus(Duration::from_secs(seconds))
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

fn arrive(presence: &mut PresenceTable, name: &str, seconds: u64) {
    let arrival = Arrival { link: "tcp".into(), firmware: None, reason: Cause::Connected };
    presence.arrived(&device(name), arrival, at(seconds)).expect("there is room");
}

fn leave(presence: &mut PresenceTable, name: &str, cause: Cause, seconds: u64) {
    presence.left(&device(name), cause, Some(at(seconds).monotonic), at(seconds));
}

/// What is told at that time, as device, state and reason.
fn told(presence: &mut PresenceTable, seconds: u64) -> Vec<(String, Presence, Cause)> {
    let told = presence.tell(at(seconds), 100);
    told.changes.into_iter().map(|s| (s.device.to_string(), s.state, s.reason)).collect()
}

#[test]
fn arrivals_are_told_at_once_and_departures_once_they_lasted() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    assert_eq!(told(&mut presence, 1), [("pump".into(), Presence::Online, Cause::Connected)]);
    leave(&mut presence, "pump", Cause::LinkLost, 10);
    assert_eq!((told(&mut presence, 14), presence.due()), (vec![], Some(Duration::from_secs(15))));
    assert_eq!(told(&mut presence, 15), [("pump".into(), Presence::Offline, Cause::LinkLost)]);
    assert_eq!(presence.due(), None);
}

#[test]
fn a_goodbye_is_told_at_once() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    told(&mut presence, 1);
    leave(&mut presence, "pump", Cause::Goodbye, 2);
    assert_eq!(told(&mut presence, 2), [("pump".into(), Presence::Offline, Cause::Goodbye)]);
}

#[test]
fn a_device_that_comes_back_soon_was_never_gone() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    told(&mut presence, 1);
    leave(&mut presence, "pump", Cause::Timeout, 10);
    arrive(&mut presence, "pump", 12);
    assert_eq!((told(&mut presence, 100), presence.due()), (vec![], None));
    assert_eq!(presence.status(&device("pump")).map(|status| status.flaps), Some(1));
}

#[test]
fn a_device_that_has_calmed_down_before_it_was_looked_at_is_as_it_was_told() {
    let mut presence = PresenceTable::new(RULES);
    let arrives = |presence: &mut PresenceTable, reason| {
        let arrival = Arrival { link: "tcp".into(), firmware: None, reason };
        presence.arrived(&device("pump"), arrival, at(0)).expect("there is room");
    };
    arrives(&mut presence, Cause::Connected);
    let told = presence.tell(at(0), 10).changes;
    (0..20).for_each(|_| arrives(&mut presence, Cause::TakenOver));
    // Nobody looked for long.
    assert_eq!(presence.tell(at(100_000), 10), PresenceUpdates::default());
    let known = presence.status(&device("pump")).map(|status| (status.since, status.reason));
    assert_eq!(known, told.first().map(|status| (status.since, status.reason)));
}

#[test]
fn idle_and_heard_again_are_told() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    told(&mut presence, 1);
    presence.silent(&device("pump"), true, at(46));
    presence.silent(&device("pump"), false, at(47));
    assert_eq!(told(&mut presence, 60), [], "it answered the reminder");
    presence.silent(&device("pump"), true, at(100));
    assert_eq!(told(&mut presence, 105), [("pump".into(), Presence::Idle, Cause::Silent)]);
    presence.silent(&device("pump"), false, at(110));
    assert_eq!(told(&mut presence, 110), [("pump".into(), Presence::Online, Cause::Heard)]);
}

#[test]
fn a_device_that_flaps_is_told_so_once_and_then_when_it_has_calmed_down() {
    let mut presence = PresenceTable::new(RULES);
    let mut all = Vec::new();
    for i in 0..60 {
        arrive(&mut presence, "pump", 10 * i);
        all.extend(presence.tell(at(10 * i), 10).changes);
        leave(&mut presence, "pump", Cause::LinkLost, 10 * i + 2);
        all.extend(presence.tell(at(10 * i + 8), 10).changes);
    }
    assert!(all.len() < 12, "600 s of flapping are told in a few messages, not {}", all.len());
    assert!(all.last().expect("some").flapping);
    arrive(&mut presence, "pump", 601);
    let calm = presence.tell(at(631), 10).changes;
    assert!(matches!(&calm[..], [s] if !s.flapping && s.state == Presence::Online && s.flaps >= 60), "{calm:?}");
    assert_eq!(presence.tell(at(10_000), 10), PresenceUpdates::default());
}

#[test]
fn after_a_restart_those_who_come_back_in_time_were_never_gone() {
    let mut before = PresenceTable::new(RULES);
    for name in ["a", "b"] {
        arrive(&mut before, name, 1);
    }
    let statuses = before.tell(at(1), 10).changes;
    for name in ["a", "b"] {
        leave(&mut before, name, Cause::GatewayStopping, 50);
    }
    assert_eq!((before.tell(at(500), 10), before.due()), (PresenceUpdates::default(), None));

    let mut presence = PresenceTable::new(RULES);
    presence.restore(statuses, Vec::new(), at(7));
    assert_eq!(presence.status(&device("a")).map(|status| status.reason), Some(Cause::GatewayRestarted));
    arrive(&mut presence, "a", 20);
    assert_eq!(told(&mut presence, 96), []);
    assert_eq!(told(&mut presence, 97), [("b".into(), Presence::Offline, Cause::GatewayRestarted)]);
}

#[test]
fn what_was_told_last_can_be_told_to_everybody_who_was_not_there() {
    let mut presence = PresenceTable::new(RULES);
    for name in ["a", "b"] {
        arrive(&mut presence, name, 1);
    }
    presence.tell(at(1), 10);
    leave(&mut presence, "a", Cause::Goodbye, 2);
    presence.tell(at(2), 10);
    leave(&mut presence, "b", Cause::LinkLost, 3);

    let (mut version, mut all) = (0, Vec::new());
    while let Some((next, PresenceUpdate::Status(status))) = presence.told_after(version) {
        all.push((status.device.to_string(), status.state));
        version = next;
    }
    let expected = [("b".to_owned(), Presence::Online), ("a".to_owned(), Presence::Offline)];
    assert_eq!(all, expected, "b's departure is not told yet");
    assert_eq!(presence.told_after(version), None);
}

#[test]
fn a_full_registry_forgets_who_is_gone_for_longest_and_nobody_who_is_there() {
    let mut presence = PresenceTable::new(RULES);
    for (name, time) in [("a", 1), ("b", 2), ("c", 3)] {
        arrive(&mut presence, name, time);
    }
    presence.tell(at(3), 10);
    let arrival = || Arrival { link: "tcp".into(), firmware: None, reason: Cause::Connected };
    assert_eq!(presence.arrived(&device("d"), arrival(), at(4)), Err(PresenceFull));
    leave(&mut presence, "c", Cause::Goodbye, 5);
    leave(&mut presence, "b", Cause::Goodbye, 6);
    assert_eq!(presence.arrived(&device("d"), arrival(), at(7)), Ok(()));
    assert_eq!((presence.len(), presence.status(&device("c"))), (3, None));
    let all: Vec<_> = std::iter::successors(presence.told_after(0), |(v, _)| presence.told_after(*v)).collect();
    assert!(all.iter().any(|(_, told)| *told == PresenceUpdate::Forgotten(device("c"))), "{all:?}");
    assert_eq!(presence.tell(at(4), 10).forgotten, [device("c")]);
}

#[test]
fn a_time_before_the_clock_was_set_is_right_once_it_is_and_told_so() {
    let mut presence = PresenceTable::new(RULES);
    let unset = |seconds| Now { wall: Timestamp(5), trusted: false, ..at(seconds) };
    assert!(!presence.believe(unset(100)));
    let arrival = Arrival { link: "tcp".into(), firmware: None, reason: Cause::Connected };
    presence.arrived(&device("pump"), arrival, unset(100)).expect("there is room");
    let told = presence.tell(unset(100), 10).changes;
    assert_eq!((told[0].since, told[0].time_trusted), (Timestamp(5), false));
    let version = presence.version();
    assert!(presence.believe(at(160)) && !presence.believe(at(170)));
    let Some((_, PresenceUpdate::Status(again))) = presence.told_after(version) else { panic!("it stays wrong") };
    assert_eq!((again.since, again.time_trusted), (wall(100), true));
    assert_eq!(presence.status(&device("pump")).map(|status| status.since), Some(wall(100)));
    assert_eq!(presence.tell(at(1000), 10), PresenceUpdates::default(), "its state did not change");
}

/// Both clocks are read with some time between them, and the one is slewed against the other.
#[test]
fn a_time_is_the_same_whoever_asks_and_when() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 100);
    let told = presence.tell(at(100), 10).changes.remove(0);
    for (later, off) in [(110, 1), (5000, 77_000), (9000, -3_000_000)] {
        let now = Now { wall: Timestamp(wall(later).0 + off), ..at(later) };
        presence.heard(&device("pump"), Duration::from_secs(105), now);
        let status = presence.status(&device("pump")).expect("it is known");
        let Some((_, PresenceUpdate::Status(again))) = presence.told_after(0) else { panic!("it was told") };
        assert_eq!((status.since, again.since), (told.since, told.since));
        assert_eq!(status.last_seen, again.last_seen);
        assert_eq!(status.last_seen, Timestamp(wall(105).0 + 1), "as it was found at first");
    }
}

#[test]
fn what_was_never_told_shows_nowhere_once_it_is_over() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 100);
    presence.tell(at(100), 10);
    leave(&mut presence, "pump", Cause::LinkLost, 200);
    // Somebody asks for all that was told, before the departure is.
    let Some((_, PresenceUpdate::Status(told))) = presence.told_after(0) else { panic!("it was told") };
    assert_eq!((told.state, told.reason, told.since), (Presence::Online, Cause::Connected, wall(100)));
    arrive(&mut presence, "pump", 203);
    assert_eq!(presence.tell(at(1000), 10), PresenceUpdates::default());
    let status = presence.status(&device("pump")).expect("it is known");
    assert_eq!((status.state, status.since, status.flaps), (Presence::Online, wall(100), 1));
    let Some((_, PresenceUpdate::Status(told))) = presence.told_after(0) else { panic!("it was told") };
    assert_eq!(*told, status);
}

#[test]
fn after_a_restart_what_is_told_again_is_what_was_told_before() {
    let mut before = PresenceTable::new(RULES);
    for (name, seconds) in [("a", 100), ("b", 101), ("c", 102)] {
        arrive(&mut before, name, seconds);
    }
    before.tell(at(102), 10);
    leave(&mut before, "b", Cause::Timeout, 150);
    before.tell(at(160), 10);
    let said = |presence: &PresenceTable| -> Vec<DeviceStatus> {
        let all = std::iter::successors(presence.told_after(0), |(version, _)| presence.told_after(*version));
        let mut all: Vec<_> = all
            .filter_map(|(_, told)| match told {
                PresenceUpdate::Status(status) => Some(*status),
                PresenceUpdate::Forgotten(_) => None,
            })
            .collect();
        all.sort_by(|a, b| a.device.cmp(&b.device));
        all
    };
    let told = said(&before);
    let mut presence = PresenceTable::new(RULES);
    presence.restore(told.clone(), Vec::new(), at(200));
    assert_eq!(said(&presence), told, "before anybody is back");
    arrive(&mut presence, "a", 210);
    presence.tell(at(210), 10);
    let status = presence.status(&device("a")).expect("it is known");
    assert_eq!((status.state, status.since, status.reason), (Presence::Online, wall(100), Cause::Connected));
    assert_eq!(said(&presence)[0].since, wall(100));
    presence.tell(at(290), 10);
    let c = said(&presence).remove(2);
    assert_eq!((c.state, c.reason, c.since), (Presence::Offline, Cause::GatewayRestarted, wall(200)));
}

#[test]
fn another_link_or_firmware_is_told() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    presence.tell(at(1), 10);
    leave(&mut presence, "pump", Cause::LinkLost, 2);
    let arrival = Arrival { link: "serial".into(), firmware: Some("2.0".into()), reason: Cause::Connected };
    presence.arrived(&device("pump"), arrival, at(3)).expect("there is room");
    let told = presence.tell(at(3), 10).changes;
    let [told] = &told[..] else { panic!("{told:?}") };
    assert_eq!((&*told.link, told.firmware.as_deref(), told.since), ("serial", Some("2.0"), wall(1)));
    assert_eq!(presence.tell(at(1000), 10), PresenceUpdates::default());
}

#[test]
fn those_that_are_forgotten_are_told_so_after_a_restart_too() {
    let mut before = PresenceTable::new(RULES);
    for (name, time) in [("a", 1), ("b", 2), ("c", 3)] {
        arrive(&mut before, name, time);
    }
    let told = before.tell(at(3), 10).changes;
    let mut presence = PresenceTable::new(Rules { max_known: 1, ..RULES });
    presence.restore(told, vec![device("old")], at(10));
    let all: Vec<_> = std::iter::successors(presence.told_after(0), |(v, _)| presence.told_after(*v)).collect();
    let forgotten: Vec<_> = all
        .iter()
        .filter_map(|(_, told)| match told {
            PresenceUpdate::Forgotten(device) => Some(device.as_str()),
            PresenceUpdate::Status(_) => None,
        })
        .collect();
    assert_eq!(forgotten, ["old", "b", "a"], "and those that are too many now");
    assert_eq!(presence.tell(at(10), 10).forgotten, [device("b"), device("a")]);
    assert_eq!(presence.len(), 1);
}

#[test]
fn a_pause_of_the_gateway_is_like_a_restart_to_its_devices() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    arrive(&mut presence, "fan", 1);
    presence.tell(at(1), 10);
    // It stood still from 10 to 140; both gave up, and the one comes back a minute later.
    presence.excuse(Duration::from_secs(190), at(140).monotonic);
    for seconds in [140, 140, 140, 140] {
        leave(&mut presence, "pump", Cause::LinkLost, seconds);
        arrive(&mut presence, "pump", seconds);
        leave(&mut presence, "fan", Cause::LinkLost, seconds);
    }
    leave(&mut presence, "pump", Cause::LinkLost, 140);
    assert_eq!(told(&mut presence, 199), []);
    arrive(&mut presence, "pump", 199);
    assert_eq!(told(&mut presence, 205), [("fan".into(), Presence::Offline, Cause::LinkLost)]);
    assert_eq!(presence.status(&device("pump")).map(|status| (status.flapping, status.since)), Some((false, wall(1))));
    leave(&mut presence, "pump", Cause::LinkLost, 300);
    assert_eq!(told(&mut presence, 305), [("pump".into(), Presence::Offline, Cause::LinkLost)]);
}

#[test]
fn a_departure_before_a_pause_is_told_so_much_later() {
    let mut presence = PresenceTable::new(RULES);
    arrive(&mut presence, "pump", 1);
    presence.tell(at(1), 10);
    leave(&mut presence, "pump", Cause::LinkLost, 10);
    presence.excuse(Duration::from_secs(40), at(31).monotonic);
    assert_eq!((told(&mut presence, 54), presence.due()), (vec![], Some(Duration::from_secs(55))));
    assert_eq!(told(&mut presence, 55), [("pump".into(), Presence::Offline, Cause::LinkLost)]);
}

mod model {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Arrives(usize, bool),
        Leaves(usize, Cause),
        Silent(usize, bool),
        Tells,
        Waits(u64),
        Pauses(u64),
        Restarts,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let cause = prop_oneof![Just(Cause::Goodbye), Just(Cause::LinkLost), Just(Cause::Timeout)];
        prop_oneof![
            3 => (0..3usize, any::<bool>()).prop_map(|(who, over)| Step::Arrives(who, over)),
            3 => (0..3usize, cause).prop_map(|(who, cause)| Step::Leaves(who, cause)),
            1 => (0..3usize, any::<bool>()).prop_map(|(who, silent)| Step::Silent(who, silent)),
            3 => Just(Step::Tells),
            3 => (1..40u64).prop_map(Step::Waits),
            1 => (2..100u64).prop_map(Step::Pauses),
            1 => Just(Step::Restarts),
        ]
    }

    proptest! {
        /// Whatever happens: once all is quiet what was told is how things are, each
        /// device's last word is what a newcomer hears, and nothing is told twice.
        #[test]
        fn in_the_end_what_was_told_is_how_things_are(steps in proptest::collection::vec(any_step(), 1..80)) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let mut presence = PresenceTable::new(RULES);
            let mut there = [None; 3];
            let mut log: HashMap<DeviceId, DeviceStatus> = HashMap::new();
            let mut seconds = 0;
            let tell = |presence: &mut PresenceTable, log: &mut HashMap<DeviceId, DeviceStatus>, seconds| {
                for status in presence.tell(at(seconds), 10).changes {
                    if let Some(before) = log.get(&status.device) {
                        let same = (before.state, before.flapping) == (status.state, status.flapping);
                        assert!(!same, "{status:?} was told before");
                        assert!(before.since <= status.since, "{status:?} after {before:?}");
                    }
                    log.insert(status.device.clone(), status);
                }
            };
            for step in steps {
                match step {
                    Step::Arrives(who, over) => {
                        let reason = if over { Cause::TakenOver } else { Cause::Connected };
                        let arrival = Arrival { link: "tcp".into(), firmware: None, reason };
                        presence.arrived(&device(NAMES[who]), arrival, at(seconds)).expect("there is room");
                        there[who] = Some(Presence::Online);
                    }
                    Step::Leaves(who, cause) if there[who].is_some() => {
                        leave(&mut presence, NAMES[who], cause, seconds);
                        there[who] = Some(Presence::Offline);
                    }
                    Step::Silent(who, silent) if !matches!(there[who], None | Some(Presence::Offline)) => {
                        presence.silent(&device(NAMES[who]), silent, at(seconds));
                        there[who] = Some(if silent { Presence::Idle } else { Presence::Online });
                    }
                    Step::Tells => tell(&mut presence, &mut log, seconds),
                    Step::Waits(more) => seconds += more,
                    Step::Pauses(more) => {
                        seconds += more;
                        presence.excuse(Duration::from_secs(2 * more), at(seconds).monotonic);
                    }
                    Step::Restarts => {
                        tell(&mut presence, &mut log, seconds);
                        presence = PresenceTable::new(RULES);
                        presence.restore(log.values().cloned().collect(), Vec::new(), at(seconds));
                        for (who, state) in there.iter_mut().enumerate() {
                            *state = log.contains_key(&device(NAMES[who])).then_some(Presence::Offline);
                        }
                    }
                    Step::Leaves(..) | Step::Silent(..) => {}
                }
            }
            while let Some(due) = presence.due() {
                seconds = seconds.max(due.as_secs() + 1);
                tell(&mut presence, &mut log, seconds);
            }
            let mut heard = HashMap::new();
            let mut version = 0;
            while let Some((next, PresenceUpdate::Status(status))) = presence.told_after(version) {
                heard.insert(status.device.clone(), status.state);
                version = next;
            }
            for (name, state) in NAMES.iter().zip(there) {
                let (told, known) = (log.get(&device(name)), presence.status(&device(name)));
                prop_assert_eq!(told.map(|s| (s.since, s.reason)), known.map(|s| (s.since, s.reason)));
                prop_assert_eq!(log.get(&device(name)).map(|status| status.state), state);
                prop_assert_eq!(heard.get(&device(name)).copied(), state);
                prop_assert!(!log.get(&device(name)).is_some_and(|status| status.flapping), "it has calmed down");
            }
        }
    }
}
