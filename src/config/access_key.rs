//! The key that Azure IoT Hub shares with a device.

use crate::files::plain;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why there is no key. Its message holds nothing of the content.
#[derive(Debug, thiserror::Error)]
pub enum AccessKeyError {
    #[error("cannot read the shared access key from {file}: {why}", file = .path.display(), why = plain(.why))]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{file} holds no shared access key", file = .path.display())]
    NoKey { path: PathBuf },
}

/// No key or connection string has more, in bytes.
const MOST: u64 = 4096;

/// Reads the key that `path` holds: base64, or a connection string with `SharedAccessKey=`.
///
/// # Errors
/// See [`AccessKeyError`].
pub fn read_access_key(path: &Path) -> Result<Vec<u8>, AccessKeyError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MOST).read_to_string(&mut text))
        .map_err(|why| AccessKeyError::Unreadable { path: path.to_owned(), why })?;
    key_in(&text).ok_or_else(|| AccessKeyError::NoKey { path: path.to_owned() })
}

fn key_in(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let part = text.split(';').find_map(|part| part.trim().strip_prefix("SharedAccessKey="));
    STANDARD.decode(part.unwrap_or(text)).ok().filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_alone_or_in_a_connection_string() {
        assert_eq!(key_in("c2VjcmV0\n").as_deref(), Some(&b"secret"[..]));
        let whole = "HostName=plant.azure-devices.net;DeviceId=gw;SharedAccessKey=c2VjcmV0\n";
        assert_eq!(key_in(whole).as_deref(), Some(&b"secret"[..]));
        for none in ["", "no base64", "HostName=h;DeviceId=gw", "SharedAccessKey="] {
            assert_eq!(key_in(none), None, "{none}");
        }
    }
}
