//! A system's `/sys` and `/dev`, as the kernel and udev show USB adapters there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub struct System {
    root: TempDir,
}

/// What an adapter says about itself.
#[derive(Clone, Copy)]
pub struct Adapter {
    pub vendor: &'static str,
    pub product: &'static str,
    pub serial: Option<&'static str>,
}

impl System {
    pub fn new() -> System {
        let root = tempfile::tempdir().expect("a temporary directory");
        for directory in ["sys/class/tty", "dev/serial/by-id", "dev/serial/by-path", "etc"] {
            fs::create_dir_all(root.path().join(directory)).expect("a directory");
        }
        fs::write(root.path().join("etc/group"), "root:x:0:\ndialout:x:20:\n").expect("a file");
        System { root }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn by_id(&self, adapter: Adapter) -> PathBuf {
        let Adapter { vendor, product, serial } = adapter;
        self.root().join(format!("dev/serial/by-id/usb-{vendor}_{product}_{}-if00", serial.unwrap_or("none")))
    }

    /// The adapter is plugged into the socket and becomes the port `name`, behind
    /// which lies `line`.
    pub fn plug(&self, name: &str, socket: &str, adapter: Adapter, line: &Path) {
        let device = self.device(socket);
        let interface = device.join(format!("{socket}:1.0"));
        let port = interface.join(name);
        let tty = port.join("tty").join(name);
        let driver = self.root().join("sys/bus/usb-serial/drivers/ch341-uart");
        fs::create_dir_all(&tty).and_then(|()| fs::create_dir_all(&driver)).expect("directories");
        let file = |path: PathBuf, text: &str| fs::write(path, format!("{text}\n")).expect("a file");
        file(device.join("idVendor"), adapter.vendor);
        file(device.join("idProduct"), adapter.product);
        file(device.join("manufacturer"), "ACME");
        file(device.join("product"), "USB\u{7}Serial");
        if let Some(serial) = adapter.serial {
            file(device.join("serial"), serial);
        }
        file(interface.join("bInterfaceNumber"), "00");
        let link = |target: &Path, link: PathBuf| symlink(target, link).expect("a link");
        link(&driver, port.join("driver"));
        link(&port, tty.join("device"));
        link(&tty, self.root().join("sys/class/tty").join(name));
        link(line, self.root().join("dev").join(name));
        let node = Path::new("../..").join(name);
        link(&node, self.by_id(adapter));
        link(&node, self.root().join(format!("dev/serial/by-path/platform-usb-0:{socket}-port0")));
    }

    /// It is pulled out again.
    pub fn unplug(&self, name: &str, socket: &str, adapter: Adapter) {
        fs::remove_dir_all(self.device(socket)).expect("it was plugged in");
        let links = [
            self.root().join("sys/class/tty").join(name),
            self.root().join("dev").join(name),
            self.by_id(adapter),
            self.root().join(format!("dev/serial/by-path/platform-usb-0:{socket}-port0")),
        ];
        for link in links {
            fs::remove_file(link).expect("it was plugged in");
        }
    }

    /// A place for a UART that is not there, a UART that is, and a terminal.
    pub fn add_others(&self) {
        for (name, kind) in [("ttyS1", "0"), ("ttyAMA0", "32")] {
            let device = self.root().join("sys/devices/platform/serial").join(name);
            let tty = device.join("tty").join(name);
            fs::create_dir_all(&tty).expect("a directory");
            fs::write(tty.join("type"), format!("{kind}\n")).expect("a file");
            symlink(&device, tty.join("device")).expect("a link");
            symlink(&tty, self.root().join("sys/class/tty").join(name)).expect("a link");
        }
        fs::create_dir_all(self.root().join("sys/class/tty/tty0")).expect("a directory");
    }

    fn device(&self, socket: &str) -> PathBuf {
        self.root().join("sys/devices/platform/usb1").join(socket)
    }
}
