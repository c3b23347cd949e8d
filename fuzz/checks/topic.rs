//! Topics that a broker delivers commands by, its own or those of Azure IoT Hub: whom one names
//! is whom that topic is for.
//!
//! Input: a topic's last levels.

use tidegate::model::{DeviceId, GatewayId, Target};
use tidegate::mqtt::{Topics, percent_encoded};

pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let topics = Topics::new("tide", &GatewayId::new("gw").expect("a valid name"));
    let topic = format!("tide/gw/{text}");
    match topics.commanded(&topic) {
        Some(Target::Device(device)) => assert_eq!(text, format!("devices/{device}/command")),
        Some(Target::Gateway) => assert_eq!(text, "command"),
        None => assert_ne!(text, "command"),
    }
    assert!(topics.commanded(text).is_none() || text.starts_with("tide/gw/"));

    let hub = topics.in_hub("gw", "application/json");
    let bound = "devices/gw/messages/devicebound/";
    if let Some(Target::Device(device)) = hub.commanded(&format!("{bound}{text}")) {
        let again = format!("{bound}device={}", percent_encoded(device.as_str()));
        assert_eq!(hub.commanded(&again), Some(Target::Device(device)));
    }
    // Whatever a name has in it stands in a property.
    let named = hub.commanded(&format!("{bound}?device={}&x", percent_encoded(text)));
    assert_eq!(named, DeviceId::new(text).ok().map(Target::Device));
    assert!(hub.commanded(text).is_none() || text.starts_with(bound));
}
