//! MQTT over WebSocket (RFC 6455; MQTT 5, 6): the client's handshake, and MQTT's bytes in binary
//! messages. The boundaries of messages have no meaning.

use super::http::{Answer, ask};
use super::reason::shown;
use super::transport::Request;
use crate::backoff::Failure;
use crate::wire::websocket::{self as frame, Event, Kind, Reader, Violation};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Largest payload of one message, in bytes.
const MESSAGE: usize = 64 * 1024;
/// Close codes without information: a normal end, and no code.
const NORMAL: u16 = 1000;
const NO_CODE: u16 = 1005;

/// A WebSocket as the stream of its binary messages' payloads.
pub struct Socket<S> {
    io: S,
    reader: Reader,
    /// Received bytes that are not passed on yet.
    came: BytesMut,
    /// Frames to write.
    out: Vec<u8>,
    written: usize,
    /// The broker sent a close frame with this code and reason.
    closed: Option<(u16, String)>,
}

/// The broker ended the WebSocket with a reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Ended(pub String);

/// Opens a WebSocket; `host` is the Host header.
///
/// # Errors
/// If the server refuses it.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut io: S,
    request: &Request,
    host: &str,
) -> Result<Socket<S>, Failure> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|_| Failure::transient("the system has no random numbers".to_owned()))?;
    let key = STANDARD.encode(key);
    let more: String = request.headers.iter().map(|header| format!("{}: {}\r\n", header.name, header.value)).collect();
    let asked = format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: {key}\r\n{more}\r\n",
        request.path
    );
    let answer = ask(&mut io, &asked, "what answers there").await?;
    agreed(&answer, &key, request)?;
    let mut socket =
        Socket { io, reader: Reader::of_server(), came: BytesMut::new(), out: Vec::new(), written: 0, closed: None };
    let mut behind = answer.behind;
    socket
        .take(&mut behind)
        .map_err(|why| Failure::transient(format!("the broker breaks the WebSocket protocol: {why}")))?;
    Ok(socket)
}

/// Checks the response to a handshake for MQTT over WebSocket.
fn agreed(answer: &Answer, key: &str, request: &Request) -> Result<(), Failure> {
    if answer.status != 101 {
        let advice = match answer.status {
            401 | 403 => "; check username, password_file and websocket_headers",
            404 => "; check the path in `brokers`",
            200 | 300..=399 => "; that is a web server, a portal or a proxy: check host, port and path in `brokers`",
            426 => "; it wants another version of WebSocket than 13",
            _ => "",
        };
        let path = request.path.split('?').next().unwrap_or_default();
        return Err(Failure::transient(format!("no WebSocket at {path}: {}{advice}", answer.said())));
    }
    if answer.values("sec-websocket-accept").next() != Some(&frame::accept(key.as_bytes())) {
        return Err(Failure::transient(
            "what answers there accepts a WebSocket without a valid Sec-WebSocket-Accept".to_owned(),
        ));
    }
    match answer.values("sec-websocket-protocol").next() {
        None | Some("mqtt") => Ok(()),
        Some(other) => Err(Failure::transient(format!(
            "the WebSocket there is for \"{}\", not for MQTT; check the path in `brokers`",
            shown(other)
        ))),
    }
}

/// An intermediary must not be able to predict a frame's bytes (10.3).
fn mask() -> [u8; 4] {
    getrandom::u32().unwrap_or_else(|_| fastrand::u32(..)).to_ne_bytes()
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Handles received bytes.
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), Violation> {
        let Socket { reader, came, out, closed, .. } = self;
        let pushed = reader.push(bytes, &mut |event| {
            match event {
                _ if closed.is_some() => {}
                Event::Begin { kind: Kind::Text, .. } => {
                    // MQTT 5, 6.0.0-1.
                    return Err(Violation { code: frame::PROTOCOL_ERROR, why: "it sends text, which is not MQTT" });
                }
                Event::Begin { .. } | Event::Complete => {}
                Event::Data(data) => came.extend_from_slice(data),
                Event::Ping(data) => frame::put_masked_pong(data, mask(), out),
                Event::Close(told) => {
                    *closed = Some(match told.split_first_chunk() {
                        Some((code, why)) => (u16::from_be_bytes(*code), String::from_utf8_lossy(why).into_owned()),
                        None => (NO_CODE, String::new()),
                    });
                }
            }
            Ok(())
        });
        // Bytes after a close frame are ignored.
        if closed.is_some() { Ok(()) } else { pushed }
    }

    /// Writes pending frames.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.out.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.came.is_empty() {
                let length = this.came.len().min(buffer.remaining());
                buffer.put_slice(this.came.get(..length).unwrap_or_default());
                this.came.advance(length);
                return Poll::Ready(Ok(()));
            }
            match &this.closed {
                // Like the end of the connection.
                Some((NORMAL | NO_CODE, why)) if why.is_empty() => return Poll::Ready(Ok(())),
                Some((code, why)) => {
                    let what = format!("the broker closed the WebSocket: code {code} \"{}\"", shown(why));
                    return Poll::Ready(Err(io::Error::other(Ended(what))));
                }
                None => {}
            }
            let mut room = [std::mem::MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(why) = this.take(read.filled_mut()) {
                let what = format!("the broker breaks the WebSocket protocol: {why}");
                return Poll::Ready(Err(io::Error::other(Ended(what))));
            }
            // Answers to pings; what is not written now goes with the next write.
            if let Poll::Ready(Err(why)) = this.poll_out(cx) {
                return Poll::Ready(Err(why));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        let length = bytes.len().min(MESSAGE);
        frame::put_masked(bytes.get(..length).unwrap_or_default(), mask(), &mut this.out);
        // All of the caller's bytes are accepted, written or not.
        match this.poll_out(cx) {
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            _ => Poll::Ready(Ok(length)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
