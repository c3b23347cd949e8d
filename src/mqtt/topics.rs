//! The topics of one gateway under one prefix.

use super::hub::Hub;
use crate::model::{DeviceId, GatewayId, Target};

/// Builds topics from validated parts.
#[derive(Debug, Clone)]
pub struct Topics {
    /// `PREFIX/GATEWAY/`
    base: String,
    /// For Azure IoT Hub: its topics, and the MIME type of readings.
    hub: Option<(Hub, &'static str)>,
}

const JSON: &str = "application/json";
/// Of a device's id, or a sub-device's, in bytes.
const LONGEST_NAME: usize = 64;

impl Topics {
    pub fn new(prefix: &str, gateway: &GatewayId) -> Topics {
        Topics { base: format!("{prefix}/{gateway}/"), hub: None }
    }

    /// The same for a device of Azure IoT Hub, with readings of this MIME type.
    pub fn in_hub(self, device: &str, readings: &'static str) -> Topics {
        Topics { hub: Some((Hub::new(device), readings)), ..self }
    }

    /// The longest topic, in bytes: that of a sub-device's readings.
    pub fn longest(&self) -> usize {
        let topic = format!("{}devices//{}/readings", self.base, "n".repeat(2 * LONGEST_NAME));
        match &self.hub {
            Some((hub, readings)) => hub.event(&topic, readings).len(),
            None => topic.len(),
        }
    }

    /// `topic`, or the IoT hub's topic in its place.
    fn of(&self, topic: String, content_type: Option<&str>) -> String {
        match &self.hub {
            Some((hub, readings)) => hub.event(&topic, content_type.unwrap_or(readings)),
            None => topic,
        }
    }

    /// Batches of readings of all devices.
    pub fn readings(&self) -> String {
        self.of(format!("{}readings", self.base), None)
    }

    /// Batches of one device's readings; a sub-device adds a level.
    pub fn device_readings(&self, device: &DeviceId) -> String {
        self.of(format!("{}devices/{device}/readings", self.base), None)
    }

    /// Presence of a device; retained. A sub-device adds a level.
    pub fn device_status(&self, device: &DeviceId) -> String {
        self.of(format!("{}devices/{device}/status", self.base), Some(JSON))
    }

    /// Whether the gateway is online; retained.
    pub fn status(&self) -> String {
        self.of(format!("{}status", self.base), Some(JSON))
    }

    /// Where `tidegate check --connect` tests permissions; no subscriber is needed.
    pub fn check(&self) -> String {
        format!("{}check", self.base)
    }

    /// Messages of the gateway to itself.
    pub fn test(&self) -> String {
        format!("{}test", self.base)
    }

    /// Gaps and other events of the gateway.
    pub fn events(&self) -> String {
        self.of(format!("{}events", self.base), Some(JSON))
    }

    /// Results of commands to the device, or to the gateway.
    pub fn result(&self, device: Option<&DeviceId>) -> String {
        let topic = match device {
            Some(device) => format!("{}devices/{device}/result", self.base),
            None => format!("{}result", self.base),
        };
        self.of(topic, Some(JSON))
    }

    /// Filters for all topics of commands.
    pub fn command_filters(&self) -> Vec<String> {
        if let Some((hub, _)) = &self.hub {
            return vec![hub.filter()];
        }
        ["devices/+/command", "devices/+/+/command", "command"].map(|levels| format!("{}{levels}", self.base)).into()
    }

    /// The target of a command on `topic`; `None` if the topic carries no commands.
    pub fn commanded(&self, topic: &str) -> Option<Target> {
        if let Some((hub, _)) = &self.hub {
            return hub.commanded(topic);
        }
        match topic.strip_prefix(&self.base)?.strip_suffix("command")? {
            "" => Some(Target::Gateway),
            levels => {
                let device = levels.strip_prefix("devices/")?.strip_suffix('/')?;
                DeviceId::new(device).ok().map(Target::Device)
            }
        }
    }

    /// Filters for all topics of readings, events and results; of all gateways if `gateway` is
    /// `None`.
    pub fn filters(prefix: &str, gateway: Option<&GatewayId>) -> Vec<String> {
        let gateway = gateway.map_or("+", GatewayId::as_str);
        let base = format!("{prefix}/{gateway}");
        vec![
            format!("{base}/readings"),
            format!("{base}/devices/+/readings"),
            format!("{base}/devices/+/+/readings"),
            format!("{base}/events"),
            format!("{base}/result"),
            format!("{base}/devices/+/result"),
            format!("{base}/devices/+/+/result"),
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
        assert_eq!(topics.result(Some(&device)), "acme/tide/gw-01/devices/hub/door/result");
        assert_eq!(topics.result(None), "acme/tide/gw-01/result");
        let topic = "acme/tide/gw-01/devices/hub/door/command";
        assert_eq!(topics.commanded(topic), Some(Target::Device(device)));
        assert_eq!(topics.commanded("acme/tide/gw-01/command"), Some(Target::Gateway));
        for none in ["acme/tide/gw-01/devices/command", "acme/tide/gw-01/devices/a/b/c/command", "gw-01/command"] {
            assert_eq!(topics.commanded(none), None, "{none}");
        }
        assert!(Topics::filters("p", None).contains(&"p/+/devices/+/+/readings".to_owned()));
        assert!(Topics::filters("p", Some(&gateway)).contains(&"p/gw-01/events".to_owned()));
    }
}
