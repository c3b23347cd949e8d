//! The facts of an event, and its text as a line.

use std::fmt::{self, Debug, Write};
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::SocketAddr;
use tracing::field::{Field, Visit};

/// The facts of one event. Their lengths are bounded, whatever an outsider put into them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub message: String,
    /// Names and values, in the order of the code.
    pub fields: Vec<(&'static str, String)>,
}

const MAX_MESSAGE: usize = 2048;
const MAX_VALUE: usize = 1024;
/// Of all values together.
const MAX_VALUES: usize = 8192;
/// Of the whole line, in bytes, without the final mark.
const MAX_LINE: usize = 12_288;

/// Fields that identify what a line is about, and its reason. Other fields are details.
const SUBJECTS: [&str; 15] = [
    "sink",
    "broker",
    "link",
    "path",
    "device",
    "from",
    "target",
    "topic",
    "listen",
    "address",
    "file",
    "quarantine",
    "why",
    "reason",
    "error",
];

impl Facts {
    pub fn of(event: &tracing::Event<'_>) -> Facts {
        let mut facts = Facts::default();
        event.record(&mut facts);
        facts
    }

    pub fn saying(message: &str) -> Facts {
        Facts { message: bounded(MAX_MESSAGE, format_args!("{message}")), fields: Vec::new() }
    }

    /// Adds a fact.
    pub fn and(mut self, name: &'static str, value: impl fmt::Display) -> Facts {
        self.put(name, format_args!("{value}"));
        self
    }

    /// A hash of what this is about and its reason. Connections from one address count as one.
    pub fn subject(&self, hashes: &impl BuildHasher) -> u64 {
        let mut hasher = hashes.build_hasher();
        for (name, value) in self.fields.iter().filter(|(name, _)| SUBJECTS.contains(name)) {
            name.hash(&mut hasher);
            match value.parse::<SocketAddr>() {
                Ok(address) if *name == "from" => address.ip().hash(&mut hasher),
                _ => value.hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    fn put(&mut self, name: &'static str, value: fmt::Arguments<'_>) {
        let used: usize = self.fields.iter().map(|(_, value)| value.len()).sum();
        self.fields.push((name, bounded(MAX_VALUE.min(MAX_VALUES.saturating_sub(used)), value)));
    }

    fn take(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => self.message = bounded(MAX_MESSAGE, value),
            name => self.put(name, value),
        }
    }
}

impl Visit for Facts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format_args!("{value:?}"));
    }
}

/// The message and its facts as `name=value`, in one line; line breaks and terminal escapes are
/// escaped.
impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Bounded::new(MAX_LINE);
        // A line that is too long is marked.
        let _ = write_line(self, &mut line);
        f.write_str(&line.finish())
    }
}

fn write_line(facts: &Facts, line: &mut Bounded) -> fmt::Result {
    for c in facts.message.chars() {
        match is_plain(c) {
            true => line.write_char(c)?,
            false => write!(line, "{}", c.escape_debug())?,
        }
    }
    for (name, value) in &facts.fields {
        write!(line, " {name}=")?;
        if !value.is_empty() && value.chars().all(|c| is_plain(c) && !c.is_whitespace() && c != '"') {
            line.write_str(value)?;
            continue;
        }
        line.write_char('"')?;
        for c in value.chars() {
            match (c, is_plain(c)) {
                ('"' | '\\', _) => write!(line, "\\{c}")?,
                (_, true) => line.write_char(c)?,
                (_, false) => write!(line, "{}", c.escape_debug())?,
            }
        }
        line.write_char('"')?;
    }
    Ok(())
}

/// Whether a character prints as itself, without other effects.
fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// A text of a bounded number of bytes.
struct Bounded {
    text: String,
    most: usize,
    cut: bool,
}

fn bounded(most: usize, text: fmt::Arguments<'_>) -> String {
    let mut bounded = Bounded::new(most);
    // A text that is too long is marked.
    let _ = bounded.write_fmt(text);
    bounded.finish()
}

impl Bounded {
    fn new(most: usize) -> Bounded {
        Bounded { text: String::new(), most, cut: false }
    }

    fn finish(mut self) -> String {
        if self.cut {
            self.text.push('…');
        }
        self.text
    }
}

impl Write for Bounded {
    /// Fails once it is full, which ends the formatting.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.most.saturating_sub(self.text.len());
        if text.len() <= room {
            self.text.push_str(text);
            return Ok(());
        }
        let whole = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        self.text.push_str(&text[..whole]);
        self.cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    fn line(value: &str) -> String {
        Facts::saying("it is so").and("why", value).to_string()
    }

    #[test]
    fn a_line_is_the_message_and_its_facts() {
        let facts = Facts::saying("device connected").and("link", "tcp").and("session", 7).and("note", "");
        assert_eq!(facts.to_string(), "device connected link=tcp session=7 note=\"\"");
        assert_eq!(line("connection refused"), "it is so why=\"connection refused\"");
        assert_eq!(line("a=b,[::1]:7411"), "it is so why=a=b,[::1]:7411");
        assert_eq!(line("Grüße"), "it is so why=Grüße");
    }

    #[test]
    fn nothing_breaks_the_line_or_reaches_the_terminal() {
        assert_eq!(line("a\nERROR b\x1b[2J"), "it is so why=\"a\\nERROR b\\u{1b}[2J\"");
        assert_eq!(line("say \"x\" \\"), "it is so why=\"say \\\"x\\\" \\\\\"");
        assert_eq!(line("\u{202e}cba"), "it is so why=\"\\u{202e}cba\"");
        assert_eq!(Facts::saying("a\r\nb \"c\"").to_string(), "a\\r\\nb \"c\"");
        for c in (0..=0x2fff).filter_map(char::from_u32) {
            let line = line(&format!("x{c}"));
            assert!(!line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')), "{line:?}");
        }
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        let long = "ä".repeat(100_000);
        let mut facts = Facts::saying(&long);
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            facts = facts.and(name, &long);
        }
        assert_eq!(facts.message, format!("{}…", "ä".repeat(MAX_MESSAGE / 2)));
        assert_eq!(facts.fields[0].1, format!("{}…", "ä".repeat(MAX_VALUE / 2)));
        assert!(facts.fields.iter().map(|(_, value)| value.len()).sum::<usize>() < MAX_VALUES + 100);
        let controls = Facts::saying("x").and("why", "\0".repeat(100_000)).to_string();
        assert!(controls.len() < MAX_LINE + 10, "{}", controls.len());
    }

    #[test]
    fn what_a_line_is_about_is_whom_it_names_and_the_reason() {
        let hashes = RandomState::new();
        let about = |device: &str, from: &str, why: &str, count: u64| {
            let facts = Facts::saying("gone").and("device", device).and("from", from);
            facts.and("why", why).and("count", count).subject(&hashes)
        };
        let one = about("pump", "10.0.0.1:4000", "x", 1);
        assert_eq!(one, about("pump", "10.0.0.1:4001", "x", 2), "another port and another count");
        assert_ne!(one, about("valve", "10.0.0.1:4000", "x", 1));
        assert_ne!(one, about("pump", "10.0.0.2:4000", "x", 1));
        assert_ne!(one, about("pump", "10.0.0.1:4000", "y", 1));
    }
}
