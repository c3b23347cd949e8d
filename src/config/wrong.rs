//! What is said of a value that its key does not take, in place of the words of the libraries
//! that refuse it.

use bytesize::ByteSize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use toml::de::DeValue;

/// What is wrong with `value`, and what to write instead; `example` is the line of the shipped
/// file that shows the key, and `why` what serde says. What a type of ours says stays as it is.
pub(super) fn value(value: &DeValue<'_>, example: Option<&str>, why: &str) -> (String, String) {
    let like = example.map_or_else(|| "correct the value".to_owned(), |example| format!("write it like {example}"));
    if let Some(rest) = why.strip_prefix("unknown variant ") {
        return (format!("unknown value {rest}"), like);
    }
    if !why.starts_with("invalid ") {
        return (why.to_owned(), like);
    }
    let shown = shown(value);
    match example.and_then(Kind::of) {
        Some(Kind::Size) => {
            let fix = format!("give a number with B, KiB, MiB or GiB: {like}");
            (format!("{shown} is not a size"), fix)
        }
        Some(Kind::Duration) => {
            let fix = format!("give a number with ms, s, m, h or days: {like}");
            (format!("{shown} is not a duration"), fix)
        }
        Some(Kind::Number) => (format!("{shown} is not {}", range(why)), like),
        Some(Kind::Truth) => (format!("{shown} is neither true nor false"), like),
        Some(Kind::Address { port }) => match value {
            DeValue::String(text) => {
                let (what, fix) = address(text, port);
                (format!("{shown} is not ADDRESS:PORT: {what}"), fix)
            }
            _ => (format!("{shown} is not ADDRESS:PORT"), like),
        },
        Some(Kind::List) => match value {
            DeValue::Array(items) => {
                let stray = items.iter().map(|item| item.get_ref()).find(|item| !matches!(item, DeValue::String(_)));
                (format!("{} is not text in quotes", stray.map_or(shown, self::shown)), like)
            }
            _ => (format!("{shown} is not a list in brackets"), like),
        },
        Some(Kind::Text) | None => (format!("{shown} is not text in quotes"), like),
    }
}

/// What a key takes, as its example shows.
enum Kind {
    Size,
    Duration,
    Number,
    Truth,
    Address { port: u16 },
    List,
    Text,
}

impl Kind {
    fn of(example: &str) -> Option<Kind> {
        let (_, value) = example.split_once(" = ")?;
        let Some(text) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Some(match value.as_bytes().first()? {
                b'[' => Kind::List,
                b't' | b'f' => Kind::Truth,
                _ => Kind::Number,
            });
        };
        Some(if let Ok(address) = text.parse::<SocketAddr>() {
            Kind::Address { port: address.port() }
        } else if text.ends_with('B') && text.parse::<ByteSize>().is_ok() {
            Kind::Size
        } else if humantime::parse_duration(text).is_ok() {
            Kind::Duration
        } else {
            Kind::Text
        })
    }
}

/// The value as the file has it, cut short if it is long.
fn shown(value: &DeValue<'_>) -> String {
    const MOST: usize = 40;
    match value {
        DeValue::String(text) if text.chars().count() > MOST => {
            format!("{:?}...", text.chars().take(MOST).collect::<String>())
        }
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

/// The numbers that the type takes which serde names at the end.
fn range(why: &str) -> String {
    let most = match why.rsplit(' ').next() {
        Some("u8") => u64::from(u8::MAX),
        Some("u16") => u64::from(u16::MAX),
        Some("u32") => u64::from(u32::MAX),
        _ => return "a whole number of 0 or more".to_owned(),
    };
    format!("a whole number from 0 to {most}")
}

/// Why `text` is no address to listen on, and what to write; `usual` is the port of the example.
fn address(text: &str, usual: u16) -> (String, String) {
    let write = |address: &str| format!("write listen = \"{address}\"");
    if text.trim() != text {
        return ("a blank stands before or after it".to_owned(), write(text.trim()));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let either = |port: &str| {
        format!("{}, or 0.0.0.0:{port} to be reached from the network", write(&format!("127.0.0.1:{port}")))
    };
    if let (Ok(_), Ok(port)) = (host.parse::<Ipv6Addr>(), port.parse::<u16>()) {
        return ("an IPv6 address stands in brackets".to_owned(), write(&format!("[{host}]:{port}")));
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return ("the port is missing".to_owned(), write(&SocketAddr::new(address, usual).to_string()));
    }
    let (usual, has_port) = (usual.to_string(), port.parse::<u16>().is_ok());
    if text.contains("://") {
        ("it is an address without a scheme".to_owned(), either(&usual))
    } else if has_port && host.is_empty() {
        ("the address is missing".to_owned(), either(port))
    } else if text.parse::<u16>().is_ok() {
        ("the address is missing".to_owned(), either(text))
    } else if is_wrong_ipv4(host) {
        (WRONG_IPV4.to_owned(), either(&usual))
    } else if has_port {
        (format!("{host:?} is a name, not an address of this machine"), either(port))
    } else {
        ("the port is missing, or not a number from 0 to 65535".to_owned(), either(&usual))
    }
}

pub(super) const WRONG_IPV4: &str = "an IPv4 address has four numbers from 0 to 255";

/// Whether `host` can only be meant as an IPv4 address, and is none: no name ends in a number.
pub(super) fn is_wrong_ipv4(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    !last.is_empty() && last.bytes().all(|digit| digit.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_told_apart() {
        let cases = [
            ("localhost:7411", "is a name", "\"127.0.0.1:7411\""),
            ("::1:7411", "brackets", "\"[::1]:7411\""),
            (":7411", "the address is missing", "0.0.0.0:7411"),
            ("7411", "the address is missing", "\"127.0.0.1:7411\""),
            ("127.0.0.1", "the port is missing", "\"127.0.0.1:9\""),
            ("[fd00::1]", "the port is missing", "\"[fd00::1]:9\""),
            ("192.168.1.300:7411", "from 0 to 255", "127.0.0.1:9"),
            ("127.0.0.1:70000", "not a number from 0 to 65535", "127.0.0.1:9"),
            ("tcp://127.0.0.1:1", "without a scheme", "127.0.0.1:9"),
            (" 127.0.0.1:1", "a blank", "\"127.0.0.1:1\""),
        ];
        for (text, what, fix) in cases {
            let (said, advice) = address(text, 9);
            assert!(said.contains(what) && advice.contains(fix), "{text}: {said}; {advice}");
        }
    }

    #[test]
    fn names_are_no_addresses() {
        assert!(["192.168.1.300", "1.2.3", "10.0.0.0.1", "300"].into_iter().all(is_wrong_ipv4));
        assert!(!["192.168.1.30", "a1", "1a", "host.4you", ""].into_iter().any(is_wrong_ipv4));
    }
}
