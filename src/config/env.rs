//! `${NAME}` in strings.

/// Where systemd has put what `LoadCredential=` names, for a service that it runs.
pub(super) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Where that is for the service as it is installed.
const OF_SERVICE: &str = "/run/credentials/tidegate.service";

/// What this process was started with.
pub fn of_process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// As [`of_process`], for who looks at the service's configuration from a shell, where
/// systemd has set nothing.
pub(super) fn of_operator(name: &str) -> Option<String> {
    of_process(name).or_else(|| (name == CREDENTIALS).then(|| OF_SERVICE.to_owned()))
}

/// Replaces every `${NAME}` (`NAME` of letters, digits and underscores, no digit
/// first) by what `env` has for it; `$${` stands for `${`. What was put in is not
/// looked at again.
///
/// # Errors
/// The names that are not set.
pub(super) fn substitute(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Vec<String>> {
    let mut done = String::with_capacity(text.len());
    let mut unset = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        done.push_str(before);
        if let Some(after) = from.strip_prefix("$${") {
            done.push_str("${");
            rest = after;
        } else if let Some((name, after)) = variable(from) {
            match env(name) {
                Some(value) => done.push_str(&value),
                None => unset.push(name.to_owned()),
            }
            rest = after;
        } else {
            done.push('$');
            rest = &from[1..];
        }
    }
    done.push_str(rest);
    if unset.is_empty() { Ok(done) } else { Err(unset) }
}

/// The name of the `${NAME}` that `text` starts with, and what follows it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix("${")?.split_once('}')?;
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on_well = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (starts_well && goes_on_well).then_some((name, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("broker".into()),
            "NESTED" => Some("${HOST}".into()),
            _ => None,
        }
    }

    #[test]
    fn only_whole_variables_are_replaced_and_only_once() {
        let cases = [
            ("mqtt://${HOST}:1883", "mqtt://broker:1883"),
            ("${HOST}${HOST}", "brokerbroker"),
            ("${NESTED}", "${HOST}"),
            ("$${HOST} $$ $HOST ${ ${} ${1A} ${A-B} $", "${HOST} $$ $HOST ${ ${} ${1A} ${A-B} $"),
            ("$$${HOST}", "$${HOST}"),
            ("é${HOST}é", "ébrokeré"),
        ];
        for (text, expected) in cases {
            assert_eq!(substitute(text, &env).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn every_variable_that_is_not_set_is_named() {
        assert_eq!(substitute("${A} ${HOST} ${_b2}", &env), Err(vec!["A".into(), "_b2".into()]));
    }
}
