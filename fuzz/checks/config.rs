//! Configuration files: whatever stands there, it is taken or every problem with it is
//! told in words, each at a place.

use std::path::Path;
use tidegate::config;

/// Keeps the fuzzer fast; no such file is larger.
const MAX: usize = 16 * 1024;

pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if text.len() > MAX {
        return;
    }
    let environment = |name: &str| (name.len() % 2 == 1).then(|| format!("value of {name}"));
    match config::parse(text, Path::new("fuzz.toml"), &environment) {
        Ok(config) => {
            let listens = !config.tcp.is_empty() || !config.serial.is_empty() || config.http.serves_devices();
            assert!(listens, "nothing to listen on");
        }
        Err(problems) => assert!(problems.to_string().contains("fuzz.toml"), "{problems}"),
    }
}
