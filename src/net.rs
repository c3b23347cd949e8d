//! What every listener needs: binding its address, admission, slots for each address, the memory
//! of its connections, and TLS.

mod accept;
mod address_slots;
mod admission;
mod bind;
mod close;
mod listener;
mod memory;
pub mod tls;

pub use accept::{Acceptor, Source, serve};
pub use address_slots::{AddressSlot, AddressSlots};
pub use admission::{Admission, AdmissionSlot, MAX_LINGERING, headroom, max_open};
pub use bind::Listening;
pub use close::{hung_up, lingering_close, poll_drain};
pub use listener::{AdmissionError, ListenerAdmission, LockedOut};
pub use memory::{ALLOWANCE, Lease, Pool};
