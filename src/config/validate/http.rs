//! `[http]`.

use super::links::check_listener;
use super::{Section, collide};
use crate::config::Config;

pub(super) fn check(config: &Config, mut section: Section) {
    let http = &config.http;
    if !http.enabled {
        return;
    }
    let local = http.listen.ip().to_canonical().is_loopback();
    if !local && http.token_file.is_none() {
        let what = format!("{} can be reached from elsewhere, where nobody should ask without a token", http.listen);
        let fix = format!("listen on 127.0.0.1:{}, or give `token_file`", http.listen.port());
        section.reject(&["listen", "token_file"], what, fix);
    }
    if let Some(i) = config.tcp.iter().position(|tcp| collide(tcp.listen, http.listen)) {
        section.reject(&["listen"], format!("tcp[{i}] listens on {} already", http.listen), "give another port");
    }
    for origin in &http.allowed_origins {
        if let Some((what, fix)) = origin_fault(origin) {
            section.reject(&["allowed_origins"], format!("{origin:?} {what}"), fix);
        }
    }
    check_listener(config, &http.listener(), &mut section);
}

/// What keeps a text from being what browsers send as a page's origin, and the remedy.
fn origin_fault(origin: &str) -> Option<(&'static str, &'static str)> {
    const FIX: &str = "write it as browsers do, SCHEME://HOST or SCHEME://HOST:PORT";
    if origin == "null" {
        return None;
    }
    let Some((scheme, host)) = origin.split_once("://") else { return Some(("is no origin", FIX)) };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => ":0",
    };
    if host.is_empty() || host.contains(['/', '?', '#', '@', ' ', '*']) {
        return Some(("is more than an origin, or less", FIX));
    }
    if origin.contains(|c: char| c.is_ascii_uppercase() || !c.is_ascii_graphic()) {
        return Some(("has other characters than browsers send", "write it in small letters, names in Punycode"));
    }
    host.ends_with(default_port).then_some(("names the port that is left out", "remove the port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_send_them() {
        for good in ["null", "http://localhost:8000", "https://plant.example.com", "http://[::1]:81", "app://x"] {
            assert_eq!(origin_fault(good), None, "{good}");
        }
        for bad in [
            "",
            "*",
            "localhost",
            "http://",
            "http://a/",
            "http://A",
            "http://a:80",
            "https://a:443",
            "https://*.a",
            "http://ä",
        ] {
            assert!(origin_fault(bad).is_some(), "{bad}");
        }
    }
}
