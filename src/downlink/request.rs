//! Parses requests, from MQTT and HTTP alike: a JSON object. Pure.

use super::deadline::Expiry;
use crate::model::{CommandId, CommandKey, CommandName, Target, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;

/// A valid request for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRequest {
    pub target: Target,
    pub id: CommandId,
    pub name: CommandName,
    /// JSON text.
    pub payload: Option<String>,
    pub expiry: Expiry,
}

/// An invalid request, as far as it could be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub id: Option<String>,
    /// The request without the invalid parts, if its id and name are known.
    pub request: Option<CommandRequest>,
    pub why: String,
}

/// Limits of a request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_payload: usize,
    /// Most bytes of a request's text.
    pub max_body: usize,
    pub default_expiry: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    id: Option<String>,
    name: String,
    payload: Option<Box<RawValue>>,
    expires: Option<String>,
    time: Option<String>,
}

/// Fields that an invalid body may have.
#[derive(Default, Deserialize)]
struct Named {
    id: Option<String>,
    name: Option<String>,
    expires: Option<String>,
    time: Option<String>,
}

impl Named {
    fn of(body: &[u8]) -> Named {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// The request without its payload, if its id and name are valid.
    fn request(&self, target: Target, limits: Limits) -> Option<CommandRequest> {
        let id = CommandId::new(self.id.as_deref()?).ok()?;
        let name = CommandName::new(self.name.as_deref()?).ok()?;
        let default = Expiry::In(limits.default_expiry);
        let expiry = expiry(self.expires.as_deref(), self.time.as_deref(), default).unwrap_or(Expiry::Invalid);
        Some(CommandRequest { target, id, name, payload: None, expiry })
    }
}

impl CommandRequest {
    pub fn key(&self) -> CommandKey {
        CommandKey { target: self.target.clone(), id: self.id.clone() }
    }

    /// The same request, which expires after `wanted_for` at the latest.
    pub fn within(mut self, wanted_for: Option<Duration>) -> CommandRequest {
        if let (Expiry::In(lifetime), Some(wanted_for)) = (self.expiry, wanted_for) {
            self.expiry = Expiry::In(lifetime.min(wanted_for));
        }
        self
    }

    /// Parses `{"id", "name", "payload", "expires", "time"}`; a request without an id gets
    /// `new_id`, if there is one.
    ///
    /// # Errors
    /// If it is invalid, or exceeds `limits`.
    pub fn parse(
        target: Target,
        body: &[u8],
        new_id: Option<CommandId>,
        limits: Limits,
    ) -> Result<CommandRequest, Box<Invalid>> {
        if body.len() > limits.max_body {
            let why = format!("more than {} bytes are not allowed; see [commands] max_payload", limits.max_body);
            let named = Named::of(body);
            return Err(Box::new(Invalid { request: named.request(target, limits), id: named.id, why }));
        }
        let body: Body = match serde_json::from_slice(body) {
            Ok(body) => body,
            Err(why) => {
                let id = Named::of(body).id;
                let why = format!(
                    "it is not a JSON object of id, name, payload, expires and time: {why}; see docs/commands.md"
                );
                return Err(Box::new(Invalid { id, request: None, why }));
            }
        };
        let invalid = |why: String| Box::new(Invalid { id: body.id.clone(), request: None, why });
        let id = match &body.id {
            Some(id) => CommandId::new(id).map_err(|why| invalid(format!("the id {why}")))?,
            None => {
                new_id.ok_or_else(|| invalid("it has no id: give one, and the same if you send it again".into()))?
            }
        };
        let name = CommandName::new(&body.name).map_err(|why| invalid(format!("the name {why}")))?;
        let default = Expiry::In(limits.default_expiry);
        let (expiry, expiry_fault) = match expiry(body.expires.as_deref(), body.time.as_deref(), default) {
            Ok(expiry) => (expiry, None),
            Err(why) => (Expiry::Invalid, Some(why)),
        };
        let payload = body.payload.as_ref().map(|payload| payload.get().to_owned());
        let size = payload.as_ref().map_or(0, String::len);
        let size_fault = (size > limits.max_payload).then(|| {
            format!(
                "a payload of {size} bytes is more than the {} allowed; see [commands] max_payload",
                limits.max_payload
            )
        });
        let request = CommandRequest { target, id, name, payload, expiry };
        match expiry_fault.or(size_fault) {
            None => Ok(request),
            Some(why) => Err(Box::new(Invalid { id: body.id, request: Some(request), why })),
        }
    }
}

/// The expiry of a command that was sent at `time`; now if that is missing.
fn expiry(expires: Option<&str>, time: Option<&str>, default: Expiry) -> Result<Expiry, String> {
    let given = match time.map(|text| (text, text.parse::<Timestamp>())) {
        None => None,
        Some((text, Ok(time))) if text.contains('T') => Some(time),
        Some((text, _)) => return Err(format!("time is {text:?}; write it like 2026-11-23T01:02:03Z")),
    };
    Ok(match (expires.map_or(Ok(default), until)?, given) {
        (Expiry::In(lifetime), Some(given)) => Expiry::At(given.plus(lifetime)),
        (expiry, _) => expiry,
    })
}

fn until(text: &str) -> Result<Expiry, String> {
    if let Ok(lifetime) = humantime::parse_duration(text) {
        return Ok(Expiry::In(lifetime));
    }
    // A plain number would be read as microseconds since 1970.
    match text.parse::<Timestamp>() {
        Ok(time) if text.contains('T') => Ok(Expiry::At(time)),
        _ => Err(format!("expires is {text:?}; write a time from now such as \"30s\", or 2026-11-23T01:02:03Z")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_payload: 20, max_body: 1044, default_expiry: Duration::from_secs(600) };

    fn parse(body: &str) -> Result<CommandRequest, Box<Invalid>> {
        CommandRequest::parse(Target::Gateway, body.as_bytes(), None, LIMITS)
    }

    #[test]
    fn an_order_is_read_and_its_payload_left_as_it_is() {
        let request =
            parse(r#"{"id":"c-1","name":"open","payload":{"b": 1.50, "a":2},"expires":"30s"}"#).expect("fine");
        assert_eq!(request.payload.as_deref(), Some(r#"{"b": 1.50, "a":2}"#));
        assert_eq!(request.expiry, Expiry::In(Duration::from_secs(30)));
        let request = parse(r#"{"id":"c-1","name":"open","payload":null}"#).expect("fine");
        assert_eq!((request.payload, request.expiry), (None, Expiry::In(LIMITS.default_expiry)));
        let request = parse(r#"{"id":"c-1","name":"open","expires":"2026-11-23T01:02:03Z"}"#).expect("fine");
        assert!(matches!(request.expiry, Expiry::At(time) if time.to_string().starts_with("2026-11-23T01:02:03")));
        let request = parse(r#"{"id":"c","name":"o","expires":"30s","time":"2026-11-23T01:02:03Z"}"#).expect("fine");
        assert!(matches!(request.expiry, Expiry::At(time) if time.to_string().starts_with("2026-11-23T01:02:33")));
    }

    #[test]
    fn an_order_that_is_too_large_is_known_by_its_names() {
        let filler = "x".repeat(2000);
        let invalid = parse(&format!(r#"{{"payload":"{filler}","expires":"30s","name":"open","id":"c-1"}}"#));
        let invalid = invalid.expect_err("it is too large");
        let request = invalid.request.expect("it says what it is");
        assert_eq!((request.id.as_str(), request.name.as_str(), request.payload), ("c-1", "open", None));
        assert_eq!((request.expiry, invalid.id.as_deref()), (Expiry::In(Duration::from_secs(30)), Some("c-1")));
        assert!(invalid.why.contains("max_payload"), "{}", invalid.why);
        assert_eq!(parse(&filler).expect_err("it is too large").id, None);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_could_be_understood() {
        for (body, id, has_request, why) in [
            ("", None, false, "JSON"),
            ("[]", None, false, "JSON"),
            (r#"{"name":"open"}"#, None, false, "has no id"),
            (r#"{"id":"a b","name":"open"}"#, Some("a b"), false, "the id"),
            (r#"{"id":"c"}"#, Some("c"), false, "name"),
            (r#"{"id":"c","name":"o","expire":"1s"}"#, Some("c"), false, "expire"),
            (r#"{"id":"c","name":""}"#, Some("c"), false, "the name is empty"),
            (r#"{"id":"c","name":"o","expires":"soon"}"#, Some("c"), true, "soon"),
            (r#"{"id":"c","name":"o","expires":"1234"}"#, Some("c"), true, "1234"),
            (r#"{"id":"c","name":"o","time":"noon"}"#, Some("c"), true, "noon"),
            (r#"{"id":"c","name":"o","payload":"123456789012345678901"}"#, Some("c"), true, "max_payload"),
        ] {
            let invalid = parse(body).expect_err(body);
            assert_eq!((invalid.id.as_deref(), invalid.request.is_some()), (id, has_request), "{body}");
            assert!(invalid.why.contains(why), "{body}: {}", invalid.why);
        }
        let drawn = CommandId::random();
        let request = CommandRequest::parse(Target::Gateway, br#"{"name":"ping"}"#, Some(drawn.clone()), LIMITS);
        assert_eq!(request.expect("fine").id, drawn);
    }
}
