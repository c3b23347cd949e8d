//! The configuration file that is shipped, as the source of examples.

/// `config/tidegate.toml`: every key, explained. A key that is commented out as
/// `#key = value` shows its default, or an example if it has none.
const TEXT: &str = include_str!("../../config/tidegate.toml");

/// How `key` of the section `name` is written, such as `window = 32`.
pub(super) fn example(name: &str, key: &str) -> Option<&'static str> {
    let mut here = false;
    for line in TEXT.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with('[') {
            here = line.trim_matches(['[', ']']) == name;
        } else if here && line.split_once(" = ").is_some_and(|(found, _)| found == key) {
            return Some(line);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::keys_of;
    use crate::config::{Commands, Config, Devices, FileSink, Gateway, Http, Mqtt, Route, Serial, Store, Tcp, parse};
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use std::collections::BTreeSet;
    use std::path::Path;
    use toml::{Table, Value};

    /// The shipped file with every commented key in force.
    fn all_keys() -> Table {
        let lines = TEXT.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n").parse().expect("the shipped file is TOML with every key in force")
    }

    /// That the section `name` shows every key of `T`, no other, and with its
    /// default but for the keys that have none and those that are `examples`.
    fn check<T: Serialize + DeserializeOwned + Default>(name: &str, examples: &[&str]) {
        let section = match all_keys().remove(name) {
            Some(Value::Array(mut sections)) => sections.remove(0),
            Some(section) => section,
            None => panic!("{name} is missing"),
        };
        let shown: BTreeSet<String> = section.as_table().expect("a section").keys().cloned().collect();
        let known: BTreeSet<String> = keys_of::<T>().iter().map(|key| key.to_string()).collect();
        assert_eq!(shown, known, "keys of {name}");

        let defaults = Table::try_from(T::default()).expect("the defaults can be written");
        let read: T = section.try_into().expect("the section can be read");
        let mut written = Table::try_from(read).expect("what was read can be written");
        written.retain(|key, _| defaults.contains_key(key) && !examples.contains(&key));
        let expected: Table = defaults.into_iter().filter(|(key, _)| !examples.contains(&key.as_str())).collect();
        assert_eq!(written, expected, "values of {name}");
        for key in known {
            assert!(example(name, &key).is_some_and(|line| line.starts_with(&key)), "{name}.{key} has no example");
        }
    }

    #[test]
    fn every_key_is_shown_with_its_default() {
        check::<Gateway>("gateway", &[]);
        check::<Tcp>("tcp", &[]);
        check::<Serial>("serial", &[]);
        check::<Http>("http", &["allowed_origins"]);
        check::<Devices>("devices", &["allow", "deny"]);
        check::<Commands>("commands", &["devices"]);
        check::<Store>("store", &[]);
        check::<Route>("route", &["devices", "channels"]);
        check::<Mqtt>("mqtt", &["brokers", "broker_pins", "websocket_headers", "bind"]);
        check::<FileSink>("file", &[]);
        let sections: BTreeSet<String> = all_keys().keys().cloned().collect();
        assert_eq!(sections, keys_of::<Config>().iter().map(|key| key.to_string()).collect());
    }

    #[test]
    fn it_works_as_it_is() {
        let config = parse(TEXT, Path::new("tidegate.toml"), &|_| None).unwrap_or_else(|why| panic!("{why}"));
        assert!(config.tcp.iter().all(|tcp| tcp.listen.ip().is_loopback()));
        assert_eq!((config.tcp.len(), config.serial.len()), (1, 0));
        assert_eq!(config.mqtt.first().map(|mqtt| mqtt.brokers.clone()), Some(vec!["mqtt://localhost".to_owned()]));
    }

    #[test]
    fn every_key_is_explained() {
        let mut explained = false;
        for line in TEXT.lines() {
            match line.strip_prefix('#') {
                Some(rest) if rest.is_empty() || rest.starts_with(' ') => explained = true,
                _ if line.trim().is_empty() => explained = false,
                _ if line.contains(" = ") => assert!(explained, "{line} is not explained"),
                _ => {}
            }
        }
    }
}
