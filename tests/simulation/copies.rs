//! Somebody copies the log while the gateway runs: the database, and some time later its
//! write-ahead log.

use super::world::World;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use tidegate::model::Seq;
use tidegate::store::{Offline, Piece};

const DATABASE: &str = "log.db";
const WAL: &str = "log.db-wal";

/// What a look at a copy says of it.
struct Seen {
    problems: Vec<String>,
    seqs: BTreeSet<u64>,
}

impl World {
    /// Begins a copy, or ends the one that was begun.
    pub fn copy_log(&mut self) {
        let whole = tempfile::tempdir().expect("a temporary directory");
        if ![DATABASE, WAL].iter().all(|name| self.take(name, whole.path())) {
            return;
        }
        let now = look(whole.path());
        // Of what stands behind a commit that failed or was cut off, nothing needs explaining.
        let is_missing = |problem: &String| problem.contains("nothing says why");
        let all_missing = now.problems.iter().all(is_missing);
        let wrong = |problem: &&String| problem.contains("torn copy") || (all_missing && is_missing(problem));
        if let Some(problem) = now.problems.iter().find(wrong) {
            self.context.oracle(|oracle| oracle.violated(format!("a log that nobody touched: {problem}")));
        }
        let Some(copy) = self.copy.take() else {
            let begun = tempfile::tempdir().expect("a temporary directory");
            if self.take(DATABASE, begun.path()) {
                self.copy = Some(begun);
            }
            return;
        };
        if !self.take(WAL, copy.path()) {
            return;
        }
        let seen = look(copy.path());
        self.context.trace(format_args!("a copy has {} readings, {:?}", seen.seqs.len(), seen.problems));
        if seen.problems.is_empty() && now.problems.is_empty() && seen.seqs != now.seqs {
            let (has, lies) = (seen.seqs.len(), now.seqs.len());
            let what = format!("a torn copy with {has} of {lies} readings is called fine");
            self.context.oracle(|oracle| oracle.violated(what));
        }
    }

    /// Copies a file of the log, if it is there.
    fn take(&self, name: &str, to: &Path) -> bool {
        std::fs::copy(self.plan.store.directory.join(name), to.join(name)).is_ok()
    }
}

fn look(directory: &Path) -> Seen {
    let log = Offline::of_file(&directory.join(DATABASE)).expect("a file");
    let mut seen = Seen { problems: log.warnings(), seqs: BTreeSet::new() };
    log.each(&mut |piece| {
        match piece {
            Piece::Readings(batches) => {
                let readings = batches.iter().flat_map(|batch| batch.after(Seq::ZERO));
                seen.seqs.extend(readings.map(|(seq, ..)| seq.0));
            }
            Piece::Damaged(claimed) => seen.problems.push(tidegate::store::damaged(claimed)),
            Piece::Missing(first, last) => seen.problems.push(tidegate::store::missing(first, last)),
        }
        ControlFlow::Continue(())
    })
    .expect("it reads");
    seen
}
