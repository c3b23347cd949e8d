//! Tracks which link has which port open, so that no two open the same.

use super::choice::{NoPort, choose};
use super::ports;
use crate::config;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The machine's ports, shared by all links.
#[derive(Clone)]
pub struct Ports(Arc<Inner>);

struct Inner {
    root: PathBuf,
    sections: Vec<config::Serial>,
    /// The link that has it, by the port's own path.
    open: Mutex<BTreeMap<PathBuf, String>>,
}

/// A port that belongs to one link until this is dropped.
pub(super) struct Claim {
    /// The path to open.
    pub path: PathBuf,
    device: PathBuf,
    ports: Ports,
}

impl Ports {
    /// The ports of the system whose root directory is `root`, for these sections.
    pub fn new(root: &Path, sections: &[config::Serial]) -> Ports {
        let (root, sections) = (root.to_owned(), sections.to_vec());
        Ports(Arc::new(Inner { root, sections, open: Mutex::default() }))
    }

    /// Looks up which port the section means now.
    ///
    /// # Errors
    /// What is in the way, and what to do about it.
    pub(super) fn claim(&self, section: &config::Serial) -> Result<Claim, String> {
        let mut open = self.0.open.lock();
        let path = match &section.path {
            Some(path) => path.clone(),
            None => {
                let there = ports::list(&self.0.root).map_err(|why| cannot_look(&why))?;
                let holder = |path: &Path| open.get(&own_path(path)).cloned();
                let chosen = choose(section, &self.0.sections, &there, &holder);
                chosen.map(|port| port.path.clone()).map_err(|why: NoPort| format!("{why}; {}", why.advice()))?
            }
        };
        let device = own_path(&path);
        if let Some(link) = open.get(&device) {
            let device = device.display();
            return Err(format!("{} is {device}, which `{link}` has; give one of them another port", path.display()));
        }
        open.insert(device.clone(), section.name.clone());
        Ok(Claim { path, device, ports: self.clone() })
    }
}

impl Claim {
    /// The port's own path, with all symbolic links resolved.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ports.0.open.lock().remove(&self.device);
    }
}

fn own_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn cannot_look(why: &io::Error) -> String {
    format!("cannot look for USB adapters in /sys/class/tty: {why}; give `path` instead of `usb`")
}
