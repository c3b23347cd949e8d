//! What is wrong with a configuration, told so that it can be put right.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing wrong with a configuration file. Its `Display` is one line:
/// `/etc/tidegate/tidegate.toml:12: mqtt[0].window: 500 is out of range; give 1 to 100`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1; `None` if nothing in the file stands for the problem.
    pub line: Option<usize>,
    /// Where in the configuration, such as `mqtt[0].window`; empty for the file as a whole.
    pub key: String,
    pub what: String,
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}; {}", self.what, self.fix)
    }
}

/// Everything that is wrong with a configuration, in the order of its lines;
/// never empty. Its `Display` is one line a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects the problems of one file.
pub(super) struct Report {
    file: PathBuf,
    lines: HashMap<String, usize>,
    /// Keys whose value is not what the file says, since that was refused.
    refused: HashSet<String>,
    problems: Vec<Problem>,
    /// What could not be looked at.
    unseen: Vec<Problem>,
}

impl Report {
    pub fn new(file: &Path) -> Report {
        let (lines, refused) = (HashMap::new(), HashSet::new());
        Report { file: file.to_owned(), lines, refused, problems: Vec::new(), unseen: Vec::new() }
    }

    /// Remembers the line that `key` stands on.
    pub fn locate(&mut self, key: &str, line: usize) {
        self.lines.insert(key.to_owned(), line);
    }

    /// The line where `key`, or else what it stands in, was found.
    pub fn line(&self, key: &str) -> Option<usize> {
        line_of(key, &self.lines)
    }

    pub fn take_lines(&mut self) -> HashMap<String, usize> {
        std::mem::take(&mut self.lines)
    }

    /// Makes later complaints about `key`, or about what is below it, void.
    pub fn refuse(&mut self, key: &str) {
        self.refused.insert(key.to_owned());
    }

    pub fn is_refused(&self, key: &str) -> bool {
        with_parents(key).any(|key| self.refused.contains(key))
    }

    /// A problem on the line where `key`, or else what it stands in, was found.
    pub fn add(&mut self, key: &str, what: impl fmt::Display, fix: impl fmt::Display) {
        self.add_at(self.line(key), key, what, fix);
    }

    pub fn add_at(&mut self, line: Option<usize>, key: &str, what: impl fmt::Display, fix: impl fmt::Display) {
        let problem = self.problem(line, key, &what, &fix);
        self.problems.push(problem);
    }

    /// What `key` names could not be looked at, which is no problem of the configuration.
    pub fn add_unseen(&mut self, key: &str, what: impl fmt::Display, fix: impl fmt::Display) {
        let problem = self.problem(self.line(key), key, &what, &fix);
        self.unseen.push(problem);
    }

    pub fn take_unseen(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.unseen)
    }

    fn problem(&self, line: Option<usize>, key: &str, what: &dyn fmt::Display, fix: &dyn fmt::Display) -> Problem {
        let (what, fix) = (one_line(&what.to_string()), one_line(&fix.to_string()));
        Problem { file: self.file.clone(), line, key: key.to_owned(), what, fix }
    }

    /// `value` if nothing is wrong with any of the keys and sections `used`. Whoever has none
    /// to give has added a problem with the whole file.
    pub fn finish_part<T>(mut self, value: Option<T>, used: &[&str]) -> Result<T, Problems> {
        let concerns = |problem: &Problem| problem.key.is_empty() || used.iter().any(|key| overlap(key, &problem.key));
        let refused = used.iter().any(|key| self.is_refused(key));
        if !refused || self.problems.iter().any(concerns) {
            self.problems.retain(concerns);
        }
        self.finish(value)
    }

    /// `value` if there were no problems. Whoever has none to give has added one.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => {
                self.problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
                Err(Problems(self.problems))
            }
        }
    }
}

/// The line where `key`, or else what it stands in, was found, by the `lines` of keys.
pub(super) fn line_of(key: &str, lines: &HashMap<String, usize>) -> Option<usize> {
    with_parents(key).find_map(|key| lines.get(key)).copied()
}

/// `a[0].b`, then `a[0]`, then `a`.
fn with_parents(key: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(key), |key| key.rfind(['.', '[']).map(|end| &key[..end]))
}

/// Whether one of the keys is the other, or stands in it, whichever of several sections that is in.
fn overlap(a: &str, b: &str) -> bool {
    let parts = |key: &str| -> Vec<String> {
        key.split('.').map(|part| part.split('[').next().unwrap_or_default().to_owned()).collect()
    };
    parts(a).iter().zip(&parts(b)).all(|(a, b)| a == b)
}

/// Values are quoted in messages: no line break or terminal escape gets through.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_line_of_its_own_is_told_by_what_it_stands_in() {
        let mut report = Report::new(Path::new("f"));
        report.locate("mqtt[1]", 7);
        report.add("mqtt[1].brokers[0]", "bad\n\x1b[1m", "fix");
        report.add("mqtt", "none", "fix");
        let problems = report.finish(Some(())).expect_err("two were added").to_string();
        assert_eq!(problems, "f:7: mqtt[1].brokers[0]: bad\\n\\u{1b}[1m; fix\nf: mqtt: none; fix");
    }

    #[test]
    fn only_what_is_wrong_with_the_keys_that_are_used_is_in_the_way() {
        let with = |problem: &str, refused: &str| {
            let mut report = Report::new(Path::new("f"));
            report.add("gateway.log_level", "bad", "fix");
            if !problem.is_empty() {
                report.add(problem, "bad", "fix");
            }
            report.refuse(refused);
            report.finish_part(Some(()), &["store.directory", "serial"]).map_err(|problems| problems.to_string())
        };
        assert_eq!(with("", "gateway.log_level"), Ok(()));
        assert_eq!(with("store.max_size", "store.max_size"), Ok(()));
        assert_eq!(with("store.directory", "none"), Err("f: store.directory: bad; fix".into()));
        assert_eq!(with("store", "none"), Err("f: store: bad; fix".into()));
        assert_eq!(with("serial[1].path", "none"), Err("f: serial[1].path: bad; fix".into()));
        assert!(with("store.directorry", "store.directory").is_err_and(|all| all.contains("store.directorry")));
        assert!(with("stor", "store").is_err_and(|all| all.contains("stor: ")));
    }

    #[test]
    fn what_is_below_a_refused_key_is_refused() {
        let mut report = Report::new(Path::new("f"));
        report.refuse("tcp[1]");
        assert!(report.is_refused("tcp[1].name"));
        assert!(!report.is_refused("tcp[0].name"));
        assert!(!report.is_refused("tcp"));
    }
}
