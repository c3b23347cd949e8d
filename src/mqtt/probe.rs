//! Tries the way to a broker step by step, with a finding for each step, to show where it
//! fails.

use super::connection::Connection;
use super::dial::{self, Stream};
use super::options::Options;
use super::{proxy, tls};
use crate::backoff::Failure;
use crate::clock::{Clock, SystemClock};
use crate::config::MqttVersion as Version;
use crate::pem::{Certificate, Lapse};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// It works; the details may matter.
    Note,
    Wrong,
}

/// The finding of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub verdict: Verdict,
    pub step: &'static str,
    pub what: String,
}

impl Finding {
    pub fn fine(step: &'static str, what: String) -> Finding {
        Finding { verdict: Verdict::Fine, step, what }
    }

    pub fn note(step: &'static str, what: String) -> Finding {
        Finding { verdict: Verdict::Note, step, what }
    }

    pub fn wrong(step: &'static str, what: String) -> Finding {
        Finding { verdict: Verdict::Wrong, step, what }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Note => "note",
            Verdict::Wrong => "WRONG",
        };
        write!(f, "{verdict:5}  {:9}  {}", self.step, self.what)
    }
}

/// Receives findings.
pub type Tell<'a> = &'a mut (dyn FnMut(Finding) + Send);

/// Runs every step up to the broker's CONNACK, each within `connect_timeout`. Returns the
/// connection, if it was established.
pub async fn probe(options: &Options, tell: Tell<'_>) -> Option<Connection> {
    let within = options.connect_timeout;
    let addresses = name(options, within, tell).await?;
    let (mut tcp, peer) = tcp(&addresses, options, tell).await?;
    if let Some(proxy) = &options.transport.proxy {
        let tunnel = proxy::tunnel(&mut tcp, proxy, &options.host, options.port);
        let what = format!("{proxy:?} lets out to {}:{}", options.host, options.port);
        step("proxy", within, tunnel, what, tell).await?;
    }
    let stream = match options.tls {
        None => Stream::Plain(tcp),
        Some(_) => shake_hands(tcp, peer, options, tell).await?,
    };
    let stream = match &options.transport.websocket {
        None => stream,
        Some(request) => {
            let path = request.path.split('?').next().unwrap_or_default();
            let what = format!("a WebSocket for MQTT at {path}");
            step("websocket", within, dial::upgraded(stream, options), what, tell).await?
        }
    };
    connect(stream, peer, options, tell).await
}

/// Runs one step and reports its finding.
async fn step<T>(
    step: &'static str,
    within: Duration,
    doing: impl Future<Output = Result<T, Failure>>,
    what: String,
    tell: Tell<'_>,
) -> Option<T> {
    let since = Instant::now();
    let why = match timeout(within, doing).await {
        Ok(Ok(done)) => {
            tell(Finding::fine(step, format!("{what} ({})", took(since))));
            return Some(done);
        }
        Ok(Err(why)) => why.what,
        Err(_) => format!("no answer within {}", humantime::format_duration(within)),
    };
    tell(Finding::wrong(step, why));
    None
}

async fn name(options: &Options, within: Duration, tell: Tell<'_>) -> Option<Vec<SocketAddr>> {
    let ((host, port), since) = (dial::first_stop(options), Instant::now());
    let found = timeout(within, dial::resolve(host, port)).await;
    let what = match found {
        Ok(Ok(addresses)) if !addresses.is_empty() => {
            let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            let what = format!("{host} is {} ({})", shown.join(", "), took(since));
            tell(Finding::fine("name", what));
            return Some(addresses);
        }
        Ok(Ok(_)) => format!("the name {host} has no address"),
        Ok(Err(why)) => why.what,
        Err(_) => format!("no name server said within {} what {host} is", humantime::format_duration(within)),
    };
    tell(Finding::wrong("name", what));
    None
}

/// Tries all addresses; the first one that answers is used.
async fn tcp(addresses: &[SocketAddr], options: &Options, tell: Tell<'_>) -> Option<(TcpStream, SocketAddr)> {
    let within = options.connect_timeout;
    let mut first = None;
    let mut dead = Vec::new();
    for address in addresses {
        let since = Instant::now();
        match timeout(within, dial::reach(*address, &options.transport)).await {
            Ok(Ok(stream)) => {
                tell(Finding::fine("tcp", format!("{address} answers ({})", took(since))));
                first.get_or_insert((stream, *address));
            }
            Ok(Err(what)) => dead.push(format!("{address}: {what}")),
            Err(_) => dead.push(format!("{address}: no answer within {}", humantime::format_duration(within))),
        }
    }
    for what in dead {
        // The gateway tries the next one after a quarter of a second.
        let verdict = if first.is_some() { Verdict::Note } else { Verdict::Wrong };
        tell(Finding { verdict, step: "tcp", what });
    }
    first
}

async fn shake_hands(tcp: TcpStream, peer: SocketAddr, options: &Options, tell: Tell<'_>) -> Option<Stream> {
    let config = options.tls.clone()?;
    let (within, since) = (options.connect_timeout, Instant::now());
    match timeout(within, dial::secure(tcp, config, &options.host)).await {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let version = match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
                _ => "TLS 1.2",
            };
            tell(Finding::fine("tls", format!("{version}, and the certificate is accepted ({})", took(since))));
            show(session.peer_certificates().unwrap_or_default(), Verdict::Fine, tell);
            return Some(Stream::Tls(Box::new(stream)));
        }
        Ok(Err(why)) => tell(Finding::wrong("tls", why.what)),
        Err(_) => {
            let within = humantime::format_duration(within);
            tell(Finding::wrong(
                "tls",
                format!("no answer within {within}; if that port is not for TLS, write mqtt://"),
            ))
        }
    }
    // Shows the server's certificates, trusted or not.
    let shown = async {
        let config = tls::looking().ok()?;
        let mut tcp = dial::reach(peer, &options.transport).await.ok()?;
        if let Some(proxy) = &options.transport.proxy {
            proxy::tunnel(&mut tcp, proxy, &options.host, options.port).await.ok()?;
        }
        let stream = dial::secure(tcp, config, &options.host).await.ok()?;
        stream.get_ref().1.peer_certificates().map(<[_]>::to_vec)
    };
    if let Ok(Some(chain)) = timeout(within, shown).await {
        show(
            &chain.iter().map(|certificate| certificate.clone().into_owned()).collect::<Vec<_>>(),
            Verdict::Note,
            tell,
        );
    }
    None
}

/// Reports the properties of the chain.
fn show(chain: &[CertificateDer<'_>], verdict: Verdict, tell: Tell<'_>) {
    let now = SystemClock::new().now();
    for (number, der) in chain.iter().enumerate() {
        let Some(found) = Certificate::of(der) else {
            tell(Finding::note("chain", "a certificate that cannot be read".to_owned()));
            continue;
        };
        let names = match (number, found.names.as_slice()) {
            (0, []) => ", for no name (subjectAltName is missing)".to_owned(),
            (_, []) => String::new(),
            (_, names) => format!(", for {}", names.join(", ")),
        };
        let issuer =
            if found.is_self_signed() { "itself".to_owned() } else { format!("\"{}\"", found.issuer.escape_debug()) };
        let version = if found.version == 3 { String::new() } else { format!(", X.509 version {}", found.version) };
        let until = found.validity.not_after.to_string();
        let until = until.split('T').next().unwrap_or_default();
        let pin = if number == 0 { format!(", public key {}", found.pin()) } else { String::new() };
        let subject = found.subject.escape_debug();
        let what = format!("\"{subject}\"{names}, signed by {issuer}, valid until {until}{version}{pin}");
        tell(Finding { verdict, step: "chain", what });
        if let Some(lapse) = found.validity.lapse(now.wall, now.trusted) {
            let what = format!("the certificate of \"{subject}\" {lapse}; have the broker's renewed");
            let verdict = if matches!(lapse, Lapse::Expired(_)) { verdict } else { Verdict::Note };
            tell(Finding { verdict, step: "chain", what });
        }
    }
}

async fn connect(stream: Stream, peer: SocketAddr, options: &Options, tell: Tell<'_>) -> Option<Connection> {
    let (within, since) = (options.connect_timeout, Instant::now());
    let mut connection = Connection::over(stream, peer, options);
    match timeout(within, connection.accepted()).await {
        Ok(Ok(())) => {
            let told: Vec<String> = [
                connection.max_packet().map(|most| format!("packets of at most {most} bytes")),
                connection.receive_maximum().map(|most| format!("at most {most} publishes under way")),
            ]
            .into_iter()
            .flatten()
            .collect();
            let told =
                if told.is_empty() { "tells no limits".to_owned() } else { format!("tells: {}", told.join(", ")) };
            let version = match options.version {
                Version::V3_1_1 => "3.1.1",
                Version::V5 => "5",
            };
            let what = format!(
                "MQTT {version} as {:?}: it accepts the gateway and {told} ({})",
                options.client_id,
                took(since)
            );
            tell(Finding::fine("connect", what));
            return Some(connection);
        }
        Ok(Err(why)) => tell(Finding::wrong("connect", why.what)),
        Err(_) => {
            let within = humantime::format_duration(within);
            tell(Finding::wrong("connect", format!("no answer to CONNECT within {within}")));
        }
    }
    None
}

/// Time since `since`, in milliseconds.
pub fn took(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}
