//! How a broker is reached: by which proxy, from where, with which headers.

use super::broker::{Broker, InvalidBroker as Invalid};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An HTTP proxy, written `http://HOST:PORT`, or `environment`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    /// What the environment names, if anything.
    Environment,
    At {
        /// Of IPv6 without brackets.
        host: String,
        port: u16,
    },
}

impl FromStr for Proxy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Proxy, Invalid> {
        const FIX: &str = "write \"http://HOST:PORT\", or \"environment\"";
        let refuse = |what| Err(Invalid { what, fix: FIX });
        if text == "environment" {
            return Ok(Proxy::Environment);
        }
        let Some((scheme, authority)) = text.split_once("://") else { return refuse("the scheme is missing") };
        if !scheme.eq_ignore_ascii_case("http") {
            return refuse("only HTTP proxies are known");
        }
        if authority.contains('@') {
            let fix = "give them as `proxy_username` and `proxy_password_file`";
            return Err(Invalid { what: "a user or password does not belong here", fix });
        }
        match authority.strip_suffix('/').unwrap_or(authority).rsplit_once(':') {
            Some((host, port)) => {
                let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                match port.parse() {
                    Ok(port) if port != 0 && is_host(host) => Ok(Proxy::At { host: host.to_owned(), port }),
                    _ => refuse("that is no host and port"),
                }
            }
            None => refuse("the port is missing"),
        }
    }
}

fn is_host(host: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !host.is_empty() && (host.bytes().all(known) || host.parse::<IpAddr>().is_ok())
}

/// Where connections go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// The name of a network interface.
    Interface(String),
    /// An address of this machine.
    Address(IpAddr),
}

impl FromStr for Bind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Bind, Invalid> {
        // IFNAMSIZ, with its NUL.
        const MAX_NAME_BYTES: usize = 15;
        if let Ok(address) = text.parse() {
            return Ok(Bind::Address(address));
        }
        let fits = (1..=MAX_NAME_BYTES).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':')) {
            return Ok(Bind::Interface(text.to_owned()));
        }
        let fix = "give a name that `ip link` shows, such as wwan0, or an address without a port";
        Err(Invalid { what: "that is neither a network interface nor an address", fix })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Interface(name) => f.write_str(name),
            Bind::Address(address) => address.fmt(f),
        }
    }
}

/// A broker, and where connections to it go out, if not where the system chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub broker: Broker,
    pub bind: Option<Bind>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.broker.fmt(f)?;
        self.bind.iter().try_for_each(|bind| write!(f, " by {bind}"))
    }
}

/// A header of HTTP, written `NAME: VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: String,
}

/// What belongs to the beginning of a WebSocket anyway, and to this program.
const TAKEN: [&str; 4] = ["host", "connection", "upgrade", "content-length"];

impl FromStr for Header {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Header, Invalid> {
        let refuse = |what, fix| Err(Invalid { what, fix });
        let Some((name, value)) = text.split_once(':') else {
            return refuse("that is no header", "write \"NAME: VALUE\"");
        };
        let of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(of_token) {
            return refuse("that is no header's name", "write \"NAME: VALUE\", the name without blanks");
        }
        let lower = name.to_ascii_lowercase();
        if TAKEN.contains(&lower.as_str()) || lower.starts_with("sec-websocket-") {
            return refuse("the gateway itself gives this header", "remove it");
        }
        let value = value.trim();
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return refuse("the value has other characters than plain ASCII", "write it in one line of ASCII");
        }
        Ok(Header { name: name.to_owned(), value: value.to_owned() })
    }
}

/// SHA-256 of a certificate or of its public key (SubjectPublicKeyInfo), written `sha256/BASE64`,
/// or in hexadecimal as `openssl x509 -fingerprint -sha256` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Pin, Invalid> {
        let bytes = match text.strip_prefix("sha256/") {
            Some(base64) => STANDARD.decode(base64).ok(),
            None => {
                let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
                let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).ok());
                pairs
                    .map(|pair| {
                        pair.filter(|pair| pair.len() == 2 && !pair.starts_with('+'))
                            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                    })
                    .collect()
            }
        };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Pin).ok_or(Invalid {
            what: "that is no SHA-256",
            fix: "write \"sha256/BASE64\", as `tidegate check --connect` shows it, or what `openssl x509 -noout \
                  -fingerprint -sha256` shows behind the =",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_interfaces_and_headers_are_read_or_refused_for_a_reason() {
        let at = |host: &str, port| Ok(Proxy::At { host: host.into(), port });
        assert_eq!("http://proxy:3128".parse::<Proxy>(), at("proxy", 3128));
        assert_eq!("http://[fd00::1]:3128/".parse::<Proxy>(), at("fd00::1", 3128));
        assert_eq!("environment".parse::<Proxy>(), Ok(Proxy::Environment));
        for (text, why) in [
            ("proxy:3128", "the scheme is missing"),
            ("socks5://proxy:1080", "only HTTP proxies"),
            ("http://proxy", "the port is missing"),
            ("http://me:secret@proxy:1", "does not belong here"),
            ("http://:1", "no host and port"),
            ("http://proxy:0", "no host and port"),
        ] {
            let refused = text.parse::<Proxy>().expect_err(text).to_string();
            assert!(refused.contains(why) && !refused.contains("secret"), "{text}: {refused}");
        }
        assert_eq!("wwan0".parse(), Ok(Bind::Interface("wwan0".into())));
        assert_eq!("10.0.0.1".parse(), Ok(Bind::Address(IpAddr::from([10, 0, 0, 1]))));
        for text in ["", "a name that is too long", "10.0.0.1:80", "a/b"] {
            assert!(text.parse::<Bind>().is_err(), "{text}");
        }
        let pin = Pin([0xab; 32]);
        assert_eq!(format!("sha256/{}", STANDARD.encode([0xab; 32])).parse(), Ok(pin));
        assert_eq!(["AB"; 32].join(":").parse(), Ok(pin));
        assert_eq!("ab".repeat(32).parse(), Ok(pin));
        for text in ["", "sha256/", "sha256/qqqq", "ab", "abc", &"+1".repeat(32), &"é".repeat(32)] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
        let header = Header { name: "X-Key".into(), value: "a: b".into() };
        assert_eq!("X-Key: a: b ".parse(), Ok(header));
        for text in ["X-Key", ": x", "a b: c", "Upgrade: h2c", "sec-websocket-protocol: x", "a: \u{7}"] {
            assert!(text.parse::<Header>().is_err(), "{text}");
        }
    }
}
