//! Devices in numbers: many that lose their connections and come back at once, and a few
//! that go on meanwhile.

use super::device::Talk;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Devices that are connected at a time while there is no hurry.
const CALMLY: usize = 50;
/// One of many devices.
#[derive(Debug, Clone, Copy)]
struct Member {
    number: u64,
    sent: u64,
    /// Readings that it has to get rid of when it comes back.
    backlog: u64,
}

/// Many devices, connected.
pub struct Crowd {
    address: String,
    members: Vec<(Member, Talk<TcpStream>)>,
}

/// How a crowd came back.
#[derive(Debug, Default)]
pub struct Return {
    /// How long each took, the fastest first.
    pub times: Vec<Duration>,
    /// Attempts that came to nothing.
    pub refused: u64,
}

impl Crowd {
    /// Connects devices with these numbers, without haste. Each has `backlog` readings
    /// to send whenever it comes back.
    pub async fn connect(address: &str, numbers: std::ops::Range<u64>, backlog: u64) -> Crowd {
        let few = Arc::new(Semaphore::new(CALMLY));
        let mut members = JoinSet::new();
        for number in numbers {
            let (address, few) = (address.to_owned(), few.clone());
            members.spawn(async move {
                let _turn = few.acquire().await.expect("it is not closed");
                let member = Member { number, sent: 0, backlog };
                let talk = member.welcomed(&address, &AtomicU64::new(0)).await;
                (member, talk)
            });
        }
        Crowd { address: address.to_owned(), members: members.join_all().await }
    }

    /// All lose their connections and come back at once. With `half_open` the old
    /// connections stay until all are back, as when a switch lost its power.
    pub async fn comes_back(&mut self, half_open: bool) -> Return {
        let refused = Arc::new(AtomicU64::new(0));
        let cut = Arc::new(Barrier::new(self.members.len() + 1));
        let mut returning = JoinSet::new();
        for (mut member, talk) in self.members.drain(..) {
            let (address, refused, cut) = (self.address.clone(), refused.clone(), cut.clone());
            returning.spawn(async move {
                cut.wait().await;
                let began = Instant::now();
                let mut old = Some(talk);
                if !half_open {
                    old = None;
                }
                let mut talk = member.welcomed(&address, &refused).await;
                member.unload(&mut talk).await;
                (member, talk, began.elapsed(), old)
            });
        }
        cut.wait().await;
        let mut back = Return::default();
        for (member, talk, took, _) in returning.join_all().await {
            self.members.push((member, talk));
            back.times.push(took);
        }
        back.times.sort_unstable();
        back.refused = refused.load(Ordering::Relaxed);
        back
    }
}

impl Member {
    async fn welcomed(&self, address: &str, refused: &AtomicU64) -> Talk<TcpStream> {
        Talk::persistent(address, &format!("crowd-{}", self.number), self.sent + 1, refused).await
    }

    /// Sends its backlog and waits for the Ack.
    async fn unload(&mut self, talk: &mut Talk<TcpStream>) {
        if self.backlog > 0 {
            talk.readings(self.number, self.sent + 1, self.backlog).await;
            self.sent += self.backlog;
            talk.acked(self.sent).await;
        }
    }
}

/// Devices that go on all the time: each sends a reading a tenth of a second and notes how
/// long its Ack took, from when the reading was due.
pub struct Others {
    latencies: Arc<Mutex<Vec<Duration>>>,
    /// Acks of each.
    acked: Vec<Arc<AtomicU64>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

const EVERY: Duration = Duration::from_millis(100);

impl Others {
    pub fn start(address: &str, count: u64) -> Others {
        let mut others = Others {
            latencies: Arc::default(),
            acked: (0..count).map(|_| Arc::default()).collect(),
            stop: Arc::default(),
            tasks: JoinSet::new(),
        };
        for (number, acked) in (1..).zip(&others.acked) {
            let (address, latencies) = (address.to_owned(), others.latencies.clone());
            let (acked, stop) = (acked.clone(), others.stop.clone());
            others.tasks.spawn(async move {
                let (mut talk, _) = Talk::welcomed(&address, &format!("other-{number}"), 1).await;
                let phase = EVERY * number as u32 / count as u32;
                let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + phase, EVERY);
                tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
                for seq in 1.. {
                    let due = tick.tick().await;
                    talk.readings(number, seq, 1).await;
                    talk.acked(seq).await;
                    latencies.lock().push(due.elapsed());
                    acked.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        others
    }

    /// Latencies since the last call, the shortest first.
    pub fn latencies(&self) -> Vec<Duration> {
        let mut latencies = std::mem::take(&mut *self.latencies.lock());
        latencies.sort_unstable();
        latencies
    }

    /// How many Acks each got so far.
    pub fn acked(&self) -> Vec<u64> {
        self.acked.iter().map(|acked| acked.load(Ordering::Relaxed)).collect()
    }

    /// Each gets its last Ack.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("every reading is acknowledged");
        }
    }
}
