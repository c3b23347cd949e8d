//! What the rows of small tables prove.

use super::record::Field;
use crate::model::{BootId, Timestamp};
use crate::store::disk::rows;
use crate::store::sinks::positions::CursorPosition;
use crate::store::sinks::unreported_gaps::UnreportedGap;
use std::collections::BTreeMap;

/// What small tables prove.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::store) struct Facts {
    pub meta: BTreeMap<String, u64>,
    /// Places by name.
    pub sinks: BTreeMap<String, CursorPosition>,
    /// Session and seq by device.
    pub high_waters: BTreeMap<String, (u64, u64)>,
    /// Id, time and body.
    pub events: BTreeMap<u64, (i64, String)>,
    /// Bodies of events about what sinks have missed and were not told.
    pub missed: Vec<String>,
    /// When boots began, where that became known.
    pub boots: BTreeMap<BootId, Option<Timestamp>>,
    /// Rows whose guard does not hold.
    pub unproven: u64,
}

impl Facts {
    /// Takes a row in if its guard holds, and says whether it does; of several with one
    /// key, the one that is furthest.
    pub(super) fn take(&mut self, table: &str, rowid: i64, fields: &[Field<'_>]) -> bool {
        self.try_take(table, rowid, fields).is_some()
    }

    fn try_take(&mut self, table: &str, rowid: i64, fields: &[Field<'_>]) -> Option<()> {
        let text = |column: usize| fields.get(column)?.text();
        let number = |column: usize| fields.get(column)?.integer();
        let unsigned = |column: usize| u64::try_from(number(column)?).ok();
        match table {
            "meta" => {
                let (key, value) = (text(0)?, number(1)?);
                (number(2)? == rows::meta_guard(key, value)).then_some(())?;
                let known = self.meta.entry(key.to_owned()).or_default();
                *known = (*known).max(unsigned(1)?);
            }
            "sink" => {
                let (name, confirmed, event, retired) = (text(0)?, number(1)?, number(2)?, number(4));
                (number(3)? == rows::sink_guard(name, confirmed, event, retired)).then_some(())?;
                let found = CursorPosition { confirmed: unsigned(1)?, event: unsigned(2)?, retired: unsigned(4) };
                let known = self.sinks.entry(name.to_owned()).or_default();
                if (found.confirmed, found.event) >= (known.confirmed, known.event) {
                    *known = found;
                }
            }
            "mark" => {
                let (device, session, seq) = (text(0)?, number(1)?, number(2)?);
                (number(3)? == rows::high_water_guard(device, session, seq)).then_some(())?;
                let session = session as u64; // the same 64 bits as written
                let known = self.high_waters.entry(device.to_owned()).or_insert((session, 0));
                // Of two sessions, the one found first stands in the newer page.
                if known.0 == session {
                    known.1 = known.1.max(unsigned(2)?);
                }
            }
            "event" => {
                let (time, body) = (number(1)?, text(2)?);
                (number(3)? == rows::event_guard(rowid, time, body, text(5))).then_some(())?;
                self.events.insert(u64::try_from(rowid).ok()?, (time, body.to_owned()));
            }
            "gap" => {
                let numbers = [number(4)?, number(5)?, number(6)?, number(7)?];
                (number(8)? == rows::gap_guard([text(1)?, text(2)?, text(3)?], numbers)).then_some(())?;
                let missed = UnreportedGap::stored(text(2)?, text(3)?, numbers)?;
                self.missed.push(missed.body(text(1)?));
            }
            "boot" => {
                let optional = |column: usize| match fields.get(column)? {
                    Field::Null => Some(None),
                    field => field.integer().map(Some),
                };
                let id = BootId(fields.first()?.blob()?.try_into().ok()?);
                let (began, last) = (optional(1)?, optional(2)?);
                (number(3)? == rows::boot_guard(id, began, last)).then_some(())?;
                let known = self.boots.entry(id).or_default();
                *known = known.or(began.map(Timestamp));
            }
            _ => {}
        }
        Some(())
    }
}
