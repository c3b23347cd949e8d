//! Prints without blocking the receiver.

use anyhow::{Context, Result};
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// A thread that writes the text it is given. If the reader of the output is slow,
/// [`Output::print`] waits once [`MAX_WAITING`] bytes are queued.
pub struct Output {
    chunks: mpsc::UnboundedSender<(String, OwnedSemaphorePermit)>,
    /// Bounds the channel, in bytes.
    room: Arc<Semaphore>,
    ended: oneshot::Receiver<io::Result<()>>,
}

/// The reader closed the output.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

const MAX_WAITING: u32 = 8 << 20;

impl Output {
    /// # Errors
    /// If no thread can be started.
    pub fn start(mut out: Box<dyn Write + Send>) -> Result<Output> {
        let (chunks, mut waiting) = mpsc::unbounded_channel::<(String, OwnedSemaphorePermit)>();
        let (end, ended) = oneshot::channel();
        let write = move || {
            let mut written = Ok(());
            while let Some((chunk, _room)) = waiting.blocking_recv() {
                written = out.write_all(chunk.as_bytes());
                if waiting.is_empty() {
                    written = written.and_then(|()| out.flush());
                }
                if written.is_err() {
                    break;
                }
            }
            // The receiver may be dropped.
            let _ = end.send(written);
        };
        std::thread::Builder::new().name("output".into()).spawn(write).context("cannot start the output's thread")?;
        Ok(Output { chunks, room: Arc::new(Semaphore::new(MAX_WAITING as usize)), ended })
    }

    /// Hands `text` to the thread, after waiting for room. Cancel-safe: a cancelled call
    /// prints nothing.
    ///
    /// # Errors
    /// [`Closed`] if the thread has ended; [`Output::finish`] says why.
    pub async fn print(&self, text: String) -> Result<(), Closed> {
        let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).min(MAX_WAITING);
        let room = tokio::select! {
            room = self.room.clone().acquire_many_owned(bytes) => room.map_err(|_| Closed)?,
            () = self.chunks.closed() => return Err(Closed),
        };
        self.chunks.send((text, room)).map_err(|_| Closed)
    }

    /// Waits until everything is written, for `within` at most if that is given. A closed
    /// pipe is no error.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn finish(self, within: Option<Duration>) -> Result<()> {
        drop(self.chunks);
        let ended = match within {
            None => self.ended.await,
            Some(within) => match tokio::time::timeout(within, self.ended).await {
                Ok(ended) => ended,
                Err(_) => return Ok(()),
            },
        };
        match ended {
            Ok(Err(why)) if why.kind() != ErrorKind::BrokenPipe => Err(why).context("cannot write the output"),
            Ok(_) => Ok(()),
            Err(_) => anyhow::bail!("the output's thread ended with a panic"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Records what is written, one chunk for each go-ahead.
    struct Slow {
        written: Arc<Mutex<Vec<u8>>>,
        go_ahead: std::sync::mpsc::Receiver<Result<(), ErrorKind>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.go_ahead.recv().unwrap_or(Ok(()))?;
            self.written.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Given = (Output, Arc<Mutex<Vec<u8>>>, std::sync::mpsc::Sender<Result<(), ErrorKind>>);

    fn slow() -> Given {
        let (sender, go_ahead) = std::sync::mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let output = Output::start(Box::new(Slow { written: written.clone(), go_ahead })).expect("a thread");
        (output, written, sender)
    }

    #[tokio::test]
    async fn a_slow_reader_makes_printing_wait_only_when_much_is_waiting() {
        let (output, written, go_ahead) = slow();
        let half = "x".repeat(MAX_WAITING as usize / 2);
        assert_eq!(output.print(half.clone()).await, Ok(()));
        assert_eq!(output.print(half.clone()).await, Ok(()));
        let third = tokio::time::timeout(Duration::from_millis(50), output.print("y".into())).await;
        assert!(third.is_err(), "there is no room");
        go_ahead.send(Ok(())).expect("the thread waits for it");
        assert_eq!(output.print("z".into()).await, Ok(()));
        drop(go_ahead);
        output.finish(None).await.expect("it was written");
        assert_eq!(written.lock().len(), 2 * half.len() + 1);
        assert!(written.lock().ends_with(b"xz"), "what was cancelled was not printed");
    }

    #[tokio::test]
    async fn a_reader_that_is_stuck_is_not_waited_for_at_the_end() {
        let (output, _, _go_ahead) = slow();
        output.print("x".into()).await.expect("the thread lives");
        output.finish(Some(Duration::from_millis(20))).await.expect("given up");
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_is_no_error_but_others_are() {
        for (kind, fails) in [(ErrorKind::BrokenPipe, false), (ErrorKind::StorageFull, true)] {
            let (output, _, go_ahead) = slow();
            go_ahead.send(Err(kind)).expect("the thread waits for it");
            output.print("x".into()).await.expect("the thread lives");
            while output.print("x".into()).await.is_ok() {
                tokio::task::yield_now().await;
            }
            assert_eq!(output.finish(None).await.is_err(), fails, "{kind:?}");
        }
    }
}
