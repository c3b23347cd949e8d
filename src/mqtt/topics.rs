//! The topics of one gateway under one prefix.

use crate::model::{DeviceId, GatewayId};

/// Builds topics; everything that goes into them was validated before.
#[derive(Debug, Clone)]
pub struct Topics {
    /// `PREFIX/GATEWAY/`
    base: String,
}

impl Topics {
    pub fn new(prefix: &str, gateway: &GatewayId) -> Topics {
        Topics { base: format!("{prefix}/{gateway}/") }
    }

    /// Batches of readings of all devices.
    pub fn readings(&self) -> String {
        format!("{}readings", self.base)
    }

    /// Batches of one device's readings; a sub-device adds a level.
    pub fn device_readings(&self, device: &DeviceId) -> String {
        format!("{}devices/{device}/readings", self.base)
    }

    /// Whether a device is there; retained. A sub-device adds a level.
    pub fn device_status(&self, device: &DeviceId) -> String {
        format!("{}devices/{device}/status", self.base)
    }

    /// Whether the gateway is online; retained.
    pub fn status(&self) -> String {
        format!("{}status", self.base)
    }

    /// Gaps and other events of the gateway itself.
    pub fn events(&self) -> String {
        format!("{}events", self.base)
    }

    /// Filters that match everything readings and events are published to;
    /// all gateways if `gateway` is `None`.
    pub fn filters(prefix: &str, gateway: Option<&GatewayId>) -> Vec<String> {
        let gateway = gateway.map_or("+", GatewayId::as_str);
        let base = format!("{prefix}/{gateway}");
        vec![
            format!("{base}/readings"),
            format!("{base}/devices/+/readings"),
            format!("{base}/devices/+/+/readings"),
            format!("{base}/events"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_follow_the_contract() {
        let gateway = GatewayId::new("gw-01").expect("a valid name");
        let topics = Topics::new("acme/tide", &gateway);
        let device = DeviceId::new("hub/door").expect("a valid name");
        assert_eq!(topics.readings(), "acme/tide/gw-01/readings");
        assert_eq!(topics.device_readings(&device), "acme/tide/gw-01/devices/hub/door/readings");
        assert_eq!(topics.device_status(&device), "acme/tide/gw-01/devices/hub/door/status");
        assert_eq!(topics.status(), "acme/tide/gw-01/status");
        assert_eq!(topics.events(), "acme/tide/gw-01/events");
        assert!(Topics::filters("p", None).contains(&"p/+/devices/+/+/readings".to_owned()));
        assert!(Topics::filters("p", Some(&gateway)).contains(&"p/gw-01/events".to_owned()));
    }
}
