//! The gateway's process stands still while the world around it goes on: stopped, suspended
//! or paused with its machine. What comes meanwhile waits in its sockets.

use parking_lot::Mutex;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the parts of one process run under. Clones share it.
#[derive(Clone, Default)]
pub struct Freezer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    frozen: bool,
    /// How often it went on.
    thaws: u64,
    waiting: Vec<Waker>,
}

impl Freezer {
    pub fn freeze(&self) {
        self.0.lock().frozen = true;
    }

    pub fn thaw(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.frozen = false;
            state.thaws += 1;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Runs a part of the process.
    pub fn run<F: Future>(&self, part: F) -> impl Future<Output = F::Output> + use<F> {
        let (freezer, mut part) = (self.clone(), Box::pin(part));
        poll_fn(move |cx| {
            {
                let mut state = freezer.0.lock();
                if state.frozen {
                    state.waiting.push(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            part.as_mut().poll(cx)
        })
    }
}

/// A stream of the process. What came while it stood still is noticed a moment after its
/// timers, as the system does it.
pub struct Thawing<S> {
    stream: S,
    freezer: Freezer,
    thaws: u64,
}

impl<S> Thawing<S> {
    pub fn new(stream: S, freezer: &Freezer) -> Thawing<S> {
        let thaws = freezer.0.lock().thaws;
        Thawing { stream, freezer: freezer.clone(), thaws }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Thawing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let thaws = self.freezer.0.lock().thaws;
        if std::mem::replace(&mut self.thaws, thaws) != thaws {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Thawing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
