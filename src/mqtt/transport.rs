//! Transport of a connection to a broker, beside address and TLS.

use super::proxy::{self, Proxy};
use crate::config::{self, Bind, Broker, Header, Way};
use anyhow::{Result, anyhow};

/// By default TCP, with the system's choice of interface and address.
#[derive(Debug, Clone, Default)]
pub struct Transport {
    /// MQTT over WebSocket.
    pub websocket: Option<Request>,
    pub proxy: Option<Proxy>,
    pub bind: Option<Bind>,
    /// Differentiated services code point (RFC 2474), 0 to 63.
    pub dscp: u8,
}

/// Request that opens a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// With the query, if there is one.
    pub path: String,
    pub headers: Vec<Header>,
}

impl Transport {
    /// To `broker`, without settings of a sink.
    pub fn to(broker: &Broker) -> Transport {
        let websocket = broker.path.clone().map(|path| Request { path, headers: Vec::new() });
        Transport { websocket, ..Transport::default() }
    }

    /// As a sink is configured, with the proxy's password as it is now.
    ///
    /// # Errors
    /// If the password cannot be read, or the environment's proxy is invalid.
    pub fn of_sink(sink: &config::Mqtt, way: &Way) -> Result<Transport> {
        let Way { broker, bind } = way;
        let mut transport = Transport::to(broker);
        if let Some(request) = &mut transport.websocket {
            let headers = sink.websocket_headers.iter().map(|header| header.parse());
            request.headers = headers.collect::<Result<_, _>>()?;
        }
        transport.bind = bind.clone();
        transport.dscp = sink.dscp;
        transport.proxy = match sink.proxy.as_deref().map(str::parse).transpose()? {
            None => None,
            Some(config::Proxy::At { host, port }) => Some(Proxy { host, port, login: None }),
            Some(config::Proxy::Environment) => {
                proxy::of_environment(&config::environment, &broker.host, broker.port).map_err(|why| anyhow!(why))?
            }
        };
        if let (Some(proxy), Some(name)) = (&mut transport.proxy, &sink.proxy_username) {
            let password = sink.proxy_password_file.as_deref().map(config::read_password).transpose()?;
            proxy.login = Some((name.clone(), password.unwrap_or_default()));
        }
        Ok(transport)
    }
}
