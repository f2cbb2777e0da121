//! What became of each datagram: every one ends in exactly one [`Outcome`], counted in one place.

use std::ops::AddAssign;

use super::effect::Traffic;
use crate::address::Transport;
use crate::stun::message::ParseError;
use crate::stun::{ErrorCode, Method};

/// Why x what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Relayed to a peer through the network.
    ToPeer,
    /// Relayed to the client of the allocation.
    ToClient,
    /// Handed to another worker, which counts it as well.
    ToWorker,
    /// A request that succeeded, or whose success is on its way.
    Succeeded(Method),
    /// A Connect request whose connection is being made: it is counted when it is answered.
    Connecting,
    /// An Allocate that waits for a verdict: it is counted when it is answered.
    Waiting,
    /// A peer has connected, and the client was told.
    Accepted,
    /// A request that was refused.
    Refused(Method, ErrorCode),
    /// A Binding indication: a keepalive (RFC 8489 section 6.3.2), nothing to do.
    Keepalive,
    /// Nothing was sent.
    Dropped(DropReason),
}

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Neither STUN nor ChannelData.
    UnknownProtocol,
    /// Not well-formed.
    Malformed(ParseError),
    /// A ChannelData message that is shorter than it claims, or with a channel number that is none.
    MalformedChannelData,
    /// A response, or a class that the method does not have.
    UnexpectedClass,
    /// A method whose extension is switched off.
    MethodOff,
    /// An indication with an unknown comprehension-required attribute.
    UnknownAttribute,
    /// A Send indication without XOR-PEER-ADDRESS or DATA, or a malformed one.
    IncompleteSend,
    /// Data on a 5-tuple without allocation.
    NoAllocation,
    /// Data on a channel that is not bound.
    NoChannel,
    /// No permission for the peer's address.
    NoPermission,
    /// The peer's port is not permitted: port 0, or an own port that is no live relayed address.
    ForbiddenPort,
    /// A relay that is gone.
    NoRelay,
    /// The message around the payload would outgrow what the transport carries.
    TooLong,
    /// The same request is being worked on.
    InProgress,
    /// An ICMP error that RFC 8656 section 11.5 does not relay.
    IrrelevantIcmp,
    /// Source port 0: nothing can be answered there.
    NoSourcePort,
    /// Data for a client whose connection is gone, and which may come back (RFC 8016).
    ClientAway,
    /// More Binding requests than a source is answered.
    BindingRate,
    /// More requests without a valid nonce than a source is answered.
    ChallengeRate,
    /// More requests without a valid nonce than all sources together are answered.
    ChallengeRateOfAll,
    /// More wrong credentials than are answered.
    FailureRate,
    /// More data than an allocation or a user may send or be sent.
    DataRate,
    /// Datagrams on a TCP allocation, whose peers have connections (RFC 6062).
    TcpAllocation,
    /// A peer has connected to an allocation that has too many connections; closed.
    TooManyConnections,
    /// Peers connect to an allocation faster than its client is told; closed.
    ConnectionRate,
}

impl DropReason {
    /// Every reason, for tables of counters.
    pub const ALL: [Self; 29] = [
        Self::UnknownProtocol,
        Self::Malformed(ParseError::NotStun),
        Self::Malformed(ParseError::Length),
        Self::Malformed(ParseError::UnknownMethod),
        Self::Malformed(ParseError::Attribute),
        Self::Malformed(ParseError::Fingerprint),
        Self::MalformedChannelData,
        Self::UnexpectedClass,
        Self::MethodOff,
        Self::UnknownAttribute,
        Self::IncompleteSend,
        Self::NoAllocation,
        Self::NoChannel,
        Self::NoPermission,
        Self::ForbiddenPort,
        Self::NoRelay,
        Self::TooLong,
        Self::InProgress,
        Self::IrrelevantIcmp,
        Self::NoSourcePort,
        Self::ClientAway,
        Self::BindingRate,
        Self::ChallengeRate,
        Self::ChallengeRateOfAll,
        Self::FailureRate,
        Self::DataRate,
        Self::TcpAllocation,
        Self::TooManyConnections,
        Self::ConnectionRate,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownProtocol => "unknown_protocol",
            Self::Malformed(ParseError::NotStun) => "not_stun",
            Self::Malformed(ParseError::Length) => "wrong_length",
            Self::Malformed(ParseError::UnknownMethod) => "unknown_method",
            Self::Malformed(ParseError::Attribute) => "malformed_attribute",
            Self::Malformed(ParseError::Fingerprint) => "wrong_fingerprint",
            Self::MalformedChannelData => "malformed_channel_data",
            Self::UnexpectedClass => "unexpected_class",
            Self::MethodOff => "method_off",
            Self::UnknownAttribute => "unknown_attribute",
            Self::IncompleteSend => "incomplete_send",
            Self::NoAllocation => "no_allocation",
            Self::NoChannel => "no_channel",
            Self::NoPermission => "no_permission",
            Self::ForbiddenPort => "forbidden_port",
            Self::NoRelay => "no_relay",
            Self::TooLong => "too_long",
            Self::InProgress => "in_progress",
            Self::IrrelevantIcmp => "irrelevant_icmp",
            Self::NoSourcePort => "no_source_port",
            Self::ClientAway => "client_away",
            Self::BindingRate => "binding_rate",
            Self::ChallengeRate => "challenge_rate",
            Self::ChallengeRateOfAll => "challenge_rate_of_all",
            Self::FailureRate => "failure_rate",
            Self::DataRate => "data_rate",
            Self::TcpAllocation => "tcp_allocation",
            Self::TooManyConnections => "too_many_connections",
            Self::ConnectionRate => "connection_rate",
        }
    }
}

/// Counts of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub to_peer: u64,
    pub to_client: u64,
    pub to_worker: u64,
    pub keepalive: u64,
    /// Wrong credentials with a valid nonce, answered or not.
    pub credential_failures: u64,
    /// Connections of peers to TCP allocations that their clients were told of.
    pub accepted: u64,
    /// Bytes from clients to peers over data connections (RFC 6062).
    pub connection_bytes_to_peers: u64,
    /// Bytes from peers to clients over data connections.
    pub connection_bytes_to_clients: u64,
    /// Application data by the client's transport, payload alone; data connections (RFC 6062) are counted apart.
    pub traffic: [Traffic; Transport::ALL.len()],
    succeeded: [u64; Method::ALL.len()],
    refused: [[u64; ErrorCode::ALL.len()]; Method::ALL.len()],
    dropped: [u64; DropReason::ALL.len()],
}

impl Counters {
    pub(super) fn record(&mut self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::ToPeer => &mut self.to_peer,
            Outcome::ToClient => &mut self.to_client,
            Outcome::ToWorker => &mut self.to_worker,
            Outcome::Keepalive => &mut self.keepalive,
            Outcome::Accepted => &mut self.accepted,
            Outcome::Connecting | Outcome::Waiting => return,
            Outcome::Succeeded(method) => &mut self.succeeded[method as usize],
            Outcome::Refused(method, code) => &mut self.refused[method as usize][code as usize],
            Outcome::Dropped(reason) => &mut self.dropped[reason_index(reason)],
        };
        *counter += 1;
    }

    /// How many requests of a method succeeded.
    pub fn succeeded(&self, method: Method) -> u64 {
        self.succeeded[method as usize]
    }

    /// How many requests of a method were refused with a code.
    pub fn refused(&self, method: Method, code: ErrorCode) -> u64 {
        self.refused[method as usize][code as usize]
    }

    /// How many datagrams were dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason_index(reason)]
    }
}

impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, more: &Self) {
        let Self {
            to_peer,
            to_client,
            to_worker,
            keepalive,
            credential_failures,
            accepted,
            connection_bytes_to_peers,
            connection_bytes_to_clients,
            traffic,
            succeeded,
            refused,
            dropped,
        } = more;
        self.to_peer += to_peer;
        self.to_client += to_client;
        self.to_worker += to_worker;
        self.keepalive += keepalive;
        self.credential_failures += credential_failures;
        self.accepted += accepted;
        self.connection_bytes_to_peers += connection_bytes_to_peers;
        self.connection_bytes_to_clients += connection_bytes_to_clients;
        self.traffic.iter_mut().zip(traffic).for_each(|(sum, more)| *sum += *more);
        let add = |sums: &mut [u64], more: &[u64]| sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        add(&mut self.succeeded, succeeded);
        self.refused.iter_mut().zip(refused).for_each(|(sums, more)| add(sums, more));
        add(&mut self.dropped, dropped);
    }
}

fn reason_index(reason: DropReason) -> usize {
    DropReason::ALL.iter().position(|other| *other == reason).expect("ALL has every reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_name_of_its_own() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
        let mut counters = Counters::default();
        for reason in DropReason::ALL {
            counters.record(Outcome::Dropped(reason));
            assert_eq!(counters.dropped(reason), 1);
        }
    }

    #[test]
    fn every_counter_is_added() {
        let mut counters = Counters::default();
        let method = Method::Refresh;
        for outcome in [
            Outcome::ToPeer,
            Outcome::ToClient,
            Outcome::ToWorker,
            Outcome::Keepalive,
            Outcome::Succeeded(method),
            Outcome::Refused(method, ErrorCode::Forbidden),
            Outcome::Dropped(DropReason::ClientAway),
        ] {
            counters.record(outcome);
        }
        let (mut twice, once) = (counters.clone(), counters.clone());
        twice += &once;
        assert_eq!([twice.to_peer, twice.to_client, twice.to_worker, twice.keepalive], [2; 4]);
        let of_requests = [twice.succeeded(method), twice.refused(method, ErrorCode::Forbidden)];
        assert_eq!((of_requests, twice.dropped(DropReason::ClientAway)), ([2; 2], 2));
    }

    #[test]
    fn methods_and_codes_index_their_tables() {
        assert!(Method::ALL.iter().enumerate().all(|(index, method)| *method as usize == index));
        assert!(ErrorCode::ALL.iter().enumerate().all(|(index, code)| *code as usize == index));
    }
}
