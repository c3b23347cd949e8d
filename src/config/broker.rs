//! Where an MQTT broker is.

use super::wrong::{WRONG_IPV4, is_wrong_ipv4};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A broker's address, written `mqtt://HOST[:PORT]` or, with TLS, `mqtts://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broker {
    /// A host name or an address; one of IPv6 stands here without brackets.
    pub host: String,
    /// 1883, or 8883 with TLS, if not given.
    pub port: u16,
    pub tls: bool,
}

/// Why a broker's address was refused, and what to do about it. Nothing of the
/// address is repeated: people put passwords there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {fix}")]
pub struct InvalidBroker {
    pub what: &'static str,
    pub fix: &'static str,
}

const SHAPE: &str = "write mqtt://HOST[:PORT] or mqtts://HOST[:PORT]";
const MAX_HOST_BYTES: usize = 253;

impl FromStr for Broker {
    type Err = InvalidBroker;

    fn from_str(url: &str) -> Result<Broker, InvalidBroker> {
        let refuse = |what, fix| Err(InvalidBroker { what, fix });
        if url.trim() != url {
            return refuse("a blank stands before or after the address", "remove it");
        }
        let (tls, authority) = match url.split_once("://") {
            Some(("mqtt", authority)) => (false, authority),
            Some(("mqtts", authority)) => (true, authority),
            Some((scheme, _)) if ["mqtt", "mqtts"].iter().any(|known| known.eq_ignore_ascii_case(scheme)) => {
                return refuse("the scheme is not in small letters", SHAPE);
            }
            Some(_) => return refuse("only the schemes mqtt and mqtts are known", SHAPE),
            None => return refuse("the scheme is missing", SHAPE),
        };
        if authority.contains('@') {
            return refuse("a user or password does not belong here", "give them as `username` and `password_file`");
        }
        if authority.contains(['/', '?', '#']) {
            return refuse("an MQTT broker has no path or query", SHAPE);
        }
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
            None if port.is_empty() => default_port(tls),
            Some(Ok(port)) if port != 0 => port,
            _ if !bracketed && authority.parse::<Ipv6Addr>().is_ok() => {
                return refuse("an IPv6 address must stand in brackets", "write it like mqtt://[fd00::1]:1883");
            }
            _ => return refuse("the port is not a number from 1 to 65535", SHAPE),
        };
        Ok(Broker { host: host.to_owned(), port, tls })
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 8883 } else { 1883 }
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
            assert_eq!(broker, Broker { host: host.into(), port, tls });
            assert_eq!(broker.to_string().parse(), Ok(broker), "what is printed is read back");
        }
    }

    #[test]
    fn what_is_refused_is_refused_for_its_reason() {
        let cases = [
            ("localhost:1883", "scheme is missing"),
            ("tcp://localhost", "schemes mqtt and mqtts"),
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
