//! What a person reads who keeps `journalctl -u tidegate -f` open.

use super::machine::Machine;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::Mutex;

pub struct Journal {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Child,
}

impl Journal {
    /// Everything from the first line on.
    pub fn follow(machine: &Machine) -> Journal {
        let mut command = machine.command("journalctl");
        command.args(["-u", "tidegate", "-f", "-n", "all"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut reader = command.spawn().expect("journalctl starts");
        let output = reader.stdout.take().expect("a pipe");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                kept.lock().expect("nobody panics with it").push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Journal { lines, reader }
    }

    /// How many lines there are by now.
    pub fn len(&self) -> usize {
        self.lines.lock().expect("nobody panics with it").len()
    }

    /// The lines from the `start`th on.
    pub fn since(&self, start: usize) -> Vec<String> {
        self.lines.lock().expect("nobody panics with it")[start..].to_vec()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // It may have ended with the machine.
        let _ = self.reader.kill();
        self.reader.wait().expect("a child that can be waited for");
    }
}
