//! `[commands]`: to devices, and to the gateway itself.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commands {
    pub enabled: bool,
    /// Patterns of which one must match the device's name; none: every device.
    pub devices: Vec<String>,
    /// How long a command is wanted that does not say so.
    #[serde(with = "humantime_serde")]
    pub default_expiry: Duration,
    /// No command may be wanted for longer.
    #[serde(with = "humantime_serde")]
    pub max_expiry: Duration,
    /// Bytes of a command's payload, and of what a device answers.
    pub max_payload: ByteSize,
    pub max_result: ByteSize,
    /// Commands that may wait for one device, and for all.
    pub max_queued: usize,
    pub max_live: usize,
    /// A command that was sent and not answered is sent again after this.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// How long a device may take to answer, though the command's time is over.
    #[serde(with = "humantime_serde")]
    pub answer_within: Duration,
    /// Ended commands that are remembered, and for how long.
    pub remember: usize,
    #[serde(with = "humantime_serde")]
    pub remember_for: Duration,
}

/// What a command's text may have beside its payload, in bytes.
const BESIDE_PAYLOAD: u64 = 1024;

impl Commands {
    /// Bytes of a command's text.
    pub fn max_body(&self) -> usize {
        usize::try_from(self.max_payload.as_u64().saturating_add(BESIDE_PAYLOAD)).unwrap_or(usize::MAX)
    }
}

impl Default for Commands {
    fn default() -> Commands {
        Commands {
            enabled: true,
            devices: Vec::new(),
            default_expiry: Duration::from_secs(600),
            max_expiry: Duration::from_secs(7 * 24 * 3600),
            max_payload: ByteSize::kib(4),
            max_result: ByteSize::kib(16),
            max_queued: 16,
            max_live: 1000,
            retry_after: Duration::from_secs(10),
            answer_within: Duration::from_secs(30),
            remember: 10_000,
            remember_for: Duration::from_secs(7 * 24 * 3600),
        }
    }
}
