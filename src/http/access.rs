//! Authorises requests. Pure.
//!
//! The risk is browsers: any page can make the browser of somebody on this machine or network
//! send requests, and can read what a WebSocket answers. But browsers send the page's origin,
//! and a page whose own name resolves to this server ("DNS rebinding") still sends that name
//! as the host.

use crate::config::{Http, read_token};
use crate::credentials::{Credential, Kept};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// What a request has to carry, and the allowed origins.
#[derive(Default)]
pub struct Access {
    /// None: no token is required.
    token: Option<Arc<Kept<String>>>,
    origins: Vec<String>,
}

/// Why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("a token is needed; send it as Authorization: Bearer TOKEN")]
    Token,
    #[error("the gateway cannot read its token; its log says why")]
    NoToken,
    #[error("this origin is not allowed; [http] allowed_origins names the allowed ones")]
    Origin,
    #[error("this host name is not allowed; use the address or localhost, or add the name to [http] allowed_origins")]
    Host,
}

impl Denied {
    /// A constant name for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Denied::Token => "token",
            Denied::NoToken => "no_token",
            Denied::Origin => "origin",
            Denied::Host => "host",
        }
    }
}

impl Access {
    /// As configured. The token's file may be readable only later.
    pub fn new(config: &Http, now: Duration) -> Access {
        const WITHOUT: &str = "requests that need the token are refused until it is valid";
        let token = config.token_file.clone().map(|path| {
            let read = move || Ok((read_token(&path)?, None));
            Arc::new(Kept::new("http", config.token_file.iter().cloned().collect(), WITHOUT, now, read))
        });
        Access { token, origins: config.allowed_origins.clone() }
    }

    /// The credential to watch, if there is one.
    pub fn credential(&self) -> Option<Arc<dyn Credential>> {
        Some(self.token.clone()?)
    }

    /// Authorises a request by its headers.
    ///
    /// # Errors
    /// Why it is denied.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let Some(token) = &self.token else {
            self.check_host(headers)?;
            return self.check_origin(headers);
        };
        let token = token.latest().ok_or(Denied::NoToken)?;
        // No page knows the token; without one, the host has to be this server's.
        if has_token(headers, &token) { Ok(()) } else { Err(Denied::Token) }
    }

    /// Checks the origin of the page that sent the request, if a page did.
    ///
    /// # Errors
    /// If the origin is not allowed.
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default();
        let allowed = self.origins.iter().any(|allowed| allowed == origin) || is_own(origin, host(headers));
        if allowed && origins.next().is_none() { Ok(()) } else { Err(Denied::Origin) }
    }

    /// Checks that the host is one that no page can choose.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let named = |host: &str| self.origins.iter().filter_map(|origin| authority(origin)).any(|own| own == host);
        match host(headers) {
            Some(host) if !is_address(host) && !named(host) => Err(Denied::Host),
            // Browsers always send it.
            _ => Ok(()),
        }
    }
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let Some((scheme, given)) = text(headers, header::AUTHORIZATION).and_then(|value| value.split_once(' ')) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("Bearer") && bool::from(given.trim().as_bytes().ct_eq(token.as_bytes()))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(HeaderValue::to_str)?.ok()
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default())
}

/// Host and port of an origin.
fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// Whether a page is from this server itself, by a name that nobody else can choose.
fn is_own(origin: &str, host: Option<&str>) -> bool {
    authority(origin).is_some_and(|from| Some(from) == host && is_address(from))
}

/// Whether a host, with or without a port, is an address or localhost.
fn is_address(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| is_ip(address) && is_port(port));
    }
    let (name, port) = host.split_once(':').map_or((host, ""), |(name, _)| host.split_at(name.len()));
    is_port(port) && (name.eq_ignore_ascii_case("localhost") || is_ip(name))
}

fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).expect("a header's value");
        let mut headers = HeaderMap::new();
        for (name, text) in pairs {
            headers.append(name, value(text));
        }
        headers
    }

    fn origin(host: &str, origin: &str) -> HeaderMap {
        headers(&[(header::HOST, host), (header::ORIGIN, origin)])
    }

    #[test]
    fn pages_of_other_origins_may_not_ask() {
        let access = Access { origins: vec!["https://plant.example.com".into(), "null".into()], ..Access::default() };
        for (host, from) in [
            ("127.0.0.1:7412", "http://127.0.0.1:7412"),
            ("localhost:7412", "http://localhost:7412"),
            ("[::1]:7412", "http://[::1]:7412"),
            ("192.168.1.5", "https://192.168.1.5"),
            ("127.0.0.1:7412", "https://plant.example.com"),
            ("127.0.0.1:7412", "null"),
        ] {
            assert_eq!(access.check_origin(&origin(host, from)), Ok(()), "{from} at {host}");
        }
        for (host, from) in [
            ("127.0.0.1:7412", "http://evil.example.com"),
            ("127.0.0.1:7412", "http://127.0.0.1:8000"),
            ("127.0.0.1:7412", "http://localhost:7412"),
            ("127.0.0.1:7412", "https://plant.example.com.evil.example.com"),
            ("127.0.0.1:7412", ""),
            ("evil.example.com:7412", "http://evil.example.com:7412"),
        ] {
            assert_eq!(access.check_origin(&origin(host, from)), Err(Denied::Origin), "{from} at {host}");
        }
        let twice = headers(&[(header::ORIGIN, "null"), (header::ORIGIN, "null")]);
        assert_eq!(access.check_origin(&twice), Err(Denied::Origin));
        assert_eq!(access.check_origin(&HeaderMap::new()), Ok(()), "no page");
        let strict = Access::default();
        assert_eq!(strict.check_origin(&origin("127.0.0.1", "null")), Err(Denied::Origin));
    }

    #[test]
    fn without_a_token_the_server_is_called_by_address_or_by_a_name_that_is_configured() {
        let access = Access { origins: vec!["https://plant.example.com".into()], ..Access::default() };
        for good in ["localhost", "LOCALHOST:1", "127.0.0.1:7412", "[::1]", "[::1]:7412", "plant.example.com"] {
            assert_eq!(access.check(&headers(&[(header::HOST, good)])), Ok(()), "{good}");
        }
        for bad in
            ["evil.example.com", "localhost.evil.example.com:7412", "127.0.0.1.evil", "[::1", "1:2:3", "localhost:x"]
        {
            assert_eq!(access.check(&headers(&[(header::HOST, bad)])), Err(Denied::Host), "{bad}");
        }
        assert_eq!(access.check(&HeaderMap::new()), Ok(()));
        assert_eq!(access.check(&origin("localhost:1", "http://localhost:2")), Err(Denied::Origin));
    }

    #[test]
    fn only_the_whole_token_will_do() {
        let token = |token: Option<&str>| {
            let token = token.map(str::to_owned);
            let read = move || Ok((token.clone().ok_or_else(|| anyhow::anyhow!("no file"))?, None));
            let token = Some(Arc::new(Kept::new("http", Vec::new(), "", Duration::ZERO, read)));
            Access { token, ..Access::default() }
        };
        assert_eq!(token(None).check(&headers(&[(header::AUTHORIZATION, "Bearer ")])), Err(Denied::NoToken));
        let access = token(Some("0123456789abcdef"));
        let with = |value: &str| access.check(&headers(&[(header::HOST, "a.b"), (header::AUTHORIZATION, value)]));
        assert_eq!(with("Bearer 0123456789abcdef"), Ok(()));
        assert_eq!(with("bearer  0123456789abcdef "), Ok(()));
        for bad in
            ["", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0"]
        {
            assert_eq!(with(bad), Err(Denied::Token), "{bad:?}");
        }
        assert_eq!(access.check(&HeaderMap::new()), Err(Denied::Token));
    }
}
