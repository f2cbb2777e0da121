//! The network between callers, server and peers: it delays, loses and doubles datagrams, and keeps the order of streams.

use std::time::Duration;

use ferryd::address::FiveTuple;
use rand::RngExt;

use crate::sim::{Event, Sim};

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) latency: Duration,
    pub(crate) jitter: Duration,
}

impl Sim {
    /// Puts something into the network; `stream` is the 5-tuple and whether it goes to the server.
    pub(crate) fn fly(&mut self, event: Event, stream: Option<(FiveTuple, bool)>) {
        let Weather { loss, duplication, latency, jitter } = self.weather;
        if let Some((at, up)) = stream.filter(|(at, _)| at.transport.is_stream()) {
            let delay = latency + jitter.mul_f64(self.rng.random());
            let earliest = self.streams.entry((at.client.socket_addr(), up)).or_default();
            *earliest = (*earliest).max(self.now + delay);
            let arrival = *earliest;
            return self.at(arrival, event);
        }
        let copies = 1 + usize::from(self.rng.random_bool(duplication));
        for _ in 0..copies {
            if self.rng.random_bool(loss) {
                self.totals.lost += 1;
                continue;
            }
            let arrival = self.now + latency + jitter.mul_f64(self.rng.random());
            self.at(arrival, event.clone());
        }
    }
}
