//! Looking into a log from outside: that of a gateway, running or not, or any copy of
//! its file, damaged or not.
//!
//! A gateway's log is read through SQLite, which keeps apart what is being written. A
//! file given by name is read without SQLite, and so without changing anything beside
//! it, including what stands in its write-ahead log.

use super::paged_scan;
use crate::files::plain;
use crate::model::{Epochs, Seq, SequencedBatch, Timestamp};
use crate::store::disk::boot_times::{self, Beginnings};
use crate::store::disk::checkpoint;
use crate::store::disk::epochs;
use crate::store::disk::schema::{self, FILE_NAME};
use crate::store::disk::wal::wal_path;
use crate::store::recovery::salvage::{self, Found, Salvage, Scan};
use crate::store::recovery::seq_ranges::SeqRanges;
use crate::store::recovery::startup;
use crate::store::retention::holes;
use crate::store::segment;
use crate::store::sinks::positions::{self, CursorPosition};
use crate::store::sinks::rejected;
use anyhow::{Result, anyhow, bail};
use rusqlite::{Connection, ErrorCode};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A log that is only read.
pub struct Offline {
    source: Source,
}

enum Source {
    /// It may be that it `lacks` its write-ahead log: SQLite reads it all the same.
    Sqlite {
        db: Box<Connection>,
        path: PathBuf,
        lacks: bool,
    },
    Bytes(Box<Salvage>),
}

/// What stands where a segment should.
pub enum Piece {
    Readings(Vec<SequencedBatch>),
    /// Its checksum does not hold; the seqs that it claims.
    Damaged(Option<(Seq, Seq)>),
    /// No segment has these seqs, and nothing says why.
    Missing(Seq, Seq),
}

/// What a sink has yet to confirm of what is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub sink: String,
    pub confirmed: Seq,
    /// For how long it has not been configured, if it is not, by the log's clock.
    pub retired: Option<Duration>,
    pub readings: u64,
    /// Readings that its destination did not take, so far; they became history.
    pub aside: u64,
    /// Bytes of the segments that hold them.
    pub bytes: u64,
    /// Time of the oldest reading among them, about, of those whose time is known.
    pub oldest: Option<Timestamp>,
}

/// What the log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    pub epochs: Option<Epochs>,
    pub segments: u64,
    pub readings: u64,
    pub bytes: u64,
    pub sinks: Vec<Pending>,
}

/// What [`Offline::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    pub segments: u64,
    pub readings: u64,
    /// One line each, at most 1000.
    pub problems: Vec<String>,
    /// What could not be checked, and what to do about that.
    pub notes: Vec<&'static str>,
}

const MAX_PROBLEMS: usize = 1000;

impl Offline {
    /// The log in a gateway's directory. It may be running.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn of_gateway(directory: &Path) -> Result<Offline> {
        let path = directory.join(FILE_NAME);
        match std::fs::File::open(&path) {
            Ok(_) => {}
            Err(why) if why.kind() == ErrorKind::NotFound => {
                bail!("there is no log in {}; see [store] directory", directory.display())
            }
            Err(why) if why.kind() == ErrorKind::PermissionDenied => bail!("{}", forbidden(&path)),
            Err(why) => bail!("cannot read {}: {}; see whether its disk is in order", path.display(), plain(&why)),
        }
        let wal = wal_path(&path);
        let is_alone = || std::fs::metadata(&wal).map_or(true, |wal| wal.len() == 0);
        // A look through SQLite may make the file, which then is empty.
        let was_alone = is_alone();
        let open = || {
            let connection = schema::open_reader(&path)?;
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok::<_, rusqlite::Error>(connection)
        };
        let connection = open().map_err(|why| match why.sqlite_error_code() {
            // It reads along with the gateway, by way of files that both write.
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                anyhow!("{}", forbidden(&path))
            }
            Some(ErrorCode::DatabaseBusy) => {
                anyhow!("{} is held by another program; try again when that is done", path.display())
            }
            _ => anyhow!(
                "{} cannot be read, it may be damaged: look into it by --file; it recovers when the gateway starts \
                 (SQLite says: {why})",
                path.display()
            ),
        })?;
        let lacks = startup::read_meta(&connection)
            .is_ok_and(|meta| checkpoint::lacks_write_ahead_log(&meta, checkpoint::noted(&path)))
            && was_alone
            && is_alone();
        Ok(Offline { source: Source::Sqlite { db: Box::new(connection), path, lacks } })
    }

    /// A database by name, such as a quarantined or copied one. No gateway may be
    /// writing to it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of_file(path: &Path) -> Result<Offline> {
        let shown = path.display();
        let unreadable = |why: std::io::Error| match why.kind() {
            ErrorKind::NotFound => anyhow!("there is no file {shown}; name a log.db or a copy of one"),
            ErrorKind::PermissionDenied => anyhow!("{}", forbidden(path)),
            ErrorKind::IsADirectory => anyhow!("{shown} is a directory; name the log.db in it"),
            _ => anyhow!("cannot read {shown}: {}; see whether its disk is in order", plain(&why)),
        };
        std::fs::File::open(path).map_err(unreadable)?;
        let is_database = schema::looks_like_sqlite(path).map_err(unreadable)?;
        let salvage = Salvage::open(path);
        // The head of a log may be damaged; what holds no segment either never was one.
        let mut found = false;
        if !is_database {
            let _ = salvage.segments(Scan::Always, &mut |piece| {
                found = matches!(piece, Found::Sound { .. });
                if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        if !is_database && !found {
            bail!("{shown} is no tidegate log, nor what is left of one; name a log.db or a copy of one");
        }
        Ok(Offline { source: Source::Bytes(Box::new(salvage)) })
    }

    /// The epochs of the readings, if they can be told.
    pub fn epochs(&self) -> Option<Epochs> {
        match &self.source {
            Source::Sqlite { db, .. } => epochs::read(&startup::read_meta(db).ok()?),
            Source::Bytes(salvage) => epochs::read(&salvage.facts().meta),
        }
    }

    /// When the machine's boots began, as far as the log knows.
    fn beginnings(&self) -> Result<Beginnings> {
        Ok(match &self.source {
            Source::Sqlite { db, .. } => boot_times::beginnings(db)?,
            Source::Bytes(salvage) => {
                let boots = salvage.facts().boots.into_iter();
                boots.filter_map(|(boot, began)| Some((boot, began?))).collect()
            }
        })
    }

    /// Gives what the log holds, as a rule in the order of seqs, until `give` breaks.
    /// Readings that counted from a boot have their times if these are known by now.
    ///
    /// # Errors
    /// If reading fails as a whole.
    pub fn each(&self, give: &mut dyn FnMut(Piece) -> ControlFlow<()>) -> Result<()> {
        let began = self.beginnings()?;
        match &self.source {
            Source::Sqlite { db, .. } => {
                let mut given = SeqRanges::default();
                let knows_holes = startup::meta(db, holes::COMPLETE).is_ok_and(|complete| complete.is_some());
                let (mut end, mut failed) = (Seq::ZERO, None);
                paged_scan::each(db, &mut |header, block| {
                    if let Some(header) = header {
                        let missing = match knows_holes && header.first > end.next() {
                            true => holes::unexplained(db, end.next(), header.first.prev()),
                            false => Ok(Vec::new()),
                        };
                        let missing = missing.unwrap_or_else(|why| {
                            failed.get_or_insert(why);
                            Vec::new()
                        });
                        if failed.is_some()
                            || missing.into_iter().any(|(first, last)| give(Piece::Missing(first, last)).is_break())
                        {
                            return ControlFlow::Break(());
                        }
                        end = end.max(header.last());
                    }
                    let mut flow = ControlFlow::Continue(());
                    let mut readings = |batches: Vec<SequencedBatch>| {
                        // A commit that failed and was repeated may overlap the next, and
                        // what was given may be part of a larger segment by now.
                        let mut batches = salvage::fresh(&mut given, batches);
                        boot_times::give_times(&began, &mut batches);
                        if !batches.is_empty() {
                            flow = give(Piece::Readings(batches));
                        }
                        flow
                    };
                    let sound = header
                        .is_some_and(|header| segment::decode_pieces(&header, block, Seq::ZERO, &mut readings).is_ok());
                    if sound {
                        return flow.map_continue(|()| true);
                    }
                    let claimed = header.map(|header| (header.first, header.last()));
                    give(Piece::Damaged(claimed)).map_continue(|()| false)
                })?;
                if let Some(why) = failed {
                    return Err(why.into());
                }
            }
            Source::Bytes(salvage) => {
                let mut tell = |found| match found {
                    Found::Sound { mut batches, .. } => {
                        boot_times::give_times(&began, &mut batches);
                        give(Piece::Readings(batches))
                    }
                    Found::Damaged { header } => {
                        give(Piece::Damaged(header.map(|header| (header.first, header.last()))))
                    }
                };
                // A break is the wish of whoever is given.
                if let ControlFlow::Continue(walk) = salvage.segments(Scan::IfDamaged, &mut tell) {
                    let missing = salvage.unexplained(&walk).into_iter().map(|(first, last)| (Seq(first), Seq(last)));
                    let _ = missing.map(|(first, last)| give(Piece::Missing(first, last))).find(ControlFlow::is_break);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the log beside segments, as far as a file that is read without
    /// SQLite tells, and whether its write-ahead log is missing; of what is missing because of it, nothing may be known.
    pub fn warnings(&self) -> Vec<String> {
        match &self.source {
            Source::Sqlite { path, lacks, .. } => {
                lacks.then(|| format!("{}: {}", path.display(), checkpoint::LACKING)).into_iter().collect()
            }
            Source::Bytes(salvage) => salvage.problems(),
        }
    }

    /// Counts what the log holds, and what each sink has yet to confirm of it.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn contents(&self) -> Result<Contents> {
        let (sinks, meta) = match &self.source {
            Source::Sqlite { db, .. } => (positions::all(db)?, startup::read_meta(db).unwrap_or_default()),
            Source::Bytes(salvage) => {
                let facts = salvage.facts();
                (facts.sinks, facts.meta)
            }
        };
        let clock = meta.get("log_clock").copied();
        let pending = |(sink, position): (String, CursorPosition)| Pending {
            aside: meta.get(&rejected::key(&sink)).copied().unwrap_or(0),
            sink,
            confirmed: Seq(position.confirmed),
            retired: position.retired.map(|since| Duration::from_secs(clock.unwrap_or(0).saturating_sub(since))),
            readings: 0,
            bytes: 0,
            oldest: None,
        };
        let mut contents = Contents {
            epochs: self.epochs(),
            segments: 0,
            readings: 0,
            bytes: 0,
            sinks: sinks.into_iter().map(pending).collect(),
        };
        self.headers(&mut |header, bytes, oldest| {
            contents.segments += 1;
            contents.readings += u64::from(header.count);
            contents.bytes += bytes;
            for sink in contents.sinks.iter_mut().filter(|sink| sink.confirmed < header.last()) {
                sink.readings += header.within(sink.confirmed, header.last());
                sink.bytes += bytes;
                sink.oldest = sink.oldest.into_iter().chain(oldest).min();
            }
        })?;
        Ok(contents)
    }

    /// The head of every segment's row, with its size in bytes and the oldest time in it
    /// that is known.
    fn headers(&self, take: &mut dyn FnMut(segment::Header, u64, Option<Timestamp>)) -> Result<()> {
        let began = self.beginnings()?;
        match &self.source {
            Source::Sqlite { db, .. } => paged_scan::heads(db, &mut |header, bytes| {
                let range = boot_times::known_range(db, &header, &began)?;
                take(header, bytes, range.map(|(oldest, _)| oldest));
                Ok(())
            })?,
            Source::Bytes(salvage) => {
                let _ = salvage.segments(Scan::IfDamaged, &mut |found| {
                    if let Found::Sound { header, block, batches } = found {
                        take(header, block.len() as u64, boot_times::range(batches, &began).map(|(oldest, _)| oldest));
                    }
                    ControlFlow::Continue(())
                });
            }
        }
        Ok(())
    }

    /// Checks everything there is to check: every checksum, every guard, the structure.
    ///
    /// # Errors
    /// If the log cannot be read as a whole.
    pub fn verify(&self) -> Result<Verification> {
        let (mut verdict, mut notes) = (Verification::default(), Vec::new());
        let mut add = |problem: String| {
            if verdict.problems.len() < MAX_PROBLEMS {
                verdict.problems.push(problem);
            }
        };
        self.warnings().into_iter().for_each(&mut add);
        match &self.source {
            Source::Sqlite { db, path, .. } => {
                match paged_scan::structure(db, path, MAX_PROBLEMS)? {
                    Some(found) => found.into_iter().for_each(&mut add),
                    None => notes.push(paged_scan::IN_THE_WAY),
                }
                startup::unproven(db)?.into_iter().for_each(&mut add);
            }
            Source::Bytes(_) => {}
        }
        self.each(&mut |piece| {
            let problem = match piece {
                Piece::Readings(batches) => {
                    verdict.segments += 1;
                    verdict.readings += batches.iter().map(|batch| batch.batch.readings.len() as u64).sum::<u64>();
                    None
                }
                Piece::Damaged(claimed) => {
                    verdict.segments += 1;
                    Some(damaged(claimed))
                }
                Piece::Missing(first, last) => Some(missing(first, last)),
            };
            verdict.problems.extend(problem.filter(|_| verdict.problems.len() < MAX_PROBLEMS));
            ControlFlow::Continue(())
        })?;
        verdict.notes = notes;
        Ok(verdict)
    }
}

/// What is said of a file that this user may not have.
fn forbidden(path: &Path) -> String {
    format!("this user may not use {}; run this as the gateway's user or as root, with sudo", path.display())
}

/// How a damaged segment is named.
pub fn damaged(claimed: Option<(Seq, Seq)>) -> String {
    match claimed {
        Some((first, last)) => format!("segment of seqs {first} to {last}: its checksum does not hold"),
        None => "a segment that does not even tell its seqs".to_owned(),
    }
}

/// How seqs are named that should be in a segment and are in none.
pub fn missing(first: Seq, last: Seq) -> String {
    format!("seqs {first} to {last}: no segment has them, and nothing says why")
}
