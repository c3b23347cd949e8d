//! What the brokers of some clouds want and take, as their documentation says; sources are in
//! `docs/brokers.md`.

use super::{Broker, Mqtt, MqttVersion};
use crate::model::GatewayId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A cloud service that a sink sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    AwsIot,
    AzureIotHub,
    AzureEventGrid,
}

const KIB: u64 = 1024;
/// In the user name of Azure IoT Hub.
const API_VERSION: &str = "2021-04-12";
/// The port on which AWS IoT Core wants to be told the protocol by ALPN (RFC 7301).
const ALPN_PORT: u16 = 443;

impl Profile {
    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Profile::AwsIot => "aws-iot",
            Profile::AzureIotHub => "azure-iot-hub",
            Profile::AzureEventGrid => "azure-event-grid",
        }
    }

    /// The version that is spoken if none is configured.
    fn version(self) -> MqttVersion {
        match self {
            Profile::AzureIotHub => MqttVersion::V3_1_1,
            Profile::AwsIot | Profile::AzureEventGrid => MqttVersion::V5,
        }
    }

    /// The largest payload, in bytes.
    pub fn max_payload(self) -> u64 {
        match self {
            Profile::AwsIot => 128 * KIB,
            Profile::AzureIotHub => 256 * KIB,
            Profile::AzureEventGrid => 512 * KIB,
        }
    }

    /// The most levels that a topic has. IoT Hub has topics of its own.
    pub fn max_levels(self) -> Option<usize> {
        match self {
            Profile::AwsIot => Some(8),
            Profile::AzureIotHub => None,
            Profile::AzureEventGrid => Some(15),
        }
    }

    /// The longest topic, in bytes.
    pub fn max_topic(self) -> Option<usize> {
        match self {
            Profile::AwsIot | Profile::AzureEventGrid => Some(256),
            Profile::AzureIotHub => None,
        }
    }

    /// The shortest and the longest keep-alive.
    pub fn keep_alive(self) -> (Duration, Duration) {
        let (least, most) = match self {
            Profile::AwsIot => (30, 1200),
            Profile::AzureIotHub => (5, 1177),
            Profile::AzureEventGrid => (5, 1160),
        };
        (Duration::from_secs(least), Duration::from_secs(most))
    }
}

impl Mqtt {
    /// The version to speak; `None` if it is found out.
    pub fn version(&self) -> Option<MqttVersion> {
        self.version.or(self.profile.map(Profile::version))
    }

    /// Whether statuses are to be retained.
    pub fn retains(&self) -> bool {
        self.retain.unwrap_or(self.profile.is_none())
    }

    /// The client id. Clouds want it to be the name of the device that they know.
    pub fn client_id(&self, gateway: &GatewayId) -> String {
        self.client_id.clone().unwrap_or_else(|| match self.profile {
            Some(_) => gateway.to_string(),
            None => format!("tidegate-{gateway}-{}", self.name),
        })
    }

    /// The user name for this broker, if there is one.
    pub fn username(&self, broker: &Broker, client_id: &str) -> Option<String> {
        self.username.clone().or_else(|| match self.profile? {
            Profile::AwsIot => None,
            Profile::AzureIotHub => Some(format!("{}/{client_id}/?api-version={API_VERSION}", broker.host)),
            Profile::AzureEventGrid => Some(client_id.to_owned()),
        })
    }

    /// What the protocol is called in the TLS handshake, if this broker wants that.
    pub fn alpn(&self, broker: &Broker) -> Option<&'static [u8]> {
        (self.profile == Some(Profile::AwsIot) && broker.port == ALPN_PORT).then_some(b"x-amzn-mqtt-ca")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_fills_in_what_is_not_configured() {
        let gateway = GatewayId::new("gw-01").expect("a valid name");
        let broker = |url: &str| url.parse::<Broker>().expect("a valid address");
        let hub = broker("mqtts://plant.azure-devices.net");
        let none = Mqtt::default();
        assert_eq!((none.version(), none.retains()), (None, true));
        assert_eq!(none.client_id(&gateway), "tidegate-gw-01-mqtt");
        assert_eq!((none.username(&hub, "x"), none.alpn(&broker("mqtts://h:443"))), (None, None));

        let with = |profile| Mqtt { profile: Some(profile), ..Mqtt::default() };
        let azure = with(Profile::AzureIotHub);
        assert_eq!((azure.version(), azure.retains()), (Some(MqttVersion::V3_1_1), false));
        assert_eq!(azure.client_id(&gateway), "gw-01");
        let username = "plant.azure-devices.net/gw-01/?api-version=2021-04-12";
        assert_eq!(azure.username(&hub, "gw-01").as_deref(), Some(username));
        assert_eq!(with(Profile::AzureEventGrid).username(&hub, "gw-01").as_deref(), Some("gw-01"));

        let aws = with(Profile::AwsIot);
        assert_eq!(aws.alpn(&broker("mqtts://h:443")), Some(&b"x-amzn-mqtt-ca"[..]));
        assert_eq!((aws.alpn(&broker("mqtts://h")), aws.username(&hub, "gw-01")), (None, None));
        let own = Mqtt { version: Some(MqttVersion::V3_1_1), retain: Some(true), ..aws };
        assert_eq!((own.version(), own.retains()), (Some(MqttVersion::V3_1_1), true));
    }
}
