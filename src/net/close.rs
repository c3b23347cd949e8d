//! The end of a connection: noticing that the far end closed it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Whether the far end sends no more, even while something that it sent is not read yet.
pub fn hung_up(stream: &TcpStream) -> bool {
    let ready = pin!(stream.ready(Interest::READABLE));
    let ready = ready.poll(&mut Context::from_waker(Waker::noop()));
    matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
}
