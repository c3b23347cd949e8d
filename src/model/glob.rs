//! Patterns of names in the configuration.

/// Whether `name` matches `pattern`: `*` matches any characters, `?` one, and every other
/// character itself.
pub fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to continue if what follows the last `*` does not match: one more byte belongs
    // to it then.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                None => return false,
                Some((after, taken)) => {
                    *taken += 1;
                    (p, n) = (*after, *taken);
                }
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*') // p never passes the pattern's end
}

/// The first character of a device pattern that no device's name contains: such a pattern
/// matches none.
pub fn stray_in_devices(pattern: &str) -> Option<char> {
    pattern.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-/*?".contains(*c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything_and_question_marks_for_one() {
        for (pattern, name, expected) in [
            ("alarm*", "alarm", true),
            ("alarm*", "alarm.high", true),
            ("alarm*", "an-alarm", false),
            ("*alarm", "an-alarm", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "ababa", false),
            ("p?mp", "pump", true),
            ("p?mp", "pmp", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("hub/*", "hub/sub", true),
            ("a**b", "ab", true),
            ("aab", "aa", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern:?} {name:?}");
        }
    }
}
