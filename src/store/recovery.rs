//! From files that may be anything to a database that can be gone on with: what a start
//! reads and believes, what a power cut leaves, quarantine and salvage.

pub(super) mod open;
pub(super) mod power_cut;
pub(super) mod quarantine;
pub(super) mod restore_job;
pub(super) mod salvage;
pub(super) mod seq_ranges;
pub(super) mod startup;
