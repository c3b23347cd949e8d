//! What is made of files that may come late, be replaced or expire: certificates with
//! their keys, and tokens.
//!
//! They are read at the start and again when they change. What was good serves on until
//! something good takes its place; what never was is waited for.

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

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often what is in trouble is tried again though no file has changed.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// How often it is told that a certificate expires.
const TELL_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What is made of some files, as they are or as they last were in order.
pub struct Kept<T> {
    /// The link or sink that needs it.
    part: Arc<str>,
    files: Vec<PathBuf>,
    /// What follows from there being none, to be said with the reason.
    without: &'static str,
    make: Make<T>,
    state: Mutex<State<T>>,
}

/// Makes it, and tells from when to when it holds.
type Make<T> = Box<dyn Fn() -> Result<(T, Option<Validity>)> + Send + Sync>;

struct State<T> {
    made: Option<(Arc<T>, Option<Validity>)>,
    /// What the files were like when they were read.
    seen: Vec<Option<Stamp>>,
    /// When they were looked at and read last.
    looked: Option<Duration>,
    tried: Duration,
    /// What is wrong with them, and has been told.
    trouble: Option<String>,
}

impl<T> Kept<T> {
    /// What `make` makes of the `files`, which are read now.
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

    /// It, by the files as they are or as they last were in order; `None` if they never were.
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

    /// It, as it was when somebody looked last.
    pub fn latest(&self) -> Option<Arc<T>> {
        self.state.lock().made.as_ref().map(|(made, _)| made.clone())
    }

    /// As [`Kept::current`], with everything read afresh: it may come from elsewhere, too.
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
                        tracing::info!(%part, files, "what was wrong with these files is mended; they are in use")
                    }
                    (None, true) => tracing::debug!(%part, files, "read again"),
                    (None, false) => {}
                }
            }
            Err(why) => {
                let why = format!("{why:#}");
                if state.trouble.as_ref() != Some(&why) {
                    match since {
                        true => tracing::warn!(%part, why, "new files cannot be used; going on with the old ones"),
                        false => tracing::warn!(%part, why, "{}; trying on", self.without),
                    }
                    state.trouble = Some(why);
                }
            }
        }
    }
}

/// What is kept, whatever it is.
pub trait Credential: Send + Sync {
    /// Looks at the files.
    fn look(&self, now: Duration);
    /// The link or sink that needs it.
    fn part(&self) -> &Arc<str>;
    /// What is wrong with its files, and what follows from that.
    fn trouble(&self) -> Option<String>;
    /// When it holds, and the file that says so.
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
            Some(_) => format!("{why}; what was read before is used on"),
            None => format!("{why}; {}", self.without),
        })
    }

    fn validity(&self) -> Option<(Validity, String)> {
        let validity = self.state.lock().made.as_ref()?.1?;
        Some((validity, self.files.first().map(|path| path.display().to_string()).unwrap_or_default()))
    }
}

/// One credential, and what was told of it.
struct Watched {
    credential: Arc<dyn Credential>,
    trouble: Note,
    expiry: Note,
    told: Option<(Kind, Duration)>,
}

/// What is the matter, whatever the day.
type Kind = std::mem::Discriminant<Lapse>;

/// Looks at all credentials again and again, and tells what is the matter with them, until
/// `stop` turns true.
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
        assert!(kept.trouble().is_some_and(|why| why.contains("it is bad") && why.contains("used on")));
        assert_eq!(kept.afresh().expect("there is one").as_str(), "good");
        std::fs::write(&path, "good again").expect("a file");
        assert_eq!(kept.current(at(2)).as_deref().map(String::as_str), Some("good again"));
        assert_eq!(kept.trouble(), None);
    }

    /// One whose certificate expires soon.
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
