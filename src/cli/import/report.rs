//! What an import has to say: one line for each option that is not simply the same.

use std::fmt;

use super::lines::Line;

/// What became of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Somebody has to look: the result does something else than coturn did.
    Decide,
    /// Left out or tightened for safety.
    Safer,
    /// There is no counterpart, and none is needed.
    Dropped,
    /// coturn does not know the name either, and went on without it.
    Unknown,
}

impl Verdict {
    pub(super) const ALL: [Self; 4] = [Self::Decide, Self::Safer, Self::Dropped, Self::Unknown];
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decide => "to decide",
            Self::Safer => "made safer",
            Self::Dropped => "dropped",
            Self::Unknown => "unknown",
        })
    }
}

/// One thing to tell. The words never hold a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    /// `None` is what coturn does without an option.
    pub(super) line: Option<usize>,
    pub(super) option: String,
    pub(super) words: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, line, option, words } = self;
        match line {
            Some(line) => write!(f, "{verdict}: line {line}, {option}: {words}"),
            None => write!(f, "{verdict}: {option}: {words}"),
        }
    }
}

/// Findings in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
}

impl Report {
    pub(super) fn add(&mut self, verdict: Verdict, line: &Line, words: impl Into<String>) {
        let (option, words) = (line.name.clone(), words.into());
        self.findings.push(Finding { verdict, line: Some(line.number), option, words });
    }

    /// The same for what is looked at more than once.
    pub(super) fn add_once(&mut self, verdict: Verdict, line: &Line, words: impl Into<String>) {
        if !self.findings.iter().any(|finding| finding.line == Some(line.number)) {
            self.add(verdict, line, words);
        }
    }

    /// What follows from an option that is absent.
    pub(super) fn add_absent(&mut self, verdict: Verdict, option: &str, words: impl Into<String>) {
        self.findings.push(Finding { verdict, line: None, option: option.to_owned(), words: words.into() });
    }

    /// The findings, those to decide first.
    pub(super) fn sorted(&self) -> Vec<&Finding> {
        let mut findings: Vec<_> = self.findings.iter().collect();
        findings.sort_by_key(|finding| (finding.verdict, finding.line));
        findings
    }

    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }
}
