//! The faulty [`Disk`] as SQLite's default file system, for the whole process.

use super::disk::Disk;
use parking_lot::{Mutex, MutexGuard};
use sqlite_plugin::flags::{AccessFlags, CreateMode, LockLevel, OpenMode, OpenOpts, ShmLockMode};
use sqlite_plugin::vars;
use sqlite_plugin::vfs::{RegisterOpts, Vfs, VfsHandle, VfsResult, register_static};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// SQLite's file system; clones share the disk.
#[derive(Clone, Default)]
pub struct FaultyVfs(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    disk: Disk,
    next: u64,
    locks: HashMap<String, Locks>,
    /// Shared memory of connections to the same file. Atomics, because SQLite
    /// writes through a pointer that came from a shared reference.
    memory: HashMap<String, Memory>,
}

/// Shared memory of a file. As with SQLite's own file system, whoever comes when nobody
/// has it mapped finds it empty.
#[derive(Default)]
struct Memory {
    regions: Vec<Box<[AtomicU64]>>,
    mapped_by: BTreeSet<u64>,
}

/// Who holds what of a file, by handle.
#[derive(Default)]
struct Locks {
    file: BTreeMap<u64, LockLevel>,
    shared: BTreeMap<u64, u8>,
    exclusive: BTreeMap<u64, u8>,
}

pub struct Handle {
    id: u64,
    path: String,
    file: File,
    readonly: bool,
}

impl VfsHandle for Handle {
    fn readonly(&self) -> bool {
        self.readonly
    }

    fn in_memory(&self) -> bool {
        false
    }
}

impl FaultyVfs {
    /// Makes this what SQLite uses from now on.
    pub fn register() -> FaultyVfs {
        let vfs = FaultyVfs::default();
        let registered = register_static(c"simulation".to_owned(), vfs.clone(), RegisterOpts { make_default: true });
        assert!(registered.is_ok(), "SQLite takes a new file system");
        vfs
    }

    pub fn disk(&self) -> parking_lot::MappedMutexGuard<'_, Disk> {
        MutexGuard::map(self.0.lock(), |inner| &mut inner.disk)
    }

    /// Puts in another disk. No connection may be open.
    pub fn insert(&self, disk: Disk) {
        let mut inner = self.0.lock();
        *inner = Inner { disk, next: inner.next, ..Inner::default() };
    }

    /// Forgets locks and memory of the process that ended.
    pub fn forget(&self) {
        let mut inner = self.0.lock();
        inner.locks.clear();
        inner.memory.clear();
    }
}

/// The error that SQLite gets: `code`, or that the disk is full.
fn failed(code: i32) -> impl Fn(io::Error) -> i32 {
    move |why| if why.kind() == io::ErrorKind::StorageFull { vars::SQLITE_FULL } else { code }
}

impl Vfs for FaultyVfs {
    type Handle = Handle;

    fn open(&self, path: Option<&str>, opts: OpenOpts) -> VfsResult<Handle> {
        let path = path.ok_or(vars::SQLITE_CANTOPEN)?;
        let (create, readonly) = match opts.mode() {
            OpenMode::ReadOnly => (false, true),
            OpenMode::ReadWrite { create } => (create != CreateMode::None, false),
        };
        let mut inner = self.0.lock();
        let file = inner.disk.open(path, create, !readonly).map_err(failed(vars::SQLITE_CANTOPEN))?;
        inner.next += 1;
        Ok(Handle { id: inner.next, path: path.to_owned(), file, readonly })
    }

    fn delete(&self, path: &str) -> VfsResult<()> {
        self.0.lock().disk.delete(path).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => vars::SQLITE_IOERR_DELETE_NOENT,
            _ => vars::SQLITE_IOERR_DELETE,
        })
    }

    fn access(&self, path: &str, _flags: AccessFlags) -> VfsResult<bool> {
        // As SQLite's own: an empty file counts as none.
        Ok(std::fs::metadata(path).is_ok_and(|found| found.len() > 0))
    }

    fn file_size(&self, handle: &mut Handle) -> VfsResult<usize> {
        let length = handle.file.metadata().map_err(failed(vars::SQLITE_IOERR_FSTAT))?.len();
        usize::try_from(length).map_err(|_| vars::SQLITE_IOERR_FSTAT)
    }

    fn truncate(&self, handle: &mut Handle, size: usize) -> VfsResult<()> {
        let mut inner = self.0.lock();
        let done = inner.disk.truncate(&handle.path, &handle.file, size as u64);
        done.map_err(failed(vars::SQLITE_IOERR_TRUNCATE))
    }

    fn write(&self, handle: &mut Handle, offset: usize, data: &[u8]) -> VfsResult<usize> {
        let mut inner = self.0.lock();
        let done = inner.disk.write(&handle.path, &handle.file, offset as u64, data);
        done.map_err(failed(vars::SQLITE_IOERR_WRITE))?;
        Ok(data.len())
    }

    fn read(&self, handle: &mut Handle, offset: usize, data: &mut [u8]) -> VfsResult<usize> {
        self.0.lock().disk.read(&handle.file, offset as u64, data).map_err(failed(vars::SQLITE_IOERR_READ))
    }

    fn lock(&self, handle: &mut Handle, level: LockLevel) -> VfsResult<()> {
        let mut inner = self.0.lock();
        if inner.disk.is_dead() {
            return Err(vars::SQLITE_IOERR_LOCK);
        }
        // As of the system: a write lock needs a file that is open for writing. So SQLite
        // does not remove the write-ahead log when somebody who reads is the last to leave.
        if handle.readonly && level > LockLevel::Shared {
            return Err(vars::SQLITE_IOERR_LOCK);
        }
        let held = &mut inner.locks.entry(handle.path.clone()).or_default().file;
        let others = held.iter().filter(|(id, _)| **id != handle.id).map(|(_, level)| *level).max();
        let others = others.unwrap_or(LockLevel::Unlocked);
        let (granted, busy) = match level {
            LockLevel::Shared => (level, others >= LockLevel::Pending),
            LockLevel::Reserved | LockLevel::Pending => (level, others >= LockLevel::Reserved),
            LockLevel::Exclusive if others >= LockLevel::Reserved => (level, true),
            LockLevel::Exclusive if others >= LockLevel::Shared => {
                held.insert(handle.id, LockLevel::Pending);
                (level, true)
            }
            LockLevel::Exclusive | LockLevel::Unlocked => (level, false),
        };
        if busy {
            return Err(vars::SQLITE_BUSY);
        }
        let mine = held.entry(handle.id).or_insert(LockLevel::Unlocked);
        *mine = granted.max(*mine);
        Ok(())
    }

    fn unlock(&self, handle: &mut Handle, level: LockLevel) -> VfsResult<()> {
        let mut inner = self.0.lock();
        if let Some(locks) = inner.locks.get_mut(&handle.path) {
            if level == LockLevel::Unlocked {
                locks.file.remove(&handle.id);
            } else {
                locks.file.insert(handle.id, level);
            }
        }
        Ok(())
    }

    fn check_reserved_lock(&self, handle: &mut Handle) -> VfsResult<bool> {
        let inner = self.0.lock();
        let locks = inner.locks.get(&handle.path);
        Ok(locks.is_some_and(|locks| locks.file.values().any(|level| *level >= LockLevel::Reserved)))
    }

    fn sync(&self, handle: &mut Handle) -> VfsResult<()> {
        let mut inner = self.0.lock();
        let done = inner.disk.sync(handle.id, &handle.path, &handle.file);
        done.map_err(failed(vars::SQLITE_IOERR_FSYNC))
    }

    fn close(&self, handle: Handle) -> VfsResult<()> {
        let mut inner = self.0.lock();
        if let Some(locks) = inner.locks.get_mut(&handle.path) {
            locks.file.remove(&handle.id);
            locks.shared.remove(&handle.id);
            locks.exclusive.remove(&handle.id);
        }
        Ok(())
    }

    fn device_characteristics(&self, _handle: &mut Handle) -> VfsResult<i32> {
        // What SQLite assumes of disks on Linux.
        Ok(vars::SQLITE_IOCAP_POWERSAFE_OVERWRITE)
    }

    fn shm_map(&self, handle: &mut Handle, region: usize, size: usize, extend: bool) -> VfsResult<Option<NonNull<u8>>> {
        let mut inner = self.0.lock();
        if inner.disk.is_dead() {
            return Err(vars::SQLITE_IOERR_SHMMAP);
        }
        let Memory { regions, mapped_by } = inner.memory.entry(handle.path.clone()).or_default();
        mapped_by.insert(handle.id);
        while extend && regions.len() <= region {
            regions.push((0..size.div_ceil(8)).map(|_| AtomicU64::new(0)).collect());
        }
        Ok(regions.get(region).map(|region| NonNull::from(&**region).cast()))
    }

    fn shm_lock(&self, handle: &mut Handle, offset: u32, count: u32, mode: ShmLockMode) -> VfsResult<()> {
        let mut inner = self.0.lock();
        let slots = u8::try_from(((1u32 << count) - 1) << offset).map_err(|_| vars::SQLITE_IOERR_SHMLOCK)?;
        let Locks { shared, exclusive, .. } = inner.locks.entry(handle.path.clone()).or_default();
        let others = |held: &BTreeMap<u64, u8>| held.iter().any(|(id, held)| *id != handle.id && held & slots != 0);
        match mode {
            ShmLockMode::LockShared if others(exclusive) => return Err(vars::SQLITE_BUSY),
            ShmLockMode::LockExclusive if others(exclusive) || others(shared) => return Err(vars::SQLITE_BUSY),
            ShmLockMode::LockShared => *shared.entry(handle.id).or_default() |= slots,
            ShmLockMode::LockExclusive => *exclusive.entry(handle.id).or_default() |= slots,
            ShmLockMode::UnlockShared => *shared.entry(handle.id).or_default() &= !slots,
            ShmLockMode::UnlockExclusive => *exclusive.entry(handle.id).or_default() &= !slots,
        }
        Ok(())
    }

    fn shm_barrier(&self, _handle: &mut Handle) {}

    fn shm_unmap(&self, handle: &mut Handle, delete: bool) -> VfsResult<()> {
        let mut inner = self.0.lock();
        if let Some(locks) = inner.locks.get_mut(&handle.path) {
            locks.shared.remove(&handle.id);
            locks.exclusive.remove(&handle.id);
        }
        if let Some(memory) = inner.memory.get_mut(&handle.path) {
            memory.mapped_by.remove(&handle.id);
            if delete || memory.mapped_by.is_empty() {
                inner.memory.remove(&handle.path);
            }
        }
        Ok(())
    }
}
