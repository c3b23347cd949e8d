//! The service as its operator meets it: the unit in a container of systemd, with nothing to
//! go by but `journalctl -u tidegate` and `/health/ready`. For each fault there is a line that
//! says what is wrong, where, and what to do; and readings go on, measured, while something
//! stands still that the gateway writes to.
//!
//! ```sh
//! cargo test --test journal               # as root, on Debian 12
//! cargo test --test journal -- blocked    # what has this in its name
//! ```

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod blocked;
mod faults;
mod lines;
mod machine;
#[allow(dead_code, reason = "the suite uses the rest")]
#[path = "../support/mod.rs"]
mod support;
mod trial;

use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use trial::Trial;

/// Says that the process is inside of the namespaces that it is to run in.
const APART: &str = "TIDEGATE_TEST_APART";

const NEEDED: [(&str, &str); 6] = [
    ("systemd-nspawn", "systemd-container"),
    ("ip", "iproute2"),
    ("mosquitto", "mosquitto"),
    ("mkfs.ext4", "e2fsprogs"),
    ("setpriv", "util-linux"),
    ("fsfreeze", "util-linux"),
];

fn main() -> ExitCode {
    if std::env::var_os(APART).is_none() {
        return apart();
    }
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let failures = runtime.expect("threads can be started").block_on(run(&wanted));
    match failures.as_slice() {
        [] => ExitCode::SUCCESS,
        some => {
            println!("{} failed: {}", some.len(), some.join("; "));
            ExitCode::FAILURE
        }
    }
}

/// Runs this program once more, where what it starts, mounts and listens on is its own.
fn apart() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("what boots a machine has to mount: run this as root");
        return ExitCode::FAILURE;
    }
    for (program, package) in NEEDED {
        if support::installed(program).is_none() {
            eprintln!("{program} is not installed; apt-get install {package}");
            return ExitCode::FAILURE;
        }
    }
    let program = std::env::current_exe().expect("this program has a file");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private"]);
    command.args(["bash", "-c", include_str!("apart.sh"), "apart.sh"]).arg(program);
    let status = command.args(std::env::args().skip(1)).env(APART, "1").status().expect("setpriv runs");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(wanted: &[String]) -> Vec<String> {
    // One line, which says where.
    std::panic::set_hook(Box::new(|why| println!("{why}")));
    let mut trial = Trial::new(machine::Machine::boot().await);
    trial.machine.install();
    macro_rules! stages {
        ($($name:literal $stage:path)*) => {
            $(
                if wanted.is_empty() || wanted.iter().any(|part| $name.contains(part.as_str())) {
                    stage(&mut trial, $name, $stage).await;
                }
            )*
        };
    }
    stages! {
        "as installed" faults::as_installed
        "signals" faults::signals
        "links and sinks" faults::links_and_sinks
        "devices" faults::devices
        "the token" faults::the_token
        "mistakes" faults::mistakes
        "a port that is taken" faults::a_port_that_is_taken
        "a full disk" faults::a_full_disk
        "files of root" faults::files_of_root
        "blocked: journald" blocked::journald
        "blocked: standard error" blocked::standard_error
        "blocked: disk" blocked::disk
        "blocked: HTTP listener" blocked::listener
    }
    trial.failures
}

async fn stage(trial: &mut Trial, name: &str, stage: impl AsyncFnOnce(&mut Trial)) {
    println!("--- {name}");
    let (began, start) = (Instant::now(), trial.journal.len());
    if AssertUnwindSafe(stage(trial)).catch_unwind().await.is_err() {
        // For what it said last to be read.
        tokio::time::sleep(Duration::from_millis(500)).await;
        trial.fails(name, &format!("it panicked, and in the journal is\n    {}", trial.last_lines(start)));
    }
    println!("--- {name}: {:.1} s", began.elapsed().as_secs_f64());
}
