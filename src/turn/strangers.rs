//! How much is answered to sources that have proved nothing, and to those that guess.
//!
//! Streams have proved their return path by existing, and the 5-tuple of an allocation by an earlier request; neither is
//! asked about here, but for wrong credentials.

use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::buckets::{Buckets, Rate};
use super::quota::source_prefix;
use super::settings::Limits;

/// Binding answers of one second may come at once.
const BINDING_DEPTH: Duration = Duration::from_secs(1);
/// Challenges of 16 seconds may come at once: at 1000 a second they are 16,000, about as many as there are relay ports,
/// so that everybody behind one NAT can begin in the same moment.
const CHALLENGE_DEPTH: Duration = Duration::from_secs(16);
/// Challenges of all sources, of one second.
const CHALLENGES_DEPTH: Duration = Duration::from_secs(1);
/// Refusals of ten seconds may come at once: one office with an old password.
const FAILURE_DEPTH: Duration = Duration::from_secs(10);
/// An IPv6 /48 has the rate of this many /64.
const PREFIXES_PER_SITE: u64 = 4;

/// What a bucket is for; together with whom it is for, the key of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Binding,
    Challenge,
    ChallengeOfAll,
    Failure,
    FailureOfUser,
}

/// Why a stranger is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMany {
    OfSource,
    OfAll,
}

/// The buckets of strangers; shared by all workers.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    buckets: Buckets,
}

impl Strangers {
    /// Whether a Binding request is answered.
    ///
    /// Loopback is not counted: nobody can forge it from outside, so there is nobody to protect.
    pub(super) fn may_bind(&self, now: Instant, limits: &Limits, source: IpAddr) -> bool {
        let rate = Rate::new(limits.bindings_per_second, BINDING_DEPTH).filter(|_| !source.is_loopback());
        rate.is_none_or(|rate| self.take(now, Kind::Binding, source, rate))
    }

    /// Whether a request without a valid nonce is answered.
    pub(super) fn may_be_challenged(&self, now: Instant, limits: &Limits, source: IpAddr) -> Result<(), TooMany> {
        let of_source = challenge_rate(limits);
        if of_source.is_some_and(|rate| !self.take(now, Kind::Challenge, source, rate)) {
            return Err(TooMany::OfSource);
        }
        let of_all = all_challenges_rate(limits);
        if of_all.is_some_and(|rate| !self.buckets.take(now, Kind::ChallengeOfAll, rate)) {
            return Err(TooMany::OfAll);
        }
        Ok(())
    }

    /// Gives the challenge of a source back that has come with credentials since: what counts is who never does.
    pub(super) fn has_authenticated(&self, now: Instant, limits: &Limits, source: IpAddr) {
        if let Some(rate) = challenge_rate(limits) {
            for (key, rate) in levels(Kind::Challenge, source, rate).into_iter().flatten() {
                self.buckets.give_back(now, key, rate);
            }
        }
        if let Some(rate) = all_challenges_rate(limits) {
            self.buckets.give_back(now, Kind::ChallengeOfAll, rate);
        }
    }

    /// Whether wrong credentials are answered: by the rate of refusals for the source and the username, and by the rate
    /// of challenges for the source whatever the username.
    pub(super) fn may_be_refused(&self, now: Instant, limits: &Limits, source: IpAddr, username: &[u8]) -> bool {
        let of_user = Rate::new(limits.failures_per_second, FAILURE_DEPTH);
        let key = (Kind::FailureOfUser, source_prefix(source), username);
        of_user.is_none_or(|rate| self.buckets.take(now, key, rate))
            && challenge_rate(limits).is_none_or(|rate| self.take(now, Kind::Failure, source, rate))
    }

    fn take(&self, now: Instant, kind: Kind, source: IpAddr, rate: Rate) -> bool {
        levels(kind, source, rate).into_iter().flatten().all(|(key, rate)| self.buckets.take(now, key, rate))
    }
}

fn challenge_rate(limits: &Limits) -> Option<Rate> {
    Rate::new(limits.challenges_per_second, CHALLENGE_DEPTH)
}

fn all_challenges_rate(limits: &Limits) -> Option<Rate> {
    Rate::new(limits.challenges_total_per_second, CHALLENGES_DEPTH)
}

/// The buckets of a source: its IPv4 address, or its IPv6 /64 and then the /48 around it.
fn levels(kind: Kind, source: IpAddr, rate: Rate) -> [Option<(impl Hash, Rate)>; 2] {
    let site = match source {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(IpAddr::V6((u128::from(v6) & (u128::MAX << 80)).into())),
    };
    [
        Some(((kind, 64_u8, source_prefix(source)), rate)),
        site.map(|site| ((kind, 48_u8, site), rate.times(PREFIXES_PER_SITE))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        bindings_per_second: 10,
        challenges_per_second: 1,
        challenges_total_per_second: 0,
        failures_per_second: 2,
        ..Limits::DEFAULT
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_source_has_a_bucket_of_its_own_and_each_site_one_around() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let binds = |source: &str| (0..1000).take_while(|_| strangers.may_bind(now, &LIMITS, ip(source))).count();
        assert_eq!(binds("192.0.2.1"), 10);
        assert_eq!(binds("192.0.2.2"), 10);
        assert_eq!(binds("2001:db8:0:1::1"), 10);
        assert_eq!(binds("2001:db8:0:1::2"), 0, "the same /64");
        assert_eq!(binds("2001:db8:0:2::1"), 10);
        assert_eq!(binds("2001:db8:0:3::1"), 10);
        assert_eq!(binds("2001:db8:0:4::1"), 10);
        assert_eq!(binds("2001:db8:0:5::1"), 0, "the fifth /64 of a /48");
        assert_eq!(binds("2001:db8:1:5::1"), 10);
        assert_eq!(binds("127.0.0.1"), 1000, "loopback");
        assert_eq!(binds("::1"), 1000);
    }

    #[test]
    fn challenges_are_bounded_unless_credentials_follow() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let source = ip("127.0.0.1");
        for _ in 0..1000 {
            assert_eq!(strangers.may_be_challenged(now, &LIMITS, source), Ok(()));
            strangers.has_authenticated(now, &LIMITS, source);
        }
        let challenged = (0..1000).take_while(|_| strangers.may_be_challenged(now, &LIMITS, source).is_ok()).count();
        assert_eq!(challenged, 16);
        assert_eq!(strangers.may_be_challenged(now, &LIMITS, source), Err(TooMany::OfSource));
    }

    #[test]
    fn challenges_of_many_sources_are_bounded_together() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let limits = Limits { challenges_total_per_second: 50, ..LIMITS };
        let of = |number: u32| strangers.may_be_challenged(now, &limits, IpAddr::V4(number.into()));
        assert_eq!((0..1000).filter(|number| of(*number).is_ok()).count(), 50);
        assert_eq!(of(5000), Err(TooMany::OfAll));
    }

    #[test]
    fn refusals_are_counted_for_the_source_and_the_username() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let limits = Limits { challenges_per_second: 5, ..LIMITS };
        let refused = |source: &str, name: &[u8]| {
            (0..1000).take_while(|_| strangers.may_be_refused(now, &limits, ip(source), name)).count()
        };
        assert_eq!(refused("192.0.2.1", b"alice"), 20);
        assert_eq!(refused("192.0.2.1", b"bob"), 20);
        assert_eq!(refused("192.0.2.2", b"alice"), 20);
        let names: usize = (0..100_u32).map(|name| refused("192.0.2.3", &name.to_be_bytes())).sum();
        assert_eq!(names, 80, "16 seconds of 5, whatever the names");
    }

    #[test]
    fn zero_is_no_limit() {
        let limits = Limits {
            bindings_per_second: 0,
            challenges_per_second: 0,
            challenges_total_per_second: 0,
            failures_per_second: 0,
            ..LIMITS
        };
        let (strangers, now, source) = (Strangers::default(), Instant::now(), ip("192.0.2.1"));
        for _ in 0..100_000 {
            assert!(strangers.may_bind(now, &limits, source));
            assert_eq!(strangers.may_be_challenged(now, &limits, source), Ok(()));
            assert!(strangers.may_be_refused(now, &limits, source, b"alice"));
        }
    }
}
