//! Columns of a segment: integers as deltas, floats as scaled decimals.
//!
//! Every encoding is exact: a float column is scaled only if each of its values
//! comes back bit for bit, else its bytes are stored as they are, transposed so
//! that the general compressor behind finds the bytes that repeat.

use super::Corrupt;
use super::columns::{Column, Output, Sources, put_varint};
use super::source::Source;
use crate::model::Value;
use std::ops::Range;

pub(super) fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64 // a reinterpretation of the same bits
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64) // the inverse of `zigzag`
}

/// A number that is told from another.
pub(super) fn put_difference(out: &mut Vec<u8>, value: u64, before: u64) {
    put_varint(out, zigzag(value.wrapping_sub(before) as i64)); // the same bits
}

/// What [`put_difference`] wrote.
pub(super) fn difference(input: &mut impl Source, before: u64) -> Result<u64, Corrupt> {
    Ok(before.wrapping_add(unzigzag(input.varint()?) as u64)) // the same bits
}

/// Integers that change little from `before` to the first and from one to the next.
fn put_deltas(out: &mut Vec<u8>, mut before: i64, values: impl Iterator<Item = i64>) {
    for value in values {
        put_varint(out, zigzag(value.wrapping_sub(before)));
        before = value;
    }
}

fn deltas<S: Source>(
    input: &mut S,
    mut before: i64,
    n: usize,
) -> impl Iterator<Item = Result<i64, Corrupt>> + use<'_, S> {
    (0..n).map(move |_| {
        before = before.wrapping_add(unzigzag(input.varint()?));
        Ok(before)
    })
}

/// Integers that advance at a steady pace: deltas of deltas, after division by
/// the largest power of ten up to a million that divides them all.
pub(super) fn put_paced(out: &mut Output, column: Column, values: &[i64]) {
    let unit = [1_000_000, 1_000, 1].into_iter().find(|unit| values.iter().all(|v| v % unit == 0)).unwrap_or(1);
    put_varint(out.at(Column::Kind), unit.unsigned_abs());
    let (mut before, first_delta) = out.begun.start(column, unit);
    let mut delta_before = 0i64;
    let bytes = out.at(column);
    for (row, value) in values.iter().enumerate() {
        let scaled = value / unit;
        let delta = scaled.wrapping_sub(before);
        put_varint(bytes, zigzag(delta.wrapping_sub(delta_before)));
        (before, delta_before) = (scaled, first_delta.filter(|_| row == 0).unwrap_or(delta));
    }
    if let Some(first) = values.first() {
        out.begun.set_start(column, *first, values.get(1).map(|second| second.wrapping_sub(*first)));
    }
}

/// Reads `n` integers, and keeps those that `keep` wants by their rows and themselves.
pub(super) fn paced<S: Source>(
    input: &mut Sources<S>,
    column: Column,
    n: usize,
    mut keep: impl FnMut(usize, i64) -> bool,
) -> Result<Vec<i64>, Corrupt> {
    let unit = i64::try_from(input.at(Column::Kind).varint()?).ok().filter(|unit| *unit > 0);
    let unit = unit.ok_or(Corrupt("unit out of range"))?;
    let (mut before, first_delta) = input.begun.start(column, unit);
    let mut delta_before = 0i64;
    let (mut kept, mut first, mut second) = (Vec::new(), None, None);
    let bytes = input.at(column);
    for row in 0..n {
        let delta = delta_before.wrapping_add(unzigzag(bytes.varint()?));
        before = before.wrapping_add(delta);
        delta_before = first_delta.filter(|_| row == 0).unwrap_or(delta);
        let value = before.wrapping_mul(unit);
        match row {
            0 => first = Some(value),
            1 => second = Some(value),
            _ => {}
        }
        if keep(row, value) {
            kept.push(value);
        }
    }
    if let Some(first) = first {
        input.begun.set_start(column, first, second.map(|second| second.wrapping_sub(first)));
    }
    Ok(kept)
}

const MIXED: u8 = 0;
const DECIMAL: u8 = 1;
const FLOAT: u8 = 2;
const INTEGER: u8 = 3;
const BOOLEAN: u8 = 4;
const TEXT: u8 = 5;
const BYTES: u8 = 6;

fn tag(value: &Value) -> u8 {
    match value {
        Value::Float(_) => FLOAT,
        Value::Integer(_) => INTEGER,
        Value::Boolean(_) => BOOLEAN,
        Value::Text(_) => TEXT,
        Value::Bytes(_) => BYTES,
    }
}

/// The values of the channel with this place in its list, in row order.
pub(super) fn put_values<'v>(out: &mut Output, channel: usize, values: impl Iterator<Item = &'v Value> + Clone) {
    let Some(first) = values.clone().next().map(tag) else { return };
    if values.clone().any(|value| tag(value) != first) {
        out.at(Column::Kind).push(MIXED);
        values.for_each(|value| {
            let bytes = out.at(Column::Value(channel));
            bytes.push(tag(value));
            put_value(bytes, value);
        });
        return;
    }
    match first {
        FLOAT => put_floats(out, channel, values.filter_map(|v| if let Value::Float(f) = v { Some(*f) } else { None })),
        INTEGER => {
            let integers = values.filter_map(|v| if let Value::Integer(i) = v { Some(*i) } else { None });
            put_integers(out, channel, INTEGER, &[INTEGER], integers);
        }
        kind => {
            out.at(Column::Kind).push(kind);
            values.for_each(|value| put_value(out.at(Column::Value(channel)), value));
        }
    }
}

/// Integers that are told from those of a group before with the same `kind`; `head` says what
/// they are.
fn put_integers(
    out: &mut Output,
    channel: usize,
    kind: u8,
    head: &[u8],
    mut integers: impl Iterator<Item = i64> + Clone,
) {
    out.at(Column::Kind).extend_from_slice(head);
    let before = out.begun.value(channel, kind);
    put_deltas(out.at(Column::Value(channel)), before, integers.clone());
    if let Some(first) = integers.next() {
        out.begun.set_value(channel, kind, first);
    }
}

/// Reads what [`put_integers`] wrote, but for its head, and gives them by their rows.
fn integers<S: Source>(
    input: &mut Sources<S>,
    channel: usize,
    kind: u8,
    n: usize,
    mut give: impl FnMut(usize, i64),
) -> Result<(), Corrupt> {
    let before = input.begun.value(channel, kind);
    let mut first = None;
    for (row, integer) in deltas(input.at(Column::Value(channel)), before, n).enumerate() {
        let integer = integer?;
        first = first.or(Some(integer));
        give(row, integer);
    }
    if let Some(first) = first {
        input.begun.set_value(channel, kind, first);
    }
    Ok(())
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Float(float) => out.extend_from_slice(&float.to_le_bytes()),
        Value::Integer(integer) => put_varint(out, zigzag(*integer)),
        Value::Boolean(boolean) => out.push(u8::from(*boolean)),
        Value::Text(text) => put_blob(out, text.as_bytes()),
        Value::Bytes(bytes) => put_blob(out, bytes),
    }
}

fn value(input: &mut impl Source, tag: u8) -> Result<Value, Corrupt> {
    Ok(match tag {
        FLOAT => {
            let mut raw = [0; 8];
            raw.copy_from_slice(input.take(8)?);
            Value::Float(f64::from_le_bytes(raw))
        }
        INTEGER => Value::Integer(unzigzag(input.varint()?)),
        BOOLEAN => match input.byte()? {
            0 => Value::Boolean(false),
            1 => Value::Boolean(true),
            _ => return Err(Corrupt("boolean is neither 0 nor 1")),
        },
        TEXT => Value::Text(input.text()?.into()),
        BYTES => Value::Bytes(input.blob()?.into()),
        _ => return Err(Corrupt("unknown kind of value")),
    })
}

/// Reads one value of the channel with this place in its list for each of `n` rows, and appends
/// those of the rows in `keep` to `rows`, one each.
pub(super) fn values<S: Source>(
    input: &mut Sources<S>,
    channel: usize,
    n: usize,
    keep: &Range<usize>,
    rows: &mut [Vec<Value>],
) -> Result<(), Corrupt> {
    let mut put = |row: usize, value: Value| {
        if let Some(row) = row.checked_sub(keep.start).and_then(|row| rows.get_mut(row)) {
            row.push(value);
        }
    };
    match input.at(Column::Kind).byte()? {
        MIXED => {
            let input = input.at(Column::Value(channel));
            for row in 0..n {
                let tag = input.byte()?;
                put(row, value(input, tag)?);
            }
        }
        DECIMAL => {
            let exponent = input.at(Column::Kind).byte()?;
            let scale = *SCALES.get(usize::from(exponent)).ok_or(Corrupt("unknown scale"))?;
            let kind = decimals(exponent);
            integers(input, channel, kind, n, |row, integer| {
                put(row, Value::Float(integer as f64 / scale)); // under 2^53: exact
            })?;
        }
        FLOAT => {
            let input = input.at(Column::Value(channel));
            let mut floats = vec![[0; 8]; keep.len()];
            for plane in 0..8 {
                input.skip(keep.start)?;
                for (float, byte) in floats.iter_mut().zip(input.take(keep.len())?) {
                    float[plane] = *byte; // under 8
                }
                input.skip(n.saturating_sub(keep.end))?;
            }
            let floats = floats.into_iter().map(|float| Value::Float(f64::from_le_bytes(float)));
            floats.zip(keep.start..).for_each(|(float, row)| put(row, float));
        }
        INTEGER => integers(input, channel, INTEGER, n, |row, integer| put(row, Value::Integer(integer)))?,
        kind => {
            let input = input.at(Column::Value(channel));
            for row in 0..n {
                put(row, value(input, kind)?);
            }
        }
    }
    Ok(())
}

/// Of floats with so many decimals: a kind of its own.
fn decimals(exponent: u8) -> u8 {
    exponent.saturating_add(0x10)
}

const SCALES: [f64; 10] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// `float` times `scale` as an integer, if dividing it again gives the same bits.
fn scaled(float: f64, scale: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: every integer below is a float
    let integer = (float * scale).round();
    // The range also refuses NaN and the infinities, and the bits refuse -0.0.
    let integer = (integer.abs() < EXACT).then_some(integer as i64)?;
    ((integer as f64 / scale).to_bits() == float.to_bits()).then_some(integer)
}

fn put_floats(out: &mut Output, channel: usize, floats: impl Iterator<Item = f64> + Clone) {
    let mut first_scale = 0;
    let mut integers = Vec::new();
    // A scale that fits one value seldom fails later; if it does, a larger one may fit all.
    for (exponent, scale) in (0u8..).zip(SCALES) {
        if usize::from(exponent) < first_scale {
            continue;
        }
        integers.clear();
        let misfit = floats.clone().find(|float| match scaled(*float, scale) {
            Some(integer) => {
                integers.push(integer);
                false
            }
            None => true,
        });
        let Some(misfit) = misfit else {
            let kind = decimals(exponent);
            return put_integers(out, channel, kind, &[DECIMAL, exponent], integers.iter().copied());
        };
        let further = usize::from(exponent) + 1;
        match SCALES.iter().skip(further).position(|scale| scaled(misfit, *scale).is_some()) {
            Some(more) => first_scale = further + more,
            None => break,
        }
    }
    out.at(Column::Kind).push(FLOAT);
    for plane in 0..8 {
        out.at(Column::Value(channel)).extend(floats.clone().map(|float| float.to_le_bytes()[plane]));
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::Input;
    use super::*;
    use proptest::prelude::*;

    fn round_trip(column: &[Value]) -> (Vec<Value>, usize) {
        let mut out = Output::one();
        put_values(&mut out, 0, column.iter());
        let out = out.into_one();
        let mut rows = vec![Vec::new(); column.len()];
        let mut input = Sources::one(Input::new(&out));
        values(&mut input, 0, column.len(), &(0..column.len()), &mut rows).expect("what was written reads back");
        assert_eq!(input.remaining(), 0);
        (rows.into_iter().flatten().collect(), out.len())
    }

    fn bits(values: &[Value]) -> Vec<(u8, Vec<u8>)> {
        values
            .iter()
            .map(|value| {
                let mut out = Vec::new();
                put_value(&mut out, value);
                (tag(value), out)
            })
            .collect()
    }

    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<f64>().prop_map(Value::Float),
            any::<u64>().prop_map(|raw| Value::Float(f64::from_bits(raw))),
            (-100_000i64..100_000, 0u8..5).prop_map(|(i, e)| Value::Float(i as f64 / SCALES[usize::from(e)])),
            any::<i64>().prop_map(Value::Integer),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,12}".prop_map(|text| Value::Text(text.into())),
            proptest::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| Value::Bytes(bytes.into())),
        ]
    }

    proptest! {
        #[test]
        fn any_column_comes_back_bit_for_bit(column in proptest::collection::vec(any_value(), 1..40)) {
            prop_assert_eq!(bits(&round_trip(&column).0), bits(&column));
        }

        #[test]
        fn a_column_of_floats_comes_back_bit_for_bit(raw in proptest::collection::vec(any::<u64>(), 1..40)) {
            let column: Vec<_> = raw.into_iter().map(|raw| Value::Float(f64::from_bits(raw))).collect();
            prop_assert_eq!(bits(&round_trip(&column).0), bits(&column));
        }

        #[test]
        fn rows_in_the_middle_of_a_column_are_read_alone(column in proptest::collection::vec(any_value(), 1..40), a in 0usize..40, b in 0usize..40) {
            let (from, upto) = (a.min(b).min(column.len()), a.max(b).min(column.len()));
            let mut out = Output::one();
            put_values(&mut out, 0, column.iter());
            let out = out.into_one();
            let mut rows = vec![Vec::new(); upto - from];
            let mut input = Sources::one(Input::new(&out));
            prop_assert_eq!(values(&mut input, 0, column.len(), &(from..upto), &mut rows), Ok(()));
            prop_assert_eq!(input.remaining(), 0);
            prop_assert_eq!(bits(&rows.concat()), bits(&column[from..upto]));
        }

        #[test]
        fn paced_integers_come_back(column in proptest::collection::vec(any::<i64>(), 0..40)) {
            let mut out = Output::one();
            put_paced(&mut out, Column::Time, &column);
            let out = out.into_one();
            prop_assert_eq!(paced(&mut Sources::one(Input::new(&out)), Column::Time, column.len(), |_, _| true), Ok(column));
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..200), n in 0usize..50) {
            let _ = values(&mut Sources::one(Input::new(&garbage)), 0, n, &(0..n), &mut vec![Vec::new(); n]);
            let _ = paced(&mut Sources::one(Input::new(&garbage)), Column::Time, n, |_, _| true);
        }
    }

    #[test]
    fn decimals_that_move_little_take_a_byte_each() {
        let column: Vec<_> = (0..1000).map(|i| Value::Float(f64::from(2150 + i % 7) / 100.0)).collect();
        let (back, size) = round_trip(&column);
        assert_eq!(back, column);
        assert!(size < 1010, "{size} bytes");
    }

    #[test]
    fn special_floats_survive_beside_ordinary_ones() {
        let column = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, 0.1, 1e300];
        let column: Vec<_> = column.into_iter().map(Value::Float).collect();
        assert_eq!(bits(&round_trip(&column).0), bits(&column));
    }
}
