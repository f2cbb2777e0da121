//! What has happened in the runs of many seeds.

use std::ops::AddAssign;

/// What has happened in all seeds, to see that everything has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) events: u64,
    pub(crate) allocations: u64,
    pub(crate) relayed: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) rebound: u64,
    pub(crate) moves: u64,
    pub(crate) stream_moves: u64,
    pub(crate) reloads: u64,
    pub(crate) evictions: u64,
    pub(crate) drains: u64,
    pub(crate) failures: u64,
    pub(crate) stops: u64,
    pub(crate) given_up: u64,
    pub(crate) dialled: u64,
    pub(crate) connections: u64,
    pub(crate) bound: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        let Self {
            events,
            allocations,
            relayed,
            refused,
            lost,
            rebound,
            moves,
            stream_moves,
            reloads,
            evictions,
            drains,
            failures,
            stops,
            given_up,
            dialled,
            connections,
            bound,
        } = more;
        self.events += events;
        self.allocations += allocations;
        self.relayed += relayed;
        self.refused += refused;
        self.lost += lost;
        self.rebound += rebound;
        self.moves += moves;
        self.stream_moves += stream_moves;
        self.reloads += reloads;
        self.evictions += evictions;
        self.drains += drains;
        self.failures += failures;
        self.stops += stops;
        self.given_up += given_up;
        self.dialled += dialled;
        self.connections += connections;
        self.bound += bound;
    }
}

impl Totals {
    /// A simulation in which nothing goes wrong proves nothing.
    pub(crate) fn assert_that_everything_happened(&self, seeds: u64) {
        if seeds < 50 {
            return;
        }
        let Self {
            events,
            allocations,
            relayed,
            refused,
            lost,
            rebound,
            moves,
            stream_moves,
            reloads,
            evictions,
            drains,
            failures,
            stops,
            given_up,
            dialled,
            connections,
            bound,
        } = *self;
        assert!(events > 100 * seeds && allocations > seeds && relayed > 10 * seeds, "{self:?}");
        let rare = [
            refused,
            lost,
            rebound,
            moves,
            stream_moves,
            reloads,
            evictions,
            failures,
            stops,
            given_up,
            dialled,
            connections,
            bound,
        ];
        assert!(drains > 0 || seeds < 1000, "{self:?}");
        assert!(rare.iter().all(|count| *count > seeds / 50), "{self:?}");
    }
}
