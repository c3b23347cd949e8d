//! The directory that files are written to, and how they are opened there.

use crate::files::plain;
use rustix::fs::{FlockOperation, OFlags, flock, statvfs};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a plain file. A link, which whoever prepared the medium may have put there, is not followed.
///
/// # Errors
/// If it is none, or cannot be opened so.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK; // a pipe does not hold this up
    let file = options.custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no plain file")),
    }
}

/// Whether `file` is what stands at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    let same = || -> io::Result<bool> {
        let (there, own) = (fs::symlink_metadata(path)?, file.metadata()?);
        Ok((there.dev(), there.ino()) == (own.dev(), own.ino()))
    };
    same().unwrap_or(false)
}

/// Locks the directory for as long as what is returned is open. Two that write to one directory, such
/// as an attempt that hangs and the next one, would spoil each other's files.
///
/// # Errors
/// In words, if another has it.
pub fn lock(directory: &Path) -> Result<File, String> {
    let opened = File::open(directory).map_err(|why| cannot(directory, "open", &why))?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(opened),
        Err(Errno::WOULDBLOCK) => {
            let shown = directory.display();
            Err(format!("{shown} is in use: another gateway writes there, or an earlier attempt has not ended"))
        }
        Err(why) => Err(cannot(directory, "lock", &why.into())),
    }
}

/// Tries whether files can be written in `directory`. Returns how many bytes are free.
///
/// # Errors
/// In words, if not.
pub fn try_directory(directory: &Path) -> Result<u64, String> {
    let probe = directory.join(".tidegate-probe");
    let _ = fs::remove_file(&probe); // of an attempt that was cut off
    let tried = fs::metadata(directory).and_then(|found| match found.is_dir() {
        true => open(&probe, File::options().write(true).create_new(true)).and_then(|mut file| file.write_all(b"x")),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    let _ = fs::remove_file(&probe);
    tried.map_err(|why| cannot(directory, "write in", &why))?;
    let stat = statvfs(directory).map_err(|why| cannot(directory, "look at", &why.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// An error in words.
pub fn cannot(path: &Path, what: &str, why: &io::Error) -> String {
    format!("cannot {what} {}: {}", path.display(), plain(why))
}
