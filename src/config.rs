//! The configuration: one struct a section, its defaults in one place.

mod sections;

pub use sections::{
    Config, Deliver, Devices, Durability, Encoding, FlowControl, Gateway, HistoryWithin, Http, Mqtt, MqttVersion,
    Parity, Serial, Store, Tcp, Topics,
};
