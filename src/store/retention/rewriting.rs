//! What is left of segments once readings were taken out of them, written anew.

use super::priority::PriorityRoutes;
use crate::model::{Batch, Reading, Seq, SequencedBatch};
use crate::store::disk::rows::{self, BLOCK, BLOCK_COLUMN, HEADER_COLUMNS, Info};
use crate::store::segment::{Encoded, Encoder, Header};
use anyhow::Result;
use rusqlite::Connection;
use std::sync::Arc;

/// Bytes of memory that wait to be written together.
const MAX_WAITING: usize = 4 << 20;

/// Readings that are going to share segments, in the order of their seqs.
pub(in crate::store) struct SegmentRewriter {
    batches: Vec<SequencedBatch>,
    memory: usize,
    /// Of those segments; the readings of high priority are counted as they are written.
    info: Info,
}

impl SegmentRewriter {
    pub fn new(info: Info) -> SegmentRewriter {
        SegmentRewriter { batches: Vec::new(), memory: 0, info }
    }

    /// Adds readings that stand behind all others, and writes those if they take much memory.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn add(
        &mut self,
        batches: Vec<SequencedBatch>,
        db: &Connection,
        encoder: &mut Encoder,
        priority: &PriorityRoutes,
    ) -> Result<()> {
        let more: usize = batches.iter().map(|batch| batch.batch.memory()).sum();
        if self.memory + more > MAX_WAITING {
            self.write(db, encoder, priority)?;
        }
        self.memory += more;
        self.batches.extend(batches);
        Ok(())
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, db: &Connection, encoder: &mut Encoder, priority: &PriorityRoutes) -> Result<()> {
        let batches = std::mem::take(&mut self.batches);
        self.memory = 0;
        for Encoded { header, block, batches } in encoder.encode(&batches)? {
            let info = Info { high: priority.count_high(&batches), ..self.info };
            rows::put(db, "REPLACE", &header, &block, info)?;
        }
        Ok(())
    }
}

/// The segment that begins with `first`; `None` if its head is not what was written.
pub(in crate::store) fn find(db: &Connection, first: Seq) -> rusqlite::Result<Option<(Header, Vec<u8>)>> {
    let sql = format!("SELECT {HEADER_COLUMNS}, {BLOCK_COLUMN} FROM segment WHERE first_seq = ?1");
    let mut select = db.prepare_cached(&sql)?;
    let mut rows = select.query([first.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let block = row.get_ref(BLOCK)?.as_blob().unwrap_or_default();
    Ok(rows::header_of(row).map(|header| (header, block.to_vec())))
}

/// The readings that `keep` wants, with their seqs.
pub(in crate::store) fn filtered(
    batches: &[SequencedBatch],
    keep: &mut dyn FnMut(Seq, &Batch, &Reading) -> bool,
) -> Vec<SequencedBatch> {
    let mut left = Vec::new();
    for SequencedBatch { first, batch } in batches {
        let mut run: Vec<Reading> = Vec::new();
        let mut next = *first;
        for reading in &batch.readings {
            if keep(next, batch, reading) {
                run.push(reading.clone());
            } else {
                finish(&mut left, &mut run, next, batch);
            }
            next = next.next();
        }
        finish(&mut left, &mut run, next, batch);
    }
    left
}

/// Closes a run of readings, before `next`.
fn finish(left: &mut Vec<SequencedBatch>, run: &mut Vec<Reading>, next: Seq, batch: &Batch) {
    if !run.is_empty() {
        let first = Seq(next.0 - run.len() as u64); // so many came before it
        let readings = std::mem::take(run);
        let batch = Batch { device: batch.device.clone(), session: batch.session, basis: batch.basis, readings };
        left.push(SequencedBatch { first, batch: Arc::new(batch) });
    }
}
