//! Floods: what strangers send, from many addresses, and what leads to nothing.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use ferryd::stun::{AttributeType, Message};
use socket2::{Domain, Protocol, Socket, Type};

use crate::datagrams::{self, BATCH, Inbox, Outbox};
use crate::dialog::{Ask, Dialog, write_binding, write_guess, write_unauthenticated_allocate};
use crate::failure::{Failure, Result};
use crate::machine::nap;
use crate::place;
use crate::server::Running;
use crate::wire::Shape;

/// Where addresses of those who flood begin in the block; 65,536 of them.
const FLOODERS: u32 = u32::from_be_bytes([0, 96, 0, 0]);
const FLOODERS_MASK: u32 = 0xFFFF;
/// Answers go to waste: they are not read, so that the server's sending costs the generator nothing.
const RECEIVE_BUFFER: libc::c_int = 4096;
/// Flooders who have an allocation of their own.
const CLIENTS: usize = 16;
/// What makes their transactions differ from those of calls.
const FIRST_DIALOG: u64 = 1 << 32;
/// A peer that nobody has a permission for.
const STRANGER: u32 = u32::from_be_bytes([0, 112, 0, 1]);
/// Flooders who guess passwords, each with a nonce of its own.
const GUESSERS: usize = 64;
/// Half-open handshakes begun in a second, and how many there are at a time.
const HANDSHAKES_PER_SECOND: f64 = 1000.0;
const HANDSHAKES_MAX: usize = 3000;
/// The beginning of a ClientHello that does not go on.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// What a flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Binding requests.
    Bindings,
    /// Allocates without credentials.
    Allocates,
    /// Allocates with a valid nonce and a wrong password.
    Guesses,
    /// Bytes that mean nothing.
    Garbage,
    /// TLS handshakes that stop in the middle.
    Handshakes,
    /// ChannelData of clients without allocation.
    Channels,
    /// ChannelData of clients on channels that they have not bound.
    Clients,
    /// Send indications of clients to a peer for whom they have no permission.
    Sends,
    /// Datagrams to relayed addresses from peers without permission.
    Peers,
}

/// A load that leads to nothing, at a rate.
pub(crate) struct Flood {
    kinds: Vec<Kind>,
    socket: UdpSocket,
    outbox: Outbox,
    server: SocketAddrV4,
    tls: SocketAddrV4,
    /// Where calls have their relayed addresses.
    relayed: Vec<SocketAddrV4>,
    per_second: f64,
    begin_ns: Option<u64>,
    last_ns: u64,
    poured: u64,
    binding: Vec<u8>,
    allocate: Vec<u8>,
    /// A Send indication, but for 160 bytes of data.
    send: Vec<u8>,
    guesses: Vec<Vec<u8>>,
    handshakes: VecDeque<Socket>,
    begun: u64,
}

impl Flood {
    /// `relayed` are the relayed addresses of the calls beside which it is poured.
    pub(crate) fn new(server: &Running, kinds: &[Kind], per_second: f64, relayed: Vec<SocketAddrV4>) -> Result<Self> {
        let (mut binding, mut allocate) = (Vec::new(), Vec::new());
        write_binding(&mut binding, [9; 12]);
        write_unauthenticated_allocate(&mut allocate, [9; 12]);
        let mut flood = Self {
            kinds: kinds.to_vec(),
            socket: datagrams::open(Some(RECEIVE_BUFFER))?,
            outbox: Outbox::new(),
            server: server.plain(),
            tls: server.tls(),
            relayed,
            per_second,
            begin_ns: None,
            last_ns: 0,
            poured: 0,
            binding,
            allocate,
            send: Shape::Indication.header(0, SocketAddrV4::new(place::at(STRANGER), 9), 160),
            guesses: Vec::new(),
            handshakes: VecDeque::new(),
            begun: 0,
        };
        if kinds.contains(&Kind::Guesses) {
            flood.guesses =
                (0..GUESSERS).map(|guesser| flood.challenged(flooder(guesser as u64))).collect::<Result<_>>()?;
        }
        if kinds.contains(&Kind::Clients) || kinds.contains(&Kind::Sends) {
            (0..CLIENTS as u64).try_for_each(|client| flood.allocate(client))?;
        }
        Ok(flood)
    }

    /// Gives a flooder an allocation.
    fn allocate(&mut self, client: u64) -> Result<()> {
        let (mut inbox, mut request) = (Inbox::new(), Vec::new());
        let mut dialog = Dialog::new(FIRST_DIALOG + client, &[Ask::Allocate]);
        for _ in 0..1000 {
            request.clear();
            dialog.write_request(&mut request);
            self.outbox.push(flooder(client), self.server, request.len()).copy_from_slice(&request);
            self.outbox.flush(&self.socket);
            nap(2_000);
            for index in 0..inbox.receive(&self.socket) {
                if let Ok(message) = Message::parse(inbox.get(index).bytes) {
                    dialog.handle(&message)?;
                }
            }
            if dialog.is_done() {
                return Ok(());
            }
        }
        Err(Failure::new("the server gives a flooder no allocation"))
    }

    /// A request with a wrong password and the nonce that the server has given to this address.
    fn challenged(&mut self, from: Ipv4Addr) -> Result<Vec<u8>> {
        let mut inbox = Inbox::new();
        for _ in 0..100 {
            self.outbox.push(from, self.server, self.allocate.len()).copy_from_slice(&self.allocate);
            self.outbox.flush(&self.socket);
            nap(1_000);
            for index in 0..inbox.receive(&self.socket) {
                let arrival = inbox.get(index);
                let Ok(message) = Message::parse(arrival.bytes) else { continue };
                let value = |kind| message.attribute(kind).map(|attribute| attribute.value);
                if let (true, Some(realm), Some(nonce)) =
                    (arrival.to == from, value(AttributeType::REALM), value(AttributeType::NONCE))
                {
                    let mut guess = Vec::new();
                    write_guess(&mut guess, [9; 12], realm, nonce);
                    return Ok(guess);
                }
            }
        }
        Err(Failure::new("the server does not challenge a guesser"))
    }

    /// Sends what is due, at most a batch; says how much it was.
    pub(crate) fn pour(&mut self, now_ns: u64) -> usize {
        let begin = *self.begin_ns.get_or_insert(now_ns);
        self.last_ns = now_ns;
        let elapsed = now_ns.saturating_sub(begin) as f64 / 1e9;
        if self.kinds.contains(&Kind::Handshakes) {
            self.begin_handshakes((elapsed * HANDSHAKES_PER_SECOND) as u64);
        }
        let datagrams: Vec<Kind> = self.kinds.iter().copied().filter(|kind| *kind != Kind::Handshakes).collect();
        if datagrams.is_empty() {
            return 0;
        }
        let due = (elapsed * self.per_second) as u64;
        let count = due.saturating_sub(self.poured).min(BATCH as u64);
        for _ in 0..count {
            let kind = datagrams[(self.poured % datagrams.len() as u64) as usize];
            self.push(kind, self.poured / datagrams.len() as u64);
            self.poured += 1;
        }
        self.outbox.flush(&self.socket);
        count as usize
    }

    fn push(&mut self, kind: Kind, number: u64) {
        let from = flooder(number);
        let mut request = |from, request: &[u8]| {
            let datagram = self.outbox.push(from, self.server, request.len());
            datagram.copy_from_slice(request);
            datagram[12..20].copy_from_slice(&number.to_be_bytes());
        };
        match kind {
            Kind::Bindings => request(from, &self.binding),
            Kind::Allocates => request(from, &self.allocate),
            Kind::Guesses => {
                let guesser = number % GUESSERS as u64;
                request(flooder(guesser), &self.guesses[guesser as usize]);
            }
            Kind::Garbage => {
                // A multiplicative generator: nothing in it looks like a message, but for some of the first bytes.
                let bytes = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                self.outbox.push(from, self.server, 64).chunks_mut(8).enumerate().for_each(|(index, chunk)| {
                    chunk.copy_from_slice(&bytes.rotate_left(index as u32 * 7).to_be_bytes());
                });
            }
            Kind::Handshakes => {}
            Kind::Channels => {
                let datagram = self.outbox.push(from, self.server, 164);
                datagram.fill(0);
                datagram[..4].copy_from_slice(&[0x40, number as u8, 0, 160]);
            }
            Kind::Clients => {
                let datagram = self.outbox.push(flooder(number % CLIENTS as u64), self.server, 164);
                datagram.fill(0);
                datagram[..4].copy_from_slice(&[0x40, number as u8, 0, 160]);
            }
            Kind::Sends => {
                let datagram = self.outbox.push(flooder(number % CLIENTS as u64), self.server, self.send.len() + 160);
                let (header, data) = datagram.split_at_mut(self.send.len());
                header.copy_from_slice(&self.send);
                data.fill(0);
            }
            Kind::Peers => {
                let to = self.relayed[number as usize % self.relayed.len()];
                self.outbox.push(from, to, 160).fill(0);
            }
        }
    }

    /// Begins handshakes until there have been so many, and lets go of the oldest.
    fn begin_handshakes(&mut self, due: u64) {
        for _ in self.begun..due.min(self.begun + 4) {
            self.begun += 1;
            let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP)) else {
                continue;
            };
            // On loopback it is there at once, or never.
            let _ = socket.connect(&std::net::SocketAddr::V4(self.tls).into());
            let _ = socket.send(CLIENT_HELLO);
            self.handshakes.push_back(socket);
            if self.handshakes.len() > HANDSHAKES_MAX {
                self.handshakes.pop_front();
            }
        }
    }

    /// Datagrams that were sent.
    pub(crate) fn datagrams(&self) -> u64 {
        self.poured
    }

    /// The rate that the generator came to, of datagrams and handshakes.
    pub(crate) fn per_second(&self) -> f64 {
        let elapsed_ns = self.last_ns.saturating_sub(self.begin_ns.unwrap_or(self.last_ns));
        (self.poured + self.begun) as f64 * 1e9 / (elapsed_ns as f64).max(1.0)
    }
}

fn flooder(number: u64) -> Ipv4Addr {
    place::at(FLOODERS + (number as u32 & FLOODERS_MASK))
}
