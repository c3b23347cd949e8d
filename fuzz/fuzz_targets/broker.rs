//! See `checks/broker.rs`.

#![no_main]

#[path = "../checks/broker.rs"]
mod broker;

libfuzzer_sys::fuzz_target!(|input: &[u8]| broker::check(input));
