//! `[[file]]`: readings as files, for sites without a network.

use super::Start;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `[[file]]`: a directory of files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileSink {
    /// Names the sink in the log's cursors, logs and metrics.
    pub name: String,
    pub start: Start,
    /// Where the files are; it is not created.
    pub directory: Option<PathBuf>,
    pub format: TextFormat,
    /// A file of this size is closed, and another one begun.
    pub rotate_size: ByteSize,
    /// The same of one that was begun so long ago.
    #[serde(with = "humantime_serde")]
    pub rotate_after: Duration,
    /// All files together take no more.
    pub max_total: ByteSize,
    pub when_full: WhenFull,
    /// Readings wait for so long before they are flushed to the medium together.
    #[serde(with = "humantime_serde")]
    pub flush_within: Duration,
}

/// Readings as text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TextFormat {
    /// One JSON object for each reading
    #[default]
    Jsonl,
    /// One row for each value
    Csv,
}

/// What happens once the files take what they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Readings wait in the log until somebody takes files away.
    Hold,
    /// The oldest file is removed.
    DropOldest,
}

/// Payloads that are written before the first is confirmed.
pub const FILE_WINDOW: u16 = 8;
/// Bytes of one.
pub const FILE_BATCH: u64 = 64 << 10;

impl FileSink {
    /// Where the files are; a loaded configuration says so.
    pub fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new(""))
    }

    /// Memory for what it writes, in bytes.
    pub(super) fn memory(&self) -> u64 {
        FILE_BATCH * u64::from(FILE_WINDOW) * 3
    }
}

impl Default for FileSink {
    fn default() -> FileSink {
        FileSink {
            name: "file".into(),
            start: Start::Oldest,
            directory: None,
            format: TextFormat::Jsonl,
            rotate_size: ByteSize::mib(16),
            rotate_after: Duration::from_secs(3600),
            max_total: ByteSize::gib(1),
            when_full: WhenFull::Hold,
            flush_within: Duration::from_secs(1),
        }
    }
}
