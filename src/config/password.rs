//! Secrets from files.

use crate::files::plain;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most that an MQTT password can be.
const MAX_PASSWORD_BYTES: u64 = 65_535;

/// Why a password could not be read. Its message holds nothing of the content.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("cannot read the password from {file}: {why}", file = .path.display(), why = plain(.why))]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("the password in {file} is empty", file = .path.display())]
    Empty { path: PathBuf },
    #[error("the password in {file} is longer than the {MAX_PASSWORD_BYTES} bytes that MQTT allows", file = .path.display())]
    TooLong { path: PathBuf },
    #[error("the password in {file} is not UTF-8 text", file = .path.display())]
    NotText { path: PathBuf },
}

/// Reads the password that is the content of `path`, without the line break that
/// editors put at the end.
///
/// # Errors
/// See [`PasswordError`].
pub fn read_password(path: &Path) -> Result<String, PasswordError> {
    let path = path.to_owned();
    let mut bytes = Vec::new();
    let most = MAX_PASSWORD_BYTES + 2; // a line break may be two bytes
    match File::open(&path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)) {
        Err(why) => return Err(PasswordError::Unreadable { path, why }),
        Ok(_) if bytes.len() as u64 > most => return Err(PasswordError::TooLong { path }),
        Ok(_) => {}
    }
    let Ok(mut password) = String::from_utf8(bytes) else {
        return Err(PasswordError::NotText { path });
    };
    if password.ends_with('\n') {
        password.pop();
        if password.ends_with('\r') {
            password.pop();
        }
    }
    match password.len() as u64 {
        0 => Err(PasswordError::Empty { path }),
        1..=MAX_PASSWORD_BYTES => Ok(password),
        _ => Err(PasswordError::TooLong { path }),
    }
}
