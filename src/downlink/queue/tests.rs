use super::*;
use crate::downlink::deadline::Expiry;
use crate::model::{CommandId, CommandName, CommandOutcome, DeviceId};
use crate::store::Commands;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashSet};

const WALL: i64 = 1_800_000_000_000_000;
const RETRY: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);

fn rules() -> Rules {
    Rules {
        devices: Vec::new(),
        max_queued: 4,
        max_live: 8,
        max_bytes: 100_000,
        max_result: 100,
        max_expiry: Duration::from_secs(3600),
        retry_after: RETRY,
        answer_within: ANSWER,
        remember: 1000,
    }
}

fn device(name: &str) -> Target {
    Target::Device(DeviceId::new(name).expect("a valid name"))
}

fn request(target: Target, id: &str, expiry: Expiry) -> CommandRequest {
    let (id, name) = (CommandId::new(id).expect("a valid id"), CommandName::new("open").expect("a valid name"));
    CommandRequest { target, id, name, payload: Some("1".to_owned()), expiry }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn answer(id: &str, state: CommandOutcome) -> CommandResult {
    CommandResult { id: id.to_owned(), outcome: state, payload: None }
}

/// What is on disk.
#[derive(Default)]
struct Disk {
    rows: BTreeMap<u64, Command>,
    events: Vec<serde_json::Value>,
}

/// A gateway around the queue, with a disk, devices and a clock.
struct World {
    rules: Rules,
    queue: Queue,
    disk: Disk,
    /// Changes that wait for a commit, and those on disk in this run.
    unwritten: Vec<Change>,
    written: u64,
    connections: HashMap<Target, u64>,
    boot: BootId,
    now: Now,
    /// Commands handed over: target, id, and time.
    sent: Vec<(Target, String, Duration)>,
    /// The same of all runs: target and id.
    ever_sent: HashSet<(Target, String)>,
    ended: Vec<(CommandKey, CommandState)>,
}

impl World {
    fn new() -> World {
        let boot = BootId([1; 16]);
        let now = Now { wall: Timestamp(WALL), trusted: true, monotonic: seconds(100) };
        World {
            rules: rules(),
            queue: Queue::new(rules(), boot, Commands::default(), now),
            disk: Disk::default(),
            unwritten: Vec::new(),
            written: 0,
            connections: HashMap::new(),
            boot,
            now,
            sent: Vec::new(),
            ever_sent: HashSet::new(),
            ended: Vec::new(),
        }
    }

    /// Calls the queue, then carries out its actions.
    fn act<T>(&mut self, call: impl FnOnce(&mut Queue, Reach<'_>, Now) -> T) -> T {
        let connections = &self.connections;
        let result = call(&mut self.queue, &|target| connections.get(target).copied(), self.now);
        self.unwritten.extend(self.queue.take_changes());
        for action in self.queue.take_actions() {
            match action {
                Action::Ended { key, ending, .. } => self.ended.push((key, ending.state)),
                Action::Send(dispatch) => {
                    let worked = self.connections.get(&dispatch.target) == Some(&dispatch.connection);
                    assert!(worked, "nobody is there");
                    let row = self.disk.rows.get(&dispatch.place).expect("it is on disk before it is sent");
                    assert!(row.sent.is_some() && row.ended.is_none(), "that it is sent is on disk before");
                    let before = self.disk.rows.values().filter(|other| other.target == row.target);
                    let others = before.filter(|other| other.place < row.place && other.ended.is_none());
                    assert_eq!(others.count(), 0, "one before it has not ended");
                    self.sent.push((dispatch.target.clone(), dispatch.id.clone(), self.now.monotonic));
                    self.ever_sent.insert((dispatch.target, dispatch.id));
                    self.queue.handed(dispatch.place, true, self.now);
                }
            }
        }
        result
    }

    fn receive(&mut self, request: CommandRequest) -> Receipt {
        self.act(|queue, reach, now| queue.receive(request, Source::Mqtt, reach, now))
    }

    fn commit(&mut self) {
        for change in std::mem::take(&mut self.unwritten) {
            self.written += 1;
            if let Some(command) = change.command {
                let before = self.disk.rows.insert(command.place, command);
                assert!(before.is_none_or(|before| before.ended.is_none()), "an end is final");
            }
            self.disk.events.extend(change.event.map(|event| serde_json::from_str(&event).expect("JSON")));
        }
        let written = self.written;
        self.act(|queue, reach, now| queue.written(written, reach, now));
    }

    fn look(&mut self) {
        self.act(|queue, reach, now| queue.advance_all(reach, now));
    }

    fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall = self.now.wall.plus(time);
        self.look();
    }

    fn connect(&mut self, target: &Target) {
        let next = self.connections.get(target).map_or(1, |number| number + 1);
        self.connections.insert(target.clone(), next);
        self.look();
    }

    /// SIGKILL and a restart; changes that were not on disk are lost.
    fn crash(&mut self) {
        self.unwritten.clear();
        self.written = 0;
        let (ended, live): (Vec<_>, Vec<_>) =
            self.disk.rows.values().cloned().partition(|command| command.ended.is_some());
        let left = Commands {
            next_place: self.disk.rows.keys().last().map_or(1, |place| place + 1),
            ended: ended.iter().map(|command| (command.key(), command.state())).collect(),
            live,
        };
        self.queue = Queue::new(self.rules.clone(), self.boot, left, self.now);
        self.look();
    }

    /// The machine boots again.
    fn reboot(&mut self, trusted: bool, off: Duration) {
        self.boot.0[0] += 1;
        self.now = Now { wall: self.now.wall.plus(off), trusted, monotonic: seconds(5) };
        self.crash();
    }

    /// Target and id of what was handed over.
    fn sent(&self) -> Vec<String> {
        self.sent.iter().map(|(target, id, _)| format!("{target} {id}")).collect()
    }

    fn state(&self, target: &Target, id: &str) -> Option<CommandState> {
        self.queue.state(&request(target.clone(), id, Expiry::In(ANSWER)).key())
    }
}

#[test]
fn a_command_is_sent_once_it_is_on_disk_and_ends_by_its_answer() {
    let (mut world, pump) = (World::new(), device("pump"));
    world.connect(&pump);
    assert_eq!(world.receive(request(pump.clone(), "a", Expiry::In(seconds(60)))), Receipt::Taken(1));
    assert!(world.sent().is_empty(), "it is not on disk");
    world.commit();
    assert_eq!(world.sent(), ["pump a"]);
    assert!(world.act(|queue, reach, now| queue.answered(&pump, answer("a", CommandOutcome::Done), reach, now)));
    assert!(world.ended.is_empty(), "that is not on disk");
    world.commit();
    assert_eq!(world.state(&pump, "a"), Some(CommandState::Done));
    assert_eq!((world.disk.events.len(), world.queue.len()), (1, 0));
    assert_eq!(world.disk.events[0]["state"], "done");
    let again = world.receive(request(pump.clone(), "a", Expiry::In(seconds(60))));
    assert_eq!(again, Receipt::Known(CommandState::Done, 2), "it changes nothing");
    assert!(!world.act(|queue, reach, now| queue.answered(&pump, answer("a", CommandOutcome::Failed), reach, now)));
}

#[test]
fn a_device_has_one_command_at_a_time_in_order() {
    let (mut world, pump) = (World::new(), device("pump"));
    world.connect(&pump);
    for id in ["a", "b"] {
        world.receive(request(pump.clone(), id, Expiry::In(seconds(60))));
    }
    world.commit();
    assert_eq!(world.sent(), ["pump a"]);
    assert!(!world.act(|queue, reach, now| queue.answered(&pump, answer("b", CommandOutcome::Done), reach, now)));
    world.act(|queue, reach, now| queue.answered(&pump, answer("a", CommandOutcome::Failed), reach, now));
    world.commit();
    assert_eq!(world.sent(), ["pump a", "pump b"], "one commit for the end of one and the turn of the other");
}

#[test]
fn a_command_is_repeated_until_it_is_answered_and_when_the_device_returns() {
    let (mut world, pump) = (World::new(), device("pump"));
    world.connect(&pump);
    world.receive(request(pump.clone(), "a", Expiry::In(seconds(25))));
    world.commit();
    world.pass(RETRY - seconds(1));
    assert_eq!(world.sent.len(), 1);
    world.pass(seconds(1));
    assert_eq!(world.sent.len(), 2);
    world.connect(&pump);
    assert_eq!(world.sent.len(), 3, "it returned");
    world.pass(seconds(16));
    assert_eq!(world.sent.len(), 3, "its time is over");
    assert_eq!(world.state(&pump, "a"), Some(CommandState::Sent), "the device may still answer");
    world.pass(seconds(5));
    world.commit();
    assert_eq!(world.state(&pump, "a"), Some(CommandState::Unreachable));
}

#[test]
fn an_absent_device_gets_what_is_still_wanted_when_it_comes() {
    let (mut world, pump) = (World::new(), device("pump"));
    world.receive(request(pump.clone(), "short", Expiry::In(seconds(10))));
    world.receive(request(pump.clone(), "long", Expiry::In(seconds(100))));
    world.commit();
    world.pass(seconds(10));
    world.commit();
    world.connect(&pump);
    assert!(world.sent().is_empty(), "that it is sent is not on disk");
    world.commit();
    assert_eq!(world.sent(), ["pump long"]);
    assert_eq!(world.state(&pump, "short"), Some(CommandState::Expired));
}

#[test]
fn a_commit_that_takes_too_long_makes_no_late_command() {
    let (mut world, pump) = (World::new(), device("pump"));
    world.connect(&pump);
    world.receive(request(pump.clone(), "a", Expiry::In(seconds(5))));
    world.pass(seconds(6));
    world.commit();
    world.look();
    world.commit();
    assert!(world.sent().is_empty());
    assert_eq!(world.state(&pump, "a"), Some(CommandState::Expired), "it was never handed over");
    // After a crash that is unknown.
    world.receive(request(pump.clone(), "b", Expiry::In(seconds(5))));
    world.now.monotonic += seconds(6);
    world.commit();
    world.crash();
    world.pass(ANSWER);
    world.commit();
    assert_eq!(world.state(&pump, "b"), Some(CommandState::Unreachable));
}

#[test]
fn bounds_refuse_and_a_refusal_on_record_is_final() {
    let mut world = World::new();
    world.rules.devices = vec!["pump*".to_owned()];
    world.crash();
    let wanted = Expiry::In(seconds(60));
    for id in ["a", "b", "c", "d"] {
        assert!(matches!(world.receive(request(device("pump"), id, wanted)), Receipt::Taken(_)));
    }
    let refused = |world: &mut World, request| match world.receive(request) {
        Receipt::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut world, request(device("pump"), "e", wanted)), Refusal::QueueFull);
    assert_eq!(refused(&mut world, request(device("fan"), "e", wanted)), Refusal::NotAllowed);
    assert_eq!(refused(&mut world, request(device("pump2"), "e", Expiry::In(seconds(3601)))), Refusal::TooLong);
    for id in ["a", "b", "c", "d"] {
        assert!(matches!(world.receive(request(device("pump2"), id, wanted)), Receipt::Taken(_)));
    }
    assert_eq!(refused(&mut world, request(device("pump3"), "e", wanted)), Refusal::Busy);

    let full = request(device("pump"), "e", wanted);
    world.act(|queue, _, now| queue.reject(full.clone(), Source::Mqtt, "full", now));
    world.act(|queue, _, now| queue.reject(full.clone(), Source::Mqtt, "full", now));
    world.commit();
    assert_eq!(world.disk.events.len(), 1, "it is told once");
    assert!(matches!(world.receive(full), Receipt::Known(CommandState::Rejected, _)));

    world.act(|queue, _, now| queue.disable(now));
    world.commit();
    assert_eq!((world.queue.len(), world.disk.events.len()), (0, 9));
    assert_eq!(refused(&mut world, request(device("pump"), "f", wanted)), Refusal::Disabled);
}

#[test]
fn a_hub_answers_for_those_behind_it() {
    let (mut world, door) = (World::new(), device("hub/door"));
    world.connect(&door);
    world.receive(request(door.clone(), "a", Expiry::In(seconds(60))));
    world.commit();
    for stranger in ["hub2", "hub/window"] {
        let from = device(stranger);
        assert!(!world.act(|queue, reach, now| queue.answered(&from, answer("a", CommandOutcome::Done), reach, now)));
    }
    let hub = device("hub");
    assert!(world.act(|queue, reach, now| queue.answered(&hub, answer("a", CommandOutcome::Done), reach, now)));
    world.commit();
    assert_eq!(world.disk.events[0]["device"], "hub/door");
}

#[test]
fn after_a_boot_without_the_time_a_command_waits_for_it() {
    let (mut world, pump) = (World::new(), device("pump"));
    world.receive(request(pump.clone(), "a", Expiry::In(seconds(60))));
    world.receive(request(pump.clone(), "b", Expiry::In(seconds(600))));
    world.commit();
    world.reboot(false, seconds(100));
    world.connect(&pump);
    world.commit();
    assert!(world.sent().is_empty(), "nobody knows whether they are still wanted");
    assert_eq!(world.queue.due(world.now), Some(world.now.monotonic + CLOCK_EVERY));
    world.now.trusted = true;
    world.pass(seconds(1));
    world.commit();
    world.commit();
    assert_eq!(world.state(&pump, "a"), Some(CommandState::Expired));
    assert_eq!(world.sent(), ["pump b"]);

    // The time stays unknown for as long as the command is valid.
    world.receive(request(pump.clone(), "c", Expiry::In(seconds(60))));
    world.commit();
    world.reboot(false, seconds(1));
    world.pass(seconds(60));
    world.commit();
    assert_eq!(world.state(&pump, "c"), Some(CommandState::Expired));
}

#[test]
fn what_the_gateway_itself_may_have_done_before_a_crash_is_not_done_again() {
    let mut world = World::new();
    world.connect(&Target::Gateway);
    for id in ["a", "b"] {
        world.receive(request(Target::Gateway, id, Expiry::In(seconds(600))));
    }
    world.commit();
    assert_eq!(world.sent, [(Target::Gateway, "a".to_owned(), world.now.monotonic)]);
    // This command ended the gateway.
    world.crash();
    world.commit();
    world.commit();
    assert_eq!(world.state(&Target::Gateway, "a"), Some(CommandState::Unreachable));
    let told = &world.disk.events[0];
    assert!(told["payload"]["error"].as_str().is_some_and(|why| why.contains("with another id")), "{told}");
    let sent: Vec<&str> = world.sent.iter().map(|(_, id, _)| id.as_str()).collect();
    assert_eq!(sent, ["a", "b"], "the next one was not begun, and its turn has come");
    world.crash();
    world.pass(RETRY);
    assert_eq!(world.sent.len(), 2);
    assert!(world.state(&Target::Gateway, "b").is_some());
}

/// A step of a random run.
#[derive(Debug, Clone)]
enum Step {
    Receive { device: u8, id: u8, lifetime: u64, at: bool },
    Connect(u8),
    Disconnect(u8),
    Answer { device: u8, state: u8 },
    Pass(u64),
    Commit,
    Crash,
    Reboot { trusted: bool, off: u64 },
    Trust,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4u8, 0..30u8, 0..120u64, any::<bool>()).prop_map(|(device, id, lifetime, at)| Step::Receive { device, id, lifetime, at }),
        3 => (0..4u8).prop_map(Step::Connect),
        1 => (0..4u8).prop_map(Step::Disconnect),
        4 => (0..4u8, 0..3u8).prop_map(|(device, state)| Step::Answer { device, state }),
        3 => (0..40u64).prop_map(Step::Pass),
        8 => Just(Step::Commit),
        1 => Just(Step::Crash),
        1 => (any::<bool>(), 0..100u64).prop_map(|(trusted, off)| Step::Reboot { trusted, off }),
        1 => Just(Step::Trust),
    ];
    proptest::collection::vec(step, 1..120)
}

const DEVICES: [&str; 4] = ["pump", "hub", "hub/door", "hub/window"];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    /// In whatever order steps and crashes happen: each accepted command ends once, none is
    /// first sent after its end, and one that is reported as expired was never sent.
    /// [`World::act`] asserts the order.
    #[test]
    fn every_command_ends_exactly_once(steps in steps()) {
        let mut world = World::new();
        // Of each command on disk: the latest time at which it expires, by a correct wall
        // clock.
        let mut wanted: HashMap<(Target, String), Timestamp> = HashMap::new();
        for step in steps {
            let sent = world.sent.len();
            match step {
                Step::Receive { device: number, id, lifetime, at } => {
                    let (target, id) = (device(DEVICES[usize::from(number)]), format!("c{id}"));
                    let until = world.now.wall.plus(seconds(lifetime));
                    let expiry = if at { Expiry::At(until) } else { Expiry::In(seconds(lifetime)) };
                    if let Receipt::Taken(_) = world.receive(request(target.clone(), &id, expiry)) {
                        wanted.insert((target, id), until);
                    }
                }
                Step::Connect(number) => world.connect(&device(DEVICES[usize::from(number)])),
                Step::Disconnect(number) => {
                    world.connections.remove(&device(DEVICES[usize::from(number)]));
                    world.look();
                }
                Step::Answer { device: number, state } => {
                    let target = device(DEVICES[usize::from(number)]);
                    let last = world.sent.iter().rev().find(|(to, ..)| *to == target).map(|(_, id, _)| id.clone());
                    let state = [CommandOutcome::Done, CommandOutcome::Failed, CommandOutcome::Rejected][usize::from(state)];
                    if let Some(id) = last {
                        let from = target.device().map(|device| Target::Device(device.hub())).expect("a device");
                        world.act(|queue, reach, now| queue.answered(&from, answer(&id, state), reach, now));
                    }
                }
                Step::Pass(time) => world.pass(seconds(time)),
                Step::Commit => world.commit(),
                Step::Crash => world.crash(),
                Step::Reboot { trusted, off } => world.reboot(trusted, seconds(off)),
                Step::Trust => world.now.trusted = true,
            }
            for (target, id, _) in world.sent.iter().skip(sent) {
                let until = wanted.get(&(target.clone(), id.clone())).expect("it was taken over");
                prop_assert!(world.now.wall < *until, "{target} {id} was sent too late");
            }
            let lanes: BTreeSet<&Target> = world.queue.commands_of.keys().collect();
            prop_assert!(lanes.iter().all(|target| !world.queue.commands_of[*target].is_empty()));
        }
        world.now.trusted = true;
        for _ in 0..10 {
            world.pass(seconds(3600));
            world.commit();
        }
        prop_assert!(world.queue.is_empty() && world.queue.keys.is_empty() && world.queue.commands_of.is_empty());
        prop_assert_eq!(world.queue.bytes, 0);
        let mut told = HashMap::new();
        for event in &world.disk.events {
            let key = (device(event["device"].as_str().expect("a device")), event["id"].as_str().expect("an id").to_owned());
            prop_assert!(told.insert(key.clone(), event["state"].clone()).is_none(), "{key:?} ended twice");
            if event["state"] == "expired" {
                prop_assert!(!world.ever_sent.contains(&key), "{key:?} was sent, and told to have expired");
            }
        }
        for command in world.disk.rows.values() {
            let key = (command.target.clone(), command.id.to_string());
            prop_assert_eq!(told.get(&key), Some(&serde_json::json!(command.state())));
        }
    }
}
