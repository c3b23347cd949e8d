//! What an `[[mqtt]]` section comes to.

use super::MqttDestination;
use crate::config;
use crate::mqtt::{TlsFiles, client_config};
use crate::sink::check::Certificates;
use crate::sink::lifecycle::{Build, PumpSettings, Running};

/// What makes a sink of the section.
pub(in crate::sink) fn build(section: config::Mqtt) -> Build {
    Box::new(move |cursor, context| {
        let mut destination = MqttDestination::new(
            &section,
            context.identity.clone(),
            context.epochs.clone(),
            context.registry.clone(),
            context.clock.clone(),
            &context.notes,
        )?;
        let credential = destination.credential();
        if let Some(intake) = context.commands.clone().filter(|_| section.commands) {
            destination.take_commands(intake.sender, intake.max_body, context.notes.about(section.name.as_str()));
        }
        let settings = PumpSettings {
            backoff_min: section.backoff_min,
            backoff_max: section.backoff_max,
            stable_after: section.stable_after,
            max_batch: usize::try_from(section.max_batch.as_u64()).unwrap_or(usize::MAX),
        };
        let mut running = Running::new(destination, cursor, &settings, context);
        running.credential = credential;
        Ok(running)
    })
}

/// Its certificates, if one of its brokers is reached over TLS.
pub(in crate::sink) fn certificates(section: &config::Mqtt) -> Option<Certificates> {
    section.uses_tls().then(|| Certificates {
        certificate: section.cert_file.clone(),
        authorities: section.ca_file.clone(),
        usable: client_config(&TlsFiles::of(section)).map(drop),
    })
}
