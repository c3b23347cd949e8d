//! Connects through an HTTP proxy (RFC 9110, 9.3.6).

use super::http::{Answer, ask, authority};
use super::percent::percent_decoded;
use super::reason::shown;
use crate::backoff::Failure;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncWrite};

/// A proxy's address and credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    /// User and password.
    pub login: Option<(String, String)>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", authority(&self.host, self.port))
    }
}

/// Opens a tunnel to `host` through the proxy.
///
/// # Errors
/// If the proxy refuses or fails.
pub async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), Failure> {
    let (to, of_proxy) = (authority(host, port), authority(&proxy.host, proxy.port));
    let login = proxy.login.as_ref().map(|(user, password)| {
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
    });
    let login = login.unwrap_or_default();
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n");
    let answer = ask(stream, &request, &format!("the proxy {of_proxy}")).await?;
    if (200..300).contains(&answer.status) {
        return match answer.behind.is_empty() {
            // In TLS, MQTT and HTTP the client sends first.
            true => Ok(()),
            false => Err(Failure::transient(format!(
                "the proxy {of_proxy} sent something of its own into the tunnel to {to}"
            ))),
        };
    }
    let advice = advice(&answer, proxy.login.is_some());
    Err(Failure::transient(format!("the proxy {of_proxy} refuses a tunnel to {to}: {}{advice}", answer.said())))
}

fn advice(answer: &Answer, with_login: bool) -> String {
    match answer.status {
        407 => {
            let schemes: Vec<_> =
                answer.values("proxy-authenticate").filter_map(|value| value.split(' ').next()).collect();
            let knows_basic = schemes.is_empty() || schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"));
            match (knows_basic, with_login) {
                (false, _) => {
                    format!("; it wants {}, and the gateway supports only Basic", shown(&schemes.join(" or ")))
                }
                (true, true) => "; check proxy_username and proxy_password_file".to_owned(),
                (true, false) => "; give proxy_username and proxy_password_file".to_owned(),
            }
        }
        403 | 405 => {
            "; many proxies allow port 443 only: have this host and port allowed, or use wss:// if the broker has it"
                .to_owned()
        }
        502..=504 => "; it could not reach the broker itself".to_owned(),
        _ => String::new(),
    }
}

/// The proxy for connections to `host` from the environment: `HTTPS_PROXY`, else `ALL_PROXY`,
/// unless `NO_PROXY` excludes the host. Lower-case names take precedence.
///
/// # Errors
/// If it is invalid. The message has the variable's name, not its value.
pub(super) fn of_environment(
    get: &dyn Fn(&str) -> Option<String>,
    host: &str,
    port: u16,
) -> Result<Option<Proxy>, String> {
    let get = |name: &'static str| get(&name.to_lowercase()).or_else(|| get(name)).filter(|value| !value.is_empty());
    let Some((name, url)) = ["HTTPS_PROXY", "ALL_PROXY"].into_iter().find_map(|name| Some((name, get(name)?))) else {
        return Ok(None);
    };
    if is_excluded(&get("NO_PROXY").unwrap_or_default(), host, port) {
        return Ok(None);
    }
    let wrong = |what: &str| Err(format!("{name} of the environment {what}; write http://HOST:PORT there"));
    let authority = match url.split_once("://") {
        Some((scheme, authority)) if scheme.eq_ignore_ascii_case("http") => authority,
        Some(_) => return wrong("names a proxy that is not an HTTP proxy"),
        None => url.as_str(),
    };
    let authority = authority.split('/').next().unwrap_or_default();
    let (login, authority) = match authority.rsplit_once('@') {
        Some((login, authority)) => (Some(login), authority),
        None => (None, authority),
    };
    let Ok(crate::config::Proxy::At { host, port }) = format!("http://{authority}").parse() else {
        return wrong("names no host and port");
    };
    let login = login.map(|login| {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let decoded = |text| String::from_utf8_lossy(&percent_decoded(text).0).into_owned();
        (decoded(user), decoded(password))
    });
    Ok(Some(Proxy { host, port, login }))
}

/// Whether `NO_PROXY` has the host: by its name, a domain above it, its address or a network
/// of addresses, each with or without a port; `*` matches all. This machine is always excluded.
fn is_excluded(no_proxy: &str, host: &str, port: u16) -> bool {
    let address = host.parse::<IpAddr>().ok();
    if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let host = host.to_ascii_lowercase();
    no_proxy.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            return network
                .parse()
                .is_ok_and(|network| bits.parse().is_ok_and(|bits| is_within(address, network, bits)));
        }
        let (name, of_port) = match entry.rsplit_once(':') {
            Some((name, of_port)) if !name.contains(':') || name.ends_with(']') => (name, of_port.parse::<u16>().ok()),
            _ => (entry.as_str(), None),
        };
        if of_port.is_some_and(|of_port| of_port != port) {
            return false;
        }
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let name = name.strip_prefix("*.").or_else(|| name.strip_prefix('.')).unwrap_or(name);
        match address {
            Some(address) => name.parse() == Ok(address),
            None => host == name || host.strip_suffix(name).is_some_and(|before| before.ends_with('.')),
        }
    })
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => (u32::from(address).into(), u32::from(network).into(), 32),
        (IpAddr::V6(address), IpAddr::V6(network)) => (u128::from(address), u128::from(network), 128),
        _ => return false,
    };
    let differs: u128 = address ^ network;
    bits <= width && differs.checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)], host: &str) -> Result<Option<Proxy>, String> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        of_environment(&get, host, 8883)
    }

    #[test]
    fn the_environment_names_a_proxy_and_what_goes_without() {
        let proxy = Proxy { host: "proxy".into(), port: 3128, login: None };
        assert_eq!(of(&[], "broker"), Ok(None));
        assert_eq!(of(&[("ALL_PROXY", "http://proxy:3128/")], "broker"), Ok(Some(proxy.clone())));
        assert_eq!(of(&[("HTTPS_PROXY", "other:1"), ("https_proxy", "proxy:3128")], "broker"), Ok(Some(proxy)));
        let with_login = of(&[("HTTPS_PROXY", "http://me:p%40ss:w@[fd00::1]:3128")], "broker");
        let login = Some(("me".to_owned(), "p@ss:w".to_owned()));
        assert_eq!(with_login, Ok(Some(Proxy { host: "fd00::1".into(), port: 3128, login })));
        for wrong in ["socks5://me:secret@proxy:1", "http://me:secret@proxy"] {
            let why = of(&[("HTTPS_PROXY", wrong)], "broker").expect_err(wrong);
            assert!(why.starts_with("HTTPS_PROXY of the environment names") && !why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn what_no_proxy_leaves_out_is_left_out() {
        for (no_proxy, host, expected) in [
            ("", "broker.plant.example", false),
            ("", "localhost", true),
            ("", "127.0.0.9", true),
            ("*", "broker.plant.example", true),
            ("plant.example", "broker.plant.example", true),
            (" other, .plant.example", "Broker.Plant.Example", true),
            ("*.plant.example", "broker.plant.example", true),
            ("plant.example", "broker.otherplant.example", false),
            ("broker.plant.example:8883", "broker.plant.example", true),
            ("broker.plant.example:1883", "broker.plant.example", false),
            ("10.0.0.0/8", "10.9.8.7", true),
            ("10.0.0.0/8", "11.9.8.7", false),
            ("10.0.0.0/8", "broker", false),
            ("10.0.0.0/33,0.0.0.0/0", "11.9.8.7", true),
            ("fd00::/8", "fd12::1", true),
            ("[fd12::1]:8883", "fd12::1", true),
            ("fd12::2", "fd12::1", false),
        ] {
            assert_eq!(is_excluded(no_proxy, host, 8883), expected, "{no_proxy} {host}");
        }
    }
}
