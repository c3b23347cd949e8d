//! Lists the serial ports of a machine, from what the kernel shows under `/sys` and udev under
//! `/dev/serial`. It needs no libudev, which would have to be cross-compiled.

use crate::config::UsbId;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A port with hardware behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// `/dev/ttyUSB0`
    pub path: PathBuf,
    /// Links to it that name its adapter.
    pub by_id: Vec<PathBuf>,
    /// Links to it that name the socket where it is plugged in.
    pub by_path: Vec<PathBuf>,
    pub driver: Option<String>,
    pub usb: Option<Usb>,
}

/// What a USB adapter says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usb {
    pub vendor: u16,
    pub product: u16,
    /// Which of the adapter's interfaces the port is on.
    pub interface: Option<u8>,
    pub serial: Option<String>,
    pub manufacturer: Option<String>,
    pub name: Option<String>,
}

impl Usb {
    pub fn id(&self) -> UsbId {
        UsbId { vendor: self.vendor, product: Some(self.product) }
    }
}

/// One line with what distinguishes the port from others.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        let Some(usb) = &self.usb else { return Ok(()) };
        write!(f, " ({}", usb.id())?;
        match &usb.serial {
            Some(serial) => write!(f, ", serial {serial:?}")?,
            None => write!(f, ", no serial number")?,
        }
        if let Some(interface) = usb.interface {
            write!(f, ", interface {interface}")?;
        }
        if let Some(by_path) = self.by_path.first() {
            write!(f, ", {}", by_path.display())?;
        }
        write!(f, ")")
    }
}

/// Longer than any of these files, in bytes.
const MOST: u64 = 4096;
/// A device lies in no deeper directory than this below /sys/devices.
const DEEPEST: usize = 64;

/// All ports of the system whose root directory is `root`.
///
/// # Errors
/// If `/sys/class/tty` there cannot be read.
pub fn list(root: &Path) -> io::Result<Vec<Port>> {
    let [by_id, by_path] = ["by-id", "by-path"].map(|kind| links(&root.join("dev/serial").join(kind)));
    let mut ports = Vec::new();
    for entry in fs::read_dir(root.join("sys/class/tty"))? {
        let Ok(entry) = entry else { continue };
        let (name, directory) = (entry.file_name(), entry.path());
        // Terminals without hardware have no device.
        let Ok(device) = fs::canonicalize(directory.join("device")) else { continue };
        // The kernel has entries for UARTs that may exist: they have no type.
        if text(&directory.join("type")).is_some_and(|kind| kind == "0") {
            continue;
        }
        // A slash in a device's name is written ! in /sys.
        let name = name.to_string_lossy().replace('!', "/");
        let path = root.join("dev").join(&name);
        let to_it = |links: &[(String, PathBuf)]| {
            links.iter().filter(|(target, _)| *target == name).map(|(_, link)| link.clone()).collect()
        };
        ports.push(Port {
            by_id: to_it(&by_id),
            by_path: to_it(&by_path),
            driver: driver(&device),
            usb: usb(&device),
            path,
        });
    }
    ports.sort_by_key(|port| natural(&port.path));
    Ok(ports)
}

/// The symbolic links in a directory, each with the name of its target.
fn links(directory: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut links: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((target.file_name()?.to_string_lossy().into_owned(), entry.path()))
        })
        .collect();
    links.sort();
    links
}

/// The name of the nearest driver that is one of hardware.
fn driver(device: &Path) -> Option<String> {
    device.ancestors().take(DEEPEST).find_map(|directory| {
        let driver = fs::read_link(directory.join("driver")).ok()?;
        let name = driver.file_name()?.to_string_lossy().into_owned();
        // Newer kernels put two of their own between a UART and its driver.
        (!matches!(name.as_str(), "port" | "ctrl")).then_some(name)
    })
}

fn usb(device: &Path) -> Option<Usb> {
    let above = || device.ancestors().take(DEEPEST);
    let adapter = above().find(|directory| directory.join("idVendor").exists())?;
    let number = |file: &str| u16::from_str_radix(&text(&adapter.join(file))?, 16).ok();
    let interface = above().find_map(|directory| text(&directory.join("bInterfaceNumber")));
    Some(Usb {
        vendor: number("idVendor")?,
        product: number("idProduct")?,
        interface: interface.and_then(|number| u8::from_str_radix(&number, 16).ok()),
        serial: text(&adapter.join("serial")),
        manufacturer: text(&adapter.join("manufacturer")),
        name: text(&adapter.join("product")),
    })
}

/// The content of a file of /sys. Adapters choose some of it, so it may be anything.
fn text(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(file).and_then(|file| file.take(MOST).read_to_end(&mut bytes)).ok()?;
    let text: String = String::from_utf8_lossy(&bytes).trim().chars().filter(|c| !c.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

/// A sort key that puts ttyUSB2 before ttyUSB10.
fn natural(path: &Path) -> (String, u64, String) {
    let path = path.to_string_lossy().into_owned();
    let stem = path.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = path.get(stem.len()..).and_then(|digits| digits.parse().ok()).unwrap_or(0);
    (stem.to_owned(), number, path)
}
