//! A connection that was the HTTP server's and is a WebSocket's.

use super::bounded_listener::Visit;
use crate::link::websocket::Stream;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As it came through a [`super::Door`], or by some other listener.
pub(super) enum Moved {
    /// With what was read before it moved.
    Visit(Box<Visit>, hyper::body::Bytes),
    Other(TokioIo<Upgraded>),
}

impl Moved {
    pub fn new(upgraded: Upgraded) -> Moved {
        match downcast::<TokioIo<Visit>>(upgraded) {
            Ok(parts) => Moved::Visit(Box::new(parts.io.into_inner()), parts.read_buf),
            Err(other) => Moved::Other(TokioIo::new(other)),
        }
    }
}

impl Stream for Moved {
    fn hung_up(&self) -> bool {
        matches!(self, Moved::Visit(visit, _) if visit.hung_up())
    }
}

impl AsyncRead for Moved {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Moved::Visit(_, early) if !early.is_empty() => {
                let part = early.split_to(early.len().min(buffer.remaining()));
                buffer.put_slice(&part);
                Poll::Ready(Ok(()))
            }
            Moved::Visit(visit, _) => Pin::new(visit).poll_read(cx, buffer),
            Moved::Other(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Moved {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Moved::Visit(visit, _) => Pin::new(visit).poll_write(cx, bytes),
            Moved::Other(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Moved::Visit(visit, _) => Pin::new(visit).poll_flush(cx),
            Moved::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Moved::Visit(visit, _) => Pin::new(visit).poll_shutdown(cx),
            Moved::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
