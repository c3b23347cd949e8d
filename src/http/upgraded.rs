//! A connection that the HTTP server upgraded to a WebSocket.

use super::bounded_listener::BoundedStream;
use crate::link::websocket::Stream;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Accepted by a [`super::BoundedListener`] or another listener.
pub(super) enum UpgradedStream {
    /// With the bytes that were read before the upgrade.
    Bounded(Box<BoundedStream>, hyper::body::Bytes),
    Other(TokioIo<Upgraded>),
}

impl UpgradedStream {
    pub fn new(upgraded: Upgraded) -> UpgradedStream {
        match downcast::<TokioIo<BoundedStream>>(upgraded) {
            Ok(parts) => UpgradedStream::Bounded(Box::new(parts.io.into_inner()), parts.read_buf),
            Err(other) => UpgradedStream::Other(TokioIo::new(other)),
        }
    }
}

impl Stream for UpgradedStream {
    fn hung_up(&self) -> bool {
        matches!(self, UpgradedStream::Bounded(stream, _) if stream.hung_up())
    }
}

impl AsyncRead for UpgradedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            UpgradedStream::Bounded(_, early) if !early.is_empty() => {
                let part = early.split_to(early.len().min(buffer.remaining()));
                buffer.put_slice(&part);
                Poll::Ready(Ok(()))
            }
            UpgradedStream::Bounded(stream, _) => Pin::new(stream).poll_read(cx, buffer),
            UpgradedStream::Other(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for UpgradedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            UpgradedStream::Bounded(stream, _) => Pin::new(stream).poll_write(cx, bytes),
            UpgradedStream::Other(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            UpgradedStream::Bounded(stream, _) => Pin::new(stream).poll_flush(cx),
            UpgradedStream::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            UpgradedStream::Bounded(stream, _) => Pin::new(stream).poll_shutdown(cx),
            UpgradedStream::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
