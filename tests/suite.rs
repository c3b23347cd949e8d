//! Behaviour of the gateway through its public doors.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod architecture;
mod bounds;
mod client;
mod config;
mod corpus;
mod disk;
mod end_to_end;
mod examples;
mod golden;
mod heal;
mod hostile;
mod log;
mod memory;
mod protobuf;
mod queue;
mod serial;
mod service;
mod support;
mod tcp;
mod time;
mod untimed;
mod uplink;
mod wear;
mod wire;
