//! What a cloud's profile allows.

use super::brokers;
use crate::config::validate::{DAY, SECOND, Section, time};
use crate::config::{Mqtt, Profile};

/// Behind the prefix: `/GATEWAY/devices/HUB/SUB/readings`.
const LEVELS_BEHIND: usize = 5;
/// The same in bytes, with names of 64 bytes.
const BYTES_BEHIND: usize = "/".len() + 64 + "/devices/".len() + 64 + "/".len() + 64 + "/readings".len();

pub(super) fn check(mqtt: &Mqtt, section: &mut Section) {
    section.duration("token_lifetime", mqtt.token_lifetime, 5 * SECOND, 365 * DAY);
    if mqtt.shared_access_key_file.is_some() {
        if mqtt.profile != Some(Profile::AzureIotHub) {
            let fix = "set profile = \"azure-iot-hub\", or remove it";
            section.reject(&["shared_access_key_file", "profile"], "is for Azure IoT Hub only", fix);
        }
        if mqtt.password_file.is_some() {
            let what = "makes the password that `password_file` holds";
            section.reject(&["shared_access_key_file", "password_file"], what, "remove one of them");
        }
    }
    let Some(profile) = mqtt.profile else { return };
    let name = profile.name();
    if brokers(mqtt).any(|broker| !broker.tls) {
        let what = format!("{name} is reached over TLS only");
        section.reject(&["brokers", "profile"], what, "write mqtts:// in `brokers`");
    }
    let levels = mqtt.prefix.split('/').count();
    if let Some(most) = profile.max_levels().map(|levels| levels - LEVELS_BEHIND).filter(|most| levels > *most) {
        let what = format!("has {levels} levels, with which topics have more than {name} takes");
        section.reject(&["prefix", "profile"], what, format!("give {most} or fewer"));
    }
    if let Some(most) = profile.max_topic().map(|bytes| bytes - BYTES_BEHIND).filter(|most| mqtt.prefix.len() > *most) {
        let what = format!("is so long that topics may have more bytes than {name} takes");
        section.reject(&["prefix", "profile"], what, format!("give {most} bytes or fewer"));
    }
    let (least, most) = profile.keep_alive();
    if !(least..=most).contains(&mqtt.keep_alive) {
        let what = format!("{} is not what {name} takes", time(mqtt.keep_alive));
        section.reject(&["keep_alive", "profile"], what, format!("give {} to {}", time(least), time(most)));
    }
}

/// That no sink without a client id has another one on the same broker that has none.
pub(super) fn check_client_id<'a>(mqtt: &Mqtt, mut before: impl Iterator<Item = &'a Mqtt>, section: &mut Section) {
    let shared = |other: &Mqtt| {
        let both = mqtt.profile.is_some() && other.profile.is_some() && other.client_id.is_none();
        both && brokers(other).any(|b| brokers(mqtt).any(|a| a == b))
    };
    if let Some(other) = before.find(|other| shared(other)) {
        let what = format!("`{}` has the gateway's name as its client id on the same broker, too", other.name);
        section.reject(&["client_id", "brokers"], what, "give one of them a client id of its own");
    }
}
