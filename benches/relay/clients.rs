//! Many clients on one socket, each with an address of its own, and their dialogs with the server.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use ferryd::stun::Message;

use crate::datagrams::{self, Inbox, Outbox};
use crate::dialog::{Ask, Dialog};
use crate::failure::{Failure, Result};
use crate::machine::now_ns;
use crate::place;
use crate::watch::{Phase, Stopwatch};

/// Where addresses of clients of a row begin in the block; 1 million.
const CLIENTS: u32 = u32::from_be_bytes([0, 16, 0, 0]);
/// Addresses of clients that come and go.
const PASSERS: u32 = u32::from_be_bytes([0, 128, 0, 0]);
/// Addresses of peers.
const PEERS: u32 = u32::from_be_bytes([0, 64, 0, 0]);

const RESEND_NS: u64 = 500_000_000;
const RESENDS_MAX: u32 = 10;
/// Dialogs under way at once while calls are set up.
const SETUP_WINDOW: usize = 64;

/// The address of the client with this number.
pub(crate) fn client_ip(index: usize) -> Ipv4Addr {
    place::at(CLIENTS + index as u32)
}

/// The number of the client with this address.
pub(crate) fn client_index(ip: Ipv4Addr) -> usize {
    u32::from(ip).wrapping_sub(place::at(CLIENTS).into()) as usize
}

/// The address of the peer with this number.
pub(crate) fn peer_ip(index: usize) -> Ipv4Addr {
    place::at(PEERS + index as u32)
}

/// The number of the peer with this address.
pub(crate) fn peer_index(ip: Ipv4Addr) -> usize {
    u32::from(ip).wrapping_sub(place::at(PEERS).into()) as usize
}

/// The clients' socket and what goes through it.
pub(crate) struct Clients {
    pub(crate) socket: UdpSocket,
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Inbox,
    pub(crate) server: SocketAddrV4,
}

struct Pending {
    index: usize,
    sent_ns: u64,
    resends: u32,
}

impl Clients {
    pub(crate) fn new(server: SocketAddrV4) -> Result<Self> {
        Ok(Self { socket: datagrams::open(None)?, outbox: Outbox::new(), inbox: Inbox::new(), server })
    }

    /// Carries the dialogs of clients 0, 1, ... to their end.
    pub(crate) fn talk(&mut self, dialogs: &mut [Dialog]) -> Result<()> {
        let mut next = 0;
        let mut pending: Vec<Pending> = Vec::new();
        let mut request = Vec::new();
        while next < dialogs.len() || !pending.is_empty() {
            while next < dialogs.len() && pending.len() < SETUP_WINDOW {
                self.ask(client_ip(next), &dialogs[next], &mut request);
                pending.push(Pending { index: next, sent_ns: now_ns(), resends: 0 });
                next += 1;
            }
            self.outbox.flush(&self.socket);
            for slot in 0..self.inbox.receive(&self.socket) {
                let arrival = self.inbox.get(slot);
                let index = client_index(arrival.to);
                let (Some(dialog), Ok(message)) = (dialogs.get_mut(index), Message::parse(arrival.bytes)) else {
                    continue;
                };
                if dialog.handle(&message)? && !dialog.is_done() {
                    Self::ask_through(&mut self.outbox, &self.socket, self.server, arrival.to, dialog, &mut request);
                    if let Some(pending) = pending.iter_mut().find(|pending| pending.index == index) {
                        (pending.sent_ns, pending.resends) = (now_ns(), 0);
                    }
                }
            }
            pending.retain(|pending| !dialogs[pending.index].is_done());
            let now = now_ns();
            for late in pending.iter_mut().filter(|pending| now > pending.sent_ns + RESEND_NS) {
                (late.sent_ns, late.resends) = (now, late.resends + 1);
                if late.resends > RESENDS_MAX {
                    return Err(Failure::new("the server does not answer while calls are set up"));
                }
                self.ask(client_ip(late.index), &dialogs[late.index], &mut request);
            }
            self.outbox.flush(&self.socket);
        }
        Ok(())
    }

    /// Lets clients come and go until the watch ends, `window` of them at a time, each with the same requests and an
    /// address that nobody had before. The watch counts those that went through all of them, and what was asked again.
    pub(crate) fn come_and_go(&mut self, asks: &[Ask], window: usize, watch: &mut Stopwatch) -> Result<Passed> {
        let mut request = Vec::new();
        let mut passed = Passed::default();
        let mut generations = vec![0_usize; window];
        let mut dialogs: Vec<Dialog> = (0..window).map(|slot| Dialog::new(slot as u64, asks)).collect();
        let mut sent = vec![now_ns(); window];
        let address = |slot: usize, generation: usize| place::at(PASSERS + (generation * window + slot) as u32);
        for (slot, dialog) in dialogs.iter().enumerate() {
            self.ask(address(slot, 0), dialog, &mut request);
        }
        loop {
            let now = now_ns();
            if watch.tick(now, [passed.done, passed.resent])? == Phase::Over {
                return Ok(passed);
            }
            self.outbox.flush(&self.socket);
            let received = self.inbox.receive(&self.socket);
            for index in 0..received {
                let arrival = self.inbox.get(index);
                let number = u32::from(arrival.to).wrapping_sub(place::at(PASSERS).into()) as usize;
                let (slot, generation) = (number % window, number / window);
                let Ok(message) = Message::parse(arrival.bytes) else { continue };
                if generations[slot] != generation || !dialogs[slot].handle(&message)? {
                    continue;
                }
                if dialogs[slot].is_done() {
                    passed.done += 1;
                    generations[slot] += 1;
                    dialogs[slot] = Dialog::new((generations[slot] * window + slot) as u64, asks);
                }
                sent[slot] = now;
                let from = address(slot, generations[slot]);
                Self::ask_through(&mut self.outbox, &self.socket, self.server, from, &dialogs[slot], &mut request);
            }
            if received == 0 {
                passed.idle_turns += 1;
                for slot in 0..window {
                    if now > sent[slot] + RESEND_NS {
                        sent[slot] = now;
                        passed.resent += 1;
                        self.ask(address(slot, generations[slot]), &dialogs[slot], &mut request);
                    }
                }
            }
            passed.turns += 1;
        }
    }

    fn ask(&mut self, from: Ipv4Addr, dialog: &Dialog, request: &mut Vec<u8>) {
        Self::ask_through(&mut self.outbox, &self.socket, self.server, from, dialog, request);
    }

    fn ask_through(
        outbox: &mut Outbox,
        socket: &UdpSocket,
        server: SocketAddrV4,
        from: Ipv4Addr,
        dialog: &Dialog,
        request: &mut Vec<u8>,
    ) {
        request.clear();
        dialog.write_request(request);
        if outbox.is_full() {
            outbox.flush(socket);
        }
        outbox.push(from, server, request.len()).copy_from_slice(request);
    }
}

/// What became of clients that came and went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) done: u64,
    /// Requests that had to be repeated.
    pub(crate) resent: u64,
    pub(crate) turns: u64,
    /// Turns in which nothing had arrived: the generator waited for the server.
    pub(crate) idle_turns: u64,
}
