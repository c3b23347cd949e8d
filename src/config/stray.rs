//! What is said of a key that its section does not have.

use super::Config;
use super::keys::closest;

/// What to do about a key.
pub(super) struct Advice {
    pub fix: String,
    /// The key of the same section that was probably meant.
    pub meant: Option<&'static str>,
}

const LISTEN: &str = "write listen = \"ADDRESS:PORT\"";
const BROKERS: &str = "write brokers = [\"mqtt://HOST:PORT\"], or mqtts:// for TLS";

/// Names that other programs have for a key: the section, what is written, what is meant and how
/// it is written here.
const ELSEWHERE: [(&str, &[&str], &str, &str); 11] = [
    ("tcp", &["host", "port", "address", "bind", "ip", "hostname"], "listen", LISTEN),
    ("http", &["host", "port", "address", "bind", "ip", "hostname"], "listen", LISTEN),
    ("mqtt", &["host", "port", "address", "ip", "hostname", "server", "url", "uri"], "brokers", BROKERS),
    ("mqtt", &["tls", "ssl"], "brokers", "write mqtts:// in `brokers`"),
    ("mqtt", &["user", "user_name", "login"], "username", "write `username`"),
    ("mqtt", &["password"], "password_file", "put it into a file of its own, and name that as `password_file`"),
    ("mqtt", &["topic", "topic_prefix"], "prefix", "write `prefix`, the first levels of every topic"),
    ("serial", &["port", "device", "tty"], "path", "write path = \"/dev/serial/by-id/NAME\""),
    ("serial", &["baudrate", "baud_rate", "speed"], "baud", "write `baud`"),
    ("store", &["path", "dir", "folder"], "directory", "write `directory`"),
    ("gateway", &["name"], "id", "write `id`"),
];

/// What to do about `key`, which is none of the `known` ones of the section called `section`;
/// that is empty for what stands above all sections.
pub(super) fn advice(section: &str, key: &str, known: &[&'static str]) -> Advice {
    let elsewhere = ELSEWHERE.iter().find(|(here, names, ..)| *here == section && names.contains(&key));
    if let Some((_, _, meant, how)) = elsewhere {
        return Advice { fix: (*how).to_owned(), meant: Some(meant) };
    }
    let homes: Vec<&str> =
        Config::sections().into_iter().filter(|(_, keys)| keys.contains(&key)).map(|(header, _)| header).collect();
    let near = closest(key, known);
    let fix = match (near, homes.as_slice()) {
        (Some(near), []) => format!("did you mean `{near}`?"),
        (Some(near), homes) => format!("did you mean `{near}`, or does it belong in {}?", homes.join(" or ")),
        (None, []) => format!("remove it; known are {}", known.join(", ")),
        (None, homes) => format!("move it to {}", homes.join(" or ")),
    };
    Advice { fix, meant: near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::keys_of;

    #[test]
    fn every_section_is_searched_and_what_is_meant_is_a_key_there() {
        let bare = |header: &str| header.trim_matches(['[', ']']).to_owned();
        let found: Vec<_> = Config::sections().into_iter().map(|(header, _)| bare(header)).collect();
        assert_eq!(found, keys_of::<Config>());
        for (section, names, meant, _) in ELSEWHERE {
            let (_, keys) =
                Config::sections().into_iter().find(|(header, _)| bare(header) == section).expect("a section");
            assert!(keys.contains(&meant), "{section}.{meant}");
            assert!(names.iter().all(|name| !keys.contains(name)), "{section}: {names:?}");
        }
    }
}
