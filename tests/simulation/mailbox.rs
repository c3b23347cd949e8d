//! Commands at a broker: it keeps each until the gateway confirms it, and sends it again
//! over each new connection.

use super::context::Context;
use super::orders::Key;
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tidegate::model::{Confirmation, InboundCommand, Source, Target};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

/// A command as it is sent.
#[derive(Debug, Clone)]
pub struct Letter {
    pub key: Key,
    pub target: Target,
    pub body: String,
}

/// What a broker keeps for the gateway. Clones share it.
#[derive(Clone, Default)]
pub struct Mailbox(Arc<Inner>);

#[derive(Default)]
struct Inner {
    kept: Mutex<Kept>,
    more: Notify,
}

#[derive(Default)]
struct Kept {
    letters: VecDeque<(u16, Letter)>,
    count: u64,
}

/// Letters that may be on their way over one connection.
const OUTSTANDING: usize = 20;

impl Mailbox {
    /// The number that the next letter is going to have.
    pub fn next(&self) -> u64 {
        self.0.kept.lock().count
    }

    pub fn post(&self, letter: Letter) {
        let mut kept = self.0.kept.lock();
        kept.count += 1;
        // An id is taken again when all others were; that many are never kept.
        let packet = u16::try_from(kept.count % 60_000).unwrap_or_default() + 1;
        kept.letters.push_back((packet, letter));
        self.0.more.notify_one();
    }

    pub fn is_empty(&self) -> bool {
        self.0.kept.lock().letters.is_empty()
    }
}

/// The letters of one connection.
pub struct Delivery {
    context: Context,
    mailbox: Mailbox,
    taker: mpsc::Sender<InboundCommand>,
    latency: Duration,
    /// What is on its way to the gateway, what it has, and PUBACKs on their way back.
    going: VecDeque<(Instant, u16, Letter)>,
    sent: BTreeSet<u16>,
    coming: VecDeque<(Instant, u16)>,
    acks: (mpsc::UnboundedSender<u16>, mpsc::UnboundedReceiver<u16>),
}

impl Delivery {
    pub fn new(
        context: &Context,
        mailbox: &Mailbox,
        taker: mpsc::Sender<InboundCommand>,
        latency: Duration,
    ) -> Delivery {
        Delivery {
            context: context.clone(),
            mailbox: mailbox.clone(),
            taker,
            latency,
            going: VecDeque::new(),
            sent: BTreeSet::new(),
            coming: VecDeque::new(),
            acks: mpsc::unbounded_channel(),
        }
    }

    /// Waits until something moved. Cancel-safe.
    pub async fn step(&mut self) {
        self.arrive();
        self.collect();
        let going = self.going.front().map(|(at, ..)| *at);
        let due = going.is_some_and(|at| at <= Instant::now());
        let next = going.filter(|_| !due).into_iter().chain(self.coming.front().map(|(at, _)| *at)).min();
        tokio::select! {
            biased;
            Some(packet) = self.acks.1.recv() => self.confirmed(packet),
            Ok(room) = self.taker.clone().reserve_owned(), if due => {
                if let Some((_, packet, letter)) = self.going.pop_front() {
                    self.context.trace(format_args!("the gateway gets {:?}", letter.key));
                    let now = self.context.elapsed();
                    self.context.oracle(|oracle| oracle.orders.handed(&letter.key, now));
                    let acks = self.acks.0.clone();
                    let Letter { target, body, .. } = letter;
                    drop(room.send(InboundCommand {
                        source: Source::Mqtt,
                        target,
                        body: body.into(),
                        wanted_for: None,
                        confirmation: Confirmation::new(move || {
                            let _ = acks.send(packet);
                        }),
                    }));
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            () = self.mailbox.0.more.notified() => {}
        }
    }

    /// Sends what the broker has and did not send yet over this connection.
    fn collect(&mut self) {
        let kept = self.mailbox.0.kept.lock();
        for (packet, letter) in kept.letters.iter().take(OUTSTANDING) {
            if self.sent.insert(*packet) {
                self.going.push_back((Instant::now() + self.latency, *packet, letter.clone()));
            }
        }
    }

    /// The gateway says that a command is safe.
    fn confirmed(&mut self, packet: u16) {
        self.coming.push_back((Instant::now() + self.latency, packet));
        let key = self.key(packet);
        if let Some(key) = key {
            let now = self.context.elapsed();
            self.context.trace(format_args!("PUBACK for {key:?}"));
            self.context.oracle(|oracle| oracle.orders.confirmed(&key, now));
        }
    }

    fn key(&self, packet: u16) -> Option<Key> {
        let kept = self.mailbox.0.kept.lock();
        kept.letters.iter().find(|(other, _)| *other == packet).map(|(_, letter)| letter.key.clone())
    }

    /// The broker gets PUBACKs.
    fn arrive(&mut self) {
        while self.coming.front().is_some_and(|(at, _)| *at <= Instant::now())
            && let Some((_, packet)) = self.coming.pop_front()
        {
            self.mailbox.0.kept.lock().letters.retain(|(other, _)| *other != packet);
        }
    }
}
