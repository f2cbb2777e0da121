//! What is wrong with a configuration, in words an operator can act on.

use std::fmt;
use std::path::Path;

/// One thing that is wrong: where, what was found, what was expected and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, or `environment variable NAME`.
    pub source: String,
    /// The key, such as `relay.port-min` or `auth.user #2 password`; empty when the source as a whole is meant.
    pub key: String,
    /// What stands there; never a secret.
    pub found: String,
    pub expected: String,
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}, expected {}; {}", self.found, self.expected, self.remedy)
    }
}

/// Everything that is wrong with a configuration; the daemon does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) source: String,
    pub(super) key: String,
}

impl At {
    pub(super) fn new(source: impl Into<String>, key: impl Into<String>) -> Self {
        Self { source: source.into(), key: key.into() }
    }

    /// A file that a key leads to, rather than the key.
    pub(super) fn file(path: &Path, key: impl Into<String>) -> Self {
        Self { source: path.display().to_string(), key: key.into() }
    }

    pub(super) fn problem(
        &self,
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem {
            source: self.source.clone(),
            key: self.key.clone(),
            found: found.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        }
    }
}

/// What has been noticed so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Files that hold secrets and were named, whether they could be read or not.
    pub(super) secret_files: Vec<std::path::PathBuf>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
    /// Every key that was asked for, whether set or not: the keys there are.
    #[cfg(test)]
    pub(super) keys: std::collections::BTreeSet<String>,
}

impl Report {
    pub(super) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub(super) fn warn(&mut self, at: &At, words: impl fmt::Display) {
        self.warnings.push(format!("{}: {}: {words}", at.source, at.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_file_key_expectation_and_remedy() {
        let at = At::new("/etc/ferryd/ferryd.toml", "relay.port-min");
        assert_eq!(
            at.problem("found \"x\"", "a number from 1 to 65535", "write it without quotes").to_string(),
            "/etc/ferryd/ferryd.toml: relay.port-min: found \"x\", expected a number from 1 to 65535; \
             write it without quotes"
        );
    }

    #[test]
    fn every_problem_has_its_line() {
        let at = At::new("f", "");
        let problems = Problems(vec![at.problem("a", "b", "c"), at.problem("d", "e", "f")]);
        assert_eq!(problems.to_string(), "f: a, expected b; c\nf: d, expected e; f");
    }
}
