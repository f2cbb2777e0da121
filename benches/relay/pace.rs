//! When the next packet of which flow is due.

use crate::ledger::Ledger;
use crate::wire::Way;

/// How a load is driven.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Drive {
    /// So many packets of each flow under way: the server always has some, and none is lost for want of a buffer.
    Window(u32),
    /// So many packets of one flow after each other, again when all of them have arrived: the frames of a video.
    Bursts(u32),
    /// So many packets a second of each flow, at times of its own.
    Rate(f64),
    /// As fast as the generator can.
    FlatOut,
}

/// A generator this far behind gives up what it should have sent.
const GIVE_UP_NS: u64 = 20_000_000;
/// A packet this late was not sent in time.
const LATE_NS: u64 = 500_000;

/// Chooses packets.
pub(crate) struct Pacer {
    drive: Drive,
    ways: Vec<Way>,
    flows: usize,
    cursor: usize,
    schedule: Vec<(u64, Way, u32)>,
    period_ns: u64,
    period_begin_ns: u64,
    pub(crate) due: u64,
    pub(crate) late: u64,
    pub(crate) given_up: u64,
}

impl Pacer {
    pub(crate) fn new(drive: Drive, ways: &[Way], flows: usize, now_ns: u64) -> Self {
        let (mut schedule, mut period_ns) = (Vec::new(), 0);
        if let Drive::Rate(rate) = drive {
            period_ns = (1e9 / rate) as u64;
            let mut random = 0x9E37_79B9_7F4A_7C15_u64;
            for flow in 0..flows as u32 {
                for way in ways {
                    // xorshift64: the same times for every server and round.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    schedule.push((random % period_ns, *way, flow));
                }
            }
            schedule.sort_unstable_by_key(|(at, ..)| *at);
        }
        let ways = ways.to_vec();
        Self {
            drive,
            ways,
            flows,
            cursor: 0,
            schedule,
            period_ns,
            period_begin_ns: now_ns,
            due: 0,
            late: 0,
            given_up: 0,
        }
    }

    /// The packets to send now, at most `most`.
    pub(crate) fn choose(&mut self, now_ns: u64, ledger: &mut Ledger, most: usize, chosen: &mut Vec<(Way, usize)>) {
        chosen.clear();
        match self.drive {
            Drive::Rate(_) => self.choose_due(now_ns, most, chosen),
            Drive::Window(window) => {
                self.go_round(1, most, chosen, |way, flow| ledger.has_room(way, flow, window, now_ns))
            }
            Drive::Bursts(len) => {
                self.go_round(len as usize, most, chosen, |way, flow| ledger.has_room(way, flow, 1, now_ns))
            }
            Drive::FlatOut => self.go_round(1, most, chosen, |_, _| true),
        }
    }

    /// One flow after the other, `run` packets of each that may send.
    fn go_round(
        &mut self,
        run: usize,
        most: usize,
        chosen: &mut Vec<(Way, usize)>,
        mut may: impl FnMut(Way, usize) -> bool,
    ) {
        for _ in 0..self.flows * self.ways.len() {
            let (way, flow) = (self.ways[self.cursor % self.ways.len()], self.cursor / self.ways.len());
            if may(way, flow) {
                chosen.extend(std::iter::repeat_n((way, flow), run));
            }
            self.cursor = (self.cursor + 1) % (self.flows * self.ways.len());
            if chosen.len() + run > most {
                return;
            }
        }
    }

    fn choose_due(&mut self, now_ns: u64, most: usize, chosen: &mut Vec<(Way, usize)>) {
        while chosen.len() < most {
            let (offset, way, flow) = self.schedule[self.cursor];
            let due_ns = self.period_begin_ns + offset;
            if due_ns > now_ns {
                return;
            }
            let late_ns = now_ns - due_ns;
            self.due += 1;
            self.late += u64::from(late_ns > LATE_NS);
            if late_ns > GIVE_UP_NS {
                self.given_up += 1;
            } else {
                chosen.push((way, flow as usize));
            }
            self.cursor += 1;
            if self.cursor == self.schedule.len() {
                (self.cursor, self.period_begin_ns) = (0, self.period_begin_ns + self.period_ns);
            }
        }
    }
}
