//! Credentials loaded from files that may appear late, be replaced or expire: certificates with
//! their keys, and tokens.
//!
//! The files are read at the start and again when they change. A valid credential stays in use
//! until a valid one replaces it; a missing one is waited for.

use crate::clock::{Clock, Now};
use crate::files::Stamp;
use crate::metrics::{CertificateLabel, Metrics};
use crate::notes::{Note, Notes};
use crate::pem::{Lapse, Validity};
use crate::stop;
use anyhow::Result;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Shortest interval of checking the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Interval of retrying invalid files that have not changed.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// Interval of reporting that a certificate expires.
const TELL_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A credential from some files, as they are or as they last were valid.
pub struct Kept<T> {
    /// The link or sink that uses it.
    part: Arc<str>,
    files: Vec<PathBuf>,
    /// The consequence of having none, reported with the reason.
    without: &'static str,
    make: Make<T>,
    state: Mutex<State<T>>,
}

/// Loads the credential, and its period of validity.
type Make<T> = Box<dyn Fn() -> Result<(T, Option<Validity>)> + Send + Sync>;

struct State<T> {
    made: Option<(Arc<T>, Option<Validity>)>,
    /// The files' stamps when they were read.
    seen: Vec<Option<Stamp>>,
    /// When they were last checked, and last read.
    looked: Option<Duration>,
    tried: Duration,
    /// Their fault, which has been reported.
    trouble: Option<String>,
}

impl<T> Kept<T> {
    /// The credential that `make` loads from `files`, which are read now.
    pub fn new(
        part: impl Into<Arc<str>>,
        files: Vec<PathBuf>,
        without: &'static str,
        now: Duration,
        make: impl Fn() -> Result<(T, Option<Validity>)> + Send + Sync + 'static,
    ) -> Kept<T> {
        let state = State { made: None, seen: Vec::new(), looked: None, tried: now, trouble: None };
        let kept = Kept { part: part.into(), files, without, make: Box::new(make), state: Mutex::new(state) };
        kept.current(now);
        kept
    }

    /// The credential by the files as they are, or as they last were valid; `None` if they never
    pub fn current(&self, now: Duration) -> Option<Arc<T>> {
        let mut state = self.state.lock();
        if state.looked.is_none_or(|looked| now >= looked + LOOK_EVERY) {
            state.looked = Some(now);
            let seen: Vec<_> = self.files.iter().map(|path| Stamp::of(path)).collect();
            let overdue = state.trouble.is_some() && now >= state.tried + RETRY_EVERY;
            if state.made.is_none() && state.trouble.is_none() || state.seen != seen || overdue {
                (state.seen, state.tried) = (seen, now);
                self.read(&mut state);
            }
        }
        drop(state);
        self.latest()
    }

    /// The credential at the last check.
    pub fn latest(&self) -> Option<Arc<T>> {
        self.state.lock().made.as_ref().map(|(made, _)| made.clone())
    }

    /// As [`Kept::current`], but loads everything again: parts may come from elsewhere.
    ///
    /// # Errors
    /// Why there is none.
    pub fn afresh(&self) -> Result<Arc<T>, String> {
        let mut state = self.state.lock();
        self.read(&mut state);
        let State { made, trouble, .. } = &*state;
        made.as_ref().map(|(made, _)| made.clone()).ok_or_else(|| trouble.clone().unwrap_or_default())
    }

    fn read(&self, state: &mut State<T>) {
        let (part, since) = (&self.part, state.made.is_some());
        match (self.make)() {
            Ok((made, validity)) => {
                state.made = Some((Arc::new(made), validity));
                let files = self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
                match (state.trouble.take(), since) {
                    (Some(_), _) => {
                        tracing::info!(%part, files, "these files are valid again, and in use")
                    }
                    (None, true) => tracing::debug!(%part, files, "read again"),
                    (None, false) => {}
                }
            }
            Err(why) => {
                let why = format!("{why:#}");
                if state.trouble.as_ref() != Some(&why) {
                    match since {
                        true => tracing::warn!(%part, why, "new files cannot be used; the old ones stay in use"),
                        false => tracing::warn!(%part, why, "{}; retrying", self.without),
                    }
                    state.trouble = Some(why);
                }
            }
        }
    }
}

/// A credential of any type.
pub trait Credential: Send + Sync {
    /// Checks the files.
    fn look(&self, now: Duration);
    /// The link or sink that uses it.
    fn part(&self) -> &Arc<str>;
    /// The fault of its files, and the consequence.
    fn trouble(&self) -> Option<String>;
    /// Its period of validity, and the file with the certificate.
    fn validity(&self) -> Option<(Validity, String)>;
}

impl<T: Send + Sync> Credential for Kept<T> {
    fn look(&self, now: Duration) {
        self.current(now);
    }

    fn part(&self) -> &Arc<str> {
        &self.part
    }

    fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        let why = state.trouble.as_ref()?;
        Some(match state.made {
            Some(_) => format!("{why}; the gateway uses what it read before"),
            None => format!("{why}; {}", self.without),
        })
    }

    fn validity(&self) -> Option<(Validity, String)> {
        let validity = self.state.lock().made.as_ref()?.1?;
        Some((validity, self.files.first().map(|path| path.display().to_string()).unwrap_or_default()))
    }
}

/// One credential, and what was reported of it.
struct Watched {
    credential: Arc<dyn Credential>,
    trouble: Note,
    expiry: Note,
    told: Option<(Kind, Duration)>,
}

/// The kind of a lapse, whatever the day.
type Kind = std::mem::Discriminant<Lapse>;

/// Checks all credentials repeatedly, and reports their faults, until `stop` turns true.
pub async fn watch(
    credentials: Vec<Arc<dyn Credential>>,
    clock: Arc<dyn Clock>,
    notes: Notes,
    metrics: Metrics,
    mut stop: watch::Receiver<bool>,
) {
    let about = |credential: Arc<dyn Credential>| {
        let (trouble, expiry) = (notes.about(credential.part().clone()), notes.about(credential.part().clone()));
        Watched { credential, trouble, expiry, told: None }
    };
    let mut watched: Vec<_> = credentials.into_iter().map(about).collect();
    stop::every(LOOK_EVERY, &mut stop, || {
        for one in &mut watched {
            one.look(clock.now(), &metrics);
        }
    })
    .await;
}

impl Watched {
    fn look(&mut self, now: Now, metrics: &Metrics) {
        self.credential.look(now.monotonic);
        match self.credential.trouble() {
            Some(why) => self.trouble.is_down(why, now.monotonic),
            None => self.trouble.works(),
        }
        let Some((validity, file)) = self.credential.validity() else { return };
        let part = self.credential.part();
        let label = CertificateLabel { part: part.clone() };
        metrics.certificate_expires_seconds.get_or_create(&label).set(validity.not_after.0 / 1_000_000);
        let Some(lapse) = validity.lapse(now.wall, now.trusted) else {
            self.told = None;
            return self.expiry.works();
        };
        let kind = std::mem::discriminant(&lapse);
        self.expiry.is_down(format!("the certificate in {file} {lapse}; renew it"), now.monotonic);
        if self.told.is_none_or(|(before, when)| before != kind || now.monotonic >= when + TELL_EVERY) {
            self.told = Some((kind, now.monotonic));
            tracing::warn!(%part, file, "the certificate {lapse}; renew it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use anyhow::Context;

    fn kept(path: &std::path::Path) -> Kept<String> {
        let file = path.to_owned();
        Kept::new("tcp", vec![path.to_owned()], "nobody is let in", Duration::ZERO, move || {
            let text = std::fs::read_to_string(&file).context("no file")?;
            anyhow::ensure!(text.starts_with("good"), "it is bad");
            Ok((text, None))
        })
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn what_was_good_is_kept_until_something_good_takes_its_place() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "good").expect("a file");
        let kept = kept(&path);
        std::fs::write(&path, "bad, and longer").expect("a file");
        assert_eq!(kept.current(at(0)).as_deref().map(String::as_str), Some("good"), "it is not looked at yet");
        assert_eq!(kept.current(at(1)).as_deref().map(String::as_str), Some("good"));
        assert!(
            kept.trouble().is_some_and(|why| why.contains("it is bad") && why.contains("uses what it read before"))
        );
        assert_eq!(kept.afresh().expect("there is one").as_str(), "good");
        std::fs::write(&path, "good again").expect("a file");
        assert_eq!(kept.current(at(2)).as_deref().map(String::as_str), Some("good again"));
        assert_eq!(kept.trouble(), None);
    }

    /// A credential whose certificate expires soon.
    struct Expiring(Arc<str>);

    impl Credential for Expiring {
        fn look(&self, _: Duration) {}

        fn part(&self) -> &Arc<str> {
            &self.0
        }

        fn trouble(&self) -> Option<String> {
            None
        }

        fn validity(&self) -> Option<(Validity, String)> {
            let (not_before, not_after) = (Timestamp(0), Timestamp(1_000_000_000_000_000));
            Some((Validity { not_before, not_after }, "server.pem".to_owned()))
        }
    }

    #[test]
    fn that_a_certificate_expires_is_told_once_a_day() {
        let (notes, metrics) = (Notes::default(), Metrics::new());
        let (trouble, expiry) = (notes.about("tcp"), notes.about("tcp"));
        let mut watched = Watched { credential: Arc::new(Expiring("tcp".into())), trouble, expiry, told: None };
        let mut told_at = |second: u64| {
            let wall = Timestamp(999_000_000_000_000);
            watched.look(Now { wall, trusted: true, monotonic: at(second) }, &metrics);
            watched.told.map(|(_, when)| when)
        };
        assert_eq!(told_at(5), Some(at(5)));
        assert_eq!(told_at(86_404), Some(at(5)));
        assert_eq!(told_at(86_405), Some(at(86_405)));
        let told = notes.told(Now { wall: Timestamp(0), trusted: true, monotonic: at(86_405) });
        assert!(told[0].reason.starts_with("the certificate in server.pem expires in 11 days"), "{told:?}");
        assert!(metrics.encode().contains("tidegate_certificate_expires_seconds{part=\"tcp\"} 1000000000"));
    }

    #[test]
    fn what_never_was_is_waited_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        let kept = kept(&path);
        assert!(kept.current(at(5)).is_none() && kept.afresh().expect_err("no file").contains("no file"));
        assert!(kept.trouble().is_some_and(|why| why.ends_with("nobody is let in")));
        std::fs::write(&path, "good").expect("a file");
        assert!(kept.current(at(5)).is_none());
        assert!(kept.current(at(6)).is_some());
    }
}
