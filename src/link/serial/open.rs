//! Opens a port with the settings of its section of the configuration.

use crate::config::{self, FlowControl, Parity};
use serial2::rs4xx::{Rs485Config, TransceiverMode};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio_serial::{SerialPortBuilderExt, SerialStream};

/// An open port.
pub(super) struct Opened {
    pub stream: SerialStream,
    /// The RS-485 settings that the driver changed, with the values that it took.
    pub adjusted: Option<String>,
}

/// Opens the port.
///
/// # Errors
/// What is wrong with it, and what to do about it.
pub(super) fn open(path: &Path, config: &config::Serial) -> Result<Opened, String> {
    let mut stream = attempt(path, config).map_err(|why| explain(&why, path))?;
    let mut adjusted = None;
    if config.rs485 {
        adjusted = set_rs485(path, config).map_err(|why| explain_rs485(&why, path))?;
        if config.exclusive {
            stream.set_exclusive(true).map_err(|why| explain(&why, path))?;
        }
    }
    Ok(Opened { stream, adjusted })
}

fn attempt(path: &Path, config: &config::Serial) -> tokio_serial::Result<SerialStream> {
    let data_bits = match config.data_bits {
        5 => tokio_serial::DataBits::Five,
        6 => tokio_serial::DataBits::Six,
        7 => tokio_serial::DataBits::Seven,
        _ => tokio_serial::DataBits::Eight,
    };
    let parity = match config.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Odd => tokio_serial::Parity::Odd,
        Parity::Even => tokio_serial::Parity::Even,
    };
    let flow_control = match config.flow_control {
        FlowControl::None => tokio_serial::FlowControl::None,
        FlowControl::Software => tokio_serial::FlowControl::Software,
        FlowControl::Hardware => tokio_serial::FlowControl::Hardware,
    };
    let stop_bits = if config.stop_bits == 2 { tokio_serial::StopBits::Two } else { tokio_serial::StopBits::One };
    tokio_serial::new(path.to_string_lossy(), config.baud)
        .data_bits(data_bits)
        .parity(parity)
        .stop_bits(stop_bits)
        .flow_control(flow_control)
        // RS-485 is set by a second handle, which a locked port would not give.
        .exclusive(config.exclusive && !config.rs485)
        .open_native_async()
}

/// Makes the driver switch the transceiver. The setting outlives the open port.
fn set_rs485(path: &Path, config: &config::Serial) -> io::Result<Option<String>> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let port: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    let port = serial2::SerialPort::from(port);
    let mut wanted = Rs485Config::new();
    wanted.set_invert_rts(config.rs485_invert_rts);
    wanted.set_delay_before_send(config.rs485_delay_before_send);
    wanted.set_delay_after_send(config.rs485_delay_after_send);
    wanted.set_full_duplex(config.rs485_rx_during_tx);
    port.set_rs4xx_mode(wanted.clone())?;
    match port.get_rs4xx_mode()? {
        TransceiverMode::Rs485(got) => Ok(difference(&wanted, &got)),
        _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
    }
}

/// The settings that the driver changed, as keys with the values that it took.
fn difference(wanted: &Rs485Config, got: &Rs485Config) -> Option<String> {
    let shown = |config: &Rs485Config| {
        [
            format!("rs485_invert_rts = {}", config.get_invert_rts()),
            format!("rs485_delay_before_send = \"{}ms\"", config.get_delay_before_send().as_millis()),
            format!("rs485_delay_after_send = \"{}ms\"", config.get_delay_after_send().as_millis()),
            format!("rs485_rx_during_tx = {}", config.get_full_duplex()),
        ]
    };
    let changed: Vec<_> = shown(got).into_iter().zip(shown(wanted)).filter(|(got, wanted)| got != wanted).collect();
    let changed: Vec<_> = changed.into_iter().map(|(got, _)| got).collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

fn explain(why: &tokio_serial::Error, path: &Path) -> String {
    let path = path.display();
    let advice = match why.kind() {
        tokio_serial::ErrorKind::NoDevice | tokio_serial::ErrorKind::Io(io::ErrorKind::WouldBlock) => {
            format!("another program has the port, or it is gone: see which with `fuser -v {path}`, or plug it in")
        }
        tokio_serial::ErrorKind::Io(io::ErrorKind::NotFound) => "plug the device in, or correct `path`".to_owned(),
        tokio_serial::ErrorKind::Io(io::ErrorKind::PermissionDenied) => {
            "let the user that runs tidegate into the port's group, mostly `dialout`".to_owned()
        }
        _ => "see whether it is a serial port that takes these settings".to_owned(),
    };
    format!("{path}: {why}; {advice}")
}

fn explain_rs485(why: &io::Error, path: &Path) -> String {
    format!(
        "{}: its driver cannot switch an RS-485 transceiver ({why}); remove rs485 if the adapter switches by itself, \
         as USB adapters with RS-485 terminals do, or use a port whose driver can, such as most boards' own UARTs",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_the_driver_made_of_the_settings_is_told_as_keys() {
        let wanted = Rs485Config::new();
        assert_eq!(difference(&wanted, &wanted), None);
        let mut got = wanted.clone();
        got.set_delay_after_send(Duration::from_millis(5));
        got.set_full_duplex(true);
        let told = "rs485_delay_after_send = \"5ms\", rs485_rx_during_tx = true";
        assert_eq!(difference(&wanted, &got).as_deref(), Some(told));
    }
}
