//! The list of complete files, in the order in which they were completed: `manifest.jsonl`.

use super::directory::open;
use super::torn::whole_lines;
use super::{PART, parse};
use crate::files::Replacement;
use crate::model::{Epoch, GatewayId, Seq};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

pub(super) const MANIFEST: &str = "manifest.jsonl";
/// Above this size, in bytes, the manifest loses its entries of files that were taken away, but for
/// so many.
const MAX_BYTES: u64 = 1 << 20;
pub(super) const RECENT: usize = 1000;

/// A line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub file: String,
    pub gateway: GatewayId,
    pub epoch: Epoch,
    pub first: Seq,
    pub last: Seq,
    pub bytes: u64,
    /// In hexadecimal.
    pub sha256: String,
    /// When it was completed, by the gateway's clock.
    pub closed: String,
    /// A crash left it: its last readings may be in the next file, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub crash: bool,
}

/// What the manifest tells of this gateway's files.
pub(super) struct Manifest {
    directory: PathBuf,
    gateway: GatewayId,
    entries: Vec<Entry>,
    written: HashMap<Epoch, Seq>,
}

impl Manifest {
    /// Reads it, if there is one.
    pub fn open(directory: &Path, gateway: &GatewayId) -> io::Result<Manifest> {
        let mut manifest = Manifest {
            directory: directory.to_owned(),
            gateway: gateway.clone(),
            entries: Vec::new(),
            written: HashMap::new(),
        };
        let path = directory.join(MANIFEST);
        if !path.exists() {
            return Ok(manifest);
        }
        whole_lines(&path)?;
        for line in BufReader::new(open(&path, File::options().read(true))?).split(b'\n') {
            let Ok(entry) = serde_json::from_slice::<Entry>(&line?) else { continue };
            // What somebody changed by hand proves nothing.
            let is_own = entry.gateway == *gateway && parse(gateway, &entry.file) == Some((entry.first, entry.epoch));
            if is_own {
                manifest.has(&entry);
                manifest.entries.push(entry);
            }
        }
        manifest.shorten()?;
        Ok(manifest)
    }

    fn has(&mut self, entry: &Entry) {
        if !entry.crash {
            let known = self.written.entry(entry.epoch).or_default();
            *known = entry.last.max(*known);
        }
    }

    /// Of each epoch, up to which seq complete files have its readings.
    pub fn written(&self) -> &HashMap<Epoch, Seq> {
        &self.written
    }

    /// Whether a file of this name is listed.
    pub fn lists(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.file == name)
    }

    /// The files that are listed, the oldest first.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.file.as_str())
    }

    /// Lists a file.
    pub fn add(&mut self, entry: Entry) -> io::Result<()> {
        let path = self.directory.join(MANIFEST);
        let mut file = open(&path, File::options().append(true).create(true))?;
        file.write_all(format!("{}\n", serde_json::to_string(&entry)?).as_bytes())?;
        file.sync_data()?;
        File::open(&self.directory)?.sync_all()?;
        self.has(&entry);
        self.entries.push(entry);
        self.shorten()
    }

    /// Forgets old files that were taken away, once there are many. What it tells of other gateways'
    /// files stays.
    fn shorten(&mut self) -> io::Result<()> {
        let path = self.directory.join(MANIFEST);
        if !std::fs::metadata(&path).is_ok_and(|found| found.len() > MAX_BYTES) {
            return Ok(());
        }
        let recent = self.entries.len().saturating_sub(RECENT);
        let (directory, mut place) = (self.directory.clone(), 0..);
        let is_there = |name: &str| directory.join(name).exists() || directory.join(format!("{name}{PART}")).exists();
        self.entries.retain(|entry| place.next().is_some_and(|place| place >= recent) || is_there(&entry.file));
        let mut new = Replacement::of(&path, 0o666)?;
        for line in BufReader::new(open(&path, File::options().read(true))?).split(b'\n') {
            let line = line?;
            let other = serde_json::from_slice::<Entry>(&line).is_ok_and(|entry| entry.gateway != self.gateway);
            if other {
                new.file().write_all(&[&line[..], b"\n"].concat())?;
            }
        }
        for entry in &self.entries {
            writeln!(new.file(), "{}", serde_json::to_string(entry)?)?;
        }
        new.put()
    }
}
