//! What rumqttc's errors mean, in an operator's words.

use crate::files;
use crate::pem;
use rumqttc::v5::{ConnectionError as V5, StateError as State5};
use rumqttc::{ConnectionError as V4, StateError as State4};
use std::error::Error;
use std::io;

const CLOSED: &str = "the broker closed the connection";
const FOREIGN: &str = "what answers there does not speak MQTT";
const NO_TIME: &str = "no answer came in time";
const NO_PING: &str = "the broker answered no ping";

/// Why a connection of MQTT 3.1.1 ended.
pub(super) fn of_v4(why: &V4) -> String {
    match why {
        V4::MqttState(State4::ConnectionAborted) => CLOSED.to_owned(),
        V4::MqttState(State4::Deserialization(_) | State4::WrongPacket | State4::InvalidState) | V4::NotConnAck(_) => {
            FOREIGN.to_owned()
        }
        V4::MqttState(State4::AwaitPingResp) => NO_PING.to_owned(),
        V4::NetworkTimeout | V4::FlushTimeout => NO_TIME.to_owned(),
        _ => below(why).unwrap_or_else(|| why.to_string()),
    }
}

/// Why a connection of MQTT 5 ended.
pub(super) fn of_v5(why: &V5) -> String {
    match why {
        V5::MqttState(State5::ConnectionAborted) => CLOSED.to_owned(),
        V5::MqttState(State5::Deserialization(_) | State5::WrongPacket | State5::InvalidState) | V5::NotConnAck(_) => {
            FOREIGN.to_owned()
        }
        V5::MqttState(State5::AwaitPingResp) => NO_PING.to_owned(),
        V5::MqttState(State5::ServerDisconnect { reason_code, reason_string }) => {
            let said = reason_string.as_deref().map(|said| format!(": {said}")).unwrap_or_default();
            format!("the broker ended the connection ({reason_code:?}){said}")
        }
        V5::Timeout(_) => NO_TIME.to_owned(),
        _ => below(why).unwrap_or_else(|| why.to_string()),
    }
}

/// What to try where the other side of a connection without TLS goes or speaks of something
/// else before it has accepted it.
pub(super) fn with_hint(what: &str, is_plain: bool) -> String {
    match is_plain && (what == CLOSED || what == FOREIGN) {
        true => format!("{what}; if that port is for TLS, write mqtts:// in `brokers`"),
        false => what.to_owned(),
    }
}

/// What the operating system or TLS said, if it was one of them.
fn below(why: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(why);
    while let Some(why) = cause {
        if let Some(why) = why.downcast_ref::<rustls::Error>() {
            return Some(of_tls(why));
        }
        if let Some(why) = why.downcast_ref::<io::Error>() {
            let tls = why.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>());
            return Some(match (tls, why.kind()) {
                (Some(why), _) => of_tls(why),
                (None, io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted) => CLOSED.to_owned(),
                (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => CLOSED.to_owned(),
                _ => files::plain(why),
            });
        }
        cause = why.source();
    }
    None
}

fn of_tls(why: &rustls::Error) -> String {
    match why {
        rustls::Error::InvalidMessage(_) => {
            "what answers there does not speak TLS; if the broker does not, write mqtt:// in `brokers`".to_owned()
        }
        _ => format!("TLS failed: {}", pem::plain(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_network_and_tls_say_is_said_in_plain_words() {
        let refused = V4::Io(io::Error::from_raw_os_error(111));
        assert_eq!(of_v4(&refused), "nothing listens there");
        let tls = io::Error::other(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
        assert!(of_v5(&V5::Io(tls)).contains("write mqtt://"));
        let closed = V4::MqttState(State4::Io(io::ErrorKind::ConnectionReset.into()));
        assert_eq!(of_v4(&closed), CLOSED);
        assert!(with_hint(&of_v4(&closed), true).contains("write mqtts://"));
        assert_eq!(with_hint(CLOSED, false), CLOSED);
    }
}
