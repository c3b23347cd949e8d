//! A device at the far end of a serial line. The line is noisy, does not break when
//! the device restarts, and its port comes and goes.

use super::connection::{self, Closed};
use super::line::{Line, Shared};
use super::porch::Place;
use crate::config::{self, FlowControl, Parity};
use crate::device::Grants;
use crate::stop;
use crate::wire::frame::{Limits, Recovery};
use std::io;
use tokio::sync::watch;
use tokio_serial::{SerialPortBuilderExt, SerialStream};

/// Serves the port until `stop` turns true, opening it again whenever it vanishes.
pub async fn serve(config: config::Serial, shared: Shared, mut stop: watch::Receiver<bool>) {
    let max_body = usize::try_from(config.max_frame.as_u64()).unwrap_or(usize::MAX);
    let silence = shared.devices.silence(config.heartbeat_interval, config.idle_timeout);
    let limits = Limits { max_body, require_checksum: config.require_checksum };
    let line = Line {
        name: config.name.as_str().into(),
        grants: Grants {
            handshake_timeout: None,
            heartbeat_interval: silence.heartbeat_interval,
            idle_after: silence.idle_after(),
            idle_timeout: silence.idle_timeout,
            window: shared.devices.window,
            max_frame: u32::try_from(max_body).unwrap_or(u32::MAX),
            restart: true,
            times: shared.time_rules(),
        },
        before_hello: limits,
        limits,
        recovery: Recovery::Resync,
        frame_timeout: config.frame_timeout,
        shared,
    };
    let path = config.path.display().to_string();
    // So that a port that stays away is logged once.
    let mut told = None;
    while !*stop.borrow() {
        match open(&config) {
            Ok(mut port) => {
                told = None;
                line.up(true);
                tracing::info!(link = %line.name, path, baud = config.baud, "serial port opened");
                let closed = connection::drive(&mut port, &line, &path, Place::granted(), stop.clone()).await;
                line.up(false);
                match closed {
                    // Nobody is sent away from a place that was granted.
                    Closed::Ended | Closed::Evicted => tracing::debug!(link = %line.name, path, "session ended"),
                    Closed::Gone => tracing::warn!(link = %line.name, path, "serial port vanished; waiting for it"),
                    Closed::Failed(why) => {
                        tracing::warn!(link = %line.name, path, %why, "serial port failed; opening it again");
                    }
                }
            }
            Err(why) => {
                line.up(false);
                let why = explain(&why);
                if told.as_ref() != Some(&why) {
                    tracing::warn!(link = %line.name, path, why, "cannot open the serial port; trying on");
                    told = Some(why);
                }
            }
        }
        let pause = tokio::time::sleep(config.reopen_interval);
        tokio::select! {
            () = stop::requested(&mut stop) => {}
            () = pause => {}
        }
    }
}

fn open(config: &config::Serial) -> tokio_serial::Result<SerialStream> {
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
    let path = config.path.to_string_lossy();
    tokio_serial::new(path, config.baud)
        .data_bits(data_bits)
        .parity(parity)
        .stop_bits(stop_bits)
        .flow_control(flow_control)
        .exclusive(config.exclusive)
        .open_native_async()
}

/// What is wrong with the port, and what to do about it.
fn explain(why: &tokio_serial::Error) -> String {
    let advice = match why.kind() {
        tokio_serial::ErrorKind::NoDevice => {
            "plug the device in, or see whether another program has the port (fuser PATH)"
        }
        tokio_serial::ErrorKind::Io(io::ErrorKind::NotFound) => "plug the device in, or correct `path`",
        tokio_serial::ErrorKind::Io(io::ErrorKind::PermissionDenied) => {
            "let the user that runs tidegate into the port's group, mostly `dialout`"
        }
        _ => "see whether `path` is a serial port that takes these settings",
    };
    format!("{why}; {advice}")
}
