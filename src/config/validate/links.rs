//! `[[tcp]]` and `[[serial]]`.

use super::{HOUR, SECOND, Section, collide};
use crate::config::problem::Report;
use crate::config::{Config, Serial, Tcp};
use crate::model::Token;
use bytesize::ByteSize;
use std::collections::HashMap;
use std::time::Duration;

const MILLISECOND: Duration = Duration::from_millis(1);
/// The wire protocol's cap.
const MAX_FRAME: ByteSize = ByteSize::mib(1);
/// A handshake fits in this.
const MIN_FRAME: ByteSize = ByteSize::b(256);

pub(super) fn check(config: &Config, report: &mut Report) {
    let refused = report.is_refused("tcp") || report.is_refused("serial");
    if config.tcp.is_empty() && config.serial.is_empty() && !refused {
        report.add("tcp", "there is no [[tcp]] and no [[serial]] section: no device could connect", "add one");
    }
    let mut names = Names::default();
    for (i, tcp) in config.tcp.iter().enumerate() {
        let mut section = Section::new(report, format!("tcp[{i}]"));
        names.check(&tcp.name, &mut section);
        check_tcp(tcp, &mut section);
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
        let same = |other: &Serial| !serial.path.as_os_str().is_empty() && other.path == serial.path;
        if let Some(other) = config.serial.iter().take(i).position(same) {
            section.reject(&["path"], format!("serial[{other}] has this port already"), "give another port");
        }
    }
}

fn check_tcp(tcp: &Tcp, section: &mut Section) {
    section.number("max_connections", tcp.max_connections, 1, 1_000_000);
    if let Some(most) = tcp.max_connections_per_address {
        section.number("max_connections_per_address", most, 1, 1_000_000);
    }
    section.duration("handshake_timeout", tcp.handshake_timeout, MILLISECOND, HOUR);
    section.size("max_frame", tcp.max_frame, MIN_FRAME, MAX_FRAME);
    section.duration("frame_timeout", tcp.frame_timeout, MILLISECOND, HOUR);
    check_tls(tcp, section);
}

fn check_tls(tcp: &Tcp, section: &mut Section) {
    let files = [("cert_file", &tcp.cert_file, "key_file"), ("key_file", &tcp.key_file, "cert_file")];
    for ((key, file, missing), other) in files.into_iter().zip([&tcp.key_file, &tcp.cert_file]) {
        if file.is_some() && other.is_none() {
            section.reject(&[key, missing], format!("is of no use without `{missing}`"), "give both or neither");
        }
    }
    if tcp.client_ca_file.is_some() && tcp.cert_file.is_none() && tcp.key_file.is_none() {
        let what = "is of no use: the listener does not speak TLS";
        section.reject(&["client_ca_file", "cert_file"], what, "give `cert_file` and `key_file` too, or remove it");
    }
}

fn check_serial(serial: &Serial, section: &mut Section) {
    if serial.path.as_os_str().is_empty() {
        section.reject(&["path"], "is missing", "give the port, best as /dev/serial/by-id/NAME");
    }
    section.number("baud", serial.baud, 1, 20_000_000);
    section.number("data_bits", serial.data_bits, 5, 8);
    section.number("stop_bits", serial.stop_bits, 1, 2);
    section.size("max_frame", serial.max_frame, MIN_FRAME, MAX_FRAME);
    section.duration("frame_timeout", serial.frame_timeout, MILLISECOND, HOUR);
    section.duration("reopen_interval", serial.reopen_interval, SECOND / 10, HOUR);
}

/// The names given so far to things that must be told apart.
#[derive(Default)]
pub(super) struct Names<'a>(HashMap<&'a str, String>);

impl<'a> Names<'a> {
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
