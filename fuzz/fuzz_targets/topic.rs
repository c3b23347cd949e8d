//! See `checks/topic.rs`.

#![no_main]

#[path = "../checks/topic.rs"]
mod topic;

libfuzzer_sys::fuzz_target!(|input: &[u8]| topic::check(input));
