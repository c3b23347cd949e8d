//! From text to [`Config`], key by key, so that one bad value hides no other.

use super::Config;
use super::env::{CREDENTIALS, substitute};
use super::keys::keys_of;
use super::problem::Report;
use super::sections::ReadSections;
use super::{shipped, stray, wrong};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// What `text` says, with defaults in place of what was refused; `None` if it is
/// not TOML at all.
pub(super) fn read(text: &str, env: &dyn Fn(&str) -> Option<String>, report: &mut Report) -> Option<Config> {
    let lines = Lines::new(text);
    let root = match DeTable::parse(text) {
        Ok(root) => root.into_inner(),
        Err(why) => {
            let at = why.span().map_or(text.len(), |span| span.start);
            let what = format!("column {}: {}", lines.column(at), why.message());
            report.add_at(Some(lines.line(at)), "", what, "write it as TOML (https://toml.io)");
            return None;
        }
    };
    let mut reader = Reader { lines, env, report, sections: BTreeMap::new() };
    reader.sort_out(root);
    Some(Config::read(&mut reader))
}

struct Reader<'a, 'i> {
    lines: Lines<'i>,
    env: &'a dyn Fn(&str) -> Option<String>,
    report: &'a mut Report,
    sections: BTreeMap<&'static str, DeValue<'i>>,
}

impl ReadSections for Reader<'_, '_> {
    fn one<T: DeserializeOwned + Default>(&mut self, name: &'static str) -> T {
        match self.sections.remove(name) {
            None => T::default(),
            Some(DeValue::Table(table)) => self.section(name, name, table),
            Some(DeValue::Array(array)) => {
                self.report.add(name, "there can be only one such section", format!("write [{name}], once"));
                match array.into_iter().next().map(Spanned::into_inner) {
                    Some(DeValue::Table(table)) => self.section(name, name, table),
                    _ => T::default(),
                }
            }
            Some(_) => self.no_section(name, &format!("[{name}]")),
        }
    }

    fn many<T: DeserializeOwned + Default>(&mut self, name: &'static str) -> Vec<T> {
        let header = format!("[[{name}]]");
        match self.sections.remove(name) {
            None => Vec::new(),
            Some(DeValue::Array(array)) => array
                .into_iter()
                .enumerate()
                .map(|(i, item)| {
                    let path = format!("{name}[{i}]");
                    self.report.locate(&path, self.lines.line(item.span().start));
                    match item.into_inner() {
                        DeValue::Table(table) => self.section(name, &path, table),
                        _ => self.no_section(&path, &header),
                    }
                })
                .collect(),
            Some(DeValue::Table(table)) => {
                self.report.add(name, "there may be several such sections", format!("write {header}"));
                vec![self.section(name, &format!("{name}[0]"), table)]
            }
            Some(_) => self.no_section(name, &header),
        }
    }
}

impl<'i> Reader<'_, 'i> {
    /// Sets aside the sections that are known.
    fn sort_out(&mut self, root: DeTable<'i>) {
        let known = keys_of::<Config>();
        let present: Vec<String> = root.keys().map(|key| key.get_ref().to_string()).collect();
        for (key, value) in root {
            let path = shown(key.get_ref());
            // A key's own place is inside its header's brackets, on the same line.
            self.report.locate(&path, self.lines.line(key.span().start));
            match known.iter().find(|name| **name == *key.get_ref()) {
                Some(name) => drop(self.sections.insert(name, value.into_inner())),
                None => self.unknown("", "", key.get_ref(), known, &present),
            }
        }
    }

    fn no_section<T: Default>(&mut self, path: &str, header: &str) -> T {
        self.report.add(path, "is not a section", format!("write {header} and its keys below"));
        self.report.refuse(path);
        T::default()
    }

    /// Reads each key by itself, then all the good ones together.
    fn section<T: DeserializeOwned + Default>(&mut self, name: &str, path: &str, table: DeTable<'i>) -> T {
        let known = keys_of::<T>();
        let present: Vec<String> = table.keys().map(|key| key.get_ref().to_string()).collect();
        let mut good = DeTable::new();
        for (key, mut value) in table {
            let full = format!("{path}.{}", shown(key.get_ref()));
            self.report.locate(&full, self.lines.line(key.span().start));
            if !known.contains(&&**key.get_ref()) {
                self.unknown(name, path, key.get_ref(), known, &present);
                continue;
            }
            if !self.fill_in(&full, value.get_mut()) || self.refuses_home(&full, key.get_ref(), value.get_ref()) {
                self.report.refuse(&full);
                continue;
            }
            match deserialize::<T>(DeTable::from_iter([(key.clone(), value.clone())])) {
                Ok(_) => drop(good.insert(key, value)),
                Err(why) => {
                    let example = shipped::example(name, key.get_ref());
                    let (what, fix) = wrong::value(value.get_ref(), example, why.message());
                    let line = self.lines.line(why.span().map_or(key.span().start, |span| span.start));
                    self.report.add_at(Some(line), &full, what, fix);
                    self.report.refuse(&full);
                }
            }
        }
        deserialize(good).unwrap_or_else(|why| {
            self.report.add(path, why.message(), "correct this section");
            self.report.refuse(path);
            T::default()
        })
    }

    /// Replaces variables in all strings of `value`; false if one is not set.
    fn fill_in(&mut self, path: &str, value: &mut DeValue<'i>) -> bool {
        match value {
            DeValue::String(text) => match substitute(text, self.env) {
                Ok(filled) => {
                    *text = Cow::Owned(filled);
                    true
                }
                Err(unset) => {
                    for name in unset {
                        let what = format!("the environment variable `{name}` is not set");
                        let fix = match name == CREDENTIALS {
                            true => "systemd sets it where the unit has LoadCredential=; take the # off that line",
                            false => "set it, or write $${ for a plain ${",
                        };
                        self.report.add(path, what, fix);
                    }
                    false
                }
            },
            DeValue::Array(array) => {
                let mut complete = true;
                for item in array.iter_mut() {
                    complete &= self.fill_in(path, item.get_mut());
                }
                complete
            }
            _ => true,
        }
    }

    /// Complains about a path that begins with `~`, which only a shell puts a directory for.
    fn refuses_home(&mut self, path: &str, key: &str, value: &DeValue<'i>) -> bool {
        let names_file = matches!(key, "path" | "directory") || key.ends_with("_file") || key.ends_with("_directory");
        match value {
            DeValue::String(text) if names_file && text.starts_with('~') => {
                let what = format!("{:?} begins with ~, which stands for no home directory here", &**text);
                self.report.add(path, what, "write the whole path, from / on");
                true
            }
            _ => false,
        }
    }

    /// Complains about `key` of the section `name` at `parent`, and keeps still about the lack of
    /// the key that was probably meant. Both are empty for what stands above all sections.
    fn unknown(&mut self, name: &str, parent: &str, key: &str, known: &[&'static str], present: &[String]) {
        let join = |key: &str| if parent.is_empty() { shown(key) } else { format!("{parent}.{}", shown(key)) };
        let kind = if parent.is_empty() { "section" } else { "key" };
        let advice = stray::advice(name, key, known);
        self.report.add(&join(key), format!("unknown {kind} `{key}`"), advice.fix);
        if let Some(meant) = advice.meant.filter(|meant| !present.iter().any(|present| present == meant)) {
            self.report.refuse(&join(meant));
        }
    }
}

fn deserialize<T: DeserializeOwned>(table: DeTable<'_>) -> Result<T, toml::de::Error> {
    T::deserialize(ValueDeserializer::from(Spanned::new(0..0, DeValue::Table(table))))
}

/// A key as it stands in a path.
fn shown(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare { key.to_owned() } else { format!("{key:?}") }
}

/// Where the lines of a text start.
struct Lines<'i> {
    text: &'i str,
    starts: Vec<usize>,
}

impl<'i> Lines<'i> {
    fn new(text: &'i str) -> Lines<'i> {
        Lines { text, starts: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect() }
    }

    /// Counted from 1.
    fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    /// In characters, counted from 1.
    fn column(&self, at: usize) -> usize {
        let start = self.starts.iter().rev().find(|start| **start <= at).copied().unwrap_or(0);
        self.text.get(start..at).map_or(1, |before| before.chars().count() + 1)
    }
}
