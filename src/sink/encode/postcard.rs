//! The compact encoding: a format byte, then in postcard the gateway, the epoch, the
//! readings, and two tables to which the readings refer: devices and lists of
//! channels. The tables come last because they are known last.

use super::{DecodeError, Delivered, Delivery, Entry, Writer};
use crate::model::{Channels, DeviceId, Epoch, GatewayId, Seq, Timestamp, Value};
use crate::sink::Identity;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The first byte of a postcard payload: the number of its format.
pub const FORMAT: u8 = 1;

/// A postcard batch being written.
#[derive(Debug)]
pub struct Postcard {
    /// Format, gateway and epoch.
    head: Vec<u8>,
    readings: Vec<u8>,
    count: u64,
    devices: Table<DeviceId>,
    channels: Table<Channels>,
    last: Before,
}

/// Sizes before the last reading was appended.
#[derive(Debug, Default, Clone, Copy)]
struct Before {
    readings: usize,
    devices: (usize, usize),
    channels: (usize, usize),
}

/// Entries in the order of their first appearance.
#[derive(Debug)]
struct Table<T> {
    encoded: Vec<u8>,
    entries: Vec<T>,
    /// Of those with one address; equal entries elsewhere just take a second place.
    index: HashMap<*const (), usize>,
}

impl<T: Clone> Table<T> {
    fn new() -> Table<T> {
        Table { encoded: Vec::new(), entries: Vec::new(), index: HashMap::new() }
    }

    fn place(&mut self, entry: &T, address: *const (), encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        if let Some(place) = self.index.get(&address) {
            return *place;
        }
        let place = self.entries.len();
        encode(&mut self.encoded);
        // Keeping the entry keeps its address from being used again.
        self.entries.push(entry.clone());
        self.index.insert(address, place);
        place
    }

    fn len(&self) -> (usize, usize) {
        (self.encoded.len(), self.entries.len())
    }

    fn cut(&mut self, (bytes, entries): (usize, usize)) {
        self.encoded.truncate(bytes);
        self.entries.truncate(entries);
        self.index.retain(|_, place| *place < entries);
    }
}

/// One reading; the indexes are those of the tables.
#[derive(Serialize)]
struct Row<'a>(u64, u32, Option<(u64, u64)>, i64, bool, u32, &'a [Value]);

/// Writing to memory cannot fail, and neither can what is written here.
fn put(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let _ = postcard::to_io(value, out);
}

impl Postcard {
    pub fn new(identity: &Identity) -> Postcard {
        let mut head = vec![FORMAT];
        put(&mut head, &(identity.gateway.as_str(), identity.epoch));
        Postcard {
            head,
            readings: Vec::new(),
            count: 0,
            devices: Table::new(),
            channels: Table::new(),
            last: Before::default(),
        }
    }
}

impl Writer for Postcard {
    fn size(&self) -> usize {
        const COUNTS: usize = 3 * 5;
        self.head.len() + self.readings.len() + self.devices.encoded.len() + self.channels.encoded.len() + COUNTS
    }

    fn add(&mut self, entry: &Entry<'_>) {
        self.last =
            Before { readings: self.readings.len(), devices: self.devices.len(), channels: self.channels.len() };
        let name = entry.device.as_str();
        let device = self.devices.place(entry.device, name.as_ptr().cast(), |out| put(out, name));
        let list = entry.reading.channels();
        let channels = self.channels.place(list, Arc::as_ptr(list).cast(), |out| put(out, &**list));
        // No payload has more than 2^32 entries.
        let (device, channels) = (device as u32, channels as u32);
        let origin = entry.origin.map(|origin| (origin.session, origin.seq));
        let reading = entry.reading;
        let row = Row(entry.seq.0, device, origin, reading.time.0, entry.replay, channels, reading.values());
        put(&mut self.readings, &row);
        self.count += 1;
    }

    fn undo(&mut self) {
        self.readings.truncate(self.last.readings);
        self.devices.cut(self.last.devices);
        self.channels.cut(self.last.channels);
        self.count -= 1;
    }

    fn finish(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.head);
        put(&mut out, &self.count);
        out.extend_from_slice(&self.readings);
        put(&mut out, &self.devices.entries.len());
        out.extend_from_slice(&self.devices.encoded);
        put(&mut out, &self.channels.entries.len());
        out.extend_from_slice(&self.channels.encoded);
        out
    }
}

#[derive(Deserialize)]
struct Payload {
    gateway: GatewayId,
    epoch: Epoch,
    readings: Vec<PayloadReading>,
    devices: Vec<DeviceId>,
    channels: Vec<Vec<String>>,
}

#[derive(Deserialize)]
struct PayloadReading {
    seq: Seq,
    device: usize,
    origin: Option<(u64, u64)>,
    time: Timestamp,
    replay: bool,
    channels: usize,
    values: Vec<Value>,
}

/// Decodes a postcard batch.
///
/// # Errors
/// If it is none.
pub fn decode(payload: &[u8]) -> Result<Delivery, DecodeError> {
    let failed = |why: &dyn fmt::Display| DecodeError::Postcard(why.to_string());
    let body = payload.get(1..).ok_or(DecodeError::Empty)?;
    let (payload, _) = postcard::take_from_bytes(body).map_err(|why| failed(&why))?;
    let Payload { gateway, epoch, readings, devices, channels } = payload;
    let readings = readings
        .into_iter()
        .map(|PayloadReading { seq, device, origin, time, replay, channels: list, values }| {
            let device = devices.get(device).ok_or_else(|| failed(&"a device is missing"))?.clone();
            let list = channels.get(list).filter(|list| list.len() == values.len());
            let list = list.ok_or_else(|| failed(&"channels are missing"))?;
            let values = list.iter().cloned().zip(values).collect();
            Ok(Delivered { seq, device, origin, time, replay, values })
        })
        .collect::<Result<_, _>>()?;
    Ok(Delivery { gateway, epoch, readings })
}
