//! Azure's shared access signatures: a password that is good for a while.

use crate::mqtt::percent_encoded;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac::{self, HMAC_SHA256};

/// The token that proves to the hub at `host` that its bearer has `key`, until `expires`, in
/// seconds since 1970.
pub(super) fn token(host: &str, device: &str, key: &[u8], expires: i64) -> String {
    let resource = percent_encoded(&format!("{host}/devices/{device}"));
    let signed = hmac::sign(&hmac::Key::new(HMAC_SHA256, key), format!("{resource}\n{expires}").as_bytes());
    let signature = percent_encoded(&STANDARD.encode(signed));
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a few lines of Python's hmac, base64 and urllib make it.
    #[test]
    fn a_token_is_what_others_make_of_the_same() {
        let token = token("plant.azure-devices.net", "gw-01", b"a secret that two know", 1_800_000_000);
        let expected = "SharedAccessSignature sr=plant.azure-devices.net%2Fdevices%2Fgw-01&sig=0ewEzEmDIPFj2sZEvCZj%2BM17hayU9tPSLstLMjAg3F8%3D&se=1800000000";
        assert_eq!(token, expected);
    }
}
