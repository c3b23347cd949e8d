//! A source that the program does not have, written against the public doors alone: it polls a
//! data logger, which keeps numbered readings until it is told that it may forget them. It shows
//! what a new source needs, and that it gets all that devices of our own protocol get: a place in
//! the log, Acks, presence, commands.

use crate::file_sink::{configuration, file_sink, launch, launched, written};
use crate::support::gateway::figure;
use crate::support::{eventually, free_port};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate::device::{Call, Introduction};
use tidegate::gateway::{Additions, Gateway};
use tidegate::ingest::{Attachment, Ingest, Source};
use tidegate::model::{Batch, ChannelName, CommandOutcome, CommandResult, DeviceId, Reading, Value};
use tidegate::stop;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep};

type Line = BufReader<TcpStream>;

/// The source: polls the logger at `address`, again and again whatever becomes of the connection.
fn polled(address: SocketAddr) -> Source {
    Source::new(move |ingest, mut stop| async move {
        let polling = async {
            loop {
                let Err(why) = poll(&ingest, address).await;
                tracing::warn!(%address, %why, "the data logger cannot be read");
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = stop::requested(&mut stop) => {}
            () = polling => {}
        }
    })
}

/// Reads the logger for as long as it answers.
async fn poll(ingest: &Ingest, address: SocketAddr) -> io::Result<std::convert::Infallible> {
    let mut line = BufReader::new(TcpStream::connect(address).await?);
    let answer = ask(&mut line, "SESSION").await?;
    let mut numbers = answer.split(' ').map(|number| number.parse::<u64>().map_err(io::Error::other));
    let (Some(session), Some(forgotten)) = (numbers.next().transpose()?, numbers.next().transpose()?) else {
        return Err(io::Error::other(answer));
    };
    let (device, link): (DeviceId, Arc<str>) = ("logger".parse().expect("a valid name"), "polled".into());
    let alive_within = Duration::from_secs(5);
    let who = Introduction { device: &device, session, link: &link, firmware: None, proven: false, alive_within };
    let mut attachment = ingest.attach(who, u32::MAX).map_err(io::Error::other)?;
    // What every sink had confirmed is not asked for again, also if a crash forgot that they had.
    let mut read = attachment.settled().max(forgotten);
    let mut every = interval(Duration::from_millis(10));
    loop {
        tokio::select! {
            () = attachment.called() => carry_out(&attachment, &mut line).await?,
            () = attachment.room(), if attachment.waits_for_room() => attachment.flush(),
            _ = every.tick(), if !attachment.waits_for_room() => {
                let settled = attachment.settled();
                let values = ask(&mut line, &format!("READ {read} FORGET {settled}")).await?;
                let now = ingest.now();
                attachment.heard(now.monotonic);
                let (time, basis) = ingest.time_of(now);
                let channels: Arc<[ChannelName]> = [ChannelName::new("level").expect("a valid name")].into();
                let mut readings = Vec::new();
                for value in values.split_whitespace() {
                    let values = [Value::Integer(value.parse().map_err(io::Error::other)?)].into();
                    read += 1;
                    readings.push(Reading::new(read, time, channels.clone(), values).map_err(io::Error::other)?);
                }
                attachment.push(Batch { device: device.clone(), session: Some(session), basis, readings });
                attachment.flush();
            }
        }
    }
}

/// Does what the source is called for.
async fn carry_out(attachment: &Attachment, line: &mut Line) -> io::Result<()> {
    while let Some(call) = attachment.take_call(true) {
        let Call::Command(command) = call else { return Err(io::Error::other("it is attached elsewhere")) };
        let answer = ask(line, &format!("SET {}", command.payload.unwrap_or_default())).await?;
        let payload = Some(format!("{answer:?}"));
        attachment.answer(CommandResult { id: command.id, outcome: CommandOutcome::Done, payload });
    }
    Ok(())
}

async fn ask(line: &mut Line, question: &str) -> io::Result<String> {
    line.get_mut().write_all(format!("{question}\n").as_bytes()).await?;
    let mut answer = String::new();
    match line.read_line(&mut answer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer.trim_end().to_owned()),
    }
}

/// The logger: has measured `made` readings, whose values are ten times their numbers, and was told to forget
/// those up to `forgotten`.
#[derive(Default)]
struct Logger {
    made: AtomicU64,
    forgotten: AtomicU64,
    set: Mutex<Vec<String>>,
}

impl Logger {
    async fn serve(self: Arc<Logger>, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let logger = self.clone();
            tokio::spawn(async move {
                let mut line = BufReader::new(stream);
                let mut question = String::new();
                while line.read_line(&mut question).await.is_ok_and(|read| read > 0) {
                    let answer = logger.answer(question.trim_end());
                    line.get_mut().write_all(format!("{answer}\n").as_bytes()).await.unwrap_or_default();
                    question.clear();
                }
            });
        }
    }

    fn answer(&self, question: &str) -> String {
        let number = |text: &str| text.parse::<u64>().expect("a number");
        match question.split(' ').collect::<Vec<_>>()[..] {
            ["SESSION"] => format!("77 {}", self.forgotten.load(Ordering::SeqCst)),
            ["READ", after, "FORGET", upto] => {
                let forgotten = self.forgotten.fetch_max(number(upto), Ordering::SeqCst).max(number(upto));
                assert!(number(after) >= forgotten, "asked for {after} though {forgotten} was acknowledged");
                let last = self.made.load(Ordering::SeqCst).min(number(after) + 20);
                let values: Vec<_> = (number(after) + 1..=last).map(|seq| (10 * seq).to_string()).collect();
                values.join(" ")
            }
            ["SET", value] => {
                self.set.lock().expect("no panic").push(value.to_owned());
                "OK".to_owned()
            }
            _ => panic!("{question:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the gateway of the test below, in a process of its own that can be killed"]
async fn a_gateway_whose_only_source_polls() {
    let Some((directory, [logger, http])) = launched() else { return };
    let config = configuration(&directory, http);
    let sinks = vec![file_sink(directory.join("readings"))];
    let sources = vec![polled(logger)];
    let _gateway = Gateway::start_with(config, Additions { sinks, sources }).await.expect("it starts");
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_polls_goes_on_after_sigkill_behind_what_settled_and_takes_commands() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let http = format!("127.0.0.1:{}", free_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let logger = Arc::new(Logger::default());
    let serving = tokio::spawn(logger.clone().serve(listener));
    let forgotten = || logger.forgotten.load(Ordering::SeqCst);
    let file = directory.path().join("readings");

    // What settles is forgotten by the logger.
    let test = "polling_source::a_gateway_whose_only_source_polls";
    let launch = || launch(test, directory.path(), [&address.to_string(), &http]);
    let mut gateway = launch();
    logger.made.store(500, Ordering::SeqCst);
    eventually("some are settled", async || forgotten() >= 100).await;

    // Killed in the middle, the gateway goes on behind that, and nothing is missing.
    gateway.kill();
    logger.made.store(1000, Ordering::SeqCst);
    gateway = launch();
    eventually("all are settled", async || forgotten() == 1000).await;
    eventually("all are in the file", async || written(&file).len() == 1000).await;
    let counts = written(&file);
    assert!((1..=1000).all(|seq| counts.contains_key(&("logger".to_owned(), seq))));
    assert_eq!(figure(&http, "tidegate_devices_connected").await, 1.0);

    // A command reaches the logger, and its answer who gave it.
    let body = r#"{"id":"c-1","name":"set","payload":42}"#;
    let head = format!(
        "POST /api/v1/devices/logger/commands?wait=10s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(&http).await.expect("it listens");
    stream.write_all((head + body).as_bytes()).await.expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("\"done\"") && answer.contains("OK"), "{answer}");
    assert_eq!(*logger.set.lock().expect("no panic"), ["42"]);

    gateway.kill();
    serving.abort();
}
