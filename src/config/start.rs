//! Where a new sink begins.

use serde::{Deserialize, Serialize};

/// Where a sink begins that the log does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With the next reading.
    Now,
    /// With the oldest reading that the log has.
    #[default]
    Oldest,
}
