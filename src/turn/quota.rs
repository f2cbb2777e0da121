//! How many allocations a user, a source and all together may have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::meter::Meter;
use super::settings::Limits;

/// Counts of live allocations, shared by all workers.
#[derive(Debug, Default)]
pub struct Quotas {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    users: HashMap<Arc<str>, User>,
    prefixes: HashMap<IpAddr, u32>,
    total: u32,
}

#[derive(Debug, Default)]
struct User {
    allocations: u32,
    meter: Arc<Meter>,
}

/// A place in the quotas, given back when it is dropped: it belongs to the allocation that it paid for.
#[derive(Debug)]
pub(super) struct QuotaGuard {
    quotas: Arc<Quotas>,
    user: Option<Arc<str>>,
    /// What the user's allocations carry together.
    pub(super) meter: Option<Arc<Meter>>,
    prefix: IpAddr,
}

/// Which quota is full: 486 (Allocation Quota Reached).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaReached {
    User,
    Prefix,
    Total,
}

impl Quotas {
    /// Takes a place for one allocation; `user` is `None` where many may share a name.
    ///
    /// `paid` is the place of a reservation that this allocation redeems: it is about to be given back, and not
    /// counted.
    pub(super) fn acquire(
        self: &Arc<Self>,
        limits: &Limits,
        user: Option<&str>,
        client: IpAddr,
        paid: Option<&QuotaGuard>,
    ) -> Result<QuotaGuard, QuotaReached> {
        let prefix = source_prefix(client);
        let user: Option<Arc<str>> = user.map(Arc::from);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |limit: u32, count: u32, paid: bool| limit != 0 && count.saturating_sub(u32::from(paid)) >= limit;
        if let Some(user) = &user {
            let count = counts.users.get(user).map_or(0, |user| user.allocations);
            if full(limits.allocations_per_user, count, paid.is_some_and(|paid| paid.user.as_ref() == Some(user))) {
                return Err(QuotaReached::User);
            }
        }
        let count = counts.prefixes.get(&prefix).copied().unwrap_or(0);
        // The host itself is nobody's prefix: probes, load tests and proxies on it share one address.
        let of_others = !client.is_loopback();
        if of_others && full(limits.allocations_per_prefix, count, paid.is_some_and(|paid| paid.prefix == prefix)) {
            return Err(QuotaReached::Prefix);
        }
        if full(limits.allocations_total, counts.total, paid.is_some()) {
            return Err(QuotaReached::Total);
        }
        counts.total += 1;
        *counts.prefixes.entry(prefix).or_default() += 1;
        let meter = user.as_ref().map(|user| {
            let user = counts.users.entry(Arc::clone(user)).or_default();
            user.allocations += 1;
            Arc::clone(&user.meter)
        });
        Ok(QuotaGuard { quotas: Arc::clone(self), user, meter, prefix })
    }

    /// How many allocations there are.
    pub fn total(&self) -> u32 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for QuotaGuard {
    fn drop(&mut self) {
        let mut counts = self.quotas.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        give_back(&mut counts.prefixes, &self.prefix, |count| count);
        if let Some(user) = &self.user {
            give_back(&mut counts.users, user, |user| &mut user.allocations);
        }
    }
}

fn give_back<K: std::hash::Hash + Eq, V>(counts: &mut HashMap<K, V>, key: &K, count: impl Fn(&mut V) -> &mut u32) {
    if let Some(value) = counts.get_mut(key) {
        let count = count(value);
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The part of a client's address that one subscriber usually has: IPv4 /32, IPv6 /64.
pub(super) fn source_prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { allocations_per_user: 2, allocations_total: 4, allocations_per_prefix: 3, ..Limits::DEFAULT };

    #[test]
    fn each_quota_is_enforced_and_given_back() {
        let quotas = Arc::new(Quotas::default());
        let acquire = |user: Option<&str>, ip: &str| quotas.acquire(&LIMITS, user, ip.parse().unwrap(), None);
        let first = acquire(Some("alice"), "2001:db8::1").unwrap();
        let _second = acquire(Some("alice"), "2001:db8::2").unwrap();
        assert_eq!(acquire(Some("alice"), "192.0.2.1").unwrap_err(), QuotaReached::User);
        let _third = acquire(None, "2001:db8::3").unwrap();
        assert_eq!(acquire(None, "2001:db8::ffff").unwrap_err(), QuotaReached::Prefix);
        let _fourth = acquire(None, "192.0.2.1").unwrap();
        assert_eq!(acquire(None, "192.0.2.2").unwrap_err(), QuotaReached::Total);
        drop(first);
        let fifth = acquire(Some("alice"), "192.0.2.2").unwrap();
        drop((fifth, _second, _third, _fourth));
        let counts = quotas.counts.lock().unwrap();
        assert_eq!((counts.total, counts.users.len(), counts.prefixes.len()), (0, 0, 0));
    }

    #[test]
    fn a_place_that_is_passed_on_is_not_counted_twice() {
        let quotas = Arc::new(Quotas::default());
        let acquire = |user, ip: &str, paid| quotas.acquire(&LIMITS, Some(user), ip.parse().unwrap(), paid);
        let first = acquire("alice", "192.0.2.1", None).unwrap();
        let second = acquire("alice", "192.0.2.2", None).unwrap();
        assert_eq!(acquire("alice", "192.0.2.3", None).unwrap_err(), QuotaReached::User);
        let third = acquire("alice", "192.0.2.3", Some(&first)).unwrap();
        drop(first);
        assert_eq!(quotas.total(), 2);
        drop((second, third));
        assert_eq!(quotas.total(), 0);
    }

    #[test]
    fn loopback_is_nobodys_prefix() {
        let quotas = Arc::new(Quotas::default());
        let limits = Limits { allocations_total: 0, ..LIMITS };
        let acquire = |ip: &str| quotas.acquire(&limits, None, ip.parse().unwrap(), None);
        let guards: Vec<_> = (0..10).map(|_| acquire("127.0.0.1").unwrap()).collect();
        assert_eq!(quotas.total(), 10);
        drop(guards);
    }

    #[test]
    fn zero_is_no_limit() {
        let limits = Limits { allocations_per_user: 0, allocations_total: 0, allocations_per_prefix: 0, ..LIMITS };
        let quotas = Arc::new(Quotas::default());
        let guards: Vec<_> =
            (0..100).map(|_| quotas.acquire(&limits, Some("a"), "192.0.2.1".parse().unwrap(), None).unwrap()).collect();
        assert_eq!(quotas.total(), 100);
        drop(guards);
    }
}
