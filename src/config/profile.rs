//! What the brokers of some clouds want and take, as their documentation says; sources are in
//! `docs/brokers.md`.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A cloud service that a sink sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    AwsIot,
    AzureIotHub,
    AzureEventGrid,
}

const KIB: u64 = 1024;

impl Profile {
    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Profile::AwsIot => "aws-iot",
            Profile::AzureIotHub => "azure-iot-hub",
            Profile::AzureEventGrid => "azure-event-grid",
        }
    }

    /// The largest payload, in bytes.
    pub fn max_payload(self) -> u64 {
        match self {
            Profile::AwsIot => 128 * KIB,
            Profile::AzureIotHub => 256 * KIB,
            Profile::AzureEventGrid => 512 * KIB,
        }
    }

    /// The most levels that a topic has. IoT Hub has topics of its own.
    pub fn max_levels(self) -> Option<usize> {
        match self {
            Profile::AwsIot => Some(8),
            Profile::AzureIotHub => None,
            Profile::AzureEventGrid => Some(15),
        }
    }

    /// The longest topic, in bytes.
    pub fn max_topic(self) -> Option<usize> {
        match self {
            Profile::AwsIot | Profile::AzureEventGrid => Some(256),
            Profile::AzureIotHub => None,
        }
    }

    /// The shortest and the longest keep-alive.
    pub fn keep_alive(self) -> (Duration, Duration) {
        let (least, most) = match self {
            Profile::AwsIot => (30, 1200),
            Profile::AzureIotHub => (5, 1177),
            Profile::AzureEventGrid => (5, 1160),
        };
        (Duration::from_secs(least), Duration::from_secs(most))
    }
}
