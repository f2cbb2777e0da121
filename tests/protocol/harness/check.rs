//! What holds whatever a test does.

use ferryd::address::Family;
use ferryd::stun::{ErrorCode, Method};
use ferryd::turn::{Counters, DropReason, Server};

use super::World;

/// Every datagram ends in exactly one outcome.
pub(crate) fn counted_once<T>(server: &mut Server, handle: impl FnOnce(&mut Server) -> T) -> T {
    // What waits for a verdict is counted when it is answered.
    let ended = |server: &Server| outcomes(server.counters()) + server.waiting() as u64;
    let before = ended(server);
    let result = handle(server);
    assert_eq!(ended(server), before + 1, "one datagram, one outcome");
    result
}

/// How many datagrams have ended in whatever outcome.
pub(crate) fn outcomes(counters: &Counters) -> u64 {
    let of_method = |method: Method| {
        let refused = ErrorCode::ALL.into_iter().map(|code| counters.refused(method, code));
        counters.succeeded(method) + refused.sum::<u64>()
    };
    let dropped: u64 = DropReason::ALL.into_iter().map(|reason| counters.dropped(reason)).sum();
    // Connects are counted when their peers answer, or when their allocation ends.
    let requests: u64 = Method::ALL.into_iter().filter(|method| *method != Method::Connect).map(of_method).sum();
    counters.to_peer + counters.to_client + counters.to_worker + counters.keepalive + requests + dropped
}

/// Nothing is left of any allocation: no socket, port, quota, timer or record.
pub(crate) fn assert_no_leak(world: &World) {
    assert_eq!(world.sockets.len(), 0, "relay sockets");
    assert_eq!(world.held.len(), 0, "held sockets");
    assert_eq!((world.listening.len(), world.connections.len()), (0, 0), "listeners and connections with peers");
    assert_eq!(world.shared.connections.usage(), 0, "numbers of connections");
    assert_eq!(world.shared.quotas.total(), 0, "quotas");
    assert_eq!(world.shared.mobility.usage(), (0, 0), "tickets and 5-tuples that moved");
    for family in [Family::V4, Family::V6] {
        assert_eq!(world.shared.ports.usage(family).0, 0, "ports of {family:?}");
    }
    for worker in &world.workers {
        assert_eq!(worker.allocations(), 0, "allocations");
        assert_eq!(*worker.live(), Default::default(), "live relayed addresses");
        assert_eq!(worker.poll_timeout(), None, "timers");
    }
}
