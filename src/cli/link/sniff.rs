//! `tidegate link sniff`: decodes the traffic of a serial line, message by message.

mod decoder;
mod show;
mod source;

use crate::clock::{Clock, SystemClock};
use anyhow::Context;
use bytesize::ByteSize;
use decoder::LineDecoder;
use show::{Shown, Summary};
use source::Source;
use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

/// Shows the traffic of a serial line: each message with its fields, and all other bytes
/// in hexadecimal with the reason
///
/// Only listens. A gateway that has the same port open gets the bytes that this misses,
/// and the other way round: neither gets all. Frames that the gateway sends are seen on
/// a line that echoes them, or in a capture. Ctrl-C ends it with a summary.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A serial port, a file of captured bytes, or - for standard input
    #[arg(value_name = "PORT|FILE|-")]
    from: String,
    /// Bits a second; without it a port keeps its settings, or gets 115200 if it has no
    /// speed yet
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    baud: Option<u32>,
    /// Largest frame body accepted
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    max_frame: ByteSize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// After this silence an incomplete frame is abandoned; a frame that takes this long is searched
/// for another one inside it.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs the verb until the input ends or Ctrl-C is pressed. False if a port vanished.
///
/// # Errors
/// If the input cannot be read or the output cannot be written.
pub async fn run(args: Args) -> anyhow::Result<bool> {
    let clock = SystemClock::new();
    let mut source = Source::open(&args.from, args.baud)?;
    let live = source.is_port();
    let mut decoder = LineDecoder::new(usize::try_from(args.max_frame.as_u64()).unwrap_or(usize::MAX));
    let mut summary = Summary::default();
    let mut begun = Instant::now();
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let ended = loop {
        let mut heard = Vec::new();
        let ended = tokio::select! {
            bytes = source.next() => match bytes? {
                Some(bytes) => {
                    let before = decoder.begun();
                    decoder.push(&bytes, &mut heard);
                    if before.is_none() || before != decoder.begun() {
                        begun = Instant::now();
                    } else if live && begun.elapsed() > PAUSE {
                        decoder.look_inside(&mut heard);
                    }
                    None
                }
                None => Some(!live),
            },
            interrupted = &mut interrupted => {
                interrupted.context("cannot listen for Ctrl-C")?;
                Some(true)
            }
            () = tokio::time::sleep(PAUSE), if decoder.is_waiting() => { decoder.pause(&mut heard); None }
        };
        if ended.is_some() {
            decoder.pause(&mut heard);
        }
        let at = live.then(|| clock.now().wall);
        let mut lines = String::new();
        for heard in &heard {
            summary.count(heard);
            let shown = Shown { heard, at };
            lines += &if args.json { format!("{}\n", shown.json()) } else { format!("{shown}\n") };
        }
        if !print(&lines)? {
            return Ok(true);
        }
        if let Some(fine) = ended {
            break fine;
        }
    };
    print(&if args.json { format!("{}\n", summary.json()) } else { format!("{summary}\n") })?;
    if !ended {
        crate::cli::say("tidegate: the port vanished");
    }
    Ok(ended)
}

/// False if the reader of the output closed it.
fn print(lines: &str) -> anyhow::Result<bool> {
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(why) => Err(why).context("cannot write the output"),
    }
}
