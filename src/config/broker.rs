//! Where an MQTT broker is.

use super::wrong::{WRONG_IPV4, is_wrong_ipv4};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A broker's address, written `mqtt://HOST[:PORT]` or, with TLS, `mqtts://HOST[:PORT]`; over
/// WebSocket `ws://HOST[:PORT][/PATH]` or `wss://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broker {
    /// A host name or an address; one of IPv6 stands here without brackets.
    pub host: String,
    /// 1883, or 8883 with TLS, if not given; 80 or 443 over WebSocket.
    pub port: u16,
    pub tls: bool,
    /// What is asked for with the query, if there is one, over WebSocket; `/mqtt` if not given.
    pub path: Option<String>,
}

/// Why a broker's address was refused, and what to do about it. Nothing of the
/// address is repeated: people put passwords there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {fix}")]
pub struct InvalidBroker {
    pub what: &'static str,
    pub fix: &'static str,
}

const SHAPE: &str = "write mqtt://HOST[:PORT] or mqtts://HOST[:PORT], or ws:// or wss:// for MQTT over WebSocket";
/// Scheme, whether that is TLS, whether it is WebSocket, the port if none is given.
const SCHEMES: [(&str, bool, bool, u16); 4] =
    [("mqtt", false, false, 1883), ("mqtts", true, false, 8883), ("ws", false, true, 80), ("wss", true, true, 443)];
/// Where brokers that have one path only have it.
const USUAL_PATH: &str = "/mqtt";
const MAX_PATH_BYTES: usize = 4096;
const MAX_HOST_BYTES: usize = 253;

impl FromStr for Broker {
    type Err = InvalidBroker;

    fn from_str(url: &str) -> Result<Broker, InvalidBroker> {
        let refuse = |what, fix| Err(InvalidBroker { what, fix });
        if url.trim() != url {
            return refuse("a blank stands before or after the address", "remove it");
        }
        let Some((scheme, behind)) = url.split_once("://") else { return refuse("the scheme is missing", SHAPE) };
        let Some((_, tls, websocket, usual_port)) = SCHEMES.into_iter().find(|(known, ..)| *known == scheme) else {
            return match SCHEMES.iter().any(|(known, ..)| known.eq_ignore_ascii_case(scheme)) {
                true => refuse("the scheme is not in small letters", SHAPE),
                false => refuse("only the schemes mqtt, mqtts, ws and wss are known", SHAPE),
            };
        };
        let (authority, path) = behind.split_at(behind.find(['/', '?', '#']).unwrap_or(behind.len()));
        if authority.contains('@') {
            return refuse("a user or password does not belong here", "give them as `username` and `password_file`");
        }
        if !websocket && !path.is_empty() {
            return refuse("an MQTT broker has no path or query", SHAPE);
        }
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') || path.len() > MAX_PATH_BYTES {
            return refuse("the path is none of a URL", "write it in ASCII without blanks and #, like /mqtt");
        }
        let path = match path.strip_prefix('?') {
            _ if !websocket => None,
            None if path.is_empty() => Some(USUAL_PATH.to_owned()),
            None => Some(path.to_owned()),
            Some(query) => Some(format!("/?{query}")),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => match bracketed.split_once(']') {
                Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => (host, port),
                _ => return refuse("the brackets do not hold an IPv6 address", "write it like mqtt://[fd00::1]:1883"),
            },
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let bracketed = authority.starts_with('[');
        if !bracketed && !is_host_name(host) {
            return refuse("the host is not a host name or address", SHAPE);
        }
        if !bracketed && is_wrong_ipv4(host) {
            return refuse(WRONG_IPV4, "correct the address");
        }
        let port = match port.strip_prefix(':').map(str::parse) {
            None if port.is_empty() => usual_port,
            Some(Ok(port)) if port != 0 => port,
            _ if !bracketed && authority.parse::<Ipv6Addr>().is_ok() => {
                return refuse("an IPv6 address must stand in brackets", "write it like mqtt://[fd00::1]:1883");
            }
            _ => return refuse("the port is not a number from 1 to 65535", SHAPE),
        };
        Ok(Broker { host: host.to_owned(), port, tls, path })
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over_websocket = self.path.is_some();
        let (scheme, ..) = SCHEMES
            .into_iter()
            .find(|(_, tls, websocket, _)| (*tls, *websocket) == (self.tls, over_websocket))
            .unwrap_or(SCHEMES[0]);
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)?;
        // People put keys into queries.
        let path = self.path.as_deref().unwrap_or_default();
        f.write_str(path.split('?').next().unwrap_or_default())
    }
}

fn is_host_name(host: &str) -> bool {
    let length = 1..=MAX_HOST_BYTES;
    length.contains(&host.len()) && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_addresses_are_read_with_the_scheme_s_port() {
        let cases = [
            ("mqtt://localhost", "localhost", 1883, false),
            ("mqtts://broker.example.com", "broker.example.com", 8883, true),
            ("mqtt://10.0.0.1:2000", "10.0.0.1", 2000, false),
            ("mqtts://[fd00::1]", "fd00::1", 8883, true),
            ("mqtt://[::1]:1884", "::1", 1884, false),
        ];
        for (url, host, port, tls) in cases {
            let broker: Broker = url.parse().unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!(broker, Broker { host: host.into(), port, tls, path: None });
            assert_eq!(broker.to_string().parse(), Ok(broker), "what is printed is read back");
        }
    }

    #[test]
    fn over_websocket_there_is_a_path_and_its_query_is_not_shown() {
        let cases = [
            ("ws://broker", 80, false, "/mqtt", "ws://broker:80/mqtt"),
            ("wss://broker/", 443, true, "/", "wss://broker:443/"),
            ("wss://[fd00::1]:8443/ws/a?key=secret", 8443, true, "/ws/a?key=secret", "wss://[fd00::1]:8443/ws/a"),
            ("ws://broker?key=secret", 80, false, "/?key=secret", "ws://broker:80/"),
        ];
        for (url, port, tls, path, shown) in cases {
            let broker: Broker = url.parse().unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!((broker.port, broker.tls, broker.path.as_deref()), (port, tls, Some(path)));
            assert_eq!(broker.to_string(), shown);
        }
    }

    #[test]
    fn what_is_refused_is_refused_for_its_reason() {
        let cases = [
            ("localhost:1883", "scheme is missing"),
            ("tcp://localhost", "schemes mqtt, mqtts, ws and wss"),
            ("WSS://localhost", "small letters"),
            ("ws://me:secret@host/path", "does not belong here"),
            ("ws://host/a b", "the path is none"),
            ("wss://host/a#b", "the path is none"),
            ("ws://:80/mqtt", "not a host name"),
            (" mqtt://localhost", "a blank stands"),
            ("mqtt://localhost\n", "a blank stands"),
            ("MQTTS://localhost", "small letters"),
            ("mqtt://192.168.1.300", "from 0 to 255"),
            ("mqtt://10.0.0:1883", "from 0 to 255"),
            ("mqtt://me:secret@host", "does not belong here"),
            ("mqtt://host/path", "no path or query"),
            ("mqtt://host?x=1", "no path or query"),
            ("mqtt://", "not a host name"),
            ("mqtt://:1883", "not a host name"),
            ("mqtt://a b", "not a host name"),
            ("mqtt://höst", "not a host name"),
            ("mqtt://host:", "not a number"),
            ("mqtt://host:0", "not a number"),
            ("mqtt://host:65536", "not a number"),
            ("mqtt://[::1]1883", "not a number"),
            ("mqtt://[::1", "brackets do not hold"),
            ("mqtt://[host]", "brackets do not hold"),
            ("mqtt://fd00::1", "must stand in brackets"),
        ];
        for (url, expected) in cases {
            let why = url.parse::<Broker>().expect_err(url).to_string();
            assert!(why.contains(expected), "{url}: {why}");
            assert!(!why.contains("secret"));
        }
    }
}
