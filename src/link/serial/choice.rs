//! Chooses the port that a section of the configuration means. Pure.

use super::ports::{Port, Usb};
use crate::config;
use crate::model::glob;
use std::path::Path;

/// Why there is no port to open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPort {
    #[error("no port has a USB adapter {wanted}{}", list("; there are ", .there))]
    Absent { wanted: String, there: Vec<String> },
    #[error("every port with a USB adapter {wanted} is another link's{}", list(": ", .taken))]
    Taken { wanted: String, taken: Vec<String> },
    #[error("several ports have a USB adapter {wanted}{}", list(": ", .candidates))]
    Ambiguous { wanted: String, candidates: Vec<String> },
    #[error("{port} is meant by the links `{this}` and `{other}` alike")]
    Contested { port: String, this: String, other: String },
}

impl NoPort {
    /// The remedy.
    pub fn advice(&self) -> &'static str {
        match self {
            NoPort::Absent { .. } => "plug it in, or correct `usb` (`tidegate link list` shows what is there)",
            NoPort::Taken { .. } => "plug this link's adapter in, or correct `usb`",
            NoPort::Ambiguous { .. } | NoPort::Contested { .. } => {
                "tell them apart by usb_serial or usb_interface, or give path = \"/dev/serial/by-path/...\""
            }
        }
    }
}

fn list(before: &str, items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!("{before}{}", items.join(", ")) }
}

/// The port that `section`, one of `all`, opens: the only one that matches, that no link has open
/// (`holder` gives the one that has), and that no other section describes more closely.
pub fn choose<'p>(
    section: &config::Serial,
    all: &[config::Serial],
    ports: &'p [Port],
    holder: &dyn Fn(&Path) -> Option<String>,
) -> Result<&'p Port, NoPort> {
    let wanted = wanted(section);
    let others = || all.iter().filter(|other| other.name != section.name);
    let (mut free, mut taken) = (Vec::new(), Vec::new());
    for port in ports {
        let Some(how) = closeness(section, port) else { continue };
        let closer = || others().find(|other| closeness(other, port) > Some(how)).map(|other| other.name.clone());
        match holder(&port.path).or_else(closer) {
            Some(link) => taken.push(format!("{port} is `{link}`'s")),
            None => free.push((port, how)),
        }
    }
    let (port, how) = match free[..] {
        [only] => only,
        [] if taken.is_empty() => {
            let with_usb = ports.iter().filter(|port| port.usb.is_some());
            return Err(NoPort::Absent { wanted, there: with_usb.map(ToString::to_string).collect() });
        }
        [] => return Err(NoPort::Taken { wanted, taken }),
        _ => {
            let candidates = free.iter().map(|(port, _)| port.to_string()).collect();
            return Err(NoPort::Ambiguous { wanted, candidates });
        }
    };
    // A link that has a port open needs no other.
    let is_open = |other: &config::Serial| ports.iter().any(|port| holder(&port.path).as_ref() == Some(&other.name));
    match others().find(|other| closeness(other, port) == Some(how) && !is_open(other)) {
        Some(other) => {
            Err(NoPort::Contested { port: port.to_string(), this: section.name.clone(), other: other.name.clone() })
        }
        None => Ok(port),
    }
}

/// Whether the section means the port, and how closely it describes it.
pub fn closeness(section: &config::Serial, port: &Port) -> Option<u8> {
    const BY_PATH: u8 = 10;
    if let Some(path) = &section.path {
        let links = port.by_id.iter().chain(&port.by_path);
        return links.chain([&port.path]).any(|name| name == path).then_some(BY_PATH);
    }
    let (wanted, usb) = (section.usb?, port.usb.as_ref()?);
    let Usb { vendor, product, interface, serial, .. } = usb;
    let matches = wanted.vendor == *vendor
        && wanted.product.is_none_or(|wanted| wanted == *product)
        && section.usb_interface.is_none_or(|wanted| Some(wanted) == *interface)
        && section.usb_serial.as_ref().is_none_or(|p| serial.as_ref().is_some_and(|serial| glob(p, serial)));
    let says = [wanted.product.is_some(), section.usb_serial.is_some(), section.usb_interface.is_some()];
    matches.then(|| says.into_iter().map(u8::from).sum())
}

/// The description of the adapter in the section, for messages.
fn wanted(section: &config::Serial) -> String {
    let mut text = section.usb.map(|usb| usb.to_string()).unwrap_or_default();
    if let Some(pattern) = &section.usb_serial {
        text += &format!(" with serial {pattern:?}");
    }
    if let Some(interface) = section.usb_interface {
        text += &format!(" on interface {interface}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn section(name: &str, usb: &str) -> config::Serial {
        config::Serial { name: name.into(), usb: Some(usb.parse().expect("an id")), ..config::Serial::default() }
    }

    fn with_serial(name: &str, usb: &str, serial: &str) -> config::Serial {
        config::Serial { usb_serial: Some(serial.into()), ..section(name, usb) }
    }

    fn port(path: &str, product: u16, serial: Option<&str>, interface: u8) -> Port {
        let usb = Usb {
            vendor: 0x0403,
            product,
            interface: Some(interface),
            serial: serial.map(Into::into),
            ..Usb::default()
        };
        let by_path = vec![format!("/dev/serial/by-path/{}", &path[5..]).into()];
        Port { path: path.into(), by_id: Vec::new(), by_path, driver: None, usb: Some(usb) }
    }

    /// The port that the first section gets, or why none.
    fn chosen(all: &[config::Serial], ports: &[Port], open: &[(&str, &str)]) -> Result<String, NoPort> {
        let open: HashMap<_, _> = open.iter().map(|(path, link)| (Path::new(*path), link.to_string())).collect();
        let holder = |path: &Path| open.get(path).cloned();
        choose(&all[0], all, ports, &holder).map(|port| port.path.display().to_string())
    }

    #[test]
    fn a_port_is_found_by_its_adapter_wherever_it_is() {
        let ports = [port("/dev/ttyUSB0", 0x6001, Some("A1"), 0), port("/dev/ttyUSB7", 0x6010, Some("B2"), 1)];
        for (all, expected) in [
            (section("a", "0403:6001"), "/dev/ttyUSB0"),
            (section("a", "0403:6010"), "/dev/ttyUSB7"),
            (with_serial("a", "0403:*", "B*"), "/dev/ttyUSB7"),
            (config::Serial { usb_interface: Some(0), ..section("a", "0403:*") }, "/dev/ttyUSB0"),
        ] {
            assert_eq!(chosen(&[all], &ports, &[]).as_deref(), Ok(expected));
        }
        let absent = chosen(&[with_serial("a", "0403:6001", "C*")], &ports, &[]).expect_err("no such serial");
        let text = absent.to_string();
        assert!(text.starts_with("no port has a USB adapter 0403:6001 with serial \"C*\"; there are /dev/ttyUSB0"));
        assert!(text.contains("/dev/ttyUSB7 (0403:6010, serial \"B2\", interface 1, /dev/serial/by-path/ttyUSB7)"));
        assert_eq!(
            chosen(&[section("a", "1a86:7523")], &[], &[]).expect_err("none").to_string(),
            "no port has a USB adapter 1a86:7523"
        );
    }

    #[test]
    fn several_that_match_are_named_and_none_is_opened() {
        let ports = [port("/dev/ttyUSB0", 0x6001, None, 0), port("/dev/ttyUSB1", 0x6001, None, 0)];
        let why = chosen(&[section("a", "0403:6001")], &ports, &[]).expect_err("two match");
        let NoPort::Ambiguous { candidates, .. } = &why else { panic!("{why}") };
        assert_eq!(candidates.len(), 2);
        assert!(why.to_string().contains("/dev/serial/by-path/ttyUSB1"), "{why}");
    }

    #[test]
    fn a_port_that_is_open_already_is_passed_over() {
        let ports = [port("/dev/ttyUSB0", 0x6001, None, 0), port("/dev/ttyUSB1", 0x6001, None, 0)];
        let all = [section("a", "0403:6001")];
        assert_eq!(chosen(&all, &ports, &[("/dev/ttyUSB0", "b")]).as_deref(), Ok("/dev/ttyUSB1"));
        let both = [("/dev/ttyUSB0", "b"), ("/dev/ttyUSB1", "c")];
        assert!(matches!(chosen(&all, &ports, &both), Err(NoPort::Taken { taken, .. }) if taken.len() == 2));
    }

    #[test]
    fn who_says_more_about_a_port_gets_it_though_it_is_not_open_yet() {
        let ports = [port("/dev/ttyUSB0", 0x6001, Some("A1"), 0), port("/dev/ttyUSB1", 0x6001, Some("B2"), 0)];
        let by_path = config::Serial {
            name: "b".into(),
            path: Some("/dev/serial/by-path/ttyUSB0".into()),
            ..config::Serial::default()
        };
        for other in [with_serial("b", "0403:6001", "A*"), by_path] {
            let all = [section("a", "0403:6001"), other];
            assert_eq!(chosen(&all, &ports, &[]).as_deref(), Ok("/dev/ttyUSB1"));
            assert!(matches!(chosen(&all, &ports[..1], &[]), Err(NoPort::Taken { .. })), "it is the other's");
        }
    }

    #[test]
    fn two_that_say_as_much_about_a_port_are_told_apart_first() {
        let ports = [port("/dev/ttyUSB0", 0x6001, Some("A1"), 0), port("/dev/ttyUSB1", 0x6001, Some("B1"), 0)];
        let all = [with_serial("a", "0403:6001", "A*"), with_serial("b", "0403:6001", "*1")];
        let why = chosen(&all, &ports, &[]).expect_err("b means it, too");
        assert!(matches!(&why, NoPort::Contested { other, .. } if other == "b"), "{why}");
        assert_eq!(chosen(&all, &ports, &[("/dev/ttyUSB1", "b")]).as_deref(), Ok("/dev/ttyUSB0"));
    }
}
