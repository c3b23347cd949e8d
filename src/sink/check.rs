//! What `tidegate check` asks of a sink that does not run.

use crate::model::GatewayId;
use anyhow::Result;
use std::path::PathBuf;

/// What a sink uses for TLS.
pub struct Certificates {
    /// Its own.
    pub certificate: Option<PathBuf>,
    /// That it trusts.
    pub authorities: Option<PathBuf>,
    /// Whether they can be used together.
    pub usable: Result<()>,
}

/// As whom to look at a destination.
pub struct CheckAs<'a> {
    pub gateway: &'a GatewayId,
    /// In place of the configured one, where destinations know clients by an id.
    pub client_id: Option<&'a str>,
    /// Marks what this look leaves behind, should somebody see it.
    pub nonce: &'a str,
}

/// Takes the findings of a look, a line each.
pub type Report<'a> = &'a mut (dyn FnMut(String) + Send);
