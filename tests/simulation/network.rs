//! Lines between devices and the gateway: streams of bytes that arrive late, stop
//! arriving without a word, or break.

use super::context::Context;
use fastrand::Rng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The state of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Up,
    /// Nothing arrives any more, and neither end is told.
    Silent,
    /// Broken: both ends are told.
    Cut,
}

/// The way between two streams. Dropping it cuts them.
pub struct Relay {
    /// It was never anything but up.
    quiet: AtomicBool,
    /// One for each direction: tokio wakes those who wait for the same in an order
    /// that it draws at random.
    states: [watch::Sender<Line>; 2],
    _tasks: JoinSet<()>,
}

/// Two streams that are connected by a line.
pub struct Connected {
    pub device: DuplexStream,
    pub gateway: DuplexStream,
    pub relay: Relay,
}

/// Bytes that either end may send without the other taking them.
const BUFFER: usize = 8 * 1024;

pub fn connect(latency: Duration, seed: u64) -> Connected {
    let (device, near) = duplex(BUFFER);
    let (gateway, far) = duplex(BUFFER);
    let (near_read, near_write) = split(near);
    let (far_read, far_write) = split(far);
    let states = [(); 2].map(|()| watch::Sender::new(Line::Up));
    let mut tasks = JoinSet::new();
    tasks.spawn(carry(near_read, far_write, states[0].subscribe(), latency, Rng::with_seed(seed)));
    tasks.spawn(carry(far_read, near_write, states[1].subscribe(), latency, Rng::with_seed(!seed)));
    Connected { device, gateway, relay: Relay { quiet: true.into(), states, _tasks: tasks } }
}

impl Relay {
    pub fn set(&self, context: &Context, device: &str, line: Line) {
        context.trace(format_args!("line of {device}: {line:?}"));
        self.quiet.fetch_and(line == Line::Up, Ordering::Relaxed);
        for state in &self.states {
            state.send_replace(line);
        }
    }

    /// Whether it was never anything but up.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }
}

/// Carries bytes one way until the line is cut or an end is closed.
async fn carry(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut state: watch::Receiver<Line>,
    latency: Duration,
    mut random: Rng,
) {
    let mut buffer = vec![0; 4096];
    loop {
        let cut = async {
            let _ = state.wait_for(|line| *line == Line::Cut).await;
        };
        let step = async {
            // Pieces of any size: a stream has no frames.
            let most = random.usize(1..=buffer.len());
            let read = from.read(&mut buffer[..most]).await.unwrap_or(0);
            sleep(latency.mul_f64(random.f64())).await;
            read
        };
        let read = tokio::select! {
            biased;
            () = cut => return,
            read = step => read,
        };
        let silent = *state.borrow() == Line::Silent;
        if silent {
            if read == 0 {
                // The other end does not learn that this one is gone.
                let _ = state.wait_for(|line| *line == Line::Cut).await;
                return;
            }
            continue;
        }
        let cut = async {
            let _ = state.wait_for(|line| *line == Line::Cut).await;
        };
        let written = tokio::select! {
            biased;
            () = cut => return,
            written = to.write_all(&buffer[..read]) => written,
        };
        if read == 0 || written.is_err() {
            return;
        }
    }
}
