use super::*;
use crate::clock::SystemClock;
use crate::store::{Opened, Record, Stepper};
use std::path::Path;
use tokio::task::yield_now;

struct Idle;

impl GatewayCommands for Idle {
    fn execute(&self, name: &str, _payload: Option<&str>) -> GatewayOutcome {
        GatewayOutcome::Done(name.into())
    }
}

struct Parts {
    inbound: mpsc::Sender<InboundCommand>,
    handle: Handle,
    writer: Stepper,
    metrics: Metrics,
    _stop: watch::Sender<bool>,
}

fn start(directory: &Path) -> Parts {
    let store = config::Store { directory: directory.to_owned(), ..config::Store::default() };
    let (clock, metrics) = (Arc::new(SystemClock::new()), Metrics::new());
    let opened = Log::open_stepped(&store, &[], &["cloud"], clock.clone(), metrics.clone(), Arc::new(|| None));
    let Opened { log, writer, .. } = opened.expect("a log");
    let registry = Registry::new(&config::Devices::default(), clock.clone(), metrics.clone());
    let (inbound, taken) = mpsc::channel(8);
    let commands = config::Commands::default();
    let (downlink, handle) = Downlink::new(&commands, log, registry, clock, metrics.clone(), Arc::new(Idle), taken);
    let stop = watch::Sender::new(false);
    tokio::spawn(downlink.run(stop.subscribe()));
    Parts { inbound, handle, writer, metrics, _stop: stop }
}

async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn command(packet: u16, body: &str, acks: &mpsc::UnboundedSender<u16>) -> InboundCommand {
    let acks = acks.clone();
    InboundCommand {
        source: Source::Mqtt,
        target: Target::Gateway,
        body: body.to_owned().into(),
        wanted_for: None,
        confirmation: Confirmation::new(move || {
            let _ = acks.send(packet);
        }),
    }
}

#[tokio::test]
async fn a_broker_is_answered_once_its_command_is_on_disk_and_in_the_order_of_commands() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut parts = start(directory.path());
    let (acks_in, mut acks) = mpsc::unbounded_channel();
    let bodies = [r#"{"id":"a","name":"ping"}"#, r#"{"id":"a","name":"ping"}"#, r#"{"id":"b"}"#, "nonsense"];
    for (packet, body) in (1..).zip(bodies) {
        parts.inbound.send(command(packet, body, &acks_in)).await.expect("room");
    }
    settle().await;
    assert!(acks.try_recv().is_err(), "nothing is on disk");
    parts.writer.step();
    settle().await;
    let got: Vec<u16> = std::iter::from_fn(|| acks.try_recv().ok()).collect();
    assert_eq!(got, [1, 2, 3, 4]);
    parts.writer.step();
    settle().await;
    let key = CommandKey { target: Target::Gateway, id: CommandId::new("a").expect("a valid id") };
    let record = parts.handle.command(&key).await.expect("it reads").expect("it is there");
    assert!(matches!(record, Record::Whole(command) if command.state() == CommandState::Done));
    assert_eq!(parts.metrics.commands_received.get_or_create(&SourceLabel { source: "mqtt" }).get(), 1);

    // A known command waits for no commit of its own, only for those before it.
    parts.inbound.send(command(5, r#"{"id":"c","name":"ping"}"#, &acks_in)).await.expect("room");
    parts.inbound.send(command(6, r#"{"id":"a","name":"ping"}"#, &acks_in)).await.expect("room");
    settle().await;
    assert!(acks.try_recv().is_err());
    parts.writer.step();
    parts.writer.step();
    settle().await;
    parts.inbound.send(command(7, r#"{"id":"a","name":"ping"}"#, &acks_in)).await.expect("room");
    settle().await;
    let got: Vec<u16> = std::iter::from_fn(|| acks.try_recv().ok()).collect();
    assert_eq!(got, [5, 6], "7 may wait for the end of c, which is being written");
    parts.writer.step();
    settle().await;
    assert_eq!(acks.try_recv(), Ok(7));
}

#[tokio::test]
async fn no_more_commands_are_taken_than_can_be_written() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut parts = start(directory.path());
    let (acks_in, mut acks) = mpsc::unbounded_channel();
    let mut sent = 0;
    loop {
        let body = format!(r#"{{"id":"c-{sent}","name":"ping"}}"#);
        match parts.inbound.try_send(command(sent + 1, &body, &acks_in)) {
            Ok(()) => sent += 1,
            Err(_) => {
                settle().await;
                if parts.inbound.capacity() == 0 {
                    break;
                }
            }
        }
    }
    assert_eq!(usize::from(sent), MAX_UNCONFIRMED + 8, "and what waits before the door");
    for _ in 0..4 {
        parts.writer.step();
        settle().await;
    }
    let got: Vec<u16> = std::iter::from_fn(|| acks.try_recv().ok()).collect();
    assert_eq!(got, (1..=sent).collect::<Vec<_>>());
}
