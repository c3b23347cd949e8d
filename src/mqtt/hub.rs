//! Topics of Azure IoT Hub, which has fixed ones: a device publishes to one topic, with
//! properties after the last slash, and receives by one. The topic elsewhere is the property
//! `topic`.

use super::percent::{percent_decoded, percent_encoded};
use crate::model::{DeviceId, Target};

/// The topics of one device of an IoT hub.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    /// `devices/DEVICE/messages/`
    base: String,
}

impl Hub {
    pub fn new(device: &str) -> Hub {
        Hub { base: format!("devices/{device}/messages/") }
    }

    /// The topic for a message that is published to `topic` elsewhere, with its MIME type.
    pub fn event(&self, topic: &str, content_type: &str) -> String {
        let encoding = if content_type == "application/json" { "&$.ce=utf-8" } else { "" };
        let (kind, topic) = (percent_encoded(content_type), percent_encoded(topic));
        format!("{}events/$.ct={kind}{encoding}&topic={topic}", self.base)
    }

    /// The filter for all messages to the device.
    pub fn filter(&self) -> String {
        format!("{}devicebound/#", self.base)
    }

    /// The target of a command on `topic`: the device that its property `device` names, or the
    /// gateway. `None` if the topic carries no commands.
    pub fn commanded(&self, topic: &str) -> Option<Target> {
        let properties = topic.strip_prefix(&self.base)?.strip_prefix("devicebound/")?;
        let properties = properties.strip_prefix('?').unwrap_or(properties);
        let device = properties.split('&').find_map(|property| property.strip_prefix("device="));
        match device.map(percent_decoded) {
            None => Some(Target::Gateway),
            Some((name, true)) => DeviceId::new(&String::from_utf8(name).ok()?).ok().map(Target::Device),
            Some((_, false)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_a_hub_have_properties_in_their_last_level() {
        let hub = Hub::new("gw-01");
        assert_eq!(
            hub.event("tidegate/gw-01/readings", "application/json"),
            "devices/gw-01/messages/events/$.ct=application%2Fjson&$.ce=utf-8&topic=tidegate%2Fgw-01%2Freadings"
        );
        assert!(hub.event("t", "application/octet-stream").ends_with("/$.ct=application%2Foctet-stream&topic=t"));
        let bound = "devices/gw-01/messages/devicebound/";
        let device = DeviceId::new("hub/door").expect("a valid name");
        let cases = [
            ("", Some(Target::Gateway)),
            ("?%24.mid=7&device=hub%2Fdoor", Some(Target::Device(device.clone()))),
            ("%24.to=%2Fdevices%2Fgw-01&device=hub%2fdoor&x", Some(Target::Device(device))),
            ("device=", None),
            ("device=%4", None),
            ("device=%ff", None),
        ];
        for (properties, target) in cases {
            assert_eq!(hub.commanded(&format!("{bound}{properties}")), target, "{properties}");
        }
        assert_eq!(hub.commanded("devices/gw-02/messages/devicebound/"), None);
    }
}
