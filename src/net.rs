//! What every listener needs: binding its address, admission, slots for each address, the memory
//! of its connections, and TLS.

mod address_slots;
mod admission;
mod bind;
mod close;
mod memory;
pub mod tls;

pub use address_slots::{AddressSlot, AddressSlots};
pub use admission::{Admission, AdmissionSlot, MAX_LINGERING, headroom, max_open};
pub use bind::Listening;
pub use close::hung_up;
pub use memory::{ALLOWANCE, Lease, Pool};
