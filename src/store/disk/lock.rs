//! The directory of the log belongs to one process.

use super::schema::OpenError;
use crate::files;
use std::fs::File;
use std::path::Path;

/// The directory is this process's alone.
pub(in crate::store) struct Lock(File);

impl Drop for Lock {
    /// A process that was just started may share the file until it runs its program:
    /// closing it here would not be enough.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes the directory for this process alone.
pub(in crate::store) fn lock(directory: &Path) -> Result<Lock, OpenError> {
    let failed = |why| OpenError::Directory { path: directory.to_owned(), why };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let path = directory.join("lock");
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(failed)?;
    files::hand_over(&path);
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: directory.to_owned() }),
        Err(std::fs::TryLockError::Error(why)) => Err(failed(why)),
    }
}
