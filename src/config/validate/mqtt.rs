//! `[[mqtt]]`.

mod profile;

use super::files::{CERTIFICATE, PRIVATE_KEY, check_pem, unreadable};
use super::{DAY, HOUR, MINUTE, SECOND, Section, size, time};
use crate::config::problem::Report;
use crate::config::{
    AccessKeyError, Bind, Broker, Header, Mqtt, PasswordError, Pin, Proxy, read_access_key, read_password,
};
use bytesize::ByteSize;
use std::time::Duration;

/// What a packet's length field can say.
const MAX_PACKET: ByteSize = ByteSize((256 << 20) - 1);
const MAX_CLIENT_ID_BYTES: usize = 128;
const MAX_PREFIX_BYTES: usize = 256;

pub(super) fn check(sinks: &[Mqtt], report: &mut Report) {
    for (i, mqtt) in sinks.iter().enumerate() {
        let mut section = Section::new(report, format!("mqtt[{i}]"));
        check_brokers(mqtt, &mut section);
        check_client_id(mqtt, sinks.iter().take(i), &mut section);
        check_prefix(&mqtt.prefix, &mut section);
        check_credentials(mqtt, &mut section);
        check_way(mqtt, &mut section);
        check_limits(mqtt, &mut section);
        profile::check(mqtt, &mut section);
    }
}

/// Adds a problem for each file that the section names and that cannot be used.
pub(super) fn check_files(mqtt: &Mqtt, section: &mut Section) {
    check_pem(section, "ca_file", mqtt.ca_file.as_ref(), CERTIFICATE);
    check_pem(section, "cert_file", mqtt.cert_file.as_ref(), CERTIFICATE);
    check_pem(section, "key_file", mqtt.key_file.as_ref(), PRIVATE_KEY);
    let passwords = [("password_file", &mqtt.password_file), ("proxy_password_file", &mqtt.proxy_password_file)];
    for (key, path) in passwords {
        let Some((path, Err(why))) = path.as_deref().map(|path| (path, read_password(path))) else { continue };
        match &why {
            PasswordError::Unreadable { why, .. } => unreadable(section, key, path, why),
            _ => section.reject(&[key], why, "give a file that holds the password, and nothing else"),
        }
    }
    let Some(path) = &mqtt.shared_access_key_file else { return };
    match read_access_key(path) {
        Ok(_) => {}
        Err(AccessKeyError::Unreadable { why, .. }) => unreadable(section, "shared_access_key_file", path, &why),
        Err(why @ AccessKeyError::NoKey { .. }) => {
            let fix = "give a file that holds the device's primary key or connection string";
            section.reject(&["shared_access_key_file"], why, fix);
        }
    }
}

/// How the brokers are reached.
fn check_way(mqtt: &Mqtt, section: &mut Section) {
    for (i, header) in mqtt.websocket_headers.iter().enumerate() {
        if let Err(why) = header.parse::<Header>() {
            section.reject(&[&format!("websocket_headers[{i}]")], why.what, why.fix);
        }
    }
    if !mqtt.websocket_headers.is_empty() && brokers(mqtt).all(|broker| broker.path.is_none()) {
        let what = "is of no use: no broker is reached over WebSocket";
        section.reject(&["websocket_headers", "brokers"], what, "write wss:// in `brokers`, or remove it");
    }
    if let Some(Err(why)) = mqtt.proxy.as_deref().map(str::parse::<Proxy>) {
        section.reject(&["proxy"], why.what, why.fix);
    }
    let pair = [
        ("proxy_username", mqtt.proxy_username.is_some()),
        ("proxy_password_file", mqtt.proxy_password_file.is_some()),
    ];
    for (key, _) in pair.iter().filter(|(_, given)| *given && mqtt.proxy.is_none()) {
        section.reject(
            &[key, "proxy"],
            "is of no use without `proxy`",
            "give proxy = \"http://HOST:PORT\", or remove it",
        );
    }
    if mqtt.proxy_password_file.is_some() && mqtt.proxy_username.is_none() {
        section.reject(
            &["proxy_password_file", "proxy_username"],
            "is of no use without a name",
            "give `proxy_username` too",
        );
    }
    if mqtt.proxy_username.as_ref().is_some_and(|name| name.contains(':') || name.chars().any(char::is_control)) {
        section.reject(&["proxy_username"], "contains a colon or a control character", "give the name alone");
    }
    for (i, bind) in mqtt.bind.iter().enumerate() {
        let key = if mqtt.bind.len() == 1 { "bind".to_owned() } else { format!("bind[{i}]") };
        if let Err(why) = bind.parse::<Bind>() {
            section.reject(&[&key], why.what, why.fix);
        } else if mqtt.bind[..i].contains(bind) {
            section.reject(&[&key], "stands there twice", "name each way out once, in order of preference");
        }
    }
    section.number("dscp", mqtt.dscp, 0, 63);
}

fn check_brokers(mqtt: &Mqtt, section: &mut Section) {
    if mqtt.brokers.is_empty() {
        section.reject(&["brokers"], "names no broker", "give brokers = [\"mqtt://HOST\"]");
    }
    for (i, broker) in mqtt.brokers.iter().enumerate() {
        if let Err(why) = broker.parse::<Broker>() {
            section.reject(&[&format!("brokers[{i}]")], why.what, why.fix);
        }
    }
}

fn brokers(mqtt: &Mqtt) -> impl Iterator<Item = Broker> {
    mqtt.brokers.iter().filter_map(|broker| broker.parse().ok())
}

fn check_client_id<'a>(mqtt: &Mqtt, mut before: impl Iterator<Item = &'a Mqtt>, section: &mut Section) {
    let Some(id) = &mqtt.client_id else {
        return profile::check_client_id(mqtt, before, section);
    };
    if !(1..=MAX_CLIENT_ID_BYTES).contains(&id.len()) || id.chars().any(char::is_control) {
        let what = format!("{id:?} is no client id");
        section.reject(&["client_id"], what, format!("give 1 to {MAX_CLIENT_ID_BYTES} bytes of printable text"));
    }
    let shared =
        |other: &Mqtt| other.client_id.as_ref() == Some(id) && brokers(other).any(|b| brokers(mqtt).any(|a| a == b));
    if let Some(other) = before.find(|other| shared(other)) {
        let what = format!("`{}` uses {id:?} on the same broker: they would cut each other off", other.name);
        section.reject(&["client_id", "brokers"], what, "give each a client id of its own, or none");
    }
}

fn check_prefix(prefix: &str, section: &mut Section) {
    if let Some(what) = prefix_fault(prefix) {
        section.reject(&["prefix"], format!("{prefix:?} {what}"), "give topic levels such as site/tidegate");
    }
}

/// Why `prefix` cannot be the first levels of a topic.
pub fn prefix_fault(prefix: &str) -> Option<&'static str> {
    if prefix.split('/').any(str::is_empty) {
        Some("has an empty level")
    } else if prefix.starts_with('$') {
        Some("starts with $, which is the broker's own")
    } else if prefix.contains(['+', '#']) || prefix.chars().any(char::is_control) {
        Some("contains +, # or a control character")
    } else if prefix.len() > MAX_PREFIX_BYTES {
        Some("is longer than 256 bytes")
    } else {
        None
    }
}

fn check_credentials(mqtt: &Mqtt, section: &mut Section) {
    if mqtt.password_file.is_some() && mqtt.username.is_none() && mqtt.profile.is_none() {
        let what = "a password without a user name is not allowed by MQTT 3.1.1";
        section.reject(&["password_file", "username"], what, "give `username` too");
    }
    if mqtt.username.as_ref().is_some_and(|name| name.len() > usize::from(u16::MAX) || name.contains('\0')) {
        section.reject(&["username"], "is too long or contains NUL", "give at most 65535 bytes without NUL");
    }
    section.key_pair(mqtt.cert_file.as_ref(), mqtt.key_file.as_ref());
    for (i, pin) in mqtt.broker_pins.iter().enumerate() {
        if let Err(why) = pin.parse::<Pin>() {
            section.reject(&[&format!("broker_pins[{i}]")], why.what, why.fix);
        }
    }
    if mqtt.ca_file.is_some() && !mqtt.broker_pins.is_empty() {
        let what = "is of no use beside broker_pins, which say what is trusted in place of authorities";
        section.reject(&["ca_file", "broker_pins"], what, "remove one of them");
    }
    let all_plain = brokers(mqtt).count() == mqtt.brokers.len() && brokers(mqtt).all(|broker| !broker.tls);
    for (key, file) in [("ca_file", &mqtt.ca_file), ("cert_file", &mqtt.cert_file)] {
        if file.is_some() && all_plain && !mqtt.brokers.is_empty() {
            let what = "is of no use: no broker is reached over TLS";
            section.reject(&[key, "brokers"], what, "write mqtts:// or wss:// in `brokers`, or remove it");
        }
    }
    if !mqtt.broker_pins.is_empty() && all_plain && !mqtt.brokers.is_empty() {
        let what = "is of no use: no broker is reached over TLS";
        section.reject(&["broker_pins", "brokers"], what, "write mqtts:// or wss:// in `brokers`, or remove it");
    }
}

fn check_limits(mqtt: &Mqtt, section: &mut Section) {
    section.number("window", mqtt.window, 1, 100);
    section.size("max_packet", mqtt.max_packet, ByteSize::kib(2), MAX_PACKET);
    section.size("max_batch", mqtt.max_batch, ByteSize::kib(1), MAX_PACKET);
    if mqtt.max_batch > mqtt.max_packet {
        let what = format!("{} is more than max_packet", size(mqtt.max_batch));
        section.reject(&["max_batch", "max_packet"], what, format!("give {} or less", size(mqtt.max_packet)));
    }
    section.duration("keep_alive", mqtt.keep_alive, 5 * SECOND, 18 * HOUR);
    section.duration("connect_timeout", mqtt.connect_timeout, SECOND, 5 * MINUTE);
    section.duration("confirm_timeout", mqtt.confirm_timeout, SECOND, HOUR);
    section.duration("backoff_min", mqtt.backoff_min, Duration::from_millis(10), DAY);
    section.duration("backoff_max", mqtt.backoff_max, Duration::from_millis(10), DAY);
    if mqtt.backoff_min > mqtt.backoff_max {
        let what = format!("{} is more than backoff_max", time(mqtt.backoff_min));
        section.reject(&["backoff_min", "backoff_max"], what, format!("give {} or less", time(mqtt.backoff_max)));
    }
    section.duration("stable_after", mqtt.stable_after, Duration::ZERO, DAY);
    section.duration("return_after", mqtt.return_after, SECOND, 365 * DAY);
    section.duration("replay_after", mqtt.replay_after, Duration::ZERO, 365 * DAY);
}
