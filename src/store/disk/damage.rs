//! What is damage to the database: why one that opened cannot be gone on with, and which errors
//! say that it is not what was written.

use super::schema::OpenError;
use super::wal::wal_path;
use crate::files::{self, Replacement};
use rusqlite::ErrorCode;
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

/// Damage that a running gateway met with is noted here for the next opening.
pub(in crate::store) const MARKER: &str = "damaged.txt";

/// Why what is in the database cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum Damage {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// SQLite reads it, but it cannot be what was written.
    #[error("{0}")]
    Damaged(String),
    /// What is to be put back cannot be written anew.
    #[error(transparent)]
    Encoding(#[from] std::io::Error),
}

impl Damage {
    /// A fault of the database's own keeps what it is.
    pub fn of(why: anyhow::Error) -> Damage {
        why.downcast().map_or_else(|why| Damage::Damaged(format!("{why:#}")), Damage::Sqlite)
    }

    pub fn at(self, path: &Path) -> OpenError {
        match self {
            Damage::Sqlite(why) => OpenError::Database { path: path.to_owned(), why },
            Damage::Damaged(found) => OpenError::Damaged { path: path.to_owned(), found },
            Damage::Encoding(why) => OpenError::Directory { path: path.to_owned(), why },
        }
    }
}

/// Notes that the database is damaged, so that the next opening recovers it.
pub(in crate::store) fn remember(database: &Path, found: &str) {
    let marker = database.with_file_name(MARKER);
    let written = Replacement::of(&marker, 0o644).and_then(|mut new| {
        new.file().write_all(found.as_bytes())?;
        new.put()
    });
    // On a full disk there may be room for its name only, which is enough.
    if let Err(why) = written.or_else(|_| std::fs::File::create(&marker).map(|_| files::hand_over(&marker))) {
        tracing::error!(%why, "that the log is damaged cannot be noted beside it");
    }
}

/// Whether an error of the database at `path` says that it is not what was written.
pub(in crate::store) fn is_damage(why: &anyhow::Error, path: &Path) -> bool {
    why.chain().any(|cause| {
        cause.downcast_ref::<rusqlite::Error>().is_some_and(|why| is_corrupt(why, path))
            || cause.downcast_ref::<OpenError>().is_some_and(|why| kind(why).is_some())
    })
}

/// The word for the kind of damage, if it is damage that keeps the log from opening.
pub(in crate::store) fn kind(why: &OpenError) -> Option<&'static str> {
    match why {
        OpenError::Foreign { .. } => Some("foreign"),
        OpenError::Unreadable { .. } => Some("unreadable"),
        OpenError::Damaged { .. } => Some("damaged"),
        OpenError::Database { why, path } => is_corrupt(why, path).then_some("damaged"),
        OpenError::Directory { .. } | OpenError::InUse { .. } | OpenError::Newer { .. } | OpenError::Sqlite(_) => None,
    }
}

fn is_corrupt(why: &rusqlite::Error, path: &Path) -> bool {
    const READ: i32 = rusqlite::ffi::SQLITE_IOERR_READ;
    const SHORT_READ: i32 = rusqlite::ffi::SQLITE_IOERR_SHORT_READ;
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, QueryReturnedNoRows, SqlInputError,
        SqliteFailure, Utf8Error,
    };
    match why {
        SqliteFailure(failure, _) | SqlInputError { error: failure, .. } => match failure.code {
            // `Unknown` is a table or column that is missing.
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::ConstraintViolation => true,
            ErrorCode::Unknown => failure.extended_code == rusqlite::ffi::SQLITE_ERROR,
            // A read may fail once, and the medium be sound.
            _ => failure.extended_code == SHORT_READ || failure.extended_code == READ && !is_readable(path),
        },
        FromSqlConversionFailure(..)
        | IntegralValueOutOfRange(..)
        | InvalidColumnType(..)
        | QueryReturnedNoRows
        | Utf8Error(..) => true,
        _ => false,
    }
}

/// Whether every byte of the database at `path` can be read.
fn is_readable(path: &Path) -> bool {
    let whole = |path: &Path| match std::fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()))
    {
        Err(why) => why.kind() == ErrorKind::NotFound,
        Ok(_) => true,
    };
    whole(path) && whole(&wal_path(path))
}
