//! What an error of the disk means: whether it is for want of space, and whether it may
//! pass by itself.

use super::schema::OpenError;
use rusqlite::ErrorCode;
use rustix::io::Errno;
use std::io::ErrorKind;

/// Why something could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum WriteFailure {
    NoSpace,
    Other,
}

impl WriteFailure {
    /// Of a commit or a checkpoint.
    pub fn of(why: &anyhow::Error) -> WriteFailure {
        let no_space = why.chain().any(|cause| match cause.downcast_ref::<OpenError>() {
            Some(why) => WriteFailure::of_opening(why) == WriteFailure::NoSpace,
            None => cause.downcast_ref::<rusqlite::Error>().is_some_and(is_full),
        });
        if no_space { WriteFailure::NoSpace } else { WriteFailure::Other }
    }

    /// Of an attempt to open the log.
    pub fn of_opening(why: &OpenError) -> WriteFailure {
        let no_space = match why {
            OpenError::Database { why, .. } => is_full(why),
            OpenError::Directory { why, .. } => is_full_disk(why),
            _ => false,
        };
        if no_space { WriteFailure::NoSpace } else { WriteFailure::Other }
    }
}

impl OpenError {
    /// Whether it may pass while the gateway waits: the disk is full, fails, or can only be
    /// read until it is mounted again, or the system has no resources left.
    pub fn may_pass(&self) -> bool {
        const PASSING: [Errno; 11] = [
            Errno::IO,
            Errno::ROFS,
            Errno::NODEV,
            Errno::NXIO,
            Errno::STALE,
            Errno::NOTCONN,
            Errno::TIMEDOUT,
            Errno::BUSY,
            Errno::NOMEM,
            Errno::NFILE,
            Errno::MFILE,
        ];
        match self {
            OpenError::Directory { why, .. } => {
                is_full_disk(why) || PASSING.iter().any(|errno| why.raw_os_error() == Some(errno.raw_os_error()))
            }
            OpenError::Database { why, .. } => why.sqlite_error_code().is_some_and(|code| {
                matches!(
                    code,
                    ErrorCode::DiskFull
                        | ErrorCode::ReadOnly
                        | ErrorCode::SystemIoFailure
                        | ErrorCode::CannotOpen
                        | ErrorCode::OutOfMemory
                        | ErrorCode::DatabaseBusy
                        | ErrorCode::DatabaseLocked
                )
            }),
            _ => false,
        }
    }
}

/// Whether a sync is what failed: the system may hold what it was to write in memory
/// only, and say next time that it is written.
pub(in crate::store) fn is_sync(why: &anyhow::Error) -> bool {
    const SYNCS: [i32; 2] = [rusqlite::ffi::SQLITE_IOERR_FSYNC, rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC];
    let failed = |why: &rusqlite::Error| why.sqlite_error().is_some_and(|error| SYNCS.contains(&error.extended_code));
    why.chain().any(|cause| cause.downcast_ref().is_some_and(failed))
}

fn is_full_disk(why: &std::io::Error) -> bool {
    matches!(why.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn is_full(why: &rusqlite::Error) -> bool {
    // SQLite's index of the write-ahead log fails in its own way for want of space.
    why.sqlite_error().is_some_and(|error| {
        error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    })
}
