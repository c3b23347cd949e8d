//! The path of a line: from an event through the limiter and the queue to the writer thread. Only
//! that thread waits for the reader of the log.

use super::facts::Facts;
use super::form::{Form, Origin};
use super::limiter::{Limiter, Sum};
use super::queue::{Missed, Next, Queue};
use crate::metrics::LogLines;
use crate::model::Timestamp;
use parking_lot::Mutex;
use std::hash::RandomState;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;

/// Writes one line; may block on the reader of the log.
pub type Write = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    form: Form,
    queue: Queue,
    limiter: Mutex<Limiter<Identifier, Line>>,
    /// Hashes the subjects of lines.
    hashes: RandomState,
    began: Instant,
    counts: LogLines,
}

struct Line {
    origin: Origin,
    facts: Facts,
}

/// Name of the writer thread.
pub const THREAD: &str = "log lines";

/// The origin of this module's own lines.
const OWN: Origin = Origin { level: Level::WARN, target: module_path!(), file: Some(file!()), line: None };

impl Lines {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(form: Form, write: Write) -> io::Result<Lines> {
        let counts = LogLines::default();
        let lines = Lines(Arc::new(Shared {
            form,
            queue: Queue::new(counts.clone()),
            limiter: Mutex::new(Limiter::new()),
            hashes: RandomState::new(),
            began: Instant::now(),
            counts,
        }));
        let writer = lines.clone();
        // The thread ends with the process.
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || writer.write_all(write))?;
        Ok(lines)
    }

    pub fn counts(&self) -> LogLines {
        self.0.counts.clone()
    }

    /// Logs a line, bypassing levels and limiter.
    pub fn say(&self, origin: &Origin, facts: &Facts) {
        let now = now();
        self.0.queue.push(origin.level, self.0.form.write(origin, facts, now), now);
    }

    /// Logs the sums of counted lines, and waits until everything is written, for `within` at most.
    pub fn finish(&self, within: Duration) {
        let sums = self.0.limiter.lock().finish(self.0.began.elapsed());
        sums.into_iter().for_each(|sum| self.sum_up(sum));
        self.flush(within);
    }

    /// Waits until everything is written, for `within` at most.
    pub fn flush(&self, within: Duration) {
        self.0.queue.flush(within);
    }

    fn write_all(self, mut write: Write) {
        let shared = &*self.0;
        loop {
            let sums = shared.limiter.lock().due(shared.began.elapsed());
            sums.into_iter().for_each(|sum| self.sum_up(sum));
            let next = shared.limiter.lock().next();
            let line = match shared.queue.next(next.map(|next| shared.began + next)) {
                Next::Look => continue,
                Next::Write(line) => line,
                Next::Tell(missed) => shared.form.write(&OWN, &told(missed), now()),
            };
            let written = write(&line);
            shared.queue.wrote(written.is_ok(), now());
        }
    }

    fn sum_up(&self, sum: Sum<Line>) {
        self.say(&sum.last.origin, &summed_up(sum.last.facts, sum.count, sum.within));
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line { origin: Origin::of(metadata), facts: Facts::of(event) };
        // A user who enables more levels wants every line.
        if line.origin.level <= Level::INFO {
            let subject = line.facts.subject(&self.0.hashes);
            let now = self.0.began.elapsed();
            match self.0.limiter.lock().offer(metadata.callsite(), subject, line, now) {
                Some(said) => line = said,
                None => {
                    self.0.counts.summarised.inc();
                    return;
                }
            }
        }
        self.say(&line.origin, &line.facts);
    }
}

fn summed_up(mut facts: Facts, count: u64, within: Duration) -> Facts {
    let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
    let within = match within.as_secs_f64().round() as u64 {
        0 | 1 => "second".to_owned(),
        seconds @ 2..55 => format!("{seconds} seconds"),
        55..90 => "minute".to_owned(),
        seconds => format!("{} minutes", (seconds + 30) / 60),
    };
    facts.message = format!("{} ... {times} more in the last {within}, the last one:", facts.message);
    facts
}

fn told(missed: Missed) -> Facts {
    let Missed { count, since } = missed;
    let lines = if count == 1 { "line of the log was" } else { "lines of the log were" };
    let message = format!(
        "{count} {lines} dropped here: their reader (the journal, or what standard error goes to) did not keep up; \
         if this comes again, see that it runs, or log less ([gateway] log_level)"
    );
    Facts::saying(&message).and("since", since)
}

fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tracing_subscriber::layer::SubscriberExt;

    /// Lines that are written one by one, as they are received.
    fn lines() -> (Lines, mpsc::Receiver<String>) {
        // Without a buffer: the writer waits for the reader.
        let (out, read) = mpsc::sync_channel(0);
        let write = move |line: &[u8]| {
            let text = String::from_utf8_lossy(line).into_owned();
            out.send(text).map_err(io::Error::other)
        };
        (Lines::start(Form::Text { colours: false }, Box::new(write)).expect("a thread"), read)
    }

    #[test]
    fn nobody_who_logs_waits_for_whoever_reads_and_what_is_missing_is_told() {
        let (lines, read) = lines();
        let began = Instant::now();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines.clone()), || {
            for number in 0..5000 {
                tracing::debug!(number, "counting");
            }
        });
        lines.finish(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(30));
        let dropped = lines.counts().dropped.get();
        assert!(dropped > 1000, "{dropped}");
        // Lines arrive in order. Where lines were dropped depends on when the first was taken.
        let mut numbers: Vec<u64> = Vec::new();
        let mut told = false;
        while numbers.len() as u64 + dropped < 5000 || !told {
            let line = read.recv().expect("a line");
            if line.contains(" dropped here") {
                assert!(line.contains(&format!(": {dropped} lines of the log were")) && !told, "{line}");
                told = true;
                continue;
            }
            let (_, number) = line.split_once(" DEBUG tidegate::logging::lines::tests: counting number=").expect(&line);
            numbers.push(number.trim_end().parse().expect(&line));
        }
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    #[test]
    fn what_was_counted_is_summed_up_in_the_end_at_its_level() {
        let (lines, read) = lines();
        let logged = lines.clone();
        let logging = std::thread::spawn(move || {
            tracing::subscriber::with_default(tracing_subscriber::registry().with(logged.clone()), || {
                for number in 0..50 {
                    tracing::warn!(link = "tcp", number, "it flaps");
                }
                tracing::error!(link = "tcp", "it is broken");
            });
            logged.finish(Duration::from_secs(60));
        });
        let mut said: Vec<String> = Vec::new();
        while !said.last().is_some_and(|line| line.contains(" more in the last ")) {
            said.push(read.recv().expect("a line"));
        }
        logging.join().expect("it ends");
        assert_eq!(said.len(), 7, "{said:?}");
        assert!(said[5].contains("ERROR") && said[5].contains(": it is broken link=tcp"), "{said:?}");
        let sum = ": it flaps ... 45 times more in the last second, the last one: link=tcp number=49\n";
        assert!(said[6].contains(" WARN ") && said[6].ends_with(sum), "{said:?}");
        assert_eq!(lines.counts().summarised.get(), 45);
    }

    #[test]
    fn times_are_told_as_people_do() {
        let told = |count, seconds| summed_up(Facts::saying("x"), count, Duration::from_secs(seconds)).message;
        assert_eq!(told(53, 60), "x ... 53 times more in the last minute, the last one:");
        assert_eq!(told(1, 12), "x ... once more in the last 12 seconds, the last one:");
        assert_eq!(told(2, 120), "x ... 2 times more in the last 2 minutes, the last one:");
        assert_eq!(told(2, 600), "x ... 2 times more in the last 10 minutes, the last one:");
    }
}
