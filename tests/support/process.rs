//! A child process with its output in a file, ended with the test.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

pub struct Process {
    child: Child,
}

impl Process {
    /// Starts the command with standard output and error appended to `log`.
    pub fn start(command: Command, log: &Path) -> Process {
        Process::start_apart(command, log, log)
    }

    /// Starts the command with standard output appended to one file and standard
    /// error to another.
    pub fn start_apart(mut command: Command, out: &Path, log: &Path) -> Process {
        let file = |path| File::options().create(true).append(true).open(path).expect("a log file");
        let child = command.stdin(Stdio::null()).stdout(file(out)).stderr(file(log)).spawn();
        Process { child: child.unwrap_or_else(|why| panic!("{command:?}: {why}")) }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().expect("a child that can be waited for");
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill can be started").success(), "kill -{name}");
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        super::eventually("the process ends", async || {
            status = self.child.try_wait().expect("a child that can be waited for");
            status.is_some()
        })
        .await;
        status.expect("it ended")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child that can be waited for").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
