//! A broker that behaves as a test tells it to: MQTT 3.1.1 or 5, byte by byte, over
//! TCP or TLS with client certificates.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// How the broker behaves.
#[derive(Clone, Default)]
pub struct Manners {
    /// Speak MQTT 5 beside 3.1.1.
    pub v5: bool,
    pub tls: Option<TlsAcceptor>,
    /// User and password to insist on; wrong ones get this CONNACK code.
    pub credentials: Option<(String, String, u8)>,
    /// Told in CONNACK (MQTT 5); more outstanding publishes end the connection.
    pub receive_maximum: Option<u16>,
    /// Larger packets end the connection.
    pub max_packet: Option<usize>,
    /// Whether `max_packet` is told in CONNACK (MQTT 5).
    pub tells_max_packet: bool,
    /// PUBACKs before the connection is dropped, on each of the first connections.
    pub drop_after: Vec<usize>,
    /// PUBACKs are held until this many publishes wait for one, then sent newest first.
    pub ack_backwards: usize,
    /// Publishes are refused (MQTT 5).
    pub refuses_publishes: bool,
    /// Of these topics publishes are refused (MQTT 5), or end the connection.
    pub denied: Option<fn(&str) -> bool>,
    /// Subscriptions are refused.
    pub refuses_subscriptions: bool,
    /// They end the connection.
    pub ends_subscribers: bool,
    /// Sent behind CONNACK, as they are.
    pub sends: Vec<u8>,
    /// Nothing is answered until one of the messages that it `sends` is confirmed.
    pub holds_answers: bool,
    /// After so many PUBACKs on a connection there are no more, though pings are answered.
    pub silent_after: Option<usize>,
    /// On the first connection this publish, counted from 1, gets no PUBACK.
    pub forgets: Option<usize>,
    /// Each PUBACK is sent twice, and one with it for what was never sent.
    pub babbles: bool,
    /// MQTT 5 is refused by closing the connection, in place of a CONNACK of MQTT 3.1.1.
    pub closes_at_5: bool,
    /// A retained message ends the connection; with MQTT 5 the code says why.
    pub retains_nothing: bool,
    /// CONNACK says that nothing is retained (MQTT 5), and nothing is refused for that.
    pub tells_no_retain: bool,
    /// CONNACK says that filters may have no wildcards (MQTT 5).
    pub no_wildcards: bool,
    /// Sent in place of CONNACK on each of the first connections, which end then.
    pub answers: Vec<Vec<u8>>,
    /// More publishes than this in a second, over all connections, are discarded; with MQTT 5
    /// they are refused for the quota (0x97).
    pub most_a_second: Option<usize>,
    /// PUBACKs come up to so much later, in any order.
    pub late: Option<Duration>,
    /// Of a thousand publishes so many get no PUBACK, so many end the connection.
    pub loses: u32,
    pub closes: u32,
}

/// What came.
#[derive(Debug, Default)]
pub struct Seen {
    /// When each connection asked to be let in.
    pub connects: Vec<std::time::Instant>,
    /// Topic and payload of everything that was acknowledged.
    pub acked: Vec<(String, Vec<u8>)>,
    /// The most publishes that were outstanding at one time.
    pub most_outstanding: usize,
    /// Publishes to topics that are denied.
    pub denied: usize,
    /// Packets that were too large.
    pub too_large: usize,
    /// Ids of messages that were confirmed to the broker.
    pub confirmed: Vec<u16>,
    /// Protocol level of each CONNECT.
    pub levels: Vec<u8>,
    /// Messages that were to be retained.
    pub retained: usize,
    pub filters: Vec<String>,
    /// CONNECTs with a Last Will.
    pub wills: usize,
    /// Connections that took leave.
    pub left: usize,
    /// When each publish was taken that is limited by `most_a_second`, and how many were not.
    pub taken_at: Vec<std::time::Instant>,
    pub discarded: usize,
}

pub struct Script {
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

impl Script {
    pub async fn start(manners: Manners) -> Script {
        Script::start_on(0, manners).await
    }

    /// The same on this port.
    pub async fn start_on(port: u16, manners: Manners) -> Script {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut task = JoinSet::new();
        task.spawn(serve(listener, manners, seen.clone()));
        Script { port, seen, _task: task }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.seen.lock().expect("no test panicked there"))
    }
}

async fn serve(listener: TcpListener, manners: Manners, seen: Arc<Mutex<Seen>>) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let (manners, seen) = (manners.clone(), seen.clone());
        let drop_after = manners.drop_after.get(number).copied();
        let forgets = manners.forgets.filter(|_| number == 0);
        number += 1;
        connections.spawn(async move {
            match manners.tls.clone() {
                None => converse(stream, &manners, (drop_after, forgets), &seen).await,
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => converse(stream, &manners, (drop_after, forgets), &seen).await,
                    Err(_) => None,
                },
            }
        });
    }
}

/// Reads one packet: its first byte and what follows the length. `None` at the end.
pub async fn packet<S: AsyncRead + Unpin>(stream: &mut S) -> Option<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.ok()?;
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let byte = stream.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((first, body))
}

/// The string or bytes at `at`, and where they end.
pub fn field(body: &[u8], at: usize) -> (&[u8], usize) {
    let length = usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    (&body[at + 2..at + 2 + length], at + 2 + length)
}

/// Where that begins which follows the properties at `at`, if there are any.
pub fn behind_properties(body: &[u8], mut at: usize, v5: bool) -> usize {
    if !v5 {
        return at;
    }
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let byte = body[at];
        at += 1;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    at + length
}

/// Topic, packet id and payload of a publish with QoS 1.
pub fn publish(body: &[u8], v5: bool) -> (String, u16, &[u8]) {
    let (topic, at) = field(body, 0);
    let id = u16::from_be_bytes([body[at], body[at + 1]]);
    (String::from_utf8_lossy(topic).into_owned(), id, &body[behind_properties(body, at + 2, v5)..])
}

/// Filter and options of a subscription.
pub fn subscription(body: &[u8], v5: bool) -> (String, u8) {
    let (filter, at) = field(body, behind_properties(body, 2, v5));
    (String::from_utf8_lossy(filter).into_owned(), body[at])
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    manners: &Manners,
    first_connections: (Option<usize>, Option<usize>),
    seen: &Mutex<Seen>,
) -> Option<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let (answers, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let write = async {
        while let Some(answer) = queue.recv().await {
            if writer.write_all(&answer).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(talk(reader, Answers(answers), manners, first_connections, seen), write).0
}

/// What is to be written.
struct Answers(mpsc::UnboundedSender<Vec<u8>>);

impl Answers {
    fn write(&self, bytes: &[u8]) {
        // The far end may be gone, which shows in what is read.
        let _ = self.0.send(bytes.to_vec());
    }
}

async fn talk<R: AsyncRead + Unpin>(
    mut stream: R,
    answers: Answers,
    manners: &Manners,
    (drop_after, forgets): (Option<usize>, Option<usize>),
    seen: &Mutex<Seen>,
) -> Option<()> {
    let locked = || seen.lock().expect("no test panicked there");
    let (_, connect) = packet(&mut stream).await?;
    let level = connect[6];
    locked().levels.push(level);
    let v5 = manners.v5 && level == 5;
    if level == 5 && !v5 {
        if !manners.closes_at_5 {
            answers.write(&[0x20, 2, 0, 1]);
        }
        return None;
    }
    locked().wills += usize::from(connect[7] & 0x04 != 0);
    let number = locked().connects.len();
    locked().connects.push(std::time::Instant::now());
    let code = match &manners.credentials {
        Some((user, password, code)) if !credentials_are(&connect, v5, user, password) => *code,
        _ => 0,
    };
    if let Some(answer) = manners.answers.get(number) {
        answers.write(answer);
        return None;
    }
    // With a Last Will that is to be retained.
    if connect[7] & 0x24 == 0x24 {
        locked().retained += 1;
        if manners.retains_nothing && v5 {
            answers.write(&[0x20, 3, 0, 0x9a, 0]);
            return None;
        }
    }
    answers.write(&connack(manners, v5, code));
    if code != 0 {
        return None;
    }
    answers.write(&manners.sends);
    let mut came = 0;
    let mut waiting: Vec<(u16, String, Vec<u8>)> = Vec::new();
    let mut acks = 0;
    let mut late = JoinSet::new();
    let mut held = VecDeque::new();
    while manners.holds_answers && held.back().is_none_or(|(first, _): &(u8, _)| first >> 4 != 4) {
        held.push_back(packet(&mut stream).await?);
    }
    loop {
        let (first, body) = match held.pop_front() {
            Some(packet) => packet,
            None => packet(&mut stream).await?,
        };
        match first >> 4 {
            3 if first & 1 != 0 && manners.retains_nothing => {
                if v5 {
                    answers.write(&[0xe0, 2, 0x9a, 0]);
                }
                return None;
            }
            3 => {
                locked().retained += usize::from(first & 1);
                if manners.max_packet.is_some_and(|max| body.len() + 5 > max) {
                    locked().too_large += 1;
                    return None;
                }
                let (topic, id, payload) = publish(&body, v5);
                if manners.denied.is_some_and(|denied| denied(&topic)) {
                    locked().denied += 1;
                    if !v5 {
                        return None;
                    }
                    let [high, low] = id.to_be_bytes();
                    answers.write(&[0x40, 3, high, low, 0x87]);
                    continue;
                }
                came += 1;
                if manners.silent_after.is_some_and(|most| acks >= most) || forgets == Some(came) {
                    continue;
                }
                if manners.most_a_second.is_some_and(|most| exceeds(most, seen)) {
                    if v5 {
                        let [high, low] = id.to_be_bytes();
                        answers.write(&[0x40, 3, high, low, 0x97]);
                    }
                    continue;
                }
                waiting.push((id, topic, payload.to_vec()));
                let most = manners.receive_maximum.map_or(usize::MAX, usize::from);
                count_outstanding(seen, waiting.len());
                if waiting.len() > most {
                    return None;
                }
                if manners.receive_maximum.is_some() {
                    // Whoever sends more than allowed is to be caught.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                if waiting.len() < manners.ack_backwards && !waiting[0].1.ends_with("/status") {
                    continue;
                }
                while let Some((id, topic, payload)) = waiting.pop() {
                    if drop_after.is_some_and(|after| acks >= after) {
                        return None;
                    }
                    if chance(manners.closes) {
                        return None;
                    }
                    acks += 1;
                    locked().acked.push((topic, payload));
                    let [high, low] = id.to_be_bytes();
                    if chance(manners.loses) {
                        continue;
                    }
                    if let Some(most) = manners.late {
                        let (answers, after) = (answers.0.clone(), most.mul_f64(fastrand::f64()));
                        while late.try_join_next().is_some() {}
                        late.spawn(async move {
                            tokio::time::sleep(after).await;
                            let _ = answers.send(vec![0x40, 2, high, low]);
                        });
                        continue;
                    }
                    match manners.refuses_publishes {
                        true => answers.write(&[0x40, 3, high, low, 0x87]),
                        false => answers.write(&[0x40, 2, high, low]),
                    }
                    if manners.babbles {
                        answers.write(&[0x40, 2, high, low, 0x40, 2, 0xff, low]);
                    }
                }
            }
            4 => locked().confirmed.push(u16::from_be_bytes([body[0], body[1]])),
            8 if manners.ends_subscribers => return None,
            8 => {
                locked().filters.push(subscription(&body, v5).0);
                let code = if manners.refuses_subscriptions { 0x80 } else { 1 };
                let answer: &[u8] = match v5 {
                    true => &[0x90, 4, body[0], body[1], 0, code],
                    false => &[0x90, 3, body[0], body[1], code],
                };
                answers.write(answer);
            }
            12 => answers.write(&[0xd0, 0]),
            14 => {
                locked().left += 1;
                return None;
            }
            other => panic!("packet type {other}"),
        }
    }
}

/// Whether one publish more is too much for this second.
fn exceeds(most: usize, seen: &Mutex<Seen>) -> bool {
    let (mut seen, now) = (seen.lock().expect("no test panicked there"), std::time::Instant::now());
    let second = Duration::from_secs(1);
    let taken = seen.taken_at.iter().rev().take_while(|at| now - **at < second).count();
    match taken < most {
        true => seen.taken_at.push(now),
        false => seen.discarded += 1,
    }
    taken >= most
}

/// True so many times of a thousand.
fn chance(of_a_thousand: u32) -> bool {
    fastrand::u32(..1000) < of_a_thousand
}

fn count_outstanding(seen: &Mutex<Seen>, count: usize) {
    let mut seen = seen.lock().expect("no test panicked there");
    seen.most_outstanding = seen.most_outstanding.max(count);
}

fn connack(manners: &Manners, v5: bool, code: u8) -> Vec<u8> {
    if !v5 {
        return vec![0x20, 2, 0, code];
    }
    let mut properties = Vec::new();
    if let Some(maximum) = manners.receive_maximum {
        properties.push(0x21);
        properties.extend(maximum.to_be_bytes());
    }
    if let (Some(max), true) = (manners.max_packet, manners.tells_max_packet) {
        properties.push(0x27);
        properties.extend((max as u32).to_be_bytes());
    }
    if manners.tells_no_retain {
        properties.extend([0x25, 0]);
    }
    if manners.no_wildcards {
        properties.extend([0x28, 0]);
    }
    let mut packet = vec![0x20, 3 + properties.len() as u8, 0, code, properties.len() as u8];
    packet.extend(properties);
    packet
}

fn credentials_are(connect: &[u8], v5: bool, user: &str, password: &str) -> bool {
    let (_, mut at) = field(connect, 0);
    let flags = connect[at + 1];
    at += 4;
    at = behind_properties(connect, at, v5);
    at = field(connect, at).1;
    if flags & 0x04 != 0 {
        at = behind_properties(connect, at, v5);
        at = field(connect, at).1;
        at = field(connect, at).1;
    }
    if flags & 0xc0 != 0xc0 {
        return false;
    }
    let (got_user, at) = field(connect, at);
    let (got_password, _) = field(connect, at);
    got_user == user.as_bytes() && got_password == password.as_bytes()
}
