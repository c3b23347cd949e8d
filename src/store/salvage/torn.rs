//! Whether a database and its write-ahead log belong together, and whether the log has all
//! that it should.

use super::super::fold::{self, Fold};
use super::super::gap::Hole;
use super::super::holes;
use super::super::row;
use super::pages::{Image, View};
use super::record::{self, Field};
use super::{Salvage, Walk};
use std::ops::ControlFlow;

impl Salvage {
    /// What shows that the database is older, or newer, than what its write-ahead log goes
    /// on from: one of them was copied while the other changed, or not at all.
    pub fn torn(&self) -> Option<String> {
        let wal = self.wal_state();
        let entry = |key, view| self.meta_entry(key, view);
        if wal.length == 0 && entry("reserved", View::Base).is_some_and(|reserved| reserved > 0) {
            let open = entry("clean", View::Base).is_none();
            return open.then(|| "it was not closed, and its write-ahead log is missing".to_owned());
        }
        if wal.behind {
            return Some("it is a torn copy: it lacks what its write-ahead log had before that began anew".to_owned());
        }
        // A list that stands in the database alone is that of an earlier time.
        let root = *self.roots.get("fold")?;
        matches!(self.pages.image(root, View::Committed), Image::Frame(_)).then_some(())?;
        let [goes_on_from, has] = [View::Committed, View::Base].map(|view| entry(fold::NUMBER, view).unwrap_or(0));
        if !(has..=has + 1).contains(&goes_on_from) {
            return Some(format!(
                "it is a torn copy: it is of checkpoint {has}, and its write-ahead log goes on from {goes_on_from}"
            ));
        }
        let fold = self.fold(root)?;
        let is_other = |(page, sum): &(u32, u32)| {
            let image = self.pages.image(*page, View::Committed);
            image == Image::Db(*page) && self.pages.read(image).map(|content| Fold::sum(&content)) != Some(*sum)
        };
        let other = fold.pages().filter(is_other).count();
        (other > 0).then(|| format!("it is a torn copy: it lacks {other} pages that its write-ahead log goes on from"))
    }

    /// A number of `meta`, if it is there and its guard holds.
    fn meta_entry(&self, wanted: &str, view: View) -> Option<u64> {
        let mut found = None;
        self.cells_of(*self.roots.get("meta")?, view, &mut |_, cell| {
            let record = self.record(cell, view);
            if let Some([key, value, guard, ..]) = record.as_deref().and_then(record::fields).as_deref()
                && let (Some(key), Some(value), Some(guard)) = (key.text(), value.integer(), guard.integer())
                && key == wanted
                && guard == row::meta_guard(key, value)
            {
                found = u64::try_from(value).ok();
            }
            ControlFlow::Continue(())
        });
        found
    }

    fn fold(&self, root: u32) -> Option<Fold> {
        let mut found = None;
        self.rows(root, &mut |_, fields| {
            if let [_, Field::Blob(pages), Field::Integer(guard), ..] = fields {
                found = Fold::read(pages, *guard);
            }
        });
        found
    }

    /// Seqs between the first that was ever given out and the last that a walk found, of
    /// which it found none and nothing says why. Of a log of an earlier version nothing is
    /// known.
    pub fn unexplained(&self, walk: &Walk) -> Vec<(u64, u64)> {
        if self.meta_entry(holes::COMPLETE, View::Committed).is_none() {
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
