//! Names from outside, validated once on input.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::sync::Arc;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("is empty")]
    Empty,
    #[error("is {got} bytes long, more than the {max} allowed")]
    TooLong { got: usize, max: usize },
    #[error("contains {0:?}, which is not allowed there (allowed: {1})")]
    Character(char, &'static str),
}

/// A device's name: 1 to 64 characters of `A-Z a-z 0-9 . _ -`. A device behind a
/// hub is `HUB/SUB`, two such names joined by one slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct DeviceId(Arc<str>);

/// The gateway's own name, one topic level: same characters as a [`DeviceId`]
/// without a slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct GatewayId(Arc<str>);

/// A command's id, which its sender gives it: same characters as a [`GatewayId`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct CommandId(Arc<str>);

/// What a command is to do: same characters as a [`GatewayId`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct CommandName(Arc<str>);

/// What a value measures: 1 to 64 bytes of UTF-8 without control characters,
/// not starting with `#` (which marks a channel index in JSON).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ChannelName(Arc<str>);

const MAX_NAME_BYTES: usize = 64;
const TOKEN_CHARS: &str = "letters, digits, '.', '_' and '-'";

/// A single name of `A-Z a-z 0-9 . _ -`: the rule that ids share.
pub struct Token;

impl Token {
    /// Checks that `name` is 1 to 64 of the allowed characters.
    pub fn check(name: &str) -> Result<(), InvalidName> {
        check_length(name)?;
        match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
            Some(c) => Err(InvalidName::Character(c, TOKEN_CHARS)),
            None => Ok(()),
        }
    }
}

fn check_length(name: &str) -> Result<(), InvalidName> {
    match name.len() {
        0 => Err(InvalidName::Empty),
        got if got > MAX_NAME_BYTES => Err(InvalidName::TooLong { got, max: MAX_NAME_BYTES }),
        _ => Ok(()),
    }
}

impl DeviceId {
    /// A device's name, or a sub-device's as `HUB/SUB`.
    pub fn new(name: &str) -> Result<DeviceId, InvalidName> {
        match name.split_once('/') {
            Some((hub, sub)) => {
                Token::check(hub)?;
                Token::check(sub)?;
            }
            None => Token::check(name)?,
        }
        Ok(DeviceId(name.into()))
    }

    /// The name of `sub`, a device behind this one.
    pub fn sub_device(&self, sub: &str) -> Result<DeviceId, InvalidName> {
        if self.0.contains('/') {
            return Err(InvalidName::Character('/', TOKEN_CHARS));
        }
        Token::check(sub)?;
        Ok(DeviceId(format!("{}/{sub}", self.0).into()))
    }

    /// The hub of this device; itself unless it is a sub-device.
    pub fn hub(&self) -> DeviceId {
        match self.0.split_once('/') {
            Some((hub, _)) => DeviceId(hub.into()),
            None => self.clone(),
        }
    }
}

impl GatewayId {
    pub fn new(name: &str) -> Result<GatewayId, InvalidName> {
        Token::check(name)?;
        Ok(GatewayId(name.into()))
    }
}

impl CommandId {
    pub fn new(id: &str) -> Result<CommandId, InvalidName> {
        Token::check(id)?;
        Ok(CommandId(id.into()))
    }

    /// A unique one.
    pub fn random() -> CommandId {
        CommandId(format!("{:032x}", fastrand::u128(..)).into())
    }
}

impl CommandName {
    pub fn new(name: &str) -> Result<CommandName, InvalidName> {
        Token::check(name)?;
        Ok(CommandName(name.into()))
    }
}

impl ChannelName {
    pub fn new(name: &str) -> Result<ChannelName, InvalidName> {
        const RULE: &str = "printable characters, no '#' at the start";
        check_length(name)?;
        match name.chars().enumerate().find(|(i, c)| c.is_control() || (*i == 0 && *c == '#')) {
            Some((_, c)) => Err(InvalidName::Character(c, RULE)),
            None => Ok(ChannelName(name.into())),
        }
    }
}

macro_rules! name_impls {
    ($($name:ident),*) => {$(
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                $name::new(s)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let name = String::deserialize(d)?;
                $name::new(&name).map_err(|why| serde::de::Error::custom(format!("name {name:?} {why}")))
            }
        }
    )*};
}
name_impls!(DeviceId, GatewayId, CommandId, CommandName, ChannelName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_are_one_or_two_tokens() {
        assert!(DeviceId::new("pump-7").is_ok());
        assert!(DeviceId::new("hub/sub.1").is_ok());
        for bad in ["", "a/b/c", "/a", "a/", "a b", "ä", "+", "#", "a\0"] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
        assert!(DeviceId::new(&"x".repeat(65)).is_err());
    }

    #[test]
    fn a_sub_device_stands_under_its_hub_and_no_deeper() {
        let sub = DeviceId::new("hub").and_then(|hub| hub.sub_device("door"));
        assert_eq!(sub.as_ref().map(|s| s.as_str()), Ok("hub/door"));
        assert!(sub.is_ok_and(|s| s.sub_device("x").is_err()));
    }

    #[test]
    fn channel_names_may_be_any_printable_text() {
        assert!(ChannelName::new("Température (°C)").is_ok());
        assert!(ChannelName::new("a\nb").is_err());
        assert!(ChannelName::new("#3").is_err());
        assert!(ChannelName::new("").is_err());
    }
}
