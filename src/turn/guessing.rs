//! Whose password is being guessed: the usernames with the most wrong credentials, of a bounded list.

use std::time::{Duration, Instant};

/// Usernames counted at a time.
const NAMES: usize = 32;
/// Bytes kept of a username: enough to find it.
const NAME_LEN_MAX: usize = 128;
/// Counts begin anew after this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Failures of a username within the window that are told. A misconfigured client makes one a second at most.
pub(super) const FAILURES_TOLD: u32 = 1000;
/// Usernames told within the window: what a remote does fills no log.
const TOLD_MAX: usize = 4;

/// What is counted of a username, and told: a request has room for one of 64 KiB.
pub(super) fn counted_name(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_LEN_MAX)]
}

/// Counts failures by username (the space-saving algorithm): a new name takes the place and the count of the rarest, so
/// that a name with more than 1/32 of all failures is in the list whatever the others are.
#[derive(Debug, Default)]
pub(super) struct Guessing {
    names: Vec<Counted>,
    begun: Option<Instant>,
    told: usize,
}

#[derive(Debug)]
struct Counted {
    name: Vec<u8>,
    failures: u32,
    /// What the count was when the name came to it.
    inherited: u32,
    told: bool,
}

impl Guessing {
    /// Counts wrong credentials; true when the username is to be told of, once in a window.
    pub(super) fn count(&mut self, now: Instant, name: &[u8]) -> bool {
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= WINDOW) {
            *self = Self { names: std::mem::take(&mut self.names), begun: Some(now), told: 0 };
            self.names.clear();
        }
        let name = counted_name(name);
        let counted = self.entry(name);
        counted.failures = counted.failures.saturating_add(1);
        let is_much = !counted.told && counted.failures - counted.inherited >= FAILURES_TOLD;
        if is_much && self.told < TOLD_MAX {
            self.entry(name).told = true;
            self.told += 1;
            return true;
        }
        false
    }

    fn entry(&mut self, name: &[u8]) -> &mut Counted {
        let place = self.names.iter().position(|counted| counted.name == name);
        let place = place.unwrap_or_else(|| {
            if self.names.len() < NAMES {
                self.names.push(Counted { name: name.to_vec(), failures: 0, inherited: 0, told: false });
                return self.names.len() - 1;
            }
            let rarest = self.names.iter().enumerate().min_by_key(|(_, counted)| counted.failures);
            let place = rarest.map_or(0, |(place, _)| place);
            let counted = &mut self.names[place];
            counted.name.clear();
            counted.name.extend_from_slice(name);
            (counted.inherited, counted.told) = (counted.failures, false);
            place
        });
        &mut self.names[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts a name many times over; returns how often it was told of.
    fn fail(guessing: &mut Guessing, now: Instant, name: &[u8], times: u32) -> usize {
        (0..times).filter(|_| guessing.count(now, name)).count()
    }

    #[test]
    fn a_name_is_told_once_in_a_minute() {
        let (mut guessing, now) = (Guessing::default(), Instant::now());
        assert_eq!(fail(&mut guessing, now, b"alice", FAILURES_TOLD - 1), 0);
        assert_eq!(fail(&mut guessing, now, b"alice", 5 * FAILURES_TOLD), 1);
        let later = now + WINDOW;
        assert_eq!(fail(&mut guessing, later, b"alice", FAILURES_TOLD - 1), 0, "counts begin anew");
        assert_eq!(fail(&mut guessing, later, b"alice", 1), 1);
    }

    #[test]
    fn a_crowd_of_names_does_not_hide_the_one() {
        let (mut guessing, now) = (Guessing::default(), Instant::now());
        let mut told = 0;
        for round in 0..3 * FAILURES_TOLD {
            for noise in 0..8 {
                assert!(!guessing.count(now, &(round * 8 + noise).to_be_bytes()), "nobody fails twice");
            }
            told += fail(&mut guessing, now, b"alice", 1);
        }
        assert_eq!(told, 1);
        assert_eq!(guessing.names.len(), NAMES);
    }

    #[test]
    fn a_remote_makes_few_lines_however_many_names_it_tries() {
        let (mut guessing, now) = (Guessing::default(), Instant::now());
        let told: usize = (0..20_u8).map(|name| fail(&mut guessing, now, &[name], FAILURES_TOLD)).sum();
        assert_eq!(told, TOLD_MAX);
        let long = vec![b'a'; 763];
        guessing.count(now, &long);
        assert!(guessing.names.iter().all(|counted| counted.name.len() <= NAME_LEN_MAX));
    }
}
