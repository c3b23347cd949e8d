//! Devices that take readings for ever, send again what was not acknowledged, and lose
//! their connection or their memory when they are told to.

use crate::oracle::{Lane, Oracle};
use crate::support::device::{JSON, POSTCARD, Talk, hello, sample};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate::wire::frame::Format;
use tidegate::wire::message::{DeviceMessage, GatewayMessage, Readings};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_serial::SerialPortBuilderExt;

/// Where a device finds the gateway.
#[derive(Clone)]
pub enum Way {
    Tcp(u16),
    Serial(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Readings in one message, and how often there is one.
    pub at_once: u64,
    pub every: Duration,
    /// After so long without a Welcome, or without an Ack that is owed, a device
    /// connects anew.
    pub welcome_within: Duration,
    pub ack_within: Duration,
}

/// What a device was told so far.
#[derive(Debug, Clone, Copy, Default)]
struct Orders {
    disconnects: u64,
    reboots: u64,
    paused: bool,
}

pub struct Fleet {
    orders: Vec<watch::Sender<Orders>>,
    /// Which of the gateway's lives runs, and the last that acknowledged something.
    life: watch::Sender<u64>,
    alive: watch::Sender<u64>,
    tasks: JoinSet<()>,
}

impl Fleet {
    pub fn start(ways: &[Way], pace: Pace, oracle: &Arc<Oracle>, random: &mut fastrand::Rng) -> Fleet {
        let life = watch::Sender::new(0);
        let alive = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        let orders = ways
            .iter()
            .zip(1u64..)
            .map(|(way, number)| {
                let orders = watch::Sender::new(Orders::default());
                let id = format!("device-{number}");
                let mut random = random.fork();
                let device = Device {
                    way: way.clone(),
                    pace,
                    format: if number.is_multiple_of(3) { JSON } else { POSTCARD },
                    lane: oracle.begin(&id, random.u64(..)),
                    id,
                    reboots: 0,
                    orders: orders.subscribe(),
                    life: life.subscribe(),
                    alive: alive.clone(),
                    oracle: oracle.clone(),
                    random,
                };
                tasks.spawn(device.run());
                orders
            })
            .collect();
        Fleet { orders, life, alive, tasks }
    }

    pub fn len(&self) -> usize {
        self.orders.len()
    }

    /// The gateway is about to be started.
    pub fn new_life(&self) {
        self.life.send_modify(|life| *life += 1);
    }

    /// Waits until the gateway's present life acknowledged something; false if that
    /// takes longer than `patience`.
    pub async fn acknowledged(&self, patience: Duration) -> bool {
        let life = *self.life.borrow();
        let mut alive = self.alive.subscribe();
        tokio::time::timeout(patience, alive.wait_for(|seen| *seen >= life)).await.is_ok()
    }

    pub fn disconnect(&self, device: usize) {
        self.orders[device].send_modify(|orders| orders.disconnects += 1);
    }

    /// The device forgets what was not acknowledged, and begins a new session.
    pub fn reboot(&self, device: usize) {
        self.orders[device].send_modify(|orders| {
            orders.disconnects += 1;
            orders.reboots += 1;
        });
    }

    /// No new readings are taken.
    pub fn pause(&self, paused: bool) {
        self.orders.iter().for_each(|orders| orders.send_modify(|orders| orders.paused = paused));
    }

    /// A device's task that ended did so by a panic.
    pub fn is_sound(&mut self) -> bool {
        self.tasks.try_join_next().is_none()
    }
}

struct Device {
    id: String,
    way: Way,
    pace: Pace,
    format: Format,
    lane: Arc<Lane>,
    reboots: u64,
    orders: watch::Receiver<Orders>,
    life: watch::Receiver<u64>,
    alive: watch::Sender<u64>,
    oracle: Arc<Oracle>,
    random: fastrand::Rng,
}

impl Device {
    async fn run(mut self) {
        loop {
            let reboots = self.orders.borrow().reboots;
            if reboots != self.reboots {
                self.reboots = reboots;
                self.lane = self.oracle.begin(&self.id, self.random.u64(..));
            }
            let life = *self.life.borrow();
            match self.way.clone() {
                Way::Tcp(port) => {
                    if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                        stream.set_nodelay(true).expect("a socket option");
                        self.converse(stream, Some(life)).await;
                    }
                }
                Way::Serial(path) => {
                    if let Ok(port) = tokio_serial::new(path.to_string_lossy(), 115_200).open_native_async() {
                        self.converse(port, None).await;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(self.random.u64(2..20))).await;
        }
    }

    /// One connection, made in this life of the gateway if that is certain.
    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: S, life: Option<u64>) {
        let lane = self.lane.clone();
        let mut talk = Talk::over(stream, self.format);
        let disconnects = self.orders.borrow_and_update().disconnects;
        talk.say(&hello(&self.id, lane.session, lane.acked() + 1)).await;
        let (mut next, mut window) = (0, 0);
        let mut heard = Instant::now();
        let mut tick = tokio::time::interval(self.pace.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                message = talk.hear() => {
                    heard = Instant::now();
                    match message {
                        Some(GatewayMessage::Welcome(welcome)) => {
                            self.oracle.acked(&lane, welcome.settled);
                            window = u64::from(welcome.window);
                            next = lane.acked() + 1;
                            // While nothing is sent nothing else is acknowledged.
                            if self.orders.borrow().paused {
                                self.is_alive(life);
                            }
                        }
                        Some(GatewayMessage::Ack(ack)) if window > 0 => {
                            self.oracle.acked(&lane, ack.seq);
                            self.is_alive(life);
                        }
                        Some(GatewayMessage::Goodbye(_)) | None => return,
                        Some(_) => {}
                    }
                }
                _ = tick.tick() => {
                    let owed = window == 0 || next > lane.acked() + 1;
                    let within = if window == 0 { self.pace.welcome_within } else { self.pace.ack_within };
                    if !owed {
                        heard = Instant::now();
                    } else if heard.elapsed() > within {
                        return;
                    }
                    let upto = (next + self.pace.at_once - 1).min(lane.acked() + window);
                    if window > 0 && upto >= next && !self.orders.borrow().paused {
                        lane.sends(upto);
                        let samples = (next..=upto).map(|seq| sample(lane.number(), seq)).collect();
                        talk.say(&DeviceMessage::Readings(Readings { seq: next, sub: None, samples })).await;
                        next = upto + 1;
                    }
                }
                changed = self.orders.changed() => {
                    if changed.is_err() || self.orders.borrow().disconnects != disconnects {
                        return;
                    }
                }
            }
        }
    }

    fn is_alive(&self, life: Option<u64>) {
        if let Some(life) = life {
            self.alive.send_if_modified(|alive| std::mem::replace(alive, life.max(*alive)) < life);
        }
    }
}
