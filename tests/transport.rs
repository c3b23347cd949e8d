//! Ways to a broker: over WebSocket, through a proxy, by an interface.

use crate::connect::{check, says};
use crate::support::broker::{Broker, is_real};
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::support::subscriber::options;
use crate::support::tls::Certificates;
use crate::support::{eventually, free_port};
use crate::uplink::{DELIVERED, send};
use futures_util::{SinkExt, StreamExt};
use std::sync::{Arc, Mutex};
use tidegate::config::{Bind, Header};
use tidegate::mqtt::{Connection, Options, Proxy, Request, Transport};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::server;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Message, frame::coding::CloseCode};
use tokio_tungstenite::{accept_async, accept_hdr_async};

/// Whoever connects is served by `serve`; the port and the task.
async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (u16, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream));
        }
    });
    (port, task)
}

/// Who answers each connection with these bytes once it asked for something.
async fn answers(bytes: &'static [u8]) -> (u16, JoinSet<()>) {
    listen(async move |mut stream: TcpStream| {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_buf(&mut asked).await;
    })
    .await
}

/// A WebSocket before a broker of TCP: to the client every byte is a message of its own, with
/// pings between them. Gives the request's path and headers.
async fn bridge<S: AsyncRead + AsyncWrite + Unpin>(stream: S, broker: u16, asked: Arc<Mutex<Vec<String>>>) {
    #[allow(clippy::result_large_err, reason = "tungstenite's own type")]
    let look = |request: &server::Request, mut response: server::Response| {
        let header = |name| request.headers().get(name).map(|value| format!("{value:?}")).unwrap_or_default();
        let line = format!("{} {} {}", request.uri(), header("sec-websocket-protocol"), header("x-key"));
        asked.lock().expect("nobody panicked").push(line);
        response.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().expect("a value"));
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, look).await else { return };
    let mut tcp = TcpStream::connect(("127.0.0.1", broker)).await.expect("the broker listens");
    let mut bytes = vec![0; 1024];
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(data))) => tcp.write_all(&data).await.expect("the broker reads"),
                Some(Ok(Message::Pong(_) | Message::Ping(_))) => {}
                _ => return,
            },
            read = tcp.read(&mut bytes) => match read {
                Ok(read @ 1..) => for byte in &bytes[..read] {
                    socket.send(Message::Ping(vec![*byte; 3].into())).await.expect("the client reads");
                    socket.send(Message::Binary(vec![*byte].into())).await.expect("the client reads");
                },
                _ => {
                    let _ = socket.close(None).await;
                    return;
                }
            },
        }
    }
}

fn over_websocket(port: u16) -> Options {
    let request = Request { path: "/mqtt".into(), headers: Vec::new() };
    Options { transport: Transport { websocket: Some(request), ..Transport::default() }, ..options(port) }
}

async fn failure(options: &Options) -> String {
    match Connection::open(options).await {
        Ok(_) => panic!("it is connected"),
        Err(failure) => failure.what,
    }
}

#[tokio::test]
async fn readings_reach_mosquitto_over_its_websocket_listener() {
    if !is_real() {
        return;
    }
    let port = free_port();
    let broker =
        Broker::mosquitto(&format!("allow_anonymous true\nlistener {port} 127.0.0.1\nprotocol websockets")).await;
    for version in ["3.1.1", "5"] {
        let keys = format!("version = {version:?}\n");
        let gateway = Gateway::with_broker(&format!("ws://127.0.0.1:{port}"), &keys).started().await;
        send(&gateway, 2000).await;
        gateway.figure_becomes(DELIVERED, |delivered| delivered == 2000.0).await;
    }
    let (code, said) = check(&format!("brokers = [\"ws://127.0.0.1:{port}/mqtt\"]")).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(says(&said, "ok", "websocket", "a WebSocket for MQTT at /mqtt"), "{said}");
    assert!(says(&said, "ok", "right", "tidegate/gw/readings: published, and came back"), "{said}");
    drop(broker);
}

#[tokio::test]
async fn readings_go_over_a_websocket_with_tls_its_path_and_headers_however_it_is_cut() {
    let certificates = Certificates::new();
    let script = Script::start(Manners { v5: true, ..Manners::default() }).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (acceptor, seen, broker) = (certificates.acceptor(), asked.clone(), script.port);
    let (port, _task) = listen(move |stream| {
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                bridge(stream, broker, seen).await;
            }
        }
    })
    .await;
    let keys = format!(
        "websocket_headers = [\"X-Key: 1234\"]\nca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}\n",
        certificates.path("ca.pem"),
        certificates.path("client.pem"),
        certificates.path("client.key")
    );
    let gateway = Gateway::with_broker(&format!("wss://localhost:{port}/ws/a?key=secret"), &keys).started().await;
    send(&gateway, 500).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    assert_eq!(script.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
    let asked = asked.lock().expect("nobody panicked").clone();
    assert_eq!(asked, ["/ws/a?key=secret \"mqtt\" \"1234\""]);
    assert!(!gateway.log().contains("secret"), "{}", gateway.log());
}

#[tokio::test]
async fn what_refuses_a_websocket_is_told_by_its_answer() {
    for (answer, expected) in [
        (
            &b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..],
            "no WebSocket at /mqtt: HTTP 404 Not Found; check the path",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\ntoken has expired",
            "HTTP 403 Forbidden, and says \"token has expired\"; check username",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/login\r\n\r\n",
            "HTTP 302 Found, and sends to \"http://portal.example/login\"; that is a web server, a portal",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "without a valid Sec-WebSocket-Accept",
        ),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS and not plain HTTP; if that port is for TLS, write wss://"),
        (b"\x20\x02\x00\x05", "does not speak HTTP: it says the bytes 20 02 00 05"),
    ] {
        let (port, _task) = answers(answer).await;
        let said = failure(&over_websocket(port)).await;
        assert!(said.contains(expected), "{said}");
    }
    let (port, _task) = listen(async |stream| {
        let Ok(mut socket) = accept_async(stream).await else { return };
        let frame = CloseFrame { code: CloseCode::Policy, reason: "Not Today".into() };
        let _ = socket.close(Some(frame)).await;
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    let said = failure(&over_websocket(port)).await;
    assert_eq!(said, "the broker closed the WebSocket: code 1008 \"Not Today\"");
    let (port, _task) = listen(async |stream| {
        let Ok(mut socket) = accept_async(stream).await else { return };
        let _ = socket.send(Message::Text("hello".into())).await;
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    let said = failure(&over_websocket(port)).await;
    assert!(said.contains("it sends text, which is not MQTT"), "{said}");
}

/// A proxy that lets out whoever shows `login`; each request, too.
async fn proxy(login: &'static str) -> (u16, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    let (port, task) = listen(move |mut stream| {
        let requests = requests.clone();
        async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let asked = String::from_utf8_lossy(&asked).into_owned();
            let target = asked.split(' ').nth(1).expect("a target").to_owned();
            let lets_out = asked.contains(&format!("Proxy-Authorization: Basic {login}\r\n"));
            requests.lock().expect("nobody panicked").push(asked);
            if !lets_out {
                let refusal = "HTTP/1.1 407 Who Are You\r\nProxy-Authenticate: Basic realm=\"plant\"\r\n\r\n";
                let _ = stream.write_all(refusal.as_bytes()).await;
                return;
            }
            let Ok(mut broker) = TcpStream::connect(target).await else { return };
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("it reads");
            let _ = copy_bidirectional(&mut stream, &mut broker).await;
        }
    })
    .await;
    (port, seen, task)
}

#[tokio::test]
async fn a_proxy_lets_readings_out_with_the_password_of_a_file() {
    let script = Script::start(Manners::default()).await;
    // gw:geheim
    let (port, requests, _task) = proxy("Z3c6Z2VoZWlt").await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let password = directory.path().join("password");
    std::fs::write(&password, "falsch\n").expect("a file");
    let keys =
        format!("proxy = \"http://127.0.0.1:{port}\"\nproxy_username = \"gw\"\nproxy_password_file = {password:?}\n");
    let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
    gateway.says("HTTP 407 Who Are You; check proxy_username and proxy_password_file").await;
    std::fs::write(&password, "geheim\n").expect("a file");
    send(&gateway, 100).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 100.0).await;
    let first = requests.lock().expect("nobody panicked")[0].clone();
    let target = format!("127.0.0.1:{}", script.port);
    assert!(first.starts_with(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n")), "{first}");
}

#[tokio::test]
async fn the_environment_s_proxy_is_used_where_the_configuration_says_so() {
    // Loopback is left out, so the broker has a name that the proxy alone is to look up.
    for (key, asked) in [("proxy = \"environment\"\n", true), ("", false)] {
        let (port, requests, _task) = proxy("bWU6cEBzcw==").await; // me:p@ss
        let variables = format!("http://me:p%40ss@127.0.0.1:{port}");
        let mut gateway = Gateway::with_broker("mqtt://broker.invalid", key);
        gateway.launch_with(&[("HTTPS_PROXY", &variables)]);
        eventually("it tried", async || gateway.log().contains("broker.invalid")).await;
        let seen = requests.lock().expect("nobody panicked").clone();
        assert_eq!(!seen.is_empty(), asked, "{seen:?}");
        assert!(!gateway.log().contains("p@ss") && !gateway.log().contains("p%40ss"));
    }
}

#[tokio::test]
async fn what_a_proxy_says_stands_in_the_message() {
    for (answer, expected) in [
        (
            &b"HTTP/1.1 403 Blocked by policy\r\n\r\n"[..],
            "HTTP 403 Blocked by policy; many proxies allow port 443 only",
        ),
        (
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\r\n",
            "it wants Negotiate, and the gateway supports only Basic",
        ),
        (b"HTTP/1.1 407 No\r\n\r\n", "HTTP 407 No; give proxy_username and proxy_password_file"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "HTTP 502 Bad Gateway; it could not reach the broker itself"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP: it says \"SSH-2.0-OpenSSH_9.2\""),
        (b"", "closed the connection without an answer"),
    ] {
        let (port, _task) = match answer.is_empty() {
            false => answers(answer).await,
            true => listen(async |stream| drop(stream)).await,
        };
        let proxy = Some(Proxy { host: "127.0.0.1".into(), port, login: None });
        let transport = Transport { proxy, ..Transport::default() };
        let options = Options { host: "broker.invalid".into(), transport, ..options(8883) };
        let said = failure(&options).await;
        assert!(said.contains(&format!("the proxy 127.0.0.1:{port}")), "{said}");
        let expected_or_reset = said.contains(expected) || answer.is_empty() && said.contains("closed the connection");
        assert!(expected_or_reset, "{said}");
    }
}

#[tokio::test]
async fn connections_go_out_by_the_address_or_interface_that_is_given() {
    let from = Arc::new(Mutex::new(Vec::new()));
    let seen = from.clone();
    let (port, _task) = listen(move |mut stream: TcpStream| {
        seen.lock().expect("nobody panicked").push(stream.peer_addr().expect("an address").ip().to_string());
        async move {
            let _ = stream.write_all(&[0x20, 2, 0, 0]).await;
            let _ = stream.read_buf(&mut Vec::new()).await;
        }
    })
    .await;
    let by = |bind: &str| {
        let bind: Option<Bind> = Some(bind.parse().expect("a place"));
        Options { transport: Transport { bind, ..Transport::default() }, ..options(port) }
    };
    Connection::open(&by("127.0.0.5")).await.expect("it listens");
    assert_eq!(*from.lock().expect("nobody panicked"), ["127.0.0.5"]);
    let said = failure(&by("::1")).await;
    assert!(said.contains("::1 of bind is of the other family"), "{said}");
    let said = failure(&by("192.0.2.1")).await;
    assert!(said.contains("the address 192.0.2.1 of bind cannot be used"), "{said}");
    let said = failure(&by("nosuch0")).await;
    assert!(said.contains("the interface nosuch0"), "{said}");
    // Not every sandbox lets a socket choose.
    if let Err(failure) = Connection::open(&by("lo")).await {
        assert!(failure.what.contains("CAP_NET_RAW"), "{}", failure.what);
    }
}

#[test]
fn a_header_that_the_gateway_gives_itself_is_refused() {
    assert!("Host: elsewhere".parse::<Header>().is_err());
}
