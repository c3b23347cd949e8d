//! tidegate, an edge gateway that never loses a reading it acknowledged.
//!
//! Devices speak a framed binary protocol ([`wire`]) over the transports in
//! [`link`]; their readings are kept in a store-and-forward log ([`store`]) and
//! uplinked by the [`sink`]s. [`gateway`] wires the parts together and owns the
//! order in which they start and drain.
//!
//! The modules below stand in dependency order: a module imports only those
//! above it, which `tests/architecture.rs` enforces.

pub mod model;

pub mod stop;

pub mod backoff;
pub mod clock;
pub mod fair_queue;
pub mod files;
pub mod metrics;
pub mod notes;
pub mod pem;

pub mod credentials;

pub mod config;

pub mod logging;

pub mod wire;

pub mod store;

pub mod mqtt;

pub mod net;

pub mod device;

pub mod ingest;

pub mod link;

pub mod sink;

pub mod downlink;

pub mod http;

pub mod gateway;

pub mod cli;
