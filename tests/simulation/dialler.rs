//! A client of TCP to peers (RFC 6062): it allocates for TCP, connects, is connected to, binds, and forgets to.
//!
//! Its connections are streams, which lose nothing, so what it does happens at once; what the operators do happens to it
//! as well.

use std::net::SocketAddr;
use std::time::Duration;

use ferryd::address::{FiveTuple, Transport};
use ferryd::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};
use ferryd::turn::PeerConnectionId;
use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::harness::{BOB, Client, Reply, addr};
use crate::model::Stage;
use crate::sim::{Event, FORBIDDEN, OPEN, Sim};

/// The last byte of its address, which no caller has.
pub(crate) const HOST: u8 = 251;

#[derive(Debug)]
pub(crate) struct Dialler {
    pub(crate) client: Client,
    relay: Option<SocketAddr>,
}

impl Sim {
    pub(crate) fn add_dialler(&mut self) {
        let mut client = Client::over("198.51.100.1:1", Transport::Tcp);
        client.at = self.new_stream();
        self.dialler = Some(Dialler { client, relay: None });
        self.dial_again();
    }

    fn new_stream(&mut self) -> FiveTuple {
        let transport = if self.rng.random_bool(0.5) { Transport::Tcp } else { Transport::Tls };
        self.new_five_tuple(HOST.into(), transport)
    }

    fn dial_again(&mut self) {
        let longest = [5, 5, 5, 45, 400][self.rng.random_range(0..5)];
        let at = self.now + Duration::from_millis(self.rng.random_range(0..longest * 1000));
        if at < self.end {
            self.at(at, Event::Dial);
        }
    }

    /// Its connection is gone, with the worker that had it.
    pub(crate) fn renew_dialler(&mut self) {
        let at = self.new_stream();
        if let Some(dialler) = &mut self.dialler {
            (dialler.client.at, dialler.client.nonce, dialler.relay) = (at, None, None);
        }
    }

    /// Does the next thing, whatever it is.
    pub(crate) fn dial(&mut self) {
        let Some(mut dialler) = self.dialler.take() else { return };
        self.totals.dialled += 1;
        let leaves = match dialler.relay {
            None => {
                self.allocate_for_tcp(&mut dialler);
                false
            }
            Some(relay) => self.act_on(&mut dialler, relay),
        };
        self.dialler = Some(dialler);
        if leaves {
            self.renew_dialler();
        }
        self.compare_connections();
        self.dial_again();
    }

    fn allocate_for_tcp(&mut self, dialler: &mut Dialler) {
        let reply = self.ask(&mut dialler.client, Method::Allocate, |builder| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
        });
        dialler.relay = reply.filter(|reply| reply.result().is_ok()).map(|reply| reply.relay());
    }

    /// True when it closes its connection.
    fn act_on(&mut self, dialler: &mut Dialler, relay: SocketAddr) -> bool {
        let forbidden = self.rng.random_bool(0.1);
        let peers = if forbidden { &FORBIDDEN[..] } else { &OPEN[..] };
        let peer = addr(peers[self.rng.random_range(0..peers.len())]);
        let client = &mut dialler.client;
        match self.rng.random_range(0..20) {
            0..4 => {
                let reply = self.ask(client, Method::CreatePermission, |builder| write_peer(builder, peer));
                self.lose_on_mismatch(dialler, reply);
            }
            4..8 => {
                let reply = self.connect(client, peer);
                self.lose_on_mismatch(dialler, reply);
            }
            8 => self.answer_late(client),
            9..12 => self.let_connect(client, peer, relay),
            12..16 => self.bind_one(client),
            16 => self.use_one(),
            17 => self.close_one(),
            18 => {
                let lifetime = if self.rng.random_bool(0.2) { 0 } else { 600 };
                let reply = self.ask(client, Method::Refresh, |builder| {
                    builder.u32(AttributeType::LIFETIME, lifetime);
                });
                let is_released = lifetime == 0 && reply.as_ref().is_some_and(|reply| reply.result().is_ok());
                self.lose_on_mismatch(dialler, reply);
                if is_released {
                    dialler.relay = None;
                }
            }
            _ => {
                let at = client.at;
                self.world.client_closes(self.worker_of(&at), &at);
                self.model.depart(&at);
                return true;
            }
        }
        false
    }

    fn lose_on_mismatch(&mut self, dialler: &mut Dialler, reply: Option<Reply>) {
        if reply.is_some_and(|reply| reply.result() == Err(437)) {
            dialler.relay = None;
        }
    }

    /// Asks, and is challenged first where need be. `None`: the answer waits for something.
    fn ask(&mut self, client: &mut Client, method: Method, write: impl Fn(&mut Builder<'_>)) -> Option<Reply> {
        loop {
            let is_signed = client.nonce.is_some();
            let bytes =
                if is_signed { client.signed(method, |it| write(it)) } else { client.unsigned(method, |it| write(it)) };
            let at = client.at;
            self.world.client_sends(self.worker_of(&at), &at, &bytes);
            let request = Message::parse(&bytes).expect("a request");
            let reply = self.answer_to(&at, request.transaction_id())?;
            let worker = self.home_of(&at);
            self.model.request(self.now, &at, worker, &request, &reply);
            match reply.result() {
                Err(401) if is_signed => return Some(reply),
                Err(401 | 438) => client.learn(&reply),
                Ok(()) | Err(_) => return Some(reply),
            }
        }
    }

    /// What has come for it: the answer, and those to earlier Connects that have come to nothing.
    fn answer_to(&mut self, at: &FiveTuple, id: TransactionId) -> Option<Reply> {
        let mut answer = None;
        for bytes in self.world.inbox(at) {
            let reply = Reply { bytes };
            if reply.id() == id {
                assert!(answer.replace(reply).is_none(), "one request, one answer");
            } else {
                assert_eq!((reply.method(), reply.result()), (Method::Connect, Err(447)), "a late answer");
            }
        }
        answer
    }

    fn connect(&mut self, client: &mut Client, peer: SocketAddr) -> Option<Reply> {
        let expected = self.model.connects(self.now, &client.at, peer);
        let reply = self.ask(client, Method::Connect, |builder| write_peer(builder, peer));
        match reply {
            Some(reply) => {
                let is_stranger = matches!(reply.result(), Err(401));
                assert!(is_stranger || expected.contains(&reply.result()), "{:?} for {expected:?}", reply.result());
                Some(reply)
            }
            None => {
                assert!(expected.contains(&Ok(())), "it is being made, for {expected:?}");
                let id = self.world.connecting(&peer.to_string()).expect("a connection that is being made");
                self.model.connecting(self.now, &client.at, id.0, peer);
                // Some peers answer at once, some never.
                if self.rng.random_bool(0.7) {
                    self.peer_answers(client, id);
                }
                None
            }
        }
    }

    fn peer_answers(&mut self, client: &Client, id: PeerConnectionId) {
        let accepts = self.rng.random_bool(0.8);
        let to = self.world.connections[&id].to.expect("it was connected to").socket_addr();
        assert_eq!(self.world.peer_answers(&to.to_string(), accepts), id);
        self.model.answered(self.now, id.0, accepts);
        self.totals.connections += u64::from(accepts);
        let answers = self.world.inbox(&client.at).into_iter().map(|bytes| Reply { bytes });
        let answers: Vec<_> = answers.map(|reply| (reply.method(), reply.result())).collect();
        let expected = (Method::Connect, if accepts { Ok(()) } else { Err(447) });
        assert!(answers.contains(&expected), "{answers:?}");
        assert!(answers.iter().all(|answer| *answer == expected || *answer == (Method::Connect, Err(447))));
    }

    /// A peer that has let wait for its answer.
    fn answer_late(&mut self, client: &Client) {
        if let Some(id) = self.some(|stage| stage == Stage::Connecting) {
            self.peer_answers(client, id);
        }
    }

    fn let_connect(&mut self, client: &Client, peer: SocketAddr, relay: SocketAddr) {
        if !self.world.listens(relay) {
            return;
        }
        let expected = self.model.accepts(self.now, peer, relay);
        let _late = self.world.inbox(&client.at);
        let accepted = self.world.peer_connects(&peer.to_string(), relay);
        assert_eq!(accepted.is_some(), expected, "a peer's connection at {:?}", self.now);
        if let Some(id) = accepted {
            self.totals.connections += 1;
            self.model.accepted(self.now, &client.at, id.0, peer);
            let attempts = self.world.inbox(&client.at).into_iter().map(|bytes| Reply { bytes });
            let attempts: Vec<_> = attempts.filter(|it| it.class() == Class::Indication).collect();
            let [attempt] = &attempts[..] else { panic!("one ConnectionAttempt: {attempts:?}") };
            assert_eq!((attempt.method(), number_in(attempt)), (Method::ConnectionAttempt, Some(id.0)));
        }
    }

    /// Binds a connection, or tries to, from a stream of its own.
    fn bind_one(&mut self, client: &Client) {
        let wrong = self.rng.random_bool(0.2);
        let pending = self.some(|stage| wrong || stage == Stage::Pending);
        let Some(id) = pending.or_else(|| wrong.then(|| PeerConnectionId(self.rng.random()))) else { return };
        let mut data = client.clone();
        (data.at, data.nonce) = (self.new_stream(), None);
        let mut user = "alice";
        if self.rng.random_bool(0.1) {
            user = "bob";
            data = data.user(user, BOB);
        }
        let expected = self.model.binds(self.now, id.0, user);
        let reply = self.ask(&mut data, Method::ConnectionBind, |builder| {
            builder.u32(AttributeType::CONNECTION_ID, id.0);
        });
        let result = reply.expect("it is answered at once").result();
        assert!(result == Err(401) || expected.contains(&result), "{result:?} for {expected:?}");
        if result.is_ok() {
            self.totals.bound += 1;
            assert_eq!(self.world.connections[&id].bound, Some(data.at));
            self.model.bound(id.0);
        } else {
            self.world.client_closes(self.worker_of(&data.at), &data.at);
        }
    }

    fn use_one(&mut self) {
        if let Some(id) = self.some(|stage| stage == Stage::Bound) {
            let (to_peer, to_client) = (self.rng.random_range(0..9999), self.rng.random_range(0..9999));
            self.world.bytes_pass(id, to_peer, to_client);
            self.model.passed(id.0, to_peer, to_client);
        }
    }

    fn close_one(&mut self) {
        if let Some(id) = self.some(|stage| stage != Stage::Connecting) {
            self.world.peer_closes(id);
            self.model.closed(id.0);
        }
    }

    /// One of the connections at some stage that the server has.
    fn some(&mut self, stage: impl Fn(Stage) -> bool) -> Option<PeerConnectionId> {
        let all = self.model.connections(self.now);
        let there = all.into_iter().filter(|(_, (connection, _))| stage(connection.stage));
        let there: Vec<_> = there.map(|(id, _)| PeerConnectionId(id)).collect();
        let there: Vec<_> = there.into_iter().filter(|id| self.world.connections.contains_key(id)).collect();
        there.choose(&mut self.rng).copied()
    }

    /// The server has the connections of the model, and no others.
    fn compare_connections(&mut self) {
        let expected = self.model.connections(self.now);
        for (id, (connection, may_be_gone)) in &expected {
            let there = self.world.connections.get(&PeerConnectionId(*id));
            assert!(there.is_some() || *may_be_gone, "{connection:?} is gone");
            let is_bound = there.is_some_and(|it| it.bound.is_some());
            assert!(there.is_none() || is_bound == (connection.stage == Stage::Bound), "{connection:?}");
        }
        for id in self.world.connections.keys() {
            assert!(expected.contains_key(&id.0), "nobody has {id:?} any more, at {:?}", self.now);
        }
    }
}

fn number_in(reply: &Reply) -> Option<u32> {
    reply.message().attribute(AttributeType::CONNECTION_ID)?.as_u32()
}

fn write_peer(builder: &mut Builder<'_>, peer: SocketAddr) {
    builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
}
