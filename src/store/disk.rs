//! The files of the log: the database with its schema, rows and write-ahead log, and what is
//! written beside it.

pub(super) mod boot_times;
pub(super) mod budget;
pub(super) mod checkpoint;
pub(super) mod damage;
pub(super) mod epochs;
pub(super) mod failure;
pub(super) mod file_identity;
pub(super) mod headroom;
pub(super) mod lock;
pub(super) mod log_clock;
pub(super) mod pending_high_water;
pub(super) mod readers;
pub(super) mod reserve_file;
pub(super) mod rows;
pub(super) mod schema;
pub(super) mod small_tables;
pub(super) mod space;
pub(super) mod ticket;
pub(super) mod wal;
