//! Who a device is, and whether it may come in.

mod certificate;

pub use certificate::certifies;
