//! See `checks/upgrade.rs`.

#![no_main]

#[path = "../checks/upgrade.rs"]
mod upgrade;

libfuzzer_sys::fuzz_target!(|input: &[u8]| upgrade::check(input));
