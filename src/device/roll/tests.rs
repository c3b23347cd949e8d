use super::*;

const RULES: Rules = Rules {
    offline_delay: Duration::from_secs(5),
    flap_damping: Duration::from_secs(30),
    return_within: Duration::from_secs(90),
    max_known: 3,
};

fn at(seconds: u64) -> Now {
    Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::from_secs(seconds) }
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

fn arrive(roll: &mut Roll, name: &str, seconds: u64) {
    let arrival = Arrival { link: "tcp".into(), firmware: None, reason: Cause::Connected };
    roll.arrived(&device(name), arrival, at(seconds).monotonic).expect("there is room");
}

fn leave(roll: &mut Roll, name: &str, cause: Cause, seconds: u64) {
    roll.left(&device(name), cause, Some(at(seconds).monotonic), at(seconds).monotonic);
}

/// What is told at that time, as device, state and reason.
fn told(roll: &mut Roll, seconds: u64) -> Vec<(String, Presence, Cause)> {
    let told = roll.tell(at(seconds), 100);
    told.changes.into_iter().map(|s| (s.device.to_string(), s.state, s.reason)).collect()
}

#[test]
fn arrivals_are_told_at_once_and_departures_once_they_lasted() {
    let mut roll = Roll::new(RULES);
    arrive(&mut roll, "pump", 1);
    assert_eq!(told(&mut roll, 1), [("pump".into(), Presence::Online, Cause::Connected)]);
    leave(&mut roll, "pump", Cause::LinkLost, 10);
    assert_eq!((told(&mut roll, 14), roll.due()), (vec![], Some(Duration::from_secs(15))));
    assert_eq!(told(&mut roll, 15), [("pump".into(), Presence::Offline, Cause::LinkLost)]);
    assert_eq!(roll.due(), None);
}

#[test]
fn a_goodbye_is_told_at_once() {
    let mut roll = Roll::new(RULES);
    arrive(&mut roll, "pump", 1);
    told(&mut roll, 1);
    leave(&mut roll, "pump", Cause::Goodbye, 2);
    assert_eq!(told(&mut roll, 2), [("pump".into(), Presence::Offline, Cause::Goodbye)]);
}

#[test]
fn a_device_that_comes_back_soon_was_never_gone() {
    let mut roll = Roll::new(RULES);
    arrive(&mut roll, "pump", 1);
    told(&mut roll, 1);
    leave(&mut roll, "pump", Cause::Timeout, 10);
    arrive(&mut roll, "pump", 12);
    assert_eq!((told(&mut roll, 100), roll.due()), (vec![], None));
    assert_eq!(roll.status(&device("pump"), at(100)).map(|status| status.flaps), Some(1));
}

#[test]
fn idle_and_heard_again_are_told() {
    let mut roll = Roll::new(RULES);
    arrive(&mut roll, "pump", 1);
    told(&mut roll, 1);
    roll.silent(&device("pump"), true, Duration::from_secs(46));
    roll.silent(&device("pump"), false, Duration::from_secs(47));
    assert_eq!(told(&mut roll, 60), [], "it answered the reminder");
    roll.silent(&device("pump"), true, Duration::from_secs(100));
    assert_eq!(told(&mut roll, 105), [("pump".into(), Presence::Idle, Cause::Silent)]);
    roll.silent(&device("pump"), false, Duration::from_secs(110));
    assert_eq!(told(&mut roll, 110), [("pump".into(), Presence::Online, Cause::Heard)]);
}

#[test]
fn a_device_that_flaps_is_told_so_once_and_then_when_it_has_calmed_down() {
    let mut roll = Roll::new(RULES);
    let mut all = Vec::new();
    for i in 0..60 {
        arrive(&mut roll, "pump", 10 * i);
        all.extend(roll.tell(at(10 * i), 10).changes);
        leave(&mut roll, "pump", Cause::LinkLost, 10 * i + 2);
        all.extend(roll.tell(at(10 * i + 8), 10).changes);
    }
    assert!(all.len() < 12, "600 s of flapping are told in a few messages, not {}", all.len());
    assert!(all.last().expect("some").flapping);
    arrive(&mut roll, "pump", 601);
    let calm = roll.tell(at(631), 10).changes;
    assert!(matches!(&calm[..], [s] if !s.flapping && s.state == Presence::Online && s.flaps >= 60), "{calm:?}");
    assert_eq!(roll.tell(at(10_000), 10), Tellings::default());
}

#[test]
fn after_a_restart_those_who_come_back_in_time_were_never_gone() {
    let mut before = Roll::new(RULES);
    for name in ["a", "b"] {
        arrive(&mut before, name, 1);
    }
    let statuses = before.tell(at(1), 10).changes;
    for name in ["a", "b"] {
        leave(&mut before, name, Cause::GatewayStopping, 50);
    }
    assert_eq!((before.tell(at(500), 10), before.due()), (Tellings::default(), None));

    let mut roll = Roll::new(RULES);
    roll.restore(statuses, Duration::from_secs(7));
    assert_eq!(roll.status(&device("a"), at(8)).map(|status| status.reason), Some(Cause::GatewayRestarted));
    arrive(&mut roll, "a", 20);
    assert_eq!(told(&mut roll, 96), []);
    assert_eq!(told(&mut roll, 97), [("b".into(), Presence::Offline, Cause::GatewayRestarted)]);
}

#[test]
fn what_was_told_last_can_be_told_to_everybody_who_was_not_there() {
    let mut roll = Roll::new(RULES);
    for name in ["a", "b"] {
        arrive(&mut roll, name, 1);
    }
    roll.tell(at(1), 10);
    leave(&mut roll, "a", Cause::Goodbye, 2);
    roll.tell(at(2), 10);
    leave(&mut roll, "b", Cause::LinkLost, 3);

    let (mut version, mut all) = (0, Vec::new());
    while let Some((next, Told::Status(status))) = roll.told_after(version, at(4)) {
        all.push((status.device.to_string(), status.state));
        version = next;
    }
    let expected = [("b".to_owned(), Presence::Online), ("a".to_owned(), Presence::Offline)];
    assert_eq!(all, expected, "b's departure is not told yet");
    assert_eq!(roll.told_after(version, at(4)), None);
}

#[test]
fn a_full_registry_forgets_who_is_gone_for_longest_and_nobody_who_is_there() {
    let mut roll = Roll::new(RULES);
    for (name, time) in [("a", 1), ("b", 2), ("c", 3)] {
        arrive(&mut roll, name, time);
    }
    roll.tell(at(3), 10);
    let arrival = || Arrival { link: "tcp".into(), firmware: None, reason: Cause::Connected };
    assert_eq!(roll.arrived(&device("d"), arrival(), Duration::from_secs(4)), Err(RollFull));
    leave(&mut roll, "c", Cause::Goodbye, 5);
    leave(&mut roll, "b", Cause::Goodbye, 6);
    assert_eq!(roll.arrived(&device("d"), arrival(), Duration::from_secs(7)), Ok(()));
    assert_eq!((roll.len(), roll.status(&device("c"), at(7))), (3, None));
    let all: Vec<_> = std::iter::successors(roll.told_after(0, at(7)), |(v, _)| roll.told_after(*v, at(7))).collect();
    assert!(all.iter().any(|(_, told)| *told == Told::Forgotten(device("c"))), "{all:?}");
    assert_eq!(roll.tell(at(4), 10).forgotten, [device("c")]);
}

#[test]
fn a_time_before_the_clock_was_set_is_right_once_it_is() {
    let mut roll = Roll::new(RULES);
    arrive(&mut roll, "pump", 100);
    let now = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::from_secs(160) };
    let status = roll.status(&device("pump"), now).expect("it is known");
    assert_eq!(status.since, Timestamp(1_799_999_940_000_000));
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
            1 => Just(Step::Restarts),
        ]
    }

    proptest! {
        /// Whatever happens: once all is quiet what was told is how things are, each
        /// device's last word is what a newcomer hears, and nothing is told twice.
        #[test]
        fn in_the_end_what_was_told_is_how_things_are(steps in proptest::collection::vec(any_step(), 1..80)) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let mut roll = Roll::new(RULES);
            let mut there = [None; 3];
            let mut log: HashMap<DeviceId, DeviceStatus> = HashMap::new();
            let mut seconds = 0;
            let tell = |roll: &mut Roll, log: &mut HashMap<DeviceId, DeviceStatus>, seconds| {
                for status in roll.tell(at(seconds), 10).changes {
                    if let Some(before) = log.get(&status.device) {
                        let same = (before.state, before.flapping) == (status.state, status.flapping);
                        assert!(!same, "{status:?} was told before");
                    }
                    log.insert(status.device.clone(), status);
                }
            };
            for step in steps {
                match step {
                    Step::Arrives(who, over) => {
                        let reason = if over { Cause::TakenOver } else { Cause::Connected };
                        let arrival = Arrival { link: "tcp".into(), firmware: None, reason };
                        roll.arrived(&device(NAMES[who]), arrival, at(seconds).monotonic).expect("there is room");
                        there[who] = Some(Presence::Online);
                    }
                    Step::Leaves(who, cause) if there[who].is_some() => {
                        leave(&mut roll, NAMES[who], cause, seconds);
                        there[who] = Some(Presence::Offline);
                    }
                    Step::Silent(who, silent) if !matches!(there[who], None | Some(Presence::Offline)) => {
                        roll.silent(&device(NAMES[who]), silent, at(seconds).monotonic);
                        there[who] = Some(if silent { Presence::Idle } else { Presence::Online });
                    }
                    Step::Tells => tell(&mut roll, &mut log, seconds),
                    Step::Waits(more) => seconds += more,
                    Step::Restarts => {
                        tell(&mut roll, &mut log, seconds);
                        roll = Roll::new(RULES);
                        roll.restore(log.values().cloned().collect(), at(seconds).monotonic);
                        for (who, state) in there.iter_mut().enumerate() {
                            *state = log.contains_key(&device(NAMES[who])).then_some(Presence::Offline);
                        }
                    }
                    Step::Leaves(..) | Step::Silent(..) => {}
                }
            }
            while let Some(due) = roll.due() {
                seconds = seconds.max(due.as_secs() + 1);
                tell(&mut roll, &mut log, seconds);
            }
            let mut heard = HashMap::new();
            let mut version = 0;
            while let Some((next, Told::Status(status))) = roll.told_after(version, at(seconds)) {
                heard.insert(status.device.clone(), status.state);
                version = next;
            }
            for (name, state) in NAMES.iter().zip(there) {
                prop_assert_eq!(log.get(&device(name)).map(|status| status.state), state);
                prop_assert_eq!(heard.get(&device(name)).copied(), state);
                prop_assert!(!log.get(&device(name)).is_some_and(|status| status.flapping), "it has calmed down");
            }
        }
    }
}
