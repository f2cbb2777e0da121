//! The associations of a worker: who has one, who is in a handshake, and whose have gone to another worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hashbrown::HashMap;

use super::deadlines::{Deadlines, Signs};
use super::routes::{CONNECTION_GENERATION_MASK, ConnectionId, Path};
use super::statistics::DtlsStatistics;
use crate::address::FiveTuple;
use crate::net::admission::{Admission, ConnectionGuard, Refusal, Source};
use crate::net::dtls::{self, DtlsBuffers, DtlsConfig};

/// Handshakes of a worker under way at once: about 48 KiB each, 24 MiB in all; with all the fragments that OpenSSL keeps
/// 200 KiB each, 100 MiB in all. Only clients that have proved their address are in one.
const HANDSHAKES_MAX: usize = 512;
/// Of these, those of one source: an office whose network comes back, and an eighth of what others may have.
const HANDSHAKES_PER_SOURCE_MAX: usize = 64;
/// Associations of a worker that own no allocation yet: 38 KiB each, 19 MiB in all. A client allocates within two round
/// trips, so that even at 200 ms each more than a thousand clients a second get through.
const IDLE_MAX: usize = 512;
/// Of these, those of one source: an office whose network comes back.
const IDLE_PER_SOURCE_MAX: usize = 128;
/// Datagrams that wait until their handshake has its turn. A client's flight has three.
const INBOX_MAX: usize = 8;
/// The longest of them: a ClientHello has less than 1 KiB, and no client is asked for a certificate.
const HANDSHAKE_DATAGRAM_MAX: usize = 4096;
/// How often a handshake is looked at for what is to be sent again (RFC 6347 section 4.2.4.1: from 1 s, doubling).
const RETRANSMISSION_LOOK: Duration = Duration::from_millis(250);

/// What associations are made by.
#[derive(Clone, Debug)]
pub struct DtlsDoor {
    pub config: DtlsConfig,
    /// The limits and the places that associations share with streams.
    pub admission: Arc<Admission>,
}

/// An association and what the loop has to remember of it.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) session: dtls::Association,
    pub(super) client: FiveTuple,
    pub(super) listener: u16,
    pub(super) path: Path,
    /// The random of the ClientHello that it was made of.
    pub(super) random: [u8; 32],
    pub(super) phase: Phase,
    pub(super) signs: Signs,
    pub(super) _guard: ConnectionGuard,
}

#[derive(Debug)]
pub(super) enum Phase {
    Handshake {
        /// What the client has sent, until it is this handshake's turn.
        inbox: Vec<Vec<u8>>,
        deadline: Instant,
        source: Source,
    },
    /// With the source that it counts for until it owns an allocation.
    Established { idle: Option<Source> },
}

/// Where the associations of a 5-tuple are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) current: Option<ConnectionId>,
    /// A handshake beside an established association, which it replaces when it is done (RFC 6347 section 4.2.8).
    pub(super) next: Option<ConnectionId>,
    /// The worker that has it, when that is another one: the kernel goes on to give the datagrams to this one.
    pub(super) elsewhere: Option<usize>,
    /// The worker that the kernel gives the datagrams to, when that is another one.
    pub(super) home: Option<usize>,
}

/// Why a client gets no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    SourceLimit,
    TotalLimit,
    Handshakes,
}

/// A slab of associations with the buffers that they share.
#[derive(Debug)]
pub(super) struct Associations {
    pub(super) door: Option<DtlsDoor>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    pub(super) places: HashMap<FiveTuple, Place, RandomState>,
    /// Handshakes with something in their inbox, each once.
    to_advance: VecDeque<ConnectionId>,
    /// Handshakes and when to look at them next, in order.
    looks: VecDeque<(Instant, ConnectionId)>,
    handshakes: usize,
    handshakes_by_source: HashMap<Source, usize, RandomState>,
    /// Those that own no allocation yet, the oldest first.
    idle: VecDeque<(Source, ConnectionId)>,
    pub(super) deadlines: Deadlines,
    pub(super) buffers: DtlsBuffers,
    /// The datagram in hand, and the message on its way out.
    pub(super) datagram: Vec<u8>,
    pub(super) outgoing: Vec<u8>,
    pub(super) statistics: DtlsStatistics,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    association: Option<Box<Association>>,
}

impl Associations {
    pub(super) fn new(door: Option<DtlsDoor>) -> Self {
        Self {
            door,
            slots: Vec::new(),
            free: Vec::new(),
            places: HashMap::default(),
            to_advance: VecDeque::new(),
            looks: VecDeque::new(),
            handshakes: 0,
            handshakes_by_source: HashMap::default(),
            idle: VecDeque::new(),
            deadlines: Deadlines::default(),
            buffers: DtlsBuffers::default(),
            datagram: Vec::new(),
            outgoing: Vec::new(),
            statistics: DtlsStatistics::default(),
        }
    }

    /// Established ones and handshakes.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The associations there are.
    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| slot.association.is_some());
        slots.map(|(index, slot)| ConnectionId { slot: index as u32, generation: slot.generation }).collect()
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<(&mut Association, &mut DtlsBuffers)> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        Some((slot.association.as_deref_mut()?, &mut self.buffers))
    }

    /// A place under the limits for one more handshake.
    pub(super) fn admit(&mut self, client: &FiveTuple) -> Result<(ConnectionGuard, Source), Refused> {
        let source = Source::of(client.client.ip());
        let of_source = self.handshakes_by_source.get(&source).copied().unwrap_or(0);
        if self.handshakes >= HANDSHAKES_MAX || of_source >= HANDSHAKES_PER_SOURCE_MAX {
            return Err(Refused::Handshakes);
        }
        let Some(door) = &self.door else { return Err(Refused::TotalLimit) };
        let guard = door.admission.enter(client.client.socket_addr()).map_err(|refusal| match refusal {
            Refusal::Source => Refused::SourceLimit,
            Refusal::Total => Refused::TotalLimit,
        })?;
        Ok((guard, source))
    }

    /// Takes an association in; a handshake is looked at from now on.
    pub(super) fn insert(&mut self, now: Instant, association: Box<Association>) -> ConnectionId {
        let source = match &association.phase {
            Phase::Handshake { source, .. } => Some(*source),
            Phase::Established { .. } => None,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, association: None });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.association = Some(association);
        let id = ConnectionId { slot, generation: entry.generation };
        if let Some(source) = source {
            self.handshakes += 1;
            *self.handshakes_by_source.entry(source).or_insert(0) += 1;
            self.looks.push_back((now + RETRANSMISSION_LOOK, id));
        }
        id
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Box<Association>> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        let association = slot.association.take()?;
        slot.generation = (slot.generation + 1) & CONNECTION_GENERATION_MASK;
        self.free.push(id.slot);
        match association.phase {
            Phase::Handshake { source, .. } => self.leave_handshake(source),
            Phase::Established { idle: Some(_) } => self.idle.retain(|(_, other)| *other != id),
            Phase::Established { idle: None } => {}
        }
        Some(association)
    }

    /// A handshake is done.
    pub(super) fn establish(&mut self, now: Instant, id: ConnectionId) {
        let Some((association, _)) = self.get_mut(id) else { return };
        let Phase::Handshake { source, .. } = association.phase else { return };
        association.phase = Phase::Established { idle: Some(source) };
        self.leave_handshake(source);
        self.deadlines.add(now, id);
        self.idle.push_back((source, id));
    }

    /// The association that has to go for the one that was established last, where too many own nothing: the oldest of its
    /// source, or of all.
    pub(super) fn crowded_out(&self) -> Option<ConnectionId> {
        let (source, _) = self.idle.back()?;
        let mut of_source = self.idle.iter().filter(|(other, _)| other == source).map(|(_, id)| *id);
        let is_over = of_source.clone().nth(IDLE_PER_SOURCE_MAX).is_some();
        let oldest = if is_over { of_source.next() } else { self.idle.front().map(|(_, id)| *id) };
        oldest.filter(|_| is_over || self.idle.len() > IDLE_MAX)
    }

    /// Whether an association has owned no allocation up to now.
    pub(super) fn is_idle(&mut self, id: ConnectionId) -> bool {
        self.get_mut(id)
            .is_some_and(|(association, _)| matches!(association.phase, Phase::Established { idle: Some(_) }))
    }

    /// An association owns an allocation.
    pub(super) fn settle(&mut self, id: ConnectionId) {
        let Some((association, _)) = self.get_mut(id) else { return };
        if let Phase::Established { idle } = &mut association.phase
            && idle.take().is_some()
        {
            self.idle.retain(|(_, other)| *other != id);
        }
    }

    fn leave_handshake(&mut self, source: Source) {
        self.handshakes -= 1;
        if let Some(count) = self.handshakes_by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.handshakes_by_source.remove(&source);
            }
        }
    }

    /// Keeps a datagram until its handshake has its turn; one that finds no room is sent again by the client.
    pub(super) fn queue(&mut self, id: ConnectionId, datagram: &[u8]) {
        let Some((association, _)) = self.get_mut(id) else { return };
        let Phase::Handshake { inbox, .. } = &mut association.phase else { return };
        if inbox.len() >= INBOX_MAX || datagram.len() > HANDSHAKE_DATAGRAM_MAX {
            return;
        }
        let is_first = inbox.is_empty();
        inbox.push(datagram.to_vec());
        if is_first {
            self.to_advance.push_back(id);
        }
    }

    /// A handshake whose turn it is, and what waits for it.
    pub(super) fn pop_to_advance(&mut self) -> Option<(ConnectionId, Vec<Vec<u8>>)> {
        while let Some(id) = self.to_advance.pop_front() {
            if let Some((association, _)) = self.get_mut(id)
                && let Phase::Handshake { inbox, .. } = &mut association.phase
            {
                return Some((id, std::mem::take(inbox)));
            }
        }
        None
    }

    /// Whether a handshake waits for its turn.
    pub(super) fn is_busy(&self) -> bool {
        !self.to_advance.is_empty()
    }

    /// A handshake that is to be looked at, and whether its time is over.
    pub(super) fn pop_look(&mut self, now: Instant) -> Option<(ConnectionId, bool)> {
        while let Some((at, id)) = self.looks.pop_front() {
            if at > now {
                self.looks.push_front((at, id));
                return None;
            }
            if let Some((association, _)) = self.get_mut(id)
                && let Phase::Handshake { deadline, .. } = association.phase
            {
                if now < deadline {
                    self.looks.push_back((now + RETRANSMISSION_LOOK, id));
                }
                return Some((id, now >= deadline));
            }
        }
        None
    }

    /// When something is due.
    pub(super) fn next(&self) -> Option<Instant> {
        [self.looks.front().map(|(at, _)| *at), self.deadlines.next()].into_iter().flatten().min()
    }
}
