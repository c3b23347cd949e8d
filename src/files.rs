//! Files that change while the gateway runs, and files that only their owner may read.

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat, fchown, flock};
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// systemd stores secrets below this directory, and protects the directory instead of each file.
pub const CREDENTIALS: &str = "/run/credentials";

/// Identifies a version of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file at `path`, if it exists.
    pub fn of(path: &Path) -> Option<Stamp> {
        std::fs::metadata(path).ok().map(|file| Stamp::new(&file))
    }

    fn new(file: &Metadata) -> Stamp {
        Stamp {
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The operating system's error in plain words, without its number.
pub fn plain(why: &io::Error) -> String {
    let known = match why.kind() {
        io::ErrorKind::NotFound => "it is not there",
        io::ErrorKind::PermissionDenied => "this user may not",
        io::ErrorKind::IsADirectory => "it is a directory",
        io::ErrorKind::NotADirectory => "a part of its path is no directory",
        io::ErrorKind::StorageFull => "its disk is full",
        io::ErrorKind::QuotaExceeded => "the disk quota is used up",
        io::ErrorKind::ReadOnlyFilesystem => "its disk can only be read",
        io::ErrorKind::ConnectionRefused => "nothing listens there",
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            "the other side closed the connection"
        }
        io::ErrorKind::UnexpectedEof => "it ended early",
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer came in time",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no network leads there",
        _ => {
            let said = why.to_string();
            return said.split(" (os error").next().unwrap_or_default().to_lowercase();
        }
    };
    known.to_owned()
}

/// Why a secret file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read {file}: {why}", file = .path.display(), why = plain(.why))]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{file} can be read by others (mode {mode:03o}): chmod 600 {file}", file = .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{file} is larger than {most} bytes", file = .path.display())]
    TooLarge { path: PathBuf, most: u64 },
}

impl SecretError {
    /// Whether the file does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, SecretError::Unreadable { why, .. } if why.kind() == io::ErrorKind::NotFound)
    }
}

/// Whether an error is a missing permission for a file.
pub fn is_forbidden(why: &anyhow::Error) -> bool {
    why.chain().any(|cause| {
        let of_secret = cause.downcast_ref().and_then(|why| match why {
            SecretError::Unreadable { why, .. } => Some(why),
            _ => None,
        });
        let error = of_secret.or_else(|| cause.downcast_ref::<io::Error>());
        error.is_some_and(|why| why.kind() == io::ErrorKind::PermissionDenied)
    })
}

/// Reads a file of at most `most` bytes that only its owner may read.
///
/// # Errors
/// If others may read it too, if it is larger, or on an I/O error.
pub fn read_secret(path: &Path, most: u64) -> Result<Vec<u8>, SecretError> {
    let unreadable = |why| SecretError::Unreadable { path: path.to_owned(), why };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o077 != 0 && !path.starts_with(CREDENTIALS) {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > most {
        return Err(SecretError::TooLarge { path: path.to_owned(), most });
    }
    Ok(content)
}

/// A new content, written beside a file until it replaces it as a whole. If that fails it is
/// removed: on a full disk it would block later attempts.
pub struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    placed: bool,
}

impl Replacement {
    /// For the file at `path`, which may not exist.
    ///
    /// # Errors
    /// On an I/O error.
    pub fn of(path: &Path, mode: u32) -> io::Result<Replacement> {
        let temporary = Replacement::temporary(path);
        // A file that a crash left is not used.
        let _ = discard(&temporary);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        hand_over(&temporary);
        Ok(Replacement { path: path.to_owned(), temporary, file, placed: false })
    }

    /// Where the new content of the file at `path` is written.
    pub fn temporary(path: &Path) -> PathBuf {
        with_suffix(path, ".new")
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Syncs the new content to disk, and replaces the file.
    ///
    /// # Errors
    /// On an I/O error.
    pub fn put(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.placed = true;
        File::open(directory_of(&self.path))?.sync_all()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.placed {
            // If it cannot be removed, the next attempt or the next start removes it.
            let _ = discard(&self.temporary);
        }
    }
}

/// Removes a useless file, and frees its space even if it cannot be removed: on some
/// filesystems a full disk refuses to unlink, but not to truncate.
///
/// # Errors
/// On an I/O error; a missing file is no error.
pub fn discard(path: &Path) -> io::Result<()> {
    let cut = File::options().write(true).open(path).and_then(|file| file.set_len(0));
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => cut,
        _ => Ok(()),
    }
}

/// A file that one process changes at a time. Unlocked when dropped. A file that was created for
/// a content that it did not get is removed then.
pub struct Locked {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    /// Whether it was created by this.
    new: bool,
}

impl Locked {
    /// Waits for the lock of the file at `path`; the file and its directory are created if
    /// missing.
    ///
    /// # Errors
    /// On an I/O error.
    pub fn open(path: &Path) -> io::Result<Locked> {
        let directory = directory_of(path);
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        loop {
            let mut new = OpenOptions::new();
            let (file, new) = match new.write(true).create_new(true).mode(0o600).open(path) {
                Ok(file) => {
                    take_over_owner(&file, &std::fs::metadata(directory)?)?;
                    (file, true)
                }
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists => (File::open(path)?, false),
                Err(why) => return Err(why),
            };
            flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            // Another process may have replaced the file in the meantime.
            let inode = file.metadata()?.ino();
            if std::fs::metadata(path).is_ok_and(|now| now.ino() == inode) {
                return Ok(Locked { path: path.to_owned(), file, new });
            }
        }
    }

    /// Replaces the file by `content`, atomically, and syncs it to disk. The file keeps its
    /// owner.
    ///
    /// # Errors
    /// On an I/O error.
    pub fn replace(self, content: &[u8]) -> io::Result<()> {
        let mut new = Replacement::of(&self.path, 0o600)?;
        take_over_owner(new.file(), &self.file.metadata()?)?;
        new.file().write_all(content)?;
        new.put()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !self.new {
            return;
        }
        let (Ok(own), Ok(there)) = (self.file.metadata(), std::fs::metadata(&self.path)) else { return };
        // A new file in its place stays. A process that waits for the lock sees that the file is
        // removed, and starts over.
        if own.len() == 0 && own.ino() == there.ino() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A file that root creates for the service must belong to the service.
fn take_over_owner(file: &File, from: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (from.uid(), from.gid()) || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(from.uid()), Gid::from_raw(from.gid()));
    Ok(fchown(file, Some(user), Some(group))?)
}

/// Gives a file or directory that root created at `path`, if it exists, to the owner of the
/// directory around it: the service must be able to use it. If that fails, root continues.
pub fn hand_over(path: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (Ok(own), Ok(around)) = (std::fs::symlink_metadata(path), std::fs::metadata(directory_of(path))) else {
        return;
    };
    if (own.uid(), own.gid()) != (around.uid(), around.gid()) {
        let (user, group) = (Uid::from_raw(around.uid()), Gid::from_raw(around.gid()));
        if let Err(why) = chownat(CWD, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW) {
            tracing::debug!(path = %path.display(), %why, "it stays root's");
        }
    }
}

/// Why this user may not use a directory, or a file in it of another user, and the remedy.
pub fn of_another(directory: &Path) -> Option<String> {
    let user = rustix::process::geteuid().as_raw();
    let inside = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = std::iter::once(directory.to_owned()).chain(inside);
    let (path, owner) = all
        .filter_map(|path| Some((std::fs::symlink_metadata(&path).ok()?.uid(), path)))
        .find(|(owner, _)| *owner != user)
        .map(|(owner, path)| (path, owner))?;
    let (path, owner, user, directory) = (path.display(), name_of(owner), name_of(user), directory.display());
    Some(format!("{path} belongs to {owner}, and this is {user}: sudo chown -R {user}: {directory}"))
}

/// The user's name, or number.
fn name_of(user: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| user.to_string())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_others_may_read_is_no_secret() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("secret");
        assert!(read_secret(&path, 10).expect_err("no file").is_missing());
        std::fs::write(&path, "1234567890").expect("a file");
        for mode in [0o640, 0o604, 0o610] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
            let why = read_secret(&path, 10).expect_err("others may read it").to_string();
            assert!(why.contains(&format!("mode {mode:03o}")) && why.contains("chmod 600"), "{why}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("a mode");
        assert_eq!(read_secret(&path, 10).expect("a secret"), b"1234567890");
        assert!(matches!(read_secret(&path, 9), Err(SecretError::TooLarge { .. })));
    }

    #[test]
    fn a_new_content_that_could_not_be_written_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "old").expect("a file");
        std::fs::write(Replacement::temporary(&path), "of an earlier life").expect("a file");
        let mut new = Replacement::of(&path, 0o644).expect("a new file");
        new.file().write_all(b"half").expect("a write");
        drop(new);
        let left: Vec<_> = std::fs::read_dir(directory.path()).expect("it").map(|e| e.expect("one").path()).collect();
        assert_eq!((left, std::fs::read(&path).expect("it")), (vec![path.clone()], b"old".to_vec()));

        let mut new = Replacement::of(&path, 0o644).expect("a new file");
        new.file().write_all(b"new").expect("a write");
        new.put().expect("it takes its place");
        assert_eq!(std::fs::read(&path).expect("it"), b"new");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_by_one_at_a_time() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("below").join("secret");
        let all: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || {
                    for _ in 0..10 {
                        let locked = Locked::open(&path).expect("a lock");
                        let mut content = read_secret(&path, 1000).expect("a secret");
                        content.push(b'x');
                        locked.replace(&content).expect("a new content");
                    }
                })
            })
            .collect();
        all.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(read_secret(&path, 1000).expect("a secret").len(), 80);
        let before = Stamp::of(&path);
        Locked::open(&path).expect("a lock").replace(b"y").expect("a new content");
        assert!(before.is_some() && Stamp::of(&path) != before);
    }
}
