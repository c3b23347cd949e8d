//! Whether the database at hand is the latest state of the log, or an old copy of it: an
//! image of the disk that was put back, or files from a backup.
//!
//! Whatever gives a right to use seqs (a start, a reservation) draws a *ticket*, a random
//! number, writes it into the database with that right, and then, before any of those
//! seqs is used, into a file that no copy of the disk carries: one of this boot of the
//! machine, in memory. A database whose ticket stands there is the one to which the right
//! was given last, and no seq was used but by such a right: what an earlier state of it
//! with the same ticket gives out lies behind all that.
//!
//! Where there is no such file, nothing is proven, and a start begins a new epoch.

use crate::files;
use crate::model::{BootId, Epoch};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The file's name in the directory for what does not outlive the boot.
const FILE_NAME: &str = "ticket";

/// The right to use seqs, as far as it can be proven.
#[derive(Debug)]
pub(in crate::store) struct Ticket {
    path: Option<PathBuf>,
    boot: BootId,
    /// Those that the file has.
    told: Vec<u64>,
    /// The one that the database has.
    held: Option<u64>,
    /// Drawn, and maybe in the database.
    drawn: Option<u64>,
    /// The epoch at hand was drawn just now, and nobody knows it.
    unused: bool,
    /// What begins if nothing is proven.
    next_epoch: Epoch,
}

impl Ticket {
    /// As the file in `directory` proves it in this boot; without one, nothing is proven.
    pub fn read(directory: Option<&Path>, boot: BootId) -> Ticket {
        let path = directory.map(|directory| directory.join(FILE_NAME));
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let of_this_boot = words.next().is_some_and(|word| word.parse() == Ok(boot));
        let told = if of_this_boot { words.filter_map(|word| word.parse().ok()).collect() } else { Vec::new() };
        Ticket { path, boot, told, held: None, drawn: None, unused: false, next_epoch: Epoch(fastrand::u32(1..)) }
    }

    /// One that proves nothing, with the epoch that begins then.
    #[cfg(test)]
    pub fn none(next_epoch: Epoch) -> Ticket {
        Ticket { next_epoch, ..Ticket::read(None, BootId::default()) }
    }

    /// The boot of the machine that it belongs to.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// The epoch of the database was drawn in this very start.
    pub fn epoch_is_unused(&mut self) {
        self.unused = true;
    }

    /// The epoch that begins if this does not prove that the one at hand may go on.
    pub fn next_epoch(&self) -> Epoch {
        self.next_epoch
    }

    /// Whether the database, which has this ticket, is the log's latest state.
    pub fn proves(&mut self, found: Option<u64>) -> bool {
        self.held = found;
        self.unused || found.is_some_and(|found| self.told.contains(&found))
    }

    /// Draws the ticket of a right that is to be written, and tells the file that the
    /// database may have it, beside the one that it has.
    pub fn draw(&mut self) -> u64 {
        // One that was drawn and not written, for all that is known, is drawn again.
        let drawn = *self.drawn.get_or_insert_with(|| fastrand::u64(1..=i64::MAX.unsigned_abs()));
        self.told.retain(|told| Some(*told) == self.held || *told == drawn);
        if !self.told.contains(&drawn) {
            self.told.push(drawn);
        }
        if let Err(why) = self.write() {
            // Then it is not proven that the right was given, which is said once it counts.
            tracing::debug!(%why, "a ticket could not be told");
        }
        drawn
    }

    /// The right is in the database. Once this returns, it may be used.
    ///
    /// # Errors
    /// If the file can neither be written nor removed: what it says is wrong then, and the
    /// right must not be used.
    pub fn written(&mut self) -> io::Result<()> {
        let Some(drawn) = self.drawn.take() else { return Ok(()) };
        let before = std::mem::replace(&mut self.told, vec![drawn]);
        let (Err(why), Some(path)) = (self.write(), &self.path) else {
            self.held = Some(drawn);
            return Ok(());
        };
        tracing::warn!(
            path = %path.display(), %why,
            "it cannot be noted how far the log is: the next start begins a new epoch; see [store] runtime_directory"
        );
        match std::fs::remove_file(path) {
            Err(why) if why.kind() != ErrorKind::NotFound && why.kind() != ErrorKind::NotADirectory => {
                (self.told, self.drawn) = (before, Some(drawn));
                Err(io::Error::new(why.kind(), format!("{} can neither be written nor removed: {why}", path.display())))
            }
            _ => {
                (self.told, self.held) = (Vec::new(), Some(drawn));
                Ok(())
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let tickets: Vec<String> = self.told.iter().map(u64::to_string).collect();
        let new = path.with_extension("new");
        let written = std::fs::write(&new, format!("{} {}\n", self.boot, tickets.join(" ")));
        files::hand_over(&new);
        written.and_then(|()| std::fs::rename(&new, path)).inspect_err(|_| {
            // What is left of it is in nobody's way.
            let _ = files::discard(&new);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{epochs, schema};
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::config::Store;
    use crate::metrics::Metrics;
    use crate::model::Seq;
    use crate::store::commit::Commit;
    use crate::store::opening::{Prepared, prepare};
    use crate::store::recovery::startup;
    use std::collections::HashSet;
    use std::sync::Arc;

    const BOOT: BootId = BootId([1; 16]);

    #[test]
    fn the_database_that_was_given_the_last_right_is_proven_and_no_other() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let read = || Ticket::read(Some(directory.path()), BOOT);
        let mut ticket = read();
        assert!(!ticket.proves(Some(5)) && !ticket.proves(None));
        let first = ticket.draw();
        assert!(read().proves(Some(first)), "a kill after the commit");
        ticket.written().expect("it can be told");
        let second = ticket.draw();
        assert!(read().proves(Some(first)), "a kill before the commit");
        assert!(read().proves(Some(second)), "a kill after the commit");
        ticket.written().expect("it can be told");
        assert!(read().proves(Some(second)) && !read().proves(Some(first)), "the first is an old copy");
        assert!(!Ticket::read(Some(directory.path()), BootId([2; 16])).proves(Some(second)), "another boot");
        assert!(!Ticket::read(None, BOOT).proves(Some(second)));
    }

    #[test]
    fn a_right_that_may_have_been_written_is_drawn_again() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ticket = Ticket::read(Some(directory.path()), BOOT);
        let first = ticket.draw();
        ticket.written().expect("it can be told");
        let second = ticket.draw();
        assert_eq!(ticket.draw(), second);
        let mut proof = Ticket::read(Some(directory.path()), BOOT);
        assert!(proof.proves(Some(first)) && proof.proves(Some(second)));
    }

    #[test]
    fn a_reservation_makes_earlier_copies_of_the_log_old_ones() {
        let (directory, runtime) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let config = Store {
            directory: directory.path().to_owned(),
            runtime_directory: Some(runtime.path().to_owned()),
            ..Store::default()
        };
        let (clock, gauge) = (Arc::new(SystemClock::new()), Arc::new(|| None));
        let prepared = prepare(&config, &[], &["cloud".into()], clock.clone(), Metrics::new(), Some(gauge));
        let Prepared { mut committer, .. } = prepared.expect("a new log");
        let held = || {
            let db = schema::open_reader(&schema::database(&config)).expect("it opens");
            startup::meta(&db, epochs::TICKET).expect("it reads").expect("there is one")
        };
        let proves = |ticket| Ticket::read(Some(runtime.path()), clock.boot()).proves(Some(ticket));
        let first = held();
        committer.commit(&Commit::default(), &HashSet::new).expect("it is written");
        assert!(held() == first && proves(first), "what gives no right needs no other");
        committer
            .commit(&Commit { reserve: Some(Seq(3 << 20)), ..Commit::default() }, &HashSet::new)
            .expect("it is written");
        assert!(proves(held()) && !proves(first));
    }

    #[test]
    fn a_file_that_cannot_be_written_proves_nothing_and_one_that_lies_gives_no_right() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let place = directory.path().join("runtime");
        std::fs::create_dir(&place).expect("a directory");
        let mut ticket = Ticket::read(Some(&place), BOOT);
        let first = ticket.draw();
        ticket.written().expect("it can be told");
        // The directory is gone, and the file with it.
        std::fs::remove_dir_all(&place).expect("it is there");
        ticket.draw();
        ticket.written().expect("there is nothing left that lies");
        // What stands there can be neither replaced nor removed.
        std::fs::create_dir_all(place.join(FILE_NAME).join("in the way")).expect("a directory");
        ticket.draw();
        ticket.written().expect_err("it might lie");
        std::fs::remove_dir_all(place.join(FILE_NAME)).expect("it is there");
        ticket.written().expect("it can be told again");
        assert!(!Ticket::read(Some(&place), BOOT).proves(Some(first)));
    }
}
