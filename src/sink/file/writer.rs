//! The thread that writes files: it may wait for a medium as long as that takes.

use super::Payload;
use super::series::Series;
use crate::backoff::Failure;
use crate::config::FILE_WINDOW;
use crate::sink::Outcome;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A payload to write, and the token by which it is confirmed.
#[derive(Debug)]
pub struct WriteRequest {
    pub token: u64,
    pub payload: Payload,
}

/// Writes what comes, flushes several together, and confirms them then.
pub struct Writer {
    series: Series,
    flush_within: Duration,
    requests: Receiver<WriteRequest>,
    outcomes: UnboundedSender<Outcome>,
    unflushed: Vec<u64>,
    /// When these are to be flushed.
    due: Option<Instant>,
}

impl Writer {
    /// Starts the thread. It ends when its requests do, or at the first failure.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub fn start(
        series: Series,
        flush_within: Duration,
    ) -> Result<(SyncSender<WriteRequest>, UnboundedReceiver<Outcome>), String> {
        let (requests, receiver) = sync_channel(FILE_WINDOW.into());
        let (outcomes, confirmed) = unbounded_channel();
        let writer = Writer { series, flush_within, requests: receiver, outcomes, unflushed: Vec::new(), due: None };
        let thread = thread::Builder::new().name("file-sink".into()).spawn(move || writer.run());
        thread.map_err(|why| format!("cannot start a thread: {why}"))?;
        Ok((requests, confirmed))
    }

    fn run(mut self) {
        if let Err(why) = self.write() {
            // Nobody listens if the connection was given up.
            let _ = self.outcomes.send(Outcome::Lost(Failure::transient(why)));
        }
    }

    fn write(&mut self) -> Result<(), String> {
        loop {
            let rotation = self.series.closes_in();
            let wait = self.due.map_or(rotation, |due| due.saturating_duration_since(Instant::now()).min(rotation));
            match self.requests.recv_timeout(wait) {
                Ok(WriteRequest { token, payload }) => {
                    if let Err(why) = self.series.write(&payload) {
                        // What came before is kept, and confirmed.
                        self.flush()?;
                        self.series.close()?;
                        return Err(why);
                    }
                    self.unflushed.push(token);
                    self.due.get_or_insert_with(|| Instant::now() + self.flush_within);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.flush()?;
                    return self.series.close();
                }
            }
            let is_full = self.unflushed.len() >= usize::from(FILE_WINDOW);
            if is_full || self.due.is_some_and(|due| Instant::now() >= due) {
                self.flush()?;
            }
            if self.series.closes_in().is_zero() {
                self.flush()?;
                self.series.close()?;
            }
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        self.due = None;
        if self.unflushed.is_empty() {
            return Ok(());
        }
        self.series.flush()?;
        for token in self.unflushed.drain(..) {
            let _ = self.outcomes.send(Outcome::Confirmed(token));
        }
        Ok(())
    }
}
