//! The store-and-forward log.
//!
//! # Life of a reading
//! [`Log::append`] gives it a seq and keeps it in memory, where sinks see it at
//! once (or, with `deliver = "after-commit"`, once it is on disk). It is *settled*
//! and its device acknowledged when it is committed or when every sink confirmed
//! it, whichever is first. A commit is due `commit_within` after a reading's
//! arrival unless every sink confirmed it by then; a confirmed reading is written
//! within `history_within`, or never if that is off. One commit writes everything
//! pending as one [`segment`], together with the sinks' places, in one transaction;
//! the devices' marks follow from it and are written now and then. Small segments
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

mod aside;
mod attendance;
mod boots;
mod budget;
mod commit;
mod cursor;
mod cut;
mod damage;
mod disk;
mod epochs;
mod events;
mod evict;
mod fault;
mod fold;
mod gap;
mod headroom;
mod heal;
mod holes;
mod inbox;
mod keeper;
mod lanes;
mod leftover;
mod lock;
mod log;
mod logclock;
mod mark;
mod merging;
mod missed;
mod offline;
mod opening;
mod paged;
mod place;
mod places;
mod policy;
mod quarantine;
mod ranges;
mod readers;
mod recover;
mod reopening;
mod reserve;
mod restore;
mod restored;
mod retention;
mod room;
mod row;
mod salvage;
mod schema;
pub mod segment;
mod share;
mod shared;
mod sinks;
mod small_tables;
mod space;
mod state;
mod tail;
mod ticket;
mod unlisted;
mod wal;
mod writer;

pub use attendance::{Attended, KnownDevices, MAX_FORGOTTEN};
pub use cursor::SinkCursor;
pub use epochs::with_epoch;
pub use events::LogEvent;
pub use headroom::DiskState;
pub use inbox::{Change, Commands, Record};
pub use log::{Log, LogHealth};
pub use mark::Mark;
pub use offline::{Contents, Offline, Pending, Piece, Verdict, damaged, missing};
pub use opening::Opened;
pub use places::{Before, Purged, forget_sink, purge, rename_sink};
pub use schema::{FILE_NAME, OpenError};
pub use share::{Saturated, Share};
pub use sinks::Wanted;
pub use space::{Gauge, Space};
pub use writer::{Stepped, Stepper, Writer};
