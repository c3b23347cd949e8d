//! A broker that enforces the documented rules of a cloud, and says which one was broken. The
//! sources of the rules are in `docs/brokers.md`.

use crate::support::script::{behind_properties, field, packet, publish, subscription};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Service {
    AwsIot,
    AzureIotHub,
    AzureEventGrid,
}

/// The name under which the service knows the gateway.
pub const DEVICE: &str = "gw";
/// The key that the hub shares with it.
pub const KEY: &[u8] = b"a secret that the hub and the device know";

#[derive(Default)]
pub struct Seen {
    /// Rules that were broken.
    pub broken: Vec<String>,
    /// Topic and payload of what was confirmed.
    pub taken: Vec<(String, Vec<u8>)>,
    pub filters: Vec<String>,
    pub passwords: Vec<String>,
    /// Connections that took leave.
    pub left: usize,
}

pub struct Cloud {
    pub url: String,
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

impl Cloud {
    /// `command` is sent once a subscription is there: topic and payload.
    pub async fn start(service: Service, acceptor: TlsAcceptor, command: Option<(String, String)>) -> Cloud {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("mqtts://localhost:{}", listener.local_addr().expect("an address").port());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut task = JoinSet::new();
        let noted = seen.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen, command) = (acceptor.clone(), noted.clone(), command.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    if let Err(rule) = converse(stream, service, command, &seen).await {
                        seen.lock().expect("no panic").broken.push(rule);
                    }
                });
            }
        });
        Cloud { url, seen, _task: task }
    }

    pub fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.seen.lock().expect("no panic"))
    }
}

type Kept = Result<(), String>;

fn rule(kept: bool, what: &str) -> Kept {
    if kept { Ok(()) } else { Err(what.to_owned()) }
}

/// Ends the connection at the first rule that is broken, as the services do.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    service: Service,
    command: Option<(String, String)>,
    seen: &Mutex<Seen>,
) -> Kept {
    let Some((_, connect)) = packet(&mut stream).await else { return Ok(()) };
    let v5 = connect[6] == 5;
    let password = check_connect(service, &connect, v5)?;
    seen.lock().expect("no panic").passwords.extend(password);
    let accepted: &[u8] = match v5 {
        // Nothing is retained, and the largest packet.
        true => &[0x20, 10, 0, 0, 7, 0x25, 0, 0x27, 0, 8, 0, 0],
        false => &[0x20, 2, 0, 0],
    };
    stream.write_all(accepted).await.map_err(|why| why.to_string())?;
    while let Some((first, body)) = packet(&mut stream).await {
        let answer = match first >> 4 {
            3 => {
                rule(first & 0x06 == 0x02, "QoS 1")?;
                rule(first & 0x01 == 0, "nothing retained")?;
                let (topic, id, payload) = publish(&body, v5);
                check_topic(service, &topic)?;
                let most = match service {
                    Service::AwsIot => 128 << 10,
                    Service::AzureIotHub => 256 << 10,
                    Service::AzureEventGrid => 512 << 10,
                };
                rule(payload.len() <= most, "the largest payload")?;
                seen.lock().expect("no panic").taken.push((topic, payload.to_vec()));
                let [high, low] = id.to_be_bytes();
                vec![0x40, 2, high, low]
            }
            8 => {
                let (filter, options) = subscription(&body, v5);
                rule(options & 3 <= 1, "QoS 1 at most")?;
                if service == Service::AzureIotHub {
                    rule(filter == format!("devices/{DEVICE}/messages/devicebound/#"), "the hub's own filter")?;
                }
                seen.lock().expect("no panic").filters.push(filter);
                let mut answer = match v5 {
                    true => vec![0x90, 4, body[0], body[1], 0, 1],
                    false => vec![0x90, 3, body[0], body[1], 1],
                };
                if let Some((topic, payload)) = &command {
                    let mut message = vec![0, topic.len() as u8];
                    message.extend(topic.as_bytes());
                    message.extend([0, 7]);
                    message.extend(v5.then_some(0));
                    message.extend(payload.as_bytes());
                    assert!(message.len() < 128, "one byte of length");
                    answer.extend([0x32, message.len() as u8]);
                    answer.extend(message);
                }
                answer
            }
            12 => vec![0xd0, 0],
            14 => {
                seen.lock().expect("no panic").left += 1;
                return Ok(());
            }
            _ => Vec::new(),
        };
        stream.write_all(&answer).await.map_err(|why| why.to_string())?;
    }
    Ok(())
}

/// Returns the password, if there is one.
fn check_connect(service: Service, connect: &[u8], v5: bool) -> Result<Option<String>, String> {
    let text = |at: usize| {
        let (bytes, at) = field(connect, at);
        (String::from_utf8_lossy(bytes).into_owned(), at)
    };
    let properties = |at: usize| behind_properties(connect, at, v5);
    let flags = connect[7];
    let keep_alive = u16::from_be_bytes([connect[8], connect[9]]);
    let (client, mut at) = text(properties(10));
    rule(client == DEVICE, "the client id is the device's")?;
    if flags & 0x04 != 0 {
        rule(flags & 0x20 == 0, "a Last Will that is not retained")?;
        let (topic, after) = text(properties(at));
        check_topic(service, &topic)?;
        at = text(after).1;
    }
    let mut next = |there: bool| {
        there.then(|| {
            let (text, after) = text(at);
            at = after;
            text
        })
    };
    let (user, password) = (next(flags & 0x80 != 0), next(flags & 0x40 != 0));
    match service {
        Service::AwsIot => rule((30..=1200).contains(&keep_alive), "a keep-alive of 30 to 1200 s")?,
        Service::AzureEventGrid => {
            rule(keep_alive <= 1160, "a keep-alive of 1160 s at most")?;
            rule(user.as_deref() == Some(DEVICE), "the user is the client's authentication name")?;
        }
        Service::AzureIotHub => {
            rule(!v5, "MQTT 3.1.1")?;
            rule(keep_alive <= 1177, "a keep-alive of 1177 s at most")?;
            let expected = format!("localhost/{DEVICE}/?api-version=2021-04-12");
            rule(user == Some(expected), "the user name of a hub")?;
            rule(password.as_deref().is_some_and(is_signed), "a token that is signed and has not expired")?;
        }
    }
    Ok(password)
}

fn check_topic(service: Service, topic: &str) -> Kept {
    match service {
        Service::AzureIotHub => {
            let properties = topic.strip_prefix(&format!("devices/{DEVICE}/messages/events/"));
            rule(properties.is_some_and(|properties| !properties.contains('/')), "a hub's topic")
        }
        Service::AwsIot | Service::AzureEventGrid => {
            let slashes = if service == Service::AwsIot { 7 } else { 14 };
            rule(topic.len() <= 256 && topic.matches('/').count() <= slashes && !topic.starts_with('$'), "short topics")
        }
    }
}

/// Whether it is a shared access signature for the device, and good by now.
fn is_signed(token: &str) -> bool {
    let Some(fields) = token.strip_prefix("SharedAccessSignature ") else { return false };
    let of = |name: &str| {
        fields.split('&').find_map(|field| field.split_once('=').filter(|(found, _)| *found == name)).map(|(_, v)| v)
    };
    let (Some(resource), Some(signature), Some(expires)) = (of("sr"), of("sig"), of("se")) else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs();
    let signature = signature.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    let Ok(signature) = STANDARD.decode(signature) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    resource == format!("localhost%2Fdevices%2F{DEVICE}")
        && hmac::verify(&key, format!("{resource}\n{expires}").as_bytes(), &signature).is_ok()
        && expires.parse::<u64>().is_ok_and(|expires| expires > now)
}
