//! What is to be logged, as a text says it: a level, or levels of modules. No part of it is
//! a pattern; it is as short to read as it is to write.

use super::keys::closest;
use tracing_subscriber::filter::{LevelFilter, Targets};

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// What other programs call these levels.
const OTHER_NAMES: [(&str, &str); 8] = [
    ("warning", "warn"),
    ("err", "error"),
    ("critical", "error"),
    ("fatal", "error"),
    ("notice", "info"),
    ("information", "info"),
    ("verbose", "debug"),
    ("none", "off"),
];

/// What is logged where a text says it of other modules only.
const REST: LevelFilter = LevelFilter::INFO;

/// A command says no more than so many bytes.
const LONGEST_REMOTE: usize = 200;

/// Reads such a text: `info`, or `warn,tidegate::store=debug`.
///
/// # Errors
/// What is wrong with it, and how to do better.
pub fn log_levels(text: &str) -> Result<Targets, (String, String)> {
    read(text, |_| true)
}

/// Reads one that came from outside this machine, which may name modules of tidegate alone.
///
/// # Errors
/// What is wrong with it, and how to do better.
pub fn remote_log_levels(text: &str) -> Result<Targets, (String, String)> {
    if text.len() > LONGEST_REMOTE {
        let what = format!("has {} bytes", text.len());
        return Err((what, format!("give {LONGEST_REMOTE} at most, such as warn,tidegate::store=debug")));
    }
    read(text, |module| module.split("::").next() == Some("tidegate"))
}

fn read(text: &str, may_name: impl Fn(&str) -> bool) -> Result<Targets, (String, String)> {
    let words = || text.split(',').map(str::trim).filter(|word| !word.is_empty());
    if words().next().is_none() {
        return Err(("is empty".to_owned(), format!("give one of {}", names())));
    }
    let mut targets = Targets::new().with_default(REST);
    for word in words() {
        targets = match word.split_once('=') {
            None => targets.with_default(level(word)?),
            Some((module, level_name)) => {
                let module = module.trim();
                if module.is_empty() || !module.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':')) {
                    let fix = "write it like warn,tidegate::store=debug, with a comma between two".to_owned();
                    return Err((format!("`{module}` is no module"), fix));
                }
                if !may_name(module) {
                    let fix = "a command can name tidegate and its modules, such as tidegate::store".to_owned();
                    return Err((format!("`{module}` is no module of tidegate"), fix));
                }
                targets.with_target(module, level(level_name.trim())?)
            }
        };
    }
    Ok(targets)
}

/// A word that is no level is no module either: a typing error would turn the log off.
fn level(word: &str) -> Result<LevelFilter, (String, String)> {
    if let Some((_, level)) = LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)) {
        return Ok(*level);
    }
    let other = OTHER_NAMES.iter().find(|(other, _)| other.eq_ignore_ascii_case(word)).map(|(_, name)| *name);
    let fix = match other.or_else(|| closest(word, &LEVELS.map(|(name, _)| name))) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("write a level ({}), or one of a module, as in warn,tidegate=debug", names()),
    };
    Err((format!("unknown level `{word}`"), fix))
}

fn names() -> String {
    LEVELS.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::filter::LevelFilter as L;

    fn logs(text: &str, module: &str) -> LevelFilter {
        let targets = log_levels(text).expect("levels");
        let levels = [L::TRACE, L::DEBUG, L::INFO, L::WARN, L::ERROR].into_iter().filter_map(LevelFilter::into_level);
        levels.into_iter().find(|level| targets.would_enable(module, level)).map_or(L::OFF, LevelFilter::from_level)
    }

    #[test]
    fn levels_hold_for_all_or_for_a_module_and_what_is_in_it() {
        assert_eq!(logs("info", "tidegate::gateway"), L::INFO);
        assert_eq!(logs("WARN,tidegate::store=trace", "tidegate::store::writer"), L::TRACE);
        assert_eq!(logs(" warn , tidegate::store = trace ,", "tidegate::link"), L::WARN);
        assert_eq!(logs("tidegate=debug,off", "hyper"), L::OFF);
        assert_eq!(logs("rumqttc=debug", "tidegate"), L::INFO, "who names one module does not silence the others");
        for (name, level) in LEVELS {
            assert_eq!(logs(name, "tidegate"), level);
        }
    }

    #[test]
    fn what_is_no_level_is_refused_with_one_that_is() {
        for (text, what, fix) in [
            ("", "is empty", "give one of off, error, warn, info, debug, trace"),
            (" , ", "is empty", "trace"),
            ("warning", "unknown level `warning`", "did you mean `warn`?"),
            ("Verbose", "unknown level `Verbose`", "did you mean `debug`?"),
            ("notice", "unknown level `notice`", "did you mean `info`?"),
            ("tidegate", "unknown level `tidegate`", "write a level (off, error, warn"),
            ("tidegate=", "unknown level ``", "write a level"),
            ("tidegate=warning", "unknown level `warning`", "did you mean `warn`?"),
            ("warn tidegate=debug", "`warn tidegate` is no module", "a comma between two"),
            ("[{a=(a|b)*a(a|b)}]=info", "`[{a` is no module", "write it like"),
            ("tidegate[x]=info", "`tidegate[x]` is no module", "write it like"),
            ("=info", "`` is no module", "write it like"),
            ("info,a=b=c", "unknown level `b=c`", "write a level"),
        ] {
            let (found, better) = log_levels(text).expect_err(text);
            assert!(found.contains(what) && better.contains(fix), "{text:?}: {found}; {better}");
        }
    }

    #[test]
    fn from_outside_only_modules_of_tidegate_can_be_named_and_not_at_length() {
        for fine in ["debug", "warn,tidegate=debug", "tidegate::store::writer=trace,tidegate::link=off"] {
            assert!(remote_log_levels(fine).is_ok(), "{fine}");
        }
        for module in ["hyper", "tidegate_other", "tidegatex::store", ":tidegate"] {
            let (what, fix) = remote_log_levels(&format!("{module}=trace")).expect_err(module);
            assert!(what.contains("no module of tidegate") && fix.contains("tidegate::store"), "{what}; {fix}");
            assert!(log_levels(&format!("{module}=trace")).is_ok(), "whoever writes the file may");
        }
        let long = ["tidegate::store=debug"; 30].join(",");
        assert!(remote_log_levels(&long).is_err_and(|(what, _)| what == format!("has {} bytes", long.len())));
    }
}
