//! What the times of a group of readings are, as a segment keeps it.

use super::Corrupt;
use super::source::Source;
use crate::model::{Basis, Batch, BootId, Timestamp};

/// A [`Basis`] as far as it is the same for a whole group: the time of receipt, where
/// one is kept, has a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Wall,
    Boot(BootId),
    DeviceClock,
    Resynchronised,
    DeviceClockSince(BootId),
}

impl Kind {
    pub fn of(basis: Basis) -> Kind {
        match basis {
            Basis::Wall => Kind::Wall,
            Basis::Boot(boot) => Kind::Boot(boot),
            Basis::Resynchronised => Kind::Resynchronised,
            Basis::DeviceClock { .. } => Kind::DeviceClock,
            Basis::DeviceClockSince { boot, .. } => Kind::DeviceClockSince(boot),
        }
    }

    /// The basis of a reading of the group; `received` is what [`receipt`] gave.
    pub fn basis(self, received: i64) -> Basis {
        let received = Timestamp(received);
        match self {
            Kind::Wall => Basis::Wall,
            Kind::Boot(boot) => Basis::Boot(boot),
            Kind::Resynchronised => Basis::Resynchronised,
            Kind::DeviceClock => Basis::DeviceClock { received },
            Kind::DeviceClockSince(boot) => Basis::DeviceClockSince { boot, received },
        }
    }

    /// Whether the group has a column of times of receipt.
    pub fn has_receipts(self) -> bool {
        matches!(self, Kind::DeviceClock | Kind::DeviceClockSince(_))
    }

    pub fn put(self, out: &mut Vec<u8>) {
        let (number, boot) = match self {
            Kind::Wall => (0, None),
            Kind::Boot(boot) => (1, Some(boot)),
            Kind::DeviceClock => (2, None),
            Kind::Resynchronised => (3, None),
            Kind::DeviceClockSince(boot) => (4, Some(boot)),
        };
        out.push(number);
        out.extend(boot.into_iter().flat_map(|boot| boot.0));
    }

    pub fn read(input: &mut impl Source) -> Result<Kind, Corrupt> {
        match input.byte()? {
            0 => Ok(Kind::Wall),
            1 => Ok(Kind::Boot(boot(input)?)),
            2 => Ok(Kind::DeviceClock),
            3 => Ok(Kind::Resynchronised),
            4 => Ok(Kind::DeviceClockSince(boot(input)?)),
            _ => Err(Corrupt("what its times mean is unknown")),
        }
    }
}

fn boot(input: &mut impl Source) -> Result<BootId, Corrupt> {
    let mut boot = [0; 16];
    boot.copy_from_slice(input.take(16)?);
    Ok(BootId(boot))
}

/// When a batch's readings were received, where that is kept.
pub(super) fn receipt(basis: Basis) -> Option<i64> {
    match basis {
        Basis::DeviceClock { received } | Basis::DeviceClockSince { received, .. } => Some(received.0),
        Basis::Wall | Basis::Boot(_) | Basis::Resynchronised => None,
    }
}

/// The smallest and largest time that the batch's readings may have.
pub(super) fn range(batch: &Batch) -> (Timestamp, Timestamp) {
    match batch.basis {
        Basis::Boot(_) | Basis::DeviceClockSince { .. } => (Timestamp(i64::MIN), Timestamp(i64::MAX)),
        Basis::DeviceClock { received } => (received, received),
        Basis::Wall | Basis::Resynchronised => {
            let times = || batch.readings.iter().map(|reading| reading.time);
            (times().min().unwrap_or_default(), times().max().unwrap_or_default())
        }
    }
}
