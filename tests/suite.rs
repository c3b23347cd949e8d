//! Behaviour of the gateway through its public doors.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod architecture;
mod config;
mod end_to_end;
mod examples;
mod golden;
mod log;
mod serial;
mod service;
mod support;
mod tcp;
mod time;
mod uplink;
mod wire;
