//! Reads one table of the configuration: typed values with the place they came from, and whatever nobody asked for.
//!
//! serde stops at the first error, and `config` turns `5` into a text and `"yes"` into a truth; here every value is
//! looked at and every surprise is listed.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use config::{Map, Value, ValueKind};

use super::layers::PREFIX;
use super::problem::{At, Report};
use super::values;

/// A table whose keys are taken one by one.
pub(super) struct Section {
    path: String,
    /// The file, for values that carry no origin of their own.
    source: String,
    values: Map<String, Value>,
    known: Vec<&'static str>,
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Entry<T> {
    pub(super) value: T,
    pub(super) at: At,
}

impl Section {
    pub(super) fn root(source: impl Into<String>, values: Map<String, Value>) -> Self {
        Self { path: String::new(), source: source.into(), values, known: Vec::new() }
    }

    /// Where a key is or would be.
    pub(super) fn at(&self, key: &str) -> At {
        At::new(self.source.clone(), self.path_of(key))
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path if path.contains('#') => format!("{path} {key}"),
            path => format!("{path}.{key}"),
        }
    }

    /// Takes a value, whatever it is.
    pub(super) fn raw(&mut self, key: &'static str, report: &mut Report) -> Option<Entry<Value>> {
        self.ask(key, report);
        let value = self.values.remove(key)?;
        Some(Entry { at: self.place(key, &value), value })
    }

    fn ask(&mut self, key: &'static str, report: &mut Report) {
        self.known.push(key);
        #[cfg(test)]
        report.keys.insert(without_index(&self.path_of(key)));
        let _ = report;
    }

    fn place(&self, key: &str, value: &Value) -> At {
        At::new(value.origin().map_or_else(|| self.source.clone(), str::to_owned), self.path_of(key))
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        report: &mut Report,
        expected: &str,
        remedy: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<Entry<T>> {
        let entry = self.raw(key, report)?;
        match convert(&entry.value) {
            Some(value) => Some(Entry { value, at: entry.at }),
            None => {
                report.problem(entry.at.problem(found(&entry.value), expected, remedy));
                None
            }
        }
    }

    pub(super) fn text(&mut self, key: &'static str, report: &mut Report) -> Option<Entry<String>> {
        self.take(key, report, "a text", "put it in quotes", as_text)
    }

    /// A text that is never shown.
    pub(super) fn secret(&mut self, key: &'static str, report: &mut Report) -> Option<Entry<String>> {
        let entry = self.raw(key, report)?;
        secret_text(entry, report)
    }

    /// A file or directory; the empty text is none.
    pub(super) fn path(&mut self, key: &'static str, report: &mut Report) -> Option<Entry<PathBuf>> {
        let entry = self.take(key, report, "a path", "put it in quotes", as_text)?;
        if entry.value.is_empty() {
            return None;
        }
        Some(Entry { value: PathBuf::from(entry.value), at: entry.at })
    }

    pub(super) fn truth(&mut self, key: &'static str, report: &mut Report) -> Option<Entry<bool>> {
        self.take(key, report, "true or false", "write it without quotes", |value| {
            match (&value.kind, from_file(value)) {
                (ValueKind::Boolean(truth), _) => Some(*truth),
                (ValueKind::String(text), false) => text.parse().ok(),
                _ => None,
            }
        })
    }

    pub(super) fn number<T: TryFrom<u64> + Copy + Into<u64>>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        report: &mut Report,
    ) -> Option<Entry<T>> {
        let (low, high) = (Into::<u64>::into(*range.start()), Into::<u64>::into(*range.end()));
        let expected = format!("a whole number from {low} to {high}");
        self.take(key, report, &expected, "write such a number, without quotes", |value| {
            let number = as_number(value)?;
            (low..=high).contains(&number).then(|| T::try_from(number).ok())?
        })
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        report: &mut Report,
    ) -> Option<Entry<Duration>> {
        let expected = format!(
            "a duration from {} to {}",
            values::duration_words(*range.start()),
            values::duration_words(*range.end())
        );
        self.take(key, report, &expected, "write \"90s\", \"10m\", \"1h\" or a number of seconds", |value| {
            let duration = match as_number(value) {
                Some(seconds) => Duration::from_secs(seconds),
                None => values::parse_duration(&as_text(value)?)?,
            };
            range.contains(&duration).then_some(duration)
        })
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        report: &mut Report,
    ) -> Option<Entry<T>> {
        let entry = self.raw(key, report)?;
        let text = as_text(&entry.value);
        if let Some((_, value)) = words.iter().find(|(word, _)| Some(*word) == text.as_deref()) {
            return Some(Entry { value: *value, at: entry.at });
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let expected = format!("one of {}", quoted_list(&names));
        let remedy = match text.as_deref().and_then(|text| nearest(text, &names)) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => "write one of them".to_owned(),
        };
        report.problem(entry.at.problem(found(&entry.value), expected, remedy));
        None
    }

    /// The elements of an array; a variable may also give them with commas between.
    pub(super) fn list(&mut self, key: &'static str, report: &mut Report) -> Option<Vec<Entry<Value>>> {
        let entry = self.raw(key, report)?;
        let element = |(index, value): (usize, Value)| {
            let at = At::new(entry.at.source.clone(), format!("{} #{}", entry.at.key, index + 1));
            Entry { value, at }
        };
        match (entry.value.kind.clone(), from_file(&entry.value)) {
            (ValueKind::Array(values), _) => Some(values.into_iter().enumerate().map(element).collect()),
            (ValueKind::String(text), false) => {
                let origin = entry.value.origin().map(str::to_owned);
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let values = parts.map(|part| Value::new(origin.as_ref(), part));
                Some(values.enumerate().map(element).collect())
            }
            _ => {
                // Lists of secrets exist, so what stands there is not shown.
                let remedy = "put the elements into [ ] with commas between";
                report.problem(entry.at.problem(format!("found {}", kind(&entry.value)), "a list", remedy));
                None
            }
        }
    }

    /// A list of texts, each parsed.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        report: &mut Report,
        mut parse: impl FnMut(&str, &At, &mut Report) -> Option<T>,
    ) -> Vec<Entry<T>> {
        let mut parsed = Vec::new();
        for Entry { value, at } in self.list(key, report).unwrap_or_default() {
            match as_text(&value) {
                Some(text) => parsed.extend(parse(&text, &at, report).map(|value| Entry { value, at })),
                None => report.problem(at.problem(found(&value), "a text", "put it in quotes")),
            }
        }
        parsed
    }

    /// A table within this one; absent is empty.
    pub(super) fn section(&mut self, key: &'static str, report: &mut Report) -> Self {
        let path = self.path_of(key);
        let source = self.source.clone();
        let empty = Self { path, source, values: Map::new(), known: Vec::new() };
        self.known.push(key);
        match self.values.remove(key) {
            Some(value) => table_of(Entry { at: self.place(key, &value), value }, report).unwrap_or(empty),
            None => empty,
        }
    }

    /// An array of tables within this one.
    pub(super) fn sections(&mut self, key: &'static str, report: &mut Report) -> Option<Vec<Self>> {
        let elements = self.list(key, report)?;
        Some(elements.into_iter().filter_map(|entry| table_of(entry, report)).collect())
    }

    /// Whether the file, not the environment, holds secrets.
    pub(super) fn holds_secrets(&self) -> bool {
        let Some(ValueKind::Table(auth)) = self.values.get("auth").map(|auth| &auth.kind) else { return false };
        let is_empty = |value: &Value| {
            matches!(&value.kind, ValueKind::Array(values) if values.is_empty())
                || matches!(&value.kind, ValueKind::Table(values) if values.is_empty())
        };
        let holds = |key: &str| auth.get(key).is_some_and(|value| from_file(value) && !is_empty(value));
        holds("shared-secrets") || holds("user") || holds("third-party")
    }

    /// Lists what nobody asked for.
    pub(super) fn finish(self, report: &mut Report) {
        let mut unknown: Vec<(&String, &Value)> = self.values.iter().collect();
        unknown.sort_by_key(|(key, _)| *key);
        for (key, value) in unknown {
            let origin = origin_of(value);
            let at = At::new(origin.unwrap_or(&self.source), self.path_of(key));
            let remedy = match nearest(key, &self.known) {
                Some(known) if origin.is_some() => format!("did you mean {}?", variable_name(&self.path_of(known))),
                Some(known) => format!("did you mean {known}?"),
                None => "remove it; reference.toml has every key".to_owned(),
            };
            let expected = format!("one of {}", self.known.join(", "));
            report.problem(at.problem("unknown key", expected, remedy));
        }
    }
}

/// The table that an entry is.
pub(super) fn table_of(entry: Entry<Value>, report: &mut Report) -> Option<Section> {
    if let ValueKind::Table(values) = entry.value.kind {
        return Some(Section { path: entry.at.key, source: entry.at.source, values, known: Vec::new() });
    }
    let words = format!("found {}", kind(&entry.value));
    report.problem(entry.at.problem(words, "a table of keys", "write the keys below its name in [ ], or inside { }"));
    None
}

/// The text of a secret, which no message shows.
pub(super) fn secret_text(entry: Entry<Value>, report: &mut Report) -> Option<Entry<String>> {
    match as_text(&entry.value) {
        Some(text) if !text.is_empty() => Some(Entry { value: text, at: entry.at }),
        Some(_) => {
            report.problem(entry.at.problem("found an empty text", "a secret text", "write one, or remove the key"));
            None
        }
        None => {
            let words = format!("found {}", kind(&entry.value));
            report.problem(entry.at.problem(words, "a secret text", "put it in quotes"));
            None
        }
    }
}

/// The variable that a value, or the first value in a table, comes from.
fn origin_of(value: &Value) -> Option<&str> {
    match (&value.kind, value.origin()) {
        (_, Some(origin)) => Some(origin),
        (ValueKind::Table(values), None) => values.values().find_map(origin_of),
        _ => None,
    }
}

fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.to_ascii_uppercase().replace('-', "_").replace('.', "__"))
}

fn from_file(value: &Value) -> bool {
    value.origin().is_none()
}

pub(super) fn as_text(value: &Value) -> Option<String> {
    if let ValueKind::String(text) = &value.kind { Some(text.clone()) } else { None }
}

fn as_number(value: &Value) -> Option<u64> {
    match (&value.kind, from_file(value)) {
        (ValueKind::I64(number), _) => u64::try_from(*number).ok(),
        (ValueKind::String(text), false) => text.parse().ok(),
        _ => None,
    }
}

/// What stands there, in words.
pub(super) fn found(value: &Value) -> String {
    match &value.kind {
        ValueKind::Boolean(truth) => format!("found {truth}"),
        ValueKind::I64(number) => format!("found {number}"),
        ValueKind::Float(number) => format!("found {number}"),
        ValueKind::String(text) => format!("found \"{text}\""),
        ValueKind::Nil
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Table(_)
        | ValueKind::Array(_) => format!("found {}", kind(value)),
    }
}

/// What kind of thing stands there, for secrets.
fn kind(value: &Value) -> &'static str {
    match value.kind {
        ValueKind::Nil => "nothing",
        ValueKind::Boolean(_) => "a truth value",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) | ValueKind::Float(_) => {
            "a number"
        }
        ValueKind::String(_) => "a text",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

fn quoted_list(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// The known word that a mistyped one is nearest to, if it is near at all.
pub(super) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let typed = typed.to_ascii_lowercase().replace('_', "-");
    let scored = known.iter().map(|word| (strsim::jaro_winkler(&typed, word), *word));
    let (score, word) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score > 0.8).then_some(word)
}

/// `auth.user #2 name` is the key `auth.user.name`.
#[cfg(test)]
fn without_index(path: &str) -> String {
    path.split(' ').filter(|part| !part.starts_with('#')).collect::<Vec<_>>().join(".")
}
