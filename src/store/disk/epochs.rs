//! The epochs of the log: what `meta` says of them, and when a new one begins.
//!
//! `meta` has the current epoch, and under [`FORMER`] with the last seq of each, those
//! that are over. A log from before there were several has none of these.

use super::schema::{insert_event, set_meta};
use super::ticket::Ticket;
use crate::model::{Epoch, Epochs, Seq, Timestamp};
use rusqlite::Connection;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The entry of `meta` for the current epoch.
pub(in crate::store) const CURRENT: &str = "epoch";
/// The entry for the ticket by which seqs may be used.
pub(in crate::store) const TICKET: &str = "ticket";
/// What the entries of former epochs begin with; the last seq follows.
const FORMER: &str = "epoch_upto_";
/// So many former epochs are remembered though no reading of them is left: events may
/// still tell of their seqs.
const REMEMBERED: usize = 64;
/// More are taken together.
const MOST: usize = 1024;

/// The epochs that `meta` tells of, if it has any.
pub(in crate::store) fn read(meta: &BTreeMap<String, u64>) -> Option<Epochs> {
    let epoch = |value: &u64| u32::try_from(*value).ok().map(Epoch);
    let of = |(key, value): (&String, &u64)| Some((Seq(key.strip_prefix(FORMER)?.parse().ok()?), epoch(value)?));
    let former = meta.range(FORMER.to_owned()..).map_while(of).collect();
    Some(Epochs::new(former, meta.get(CURRENT).and_then(epoch)?))
}

/// Begins a new epoch with `next` unless the ticket proves that the current one may go
/// on, and says so by an event.
pub(in crate::store) fn go_on(
    db: &Connection,
    meta: &BTreeMap<String, u64>,
    ticket: &mut Ticket,
    next: Seq,
    now: Timestamp,
) -> rusqlite::Result<Epochs> {
    let proven = ticket.proves(meta.get(TICKET).copied());
    set_meta(db, TICKET, ticket.draw())?;
    let Some(before) = read(meta) else {
        // A new log.
        set_meta(db, CURRENT, u64::from(ticket.next_epoch().0))?;
        return Ok(ticket.next_epoch().into());
    };
    let oldest: Option<u64> = db.query_row("SELECT min(first_seq) FROM segment", [], |row| row.get(0))?;
    let mut former = before.former().to_vec();
    let mut current = before.current();
    if !proven {
        let was = current;
        if former.last().is_none_or(|(last, _)| last.next() < next) && next > Seq(1) {
            former.push((next.prev(), was));
        }
        current = unused(ticket.next_epoch(), &former, was);
        tracing::info!(
            %was, epoch = %current, first = next.0,
            "a new epoch begins: nothing proves that the log is not an old copy (see [store] runtime_directory)"
        );
        // It may be told under a later epoch.
        let body = serde_json::json!({"type": "epoch", "was": was, "begins": current, "first": next});
        insert_event(db, now, &body.to_string())?;
    }
    prune(&mut former, oldest.map_or(next, Seq), || unused(Epoch(fastrand::u32(1..)), &[], current));
    let epochs = Epochs::new(former, current);
    put(db, &before, &epochs)?;
    Ok(epochs)
}

/// Reserves seqs up to `reserved`, by another ticket.
pub(in crate::store) fn reserve(db: &Connection, reserved: Seq, ticket: &mut Ticket) -> rusqlite::Result<()> {
    set_meta(db, "reserved", reserved.0)?;
    set_meta(db, TICKET, ticket.draw())
}

/// Takes over what another database tells of its epochs, the last of which ends at `end`.
pub(in crate::store) fn adopt(db: &Connection, before: &Epochs, end: Seq) -> rusqlite::Result<()> {
    let former = before.former().iter().copied().filter(|(last, _)| *last < end);
    former.chain([(end, before.current())]).try_for_each(|(last, epoch)| put_former(db, last, epoch))
}

/// Adds the epoch under which an event goes, the current one. A gap of seqs of a former
/// epoch names that, too, as `of_epoch`; one that reaches over several has the part of
/// each in `parts`.
pub fn with_epoch(mut body: Map<String, Value>, epochs: &Epochs) -> Map<String, Value> {
    body.insert("epoch".into(), json!(epochs.current()));
    name_former(&mut body, epochs);
    body
}

/// Names the epochs that the seqs of a gap are of where that is not the current one.
pub(in crate::store) fn name_former(body: &mut Map<String, Value>, epochs: &Epochs) {
    let seq = |key: &str| body.get(key).and_then(Value::as_u64).map(Seq);
    let is_gap = body.get("type").is_some_and(|kind| kind == "gap") && !body.contains_key("of_epoch");
    let Some((first, last)) = seq("first").zip(seq("last")).filter(|_| is_gap) else { return };
    match &*epochs.parts(first, last) {
        [] => {}
        [one] if one.epoch == epochs.current() => {}
        [one] => drop(body.insert("of_epoch".into(), json!(one.epoch))),
        parts => drop(body.insert("parts".into(), json!(parts))),
    }
}

/// `drawn`, or what follows it that is none of those.
fn unused(drawn: Epoch, former: &[(Seq, Epoch)], current: Epoch) -> Epoch {
    let mut drawn = drawn;
    while drawn == current || drawn.0 == 0 || former.iter().any(|(_, epoch)| *epoch == drawn) {
        drawn = Epoch(drawn.0.wrapping_add(1));
    }
    drawn
}

/// Forgets epochs of which no reading is left, but for the newest. If there are too many
/// all the same, the older half is taken together under an epoch that was never used: no
/// identity gets two meanings, though a reading may get two identities.
fn prune(former: &mut Vec<(Seq, Epoch)>, oldest: Seq, draw: impl FnOnce() -> Epoch) {
    let gone = former.partition_point(|(last, _)| *last < oldest);
    former.drain(..gone.min(former.len().saturating_sub(REMEMBERED)));
    if former.len() > MOST {
        former.drain(..MOST / 2);
        if let Some(first) = former.first_mut() {
            first.1 = draw();
        }
    }
}

/// Writes what is new in `after`.
fn put(db: &Connection, before: &Epochs, after: &Epochs) -> rusqlite::Result<()> {
    for (last, _) in before.former().iter().filter(|entry| !after.former().contains(entry)) {
        db.execute("DELETE FROM meta WHERE key = ?1", [key(*last)])?;
    }
    let new = after.former().iter().filter(|entry| !before.former().contains(entry));
    new.copied().try_for_each(|(last, epoch)| put_former(db, last, epoch))?;
    set_meta(db, CURRENT, u64::from(after.current().0))
}

fn put_former(db: &Connection, last: Seq, epoch: Epoch) -> rusqlite::Result<()> {
    set_meta(db, &key(last), u64::from(epoch.0))
}

/// Such keys are ordered as the seqs are.
fn key(last: Seq) -> String {
    format!("{FORMER}{:020}", last.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_names_the_epochs_that_its_seqs_are_of() {
        let epochs = Epochs::new(vec![(Seq(10), Epoch(4)), (Seq(20), Epoch(5))], Epoch(6));
        let gap = |first: u64, last: u64| {
            let body = json!({"type": "gap", "reason": "restart", "first": first, "last": last});
            Value::Object(with_epoch(body.as_object().expect("an object").clone(), &epochs))
        };
        assert_eq!(gap(21, 30), json!({"type": "gap", "reason": "restart", "first": 21, "last": 30, "epoch": 6}));
        assert_eq!((&gap(11, 12)["of_epoch"], &gap(11, 12)["epoch"]), (&json!(5), &json!(6)));
        let parts = json!([
            {"epoch": 4, "first": 9, "last": 10}, {"epoch": 5, "first": 11, "last": 20}, {"epoch": 6, "first": 21, "last": 22}
        ]);
        assert_eq!((&gap(9, 22)["parts"], gap(9, 22).get("of_epoch")), (&parts, None));
        let body = json!({"type": "gap", "of_epoch": 1, "first": 1, "last": 2});
        let elsewhere = with_epoch(body.as_object().expect("an object").clone(), &epochs);
        assert_eq!((&elsewhere["of_epoch"], elsewhere.len()), (&json!(1), 5), "of another log");
    }

    #[test]
    fn former_epochs_are_read_in_the_order_of_their_seqs() {
        let mut meta = BTreeMap::from([("reserved".to_owned(), 5), ("ticket".to_owned(), 7)]);
        assert_eq!(read(&meta), None);
        meta.insert("epoch".to_owned(), 9);
        assert_eq!(read(&meta), Some(Epochs::from(Epoch(9))));
        for (last, epoch) in [(1_000_000u64, 4u64), (99, 3)] {
            meta.insert(format!("{FORMER}{last:020}"), epoch);
        }
        let epochs = read(&meta).expect("there are some");
        assert_eq!(epochs.former(), [(Seq(99), Epoch(3)), (Seq(1_000_000), Epoch(4))]);
    }

    #[test]
    fn epochs_without_readings_are_forgotten_and_too_many_get_one_that_was_never_used() {
        let all = |count: u64| (1..=count).map(|n| (Seq(n * 10), Epoch(n as u32))).collect::<Vec<_>>();
        let mut former = all(100);
        prune(&mut former, Seq(1), || panic!("there are few"));
        assert_eq!(former.len(), 100, "readings of all of them are left");
        prune(&mut former, Seq(801), || panic!("there are few"));
        assert_eq!((former.len(), former[0]), (64, (Seq(370), Epoch(37))), "the newest are remembered");
        let mut former = all(100);
        prune(&mut former, Seq(101), || panic!("there are few"));
        assert_eq!(former[0], (Seq(110), Epoch(11)));

        let mut former = all(MOST as u64 + 1);
        prune(&mut former, Seq(1), || Epoch(u32::MAX));
        assert_eq!(former.len(), MOST / 2 + 1);
        let known: Vec<_> = all(MOST as u64 + 1);
        assert_eq!(former[0], (Seq((MOST as u64 / 2 + 1) * 10), Epoch(u32::MAX)));
        assert!(former[1..].iter().all(|entry| known.contains(entry)), "the others keep theirs");
    }

    #[test]
    fn an_epoch_that_is_drawn_is_none_of_those_before() {
        let former = [(Seq(5), Epoch(8)), (Seq(9), Epoch(u32::MAX))];
        assert_eq!(unused(Epoch(7), &former, Epoch(7)), Epoch(9));
        assert_eq!(unused(Epoch(u32::MAX), &former, Epoch(7)), Epoch(1));
    }
}
