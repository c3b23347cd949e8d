//! The files in a directory: one that is written, those that are complete, and the manifest that
//! lists them.
//!
//! A file is `readings-GATEWAY-SEQ-EPOCH.jsonl` (or `.csv`) by its first seq, with `.part` behind it
//! while it is written. Once it is complete it is renamed, and a line of the manifest tells what is in
//! it. What a crash left is completed at the next start: a line that is cut off at its end is removed.
//! What was not flushed may be damaged there, so that its readings are written again unless the
//! sink's cursor is behind them.

pub mod directory;
mod manifest;
mod torn;

use super::Payload;
use crate::clock::Clock;
use crate::config::{FILE_BATCH, FileSink, TextFormat, WhenFull};
use crate::model::{Epoch, GatewayId, Seq};
use crate::sink::encode::text::CSV_HEADER;
use directory::{cannot, is_at, lock, open, try_directory};
use manifest::{Entry, Manifest};
use ring::digest::{Context, SHA256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use torn::{examine, whole_lines};

const EVENTS: &str = "events.jsonl";
/// Events of before, once there are too many.
const OLD_EVENTS: &str = "events-old.jsonl";
const PART: &str = ".part";
/// Digits of a seq in a file's name.
const DIGITS: usize = 20;
/// Bytes of a line of the manifest, about.
const MANIFEST_LINE: u64 = 1024;

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
    manifest: Manifest,
    /// The directory, locked for as long as this writes there.
    _lock: File,
}

impl Series {
    /// Completes what a crash left in `directory`.
    ///
    /// # Errors
    /// In words, if the directory cannot be used, or is at its bound.
    pub fn open(
        directory: &Path,
        config: &FileSink,
        gateway: &GatewayId,
        clock: Arc<dyn Clock>,
    ) -> Result<Series, String> {
        let lock = lock(directory)?;
        try_directory(directory)?;
        let manifest = Manifest::open(directory, gateway).map_err(|why| cannot(directory, "read", &why))?;
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
            manifest,
            _lock: lock,
        };
        series.complete().map_err(|why| cannot(directory, "complete files in", &why))?;
        series.make_room()?;
        Ok(series)
    }

    /// Of each epoch, up to which seq the files have its readings for certain.
    pub fn written(&self) -> &HashMap<Epoch, Seq> {
        self.manifest.written()
    }

    /// Completes what no line of the manifest tells of, or what it tells of too early.
    fn complete(&mut self) -> io::Result<()> {
        for name in self.names()? {
            let whole = name.strip_suffix(PART).unwrap_or(&name);
            let Some((first, epoch)) = parse(&self.gateway, whole) else { continue };
            let (path, is_part) = (self.directory.join(&name), whole != name);
            if self.manifest.lists(whole) {
                if is_part {
                    fs::rename(&path, self.directory.join(whole))?;
                }
                continue;
            }
            let Some(found) = examine(&path, whole, is_part)? else {
                tracing::warn!(file = %path.display(), "no reading is whole in this file; it is left out of the manifest");
                if is_part {
                    fs::remove_file(&path)?;
                }
                continue;
            };
            if is_part {
                open(&path, File::options().append(true))?.sync_all()?;
                fs::rename(&path, self.directory.join(whole))?;
                File::open(&self.directory)?.sync_all()?;
            }
            let last = found.last.unwrap_or(first).max(first);
            self.list(whole.to_owned(), epoch, (first, last), found.bytes, found.sha256, is_part)?;
        }
        Ok(())
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

    /// Appends a payload, unflushed: all of it, or nothing.
    ///
    /// # Errors
    /// In words, if it cannot be written.
    pub fn write(&mut self, payload: &Payload) -> Result<(), String> {
        match payload {
            Payload::Readings { text, .. } if text.is_empty() => Ok(()),
            Payload::Readings { epoch, first, last, text } => {
                if self.open.as_ref().is_some_and(|open| open.epoch != *epoch) {
                    self.flush()?;
                    self.close()?;
                }
                if self.open.is_none() {
                    self.make_room()?;
                    let opened = self.begin(*epoch, *first);
                    self.open = Some(opened.map_err(|why| cannot(&self.directory, "write in", &why))?);
                }
                let Some(open) = &mut self.open else { return Ok(()) };
                let path = self.directory.join(&open.name);
                open.append(text).map_err(|why| cannot(&path, "write", &why))?;
                open.last = *last;
                Ok(())
            }
            Payload::Event(line) => self.event(line).map_err(|why| cannot(&self.directory.join(EVENTS), "write", &why)),
        }
    }

    fn begin(&self, epoch: Epoch, first: Seq) -> io::Result<Open> {
        let extension = extension(self.format);
        let stem = format!("readings-{}-{:0DIGITS$}-{}", self.gateway, first.0, epoch.0);
        let name = |more: &str| format!("{stem}{more}.{extension}");
        // What a crash left may begin with the same reading.
        let mut names = std::iter::once(name("")).chain((2..).map(|count: u32| name(&format!("-{count}"))));
        let is_free = |name: &String| {
            !self.manifest.lists(name) && !self.directory.join(name).exists() && !self.part(name).exists()
        };
        let name = names.find(is_free).unwrap_or_default();
        let file = open(&self.part(&name), File::options().append(true).create_new(true))?;
        File::open(&self.directory)?.sync_all()?;
        let (sha256, since) = (Context::new(&SHA256), Instant::now());
        let mut open = Open { file, name, epoch, first, last: first, bytes: 0, sha256, since };
        if self.format == TextFormat::Csv {
            open.append(format!("{}\n", CSV_HEADER.join(",")).as_bytes())?;
        }
        Ok(open)
    }

    fn part(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{PART}"))
    }

    fn event(&mut self, line: &[u8]) -> io::Result<()> {
        let path = self.directory.join(EVENTS);
        if fs::metadata(&path).is_ok_and(|found| found.len() > self.rotate_size) {
            if let Some(file) = self.events.take() {
                file.sync_data()?;
            }
            fs::rename(&path, self.directory.join(OLD_EVENTS))?;
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

    /// What was written is on the medium, where somebody looks for it.
    ///
    /// # Errors
    /// In words, if it is not.
    pub fn flush(&mut self) -> Result<(), String> {
        let open = self.open.as_ref().map(|open| (self.part(&open.name), &open.file));
        let events = self.events.as_ref().map(|events| (self.directory.join(EVENTS), events));
        for (path, file) in open.into_iter().chain(events) {
            file.sync_data().map_err(|why| cannot(&path, "flush", &why))?;
            if !is_at(file, &path) {
                return Err(format!(
                    "{} was taken away while it was written; its readings are written again",
                    path.display()
                ));
            }
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

    /// Completes the file that is written, if there is one, after a flush.
    ///
    /// # Errors
    /// In words, if that fails.
    pub fn close(&mut self) -> Result<(), String> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let Open { file, name, epoch, first, last, bytes, sha256, .. } = open;
        let renamed = || {
            file.sync_all()?;
            fs::rename(self.part(&name), self.directory.join(&name))?;
            File::open(&self.directory)?.sync_all()
        };
        let renamed = renamed();
        let listed = renamed.and_then(|()| self.list(name, epoch, (first, last), bytes, sha256, false));
        listed.map_err(|why| cannot(&self.directory, "complete a file in", &why))
    }

    /// Adds a file to the manifest that is on the medium under its name.
    fn list(
        &mut self,
        file: String,
        epoch: Epoch,
        (first, last): (Seq, Seq),
        bytes: u64,
        sha256: Context,
        crash: bool,
    ) -> io::Result<()> {
        let sha256 = sha256.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let (gateway, closed) = (self.gateway.clone(), self.clock.now().wall.to_string());
        self.manifest.add(Entry { file, gateway, epoch, first, last, bytes, sha256, closed, crash })
    }

    /// Sees to it that another file fits within the bound.
    fn make_room(&self) -> Result<(), String> {
        let unreadable = |why| cannot(&self.directory, "read", &why);
        let size = |name: &String| fs::metadata(self.directory.join(name)).map_or(0, |found| found.len());
        let mut total: u64 = self.names().map_err(unreadable)?.iter().map(size).sum();
        // The last payload of a file may exceed rotate_size; and there is its line in the manifest.
        let most = self.max_total.saturating_sub(self.rotate_size + FILE_BATCH + MANIFEST_LINE);
        if total <= most {
            return Ok(());
        }
        let mut oldest: Vec<String> = vec![OLD_EVENTS.to_owned()];
        oldest.extend(self.manifest.files().map(str::to_owned));
        let removable: u64 = oldest.iter().map(size).sum();
        if self.when_full == WhenFull::Hold || total.saturating_sub(removable) > most {
            let (total, most) = (bytesize::ByteSize(total), bytesize::ByteSize(self.max_total));
            return Err(format!(
                "the files in {} take {}, and max_total = {} leaves no room for another; take some away",
                self.directory.display(),
                total.display().iec(),
                most.display().iec()
            ));
        }
        for name in oldest.iter().filter(|name| size(name) > 0) {
            let path = self.directory.join(name);
            tracing::warn!(file = %path.display(), max_total = self.max_total, "the files are at their bound; the oldest is removed");
            total = total.saturating_sub(size(name));
            fs::remove_file(&path).map_err(|why| cannot(&path, "remove", &why))?;
            if total <= most {
                break;
            }
        }
        Ok(())
    }
}

impl Open {
    /// Appends all of it, or nothing.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if let Err(why) = self.file.write_all(text) {
            self.file.set_len(self.bytes)?;
            return Err(why);
        }
        self.sha256.update(text);
        self.bytes += text.len() as u64;
        Ok(())
    }
}

fn extension(format: TextFormat) -> &'static str {
    match format {
        TextFormat::Jsonl => "jsonl",
        TextFormat::Csv => "csv",
    }
}

/// The first seq and the epoch in the name of a file of this gateway.
fn parse(gateway: &GatewayId, name: &str) -> Option<(Seq, Epoch)> {
    let rest = name.strip_prefix("readings-")?.strip_prefix(gateway.as_str())?.strip_prefix('-')?;
    let (stem, extension) = rest.rsplit_once('.')?;
    let mut numbers = stem.split('-');
    let (seq, epoch) = (numbers.next()?, numbers.next()?);
    (["jsonl", "csv"].contains(&extension) && seq.len() == DIGITS).then_some(())?;
    Some((Seq(seq.parse().ok()?), Epoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests;
