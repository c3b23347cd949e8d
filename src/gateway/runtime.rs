//! The directory for files that must not outlive this boot of the machine, nor be on a copy of a
//! disk.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// systemd sets it to the directory of `RuntimeDirectory=`.
pub const VARIABLE: &str = "RUNTIME_DIRECTORY";
/// The kernel's numbers of file systems in memory: tmpfs and ramfs.
const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];

/// The `configured` directory, or that in [`VARIABLE`], if it is in memory.
pub fn directory(configured: Option<PathBuf>, variable: Option<OsString>) -> Option<PathBuf> {
    // Several are separated by colons.
    let first = |list: OsString| list.to_str()?.split(':').next().filter(|path| !path.is_empty()).map(PathBuf::from);
    let directory = configured.or_else(|| variable.and_then(first))?;
    let usable = std::fs::create_dir_all(&directory).and_then(|()| is_in_memory(&directory));
    match usable {
        Ok(true) => return Some(directory),
        Ok(false) => tracing::warn!(
            directory = %directory.display(),
            "[store] runtime_directory is not used: it is on a disk, and a disk may be restored from a copy; each start begins \
             a new epoch; give a directory on a tmpfs, such as /run/tidegate"
        ),
        Err(why) => tracing::warn!(
            directory = %directory.display(), %why,
            "[store] runtime_directory cannot be used; each start begins a new epoch; make it writable for this user"
        ),
    }
    None
}

fn is_in_memory(directory: &Path) -> std::io::Result<bool> {
    let kind = i128::from(rustix::fs::statfs(directory)?.f_type) & 0xffff_ffff;
    Ok(IN_MEMORY.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_in_memory_is_used() {
        let shm = Path::new("/dev/shm");
        if is_in_memory(shm).is_ok_and(|in_memory| in_memory) {
            let directory = tempfile::tempdir_in(shm).expect("a temporary directory");
            let (a, b) = (directory.path().join("a"), directory.path().join("b"));
            let both: OsString = format!("{}:/elsewhere", b.display()).into();
            assert_eq!(super::directory(Some(a.clone()), Some(both.clone())), Some(a.clone()));
            assert_eq!(super::directory(None, Some(both)), Some(b));
            assert!(a.is_dir(), "it is made");
        }
        assert_eq!(super::directory(None, None), None);
        assert_eq!(super::directory(None, Some(OsString::new())), None);
        assert_eq!(super::directory(Some("/proc/nothing/there".into()), None), None);
        assert_eq!(super::directory(Some("/proc".into()), None), None);
    }
}
