//! What follows from an `[[mqtt]]` section and its profile.

use super::{Bind, Broker, InvalidBroker, Mqtt, MqttVersion, Profile, Way};
use crate::model::GatewayId;

/// In the user name of Azure IoT Hub.
const API_VERSION: &str = "2021-04-12";
/// The port on which AWS IoT Core wants to be told the protocol by ALPN (RFC 7301).
const ALPN_PORT: u16 = 443;

impl Profile {
    /// The version that is spoken if none is configured.
    fn version(self) -> MqttVersion {
        match self {
            Profile::AzureIotHub => MqttVersion::V3_1_1,
            Profile::AwsIot | Profile::AzureEventGrid => MqttVersion::V5,
        }
    }
}

impl Mqtt {
    /// The ways to all brokers in the order in which they are tried: each way out with all
    /// brokers, then the next.
    ///
    /// # Errors
    /// If an address is malformed, which a loaded configuration's are not.
    pub fn ways(&self) -> Result<Vec<Way>, InvalidBroker> {
        let brokers = self.brokers.iter().map(|broker| broker.parse()).collect::<Result<Vec<Broker>, _>>()?;
        let mut binds =
            self.bind.iter().map(|bind| bind.parse().map(Some)).collect::<Result<Vec<Option<Bind>>, _>>()?;
        if binds.is_empty() {
            binds.push(None);
        }
        let ways =
            |bind: Option<Bind>| brokers.iter().map(move |broker| Way { broker: broker.clone(), bind: bind.clone() });
        Ok(binds.into_iter().flat_map(ways).collect())
    }

    /// The version to speak; `None` if it is found out.
    pub fn version(&self) -> Option<MqttVersion> {
        self.version.or(self.profile.map(Profile::version))
    }

    /// Memory for what it sends: in the queue, in flight and in the client's buffer, in bytes.
    pub(super) fn memory(&self) -> u64 {
        let flight = self.max_batch.as_u64().saturating_mul(u64::from(self.window)).saturating_mul(3);
        flight.saturating_add(self.max_packet.as_u64().saturating_mul(4))
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
