//! Copies of the log that are made at some moment and put back later: an image of the
//! card, or files from a backup.

use super::disk::Death;
use super::world::World;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

/// Copies, and what became of the log since it was opened last.
#[derive(Default)]
pub struct Images {
    image: Option<Vec<(PathBuf, Vec<u8>)>>,
    /// The machine booted since.
    booted: bool,
    /// A copy was put back since.
    copied: bool,
    pub put_back: u64,
}

impl Images {
    pub fn booted(&mut self) {
        self.booted = true;
    }

    /// The log was opened: whether it must have gone on as it was, and whether it may be
    /// an old copy.
    pub fn started(&mut self, has_place: bool) -> (bool, bool) {
        let (booted, copied) = (std::mem::take(&mut self.booted), std::mem::take(&mut self.copied));
        (has_place && !booted && !copied, has_place && !booted && copied)
    }
}

/// The files that SQLite has in the store's directory.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let is_log = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.db"));
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(is_log).collect();
    files.sort();
    Ok(files)
}

impl World {
    /// Makes a copy of the log, or puts one back that was made before.
    pub async fn image(&mut self) {
        self.bring_back();
        let directory = self.plan.store.directory.clone();
        if self.more.bool() || self.images.image.is_none() {
            let read = |path: PathBuf| Ok((path.clone(), std::fs::read(path)?));
            let image = files(&directory).and_then(|files| files.into_iter().map(read).collect::<io::Result<_>>());
            self.images.image = Some(image.expect("files can be read"));
            self.context.trace(format_args!("a copy of the log is made"));
            return;
        }
        match self.gateway.take() {
            Some(gateway) if self.more.bool() => gateway.stop().await,
            Some(gateway) => {
                self.vfs.disk().die(Death::Killed);
                gateway.crash().await;
            }
            None => {}
        }
        if self.vfs.disk().is_dead() {
            self.revive();
        }
        self.forget();
        for path in files(&directory).expect("files can be listed") {
            std::fs::remove_file(path).expect("files can be removed");
        }
        for (path, content) in self.images.image.iter().flatten() {
            std::fs::write(path, content).expect("files can be written");
        }
        self.vfs.disk().replaced();
        let reboots = self.more.bool();
        self.context.trace(format_args!("the copy of the log is put back, with a boot: {reboots}"));
        self.context.machine(super::clock::Machine::forget);
        self.context.oracle(|oracle| (oracle.lossy, oracle.restored) = (true, true));
        self.images.copied = true;
        self.images.put_back += 1;
        if reboots {
            self.boot();
        }
        sleep(Duration::from_millis(self.more.u64(1..3000))).await;
        self.start().await;
    }
}
