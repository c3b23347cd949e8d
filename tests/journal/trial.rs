//! What is found of each fault, and what is not.

use super::lines::Journal;
use super::machine::Machine;
use super::support::gateway::get;
use std::time::{Duration, Instant};

/// How long the gateway may take to say what is wrong.
const SAID_WITHIN: Duration = Duration::from_secs(20);

pub const HTTP: &str = "127.0.0.1:7412";

pub struct Trial {
    pub machine: Machine,
    pub journal: Journal,
    pub failures: Vec<String>,
}

impl Trial {
    pub fn new(machine: Machine) -> Trial {
        let journal = Journal::follow(&machine);
        Trial { machine, journal, failures: Vec::new() }
    }

    pub fn fails(&mut self, fault: &str, why: &str) {
        println!("FAILED {fault}: {why}");
        self.failures.push(fault.to_owned());
    }

    /// What the journal ends with, if it is longer.
    pub fn last_lines(&self, start: usize) -> String {
        const MOST: usize = 40;
        let lines = self.journal.since(start);
        lines[lines.len().saturating_sub(MOST)..].join("\n    ")
    }

    /// That one line from the `start`th on has all these words in it: what, where, what to do.
    pub async fn reads(&mut self, fault: &str, start: usize, words: &[&str]) {
        let until = Instant::now() + SAID_WITHIN;
        loop {
            let lines = self.journal.since(start);
            if let Some(line) = lines.iter().find(|line| words.iter().all(|word| line.contains(word))) {
                println!("{fault}\n    {line}");
                return;
            }
            if Instant::now() > until {
                return self.fails(fault, &format!("no line with {words:?}, but\n    {}", self.last_lines(start)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// That the answer of `/health/ready` has this status, and all these words in one problem
    /// or note.
    pub async fn ready(&mut self, fault: &str, status: u16, words: &[&str]) {
        let until = Instant::now() + SAID_WITHIN;
        loop {
            let answer = get(HTTP, "/health/ready").await;
            let (code, body) = answer.unwrap_or_default();
            let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
            let told = ["problems", "notes"].iter().flat_map(|list| json[list].as_array().cloned().unwrap_or_default());
            let told: Vec<String> = told.map(|one| one.to_string()).collect();
            if code == status && told.iter().any(|one| words.iter().all(|word| one.contains(word))) {
                return;
            }
            if Instant::now() > until {
                return self.fails(fault, &format!("/health/ready is no {status} with {words:?}, but {code} {body}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Gives the gateway another configuration, with which it starts; from which line on it
    /// speaks of that.
    pub fn starts_with(&mut self, config: &str) -> usize {
        let start = self.journal.len();
        assert!(self.machine.configure(config), "it does not start");
        start
    }

    /// Waits until the gateway answers, again or for the first time.
    pub async fn answers(&self) {
        super::support::eventually("the gateway answers", async || {
            get(HTTP, "/health/live").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
    }
}
