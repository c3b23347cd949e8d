//! Processes of their own that load a gateway, or stand in for one: what is measured
//! beside them does not share their threads.

use crate::neighbours;
use crate::support::crowd::{Crowd, Return};
use crate::support::device::{POSTCARD, hello};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tidegate::wire::codec::{encode_device, encode_gateway};
use tidegate::wire::message::{Ack, GatewayMessage, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What a process of ours does until its standard input ends.
#[derive(clap::Subcommand)]
pub enum Role {
    /// Devices that lose their connections and come back whenever a line comes.
    Crowd { address: String, first: u64, beyond: u64, backlog: u64, half_open: String },
    /// Connections that mean no good, made whenever a line comes.
    Strangers { address: String, kind: Kind, first: u64, beyond: u64 },
    /// Answers whatever comes: first a Welcome, then Acks.
    Server,
    /// Devices that send as fast as they may, from when a line comes.
    Loud { address: String, websocket: String, count: u64, seconds: u64 },
    /// Devices that send a reading a second, from when a line comes.
    Calm { address: String, websocket: String, count: u64, seconds: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Say nothing.
    Silent,
    /// Say a Hello byte by byte, one in a fifth of a second.
    Drip,
    /// Begin with a frame that is larger than any Hello.
    Oversized,
    /// Send what is no frame for as long as it is taken.
    Garbage,
    /// Are welcomed, and say nothing any more.
    Mute,
}

/// One such process, ended with its value.
pub struct Load {
    child: Child,
    tell: Option<ChildStdin>,
    hear: BufReader<ChildStdout>,
}

impl Load {
    /// Starts one that yields to others as nice(1) has it.
    pub fn start(nice: i32, role: &[&str]) -> Load {
        let mut command = Command::new("nice");
        command.arg(format!("-n{nice}")).arg(std::env::current_exe().expect("this program")).arg("load").args(role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nice can be started");
        let tell = child.stdin.take();
        let hear = BufReader::new(child.stdout.take().expect("a pipe"));
        Load { child, tell, hear }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says next.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.hear.read_line(&mut line).expect("a pipe") > 0, "a process that loads ended");
        line.trim().to_owned()
    }

    /// Tells it to begin.
    pub fn begin(&mut self) {
        self.tell.as_mut().expect("a pipe").write_all(b"begin\n").expect("a pipe");
    }

    /// How its connections fared.
    pub fn outcome(&mut self) -> Return {
        let mut numbers = self.numbers().into_iter();
        let refused = numbers.next().expect("a number");
        Return { refused, times: numbers.map(Duration::from_micros).collect() }
    }

    /// The numbers that it says next.
    pub fn numbers(&mut self) -> Vec<u64> {
        let line = self.line();
        line.split_whitespace().map(|number| number.parse().expect("a number")).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It ends with its standard input.
        self.tell = None;
        let _ = self.child.wait();
    }
}

/// Is such a process.
pub async fn run(role: Role) -> bool {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    assert!(raised.is_ok(), "the limit of open files cannot be raised to {maximum:?}");
    match role {
        Role::Crowd { address, first, beyond, backlog, half_open } => {
            let mut crowd = Crowd::connect(&address, first..beyond, backlog).await;
            println!("connected");
            while told().await {
                tell(&crowd.comes_back(half_open == "true").await);
            }
        }
        Role::Strangers { address, kind, first, beyond } => {
            while told().await {
                tell(&strangers(&address, kind, first..beyond).await);
            }
        }
        Role::Server => answer().await,
        Role::Loud { address, websocket, count, seconds } => {
            neighbours::loud(&address, websocket == "true", count, seconds).await;
        }
        Role::Calm { address, websocket, count, seconds } => {
            neighbours::calm(&address, websocket == "true", count, seconds).await;
        }
    }
    true
}

/// Says that it is ready, and waits to be told to begin.
pub async fn ready() {
    println!("ready");
    assert!(told().await, "nobody says when to begin");
}

/// Waits to be told to begin; false at the end.
async fn told() -> bool {
    tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await.expect("a thread").is_some()
}

fn tell(outcome: &Return) {
    let times = outcome.times.iter().map(|time| time.as_micros() as u64);
    tell_numbers(&std::iter::once(outcome.refused).chain(times).collect::<Vec<_>>());
}

/// Tells whoever started it these numbers.
pub fn tell_numbers(numbers: &[u64]) {
    println!("{}", numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
}

/// Makes these connections at once. Returns how long it took until each was gone.
async fn strangers(address: &str, kind: Kind, numbers: std::ops::Range<u64>) -> Return {
    let mut strangers = JoinSet::new();
    for number in numbers {
        let address = address.to_owned();
        strangers.spawn(async move {
            let mut stream = TcpStream::connect(&address).await.ok()?;
            let began = Instant::now();
            stranger(&mut stream, kind, number).await;
            Some(began.elapsed())
        });
    }
    let all = strangers.join_all().await;
    let mut times: Vec<_> = all.iter().flatten().copied().collect();
    times.sort_unstable();
    Return { refused: (all.len() - times.len()) as u64, times }
}

/// What one of them does until the gateway has enough.
async fn stranger(stream: &mut TcpStream, kind: Kind, number: u64) {
    // The beginning of a frame, and how long it says it is.
    let header = |length: u32| [&[0x12, 0x34, 0x56, 0x7f, 1, 1][..], &length.to_be_bytes()].concat();
    let mut greeting = Vec::new();
    encode_device(&hello(&format!("mute-{number}"), 1, 1), POSTCARD, &mut greeting);
    let (mut reader, mut writer) = stream.split();
    let talk = async {
        let talked = match kind {
            Kind::Silent => Ok(()),
            Kind::Mute => writer.write_all(&greeting).await,
            Kind::Oversized => writer.write_all(&header(u32::MAX)).await,
            Kind::Garbage => loop {
                if let Err(why) = writer.write_all(&[7; 4096]).await {
                    break Err(why);
                }
            },
            Kind::Drip => {
                let mut bytes = header(200).into_iter().chain(std::iter::repeat(7));
                loop {
                    if let Err(why) = writer.write_all(&bytes.next().map_or([7], |byte| [byte])).await {
                        break Err(why);
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        if talked.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let listen = async {
        let mut heard = [0; 512];
        while reader.read(&mut heard).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        () = talk => {}
        () = listen => {}
    }
}

async fn answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let mut connections = JoinSet::new();
    let serve = async {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer_one(stream));
            }
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = serve => {}
        _ = told() => {}
    }
}

async fn answer_one(mut stream: TcpStream) {
    let welcome = Welcome {
        settled: 0,
        time: 0,
        time_trusted: true,
        heartbeat_interval: 30,
        max_frame: 65_536,
        window: 4096,
        session: None,
    };
    let mut message = GatewayMessage::Welcome(welcome);
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
        let mut answer = Vec::new();
        encode_gateway(&message, POSTCARD, &mut answer);
        if stream.write_all(&answer).await.is_err() {
            break;
        }
        message = GatewayMessage::Ack(Ack { seq: u64::MAX });
    }
}
