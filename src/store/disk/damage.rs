//! Why a database that opened cannot be gone on with.

use super::schema::OpenError;
use std::path::Path;

/// Why what is in the database cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum Fault {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// SQLite reads it, but it cannot be what was written.
    #[error("{0}")]
    Damaged(String),
    /// What is to be put back cannot be written anew.
    #[error(transparent)]
    Encoding(#[from] std::io::Error),
}

impl Fault {
    /// A fault of the database's own keeps what it is.
    pub fn of(why: anyhow::Error) -> Fault {
        why.downcast().map_or_else(|why| Fault::Damaged(format!("{why:#}")), Fault::Sqlite)
    }

    pub fn at(self, path: &Path) -> OpenError {
        match self {
            Fault::Sqlite(why) => OpenError::Database { path: path.to_owned(), why },
            Fault::Damaged(found) => OpenError::Damaged { path: path.to_owned(), found },
            Fault::Encoding(why) => OpenError::Directory { path: path.to_owned(), why },
        }
    }
}
