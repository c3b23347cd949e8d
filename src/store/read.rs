//! Reading the log: a sink's cursor, and looking into a log from outside.

pub(super) mod cursor;
pub(super) mod offline;
pub(super) mod paged_scan;
