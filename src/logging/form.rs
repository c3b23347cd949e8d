//! Formats a line: for standard error, or in the journal's native protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>), where the message is the whole line and each
//! fact is a field as well.

use super::facts::Facts;
use crate::model::Timestamp;
use tracing::{Level, Metadata};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    Text { colours: bool },
    Journal { identifier: String },
}

/// The origin of a line.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub level: Level,
    pub target: &'static str,
    pub file: Option<&'static str>,
    pub line: Option<u32>,
}

impl Origin {
    pub fn of(metadata: &'static Metadata<'static>) -> Origin {
        Origin { level: *metadata.level(), target: metadata.target(), file: metadata.file(), line: metadata.line() }
    }
}

impl Form {
    pub fn write(&self, origin: &Origin, facts: &Facts, now: Timestamp) -> Vec<u8> {
        match self {
            Form::Text { colours } => {
                let Origin { level, target, .. } = origin;
                let (on, off) = if *colours { (colour(*level), "\x1b[0m") } else { ("", "") };
                format!("{now} {on}{:>5}{off} {target}: {facts}\n", level.as_str()).into_bytes()
            }
            Form::Journal { identifier } => datagram(identifier, origin, facts),
        }
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// Always smaller than the largest datagram, since facts are bounded.
fn datagram(identifier: &str, origin: &Origin, facts: &Facts) -> Vec<u8> {
    // Syslog's priorities.
    let priority = match origin.level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    };
    let mut bytes = Vec::with_capacity(512);
    put(&mut bytes, "PRIORITY", priority);
    put(&mut bytes, "TARGET", origin.target);
    if let Some(file) = origin.file {
        put(&mut bytes, "CODE_FILE", file);
    }
    if let Some(line) = origin.line {
        put(&mut bytes, "CODE_LINE", &line.to_string());
    }
    put(&mut bytes, "SYSLOG_IDENTIFIER", identifier);
    put(&mut bytes, "MESSAGE", &facts.to_string());
    for (name, value) in &facts.fields {
        let name = name.chars().map(|c| if c == '.' { '_' } else { c.to_ascii_uppercase() });
        let name = name.filter(|c| *c == '_' || c.is_ascii_alphanumeric());
        // The prefix separates it from the journal's own fields.
        put(&mut bytes, &format!("F_{}", name.collect::<String>()), value);
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARNING: Origin = Origin { level: Level::WARN, target: "tidegate::x", file: Some("x.rs"), line: Some(7) };

    #[test]
    fn a_line_of_text_has_the_time_the_level_and_the_module() {
        let facts = Facts::saying("it is so").and("link", "tcp");
        let line = |colours| Form::Text { colours }.write(&WARNING, &facts, Timestamp(1_796_083_200_000_000));
        assert_eq!(line(false), b"2026-12-01T00:00:00.000000Z  WARN tidegate::x: it is so link=tcp\n");
        assert!(line(true).starts_with(b"2026-12-01T00:00:00.000000Z \x1b[33m WARN\x1b[0m tidegate::x: "));
    }

    #[test]
    fn an_entry_of_the_journal_has_the_line_as_its_message_and_each_fact_as_it_is() {
        let facts = Facts::saying("it is so").and("link", "tcp").and("r#why.x", "a\nPRIORITY=0");
        let bytes = Form::Journal { identifier: "me".into() }.write(&WARNING, &facts, Timestamp(0));
        let mut expected = Vec::new();
        for (name, value) in [
            ("PRIORITY", "4"),
            ("TARGET", "tidegate::x"),
            ("CODE_FILE", "x.rs"),
            ("CODE_LINE", "7"),
            ("SYSLOG_IDENTIFIER", "me"),
            ("MESSAGE", "it is so link=tcp r#why.x=\"a\\nPRIORITY=0\""),
            ("F_LINK", "tcp"),
            ("F_RWHY_X", "a\nPRIORITY=0"),
        ] {
            let length = u8::try_from(value.len()).expect("short");
            expected.extend([name.as_bytes(), b"\n", &[length, 0, 0, 0, 0, 0, 0, 0], value.as_bytes(), b"\n"].concat());
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_largest_entry_fits_a_datagram() {
        let mut facts = Facts::saying(&"\0".repeat(100_000));
        for _ in 0..32 {
            facts = facts.and("a_field_with_a_long_name_as_they_may_be", "\0".repeat(100_000));
        }
        let bytes = Form::Journal { identifier: "tidegate".into() }.write(&WARNING, &facts, Timestamp(0));
        let (socket, other) = std::os::unix::net::UnixDatagram::pair().expect("sockets");
        assert_eq!(socket.send(&bytes).expect("it fits"), bytes.len());
        assert_eq!(other.recv(&mut vec![0; 1 << 20]).expect("it comes"), bytes.len());
        assert!(bytes.len() < 32 << 10, "{}", bytes.len());
    }
}
