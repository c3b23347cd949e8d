//! `[[tcp]]` and `[[serial]]`.

use super::{HOUR, SECOND, Section, collide, silence};
use crate::config::problem::Report;
use crate::config::{Config, FlowControl, ListenerConfig, Serial};
use crate::model::Token;
use bytesize::ByteSize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

const MILLISECOND: Duration = Duration::from_millis(1);
/// The wire protocol's cap.
const MAX_FRAME: ByteSize = ByteSize::mib(1);
/// What the kernel takes.
const RS485_MAX_DELAY: Duration = Duration::from_millis(100);
/// Enough for any serial number, and for what stands around it.
const LONGEST_PATTERN: usize = 256;
/// A handshake fits in this.
const MIN_FRAME: ByteSize = ByteSize::b(256);

pub(super) fn check(config: &Config, report: &mut Report) {
    let refused = report.is_refused("tcp") || report.is_refused("serial");
    if config.tcp.is_empty() && config.serial.is_empty() && !config.http.serves_devices() && !refused {
        report.add("tcp", "there is no [[tcp]] and no [[serial]] section: no device could connect", "add one");
    }
    let mut names = Names::default();
    if config.http.serves_devices() {
        names.reserve("websocket", "http");
    }
    for (i, tcp) in config.tcp.iter().enumerate() {
        let mut section = Section::new(report, format!("tcp[{i}]"));
        names.check(&tcp.name, &mut section);
        check_listener(config, &tcp.listener(), &mut section);
        let others = config.tcp.iter().take(i);
        if let Some(other) = others.clone().position(|other| collide(other.listen, tcp.listen)) {
            let what = format!("tcp[{other}] listens on {} already", tcp.listen);
            section.reject(&["listen"], what, "give another address or port");
        }
    }
    for (i, serial) in config.serial.iter().enumerate() {
        let mut section = Section::new(report, format!("serial[{i}]"));
        names.check(&serial.name, &mut section);
        check_serial(serial, &mut section);
        check_other_ports(&config.serial, i, &mut section);
        check_silence(config, serial.heartbeat_interval, serial.idle_timeout, &mut section);
    }
}

/// A link's own intervals; those of `[devices]` are checked there.
fn check_silence(config: &Config, heartbeat: Option<Duration>, idle: Option<Duration>, section: &mut Section) {
    if heartbeat.is_some() || idle.is_some() {
        silence(config.devices.silence(heartbeat, idle), section);
    }
}

/// What a listener holds devices to.
pub(super) fn check_listener(config: &Config, listener: &ListenerConfig, section: &mut Section) {
    section.number("max_connections", listener.max_connections, 1, 1_000_000);
    if let Some(most) = listener.max_connections_per_address {
        section.number("max_connections_per_address", most, 1, 1_000_000);
    }
    section.duration("handshake_timeout", listener.handshake_timeout, MILLISECOND, HOUR);
    section.size("max_frame", listener.max_frame, MIN_FRAME, MAX_FRAME);
    section.duration("frame_timeout", listener.frame_timeout, MILLISECOND, HOUR);
    check_tls([&listener.cert_file, &listener.key_file, &listener.client_ca_file], section);
    check_silence(config, listener.heartbeat_interval, listener.idle_timeout, section);
}

/// Certificate, key and authorities of a listener.
fn check_tls([cert, key, client_ca]: [&Option<PathBuf>; 3], section: &mut Section) {
    section.key_pair(cert.as_ref(), key.as_ref());
    if client_ca.is_some() && cert.is_none() && key.is_none() {
        let what = "is of no use: the listener does not speak TLS";
        section.reject(&["client_ca_file", "cert_file"], what, "give `cert_file` and `key_file` too, or remove it");
    }
}

fn check_serial(serial: &Serial, section: &mut Section) {
    check_port(serial, section);
    section.number("baud", serial.baud, 1, 20_000_000);
    section.number("data_bits", serial.data_bits, 5, 8);
    section.number("stop_bits", serial.stop_bits, 1, 2);
    check_rs485(serial, section);
    section.size("max_frame", serial.max_frame, MIN_FRAME, MAX_FRAME);
    section.duration("frame_timeout", serial.frame_timeout, MILLISECOND, HOUR);
    section.duration("reopen_interval", serial.reopen_interval, SECOND / 10, HOUR);
}

/// Which port is meant.
fn check_port(serial: &Serial, section: &mut Section) {
    const HOW: &str = "give the port, best as /dev/serial/by-id/NAME, or its adapter, as in usb = \"1a86:7523\"; \
                       `tidegate link list` shows both";
    match (&serial.path, serial.usb) {
        (None, None) => section.reject(&["path", "usb"], "is missing, and so is `usb`", HOW),
        (Some(path), None) if path.as_os_str().is_empty() => section.reject(&["path"], "is empty", HOW),
        (Some(path), None) if !path.is_absolute() => {
            let fix = format!("write it from / on, as in /dev/{}", path.display());
            section.reject(&["path"], format!("{} is no absolute path", path.display()), fix);
        }
        (Some(_), Some(_)) => {
            section.reject(&["usb", "path"], "stands beside `path`: a port is named by one of them", "remove one");
        }
        _ => {}
    }
    let narrowing = [("usb_serial", serial.usb_serial.is_some()), ("usb_interface", serial.usb_interface.is_some())];
    for (key, _) in narrowing.into_iter().filter(|(_, given)| *given && serial.usb.is_none()) {
        section.reject(&[key, "usb"], "says more about `usb`, which is missing", "add usb, or remove this");
    }
    if serial.usb_serial.as_ref().is_some_and(|pattern| pattern.is_empty() || pattern.len() > LONGEST_PATTERN) {
        let fix = "give 1 to 256 bytes, in which * stands for any characters";
        section.reject(&["usb_serial"], "matches no serial number", fix);
    }
}

/// That no section before the `i`th means the same port.
fn check_other_ports(all: &[Serial], i: usize, section: &mut Section) {
    let Some(serial) = all.get(i) else { return };
    let others = || all.iter().take(i);
    let same = |other: &Serial| {
        serial.path.as_ref().is_some_and(|path| !path.as_os_str().is_empty()) && other.path == serial.path
    };
    if let Some(other) = others().position(same) {
        section.reject(&["path"], format!("serial[{other}] has this port already"), "give another port");
    }
    let usb = |serial: &Serial| (serial.usb, serial.usb_serial.clone(), serial.usb_interface);
    if let Some(other) = others().position(|other| serial.usb.is_some() && usb(other) == usb(serial)) {
        let fix = "tell them apart by usb_serial or usb_interface, or by path = \"/dev/serial/by-path/...\"";
        section.reject(&["usb"], format!("serial[{other}] means the same adapter"), fix);
    }
}

fn check_rs485(serial: &Serial, section: &mut Section) {
    let delays = [
        ("rs485_delay_before_send", serial.rs485_delay_before_send),
        ("rs485_delay_after_send", serial.rs485_delay_after_send),
    ];
    for (key, delay) in delays {
        section.duration(key, delay, Duration::ZERO, RS485_MAX_DELAY);
        if delay.subsec_nanos() % 1_000_000 != 0 {
            section.reject(&[key], "the driver counts in milliseconds", "give whole ones");
        }
    }
    if serial.rs485 && serial.flow_control == FlowControl::Hardware {
        let what = "hardware flow control needs RTS, which switches the RS-485 transceiver";
        section.reject(&["flow_control", "rs485"], what, "give \"none\"");
    }
    let switches = [("rs485_invert_rts", serial.rs485_invert_rts), ("rs485_rx_during_tx", serial.rs485_rx_during_tx)];
    let given = switches.into_iter().chain(delays.map(|(key, delay)| (key, !delay.is_zero())));
    for (key, _) in given.filter(|(_, given)| *given && !serial.rs485) {
        section.reject(&[key, "rs485"], "means nothing without RS-485", "add rs485 = true, or remove this");
    }
}

/// The names given so far to things that must be told apart.
#[derive(Default)]
pub(super) struct Names<'a>(HashMap<&'a str, String>);

impl<'a> Names<'a> {
    /// What stands at `path` has a name that cannot be chosen.
    pub fn reserve(&mut self, name: &'a str, path: &str) {
        self.0.insert(name, path.to_owned());
    }

    pub fn check(&mut self, name: &'a str, section: &mut Section) {
        if let Err(why) = Token::check(name) {
            section.reject(&["name"], format!("{name:?} {why}"), "give 1 to 64 letters, digits, '.', '_' or '-'");
        } else if let Some(other) = self.0.get(name) {
            let what = format!("{other} is named `{name}` already");
            section.reject(&["name"], what, "give each a `name` of its own");
        } else {
            self.0.insert(name, section.path.clone());
        }
    }
}
