//! Why a broker refused or ended a connection, as far as the next attempt can react to it;
//! [`reason`](super::reason) has the messages.

use super::reason;
use crate::backoff::Failure;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use v5::{ConnectReturnCode as Connect, DisconnectReasonCode as End};

/// Why a broker refused or ended a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cause {
    /// It does not speak this version: it says so, or answers in another version's format.
    Version,
    /// It closed the connection without an answer to CONNECT, or its CONNACK is malformed.
    NoAnswer,
    /// It closed an accepted connection without a DISCONNECT.
    HungUp,
    /// It does not support retained messages (0x9A).
    Retain,
    /// It refuses the Last Will's topic (0x90).
    WillTopic,
    /// It is overloaded, or a quota is exceeded (0x89, 0x96, 0x97, 0x9F).
    Busy,
    /// Clients are to use another server, temporarily (0x9C) or permanently (0x9D).
    Elsewhere {
        /// As the broker names them (MQTT 5, 4.11).
        servers: String,
        for_good: bool,
    },
    /// Any other cause.
    #[default]
    Other,
}

/// A connection that was not established.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct Refusal {
    pub failure: Failure,
    pub cause: Cause,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal { failure, cause: Cause::Other }
    }
}

/// The refusal in a CONNACK of MQTT 3.1.1 (3.2) that answers a CONNECT of MQTT 5; `None` if it
/// is no such packet. It has two bytes; MQTT 5's continues with the length of its properties.
pub(super) fn older_answer(packet: &[u8]) -> Option<(Failure, Cause)> {
    let [0x20, 2, _, code] = *packet else { return None };
    // A reason code of MQTT 5 means that only the properties are left out.
    Some(if matches!(code, 0..=5 | 0x84) {
        (reason::connect_5(Connect::UnsupportedProtocolVersion, None, None), Cause::Version)
    } else {
        let what = format!("the broker refused the connection with the code {code:#04x}");
        (Failure::transient(what), Cause::Other)
    })
}

pub(super) fn connect_4(code: v4::ConnectReturnCode) -> Cause {
    match code {
        v4::ConnectReturnCode::RefusedProtocolVersion => Cause::Version,
        _ => Cause::Other,
    }
}

pub(super) fn connect_5(code: Connect, servers: Option<&str>) -> Cause {
    match code {
        Connect::RefusedProtocolVersion | Connect::UnsupportedProtocolVersion => Cause::Version,
        Connect::RetainNotSupported => Cause::Retain,
        Connect::TopicNameInvalid => Cause::WillTopic,
        Connect::ServerBusy | Connect::QuotaExceeded | Connect::ConnectionRateExceeded => Cause::Busy,
        Connect::UseAnotherServer => elsewhere(servers, false),
        Connect::ServerMoved => elsewhere(servers, true),
        _ => Cause::Other,
    }
}

pub(super) fn disconnect(code: End, told: Option<&v5::DisconnectProperties>) -> Cause {
    let servers = told.and_then(|told| told.server_reference.as_deref());
    match code {
        End::RetainNotSupported => Cause::Retain,
        End::ServerBusy | End::QuotaExceeded | End::ConnectionRateExceeded | End::MessageRateTooHigh => Cause::Busy,
        End::UseAnotherServer => elsewhere(servers, false),
        End::ServerMoved => elsewhere(servers, true),
        _ => Cause::Other,
    }
}

fn elsewhere(servers: Option<&str>, for_good: bool) -> Cause {
    servers.map_or(Cause::Other, |servers| Cause::Elsewhere { servers: servers.to_owned(), for_good })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_two_bytes_is_one_of_an_older_version_unless_its_code_is_not() {
        for code in [0, 1, 2, 5, 0x84] {
            let cause = older_answer(&[0x20, 2, 0, code]).map(|(_, cause)| cause);
            assert_eq!(cause, Some(Cause::Version), "{code}");
        }
        assert_eq!(older_answer(&[0x20, 2, 0, 0x87]).map(|(_, cause)| cause), Some(Cause::Other));
        assert_eq!(older_answer(&[0x20, 3, 0, 0, 0]), None);
    }
}
