//! Credentials that an operator has taken back: no new allocations are made for them.

use std::collections::HashMap;
use std::net::IpAddr;

use super::credentials::{Credentials, TimeLimited};
use super::subject::Subject;

/// Revocations that are kept; more are refused.
pub const REVOCATIONS_MAX: usize = 10_000;

/// Whose credentials are taken back, and until when. In seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub subject: Subject,
    pub since: u64,
    /// Without end unless set.
    pub until: Option<u64>,
}

impl Revocation {
    /// Takes back until `until`, or else until the credential would have ended where its name tells that.
    pub fn new(subject: Subject, since: u64, until: Option<u64>) -> Self {
        let named = match &subject {
            Subject::User(user) => TimeLimited::parse(user).map(|limited| limited.expiry),
            Subject::UserPrefix(_) | Subject::Secret(_) | Subject::Client(_) => None,
        };
        Self { subject, since, until: until.or(named) }
    }

    /// Whether it still says something.
    pub fn holds(&self, unix_seconds: u64) -> bool {
        self.until.is_none_or(|until| unix_seconds < until)
    }
}

/// What is taken back, ready to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// By user, for one look-up.
    users: HashMap<String, Revocation>,
    others: Vec<Revocation>,
}

impl Revocations {
    pub fn new(all: &[Revocation]) -> Self {
        let mut revocations = Self::default();
        for revocation in all {
            match &revocation.subject {
                Subject::User(user) => _ = revocations.users.insert(user.clone(), revocation.clone()),
                Subject::UserPrefix(_) | Subject::Secret(_) | Subject::Client(_) => {
                    revocations.others.push(revocation.clone());
                }
            }
        }
        revocations
    }

    /// Whether these credentials, used from this address, have been taken back.
    pub fn cover(&self, credentials: &Credentials, client: IpAddr, unix_seconds: u64) -> bool {
        let of_user = |name: &str| self.users.get(name).is_some_and(|revocation| revocation.holds(unix_seconds));
        let name = || TimeLimited::parse(&credentials.username).and_then(|limited| limited.name);
        let covers = |it: &Revocation| it.holds(unix_seconds) && it.subject.covers(credentials, client);
        !self.users.is_empty() && (of_user(&credentials.username) || name().is_some_and(of_user))
            || self.others.iter().any(covers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_ends_with_the_credential_that_it_names_unless_told_otherwise() {
        let until = |subject: &str, until| Revocation::new(subject.parse().unwrap(), 5, until).until;
        assert_eq!(until("1700000000:alice", None), Some(1_700_000_000));
        assert_eq!(until("1700000000:alice", Some(9)), Some(9));
        assert_eq!(until("alice", None), None);
        assert_eq!(until("17*", None), None);
        let revocation = Revocation::new("alice".parse().unwrap(), 5, Some(9));
        assert!(revocation.holds(8) && !revocation.holds(9));
    }
}
