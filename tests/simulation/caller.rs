//! Clients that do what browsers do (field notes, section 1): their timers, their order of things, and what they make of
//! each error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ferryd::stun::{AttributeType, Class, Message, Method};

use crate::harness::{Client, Reply, secs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Browser {
    Chrome,
    Firefox,
}

impl Browser {
    /// "Retransmits at 250 ms doubling to 8 s, 9 sends"; Firefox: "Initial RTO 100 ms".
    fn first_timeout(self) -> Duration {
        Duration::from_millis(if self == Self::Chrome { 250 } else { 100 })
    }

    fn sends_max(self) -> u8 {
        if self == Self::Chrome { 9 } else { 7 }
    }

    /// "Refresh is sent at lifetime - 60 s"; Firefox: "Refreshes 10 s before expiry".
    fn refresh_after(self, lifetime: Duration) -> Duration {
        lifetime - secs(if self == Self::Chrome { 60 } else { 10 })
    }

    fn lifetime(self) -> Option<u32> {
        (self == Self::Firefox).then_some(3600)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Until [`Timer::Start`].
    Waiting,
    Allocating,
    Live,
    /// It has given the call up, or hung up.
    Over,
}

/// Whom a caller talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    At(SocketAddr),
    /// The relayed address of another caller, once it has one.
    Caller(usize),
}

/// What a caller knows of one peer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) party: Party,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) permitted: bool,
    pub(crate) asked: bool,
    pub(crate) disabled: bool,
    pub(crate) bound: bool,
    asked_to_bind: bool,
    sent: u32,
}

impl Peer {
    pub(crate) fn new(party: Party) -> Self {
        let address = if let Party::At(address) = party { Some(address) } else { None };
        Self {
            party,
            address,
            permitted: false,
            asked: false,
            disabled: false,
            bound: false,
            asked_to_bind: false,
            sent: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    Start,
    Retransmit([u8; 12]),
    Refresh,
    Permission(usize),
    Channel(usize),
    Media,
}

/// What a caller wants done.
#[derive(Debug)]
pub(crate) enum Act {
    Send(Vec<u8>),
    After(Duration, Timer),
    /// It goes on from another local port.
    Rebind,
}

#[derive(Clone, Debug)]
struct Transaction {
    bytes: Vec<u8>,
    method: Method,
    peer: Option<usize>,
    sends: u8,
    timeout: Duration,
    /// It answers a 401 or 438 already.
    is_retry: bool,
}

#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) browser: Browser,
    pub(crate) client: Client,
    pub(crate) phase: Phase,
    pub(crate) relay: Option<SocketAddr>,
    pub(crate) peers: Vec<Peer>,
    /// Timers of an earlier 5-tuple mean nothing any more.
    pub(crate) generation: u32,
    pub(crate) media_every: Duration,
    /// It sends to whom it has no permission for, too.
    pub(crate) careless: bool,
    /// Its page is closed.
    pub(crate) gone: bool,
    /// It asks for a ticket, and comes back with it from another address.
    pub(crate) mobile: bool,
    ticket: Option<Vec<u8>>,
    /// It has moved, and the server has not answered yet.
    returning: bool,
    transactions: BTreeMap<[u8; 12], Transaction>,
    attempts: u8,
    sent: u32,
}

impl Caller {
    pub(crate) fn new(browser: Browser, client: Client, peers: Vec<Peer>, media_every: Duration) -> Self {
        let (transactions, phase) = (BTreeMap::new(), Phase::Waiting);
        Self {
            browser,
            client,
            phase,
            relay: None,
            peers,
            generation: 0,
            media_every,
            careless: false,
            gone: false,
            mobile: false,
            ticket: None,
            returning: false,
            transactions,
            attempts: 0,
            sent: 0,
        }
    }

    /// Forgets everything: the next timer that counts is [`Timer::Start`].
    pub(crate) fn reset(&mut self) {
        self.generation += 1;
        self.transactions.clear();
        (self.phase, self.relay, self.client.nonce) = (Phase::Waiting, None, None);
        (self.ticket, self.returning) = (None, false);
        for peer in &mut self.peers {
            *peer = Peer::new(peer.party);
        }
    }

    pub(crate) fn handle_timer(&mut self, timer: Timer, act: &mut Vec<Act>) {
        match timer {
            Timer::Start => {
                self.phase = Phase::Allocating;
                self.allocate(false, act);
            }
            Timer::Retransmit(id) => self.retransmit(id, act),
            _ if self.phase != Phase::Live => {}
            Timer::Refresh => self.refresh(self.browser.lifetime(), false, act),
            Timer::Permission(peer) => self.permit(peer, false, act),
            Timer::Channel(peer) => self.bind(peer, false, act),
            Timer::Media => {
                for peer in 0..self.peers.len() {
                    self.talk(peer, act);
                }
                act.push(Act::After(self.media_every, Timer::Media));
            }
        }
    }

    /// Whether it can come back from another address.
    pub(crate) fn may_move(&self) -> bool {
        self.phase == Phase::Live && self.ticket.is_some() && !self.returning
    }

    /// Goes on from the address that it has now.
    pub(crate) fn come_back(&mut self, act: &mut Vec<Act>) {
        self.returning = true;
        self.refresh(self.browser.lifetime(), false, act);
    }

    /// "On close: one unacknowledged Refresh 0".
    pub(crate) fn hang_up(&mut self, act: &mut Vec<Act>) {
        if self.phase == Phase::Live {
            let bytes = self.client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
            act.push(Act::Send(bytes));
        }
        self.give_up();
    }

    /// Nothing more is sent or answered; what the server has of it expires.
    pub(crate) fn give_up(&mut self) {
        self.phase = Phase::Over;
        self.generation += 1;
        self.transactions.clear();
    }

    pub(crate) fn handle_message(&mut self, bytes: &[u8], act: &mut Vec<Act>) {
        let Ok(message) = Message::parse(bytes) else { return };
        if !matches!(message.class(), Class::Success | Class::Error) {
            return;
        }
        let Some(transaction) = self.transactions.get(&message.transaction_id().0).cloned() else { return };
        let reply = Reply { bytes: bytes.to_vec() };
        let result = reply.result();
        if result.is_ok() && transaction.method != Method::Binding {
            // "Success responses must carry a valid MESSAGE-INTEGRITY or are ignored."
            let covered = message.integrity().expect("a success is signed");
            assert!(self.client.key().verifies_sha1(&covered), "a success is signed by its user's key");
        }
        self.transactions.remove(&message.transaction_id().0);
        if matches!(result, Err(401 | 438)) && !transaction.is_retry {
            self.client.learn(&reply);
            return self.again(&transaction, act);
        }
        match (transaction.method, result) {
            (Method::Allocate, Ok(())) => self.allocated(&reply, act),
            // "437: a new local socket, at most two retries."
            (Method::Allocate, Err(437)) if self.browser == Browser::Chrome && self.attempts < 2 => {
                self.attempts += 1;
                act.push(Act::Rebind);
            }
            (Method::Refresh, Ok(())) => {
                if let Some(ticket) = reply.value(AttributeType::MOBILITY_TICKET) {
                    (self.ticket, self.returning) = (Some(ticket), false);
                }
                act.push(Act::After(self.browser.refresh_after(secs(reply.lifetime().into())), Timer::Refresh));
            }
            (Method::CreatePermission, Ok(())) => self.permitted(transaction.peer, act),
            (Method::ChannelBind, Ok(())) => self.bound(transaction.peer, act),
            // "CreatePermission: 403 disables that peer only; any other final error fails the whole relay", and Chrome
            // prunes the connection.
            (Method::CreatePermission | Method::ChannelBind, Err(code)) => {
                if self.browser == Browser::Firefox && code != 403 {
                    self.give_up();
                } else if let Some(peer) = transaction.peer {
                    self.peers[peer].disabled = true;
                }
            }
            // "any other error on Refresh prunes every connection of the call".
            (_, Ok(()) | Err(_)) => self.give_up(),
        }
    }

    fn again(&mut self, transaction: &Transaction, act: &mut Vec<Act>) {
        match (transaction.method, transaction.peer) {
            (Method::Allocate, _) => self.allocate(true, act),
            (Method::Refresh, _) => self.refresh(self.browser.lifetime(), true, act),
            (Method::CreatePermission, Some(peer)) => self.permit(peer, true, act),
            (Method::ChannelBind, Some(peer)) => self.bind(peer, true, act),
            (other, _) => panic!("{other:?} is not asked for"),
        }
    }

    fn begin(&mut self, bytes: Vec<u8>, method: Method, peer: Option<usize>, is_retry: bool, act: &mut Vec<Act>) {
        let id = bytes[8..20].try_into().expect("a header");
        let timeout = self.browser.first_timeout();
        if !self.client.at.transport.is_stream() {
            act.push(Act::After(timeout, Timer::Retransmit(id)));
        }
        act.push(Act::Send(bytes.clone()));
        self.transactions.insert(id, Transaction { bytes, method, peer, sends: 1, timeout, is_retry });
    }

    fn retransmit(&mut self, id: [u8; 12], act: &mut Vec<Act>) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        if transaction.sends == self.browser.sends_max() {
            return self.give_up();
        }
        transaction.sends += 1;
        transaction.timeout = (transaction.timeout * 2).min(secs(8));
        act.push(Act::Send(transaction.bytes.clone()));
        act.push(Act::After(transaction.timeout, Timer::Retransmit(id)));
    }

    fn allocate(&mut self, signed: bool, act: &mut Vec<Act>) {
        let (lifetime, mobile) = (self.browser.lifetime(), self.mobile);
        let write = |builder: &mut ferryd::stun::Builder<'_>| {
            builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            if let Some(lifetime) = lifetime {
                builder.u32(AttributeType::LIFETIME, lifetime);
            }
            if mobile {
                builder.attribute(AttributeType::MOBILITY_TICKET, &[]);
            }
        };
        let bytes = if signed {
            self.client.signed(Method::Allocate, write)
        } else {
            self.client.unsigned(Method::Allocate, write)
        };
        self.begin(bytes, Method::Allocate, None, signed, act);
    }

    fn allocated(&mut self, reply: &Reply, act: &mut Vec<Act>) {
        (self.phase, self.relay, self.attempts) = (Phase::Live, Some(reply.relay()), 0);
        assert_eq!(reply.mapped(), self.client.at.client.socket_addr());
        self.ticket = reply.value(AttributeType::MOBILITY_TICKET);
        assert_eq!(self.ticket.is_some(), self.mobile);
        act.push(Act::After(self.browser.refresh_after(secs(reply.lifetime().into())), Timer::Refresh));
        act.push(Act::After(self.media_every / 2, Timer::Media));
        for peer in 0..self.peers.len() {
            self.permit(peer, false, act);
        }
    }

    fn refresh(&mut self, lifetime: Option<u32>, is_retry: bool, act: &mut Vec<Act>) {
        let ticket = self.ticket.clone().filter(|_| self.returning);
        let bytes = self.client.signed(Method::Refresh, |builder| {
            if let Some(lifetime) = lifetime {
                builder.u32(AttributeType::LIFETIME, lifetime);
            }
            if let Some(ticket) = ticket {
                builder.attribute(AttributeType::MOBILITY_TICKET, &ticket);
            }
        });
        self.begin(bytes, Method::Refresh, None, is_retry, act);
    }

    pub(crate) fn permit(&mut self, peer: usize, is_retry: bool, act: &mut Vec<Act>) {
        let Some(address) = self.peers[peer].address.filter(|_| !self.peers[peer].disabled) else { return };
        self.peers[peer].asked = true;
        let bytes = self.client.signed(Method::CreatePermission, |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, address);
        });
        self.begin(bytes, Method::CreatePermission, Some(peer), is_retry, act);
    }

    /// "CreatePermission at once per remote candidate and again every 4 min."
    fn permitted(&mut self, peer: Option<usize>, act: &mut Vec<Act>) {
        let Some(peer) = peer else { return };
        self.peers[peer].permitted = true;
        act.push(Act::After(secs(240), Timer::Permission(peer)));
    }

    fn bind(&mut self, peer: usize, is_retry: bool, act: &mut Vec<Act>) {
        let Some(address) = self.peers[peer].address.filter(|_| !self.peers[peer].disabled) else { return };
        let bytes = self.client.signed(Method::ChannelBind, |builder| {
            builder.u32(AttributeType::CHANNEL_NUMBER, (0x4000 + peer as u32) << 16);
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, address);
        });
        self.begin(bytes, Method::ChannelBind, Some(peer), is_retry, act);
    }

    fn bound(&mut self, peer: Option<usize>, act: &mut Vec<Act>) {
        let Some(peer) = peer else { return };
        self.peers[peer].bound = true;
        act.push(Act::After(secs(240), Timer::Channel(peer)));
    }

    /// "ChannelBind only when real payload flows"; "after ChannelBind, ChannelData". Firefox "never binds a channel".
    fn talk(&mut self, index: usize, act: &mut Vec<Act>) {
        if self.peers[index].address.is_some() && !self.peers[index].asked {
            return self.permit(index, false, act);
        }
        let peer = &mut self.peers[index];
        let Some(address) = peer.address.filter(|_| self.careless || (peer.permitted && !peer.disabled)) else {
            return;
        };
        self.sent += 1;
        peer.sent += 1;
        let data = self.sent.to_be_bytes();
        let data = &data[..4 - (self.sent % 5) as usize];
        if peer.bound {
            let number = ferryd::stun::channel_data::ChannelNumber::new(0x4000 + index as u16).expect("a number");
            let mut bytes = ferryd::stun::ChannelData::header(number, data.len() as u16).to_vec();
            bytes.extend_from_slice(data);
            if self.client.at.transport.is_stream() {
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            act.push(Act::Send(bytes));
            return;
        }
        let wants_channel = self.browser == Browser::Chrome && peer.sent >= 2 && !peer.asked_to_bind && peer.permitted;
        peer.asked_to_bind |= wants_channel;
        let mut bytes = self.client.unsigned(Method::Send, |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, address).attribute(AttributeType::DATA, data);
        });
        // A Send indication.
        bytes[..2].copy_from_slice(&[0x00, 0x16]);
        act.push(Act::Send(bytes));
        if wants_channel {
            self.bind(index, false, act);
        }
    }
}
