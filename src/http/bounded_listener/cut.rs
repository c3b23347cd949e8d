//! The last words to a connection that is cut before its request was there.

use super::super::problem::{RETRY_AFTER, body};
use axum::http::StatusCode;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long they may take to be heard.
pub const CLOSE_WITHIN: Duration = Duration::from_millis(250);

/// Why a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its place is needed for somebody else.
    Crowded,
    /// Its request did not come in time.
    Late,
}

impl Cut {
    pub fn status(self) -> StatusCode {
        match self {
            Cut::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            Cut::Late => StatusCode::REQUEST_TIMEOUT,
        }
    }

    pub fn why(self) -> &'static str {
        match self {
            Cut::Crowded => {
                "more connections come than there is room for, and this request was not there yet; try again"
            }
            Cut::Late => "the request did not come in time; send it without a pause",
        }
    }

    /// A whole answer.
    fn answer(self) -> String {
        let (status, body) = (self.status(), body(self.why()));
        let retry = if self == Cut::Crowded { format!("Retry-After: {RETRY_AFTER}\r\n") } else { String::new() };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{retry}Connection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Says what is to be said and waits until it is heard: data left unread would reset the
/// connection, and the words be lost.
pub struct ClosingResponse {
    words: Vec<u8>,
    shut: bool,
    until: Pin<Box<Sleep>>,
}

impl ClosingResponse {
    /// Of a connection that was answered.
    pub fn answered() -> ClosingResponse {
        ClosingResponse { words: Vec::new(), shut: false, until: Box::pin(sleep(CLOSE_WITHIN)) }
    }

    /// Of one that is told why it is cut.
    pub fn telling(cut: Cut) -> ClosingResponse {
        ClosingResponse { words: cut.answer().into_bytes(), ..ClosingResponse::answered() }
    }

    /// Ready when there is no more to be done.
    pub fn poll<S: AsyncRead + AsyncWrite + Unpin + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if ready!(self.poll_say(io, cx)).is_err() {
            return Poll::Ready(());
        }
        let mut rest = [0; 512];
        loop {
            let mut rest = ReadBuf::new(&mut rest);
            if ready!(Pin::new(&mut *io).poll_read(cx, &mut rest)).is_err() || rest.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(())
    }

    fn poll_say<S: AsyncWrite + Unpin + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.words.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &self.words))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.words.drain(..written)),
            }
        }
        if !self.shut {
            ready!(Pin::new(io).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_a_whole_answer() {
        let said = Cut::Crowded.answer();
        let (head, body) = said.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && head.contains("Retry-After: 1"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON")["error"], Cut::Crowded.why());
        assert!(Cut::Late.answer().starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    }
}
