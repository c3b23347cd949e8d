//! `[[serial]]`: which port, how it is set up, and what comes over it.

use super::Authentication;
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parity {
    None,
    Odd,
    Even,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowControl {
    None,
    Software,
    Hardware,
}

/// `[[serial]]`: a port with one device at its far end, by its path or by its USB
/// adapter.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serial {
    /// Names the link in logs and metrics.
    pub name: String,
    /// The port, best by a stable path such as `/dev/serial/by-id/...`.
    pub path: Option<PathBuf>,
    /// The port of a USB adapter of this kind, wherever it is plugged in.
    pub usb: Option<UsbId>,
    /// Pattern that the adapter's serial number must match.
    pub usb_serial: Option<String>,
    /// Interface of an adapter that has several ports.
    pub usb_interface: Option<u8>,
    pub baud: u32,
    /// 5 to 8.
    pub data_bits: u8,
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
    pub flow_control: FlowControl,
    /// Have the port's driver switch an RS-485 transceiver's direction by RTS.
    pub rs485: bool,
    /// RTS is low while sending instead of high.
    pub rs485_invert_rts: bool,
    /// From the switch to the first bit, whole milliseconds.
    #[serde(with = "humantime_serde")]
    pub rs485_delay_before_send: Duration,
    /// From the last bit to the switch back, whole milliseconds.
    #[serde(with = "humantime_serde")]
    pub rs485_delay_after_send: Duration,
    /// Hear what is sent, too; on four wires, what others send meanwhile.
    pub rs485_rx_during_tx: bool,
    /// Lock the port against other programs.
    pub exclusive: bool,
    /// Refuse frames without a checksum (protocol version 1).
    pub require_checksum: bool,
    /// Largest frame body accepted, in bytes.
    pub max_frame: ByteSize,
    /// How long a frame may stay incomplete without another byte; then the search for
    /// the next begins.
    #[serde(with = "humantime_serde")]
    pub frame_timeout: Duration,
    /// How long to wait between attempts to open a port that is not there.
    #[serde(with = "humantime_serde")]
    pub reopen_interval: Duration,
    /// As in `[devices]`, if not given.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Option<Duration>,
    /// As in `[devices]`, if not given.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Option<Duration>,
    pub authentication: Authentication,
}

impl Default for Serial {
    fn default() -> Serial {
        Serial {
            name: "serial".into(),
            path: None,
            usb: None,
            usb_serial: None,
            usb_interface: None,
            baud: 115_200,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            flow_control: FlowControl::None,
            rs485: false,
            rs485_invert_rts: false,
            rs485_delay_before_send: Duration::ZERO,
            rs485_delay_after_send: Duration::ZERO,
            rs485_rx_during_tx: false,
            exclusive: true,
            require_checksum: true,
            max_frame: ByteSize::kib(4),
            frame_timeout: Duration::from_millis(500),
            reopen_interval: Duration::from_secs(1),
            heartbeat_interval: None,
            idle_timeout: None,
            authentication: Authentication::None,
        }
    }
}

/// A kind of USB adapter, written `1a86:7523` in hexadecimal as `lsusb` does; `1a86:*`
/// is every product of the vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsbId {
    pub vendor: u16,
    pub product: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected VENDOR:PRODUCT as four hexadecimal digits each, such as \"1a86:7523\"")]
pub struct InvalidUsbId;

impl FromStr for UsbId {
    type Err = InvalidUsbId;

    fn from_str(text: &str) -> Result<UsbId, InvalidUsbId> {
        let number = |digits: &str| {
            let hexadecimal = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let number = hexadecimal.then(|| u16::from_str_radix(digits, 16).ok());
            number.flatten().ok_or(InvalidUsbId)
        };
        let (vendor, product) = text.split_once(':').ok_or(InvalidUsbId)?;
        let product = if product == "*" { None } else { Some(number(product)?) };
        Ok(UsbId { vendor: number(vendor)?, product })
    }
}

impl fmt::Display for UsbId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.product {
            Some(product) => write!(f, "{:04x}:{product:04x}", self.vendor),
            None => write!(f, "{:04x}:*", self.vendor),
        }
    }
}

impl Serialize for UsbId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UsbId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<UsbId, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_adapter_is_read_as_lsusb_writes_it() {
        for (text, shown) in [("1a86:7523", "1a86:7523"), ("0403:6001", "0403:6001"), ("1A86:*", "1a86:*")] {
            assert_eq!(text.parse::<UsbId>().map(|id| id.to_string()), Ok(shown.to_owned()));
        }
        for text in ["", "1a86", "1a86:", "1a8:7523", "1a86:7523:1", "+a86:7523", "*:7523", "1a86:xyzw", "é86:7523"] {
            assert_eq!(text.parse::<UsbId>(), Err(InvalidUsbId), "{text}");
        }
    }
}
