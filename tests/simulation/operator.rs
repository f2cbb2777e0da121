//! What befalls everybody: operators who reload, evict and drain, a worker that panics, the end.

use ferryd::address::FiveTuple;
use ferryd::turn::effect::EndReason;
use ferryd::turn::{Drain, SessionFilter};
use rand::RngExt;

use crate::caller::{Caller, Phase};
use crate::dialler::Dialler;
use crate::harness::{Setup, World, addr};
use crate::model::Rules;
use crate::sim::{OPEN, Sim};

/// What an operator denies by a reload, and allows by another.
const DENIED: &str = "9.0.0.0/8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Reload,
    Evict,
    Drain,
    /// A worker panics.
    Fail,
    Stop,
}

impl Sim {
    pub(crate) fn operate(&mut self, operation: Operation) {
        match operation {
            Operation::Reload => {
                self.totals.reloads += 1;
                let denied = addr(OPEN[0]).ip();
                match self.model.rules.forbidden.iter().position(|ip| *ip == denied) {
                    Some(index) => _ = self.model.rules.forbidden.remove(index),
                    None => self.model.rules.forbidden.push(denied),
                }
                self.model.rules.total = [0, 1, 3, 100][self.rng.random_range(0..4)];
                self.without_users = self.rng.random_bool(0.2);
                let (rules, without_users) = (self.model.rules.clone(), self.without_users);
                self.world.reload(|setup| configure(setup, &rules, without_users));
            }
            Operation::Evict => {
                let (worker, number) = (self.rng.random_range(0..self.workers), self.rng.random_range(0..3));
                if let Some(client) = evict(&mut self.world, worker, number) {
                    self.totals.evictions += 1;
                    self.model.end(&client);
                }
            }
            Operation::Drain => {
                self.totals.drains += 1;
                self.model.rules.draining = true;
                let (rules, without_users) = (self.model.rules.clone(), self.without_users);
                self.world.reload(|setup| configure(setup, &rules, without_users));
            }
            Operation::Fail => {
                self.totals.failures += 1;
                let worker = self.rng.random_range(0..self.workers);
                let is_hit = |caller: &usize| {
                    let Caller { client, phase, .. } = &self.callers[*caller];
                    let of_worker = client.at.transport.is_stream() && self.home_of(&client.at) == worker;
                    of_worker && *phase != Phase::Over
                };
                let hit: Vec<usize> = (0..self.callers.len()).filter(is_hit).collect();
                let home = |dialler: &Dialler| self.home_of(&dialler.client.at);
                let dialler_is_hit = self.dialler.as_ref().map(home) == Some(worker);
                self.world.fail(worker);
                self.model.lose(worker);
                hit.into_iter().for_each(|caller| self.restart(caller));
                if dialler_is_hit {
                    self.renew_dialler();
                }
            }
            Operation::Stop => {
                self.totals.stops += 1;
                self.world.stop();
                self.model.end_all();
            }
        }
    }
}

/// The server as the operator wants it now.
pub(crate) fn configure(setup: &mut Setup, rules: &Rules, without_users: bool) {
    setup.drain = rules.draining.then(Drain::default);
    let turn = &mut setup.turn;
    (turn.mobility, turn.tcp_allocations) = (true, true);
    (turn.port_min, turn.port_max) = (50_000, 50_511);
    turn.peers.own_addresses = vec![rules.relay];
    turn.limits.allocations_total = rules.total;
    turn.limits.allocations_per_user = 0;
    // Strangers are not the subject here, and everybody is one to begin with.
    let limits = &mut turn.limits;
    (limits.bindings_per_second, limits.challenges_per_second, limits.failures_per_second) = (0, 0, 0);
    if rules.forbidden.contains(&addr(OPEN[0]).ip()) {
        turn.peers.deny = vec![DENIED.parse().unwrap()];
    }
    if without_users {
        setup.auth.users.clear();
        setup.auth.shared_secrets.clear();
    }
}

/// The operator ends one of a worker's sessions, by its number.
fn evict(world: &mut World, worker: usize, number: usize) -> Option<FiveTuple> {
    let now = world.now();
    let page = world.workers[worker].sessions(now, 0, &SessionFilter::default());
    let session = page.sessions.get(number)?;
    assert!(world.workers[worker].evict(session.id, EndReason::Evicted));
    world.drain(worker);
    Some(session.client)
}
