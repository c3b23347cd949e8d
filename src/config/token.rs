//! The token that requests to the HTTP server bear.

use crate::files::plain;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A token that can be guessed protects nothing.
const SHORTEST: usize = 16;
const LONGEST: usize = 512;
/// Everybody's rights, and the group's to write. The group may read: systemd hands
/// credentials over like that.
const TOO_OPEN: u32 = 0o027;

/// Why there is no token. Its message holds nothing of the content.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token from {file}: {why}", file = .path.display(), why = plain(.why))]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{file} has the mode {mode:03o}, with which others can read or change the token", file = .path.display())]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("{file} holds no token: one line of {SHORTEST} to {LONGEST} visible ASCII characters", file = .path.display())]
    NoToken { path: PathBuf },
}

impl TokenError {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            TokenError::Unreadable { .. } => "give a file that is there and that this user may read",
            TokenError::TooOpen { .. } => "chmod 600 it, and have it belong to the user that runs tidegate",
            TokenError::NoToken { .. } => "make one with: openssl rand -hex 24",
        }
    }
}

/// Reads the token that is the content of `path`, without white space around it.
///
/// # Errors
/// See [`TokenError`].
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    let path = path.to_owned();
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| {
        let mode = file.metadata()?.mode() & 0o777;
        file.take(2 * LONGEST as u64).read_to_end(&mut bytes)?;
        Ok(mode)
    });
    let mode = match read {
        Ok(mode) => mode,
        Err(why) => return Err(TokenError::Unreadable { path, why }),
    };
    if mode & TOO_OPEN != 0 {
        return Err(TokenError::TooOpen { path, mode });
    }
    let token = bytes.trim_ascii();
    if !(SHORTEST..=LONGEST).contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        return Err(TokenError::NoToken { path });
    }
    String::from_utf8(token.to_vec()).map_err(|_| TokenError::NoToken { path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_one_long_word_that_others_cannot_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("token");
        let with = |content: &str, mode: u32| {
            fs::write(&path, content).expect("a file that can be written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode that can be set");
            read_token(&path)
        };
        assert_eq!(with("0123456789abcdef\n", 0o600).expect("a token"), "0123456789abcdef");
        assert!(with("0123456789abcdef", 0o440).is_ok());
        for mode in [0o644, 0o660, 0o601] {
            assert!(matches!(with("0123456789abcdef", mode), Err(TokenError::TooOpen { .. })), "{mode:o}");
        }
        for bad in ["", "short", "0123456789 abcdef", "0123456789abcdéf", &"x".repeat(2000)] {
            assert!(matches!(with(bad, 0o600), Err(TokenError::NoToken { .. })), "{bad}");
        }
        let missing = read_token(&directory.path().join("none")).expect_err("no file");
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
