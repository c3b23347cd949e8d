//! A disk that forgets what was not synced.
//!
//! Files are real and always hold what the page cache would show. Beside each the
//! disk remembers what a power cut would find: the old content of every sector
//! written since the last sync. A cut keeps, tears or takes back each of them.

use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use tidegate::store::Space;

/// What a disk writes as a whole, in bytes.
const SECTOR: usize = 512;

/// What may go wrong, each as the chance that an operation does, in 1/10,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    pub write: u32,
    pub sync: u32,
    pub truncate: u32,
    pub open: u32,
    pub read: u32,
    /// Nothing may grow.
    pub full: bool,
    /// Little is free.
    pub low: bool,
}

/// How the process that uses the disk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// What was written is there.
    Killed,
    /// What was not synced may be lost.
    PowerCut,
}

#[derive(Default)]
pub struct Disk {
    files: BTreeMap<String, Unsynced>,
    random: Rng2,
    pub faults: Faults,
    /// Control run: syncs succeed and do nothing.
    pub lying: bool,
    /// The process is gone: nothing works any more.
    dead: Option<Death>,
    /// Changes left until it goes.
    fuse: Option<(u64, Death)>,
    /// Handles whose sync failed, and a file on which such a handle synced again.
    tainted: BTreeSet<u64>,
    pub retried: Option<String>,
    pub operations: u64,
    pub failures: u64,
}

/// [`Rng`] has no constant to begin with.
struct Rng2(Rng);

impl Default for Rng2 {
    fn default() -> Rng2 {
        Rng2(Rng::with_seed(0))
    }
}

/// What a file has in the page cache only.
struct Unsynced {
    inode: u64,
    /// Old content of each sector written since the last sync; shorter at the old end.
    sectors: BTreeMap<u64, Vec<u8>>,
    /// Sectors that a failed sync left clean in the cache and old on the disk: no
    /// later sync writes them.
    forgotten: BTreeMap<u64, Vec<u8>>,
    length: u64,
    /// The directory has the file on disk.
    linked: bool,
    /// Under this name a file was deleted, which the disk may not know yet.
    ghost: Option<Vec<u8>>,
}

impl Disk {
    /// A disk in good order, whose troubles `seed` decides.
    pub fn new(seed: u64) -> Disk {
        Disk { random: Rng2(Rng::with_seed(seed)), ..Disk::default() }
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    pub fn death(&self) -> Option<Death> {
        self.dead
    }

    /// The process ends now.
    pub fn die(&mut self, death: Death) {
        self.fuse = None;
        self.dead.get_or_insert(death);
    }

    /// The process ends within this many changes.
    pub fn light_fuse(&mut self, changes: u64, death: Death) {
        self.fuse = Some((changes, death));
    }

    /// The machine is up again; returns how many sectors a power cut took back.
    pub fn revive(&mut self) -> io::Result<u64> {
        self.fuse = None;
        let mut lost = 0;
        if self.dead.take() == Some(Death::PowerCut) {
            for (path, unsynced) in std::mem::take(&mut self.files) {
                lost += unsynced.cut(Path::new(&path), &mut self.random.0)?;
            }
        }
        Ok(lost)
    }

    /// Files were replaced, and all of them are on the disk.
    pub fn replaced(&mut self) {
        self.files.clear();
    }

    /// How much room there seems to be.
    pub fn space(&self) -> Space {
        let free = match self.faults {
            Faults { full: true, .. } => 0,
            Faults { low: true, .. } => 10 << 20,
            Faults { .. } => 1 << 30,
        };
        Space { free, total: 4 << 30 }
    }

    /// Whether an operation fails now.
    fn fails(&mut self, chance: u32) -> bool {
        let fails = chance > 0 && self.random.0.u32(..10_000) < chance;
        self.failures += u64::from(fails);
        fails
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead.is_some() { Err(error(EIO)) } else { Ok(()) }
    }

    /// Counts a change; the process may end at it.
    fn change(&mut self) -> io::Result<()> {
        self.alive()?;
        self.operations += 1;
        if let Some((left, death)) = &mut self.fuse {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => {
                    let death = *death;
                    self.die(death);
                    return self.alive();
                }
            }
        }
        Ok(())
    }

    pub fn open(&mut self, path: &str, create: bool, writable: bool) -> io::Result<File> {
        self.alive()?;
        if self.fails(self.faults.open) {
            return Err(error(EIO));
        }
        let exists = Path::new(path).exists();
        if !exists && !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !exists {
            if self.faults.full {
                return Err(error(ENOSPC));
            }
            self.change()?;
        }
        let file = File::options().read(true).write(writable).create(create && writable).truncate(false).open(path)?;
        let inode = file.metadata()?.ino();
        let known = self.files.get(path).is_some_and(|known| known.inode == inode);
        if !known {
            let ghost = self.files.remove(path).and_then(|old| old.ghost);
            let length = file.metadata()?.len();
            let unsynced =
                Unsynced { inode, sectors: BTreeMap::new(), forgotten: BTreeMap::new(), length, linked: exists, ghost };
            self.files.insert(path.to_owned(), unsynced);
        }
        Ok(file)
    }

    pub fn delete(&mut self, path: &str) -> io::Result<()> {
        self.change()?;
        if self.fails(self.faults.truncate) {
            return Err(error(EIO));
        }
        let found = std::fs::read(path)?;
        std::fs::remove_file(path)?;
        if let Some(unsynced) = self.files.get_mut(path) {
            unsynced.ghost = if unsynced.linked { Some(unsynced.durable(&found)) } else { unsynced.ghost.take() };
            unsynced.inode = 0;
            unsynced.linked = false;
            unsynced.sectors.clear();
            unsynced.forgotten.clear();
        }
        Ok(())
    }

    pub fn read(&mut self, file: &File, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        self.alive()?;
        if self.fails(self.faults.read) {
            return Err(error(EIO));
        }
        read_up_to(file, offset, data)
    }

    pub fn write(&mut self, path: &str, file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change()?;
        if self.fails(self.faults.write) {
            return Err(error(EIO));
        }
        if self.faults.full && offset + data.len() as u64 > file.metadata()?.len() {
            self.failures += 1;
            return Err(error(ENOSPC));
        }
        self.remember(path, file, offset, offset + data.len() as u64)?;
        file.write_all_at(data, offset)
    }

    pub fn truncate(&mut self, path: &str, file: &File, length: u64) -> io::Result<()> {
        self.change()?;
        if self.fails(self.faults.truncate) {
            return Err(error(EIO));
        }
        let now = file.metadata()?.len();
        self.remember(path, file, length.min(now), length.max(now))?;
        file.set_len(length)
    }

    pub fn sync(&mut self, handle: u64, path: &str, file: &File) -> io::Result<()> {
        self.change()?;
        if self.lying {
            return Ok(());
        }
        if self.tainted.contains(&handle) {
            self.retried.get_or_insert_with(|| path.to_owned());
        }
        let fails = self.fails(self.faults.sync);
        let Some(unsynced) = self.files.get_mut(path) else { return Ok(()) };
        if fails {
            self.tainted.insert(handle);
            // The kernel marks what it could not write as clean.
            for (sector, old) in std::mem::take(&mut unsynced.sectors) {
                if self.random.0.bool() {
                    unsynced.forgotten.entry(sector).or_insert(old);
                }
            }
            return Err(error(EIO));
        }
        unsynced.sectors.clear();
        unsynced.length = file.metadata()?.len();
        unsynced.linked = true;
        // A file system with a journal has earlier deletions on disk by now, too.
        self.files.values_mut().for_each(|unsynced| unsynced.ghost = None);
        Ok(())
    }

    /// Keeps the old content of what is about to change.
    fn remember(&mut self, path: &str, file: &File, from: u64, to: u64) -> io::Result<()> {
        let Some(unsynced) = self.files.get_mut(path) else { return Ok(()) };
        for sector in from / SECTOR as u64..to.div_ceil(SECTOR as u64) {
            if unsynced.sectors.contains_key(&sector) {
                continue;
            }
            if let Some(old) = unsynced.forgotten.remove(&sector) {
                unsynced.sectors.insert(sector, old);
                continue;
            }
            let mut old = vec![0; SECTOR];
            let length = read_up_to(file, sector * SECTOR as u64, &mut old)?;
            old.truncate(length);
            unsynced.sectors.insert(sector, old);
        }
        Ok(())
    }
}

impl Unsynced {
    /// What the disk has for certain, where the cache shows `cached`.
    fn durable(&self, cached: &[u8]) -> Vec<u8> {
        let mut content = cached.to_vec();
        for (sector, old) in self.sectors.iter().chain(&self.forgotten) {
            put(&mut content, *sector, old);
        }
        content.resize(usize::try_from(self.length).expect("files are small"), 0);
        content
    }

    /// The power goes; returns how many sectors are not what the cache showed.
    fn cut(self, path: &Path, random: &mut Rng) -> io::Result<u64> {
        let cached = match std::fs::read(path) {
            // Another file has taken the name, by a rename that this disk did not see.
            Ok(_) if self.inode != std::fs::metadata(path)?.ino() && self.inode != 0 => return Ok(0),
            Ok(cached) => Some(cached),
            Err(why) if why.kind() == io::ErrorKind::NotFound => None,
            Err(why) => return Err(why),
        };
        let back = match &cached {
            Some(_) => !self.linked && random.bool(),
            None => self.ghost.is_some() && random.bool(),
        };
        if back {
            return match self.ghost {
                Some(ghost) => std::fs::write(path, ghost).map(|()| 1),
                None => std::fs::remove_file(path).map(|()| 1),
            };
        }
        let Some(cached) = cached else { return Ok(0) };
        if self.sectors.is_empty() && self.forgotten.is_empty() {
            return Ok(0);
        }
        let mut content = cached.clone();
        // Nothing survives, or almost all, or anything in between.
        let kept = [0, 10, 50, 90, 100][random.usize(..5)];
        let mut lost = 0;
        let durable = self.durable(&cached);
        for sector in self.sectors.keys() {
            if random.u32(..100) < kept {
                continue;
            }
            lost += 1;
            let from = usize::try_from(*sector).expect("files are small") * SECTOR;
            let torn = if random.u8(..4) == 0 { random.usize(..SECTOR) } else { 0 };
            let mut mixed = sector_of(&content, from);
            mixed[torn..].copy_from_slice(&sector_of(&durable, from)[torn..]);
            put(&mut content, *sector, &mixed);
        }
        for (sector, old) in &self.forgotten {
            lost += 1;
            put(&mut content, *sector, old);
        }
        let lengths = [self.length, cached.len() as u64];
        let length = if kept == 100 { lengths[1] } else { lengths[random.usize(..2)] };
        content.resize(usize::try_from(length).expect("files are small"), 0);
        std::fs::write(path, content)?;
        Ok(lost)
    }
}

/// The sector of `content` at `from`, with zeros where it has ended.
fn sector_of(content: &[u8], from: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let found = content.get(from..(from + SECTOR).min(content.len())).unwrap_or_default();
    sector[..found.len()].copy_from_slice(found);
    sector
}

/// Puts `data` in place of a sector of `content`.
fn put(content: &mut Vec<u8>, sector: u64, data: &[u8]) {
    let from = usize::try_from(sector).expect("files are small") * SECTOR;
    if content.len() < from + data.len() {
        content.resize(from + data.len(), 0);
    }
    content[from..from + data.len()].copy_from_slice(data);
}

fn read_up_to(file: &File, offset: u64, data: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match file.read_at(&mut data[done..], offset + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
