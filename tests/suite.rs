//! Behaviour of the gateway through its public doors.

mod config;
mod end_to_end;
mod golden;
mod log;
mod serial;
mod service;
mod support;
mod tcp;
mod uplink;
mod wire;
