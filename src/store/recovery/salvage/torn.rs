//! Whether a database and its write-ahead log belong together, and whether the log has all
//! that it should.

use super::pages::{Image, View};
use super::record::{self, Field};
use super::{Salvage, Walk};
use crate::store::disk::checkpoint::{self, CheckpointedPages};
use crate::store::disk::rows;
use crate::store::retention::gap::Hole;
use crate::store::retention::holes;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

impl Salvage {
    /// What shows that the database is older, or newer, than what its write-ahead log goes
    /// on from: one of them was copied while the other changed, or not at all.
    pub fn torn(&self) -> Option<String> {
        let wal = self.wal_state();
        if wal.length == 0 {
            return checkpoint::lacks_write_ahead_log(&self.meta(View::Base)?, self.noted)
                .then(|| checkpoint::LACKING.to_owned());
        }
        if let Some(last) = wal.lacking {
            let (had, has) = (self.fold_number(View::Near(last))?, self.fold_number(View::Base)?);
            return (has < had)
                .then(|| "it is a torn copy: it lacks what its write-ahead log had before that began anew".to_owned());
        }
        let root = *self.roots.get("fold")?;
        let listed = match self.pages.image(root, View::Committed) {
            Image::Frame(_) => self.listed(root)?,
            // One that stands in the database alone is that of an earlier time.
            Image::Db(_) => CheckpointedPages::default(),
        };
        let is_other = |(page, sum): &(u32, u32)| {
            let image = self.pages.image(*page, View::Committed);
            image == Image::Db(*page)
                && self.pages.read(image).map(|content| CheckpointedPages::sum(&content)) != Some(*sum)
        };
        let other = listed.pages().filter(is_other).count();
        if other > 0 {
            return Some(format!("it is a torn copy: it lacks {other} pages that its write-ahead log goes on from"));
        }
        let (goes_on_from, has) = (self.fold_number(View::Committed)?, self.fold_number(View::Base)?);
        // In the midst of a checkpoint a power cut may leave half a page, on which an older
        // number shows; most other pages are as they were before then, or as they are to be.
        let number_is_on = self.roots.get("meta").copied();
        let others = || listed.pages().filter(|(page, _)| Some(*page) != number_is_on);
        let is_recent = |(page, sum): &(u32, u32)| {
            let [base, new] = [View::Base, View::Committed].map(|view| self.pages.read(self.pages.image(*page, view)));
            base == new || base.is_some_and(|base| CheckpointedPages::sum(&base) == *sum)
        };
        let is_recent = || others().filter(is_recent).count() * 2 > others().count();
        let fits = (has..=has + 1).contains(&goes_on_from) || is_recent();
        (!fits).then(|| {
            format!("it is a torn copy: it is of checkpoint {has}, and its write-ahead log goes on from {goes_on_from}")
        })
    }

    /// The number of the last list, 0 if there was none, if all of `meta` is what was written.
    fn fold_number(&self, view: View) -> Option<u64> {
        Some(self.meta(view)?.get(checkpoint::NUMBER).copied().unwrap_or(0))
    }

    /// The numbers of `meta`, if all of them are what was written.
    fn meta(&self, view: View) -> Option<BTreeMap<String, u64>> {
        let (mut found, mut proven) = (BTreeMap::new(), true);
        let broken = self.cells_of(*self.roots.get("meta")?, view, &mut |_, cell| {
            let record = self.record(cell, view);
            let entry = record.as_deref().and_then(record::fields).and_then(|fields| match fields.as_slice() {
                [key, value, guard, ..] => {
                    let (key, value) = (key.text()?, value.integer()?);
                    (guard.integer()? == rows::meta_guard(key, value)).then_some(())?;
                    Some((key.to_owned(), u64::try_from(value).ok()?))
                }
                _ => None,
            });
            proven &= entry.is_some();
            found.extend(entry);
            ControlFlow::Continue(())
        });
        (proven && broken == 0).then_some(found)
    }

    fn listed(&self, root: u32) -> Option<CheckpointedPages> {
        let mut found = None;
        self.rows(root, &mut |_, fields| {
            if let [_, Field::Blob(pages), Field::Integer(guard), ..] = fields {
                found = CheckpointedPages::read(pages, *guard);
            }
        });
        found
    }

    /// Seqs between the first that was ever given out and the last that a walk found, of
    /// which it found none and nothing says why. Of a log of an earlier version nothing is
    /// known.
    pub fn unexplained(&self, walk: &Walk) -> Vec<(u64, u64)> {
        if !self.meta(View::Committed).is_some_and(|meta| meta.contains_key(holes::COMPLETE)) {
            return Vec::new();
        }
        let mut known = walk.known.clone();
        for Hole { first, last, .. } in self.holes() {
            known.insert(first.0, last.0);
        }
        for (first, last) in &walk.damaged {
            known.insert(*first, *last);
        }
        known.missing(1, walk.known.end())
    }

    fn holes(&self) -> Vec<Hole> {
        let mut found = Vec::new();
        let Some(root) = self.roots.get("hole") else { return found };
        self.rows(*root, &mut |first, fields| {
            if let [_, last, missing, guard, ..] = fields
                && let (Some(last), Some(missing), Some(guard)) = (last.integer(), missing.integer(), guard.integer())
            {
                found.extend(holes::known([first, last, missing], guard));
            }
        });
        found
    }
}
