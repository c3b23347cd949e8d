//! The compact encoding: a format byte, then in postcard the gateway, the epoch, the
//! readings, and two tables to which the readings refer: devices and lists of
//! channels. The tables come last because they are known last.
//!
//! Behind them stands what later versions added, which a reader of an earlier one leaves
//! alone: a list of the readings whose times are not simply when they were taken, if
//! there are any.

use super::{DecodeError, Delivered, Delivery, Entry, Quality, Writer};
use crate::model::{Basis, BootId, Channels, DeviceId, Epoch, GatewayId, Seq, Timestamp, Value};
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
    /// Number and encoding of the readings whose times are special.
    special: u64,
    qualities: Vec<u8>,
    last: Before,
}

/// Sizes before the last reading was appended.
#[derive(Debug, Default, Clone, Copy)]
struct Before {
    readings: usize,
    devices: (usize, usize),
    channels: (usize, usize),
    qualities: (u64, usize),
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
            special: 0,
            qualities: Vec::new(),
            last: Before::default(),
        }
    }
}

impl Writer for Postcard {
    fn size(&self) -> usize {
        const COUNTS: usize = 4 * 5;
        let tables = self.devices.encoded.len() + self.channels.encoded.len() + self.qualities.len();
        self.head.len() + self.readings.len() + tables + COUNTS
    }

    fn add(&mut self, entry: &Entry<'_>) {
        self.last = Before {
            readings: self.readings.len(),
            devices: self.devices.len(),
            channels: self.channels.len(),
            qualities: (self.special, self.qualities.len()),
        };
        if let Some(special) = Special::of(entry.basis) {
            put(&mut self.qualities, &(self.count, special));
            self.special += 1;
        }
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
        self.special = self.last.qualities.0;
        self.qualities.truncate(self.last.qualities.1);
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
        if self.special > 0 {
            put(&mut out, &self.special);
            out.extend_from_slice(&self.qualities);
        }
        out
    }
}

/// What a time is that is not simply when the reading was taken. Only ever append.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Special {
    Resynchronised,
    Unsynchronised([u8; 16]),
    DeviceClock(i64),
    DeviceClockSince([u8; 16], i64),
}

impl Special {
    fn of(basis: Basis) -> Option<Special> {
        match basis {
            Basis::Wall => None,
            Basis::Resynchronised => Some(Special::Resynchronised),
            Basis::Boot(boot) => Some(Special::Unsynchronised(boot.0)),
            Basis::DeviceClock { received } => Some(Special::DeviceClock(received.0)),
            Basis::DeviceClockSince { boot, received } => Some(Special::DeviceClockSince(boot.0, received.0)),
        }
    }

    fn basis(self) -> Basis {
        match self {
            Special::Resynchronised => Basis::Resynchronised,
            Special::Unsynchronised(boot) => Basis::Boot(BootId(boot)),
            Special::DeviceClock(received) => Basis::DeviceClock { received: Timestamp(received) },
            Special::DeviceClockSince(boot, received) => {
                Basis::DeviceClockSince { boot: BootId(boot), received: Timestamp(received) }
            }
        }
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
    let (payload, added) = postcard::take_from_bytes(body).map_err(|why| failed(&why))?;
    let Payload { gateway, epoch, readings, devices, channels } = payload;
    let special: HashMap<u64, Special> = match added {
        [] => HashMap::new(),
        added => {
            let (list, _) = postcard::take_from_bytes::<Vec<(u64, Special)>>(added).map_err(|why| failed(&why))?;
            list.into_iter().collect()
        }
    };
    let quality = |place, time| special.get(&place).map_or(Quality::Good, |special| Quality::of(special.basis(), time));
    let readings = (0u64..)
        .zip(readings)
        .map(|(place, reading)| {
            let PayloadReading { seq, device, origin, time, replay, channels: list, values } = reading;
            let device = devices.get(device).ok_or_else(|| failed(&"a device is missing"))?.clone();
            let list = channels.get(list).filter(|list| list.len() == values.len());
            let list = list.ok_or_else(|| failed(&"channels are missing"))?;
            let values = list.iter().cloned().zip(values).collect();
            Ok(Delivered { seq, device, origin, time, quality: quality(place, time), replay, values })
        })
        .collect::<Result<_, _>>()?;
    Ok(Delivery { gateway, epoch, readings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChannelName, Reading};
    use std::fmt::Write;

    /// One reading of each basis, as the bytes that consumers know.
    fn written(bases: &[Basis]) -> (Vec<u8>, String) {
        let identity = Identity { gateway: GatewayId::new("gw").expect("a valid name"), epoch: Epoch(1) };
        let device = DeviceId::new("d").expect("a valid name");
        let channels: Channels = [ChannelName::new("a").expect("a valid name")].into();
        let reading = Reading::new(1, Timestamp(1), channels, Box::new([Value::Integer(5)])).expect("one each");
        let mut postcard = Postcard::new(&identity);
        for (seq, basis) in (1..).zip(bases) {
            let entry =
                Entry { seq: Seq(seq), device: &device, origin: None, replay: false, basis: *basis, reading: &reading };
            postcard.add(&entry);
            postcard.undo();
            postcard.add(&entry);
        }
        let bytes = postcard.finish();
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        (bytes, hex)
    }

    #[test]
    fn qualities_stand_behind_what_earlier_versions_wrote() {
        let bases = [
            Basis::Wall,
            Basis::Resynchronised,
            Basis::Boot(BootId([0xb0; 16])),
            Basis::DeviceClock { received: Timestamp(2) },
        ];
        assert_eq!(written(&bases[..1]).1, "01026777010101000002000001010a01016401010161");
        let (bytes, hex) = written(&bases);
        assert_eq!(hex, GOLDEN);
        let delivery = decode(&bytes).expect("what was just written");
        let qualities: Vec<_> = delivery.readings.iter().map(|reading| reading.quality).collect();
        assert_eq!(qualities, bases.map(|basis| Quality::of(basis, Timestamp(1))));
        // A reader of the first version stops where it ended.
        let upto = bytes.len() - bytes.iter().rev().position(|byte| *byte == b'a').expect("the last channel");
        let first = decode(&bytes[..upto]).expect("the first version");
        assert!(first.readings.iter().all(|reading| reading.quality.is_good()));
        assert_eq!(first.readings.len(), 4);
    }

    #[test]
    fn a_receipt_that_counts_from_a_boot_stands_there_as_ever() {
        let basis = Basis::DeviceClockSince { boot: BootId([0xb0; 16]), received: Timestamp(2) };
        let (bytes, hex) = written(&[basis]);
        assert_eq!(hex, GOLDEN_SINCE);
        let delivery = decode(&bytes).expect("what was just written");
        assert_eq!(delivery.readings[0].quality, Quality::of(basis, Timestamp(1)));
    }

    const GOLDEN_SINCE: &str =
        concat!("01026777010101000002000001010a01016401010161", "010003b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b004",);
    const GOLDEN: &str = concat!(
        "01026777010401000002000001010a02000002000001010a03000002000001010a04000002000001",
        "010a010164010101610301000201b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0030204",
    );
}
