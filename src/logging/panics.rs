//! Logs panics as lines, with a bounded wait for the reader of the log.

use super::facts::Facts;
use super::form::Origin;
use super::lines::{Lines, THREAD};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::time::Duration;
use tracing::Level;

/// In release builds the process ends afterwards.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

const PANIC: Origin = Origin { level: Level::ERROR, target: module_path!(), file: None, line: None };

/// Logs panics by `lines` from now on.
pub fn take_over(lines: Lines) {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The writer thread cannot wait for itself.
        match std::thread::current().name() {
            Some(THREAD) => otherwise(panic),
            name => say(&lines, panic, name.unwrap_or("unnamed"), &Backtrace::capture()),
        }
    }));
}

fn say(lines: &Lines, panic: &PanicHookInfo<'_>, thread: &str, backtrace: &Backtrace) {
    let text = panic.payload().downcast_ref::<String>().map(String::as_str);
    let why = text.or(panic.payload().downcast_ref().copied()).unwrap_or("for an unknown reason");
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let facts = Facts::saying("panicked, which is a fault of tidegate: report it, with the lines around this one");
    lines.say(&PANIC, &facts.and("why", why).and("thread", thread).and("at", at));
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            lines.say(&PANIC, &Facts::saying(line));
        }
    }
    lines.flush(FLUSH_TIMEOUT);
}

#[cfg(test)]
mod tests {
    use super::super::Logging;
    use std::io::{ErrorKind, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    #[ignore = "is run by the tests below, in a process of its own"]
    fn panics() {
        let _logging = Logging::for_service("info").expect("nothing else logs here");
        panic!("deliberately,\nin two lines");
    }

    fn child() -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.args(["--exact", "logging::panics::tests::panics", "--ignored"]).stdout(Stdio::null());
        command.env_remove("RUST_LOG").env_remove("JOURNAL_STREAM").env("RUST_BACKTRACE", "1");
        command
    }

    #[test]
    #[cfg_attr(not(target_arch = "x86_64"), ignore = "starts this program, which an emulator of one process cannot")]
    fn a_panic_is_a_line_like_others_and_gets_out_before_the_end() {
        let output = child().stderr(Stdio::piped()).output().expect("it runs");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find(|line| line.contains(" panicked, ")).expect("the line");
        for part in
            [" ERROR tidegate::logging::panics: ", "why=\"deliberately,\\nin two lines\"", "at=src/logging/panics.rs:"]
        {
            assert!(line.contains(part), "no {part} in {line}");
        }
        assert!(said.lines().any(|line| line.contains("logging::panics::tests::panics")), "the backtrace\n{said}");
    }

    #[test]
    #[cfg_attr(not(target_arch = "x86_64"), ignore = "starts this program, which an emulator of one process cannot")]
    fn a_panic_that_nobody_reads_of_does_not_keep_the_process() {
        let (mut end, _unread) = UnixStream::pair().expect("sockets");
        end.set_nonblocking(true).expect("an option");
        let full = loop {
            if let Err(why) = end.write_all(&[b'.'; 4096]) {
                break why;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        end.set_nonblocking(false).expect("an option");
        let status = child().stderr(OwnedFd::from(end)).status().expect("it runs");
        assert!(!status.success());
    }
}
