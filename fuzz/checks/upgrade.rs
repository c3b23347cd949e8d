//! What stands between the gateway and a broker: the answers of a proxy, and of a server of
//! WebSockets with the frames behind. Both come to an end, say why in a few words, and pass on
//! the same bytes however they are cut.
//!
//! Input: a byte that tells who answers (bit 0: a proxy), whether a right answer goes before the
//! rest (bit 1), and how large the pieces are; then what is answered.

use std::fmt::Write;
use std::time::Duration;
use tidegate::mqtt::{Proxy, Request, open_websocket, tunnel};
use tidegate::wire::websocket::accept;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// An answer's head may not be much larger.
const MAX: usize = 8 * 1024;
/// Messages of the log are short.
const LONGEST: usize = 2000;

pub fn check(input: &[u8]) {
    let Some((how, answer)) = input.split_first() else { return };
    if answer.len() > MAX {
        return;
    }
    let (is_proxy, is_right) = (how & 1 != 0, how & 2 != 0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let go = |size| {
        let (here, there) = duplex(1 << 20);
        runtime.block_on(async {
            let both = async { tokio::join!(go(here, is_proxy), far_end(there, is_right, answer, size)).0 };
            tokio::time::timeout(Duration::from_secs(5), both).await.expect("it comes to an end")
        })
    };
    let (whole, cut) = (go(usize::MAX), go(usize::from(how >> 2).max(1)));
    for why in [&whole, &cut].into_iter().filter_map(|(_, why)| why.as_ref()) {
        assert!(!why.is_empty() && why.len() <= LONGEST, "{} bytes: {why}", why.len());
    }
    // What a proxy sends on its own goes unseen if it comes later.
    if !is_proxy {
        assert_eq!(whole.1.is_some(), cut.1.is_some(), "{whole:?} {cut:?}");
        // What is in one piece with a mistake is lost with it.
        assert!(cut.0.starts_with(&whole.0), "{whole:?} {cut:?}");
        assert!(cut.1.is_some() || cut.0 == whole.0, "{whole:?} {cut:?}");
    }
}

/// What is passed on, and what was wrong.
async fn go(mut stream: DuplexStream, is_proxy: bool) -> (Vec<u8>, Option<String>) {
    let mut came = Vec::new();
    if is_proxy {
        let proxy = Proxy { host: "proxy".into(), port: 3128, login: Some(("user".into(), "word".into())) };
        let answer = tunnel(&mut stream, &proxy, "broker", 1883).await;
        return (came, answer.err().map(|why| why.what));
    }
    let request = Request { path: "/mqtt?x=y".into(), headers: Vec::new() };
    let mut socket = match open_websocket(stream, &request, "broker").await {
        Ok(socket) => socket,
        Err(why) => return (came, Some(why.what)),
    };
    let end = socket.read_to_end(&mut came).await;
    (came, end.err().map(|why| why.to_string()))
}

/// Answers in pieces, and closes.
async fn far_end(mut stream: DuplexStream, is_right: bool, answer: &[u8], size: usize) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.expect("a pipe") == 0 {
            return;
        }
    }
    let mut right = String::new();
    if is_right {
        right.push_str("HTTP/1.1 101 Switching Protocols\r\n");
        let request = String::from_utf8(request).expect("a request in ASCII");
        if let Some(key) = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")) {
            write!(right, "Sec-WebSocket-Accept: {}\r\n", accept(key.as_bytes())).expect("a string takes it");
        }
        right.push_str("\r\n");
    }
    let all = [right.as_bytes(), answer].concat();
    for piece in all.chunks(size) {
        // The near end may have had enough.
        if stream.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    let _ = stream.shutdown().await;
    // Its answers to pings.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}
