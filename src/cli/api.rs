//! Asking a running gateway over its HTTP interface.

mod pinned;

use crate::config::{Config, TokenError, read_token};
use crate::files::plain;
use crate::pem;
use anyhow::{Context, Result, anyhow, bail};
use bytesize::ByteSize;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use pinned::{Secured, Shaken};
use serde_json::Value;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long the gateway may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A gateway takes no longer to notice that its certificate's file has changed.
const RENEWED_WITHIN: Duration = Duration::from_millis(1500);
/// Longest answer taken.
const MOST: ByteSize = ByteSize::mib(64);

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

/// Why what came back is no answer.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the answer is longer than {MOST}")]
    TooLong,
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
        self.ask(Method::GET, path, None, within)
    }

    /// Posts a JSON body.
    ///
    /// # Errors
    /// If no gateway answers in time: [`NoAnswer`] if there is one.
    pub fn post_within(&self, path: &str, body: &Value, within: Duration) -> Result<Answer> {
        self.ask(Method::POST, path, Some(body.to_string()), within)
    }

    fn ask(&self, method: Method, path: &str, body: Option<String>, within: Duration) -> Result<Answer> {
        let request = Request::builder().method(method).uri(path);
        let mut request = request.header(header::HOST, self.address.to_string()).header(header::CONNECTION, "close");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(body.unwrap_or_default()).context("cannot ask the gateway")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot ask the gateway")?.block_on(self.exchange(request, within))
    }

    async fn exchange(&self, request: Request<String>, within: Duration) -> Result<Answer> {
        let (address, until) = (self.address, Instant::now() + within);
        let answer = match &self.cert_file {
            None => {
                let stream = self.connect(until).await?;
                timeout_at(until, answer(stream, request)).await
            }
            Some(cert_file) => {
                let stream = self.connect_securely(cert_file, until).await?;
                timeout_at(until, answer(stream, request)).await
            }
        };
        match answer {
            Ok(answer) => answer.map_err(|why| self.explained(&why)),
            Err(_) => Err(NoAnswer { address, within }.into()),
        }
    }

    async fn connect(&self, until: Instant) -> Result<TcpStream> {
        let address = self.address;
        let until = until.min(Instant::now() + CONNECT_WITHIN);
        let connecting = timeout_at(until, TcpStream::connect(address)).await;
        connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|why| {
            anyhow!(
                "no gateway answers at {address} ({}); see whether it runs with this configuration \
                 (systemctl status tidegate)",
                plain(&why)
            )
        })
    }

    /// Connects to the gateway that has the certificate in the file, which it may be about
    /// to renew.
    async fn connect_securely(&self, cert_file: &Path, until: Instant) -> Result<Box<Secured>> {
        let (address, file) = (self.address, cert_file.display());
        let shake = async || {
            let certificate = pem::certificates(cert_file)?.swap_remove(0); // there is one
            let stream = self.connect(until).await?;
            pinned::connect(stream, certificate, until).await.with_context(|| {
                format!("no TLS with what answers at {address}; see whether the gateway runs with this configuration")
            })
        };
        if let Shaken::Secure(stream) = shake().await? {
            return Ok(stream);
        }
        sleep(RENEWED_WITHIN.min(until.saturating_duration_since(Instant::now()))).await;
        match shake().await? {
            Shaken::Secure(stream) => Ok(stream),
            Shaken::Another => bail!(
                "what answers at {address} shows another certificate than {file}, which [http] cert_file names; \
                 either it is not the gateway of this configuration, or a renewal that it cannot use, of which its \
                 log tells (`tidegate check` does too)"
            ),
        }
    }

    fn explained(&self, why: &Broken) -> anyhow::Error {
        let address = self.address;
        let what = match why {
            Broken::TooLong => why.to_string(),
            Broken::Http(why) => match why.source().and_then(|why| why.downcast_ref::<io::Error>()) {
                Some(why) if why.kind() != io::ErrorKind::UnexpectedEof => {
                    return anyhow!("the gateway at {address} does not answer: {}", plain(why));
                }
                Some(_) => "the answer is cut off".to_owned(),
                None if why.is_incomplete_message() || why.is_canceled() => "the answer is cut off".to_owned(),
                None => format!("it does not answer as HTTP does: {why}"),
            },
        };
        anyhow!(what).context(format!("what answers at {address} is no gateway"))
    }
}

/// Asks over `stream`.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, request: Request<String>) -> Result<Answer, Broken> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = whole(response.into_body()).await?;
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The answer says how the connection ends.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = driven => never,
    }
}

/// All of `body`, if it is not too long.
async fn whole(mut body: Incoming) -> Result<Vec<u8>, Broken> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > MOST.as_u64() {
            return Err(Broken::TooLong);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// What is made of a server that takes a request and does what `then` says.
    fn asked(within: Duration, then: impl FnOnce(TcpStream) + Send + 'static) -> Result<Answer> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                request.extend(byte);
            }
            then(stream);
        });
        let answer = Api { address, cert_file: None, token: None }.get_within("/", within);
        server.join().expect("it does not panic");
        answer
    }

    fn says(bytes: &'static [u8]) -> impl FnOnce(TcpStream) {
        move |mut stream| stream.write_all(bytes).expect("it is read")
    }

    /// Says `bytes` and then nothing until the other side gives up.
    fn stalls_after(bytes: &'static [u8]) -> impl FnOnce(TcpStream) {
        move |mut stream| {
            stream.write_all(bytes).expect("it is read");
            let _ = stream.read(&mut [0]);
        }
    }

    #[test]
    fn an_answer_is_its_status_and_its_body_whole_or_in_chunks() {
        let whole = b"HTTP/1.1 404 No\r\ncontent-length: 21\r\n\r\n{\"error\":\"not there\"}";
        let chunks = b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n\
                       a\r\n{\"error\":\"\r\nb;x=y\r\nnot there\"}\r\n0\r\n\r\n";
        let to_the_end = b"HTTP/1.0 403 No\r\n\r\n{\"error\":\"not there\"}";
        for (answer, status, said) in [
            (&whole[..], 404, "not there"),
            (chunks, 403, "the gateway refuses (403): not there"),
            (to_the_end, 403, "the gateway refuses (403): not there"),
        ] {
            let answer = asked(ANSWER_WITHIN, says(answer)).expect("it is whole");
            assert_eq!((answer.status, &*answer.body), (status, "{\"error\":\"not there\"}"));
            assert_eq!(answer.json().expect_err("refused").to_string(), said);
        }
    }

    #[test]
    fn what_is_no_whole_answer_is_told_from_one() {
        for (bytes, said) in [
            (&b"HTTP/1.1 200 OK\r\ncont"[..], "the answer is cut off"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "the answer is cut off"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf", "the answer is cut off"),
            (b"", "the answer is cut off"),
            (b"SSH-2.0-OpenSSH_9\r\n", "it does not answer as HTTP does"),
        ] {
            let why = format!("{:#}", asked(ANSWER_WITHIN, says(bytes)).expect_err("it is no answer"));
            assert!(why.contains(&format!("is no gateway: {said}")), "{why}");
        }
    }

    #[test]
    fn an_answer_without_an_end_is_given_up() {
        const CHUNK: usize = 1 << 20;
        let endless = |mut stream: TcpStream| {
            let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &vec![b'x'; CHUNK], b"\r\n"].concat();
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").expect("it is read");
            let chunks = std::iter::repeat_with(|| stream.write_all(&chunk)).take_while(Result::is_ok).count();
            assert!(chunks < 2 * MOST.as_u64() as usize / CHUNK, "{chunks} chunks were taken");
        };
        let why = format!("{:#}", asked(ANSWER_WITHIN, endless).expect_err("it has no end"));
        assert!(why.ends_with("is no gateway: the answer is longer than 64.0 MiB"), "{why}");
    }

    #[test]
    fn a_gateway_that_stalls_gives_no_answer_in_time() {
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
        for said in [&b""[..], b"HTTP/1.1 200 OK\r\ncont", half] {
            let why = asked(Duration::from_millis(100), stalls_after(said)).expect_err("it is no answer");
            assert!(why.is::<NoAnswer>(), "{why:#}");
        }
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let reached = |listen: &str| reachable(listen.parse().expect("an address")).to_string();
        assert_eq!(reached("0.0.0.0:7412"), "127.0.0.1:7412");
        assert_eq!(reached("[::]:7412"), "[::1]:7412");
        assert_eq!(reached("192.0.2.7:1"), "192.0.2.7:1");
    }
}
