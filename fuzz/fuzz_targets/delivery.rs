//! See `checks/delivery.rs`.

#![no_main]

#[path = "../checks/delivery.rs"]
mod delivery;

libfuzzer_sys::fuzz_target!(|input: &[u8]| delivery::check(input));
