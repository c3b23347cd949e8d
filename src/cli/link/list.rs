//! `tidegate link list`: the serial ports of this machine.

use crate::cli::{DEFAULT_CONFIG, USAGE, failed, say};
use crate::config::{self, Config, Serial};
use crate::link::serial::{Port, closeness, list};
use anyhow::{Context, Result};
use rustix::fs::Access;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lists the serial ports of this machine, with everything that a [[serial]] section can
/// select them by
///
/// Opens none of them.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Show which link of this configuration uses each port; default:
    /// /etc/tidegate/tidegate.toml if it exists
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read the system's files below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysroot: PathBuf,
}

/// One port, and which section uses it.
struct Row {
    port: Port,
    links: Vec<String>,
    /// Why this user cannot open it, and the remedy.
    obstacle: Option<String>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let sections = match sections(args) {
        Ok(sections) => sections,
        Err(problems) => {
            say(&problems);
            return USAGE.into();
        }
    };
    match print(args, &sections) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

/// The configuration's sections for serial ports; none if there is no configuration.
fn sections(args: &Args) -> Result<Vec<Serial>, String> {
    let serial = |config: Config| config.serial;
    match &args.config {
        Some(path) => config::load_part(path, &["serial"]).map(serial).map_err(|problems| problems.to_string()),
        None if !Path::new(DEFAULT_CONFIG).exists() => Ok(Vec::new()),
        None => Ok(config::load_part(Path::new(DEFAULT_CONFIG), &["serial"]).map(serial).unwrap_or_else(|_| {
            say(&format!("tidegate: {DEFAULT_CONFIG} is not used; see tidegate check -c {DEFAULT_CONFIG}"));
            Vec::new()
        })),
    }
}

fn print(args: &Args, sections: &[Serial]) -> Result<()> {
    let ports = list(&args.sysroot)
        .with_context(|| format!("cannot look at {}", args.sysroot.join("sys/class/tty").display()))?;
    let rows: Vec<_> = ports.into_iter().map(|port| row(port, sections, &args.sysroot)).collect();
    let used = |section: &&Serial| rows.iter().any(|row| row.links.contains(&section.name));
    let absent: Vec<_> = sections.iter().filter(|section| !used(section)).collect();
    let text = if args.json { format!("{}\n", as_json(&rows, &absent)) } else { as_text(&rows, &absent) };
    // A closed pipe is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn row(port: Port, sections: &[Serial], root: &Path) -> Row {
    let same =
        |path: &PathBuf| fs::canonicalize(path).is_ok_and(|own| fs::canonicalize(&port.path).is_ok_and(|p| p == own));
    let means = |section: &&Serial| closeness(section, &port).is_some() || section.path.as_ref().is_some_and(same);
    let links = sections.iter().filter(means).map(|section| section.name.clone()).collect();
    let obstacle = obstacle(&port.path, root);
    Row { port, links, obstacle }
}

/// Why this user cannot open the port, and the remedy.
fn obstacle(path: &Path, root: &Path) -> Option<String> {
    let why = rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK).err()?;
    let Ok(metadata) = fs::metadata(path) else {
        return Some(format!("{why}; the device's file is missing: is udev running?"));
    };
    let (mode, gid) = (metadata.mode() & 0o777, metadata.gid());
    let group = group(gid, root);
    let advice = match &group {
        Some(name) if mode & 0o060 == 0o060 && gid != 0 => {
            format!("sudo usermod -aG {name} $USER, then log in again")
        }
        _ => "install systemd/70-tidegate.rules, then plug it in again".to_owned(),
    };
    let group = group.unwrap_or_else(|| gid.to_string());
    Some(format!("{why}: it belongs to group {group} with mode {mode:04o}; {advice}"))
}

fn group(gid: u32, root: &Path) -> Option<String> {
    let groups = fs::read_to_string(root.join("etc/group")).ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// How the section selects its port.
fn named(section: &Serial) -> String {
    match (&section.path, section.usb) {
        (Some(path), _) => format!("path {}", path.display()),
        (None, usb) => {
            let mut text = format!("usb {}", usb.map(|usb| usb.to_string()).unwrap_or_default());
            if let Some(pattern) = &section.usb_serial {
                text += &format!(", usb_serial {pattern:?}");
            }
            if let Some(interface) = section.usb_interface {
                text += &format!(", usb_interface {interface}");
            }
            text
        }
    }
}

fn as_json(rows: &[Row], absent: &[&Serial]) -> serde_json::Value {
    let text = |path: &PathBuf| path.display().to_string();
    let paths = |paths: &[PathBuf]| paths.iter().map(text).collect::<Vec<_>>();
    let usb = |port: &Port| {
        let usb = port.usb.as_ref()?;
        Some(json!({
            "id": usb.id().to_string(), "serial": usb.serial, "interface": usb.interface,
            "manufacturer": usb.manufacturer, "product": usb.name,
        }))
    };
    let ports: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "path": text(&row.port.path), "by_id": paths(&row.port.by_id), "by_path": paths(&row.port.by_path),
                "usb": usb(&row.port), "driver": row.port.driver, "links": row.links,
                "accessible": row.obstacle.is_none(), "obstacle": row.obstacle,
            })
        })
        .collect();
    let absent: Vec<_> =
        absent.iter().map(|section| json!({ "link": section.name, "named_by": named(section) })).collect();
    json!({ "ports": ports, "links_without_port": absent })
}

fn as_text(rows: &[Row], absent: &[&Serial]) -> String {
    let mut text: String = rows.iter().map(block).collect();
    if rows.is_empty() {
        text += "no serial ports found\n";
    }
    if !absent.is_empty() {
        text += "links whose port was not found\n";
    }
    for section in absent {
        text += &field(&section.name, &named(section));
    }
    text
}

/// One port, a line for each property.
fn block(row: &Row) -> String {
    let Row { port, links, obstacle } = row;
    let mut text = format!("{}\n", port.path.display());
    for path in &port.by_id {
        text += &field("by-id", &path.display().to_string());
    }
    for path in &port.by_path {
        text += &field("by-path", &path.display().to_string());
    }
    if let Some(usb) = &port.usb {
        let serial = usb.serial.as_ref().map_or("no serial number".to_owned(), |serial| format!("serial {serial:?}"));
        let interface = usb.interface.map_or(String::new(), |interface| format!(", interface {interface}"));
        text += &field("usb", &format!("{}, {serial}{interface}", usb.id()));
        let says = [usb.manufacturer.as_deref(), usb.name.as_deref()];
        text += &field("adapter", &says.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    text += &field("driver", port.driver.as_deref().unwrap_or("unknown"));
    text += &field("link", &if links.is_empty() { "none".to_owned() } else { links.join(" and ") });
    text + &field("access", obstacle.as_deref().unwrap_or("yes"))
}

fn field(name: &str, value: &str) -> String {
    format!("  {name:<9} {value}\n")
}
