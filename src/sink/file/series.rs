//! The files in a directory: one that is written, those that are complete, and the manifest that
//! lists them.
//!
//! A file is `readings-SEQ-EPOCH.jsonl` (or `.csv`) by its first seq, with `.part` behind it while it
//! is written. Once it is complete it is renamed, and a line of `manifest.jsonl` tells what is in
//! it, with its SHA-256. What a crash left is completed at the next start: a line that is cut off at its
//! end is removed. What was not flushed may be damaged there, so that its readings are written again
//! unless the sink's cursor is behind them.

mod torn;

use super::Payload;
use crate::clock::Clock;
use crate::config::{FILE_BATCH, FileSink, TextFormat, WhenFull};
use crate::files::{Replacement, plain};
use crate::model::{Epoch, GatewayId, Seq};
use crate::sink::encode::text::CSV_HEADER;
use ring::digest::{Context, SHA256};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use torn::{examine, whole_lines};

const MANIFEST: &str = "manifest.jsonl";
const EVENTS: &str = "events.jsonl";
/// Events of before, once there are too many.
const OLD_EVENTS: &str = "events-old.jsonl";
const PART: &str = ".part";
/// Above this size, in bytes, the manifest loses its entries of files that were taken away, but
/// for so many.
const MAX_MANIFEST: usize = 1 << 20;
const RECENT: usize = 1000;
/// Bytes of a line of the manifest, about.
const MANIFEST_LINE: u64 = 1024;

/// A line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    file: String,
    gateway: GatewayId,
    epoch: Epoch,
    first: Seq,
    last: Seq,
    bytes: u64,
    /// In hexadecimal.
    sha256: String,
    /// When it was completed, by the gateway's clock.
    closed: String,
    /// A crash left it: its last readings may be in the next file, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    crash: bool,
}

/// A file that is written.
struct Open {
    file: File,
    name: String,
    epoch: Epoch,
    first: Seq,
    last: Seq,
    bytes: u64,
    sha256: Context,
    since: Instant,
    crash: bool,
}

/// The files of one sink.
pub struct Series {
    directory: PathBuf,
    gateway: GatewayId,
    clock: Arc<dyn Clock>,
    format: TextFormat,
    rotate_size: u64,
    rotate_after: Duration,
    max_total: u64,
    when_full: WhenFull,
    open: Option<Open>,
    events: Option<File>,
    written: HashMap<Epoch, Seq>,
    /// The directory, locked for as long as this writes there.
    _lock: File,
}

impl Series {
    /// Completes what a crash left in `directory`.
    ///
    /// # Errors
    /// In words, if the directory cannot be used.
    pub fn open(
        directory: &Path,
        config: &FileSink,
        gateway: &GatewayId,
        clock: Arc<dyn Clock>,
    ) -> Result<Series, String> {
        let lock = lock(directory)?;
        let mut series = Series {
            directory: directory.to_owned(),
            gateway: gateway.clone(),
            clock,
            format: config.format,
            rotate_size: config.rotate_size.as_u64(),
            rotate_after: config.rotate_after,
            max_total: config.max_total.as_u64(),
            when_full: config.when_full,
            open: None,
            events: None,
            written: HashMap::new(),
            _lock: lock,
        };
        try_directory(directory)?;
        series.complete().map_err(|why| cannot(directory, "read", &why))?;
        Ok(series)
    }

    /// Of each epoch, up to which seq the files have its readings for certain.
    pub fn written(&self) -> &HashMap<Epoch, Seq> {
        &self.written
    }

    /// Lists what no line of the manifest tells of.
    fn complete(&mut self) -> io::Result<()> {
        let listed: HashSet<String> = self.manifest()?.into_iter().map(|entry| entry.file).collect();
        for name in self.names()? {
            let whole = name.strip_suffix(PART).unwrap_or(&name);
            let Some((first, epoch)) = parse(whole) else { continue };
            if listed.contains(whole) {
                continue;
            }
            let path = self.directory.join(&name);
            let Some((last, bytes, sha256)) = examine(&path, whole)? else {
                tracing::warn!(file = %path.display(), "nothing is whole in this file; it is removed");
                fs::remove_file(&path)?;
                continue;
            };
            let open = File::options().append(true).open(&path)?;
            let since = Instant::now();
            let crash = name.ends_with(PART);
            let (name, last) = (whole.to_owned(), last.max(first));
            self.list(Open { file: open, name, epoch, first, last, bytes, sha256, since, crash })?;
        }
        Ok(())
    }

    /// Reads the manifest, and takes note of what it lists.
    fn manifest(&mut self) -> io::Result<Vec<Entry>> {
        let path = self.directory.join(MANIFEST);
        if !path.exists() {
            return Ok(Vec::new());
        }
        whole_lines(&path)?;
        let text = fs::read(&path)?;
        let mut entries: Vec<Entry> =
            text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        for entry in entries.iter().filter(|entry| !entry.crash) {
            self.has(entry.epoch, entry.last);
        }
        if text.len() > MAX_MANIFEST {
            let recent = entries.len().saturating_sub(RECENT);
            let mut place = 0..;
            entries.retain(|entry| {
                place.next().is_some_and(|place| place >= recent) || self.directory.join(&entry.file).exists()
            });
            let mut new = Replacement::of(&path, 0o644)?;
            for entry in &entries {
                writeln!(new.file(), "{}", serde_json::to_string(entry)?)?;
            }
            new.put()?;
        }
        Ok(entries)
    }

    fn has(&mut self, epoch: Epoch, last: Seq) {
        let known = self.written.entry(epoch).or_default();
        *known = last.max(*known);
    }

    /// The names of files in the directory, in order.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Appends a payload, unflushed.
    ///
    /// # Errors
    /// In words, if it cannot be written.
    pub fn write(&mut self, payload: &Payload) -> Result<(), String> {
        match payload {
            Payload::Readings { text, .. } if text.is_empty() => Ok(()),
            Payload::Readings { epoch, first, last, text } => {
                if self.open.as_ref().is_some_and(|open| open.epoch != *epoch) {
                    self.close()?;
                }
                if self.open.is_none() {
                    self.make_room()?;
                    let opened = self.begin(*epoch, *first);
                    self.open = Some(opened.map_err(|why| cannot(&self.directory, "write", &why))?);
                }
                let Some(open) = &mut self.open else { return Ok(()) };
                let written = open.append(text);
                open.last = *last;
                written.map_err(|why| cannot(&self.directory.join(&open.name), "write", &why))
            }
            Payload::Event(line) => self.event(line).map_err(|why| cannot(&self.directory.join(EVENTS), "write", &why)),
        }
    }

    fn begin(&self, epoch: Epoch, first: Seq) -> io::Result<Open> {
        let extension = extension(self.format);
        let name = |more: &str| format!("readings-{:020}-{}{more}.{extension}", first.0, epoch.0);
        // What a crash left may begin with the same reading.
        let mut name_of = std::iter::once(name("")).chain((2..).map(|count: u32| name(&format!("-{count}"))));
        let is_free = |name: &String| !self.directory.join(name).exists();
        let name = name_of.find(is_free).unwrap_or_default();
        let path = self.directory.join(format!("{name}{PART}"));
        let file = File::options().append(true).create_new(true).open(path)?;
        File::open(&self.directory)?.sync_all()?;
        let (sha256, since) = (Context::new(&SHA256), Instant::now());
        let mut open = Open { file, name, epoch, first, last: first, bytes: 0, sha256, since, crash: false };
        if self.format == TextFormat::Csv {
            open.append(format!("{}\n", CSV_HEADER.join(",")).as_bytes())?;
        }
        Ok(open)
    }

    fn event(&mut self, line: &[u8]) -> io::Result<()> {
        let path = self.directory.join(EVENTS);
        if fs::metadata(&path).is_ok_and(|found| found.len() > self.rotate_size) {
            fs::rename(&path, self.directory.join(OLD_EVENTS))?;
            self.events = None;
        }
        let file = match &mut self.events {
            Some(file) => file,
            none => {
                let file = whole_lines(&path)?;
                File::open(&self.directory)?.sync_all()?;
                none.insert(file)
            }
        };
        file.write_all(line)
    }

    /// What was written is on the medium.
    ///
    /// # Errors
    /// In words, if it is not.
    pub fn flush(&mut self) -> Result<(), String> {
        let files = self.open.iter().map(|open| &open.file).chain(&self.events);
        for file in files {
            file.sync_data().map_err(|why| cannot(&self.directory, "flush", &why))?;
        }
        Ok(())
    }

    /// In how long the file that is written is to be closed; zero if now.
    pub fn closes_in(&self) -> Duration {
        match &self.open {
            None => self.rotate_after,
            Some(open) if open.bytes >= self.rotate_size => Duration::ZERO,
            Some(open) => self.rotate_after.saturating_sub(open.since.elapsed()),
        }
    }

    /// Completes the file that is written, if there is one.
    ///
    /// # Errors
    /// In words, if that fails.
    pub fn close(&mut self) -> Result<(), String> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.list(open).map_err(|why| cannot(&self.directory, "complete a file in", &why))
    }

    /// Gives a complete file its name and its line in the manifest.
    fn list(&mut self, open: Open) -> io::Result<()> {
        let Open { file, name, epoch, first, last, bytes, sha256, crash, .. } = open;
        file.sync_all()?;
        let part = self.directory.join(format!("{name}{PART}"));
        if part.exists() {
            fs::rename(part, self.directory.join(&name))?;
        }
        let digest = sha256.finish();
        let entry = Entry {
            file: name,
            gateway: self.gateway.clone(),
            epoch,
            first,
            last,
            bytes,
            sha256: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            closed: self.clock.now().wall.to_string(),
            crash,
        };
        let mut manifest = File::options().append(true).create(true).open(self.directory.join(MANIFEST))?;
        manifest.write_all(format!("{}\n", serde_json::to_string(&entry)?).as_bytes())?;
        manifest.sync_data()?;
        File::open(&self.directory)?.sync_all()?;
        if !crash {
            self.has(epoch, last);
        }
        Ok(())
    }

    /// Sees to it that another file fits within the bound.
    fn make_room(&self) -> Result<(), String> {
        loop {
            let names = self.names().map_err(|why| cannot(&self.directory, "read", &why))?;
            let size = |name: &String| fs::metadata(self.directory.join(name)).map_or(0, |found| found.len());
            let total: u64 = names.iter().map(size).sum();
            // The last payload of a file may exceed rotate_size; and there is its line in the manifest.
            if total + self.rotate_size + FILE_BATCH + MANIFEST_LINE <= self.max_total {
                return Ok(());
            }
            let oldest = names.iter().find(|name| parse(name).is_some());
            match oldest.filter(|_| self.when_full == WhenFull::DropOldest) {
                Some(oldest) => {
                    let path = self.directory.join(oldest);
                    tracing::warn!(file = %path.display(), max_total = self.max_total, "the files are at their bound; the oldest is removed");
                    fs::remove_file(&path).map_err(|why| cannot(&path, "remove", &why))?;
                }
                None => {
                    let (total, most) = (bytesize::ByteSize(total), bytesize::ByteSize(self.max_total));
                    return Err(format!(
                        "the files in {} take {}, and max_total = {} leaves no room for another; take some away",
                        self.directory.display(),
                        total.display().iec(),
                        most.display().iec()
                    ));
                }
            }
        }
    }
}

impl Open {
    /// Appends all of it, or as good as nothing: what is left of it is removed.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if let Err(why) = self.file.write_all(text) {
            let _ = self.file.set_len(self.bytes);
            return Err(why);
        }
        self.sha256.update(text);
        self.bytes += text.len() as u64;
        Ok(())
    }
}

/// Two that write to one directory, such as an attempt that hangs and the next one, would spoil each
/// other's files.
fn lock(directory: &Path) -> Result<File, String> {
    let opened = File::open(directory).map_err(|why| cannot(directory, "open", &why))?;
    match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(opened),
        Err(Errno::WOULDBLOCK) => Err(format!(
            "{} is in use: another gateway writes there, or an earlier attempt has not returned",
            directory.display()
        )),
        Err(why) => Err(cannot(directory, "lock", &why.into())),
    }
}

/// Tries whether files can be written in `directory`. Returns how many bytes are free.
///
/// # Errors
/// In words, if not.
pub fn try_directory(directory: &Path) -> Result<u64, String> {
    let probe = directory.join(".tidegate-probe");
    let tried = fs::metadata(directory).and_then(|found| match found.is_dir() {
        true => File::create(&probe).and_then(|mut file| file.write_all(b"x")),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    let _ = fs::remove_file(&probe);
    tried.map_err(|why| cannot(directory, "write in", &why))?;
    let stat = rustix::fs::statvfs(directory).map_err(|why| cannot(directory, "look at", &why.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn cannot(path: &Path, what: &str, why: &io::Error) -> String {
    format!("cannot {what} {}: {}", path.display(), plain(why))
}

fn extension(format: TextFormat) -> &'static str {
    match format {
        TextFormat::Jsonl => "jsonl",
        TextFormat::Csv => "csv",
    }
}

/// The first seq and the epoch in a file's name.
fn parse(name: &str) -> Option<(Seq, Epoch)> {
    let (stem, extension) = name.strip_prefix("readings-")?.rsplit_once('.')?;
    let mut numbers = stem.split('-');
    let (seq, epoch) = (numbers.next()?, numbers.next()?);
    ["jsonl", "csv"].contains(&extension).then_some(())?;
    Some((Seq(seq.parse().ok()?), Epoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests;
