//! Asking a running gateway over its HTTP interface.

mod pinned;

use crate::config::{Config, TokenError, read_token};
use crate::files::plain;
use crate::pem;
use anyhow::{Context, Result, anyhow, bail};
use pinned::{Secured, Shaken};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long the gateway may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A gateway takes no longer to notice that its certificate's file has changed.
const RENEWED_WITHIN: Duration = Duration::from_millis(1500);
/// Longest answer taken, in bytes.
const MOST: u64 = 64 << 20;
const MAX_HEADERS: usize = 64;
/// Less time than this is none.
const SHORTEST: Duration = Duration::from_millis(1);

/// Where a gateway answers.
pub(super) struct Api {
    address: SocketAddr,
    /// The gateway's certificate, if it speaks TLS.
    cert_file: Option<PathBuf>,
    token: Option<String>,
}

/// The gateway took the question, or may have, and gave no answer in time.
#[derive(Debug, thiserror::Error)]
#[error("the gateway at {address} gives no answer within {}", humantime::format_duration(*.within))]
pub(super) struct NoAnswer {
    address: SocketAddr,
    within: Duration,
}

/// What a gateway answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    pub body: String,
}

impl Api {
    /// The gateway that runs with this configuration.
    ///
    /// # Errors
    /// If it has no HTTP interface that can be asked from here.
    pub fn of(config: &Config) -> Result<Api> {
        if !config.http.enabled {
            bail!("the gateway has no HTTP interface to ask; set [http] enabled = true");
        }
        let token = config.http.token_file.as_deref().map(read_token).transpose().map_err(|why| {
            let fix = "the gateway is asked with it: run this as the user that runs the gateway (sudo -u tidegate), or as root";
            match &why {
                TokenError::Unreadable { .. } => anyhow!("{why}; {fix}"),
                _ => anyhow!("{why}; {}", why.fix()),
            }
        })?;
        let cert_file = config.http.listener().tls().map(|files| files.cert);
        Ok(Api { address: reachable(config.http.listen), cert_file, token })
    }

    /// # Errors
    /// If no gateway answers in time.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.get_within(path, ANSWER_WITHIN)
    }

    /// # Errors
    /// If no gateway answers in time: [`NoAnswer`] if there is one.
    pub fn get_within(&self, path: &str, within: Duration) -> Result<Answer> {
        self.ask("GET", path, None, within)
    }

    /// Posts a JSON body.
    ///
    /// # Errors
    /// If no gateway answers in time: [`NoAnswer`] if there is one.
    pub fn post_within(&self, path: &str, body: &Value, within: Duration) -> Result<Answer> {
        self.ask("POST", path, Some(&body.to_string()), within)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>, within: Duration) -> Result<Answer> {
        let (address, until) = (self.address, Instant::now() + within);
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        if let Some(token) = &self.token {
            request += &format!("Authorization: Bearer {token}\r\n");
        }
        if let Some(body) = body {
            request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += body.unwrap_or_default();
        let answer = match &self.cert_file {
            None => {
                let stream = self.connect(until)?;
                let socket = stream.try_clone().context("cannot ask the gateway")?;
                exchange(stream, &socket, request.as_bytes(), until)
            }
            Some(cert_file) => {
                let stream = self.connect_securely(cert_file, until)?;
                let socket = stream.sock.try_clone().context("cannot ask the gateway")?;
                exchange(stream, &socket, request.as_bytes(), until)
            }
        };
        let answer = answer.map_err(|why| match why.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow::Error::new(NoAnswer { address, within }),
            _ => anyhow!("the gateway at {address} does not answer: {}", plain(&why)),
        })?;
        parse(&answer).with_context(|| format!("what answers at {address} is no gateway"))
    }

    fn connect(&self, until: Instant) -> Result<TcpStream> {
        let address = self.address;
        let within = left(until).unwrap_or(SHORTEST).min(CONNECT_WITHIN);
        let stream = TcpStream::connect_timeout(&address, within).map_err(|why| {
            anyhow!(
                "no gateway answers at {address} ({}); see whether it runs with this configuration \
                 (systemctl status tidegate)",
                plain(&why)
            )
        })?;
        hurry(&stream, until).context("cannot ask the gateway")?;
        Ok(stream)
    }

    /// Connects to the gateway that has the certificate in the file, which it may be about
    /// to renew.
    fn connect_securely(&self, cert_file: &Path, until: Instant) -> Result<Box<Secured>> {
        let (address, file) = (self.address, cert_file.display());
        let shake = || {
            let certificate = pem::certificates(cert_file)?.swap_remove(0); // there is one
            pinned::connect(self.connect(until)?, certificate).with_context(|| {
                format!("no TLS with what answers at {address}; see whether the gateway runs with this configuration")
            })
        };
        if let Shaken::Secure(stream) = shake()? {
            return Ok(stream);
        }
        std::thread::sleep(RENEWED_WITHIN.min(left(until).unwrap_or_default()));
        match shake()? {
            Shaken::Secure(stream) => Ok(stream),
            Shaken::Another => bail!(
                "what answers at {address} shows another certificate than {file}, which [http] cert_file names; \
                 either it is not the gateway of this configuration, or a renewal that it cannot use, of which its \
                 log tells (`tidegate check` does too)"
            ),
        }
    }
}

/// Asks over `stream`, below which is `socket`.
fn exchange(mut stream: impl Read + Write, socket: &TcpStream, request: &[u8], until: Instant) -> io::Result<Vec<u8>> {
    hurry(socket, until)?;
    stream.write_all(request)?;
    stream.flush()?;
    let (mut stream, mut answer, mut piece) = (stream.take(MOST), Vec::new(), [0; 8192]);
    loop {
        hurry(socket, until)?;
        match stream.read(&mut piece)? {
            0 => return Ok(answer),
            count => answer.extend_from_slice(&piece[..count]), // so much was read
        }
    }
}

/// Whatever is read or written next takes no longer than there is time.
fn hurry(socket: &TcpStream, until: Instant) -> io::Result<()> {
    let left = left(until).ok_or(io::ErrorKind::TimedOut)?;
    socket.set_read_timeout(Some(left))?;
    socket.set_write_timeout(Some(left))
}

fn left(until: Instant) -> Option<Duration> {
    until.checked_duration_since(Instant::now()).filter(|left| *left >= SHORTEST)
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// What the gateway says is wrong, if it refused.
    pub fn json(&self) -> Result<Value> {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        match self.status {
            200..=299 => Ok(body),
            status => match body["error"].as_str() {
                Some(error) if status == 404 => bail!("{error}"),
                Some(error) => bail!("the gateway refuses ({status}): {error}"),
                None => bail!("the gateway refuses ({status}): {}", self.body.trim()),
            },
        }
    }
}

/// A device's name, or a sub-device's, as one segment of a path or a value of a query.
pub(super) fn segment(name: &str) -> String {
    name.replace('/', "%2F")
}

/// Where a listener on this address is reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn parse(answer: &[u8]) -> Result<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer)? else { bail!("the answer is cut off") };
    let body = answer.get(length..).unwrap_or_default();
    Ok(Answer { status: head.code.unwrap_or_default(), body: String::from_utf8_lossy(body).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        for (status, said) in [(404, "not there"), (403, "the gateway refuses (403): not there")] {
            let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 21\r\n\r\n{{\"error\":\"not there\"}}");
            let answer = parse(answer.as_bytes()).expect("it is whole");
            assert_eq!(answer.status, status);
            assert_eq!(answer.json().expect_err("refused").to_string(), said);
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\ncont").is_err());
        assert!(parse(b"SSH-2.0-OpenSSH_9\r\n").is_err());
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let reached = |listen: &str| reachable(listen.parse().expect("an address")).to_string();
        assert_eq!(reached("0.0.0.0:7412"), "127.0.0.1:7412");
        assert_eq!(reached("[::]:7412"), "[::1]:7412");
        assert_eq!(reached("192.0.2.7:1"), "192.0.2.7:1");
    }
}
