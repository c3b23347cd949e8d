//! Closes a connection before its request is complete, with a response that says why.

use super::super::problem::{RETRY_AFTER, body};
use crate::net::poll_drain;
use axum::http::StatusCode;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};

/// How long the response and the close may take.
pub const CLOSE_WITHIN: Duration = Duration::from_millis(250);

/// Why a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its slot is needed for another connection.
    Crowded,
    /// Its request did not arrive in time.
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
            Cut::Crowded => "too many connections, and this request was not complete; try again",
            Cut::Late => "the request was not complete in time; send it without a pause",
        }
    }

    /// The whole response.
    fn response(self) -> String {
        let (status, body) = (self.status(), body(self.why()));
        let retry = if self == Cut::Crowded { format!("Retry-After: {RETRY_AFTER}\r\n") } else { String::new() };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{retry}Connection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Sends a response and reads on until the far end closes: bytes left unread would reset the
/// connection, and the response be lost.
pub struct ClosingResponse {
    response: Vec<u8>,
    shut: bool,
    until: Pin<Box<Sleep>>,
}

impl ClosingResponse {
    /// For a connection whose response was sent.
    pub fn empty() -> ClosingResponse {
        ClosingResponse { response: Vec::new(), shut: false, until: Box::pin(sleep(CLOSE_WITHIN)) }
    }

    /// For one that is sent the reason why it is cut.
    pub fn with_reason(cut: Cut) -> ClosingResponse {
        ClosingResponse { response: cut.response().into_bytes(), ..ClosingResponse::empty() }
    }

    /// Ready when the far end closed, or time is up.
    pub fn poll<S: AsyncRead + AsyncWrite + Unpin + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if ready!(self.poll_send(io, cx)).is_err() {
            return Poll::Ready(());
        }
        poll_drain(io, cx)
    }

    fn poll_send<S: AsyncWrite + Unpin + ?Sized>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.response.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &self.response))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.response.drain(..written)),
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
    fn a_closing_response_is_a_whole_response() {
        let said = Cut::Crowded.response();
        let (head, body) = said.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && head.contains("Retry-After: 1"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON")["error"], Cut::Crowded.why());
        assert!(Cut::Late.response().starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    }
}
