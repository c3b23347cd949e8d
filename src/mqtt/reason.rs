//! Messages for the codes with which a broker refuses or ends something: return codes of
//! MQTT 3.1.1 (3.2.2.3) and reason codes of MQTT 5 (2.4).

use crate::backoff::Failure;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use v5::{ConnectReturnCode as Connect, DisconnectReasonCode as End, PubAckReason, SubscribeReasonCode as Subscribe};

const CREDENTIALS: &str = "check username, password_file and certificates";
const CLIENT_ID: &str = "set client_id";
const OTHER_CLIENT: &str =
    "another client connected with the same client id; give each gateway its own [gateway] id or client_id";

/// `what` with the broker's reason string, if it has one.
fn failure(what: String, own_words: Option<&str>, permanent: bool) -> Failure {
    let what = match own_words.filter(|words| !words.is_empty()) {
        Some(words) => format!("{what}; the broker says \"{}\"", shown(words)),
        None => what,
    };
    Failure { what, permanent }
}

pub(super) fn connect_4(code: v4::ConnectReturnCode) -> Failure {
    use v4::ConnectReturnCode as Code;
    let code = match code {
        Code::RefusedProtocolVersion => {
            return failure("the broker does not speak MQTT 3.1.1; set version = \"5\"".to_owned(), None, true);
        }
        Code::BadUserNamePassword => Connect::BadUserNamePassword,
        Code::NotAuthorized => Connect::NotAuthorized,
        Code::BadClientId => Connect::BadClientId,
        Code::Success | Code::ServiceUnavailable => Connect::ServiceUnavailable,
    };
    connect_5(code, None, None)
}

/// The server that a broker refers to, after a colon.
fn named(server: Option<&str>) -> String {
    server.map(|server| format!(": {}", shown(server))).unwrap_or_default()
}

pub(super) fn connect_5(code: Connect, own_words: Option<&str>, elsewhere: Option<&str>) -> Failure {
    let elsewhere = named(elsewhere);
    let (what, permanent) = match code {
        Connect::BadUserNamePassword => {
            (format!("the broker refused the credentials: user or password; {CREDENTIALS}"), true)
        }
        Connect::NotAuthorized => (format!("the broker refused the credentials: not authorised; {CREDENTIALS}"), true),
        Connect::Banned => ("the broker has banned this client".to_owned(), true),
        Connect::BadAuthenticationMethod => ("the broker wants another way of authentication".to_owned(), true),
        Connect::BadClientId | Connect::ClientIdentifierNotValid => {
            (format!("the broker refused the client id; {CLIENT_ID}"), true)
        }
        Connect::RefusedProtocolVersion | Connect::UnsupportedProtocolVersion => {
            ("the broker does not speak MQTT 5; set version = \"3.1.1\"".to_owned(), true)
        }
        Connect::TopicNameInvalid => ("the broker refused the topic of the Last Will; check prefix".to_owned(), true),
        Connect::RetainNotSupported => ("the broker does not support retained messages".to_owned(), true),
        Connect::QoSNotSupported => ("the broker does not support QoS 1".to_owned(), true),
        Connect::PacketTooLarge => ("the broker refused the CONNECT packet as too large".to_owned(), true),
        Connect::UseAnotherServer => {
            (format!("the broker sends its clients to another server for now{elsewhere}"), true)
        }
        Connect::ServerMoved => (format!("the broker has moved{elsewhere}; change `brokers`"), true),
        Connect::ServerBusy => ("the broker is busy".to_owned(), true),
        Connect::ServiceUnavailable | Connect::ServerUnavailable => {
            ("the broker says that it is not available".to_owned(), false)
        }
        Connect::QuotaExceeded => ("a quota of the broker is exceeded".to_owned(), true),
        Connect::ConnectionRateExceeded => ("the broker allows fewer connections in a period".to_owned(), true),
        Connect::MalformedPacket | Connect::ProtocolError | Connect::PayloadFormatInvalid => {
            (format!("the broker refused the CONNECT packet as invalid ({code:?})"), false)
        }
        Connect::Success | Connect::UnspecifiedError | Connect::ImplementationSpecificError => {
            ("the broker refused the connection without a reason".to_owned(), false)
        }
    };
    failure(what, own_words, permanent)
}

/// Permanent reasons concern this one publish only.
pub(super) fn publish(code: PubAckReason, own_words: Option<&str>) -> Result<(), Failure> {
    let (what, permanent) = match code {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => return Ok(()),
        PubAckReason::NotAuthorized => ("this client may not publish to that topic", true),
        PubAckReason::TopicNameInvalid => ("the topic is not allowed", true),
        PubAckReason::QuotaExceeded => ("a quota is exceeded", false),
        PubAckReason::PayloadFormatInvalid => ("the payload does not match its declared format", true),
        PubAckReason::PacketIdentifierInUse => ("the packet id is in use", false),
        PubAckReason::UnspecifiedError | PubAckReason::ImplementationSpecificError => ("it gives no reason", false),
    };
    Err(failure(what.to_owned(), own_words, permanent))
}

pub(super) fn subscribe(code: Subscribe, own_words: Option<&str>) -> Failure {
    let what = match code {
        Subscribe::NotAuthorized => "this client may not subscribe to it",
        Subscribe::TopicFilterInvalid => "the filter is not allowed",
        Subscribe::QuotaExceeded => "a quota is exceeded",
        Subscribe::SharedSubscriptionsNotSupported => "it does not support shared subscriptions",
        Subscribe::SubscriptionIdNotSupported => "it does not support subscription ids",
        Subscribe::WildcardSubscriptionsNotSupported => "it does not support wildcards",
        Subscribe::PkidInUse => "the packet id is in use",
        Subscribe::Success(_) | Subscribe::Failure | Subscribe::Unspecified | Subscribe::ImplementationSpecific => {
            "it gives no reason"
        }
    };
    failure(format!("the broker refused the subscription: {what}"), own_words, true)
}

pub(super) fn disconnect(code: End, told: Option<&v5::DisconnectProperties>) -> Failure {
    let elsewhere = named(told.and_then(|told| told.server_reference.as_deref()));
    let (what, permanent) = match code {
        End::SessionTakenOver => (OTHER_CLIENT.to_owned(), true),
        End::NotAuthorized => (format!("this client is not authorised; {CREDENTIALS}"), true),
        End::ServerMoved => (format!("the broker has moved{elsewhere}; change `brokers`"), true),
        End::UseAnotherServer => (format!("its clients are to use another server for now{elsewhere}"), true),
        End::ServerBusy => ("it is busy".to_owned(), true),
        End::ServerShuttingDown => ("it shuts down".to_owned(), false),
        End::KeepAliveTimeout => {
            ("it received nothing in time; the link may be too slow for keep_alive".to_owned(), false)
        }
        End::PacketTooLarge => ("a packet was too large; lower max_packet".to_owned(), false),
        End::MessageRateTooHigh | End::ConnectionRateExceeded => {
            ("it allows fewer messages in a period".to_owned(), true)
        }
        End::QuotaExceeded => ("a quota is exceeded".to_owned(), true),
        End::AdministrativeAction => ("an administrator ended it".to_owned(), true),
        End::MaximumConnectTime => ("it was connected for as long as the broker allows".to_owned(), false),
        End::RetainNotSupported => ("it does not support retained messages".to_owned(), true),
        End::QoSNotSupported => ("it does not support QoS 1".to_owned(), true),
        End::TopicNameInvalid => ("a topic is not allowed".to_owned(), true),
        End::ReceiveMaximumExceeded => ("more publishes were under way than it allows".to_owned(), false),
        End::NormalDisconnection | End::DisconnectWithWillMessage | End::UnspecifiedError => {
            ("it gives no reason".to_owned(), false)
        }
        other => (format!("{other:?}"), false),
    };
    let own_words = told.and_then(|told| told.reason_string.as_deref());
    failure(format!("the broker ended the connection: {what}"), own_words, permanent)
}

/// Text of the far end, escaped and shortened.
pub(super) fn shown(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The first line of `input`, escaped.
pub(super) fn quoted(input: &[u8]) -> String {
    const SHOWN: usize = 60;
    let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let line = line.get(..SHOWN).unwrap_or(line);
    if !line.is_empty() && line.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return format!("\"{}\"", line.escape_ascii());
    }
    let shown: Vec<String> = input.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("the bytes {}", shown.join(" "))
}
