//! Decides who comes in: by the keys on disk as they are at the moment, by the names
//! that the configuration allows, and by how often somebody failed.

use super::keyfile::{KeyFiles, Stamps, random};
use super::lockout::{Lockouts, Origin};
use super::proof::{Attempt, AuthError, Key, Keys, Nonce};
use crate::config::{self, Authentication};
use crate::metrics::{LinkReasonLabel, Metrics};
use crate::model::{DeviceId, glob};
use crate::stop;
use anyhow::Result;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// How often the files of keys are looked at without anybody asking.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    allow: Vec<String>,
    deny: Vec<String>,
    files: KeyFiles,
    /// Whether anybody ever asked for a key: before, no file is touched.
    wanted: AtomicBool,
    look: Mutex<Look>,
    known: watch::Sender<Known>,
    lockouts: Mutex<Lockouts>,
    metrics: Metrics,
}

/// What the last look at the files showed.
#[derive(Default)]
struct Look {
    seen: Option<Stamps>,
    /// What was wrong, and has been told.
    trouble: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    keys: Arc<Keys>,
    /// Whether the files can be used. While they cannot, nobody new is let in, and nobody
    /// is put out: that a key is gone is not known.
    usable: bool,
}

/// The key that a session was established with.
pub struct Credential {
    key: Arc<Key>,
    device: DeviceId,
    known: watch::Receiver<Known>,
}

impl Authenticator {
    pub fn new(devices: &config::Devices, store: &config::Store, metrics: Metrics) -> Authenticator {
        Authenticator(Arc::new(Inner {
            allow: devices.allow.clone(),
            deny: devices.deny.clone(),
            files: KeyFiles::of(devices, store),
            wanted: AtomicBool::new(false),
            look: Mutex::default(),
            known: watch::Sender::default(),
            lockouts: Mutex::new(Lockouts::new(devices.lock_out_after)),
            metrics,
        }))
    }

    /// Whether a device of this name may come at all.
    pub fn allows(&self, device: &DeviceId) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, device.as_str()));
        (self.0.allow.is_empty() || any(&self.0.allow)) && !any(&self.0.deny)
    }

    /// Something new to prove oneself with.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn nonce(&self) -> Result<Nonce> {
        random()
    }

    /// Looks at the keys, so that what is wrong with them is told before a device needs
    /// them.
    pub fn prepare(&self) {
        self.0.wanted.store(true, Ordering::Relaxed);
        self.look(true);
    }

    /// Who made `attempt`, by the keys as they are on disk now.
    ///
    /// # Errors
    /// If it proved no key that lets the device in.
    pub fn verify(&self, attempt: &Attempt, demanded: Authentication) -> Result<Credential, AuthError> {
        self.0.wanted.store(true, Ordering::Relaxed);
        self.look(false);
        let mut known = self.0.known.subscribe();
        let Known { keys, usable } = known.borrow_and_update().clone();
        if !usable {
            return Err(AuthError::NoKeys);
        }
        let key = keys.verify(attempt, demanded)?;
        Ok(Credential { key, device: attempt.device.clone(), known })
    }

    /// For how long nothing is taken from `origin`, if so.
    pub fn locked_out(&self, origin: &Origin, now: Duration) -> Option<Duration> {
        self.0.lockouts.lock().locked(origin, now)
    }

    /// Counts what failed on `link`. Returns how long its origin is locked out, if that
    /// is new.
    pub fn failed(&self, link: &Arc<str>, origin: &Origin, fault: AuthError, now: Duration) -> Option<Duration> {
        let label = LinkReasonLabel { link: link.clone(), reason: fault.label() };
        self.0.metrics.authentication_failures.get_or_create(&label).inc();
        fault.is_a_guess().then(|| self.0.lockouts.lock().failed(origin, now)).flatten()
    }

    /// Sees to it that changes of the files are noticed, until `stop` turns true.
    pub async fn watch(self, mut stop: watch::Receiver<bool>) {
        stop::every(LOOK_EVERY, &mut stop, || {
            if self.0.wanted.load(Ordering::Relaxed) {
                self.look(true);
            }
        })
        .await;
    }

    /// Reads the files if they changed, or if they were in trouble and it is time to `retry`.
    fn look(&self, retry: bool) {
        let mut look = self.0.look.lock();
        let stamps = self.0.files.stamps();
        if look.seen == Some(stamps) && !(retry && look.trouble.is_some()) {
            return;
        }
        look.seen = Some(stamps);
        let known = match self.0.files.load() {
            Ok(keys) => {
                if look.trouble.take().is_some() {
                    tracing::info!(keys = keys.len(), "the keys of devices can be used again");
                }
                Known { keys: Arc::new(keys), usable: true }
            }
            Err(why) => {
                let why = format!("{why:#}");
                if look.trouble.as_ref() != Some(&why) {
                    tracing::error!(why, "no device can authenticate by a key");
                    look.trouble = Some(why);
                }
                Known::default()
            }
        };
        let count = i64::try_from(known.keys.len()).unwrap_or(i64::MAX);
        self.0.metrics.keys.set(count);
        self.0.known.send_if_modified(|now| {
            let changed = now.usable != known.usable || now.keys != known.keys;
            if changed {
                *now = known;
            }
            changed
        });
    }
}

impl Credential {
    /// The key's name.
    pub fn key(&self) -> &str {
        &self.key.name
    }

    /// Waits until something about keys changed: see [`Credential::is_revoked`].
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut known = self.known.clone();
        async move {
            if known.changed().await.is_err() {
                std::future::pending().await // the gateway is going
            }
        }
    }

    /// Whether the key is gone, or no longer the device's.
    pub fn is_revoked(&mut self) -> bool {
        let Known { keys, usable } = self.known.borrow_and_update().clone();
        usable && !keys.still_has(&self.key, &self.device)
    }
}
