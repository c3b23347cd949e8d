//! Establishes a connection to a broker: addresses, TCP, proxy, TLS and WebSocket.
//!
//! Addresses of both families are tried in turn, each a little after the one before, and the
//! first that answers is used (Happy Eyeballs, RFC 8305): an unreachable address, such as a
//! broken IPv6, costs a quarter of a second.

use super::options::Options;
use super::transport::Transport;
use super::websocket::{self, Ended, Socket};
use super::{http, proxy};
use crate::backoff::Failure;
use crate::config::Bind;
use crate::{files, pem};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection that carries bytes.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Over one of the others.
    WebSocket(Box<Socket<Stream>>),
}

/// Connection Attempt Delay (RFC 8305, 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Connects; `worked` is tried first if the name still has it.
///
/// # Errors
/// If no address of the name can be reached, or proxy, TLS or WebSocket fails.
pub(super) async fn dial(options: &Options, worked: Option<SocketAddr>) -> Result<(Stream, SocketAddr), Failure> {
    let Options { host, port, transport, .. } = options;
    let (first_host, first_port) = first_stop(options);
    let addresses = in_turn(resolve(first_host, first_port).await?, worked);
    let mut tcp = first_to_answer(&addresses, transport).await?;
    let peer = tcp.peer_addr().map_err(|why| broken_off(&why))?;
    if let Some(proxy) = &transport.proxy {
        proxy::tunnel(&mut tcp, proxy, host, *port).await?;
    }
    let stream = match &options.tls {
        None => Stream::Plain(tcp),
        Some(tls) => Stream::Tls(Box::new(secure(tcp, tls.clone(), host).await?)),
    };
    Ok((upgraded(stream, options).await?, peer))
}

/// The address to connect to: the proxy's, if there is one.
pub(super) fn first_stop(options: &Options) -> (&str, u16) {
    match &options.transport.proxy {
        Some(proxy) => (&proxy.host, proxy.port),
        None => (&options.host, options.port),
    }
}

/// Upgrades to a WebSocket, if one is configured.
///
/// # Errors
/// If the upgrade fails.
pub(super) async fn upgraded(stream: Stream, options: &Options) -> Result<Stream, Failure> {
    let Some(request) = &options.transport.websocket else { return Ok(stream) };
    let host = http::host(&options.host, options.port, options.tls.is_some());
    let socket = websocket::open(stream, request, &host).await?;
    Ok(Stream::WebSocket(Box::new(socket)))
}

/// Resolves a name.
///
/// # Errors
/// If it cannot be resolved.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let found = lookup_host((host, port)).await.map_err(|_| {
        Failure::transient(format!("the name {host} is not known: is there a network, and a name server?"))
    })?;
    Ok(found.collect())
}

/// Connects to one address.
///
/// # Errors
/// Why it failed, as a message.
pub(super) async fn reach(address: SocketAddr, transport: &Transport) -> Result<TcpStream, String> {
    let plain = |why: io::Error| files::plain(&why);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(plain)?;
    match &transport.bind {
        None => {}
        Some(Bind::Interface(name)) => socket.bind_device(Some(name.as_bytes())).map_err(|why| match why.kind() {
            ErrorKind::PermissionDenied => format!(
                "this user may not choose the interface {name}; give the service AmbientCapabilities=CAP_NET_RAW, or the \
                 interface's address as bind"
            ),
            _ => format!("the interface {name} of bind cannot be used: {}", plain(why)),
        })?,
        Some(Bind::Address(from)) if from.is_ipv4() != address.is_ipv4() => {
            return Err(format!("{from} of bind is of the other family"));
        }
        Some(Bind::Address(from)) => socket
            .bind(SocketAddr::new(*from, 0))
            .map_err(|why| format!("the address {from} of bind cannot be used: {}", plain(why)))?,
    }
    if transport.dscp > 0 {
        // The lowest two bits are for congestion (RFC 3168). A system without the option is accepted.
        let class = u32::from(transport.dscp) << 2;
        let _ = if address.is_ipv4() { socket.set_tos_v4(class) } else { socket.set_tclass_v6(class) };
    }
    let stream = socket.connect(address).await.map_err(plain)?;
    // Small packets are not delayed.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// TLS handshake with `host`.
///
/// # Errors
/// If it fails.
pub(super) async fn secure(
    tcp: TcpStream,
    tls: Arc<ClientConfig>,
    host: &str,
) -> Result<TlsStream<TcpStream>, Failure> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::permanent(format!("{host} is no name that a certificate can be for")))?;
    TlsConnector::from(tls).connect(name, tcp).await.map_err(|why| no_tls(&why))
}

/// The addresses in the order in which they are tried: the families alternate, starting with
/// that of the first, and `worked` comes before all.
fn in_turn(found: Vec<SocketAddr>, worked: Option<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        match (first.next(), second.next()) {
            (None, None) => break,
            (one, other) => order.extend(one.into_iter().chain(other)),
        }
    }
    if let Some(place) = worked.and_then(|worked| order.iter().position(|address| *address == worked)) {
        order[..=place].rotate_right(1);
    }
    order
}

async fn first_to_answer(addresses: &[SocketAddr], transport: &Transport) -> Result<TcpStream, Failure> {
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    let mut left = addresses.iter().copied();
    loop {
        if let Some(address) = left.next() {
            let transport = transport.clone();
            attempts.spawn(async move { (address, reach(address, &transport).await) });
        }
        let delay = async {
            if left.len() == 0 {
                std::future::pending().await
            }
            sleep(NEXT_ADDRESS_AFTER).await;
        };
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(what)))) => failures.push(format!("{address}: {what}")),
                Some(Err(_)) => {}
                None if failures.is_empty() => return Err(Failure::transient("the name has no address".to_owned())),
                None => return Err(Failure::transient(failures.join(", "))),
            },
            () = delay => {}
        }
    }
}

/// The error of a connection that the network ended.
pub(super) fn broken_off(why: &io::Error) -> Failure {
    if let Some(Ended(what)) = why.get_ref().and_then(|why| why.downcast_ref()) {
        return Failure::transient(what.clone());
    }
    if let Some(why) = why.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>()) {
        return Failure::transient(format!("TLS broke off: {}", pem::plain(why)));
    }
    Failure::transient(format!("the connection broke off: {}", files::plain(why)))
}

fn no_tls(why: &io::Error) -> Failure {
    Failure::transient(match why.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "what answers there does not speak TLS; if that port is not for TLS, write mqtt:// in `brokers`".to_owned()
        }
        Some(why) => format!("TLS failed: {}", pem::plain(why)),
        None => format!(
            "the broker closed the connection when TLS began ({}); if that port is not for TLS, write mqtt:// in `brokers`",
            files::plain(why)
        ),
    })
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::WebSocket(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::WebSocket(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::WebSocket(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::WebSocket(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_what_worked_comes_first() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let [six, other_six, four, other_four] =
            ["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1"].map(address);
        let found = vec![six, other_six, four, other_four];
        assert_eq!(in_turn(found.clone(), None), [six, four, other_six, other_four]);
        assert_eq!(in_turn(found.clone(), Some(other_four)), [other_four, six, four, other_six]);
        assert_eq!(in_turn(vec![four, six], Some(address("192.0.2.9:1"))), [four, six], "it is gone");
        assert_eq!(in_turn(Vec::new(), Some(four)), [], "and so are all");
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_keep_the_next_one_from_being_used() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let there = listener.local_addr().expect("an address");
        // With a full backlog, Linux does not answer.
        let hole = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let black = hole.local_addr().expect("an address");
        let mut crowd = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(black)).await {
            crowd.push(stream);
        }
        let stream = first_to_answer(&[black, there], &Transport::default()).await.expect("the second answers");
        assert_eq!(stream.peer_addr().expect("an address"), there);
        let refused = first_to_answer(&[address_of_nobody()], &Transport::default()).await.expect_err("nobody listens");
        assert!(refused.what.contains("nothing listens there"), "{}", refused.what);
        let nothing = first_to_answer(&[], &Transport::default()).await.expect_err("no address");
        assert!(nothing.what.contains("no address"), "{}", nothing.what);
    }

    #[tokio::test]
    async fn what_is_sent_has_the_class_that_is_given() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        for dscp in [0, 10, 46] {
            let transport = Transport { dscp, ..Transport::default() };
            let stream = reach(address, &transport).await.expect("it listens");
            let socket = TcpSocket::from_std_stream(stream.into_std().expect("a socket"));
            assert_eq!(socket.tos_v4().expect("an option"), u32::from(dscp) << 2);
        }
    }

    fn address_of_nobody() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    }
}
