//! Flushes a stream after each write.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream each write of which completes when it is flushed. So a write that returned pending must
/// be tried again with the same bytes first.
#[derive(Debug)]
pub struct FlushOnWrite<S> {
    stream: S,
    /// Bytes that the stream took and has not flushed.
    under_way: Option<usize>,
}

impl<S> FlushOnWrite<S> {
    pub fn new(stream: S) -> FlushOnWrite<S> {
        FlushOnWrite { stream, under_way: None }
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FlushOnWrite<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FlushOnWrite<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = match self.under_way {
            Some(taken) => taken,
            None => ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?,
        };
        self.under_way = Some(taken);
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.under_way = None;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

    #[tokio::test]
    async fn what_was_written_has_left_though_nobody_flushes() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut stream = FlushOnWrite::new(BufWriter::new(near));
        stream.write_all(b"12345678").await.expect("it takes it");
        let mut pending = Box::pin(stream.write_all(b"abc"));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(pending.as_mut().poll(&mut cx).is_pending(), "it is not on its way before there is room");
        let mut all = [0; 11];
        let (read, written) = tokio::join!(far.read_exact(&mut all), pending);
        written.expect("it takes it");
        read.expect("it arrives");
        assert_eq!(&all, b"12345678abc");
    }
}
