//! `tidegate check`: reports every problem of a configuration.

use super::{File, USAGE, failed, say};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Checked, Config, ListenerConfig, Problem};
use crate::gateway;
use crate::net::tls;
use crate::pem::{self, Validity};
use crate::sink::{Certificates, CheckAs, kinds};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Reports everything that is wrong with the configuration
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    file: File,
    /// Connect to each broker of each [[mqtt]] as well, and print the finding of each step
    ///
    /// Exits with 1 if a step fails. A running gateway is not disturbed: this connects under
    /// another client id, and publishes nothing that looks like a reading.
    #[arg(long)]
    connect: bool,
    /// Connect under this client id; the default is the configured one with -check appended
    ///
    /// For brokers that accept only the gateway's own id; stop the gateway first.
    #[arg(long, value_name = "ID", requires = "connect")]
    client_id: Option<String>,
}

/// Reports every problem of the file, and exits with 2 if there is one.
pub fn run(args: &Args) -> ExitCode {
    let path = args.file.config.as_path();
    let checked = config::check(path);
    let Checked { config, unseen, .. } = &checked;
    let unseen_lines = unseen.iter().map(|problem| format!("{problem}\n"));
    let (problems, lines) = match config {
        Err(problems) => (problems.to_string(), unseen_lines.collect::<String>()),
        Ok(config) => {
            let sections: Vec<_> = certificates(config).into_iter().filter(|section| section.is_seen(unseen)).collect();
            let problems = sections.iter().filter_map(SectionCertificates::problem).map(|(key, what)| {
                let line = checked.line_of(&key).map(|line| format!("{line}:")).unwrap_or_default();
                format!("{}:{line} {key}: {what}", path.display())
            });
            let notes = notes(config).into_iter().chain(sections.iter().flat_map(SectionCertificates::lapses));
            let notes = notes.map(|note| format!("{}: note: {note}\n", path.display()));
            (problems.collect::<Vec<_>>().join("\n"), unseen_lines.chain(notes).collect())
        }
    };
    let mut out = std::io::stdout();
    if problems.is_empty() {
        let but = if unseen.is_empty() { "" } else { ", as far as it could be checked" };
        let _ = write!(out, "{} is fine{but}\n{lines}", path.display());
        return match config {
            Ok(config) if args.connect => connect(config, args.client_id.as_deref()),
            _ => ExitCode::SUCCESS,
        };
    }
    let _ = write!(out, "{lines}");
    say(&problems);
    USAGE.into()
}

/// Settings that are allowed and may be a mistake.
fn notes(config: &Config) -> Vec<String> {
    let note = |section: String, listener: ListenerConfig| {
        let listen = listener.listen;
        let open = format!("{section}: every device that reaches {listen} is accepted: authentication = \"none\"");
        let what = "tokens are sent in the clear: give cert_file and key_file, or authentication = \"hmac\"";
        let tapped = format!("{section}: {what}");
        [listener.is_open().then_some(open), listener.is_tapped().then_some(tapped)].into_iter().flatten()
    };
    let tcp = config.tcp.iter().enumerate();
    let tcp = tcp.flat_map(|(i, tcp)| note(format!("tcp[{i}]"), tcp.listener()));
    let http = Some(&config.http).filter(|http| http.serves_devices());
    let open = tcp.chain(http.into_iter().flat_map(|http| note("http".into(), http.listener())));
    open.chain(unwritable(&config.store.directory)).collect()
}

/// The certificates of one section, and whether they are usable.
struct SectionCertificates {
    section: String,
    certificate: Option<PathBuf>,
    /// The trusted ones.
    authorities: Option<PathBuf>,
    made: Result<()>,
}

fn certificates(config: &Config) -> Vec<SectionCertificates> {
    let listener = |section: String, listener: ListenerConfig| {
        let files = listener.tls()?;
        Some(SectionCertificates {
            section,
            made: tls::server_config(&files).map(drop),
            certificate: Some(files.cert),
            authorities: None,
        })
    };
    let tcp = config.tcp.iter().enumerate().filter_map(|(i, tcp)| listener(format!("tcp[{i}]"), tcp.listener()));
    let http = Some(&config.http).filter(|http| http.enabled).and_then(|http| listener("http".into(), http.listener()));
    let sinks = config.sinks().into_iter().filter_map(|sink| {
        let Certificates { certificate, authorities, usable } = kinds::certificates(&sink)?;
        Some(SectionCertificates { section: sink.path, certificate, authorities, made: usable })
    });
    tcp.chain(http).chain(sinks).collect()
}

/// Connects to the destination of each sink; exits with 1 if a step fails.
fn connect(config: &Config, client_id: Option<&str>) -> ExitCode {
    let mut print = |line: String| drop(writeln!(std::io::stdout(), "{line}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let wrong = runtime.context("cannot start").and_then(|runtime| {
        let gateway = gateway::gateway_id(&config.gateway)?;
        let nonce = format!("{:08x}", getrandom::u32().context("the system has no random numbers")?);
        let check_as = CheckAs { gateway: &gateway, client_id, nonce: &nonce };
        runtime.block_on(async {
            let mut wrong = 0;
            for sink in config.sinks() {
                wrong += kinds::check(&sink, &check_as, &mut print).await?;
            }
            anyhow::Ok(wrong)
        })
    });
    match wrong {
        Ok(0) => {
            print("all is well".to_owned());
            ExitCode::SUCCESS
        }
        Ok(wrong) => {
            print(format!("{wrong} wrong"));
            ExitCode::FAILURE
        }
        Err(why) => failed(&why),
    }
}

impl SectionCertificates {
    /// Whether every file of this section could be checked.
    fn is_seen(&self, unseen: &[Problem]) -> bool {
        !unseen.iter().any(|problem| problem.key.split('.').next() == Some(&self.section))
    }

    /// A problem that no single file has by itself, with the key that it is about.
    fn problem(&self) -> Option<(String, String)> {
        let why = self.made.as_ref().err()?;
        let key = if self.certificate.is_some() { "cert_file" } else { "ca_file" };
        Some((format!("{}.{key}", self.section), format!("{why:#}")))
    }

    /// Certificate and authorities that are not valid yet, expired, or about to expire.
    fn lapses(&self) -> impl Iterator<Item = String> {
        let now = SystemClock::new().now();
        let of_authorities = self.authorities.as_ref().and_then(|path| {
            let all = pem::certificates(path).ok()?;
            let lapse = all.iter().find_map(|one| Validity::of(one)?.lapse(now.wall, now.trusted))?;
            let what = format!("an authority in {} {lapse}; add its successor", path.display());
            Some(format!("{}: {what}", self.section))
        });
        let own = self.certificate.as_ref().and_then(|path| {
            let lapse = Validity::of_chain(&pem::certificates(path).ok()?)?.lapse(now.wall, now.trusted)?;
            Some(format!("{}: the certificate in {} {lapse}; renew it", self.section, path.display()))
        });
        own.into_iter().chain(of_authorities)
    }
}

/// The note for a directory that this user may not write to.
fn unwritable(directory: &Path) -> Option<String> {
    let there = directory.ancestors().find(|path| path.exists())?;
    let allowed = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let denied = rustix::fs::access(there, allowed) == Err(rustix::io::Errno::ACCESS);
    let shown = there.display();
    denied.then(|| {
        format!(
            "store.directory: this user may not write to {shown}, and the gateway starts here only as another user; \
             `sudo -u tidegate tidegate check` checks as the service's user"
        )
    })
}
