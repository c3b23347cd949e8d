//! See `checks/device_message.rs`.

#![no_main]

#[path = "../checks/device_message.rs"]
mod device_message;

libfuzzer_sys::fuzz_target!(|input: &[u8]| device_message::check(input));
