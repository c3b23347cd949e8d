//! Upgrades a request to a device's WebSocket (RFC 6455, section 4.2).

use super::upgraded::UpgradedStream;
use super::{Client, Shared, refuse};
use crate::link::websocket::UpgradeError;
use crate::net::AdmissionError;
use crate::wire::websocket::accept;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io;

/// The only version of the WebSocket protocol in use.
const VERSION: &str = "13";
/// Seconds until a retry. Devices have a backoff of their own.
const RETRY_AFTER: &str = "5";

/// Answers a WebSocket handshake, and hands the upgraded connection to the link.
pub(super) async fn device(
    State(shared): State<Shared>,
    ConnectInfo(client): ConnectInfo<Client>,
    mut request: Request,
) -> Response {
    if let Err(denied) = shared.access.check_origin(request.headers()) {
        return shared.deny(denied);
    }
    let accept = match handshake(request.version(), request.headers()) {
        Ok(accept) => accept,
        Err(why) => {
            let upgrade = [(header::SEC_WEBSOCKET_VERSION, VERSION), (header::UPGRADE, "websocket")];
            return (upgrade, refuse(StatusCode::UPGRADE_REQUIRED, why)).into_response();
        }
    };
    let later = |status, why: &str| ([(header::RETRY_AFTER, RETRY_AFTER)], refuse(status, why)).into_response();
    let Some(sender) = shared.parts.get().and_then(|parts| parts.devices.as_ref()) else {
        let why = "the gateway's log is not open yet; try again later";
        return later(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    let permit = match sender.admit(client.from, client.request_age()).await {
        Ok(permit) => permit,
        Err(why) => return later(refusal_status(why), &why.to_string()),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let leaves = client.clone();
    let upgrade = async move {
        let upgraded = upgrade.await.map_err(io::Error::other)?;
        // The upgraded connection occupies no HTTP slot.
        leaves.upgraded();
        Ok(Box::new(UpgradedStream::new(upgraded)) as Box<_>)
    };
    permit.send(client.from, client.certificate(), Box::pin(upgrade));
    let switch = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, switch).into_response()
}

/// The status tells a device whether the fault is its own.
fn refusal_status(why: UpgradeError) -> StatusCode {
    match why {
        UpgradeError::NotAdmitted(AdmissionError::LockedOut | AdmissionError::AddressLimit) => {
            StatusCode::TOO_MANY_REQUESTS
        }
        UpgradeError::NotAdmitted(
            AdmissionError::ConnectionLimit | AdmissionError::OutOfMemory | AdmissionError::NoCertificate,
        )
        | UpgradeError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The `Sec-WebSocket-Accept` of the answer, or what the request lacks.
fn handshake(version: Version, headers: &HeaderMap) -> Result<String, &'static str> {
    if version != Version::HTTP_11 {
        return Err("a WebSocket begins with HTTP/1.1");
    }
    if !names(headers, header::CONNECTION, "upgrade") || !names(headers, header::UPGRADE, "websocket") {
        return Err("devices connect here by WebSocket: send Connection: Upgrade and Upgrade: websocket");
    }
    if !names(headers, header::SEC_WEBSOCKET_VERSION, VERSION) {
        return Err("send Sec-WebSocket-Version: 13");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes()).unwrap_or_default();
    if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) {
        Ok(accept(key))
    } else {
        Err("send a Sec-WebSocket-Key of 16 bytes in base64")
    }
}

/// Whether one of the comma-separated values of a header is `wanted`.
fn names(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn request(changed: &[(HeaderName, &str)]) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        let usual = [
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in usual.iter().chain(changed) {
            headers.insert(name, HeaderValue::from_str(value).expect("a header's value"));
        }
        handshake(Version::HTTP_11, &headers)
    }

    #[test]
    fn the_standards_own_key_gives_its_answer() {
        assert_eq!(request(&[]), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into()));
    }

    #[test]
    fn what_asks_for_no_websocket_is_told_what_is_missing() {
        for (header, value, word) in [
            (header::CONNECTION, "keep-alive", "Connection: Upgrade"),
            (header::UPGRADE, "h2c", "Upgrade: websocket"),
            (header::SEC_WEBSOCKET_VERSION, "8", "Version: 13"),
            (header::SEC_WEBSOCKET_KEY, "c2hvcnQ=", "16 bytes"),
            (header::SEC_WEBSOCKET_KEY, "?", "16 bytes"),
        ] {
            let why = request(&[(header.clone(), value)]).expect_err(value);
            assert!(why.contains(word), "{header}: {why}");
        }
        assert!(handshake(Version::HTTP_10, &HeaderMap::new()).is_err());
    }
}
