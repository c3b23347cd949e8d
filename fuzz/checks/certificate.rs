//! Certificates in DER: the times of whatever is taken for one are in order and can be
//! told, and so is what is the matter with them at any time.
//!
//! Input: eight bytes for the time, then the certificate.

use tidegate::model::Timestamp;
use tidegate::pem::Validity;

pub fn check(input: &[u8]) {
    // As it is, and behind a time.
    let _ = Validity::of(input);
    let Some((now, certificate)) = input.split_first_chunk() else { return };
    let Some(validity) = Validity::of(certificate) else { return };
    assert!(validity.not_before >= Timestamp(0) && validity.not_after >= Timestamp(0), "{validity:?}");
    let now = Timestamp(i64::from_le_bytes(*now));
    for trusted in [true, false] {
        if let Some(lapse) = validity.lapse(now, trusted) {
            assert!(lapse.to_string().len() < 100, "{lapse}");
        }
    }
}
