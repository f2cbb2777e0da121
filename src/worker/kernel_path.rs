//! Open channels of UDP clients and peers that they reach by indications, given to the kernel to carry; the sockets serve
//! whatever it does not take.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tracing::warn;

use super::handle::WakeOnce;
use super::packet_loop::Worker;
use super::routes::{Path, Way};
use crate::address::{PeerAddr, RelayedAddr, Transport};
use crate::net::datagrams::Datagrams;
use crate::net::socket::{UdpOptions, buffer_sizes, force_buffers};
use crate::offload::{Flow, FlowId, Hop, Meter, MeterId, Notify, Offload, Traffic};
use crate::stun::channel_data::ChannelNumber;
use crate::turn::effect::{ChannelPath, Ended};
use crate::turn::settings::DataRate;
use crate::turn::{self, AllocationId, Beyond, Buckets, Now, RelayId, Session as LiveSession, SharedBuckets};

/// How long the end of flows is waited for when the worker ends. A grace period takes some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Peers of an allocation that the kernel carries indications of. A call has one or two; ICE asks many before.
const INDICATION_FLOWS_MAX: usize = 16;
/// After so long a peer that has not been heard gives way to another: the first answers to ICE come at once.
const UNHEARD_MAX: Duration = Duration::from_secs(5);

/// The flows of a worker's allocations.
pub(super) struct KernelPath {
    /// `None` is sockets alone.
    offload: Option<Offload>,
    /// By [`AllocationId::pack`].
    sessions: HashMap<u64, Session>,
    closed: Receiver<(u64, Traffic)>,
    notify: Notify,
}

/// An allocation that has or had a flow.
#[derive(Default)]
struct Session {
    open: HashMap<Carrier, Open>,
    /// Flows that packets may still be on, in the order of their end, and what was last known of each.
    closing: VecDeque<Traffic>,
    /// What flows have carried that are closed.
    carried: Traffic,
    /// What is to be done when no flow is closing.
    waiting: Vec<Waiting>,
    /// What it may carry, by the sockets and in the kernel. The allocation has it as well; here it stays until no packet is
    /// on any flow.
    meter: Option<Arc<Meter>>,
}

/// The kernel's buckets, for the sockets.
#[derive(Debug)]
struct InKernel(Arc<Meter>);

impl SharedBuckets for InKernel {
    fn buckets(&self) -> &Buckets {
        self.0.full_at()
    }
}

/// What a client reaches a peer by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Carrier {
    Channel(ChannelNumber),
    Indications(PeerAddr),
}

/// A flow that the kernel may carry.
struct Open {
    relay: RelayId,
    peer: PeerAddr,
    since: Instant,
    until: Instant,
    flow: Flow,
    id: FlowId,
}

/// What waits for the end of flows.
enum Waiting {
    /// The port may not be another's while packets are on their way from it.
    CloseRelay(RelayId, RelayedAddr),
    /// The record says what the kernel has carried too.
    Record(Box<Ended>),
}

impl Session {
    fn flows(&self) -> impl Iterator<Item = (Carrier, RelayId, PeerAddr, Instant)> {
        self.open.iter().map(|(carrier, open)| (*carrier, open.relay, open.peer, open.until))
    }
}

impl KernelPath {
    pub(super) fn new(offload: Option<Offload>, wake: &Arc<WakeOnce>) -> Self {
        let (sender, closed) = channel();
        let wake = Arc::clone(wake);
        let notify: Notify = Arc::new(move |tag, traffic| {
            // A worker that is gone has waited long enough.
            let _ = sender.send((tag, traffic));
            wake.wake();
        });
        Self { offload, sessions: HashMap::new(), closed, notify }
    }

    /// Whether programs in the kernel may carry data.
    pub(super) fn is_there(&self) -> bool {
        self.offload.is_some()
    }

    /// Has a relay socket get its buffers where the worker has given up the privilege for that.
    pub(super) fn enlarge(&self, socket: &UdpSocket) {
        let Some(offload) = &self.offload else { return };
        if buffer_sizes(socket).is_ok_and(|sizes| sizes.receive_buffer_bytes < UdpOptions::RELAY.receive_buffer_bytes)
            && let Ok(socket) = socket.try_clone()
        {
            // It serves with smaller ones as well.
            offload.run(move || _ = force_buffers(&socket, &UdpOptions::RELAY));
        }
    }

    /// A flow is open until then, for the first time or still.
    fn flow_open(
        &mut self,
        carrier: Carrier,
        (relay, peer): (RelayId, PeerAddr),
        flow: Option<Flow>,
        (now, until): (Instant, Instant),
    ) {
        let Some(offload) = &self.offload else { return };
        let tag = relay.allocation().pack();
        let open = self.sessions.get_mut(&tag).and_then(|session| session.open.get_mut(&carrier));
        match (open, flow) {
            (None, None) => {}
            (Some(open), Some(flow)) if open.flow == flow => {
                offload.extend(&open.id, until);
                open.until = until;
            }
            (open, flow) => {
                if open.is_some() {
                    self.flow_closed(carrier, relay);
                }
                let Some(offload) = &self.offload else { return };
                let opened = flow.and_then(|flow| Some((offload.open(&flow, until)?, flow)));
                if let Some((id, flow)) = opened {
                    let session = self.sessions.entry(tag).or_default();
                    session.open.insert(carrier, Open { relay, peer, since: now, until, flow, id });
                }
            }
        }
    }

    fn flow_closed(&mut self, carrier: Carrier, relay: RelayId) {
        let (Some(offload), tag) = (&self.offload, relay.allocation().pack()) else { return };
        let Some(session) = self.sessions.get_mut(&tag) else { return };
        if let Some(open) = session.open.remove(&carrier) {
            session.closing.push_back(offload.carried(&open.id));
            offload.close(open.id, tag, &self.notify);
        }
    }

    /// Whether there may be a flow for indications to this peer, after one that has carried nothing has given way.
    fn has_room_for(&mut self, now: Instant, relay: RelayId, peer: PeerAddr) -> bool {
        let Some(offload) = &self.offload else { return false };
        let Some(session) = self.sessions.get(&relay.allocation().pack()) else { return true };
        if session.open.contains_key(&Carrier::Indications(peer))
            || session.open.keys().filter(|carrier| is_of_indications(carrier)).count() < INDICATION_FLOWS_MAX
        {
            return true;
        }
        let is_unheard = |open: &Open| {
            now.saturating_duration_since(open.since) >= UNHEARD_MAX && offload.carried(&open.id) == Traffic::default()
        };
        let unheard = session.open.iter().find(|(carrier, open)| is_of_indications(carrier) && is_unheard(open));
        let Some((carrier, relay)) = unheard.map(|(carrier, open)| (*carrier, open.relay)) else { return false };
        self.flow_closed(carrier, relay);
        true
    }

    /// The flows of an allocation: by what, to which peer and until when.
    fn flows_of(&self, allocation: AllocationId) -> Vec<(Carrier, RelayId, PeerAddr, Instant)> {
        let session = self.sessions.get(&allocation.pack());
        session.map(|session| session.flows().collect()).unwrap_or_default()
    }

    /// The flows of an allocation's indications, of which there are few.
    fn indications_of(&self, allocation: AllocationId) -> Vec<(Carrier, RelayId, PeerAddr)> {
        let flows = self.sessions.get(&allocation.pack()).into_iter().flat_map(Session::flows);
        let indications = flows.filter(|(carrier, ..)| is_of_indications(carrier));
        indications.map(|(carrier, relay, peer, _)| (carrier, relay, peer)).collect()
    }

    /// Has something wait for the flows of an allocation that are closing; gives it back when there are none.
    fn wait(&mut self, allocation: AllocationId, what: Waiting) -> Option<Waiting> {
        match self.sessions.get_mut(&allocation.pack()) {
            Some(session) if !session.closing.is_empty() => {
                session.waiting.push(what);
                None
            }
            Some(_) | None => Some(what),
        }
    }

    /// A flow has ended; what has waited for it is returned.
    fn flow_ended(&mut self, tag: u64, traffic: Traffic) -> Vec<Waiting> {
        let Some(session) = self.sessions.get_mut(&tag) else { return Vec::new() };
        session.closing.pop_front();
        session.carried += traffic;
        if !session.closing.is_empty() { Vec::new() } else { std::mem::take(&mut session.waiting) }
    }

    fn is_closing(&self) -> bool {
        self.sessions.values().any(|session| !session.closing.is_empty())
    }

    /// What the kernel has carried of an allocation, as far as is known.
    fn carried(&self, allocation: AllocationId) -> turn::effect::Traffic {
        let (Some(offload), Some(session)) = (&self.offload, self.sessions.get(&allocation.pack())) else {
            return turn::effect::Traffic::default();
        };
        let mut carried = session.carried;
        session.closing.iter().for_each(|closing| carried += *closing);
        session.open.values().for_each(|open| carried += offload.carried(&open.id));
        carried.into()
    }
}

/// A worker that has failed closes its flows here, before its ports can be another's.
impl Drop for KernelPath {
    fn drop(&mut self) {
        let Some(offload) = &self.offload else { return };
        for (tag, session) in &mut self.sessions {
            for (_, open) in session.open.drain() {
                session.closing.push_back(Traffic::default());
                offload.close(open.id, *tag, &self.notify);
            }
        }
        let mut closing: usize = self.sessions.values().map(|session| session.closing.len()).sum();
        while closing > 0 && self.closed.recv_timeout(PATIENCE).is_ok() {
            closing -= 1;
        }
    }
}

/// The kernel's counts in the words of records.
impl From<Traffic> for turn::effect::Traffic {
    fn from(kernel: Traffic) -> Self {
        Self {
            packets_to_peers: kernel.packets_to_peer,
            bytes_to_peers: kernel.bytes_to_peer,
            packets_to_client: kernel.packets_to_client,
            bytes_to_client: kernel.bytes_to_client,
        }
    }
}

fn is_of_indications(carrier: &Carrier) -> bool {
    match carrier {
        Carrier::Indications(_) => true,
        Carrier::Channel(_) => false,
    }
}

/// The flow for what goes by UDP on both sides, beyond this host or to another allocation, not metered yet.
fn flow_of(carrier: Carrier, peer: PeerAddr, path: &ChannelPath, with_loopback: bool) -> Option<Flow> {
    let hop = match path.beyond {
        Beyond::Network => None,
        Beyond::Relay { relayed, from } => Some(Hop { relayed, from }),
        Beyond::Host if with_loopback => None,
        Beyond::Host | Beyond::Nowhere => return None,
    };
    // A link-local address alone does not say which interface it is on.
    let scoped = match Way::of(path.route) {
        Way::Udp { path: Path::Direct { scope }, .. } => scope != 0,
        // The client's datagrams have another header first.
        Way::Udp { path: Path::Proxied { .. }, .. } | Way::Stream(_) | Way::Dtls(_) => return None,
    };
    if path.client.transport != Transport::Udp || scoped || is_link_local(peer.ip()) {
        return None;
    }
    let (client, server) = (path.client.client, path.client.server);
    let channel = match carrier {
        Carrier::Channel(channel) => Some(channel.get()),
        Carrier::Indications(_) => None,
    };
    Some(Flow { client, server, channel, relayed: path.relayed, peer, hop, meter: None })
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl<D: Datagrams> Worker<D> {
    /// A channel is open until then, for the first time or still.
    pub(super) fn channel_open(&mut self, relay: RelayId, channel: ChannelNumber, peer: PeerAddr, until: Instant) {
        self.flow_open(Carrier::Channel(channel), relay, peer, until);
    }

    /// Has the sockets and the kernel take from the same buckets of an allocation; `None` where there are no more.
    fn meter(&mut self, allocation: AllocationId, rate: DataRate) -> Option<MeterId> {
        let offload = self.kernel_path.offload.as_ref()?;
        let session = self.kernel_path.sessions.entry(allocation.pack()).or_default();
        let meter = match &session.meter {
            Some(meter) => meter,
            None => {
                let meter = Arc::new(offload.meter()?);
                self.server.share_meter(allocation, Box::new(InKernel(Arc::clone(&meter))), offload.epoch()?);
                session.meter.insert(meter)
            }
        };
        meter.set_rate(rate.packets_per_second, rate.bytes_per_second);
        Some(meter.id())
    }

    pub(super) fn channel_closed(&mut self, relay: RelayId, channel: ChannelNumber) {
        self.kernel_path.flow_closed(Carrier::Channel(channel), relay);
    }

    /// An indication to a peer has been relayed, and more may be until then.
    pub(super) fn indication_relayed(&mut self, now: Now, relay: RelayId, peer: PeerAddr, until: Instant) {
        if self.kernel_path.has_room_for(now.instant, relay, peer) {
            self.flow_open(Carrier::Indications(peer), relay, peer, until);
        }
    }

    /// Permissions of an allocation, or itself, have been refreshed or are gone, or a channel is bound where none was.
    pub(super) fn permissions_changed(&mut self, allocation: AllocationId) {
        for (carrier, relay, peer) in self.kernel_path.indications_of(allocation) {
            match self.server.indications_until(relay, peer) {
                Some(until) => self.flow_open(carrier, relay, peer, until),
                None => self.kernel_path.flow_closed(carrier, relay),
            }
        }
    }

    fn flow_open(&mut self, carrier: Carrier, relay: RelayId, peer: PeerAddr, until: Instant) {
        let with_loopback = self.kernel_path.offload.as_ref().is_some_and(Offload::has_loopback);
        let path = self.server.channel_path(relay, peer);
        let flow = path.and_then(|path| {
            let flow = flow_of(carrier, peer, &path, with_loopback)?;
            let meter = if path.rate.is_limited() { Some(self.meter(relay.allocation(), path.rate)?) } else { None };
            Some(Flow { meter, ..flow })
        });
        self.kernel_path.flow_open(carrier, (relay, peer), flow, (self.clock.now().instant, until));
    }

    /// Takes back from the kernel what another policy does not leave to it.
    pub(super) fn policy_changed(&mut self) {
        let flows: Vec<_> = self.kernel_path.sessions.values().flat_map(Session::flows).collect();
        for (carrier, relay, peer, until) in flows {
            self.flow_open(carrier, relay, peer, until);
        }
    }

    /// The flows of an allocation lead to where its client is now.
    pub(super) fn client_moved(&mut self, allocation: AllocationId) {
        for (carrier, relay, peer, until) in self.kernel_path.flows_of(allocation) {
            self.flow_open(carrier, relay, peer, until);
        }
    }

    /// Adds what the kernel has carried of a session.
    pub(super) fn add_carried(&self, session: &mut LiveSession) {
        session.offloaded = self.kernel_path.carried(session.id.allocation());
        session.traffic += session.offloaded;
    }

    /// Closes a relay socket when no packet is on its way through the kernel any more.
    pub(super) fn relay_ended(&mut self, relay: RelayId, address: RelayedAddr) {
        if let Some(waiting) = self.kernel_path.wait(relay.allocation(), Waiting::CloseRelay(relay, address)) {
            self.go_on(waiting);
        }
    }

    /// Writes the record of an allocation when it is known what the kernel has carried.
    pub(super) fn allocation_ended(&mut self, ended: Box<Ended>) {
        if let Some(waiting) = self.kernel_path.wait(ended.allocation, Waiting::Record(ended)) {
            self.go_on(waiting);
        }
    }

    /// Goes on with what has waited for flows that have ended.
    pub(super) fn handle_ended_flows(&mut self) {
        while let Ok((tag, traffic)) = self.kernel_path.closed.try_recv() {
            for waiting in self.kernel_path.flow_ended(tag, traffic) {
                self.go_on(waiting);
            }
        }
    }

    /// Waits until every flow that is closing has ended: the worker ends.
    pub(super) fn await_ended_flows(&mut self) {
        let deadline = self.clock.now().instant + PATIENCE;
        while self.kernel_path.is_closing() {
            let left = deadline.saturating_duration_since(self.clock.now().instant);
            let Ok((tag, traffic)) = self.kernel_path.closed.recv_timeout(left) else {
                warn!("the kernel path does not end: records are without what it has carried");
                let sessions = self.kernel_path.sessions.values_mut();
                let waiting: Vec<_> = sessions.flat_map(|session| std::mem::take(&mut session.waiting)).collect();
                waiting.into_iter().for_each(|waiting| self.go_on(waiting));
                return;
            };
            for waiting in self.kernel_path.flow_ended(tag, traffic) {
                self.go_on(waiting);
            }
        }
    }

    fn go_on(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::CloseRelay(relay, address) => self.close_relay(relay, address),
            Waiting::Record(mut ended) => {
                let session = self.kernel_path.sessions.remove(&ended.allocation.pack());
                ended.offloaded = session.map(|session| session.carried.into()).unwrap_or_default();
                ended.traffic += ended.offloaded;
                let now = self.clock.now();
                self.records.ended(now, ended);
            }
        }
    }
}
