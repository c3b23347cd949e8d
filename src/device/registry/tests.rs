use super::connected::CALLS;
use super::*;
use crate::model::{CommandOutcome, Presence, Timestamp};
use std::sync::atomic::{AtomicU64, Ordering};

/// A clock that shows what it is set to, in seconds.
#[derive(Default)]
struct Hand(AtomicU64, AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Now {
        let monotonic = Duration::from_secs(self.0.load(Ordering::Relaxed));
        Now { wall: Timestamp(0).plus(monotonic), trusted: true, monotonic }
    }

    fn put_off(&self) -> Duration {
        Duration::from_secs(self.1.load(Ordering::Relaxed))
    }
}

fn registry(max_subs: usize) -> (Registry, Arc<Hand>) {
    let hand = Arc::new(Hand::default());
    let config = config::Devices { max_sub_devices: max_subs, max_known: 8, ..config::Devices::default() };
    (Registry::new(&config, hand.clone(), Metrics::new()), hand)
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

fn connect(registry: &Registry, name: &str, session: u64) -> Result<Connected, NotAdmitted> {
    introduce(registry, name, session, false)
}

fn introduce(registry: &Registry, name: &str, session: u64, proven: bool) -> Result<Connected, NotAdmitted> {
    let (device, link, alive_within) = (device(name), "tcp".into(), Duration::from_secs(45));
    registry.connect(Introduction { device: &device, session, link: &link, firmware: None, proven, alive_within })
}

fn command(name: &str, id: &str) -> DeviceCommand {
    DeviceCommand { device: device(name), id: id.into(), name: "open".into(), payload: None, expires_in: None }
}

#[tokio::test]
async fn a_device_that_connects_again_takes_the_older_connections_place() {
    let (registry, _) = registry(0);
    let older = connect(&registry, "pump", 1).expect("it is let in");
    let newer = connect(&registry, "pump", 1).expect("it is let in");
    older.called().await;
    assert_eq!((older.take(true), newer.take(true)), (Some(Call::Replaced), None));
    assert_eq!(registry.0.metrics.devices_connected.get(), 1);
    drop(older);
    assert!(registry.is_connected(&device("pump")));
    assert_eq!(
        registry.status(&device("pump")).map(|s| (s.state, s.reason)),
        Some((Presence::Online, Cause::TakenOver))
    );
    drop(newer);
    assert_eq!(registry.0.metrics.devices_connected.get(), 0);
    assert_eq!(
        registry.status(&device("pump")).map(|s| (s.state, s.reason)),
        Some((Presence::Offline, Cause::LinkLost))
    );
}

#[test]
fn who_proved_nothing_does_not_take_the_place_of_a_device_that_did() {
    let (registry, hand) = registry(0);
    let _pump = introduce(&registry, "pump", 1, true).expect("it is let in");
    for session in [1, 2] {
        assert_eq!(connect(&registry, "pump", session).err(), Some(NotAdmitted::Unproven));
    }
    let _again = introduce(&registry, "pump", 2, true).expect("it is the device");
    hand.0.store(46, Ordering::Relaxed);
    let _unproven = connect(&registry, "pump", 3).expect("the other one is silent");
    assert!(introduce(&registry, "pump", 4, true).is_ok(), "nobody keeps it out");
}

#[test]
fn a_device_that_could_not_be_heard_for_a_pause_is_alive() {
    let (registry, hand) = registry(0);
    let _pump = introduce(&registry, "pump", 1, true).expect("it is let in");
    hand.0.store(130, Ordering::Relaxed);
    hand.1.store(100, Ordering::Relaxed);
    assert_eq!(connect(&registry, "pump", 2).err(), Some(NotAdmitted::Unproven));
    hand.0.store(170, Ordering::Relaxed);
    assert!(connect(&registry, "pump", 2).is_ok(), "it is silent for longer than it may be");
}

#[test]
fn what_was_told_is_passed_on_once_it_is_on_disk() {
    let (registry, _) = registry(0);
    let pump = connect(&registry, "pump", 1).expect("it is let in");
    assert_eq!(registry.tell(10).changes.len(), 1);
    let written = registry.version();
    assert_eq!(registry.told_after(0), None);
    registry.publish(written);
    drop(pump);
    assert!(matches!(registry.told_after(0), Some((1, PresenceUpdate::Status(s))) if s.state == Presence::Online));
}

#[test]
fn a_second_device_of_the_same_name_is_kept_out_while_the_first_is_alive() {
    let (registry, hand) = registry(0);
    let mut inside = connect(&registry, "pump", 1).expect("it is let in");
    let mut refused = false;
    for i in 0..10u64 {
        match connect(&registry, "pump", 2 - i % 2) {
            Ok(newer) => inside = newer,
            Err(why) => {
                assert_eq!(why, NotAdmitted::DuplicateId);
                refused = true;
                break;
            }
        }
    }
    assert!(refused, "both are let in for ever");
    assert_eq!(registry.0.metrics.devices_rivals.get(), 1);
    hand.0.store(46, Ordering::Relaxed);
    assert!(connect(&registry, "pump", 99).is_ok(), "nothing was heard of the first for long");
    drop(inside);
}

#[test]
fn a_command_goes_to_the_session_that_it_is_meant_for_or_nowhere() {
    let (registry, _) = registry(2);
    let pump = device("pump");
    assert_eq!(registry.connection(&pump), None);
    let first = connect(&registry, "pump", 1).expect("it is let in");
    let number = registry.connection(&pump).expect("it is there");
    assert!(registry.command(number, command("pump", "a")));
    assert!(matches!(first.take(true), Some(Call::Command(c)) if c.id == "a"));
    let second = connect(&registry, "pump", 1).expect("it is let in");
    assert!(!registry.command(number, command("pump", "b")), "that session is over");
    assert_ne!(registry.connection(&pump), Some(number));
    assert_eq!(second.take(true), None);
}

#[test]
fn a_sub_device_is_reached_through_its_hub_unless_that_says_otherwise() {
    let (registry, _) = registry(2);
    let hub = connect(&registry, "hub", 1).expect("it is let in");
    let door = device("hub/door");
    let number = registry.connection(&door).expect("a hub may know it");
    assert!(registry.command(number, command("hub/door", "a")));
    let said = hub.take(true);
    assert!(matches!(said, Some(Call::Command(c)) if c.device == door && c.id == "a"));
    hub.sub_device(&door, Some(false)).expect("there is room");
    assert_eq!(registry.connection(&door), None);
    hub.sub_device(&door, None).expect("it was heard");
    assert!(registry.connection(&door).is_some());
    assert_eq!(registry.status(&door).map(|s| (s.state, s.reason)), Some((Presence::Online, Cause::Hub)));
    drop(hub);
    assert_eq!(registry.status(&door).map(|s| (s.state, s.reason)), Some((Presence::Offline, Cause::HubOffline)));
}

#[test]
fn a_gateway_that_stops_tells_nothing_of_devices_behind_a_hub() {
    let (registry, hand) = registry(8);
    let mut hub = connect(&registry, "hub", 1).expect("it is let in");
    let door = device("hub/door");
    hub.sub_device(&door, Some(true)).expect("there is room");
    assert_eq!(registry.tell(10).changes.len(), 2);
    hub.because(Cause::GatewayStopping);
    drop(hub);
    hand.0.store(3600, Ordering::Relaxed);
    assert_eq!(registry.tell(10), PresenceUpdates::default());
    assert_eq!(registry.status(&door).map(|s| s.reason), Some(Cause::GatewayStopping));
}

#[test]
fn a_hub_has_so_many_sub_devices_and_no_more() {
    let (registry, _) = registry(2);
    let hub = connect(&registry, "hub", 1).expect("it is let in");
    for name in ["hub/a", "hub/b", "hub/a"] {
        assert_eq!(hub.sub_device(&device(name), None), Ok(()));
    }
    assert_eq!(hub.sub_device(&device("hub/c"), None), Err(NotAdmitted::TooManySubDevices));
}

#[test]
fn calls_to_a_session_are_bounded_and_a_takeover_is_never_lost() {
    let (registry, _) = registry(0);
    let pump = device("pump");
    let older = connect(&registry, "pump", 1).expect("it is let in");
    let number = registry.connection(&pump).expect("it is there");
    let taken = (0..2 * CALLS).filter(|i| registry.command(number, command("pump", &i.to_string()))).count();
    assert_eq!(taken, CALLS);
    assert_eq!(older.take(false), None, "there is no room for more");
    let _newer = connect(&registry, "pump", 1).expect("it is let in");
    assert_eq!(older.take(false), Some(Call::Replaced));
}

/// A device may take nothing for a while; meanwhile the command is repeated.
#[test]
fn a_command_that_waited_for_room_until_it_was_too_late_is_not_handed_over() {
    let (registry, hand) = registry(0);
    let pump = connect(&registry, "pump", 1).expect("it is let in");
    let number = registry.connection(&device("pump")).expect("it is there");
    let give = |id: &str, seconds: u64| {
        let expires_in = Some(Duration::from_secs(seconds));
        registry.command(number, DeviceCommand { expires_in, ..command("pump", id) })
    };
    assert!(give("late", 30) && give("late", 30) && give("timely", 60) && give("timely", 60));
    assert_eq!(pump.take(false), None, "there is no room");
    hand.0.store(40, Ordering::Relaxed);
    let said = pump.take(true);
    let Some(Call::Command(said)) = said else { panic!("{said:?}") };
    assert_eq!((said.id.as_str(), said.expires_in), ("timely", Some(Duration::from_secs(20))));
    assert_eq!(pump.take(true), None, "once is enough");
}

#[test]
fn answers_arrive_with_the_session_they_came_in() {
    let (registry, _) = registry(0);
    let mut answers = registry.answers().expect("nobody took them yet");
    let pump = connect(&registry, "pump", 1).expect("it is let in");
    pump.answered(CommandResult { id: "a".into(), outcome: CommandOutcome::Done, payload: None });
    let answer = answers.try_recv().expect("one came");
    assert_eq!((answer.from, answer.result.id), (device("pump"), "a".to_owned()));
    assert!(registry.answers().is_none());
}

#[test]
fn devices_are_listed_by_name_page_by_page() {
    let (registry, _) = registry(0);
    let all: Vec<_> = ["d", "a", "c", "b"].map(|name| connect(&registry, name, 1).expect("it is let in")).into();
    let page = |after: Option<&str>| -> Vec<String> {
        registry.statuses(after.map(device).as_ref(), 3).iter().map(|s| s.device.to_string()).collect()
    };
    assert_eq!((page(None), page(Some("c"))), (vec!["a".into(), "b".into(), "c".into()], vec!["d".into()]));
    drop(all);
}
