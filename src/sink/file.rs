//! A directory as a destination: JSON lines or CSV in files that somebody carries away.
//! `docs/files.md` describes them.

mod series;
mod writer;

use super::check::Report;
use super::encode::text::{Line, Lines};
use super::encode::{self, Delivered};
use super::lifecycle::{Build, PumpSettings, Running};
use super::{Budget, Destination, Encoded, Identity, Outcome, Part, SinkConnection, Unencodable};
use crate::backoff::Failure;
use crate::clock::{Clock, Now};
use crate::config::{FILE_BATCH, FILE_WINDOW, FileSink};
use crate::model::{Epoch, Epochs, Seq, SequencedBatch};
use crate::store::LogEvent;
use series::{Series, directory};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use writer::{WriteRequest, Writer};

/// Pauses between attempts to use the directory.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How long a directory must work before the pauses start over.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Something to write.
#[derive(Debug)]
pub enum Payload {
    /// Lines of readings of one epoch, from the first seq to the last. None if they are all in a
    /// file already.
    Readings { epoch: Epoch, first: Seq, last: Seq, text: Vec<u8> },
    /// The line of an event.
    Event(Vec<u8>),
}

/// What makes a sink of the section.
pub(in crate::sink) fn build(section: FileSink) -> Build {
    Box::new(move |cursor, context| {
        let settings = PumpSettings {
            backoff_min: BACKOFF.0,
            backoff_max: BACKOFF.1,
            stable_after: STABLE_AFTER,
            max_batch: usize::try_from(FILE_BATCH).unwrap_or(usize::MAX),
        };
        let destination = FileDestination {
            section: Arc::new(section),
            identity: context.identity.clone(),
            epochs: context.epochs.clone(),
            clock: context.clock.clone(),
            written: HashMap::new(),
            opening: None,
        };
        Ok(Running::new(destination, cursor, &settings, context))
    })
}

/// Says whether the directory can be used. Returns how much is wrong.
pub(in crate::sink) fn check(section: &FileSink, path: &str, report: Report<'_>) -> usize {
    let at = section.directory();
    report(format!("{path} {}, {}", section.name, at.display()));
    match directory::try_directory(at) {
        Ok(free) => {
            report(format!(
                "  ok     write    files can be written; {} are free",
                bytesize::ByteSize(free).display().iec()
            ));
            0
        }
        Err(why) => {
            report(format!("  WRONG  write    {why}; create the directory, or plug in what it is on"));
            1
        }
    }
}

struct FileDestination {
    section: Arc<FileSink>,
    identity: Identity,
    epochs: Epochs,
    clock: Arc<dyn Clock>,
    /// Of each epoch, up to which seq the files have its readings.
    written: HashMap<Epoch, Seq>,
    /// An attempt to open the directory that has not returned yet.
    opening: Option<oneshot::Receiver<Result<Series, String>>>,
}

impl FileDestination {
    /// Opens the directory on a thread of its own: a medium that does not answer holds it for as
    /// long as it likes.
    fn open(&self) -> oneshot::Receiver<Result<Series, String>> {
        let section = self.section.clone();
        let (gateway, clock) = (self.identity.gateway.clone(), self.clock.clone());
        let (opened, opening) = oneshot::channel();
        let open = move || {
            // Nobody waits any more if the gateway stops.
            let _ = opened.send(Series::open(section.directory(), &section, &gateway, clock));
        };
        // Without a thread the sender is gone, which says so.
        let _ = thread::Builder::new().name("file-open".into()).spawn(open);
        opening
    }
}

/// How long a medium may take to open, or to write what it was given.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

fn silent(directory: &Path) -> Failure {
    let shown = directory.display();
    Failure::transient(format!("{shown} has not answered for {} s; is the medium broken?", ANSWERS_WITHIN.as_secs()))
}

impl Destination for FileDestination {
    type Payload = Payload;
    type Connection = FileConnection;

    async fn connect(&mut self) -> Result<FileConnection, Failure> {
        let opening = match self.opening.take() {
            Some(opening) => opening,
            None => self.open(),
        };
        let opened = timeout(ANSWERS_WITHIN, self.opening.insert(opening)).await;
        let opened = opened.map_err(|_| silent(self.section.directory()))?;
        self.opening = None;
        let series = opened.map_err(|_| Failure::transient("cannot start a thread"))?.map_err(Failure::transient)?;
        self.written = series.written().clone();
        let (requests, outcomes) = Writer::start(series, self.section.flush_within).map_err(Failure::transient)?;
        let directory = self.section.directory().to_owned();
        let answers_within = self.section.flush_within + ANSWERS_WITHIN;
        Ok(FileConnection { directory, requests, outcomes, answers_within, outstanding: 0, answered: Instant::now() })
    }

    fn encode(
        &self,
        chunk: &[SequencedBatch],
        after: Seq,
        budget: Budget,
        _: Now,
    ) -> Result<Encoded<Payload>, Unencodable> {
        // The readings of one epoch, which ends with `end`.
        let (mut range, mut readings) = (None, 0);
        let mut lines = Lines::new(self.section.format, Vec::new());
        'all: for batch in chunk {
            for (seq, origin, reading) in batch.after(after) {
                let (epoch, end, first, _) = *range.get_or_insert_with(|| {
                    let (epoch, end) = self.epochs.of(seq);
                    (epoch, end, seq, seq)
                });
                if seq > end {
                    break 'all;
                }
                if self.written.get(&epoch).is_none_or(|written| *written < seq) {
                    let line = Line { epoch: Some(epoch), reading: Delivered::of(seq, &batch.batch, origin, reading) };
                    // A vector takes everything.
                    let _ = lines.line(&line).and_then(|()| lines.flush());
                }
                range = Some((epoch, end, first, seq));
                readings += 1;
                if lines.get_ref().len() >= budget.batch {
                    break 'all;
                }
            }
        }
        let Some((epoch, _, first, last)) = range else { return Err(Unencodable::Nothing) };
        let text = lines.into_inner().unwrap_or_default();
        let size = text.len();
        let payload = Payload::Readings { epoch, first, last, text };
        Ok(Encoded { payloads: vec![Part { payload, size, readings, first, last }], upto: last, readings })
    }

    fn event(&self, event: &LogEvent) -> Payload {
        let body = encode::event(event, &self.identity.gateway, &self.epochs);
        Payload::Event(format!("{}\n", serde_json::Value::Object(body)).into_bytes())
    }

    fn lane(_: &Payload) -> &str {
        "files"
    }
}

/// The thread that writes, and what becomes of what it is given.
struct FileConnection {
    directory: PathBuf,
    requests: SyncSender<WriteRequest>,
    outcomes: UnboundedReceiver<Outcome>,
    answers_within: Duration,
    outstanding: usize,
    /// When the medium answered last, or was given the first that is outstanding.
    answered: Instant,
}

impl SinkConnection for FileConnection {
    type Payload = Payload;

    fn window(&self) -> usize {
        FILE_WINDOW.into()
    }

    fn max_payload(&self) -> usize {
        usize::MAX
    }

    fn tells_size(&self) -> bool {
        true
    }

    /// A directory that fails says nothing of what was to be written there, and to try another
    /// reading first would write that.
    fn is_limited(&self) -> bool {
        true
    }

    fn send(&mut self, token: u64, payload: Payload) -> Result<(), Failure> {
        // There is a place for each payload of the window.
        self.requests.try_send(WriteRequest { token, payload }).map_err(|why| Failure::transient(why.to_string()))?;
        if self.outstanding == 0 {
            self.answered = Instant::now();
        }
        self.outstanding += 1;
        Ok(())
    }

    async fn outcome(&mut self) -> Outcome {
        tokio::select! {
            biased;
            outcome = self.outcomes.recv() => {
                self.outstanding = self.outstanding.saturating_sub(1);
                self.answered = Instant::now();
                let ended = || Outcome::Lost(Failure::transient("the thread that writes the files ended"));
                outcome.unwrap_or_else(ended)
            }
            () = sleep_until(self.answered + self.answers_within), if self.outstanding > 0 => {
                Outcome::Lost(silent(&self.directory))
            }
        }
    }

    async fn close(mut self, within: Duration) {
        drop(self.requests);
        // The writer flushes, closes its file and goes.
        let _ = timeout(within, async { while self.outcomes.recv().await.is_some() {} }).await;
    }
}
