//! A file that only takes up space, to be released when there is none: then what the
//! log needs in order to make room can be written.

use crate::files;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Name of the file inside the store's directory.
pub(in crate::store) const FILE_NAME: &str = "reserve";

#[derive(Debug)]
pub(in crate::store) struct ReserveFile {
    path: PathBuf,
    size: u64,
    /// Whether it lies there, as far as is known.
    there: bool,
}

impl ReserveFile {
    /// A reserve of `size` bytes for the log in `directory`.
    pub fn new(directory: &Path, size: u64) -> ReserveFile {
        let path = directory.join(FILE_NAME);
        let there = std::fs::metadata(&path).is_ok_and(|found| found.len() == size);
        ReserveFile { path, size, there }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn is_there(&self) -> bool {
        self.there
    }

    /// Gives its space back. True if there was any.
    pub fn release(&mut self) -> bool {
        self.there = false;
        self.path.exists() && files::discard(&self.path).is_ok()
    }

    /// Takes its space, if it does not have it.
    pub fn take(&mut self) -> io::Result<()> {
        if self.there {
            return Ok(());
        }
        let taken = self.fill();
        match taken {
            Ok(()) => self.there = true,
            Err(_) => drop(self.release()),
        }
        taken
    }

    fn fill(&self) -> io::Result<()> {
        let mut file = File::options().create(true).truncate(true).write(true).open(&self.path)?;
        files::hand_over(&self.path);
        match fallocate(&file, FallocateFlags::empty(), 0, self.size) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = [0; 4096];
                let mut left = self.size;
                while left > 0 {
                    let now = left.min(zeros.len() as u64);
                    file.write_all(&zeros[..now as usize])?; // at most its length
                    left -= now;
                }
                Ok(())
            }
            Err(why) => Err(why.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_takes_real_blocks_and_gives_them_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut reserve = ReserveFile::new(directory.path(), 2 << 20);
        assert!(!reserve.is_there() && !reserve.release());
        reserve.take().expect("there is room");
        let found = std::fs::metadata(directory.path().join(FILE_NAME)).expect("the file");
        assert_eq!(found.len(), reserve.size());
        assert!(found.blocks() * 512 >= reserve.size());
        assert!(ReserveFile::new(directory.path(), 2 << 20).is_there());
        assert!(reserve.release() && !reserve.is_there());
        assert!(!directory.path().join(FILE_NAME).exists());
    }
}
