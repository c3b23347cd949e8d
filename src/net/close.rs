//! The end of a connection: noticing that the far end closed it, and closing it so that the last
//! bytes arrive.

use super::admission::Admission;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a connection lingers at most.
const LINGER: Duration = Duration::from_millis(500);

/// Whether the far end sends no more, even while something that it sent is not read yet.
pub fn hung_up(stream: &TcpStream) -> bool {
    let ready = pin!(stream.ready(Interest::READABLE));
    let ready = ready.poll(&mut Context::from_waker(Waker::noop()));
    matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

/// Shuts `stream` down, and reads on from the stream `below` it, for a while at most, until the far
/// end closes: bytes left unread would reset the connection, and the last ones sent be lost. Does
/// nothing if too many connections of this `admission` linger.
pub async fn lingering_close<S, B>(admission: &Admission, mut stream: S, below: impl FnOnce(&mut S) -> &mut B)
where
    S: AsyncWrite + Unpin,
    B: AsyncRead + Unpin,
{
    let Some(_permit) = admission.try_linger() else { return };
    let close = async {
        if stream.shutdown().await.is_ok() {
            let below = below(&mut stream);
            poll_fn(|cx| poll_drain(below, cx)).await;
        }
    };
    let _ = timeout(LINGER, close).await;
}

/// Reads and drops what the far end sends. Ready when it closed, or reading fails.
pub fn poll_drain<S: AsyncRead + Unpin + ?Sized>(stream: &mut S, cx: &mut Context<'_>) -> Poll<()> {
    let mut storage = [0; 512];
    loop {
        let mut buffer = ReadBuf::new(&mut storage);
        if ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
            return Poll::Ready(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::io::{AsyncReadExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn the_last_bytes_are_waited_for_but_not_for_ever() {
        let admission = Admission::new(1, Gauge::default());
        let (mut far, near) = duplex(64);
        let close = tokio::spawn({
            let admission = admission.clone();
            async move { lingering_close(&admission, near, |near| near).await }
        });
        far.write_all(&[b'x'; 4096]).await.expect("it is read on");
        assert_eq!(far.read(&mut [0; 8]).await.expect("it is shut down"), 0);
        drop(far);
        close.await.expect("it is closed");

        let (_far, near) = duplex(64);
        let since = tokio::time::Instant::now();
        lingering_close(&admission, near, |near| near).await;
        assert_eq!(since.elapsed(), LINGER, "the far end does not close");
    }
}
