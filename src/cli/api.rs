//! Asking the running gateway, over HTTP.

use crate::config::Config;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Where a gateway answers.
pub struct Api {
    address: SocketAddr,
}

/// How long a gateway on this machine may take to be reached.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// No answer is larger, in bytes.
const LARGEST: u64 = 16 << 20;

impl Api {
    /// The gateway that runs with this configuration.
    ///
    /// # Errors
    /// If it has no HTTP server.
    pub fn of(config: &Config) -> Result<Api> {
        if !config.http.enabled {
            bail!("the gateway of this configuration cannot be asked: set [http] enabled = true");
        }
        let mut address = config.http.listen;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(Api { address })
    }

    /// Status and body of the answer.
    ///
    /// # Errors
    /// If there is none `within` that time.
    pub fn get(&self, path: &str, within: Duration) -> Result<(u16, String)> {
        self.ask("GET", path, None, within)
    }

    /// As [`Api::get`], with JSON to send.
    ///
    /// # Errors
    /// If there is no answer in time.
    pub fn post(&self, path: &str, body: &str, within: Duration) -> Result<(u16, String)> {
        self.ask("POST", path, Some(body), within)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>, within: Duration) -> Result<(u16, String)> {
        let address = self.address;
        let unreachable = || format!("no gateway answers on {address}; does it run, with this configuration?");
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN).with_context(unreachable)?;
        stream.set_read_timeout(Some(within)).and_then(|()| stream.set_write_timeout(Some(within)))?;
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n");
        if let Some(body) = body {
            request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += body.unwrap_or_default();
        stream.write_all(request.as_bytes()).with_context(unreachable)?;
        let mut answer = String::new();
        stream.take(LARGEST).read_to_string(&mut answer).with_context(|| format!("no answer came from {address}"))?;
        parse(&answer).with_context(|| format!("what answers on {address} is no gateway"))
    }
}

/// Status and body of an answer.
fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_or_is_none() {
        assert_eq!(parse("HTTP/1.0 202 Accepted\r\nA: b\r\n\r\n{}\n"), Some((202, "{}\n".to_owned())));
        assert_eq!(parse("HTTP/1.1 200 \r\n\r\n"), Some((200, String::new())));
        for none in ["", "SSH-2.0", "HTTP/1.1 200 OK\r\n", "HTTP/1.1\r\n\r\n"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
