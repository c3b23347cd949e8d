//! The configuration: one struct a section, its defaults in one place, and a
//! reader that reports all that is wrong with a file at once.
//!
//! Unknown keys are refused. `${NAME}` inside a string is replaced from the
//! environment; `$${` stands for a plain `${`.

mod access_key;
mod broker;
mod commands;
mod devices;
mod env;
mod file_sink;
mod forms;
mod http;
mod keys;
mod listener;
mod log_levels;
mod memory;
mod mqtt;
mod password;
mod problem;
mod profile;
mod read;
mod sections;
mod serial;
mod shipped;
mod sinks;
mod start;
mod stray;
mod token;
mod transport;
mod validate;
mod wrong;

pub use access_key::{AccessKeyError, read_access_key};
pub use broker::{Broker, InvalidBroker};
pub use commands::Commands;
pub use devices::{Devices, Silence};
pub use env::of_process as environment;
pub use file_sink::{FILE_BATCH, FILE_WINDOW, FileSink, TextFormat, WhenFull};
pub use http::Http;
pub use listener::{Authentication, ClientCertificates, ListenerConfig, ServerTls, Tcp};
pub use log_levels::{log_levels, remote_log_levels};
pub use memory::{COMMAND_BYTES, Shares, limit as memory_limit, of_sink as sink_memory};
pub use password::{PasswordError, read_password};
pub use problem::{Problem, Problems};
pub use profile::Profile;
pub use sections::{
    ClockTrust, Config, Deliver, Durability, Encoding, Gateway, HistoryWithin, Mqtt, MqttVersion, Priority, Route,
    Store, Topics,
};
pub use serial::{FlowControl, InvalidUsbId, Parity, Serial, UsbId};
pub use sinks::{Sink, SinkKind, headers as sink_headers};
pub use start::Start;
pub use token::{TokenError, read_token};
pub use transport::{Bind, Header, Pin, Proxy, Way};
pub use validate::prefix_fault;

use crate::files::plain;
use problem::Report;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Reads the configuration file `path` with this process's environment. The files that it
/// names are not looked at: they may come later, and be for another user.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let mut report = Report::new(path);
    let config = read_file(path, &mut report).and_then(|text| interpret(&text, &env::of_process, &mut report));
    report.finish(config)
}

/// Reads of the configuration file `path` what `used` names: keys, such as
/// `store.directory`, and sections. For an operator, whose environment is not the service's.
///
/// # Errors
/// What is wrong with those, or with the file as a whole; nothing else is in the way.
pub fn load_part(path: &Path, used: &[&str]) -> Result<Config, Problems> {
    let mut report = Report::new(path);
    let config = read_file(path, &mut report).and_then(|text| interpret(&text, &env::of_operator, &mut report));
    report.finish_part(config, used)
}

/// What a look at a configuration, and at the files that it names, shows.
pub struct Checked {
    pub config: Result<Config, Problems>,
    /// Files that could not be looked at from here, which says nothing about them.
    pub unseen: Vec<Problem>,
    lines: HashMap<String, usize>,
}

/// Reads the configuration file `path` as an operator does, and looks at the files that it
/// names.
pub fn check(path: &Path) -> Checked {
    let mut report = Report::new(path);
    let config = read_file(path, &mut report).and_then(|text| {
        let config = interpret(&text, &env::of_operator, &mut report)?;
        validate::check_files(&config, &mut report);
        validate::check_places(&config, &mut report);
        Some(config)
    });
    let (unseen, lines) = (report.take_unseen(), report.take_lines());
    Checked { config: report.finish(config), unseen, lines }
}

impl Checked {
    /// The line on which `key` stands, such as `mqtt[0].window`, or else what it stands in.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        problem::line_of(key, &self.lines)
    }
}

/// Reads a configuration from `text`, which `source` is the name of in problems,
/// with the environment `env`. Looks at nothing else: the files that it names may
/// be missing.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(text: &str, source: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Problems> {
    let mut report = Report::new(source);
    let config = interpret(text, env, &mut report);
    report.finish(config)
}

fn interpret(text: &str, env: &dyn Fn(&str) -> Option<String>, report: &mut Report) -> Option<Config> {
    let config = read::read(text, env, report)?;
    validate::check(&config, report);
    Some(config)
}

fn read_file(path: &Path, report: &mut Report) -> Option<String> {
    const MOST: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
    if let Err(why) = read {
        report.add("", format!("cannot be read: {}", plain(&why)), how_to_make_readable(&why));
    } else if bytes.len() as u64 > MOST {
        report.add("", "is larger than 1 MiB", "give a tidegate configuration file");
    } else {
        match String::from_utf8(bytes) {
            Ok(text) => return Some(text),
            Err(why) => {
                let good = why.utf8_error().valid_up_to();
                let line = why.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
                report.add_at(Some(line), "", "is not UTF-8 text", "save it as UTF-8");
            }
        }
    }
    None
}

fn how_to_make_readable(why: &io::Error) -> &'static str {
    match why.kind() {
        ErrorKind::NotFound => "create it, or name another with -c FILE",
        ErrorKind::PermissionDenied => "run as a user who may read it, or change its mode",
        ErrorKind::IsADirectory => "name a file with -c FILE",
        _ => "name another with -c FILE",
    }
}
