//! As much of HTTP/1.1 as the start of a connection needs: one request without a body, and the
//! head of the response.

use super::reason::{quoted, shown};
use crate::backoff::Failure;
use crate::files;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest head of a response, in bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// A response.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    /// Such as `HTTP 404 Not Found`.
    line: String,
    headers: Vec<(String, String)>,
    /// Bytes received after the head.
    pub behind: Vec<u8>,
}

impl Answer {
    /// The values of a header.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The response as a message: status, redirection, and the beginning of its text.
    pub fn said(&self) -> String {
        let mut said = self.line.clone();
        if let Some(elsewhere) = self.values("location").next() {
            said.push_str(&format!(", and sends to {}", quoted(elsewhere.as_bytes())));
        }
        let is_text = self.values("content-type").any(|kind| kind.starts_with("text/plain") || kind.contains("json"));
        if is_text && !self.behind.is_empty() {
            said.push_str(&format!(", and says {}", quoted(&self.behind)));
        }
        said
    }
}

/// Sends `request`, and reads the head of the response. `who` names the server in messages.
///
/// # Errors
/// If the connection ends, or the response is not HTTP.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &str,
    who: &str,
) -> Result<Answer, Failure> {
    let broken = |why: &io::Error| {
        Failure::transient(format!("{who} closed the connection before it answered: {}", files::plain(why)))
    };
    stream.write_all(request.as_bytes()).await.map_err(|why| broken(&why))?;
    stream.flush().await.map_err(|why| broken(&why))?;
    let mut came = Vec::new();
    loop {
        came.reserve(MAX_HEAD);
        let read = stream.read_buf(&mut came).await.map_err(|why| broken(&why))?;
        if read == 0 {
            return Err(Failure::transient(match came.is_empty() {
                true => format!("{who} closed the connection without an answer"),
                false => {
                    format!("{who} closed the connection in the midst of its answer, which begins {}", quoted(&came))
                }
            }));
        }
        match head(&came) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if came.len() <= MAX_HEAD => {}
            // The beginning of a TLS alert.
            _ if came.first() == Some(&0x15) => {
                return Err(Failure::transient(format!(
                    "{who} speaks TLS and not plain HTTP; if that port is for TLS, write wss:// in `brokers`"
                )));
            }
            _ => return Err(Failure::transient(format!("{who} does not speak HTTP: it says {}", quoted(&came)))),
        }
    }
}

/// The head of the response, once it is complete.
fn head(came: &[u8]) -> Result<Option<Answer>, httparse::Error> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut room);
    let httparse::Status::Complete(length) = parsed.parse(came)? else { return Ok(None) };
    let status = parsed.code.unwrap_or_default();
    let line = format!("HTTP {status} {}", shown(parsed.reason.unwrap_or_default()));
    let headers = parsed
        .headers
        .iter()
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).trim().to_owned()));
    let headers = headers.collect();
    let behind = came.get(length..).unwrap_or_default().to_vec();
    Ok(Some(Answer { status, line: line.trim_end().to_owned(), headers, behind }))
}

/// The Host header: a host, and its port unless it is the default (RFC 9110, 7.2).
pub(super) fn host(host: &str, port: u16, is_tls: bool) -> String {
    let whole = authority(host, port);
    let usual = if is_tls { ":443" } else { ":80" };
    whole.strip_suffix(usual).map(str::to_owned).unwrap_or(whole)
}

/// A host with its port.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
