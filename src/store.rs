//! The store-and-forward log.
//!
//! # Life of a reading
//! [`Log::append`] gives it a seq and keeps it in memory, where sinks see it at
//! once (or, with `deliver = "after-commit"`, once it is on disk). It is *settled*
//! and its device acknowledged when it is committed or when every sink confirmed
//! it, whichever is first. A commit is due `commit_within` after a reading's
//! arrival unless every sink confirmed it by then; a confirmed reading is written
//! within `history_within`, or never if that is off. One commit writes everything
//! pending as one [`segment`], together with the sinks' positions, in one transaction;
//! the devices' high-water marks follow from it and are written now and then. Small segments
//! are merged.
//!
//! # Format
//! One SQLite database, `log.db`, in WAL mode with 1 KiB pages, written by one
//! thread; readers have connections of their own. Seqs are reserved in blocks
//! before they are given out, so that none is used twice, whatever happens; where an old
//! copy of the files may have been put back they go on under a new epoch.
//!
//! # What can be lost when
//! - SIGKILL or a crash: readings that are not settled; their devices were not
//!   acknowledged and send them again. Readings that were confirmed but not yet
//!   written are missing from the local history only.
//! - Power cut: the same with `durability = "full"`; with `"normal"` also the
//!   commits since the last checkpoint, but for the epoch and the reserved seqs.
//! - A log at one of its bounds: see `retention`. Counted and reported as a gap.
//! - A full or failing disk: nothing; devices are not acknowledged, see [`DiskState`].
//! - A damaged file: the segments whose checksum does not hold. All others are taken
//!   over into a new database; see `docs/recovery.md`.

// In dependency order: each refers only to those above it (`tests/architecture.rs`).

pub mod segment;

mod tail;

mod disk;

mod retention;

mod sinks;

mod inbox;

mod presence;

mod recovery;

mod commit;

mod state;

mod shared;

mod writer;

mod share;

mod log;

mod read;

mod restore;

mod opening;

mod administration;

pub use administration::{Before, Purged, forget_sink, purge, rename_sink};
pub use disk::epochs::with_epoch;
pub use disk::headroom::DiskState;
pub use disk::schema::{FILE_NAME, OpenError};
pub use disk::space::{Gauge, Space};
pub use inbox::{Change, Commands, Record};
pub use log::{Log, LogHealth};
pub use opening::Opened;
pub use presence::{KnownDevices, MAX_FORGOTTEN, PresenceEntry};
pub use read::cursor::SinkCursor;
pub use read::offline::{Contents, Offline, Pending, Piece, Verification, damaged, missing};
pub use share::{Saturated, Share};
pub use sinks::events::LogEvent;
pub use sinks::positions::ConfiguredSink;
pub use tail::high_water::HighWater;
pub use writer::{Stepped, Stepper, Writer};
