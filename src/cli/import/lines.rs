//! The lines of a turnserver.conf, read as coturn reads them.

/// An option as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) name: String,
    /// Empty where the option stands alone.
    pub(super) value: String,
}

/// Reads every line that is neither empty nor a remark.
///
/// A name ends at a blank or `=`; quotes around a value are taken off. There are no remarks behind a value.
pub(super) fn read(text: &str) -> Vec<Line> {
    let is_separator = |character: char| matches!(character, ' ' | '\t' | '=');
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once(is_separator).unwrap_or((line, ""));
        let value = value.trim_start_matches(is_separator);
        let value = value.strip_prefix('"').map_or(value, |rest| rest.strip_suffix('"').unwrap_or(rest));
        lines.push(Line { number: index + 1, name: name.to_owned(), value: value.to_owned() });
    }
    lines
}

impl Line {
    /// Whether the option is switched on; without a value it is. `None` is a value that coturn ends at.
    pub(super) fn truth(&self) -> Option<bool> {
        match self.value.chars().next() {
            None | Some('y' | 'Y' | 't' | 'T' | '1'..='9') => Some(true),
            Some('0' | 'n' | 'N' | 'f' | 'F') => Some(false),
            Some(_) if self.value.eq_ignore_ascii_case("on") => Some(true),
            Some(_) if self.value.eq_ignore_ascii_case("off") => Some(false),
            Some(_) => None,
        }
    }

    /// The number that the value begins with; what follows is not looked at, as by atoi(3).
    pub(super) fn number_value(&self) -> Option<u64> {
        let digits = self.value.trim_start_matches('+');
        let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (String, String) {
        let line = read(text).remove(0);
        (line.name, line.value)
    }

    #[test]
    fn names_end_at_blanks_and_equals_signs() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(one("realm=example.org"), pair("realm", "example.org"));
        assert_eq!(one("  realm = example.org  "), pair("realm", "example.org"));
        assert_eq!(one("realm\texample.org"), pair("realm", "example.org"));
        assert_eq!(one("fingerprint"), pair("fingerprint", ""));
        assert_eq!(one("userdb=\"host=a password=b\""), pair("userdb", "host=a password=b"));
        assert_eq!(one("static-auth-secret=a=b="), pair("static-auth-secret", "a=b="));
        assert_eq!(one("user=a:b#c"), pair("user", "a:b#c"));
    }

    #[test]
    fn remarks_and_empty_lines_are_counted_and_passed_over() {
        let lines = read("# a\n\n   \n  # b\nno-udp\n");
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].number, 5);
    }

    #[test]
    fn values_are_judged_as_coturn_does() {
        let truth = |value: &str| Line { number: 1, name: "x".into(), value: value.into() }.truth();
        for value in ["", "1", "yes", "True", "on", "ON", "7"] {
            assert_eq!(truth(value), Some(true), "{value}");
        }
        for value in ["0", "no", "False", "off"] {
            assert_eq!(truth(value), Some(false), "{value}");
        }
        assert_eq!(truth("maybe"), None);
        let number = |value: &str| Line { number: 1, name: "x".into(), value: value.into() }.number_value();
        assert_eq!(number("3478 # the port"), Some(3478));
        assert_eq!(number("x"), None);
        assert_eq!(number("99999999999999999999999"), None);
    }
}
