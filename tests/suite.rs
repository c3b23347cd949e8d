//! Behaviour of the gateway through its public doors.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod architecture;
mod auth;
mod away;
mod bounds;
mod brokers;
mod browser;
mod client;
mod commands;
mod config;
mod console;
mod corpus;
mod disk;
mod end_to_end;
mod epochs;
mod examples;
mod golden;
mod heal;
mod hostile;
mod link;
mod log;
mod memory;
mod pauses;
mod presence;
mod protobuf;
mod queue;
mod rate;
mod serial;
mod service;
mod sessions;
mod sinks;
mod space;
mod start;
mod support;
mod tcp;
mod text;
mod time;
mod tls;
mod untimed;
mod uplink;
mod wear;
mod websocket;
mod wire;
