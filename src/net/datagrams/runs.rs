//! Runs: datagrams of one source and one length behind each other, as the frames of a video are.
//!
//! The kernel takes a run through the stack as one where the socket wants that (UDP_GRO) and what receives for the host
//! gathers packets (NAPI with GRO). Looking for runs costs it time where there are none, so sockets ask for it once they
//! have seen many.

use std::net::UdpSocket;

use super::{Datagram, SocketKey};
use crate::net::socket::merge;

/// Datagrams that are a run: two or three save little.
const RUN_MIN: u32 = 4;
/// Datagrams in runs, less those that are in none, that a socket has seen before it asks for them as one.
const WORTH: u8 = 64;
/// What goes behind a datagram at most: up to a multiple of four.
pub(super) const ZEROS: [u8; 4] = [0; 4];

/// What a socket has seen of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Merging {
    score: u8,
    /// It has asked for them, or the kernel has none.
    is_settled: bool,
}

impl Merging {
    /// Of a socket that is never to ask.
    pub(super) const NEVER: Self = Self { score: 0, is_settled: true };
}

/// Looks for runs among what arrives in a turn.
#[derive(Debug, Default)]
pub(super) struct RunWatch {
    last: Option<(SocketKey, u16, usize)>,
    run: u32,
}

impl RunWatch {
    /// Begins a turn: what arrives later is in no run with what arrived before.
    pub(super) fn turn(&mut self) {
        self.last = None;
    }

    /// Looks at a datagram, and has its socket ask for runs as one when it has seen enough of them. Where the kernel cannot
    /// (before Linux 5.0), it is not asked again.
    pub(super) fn see(&mut self, merging: &mut Merging, key: SocketKey, socket: &UdpSocket, datagram: &Datagram) {
        if !merging.is_settled && self.is_worth_it(merging, (key, datagram.from.port(), datagram.len)) {
            merging.is_settled = true;
            // What it refuses goes on as it was.
            let _ = merge(socket);
        }
    }

    fn is_worth_it(&mut self, merging: &mut Merging, seen: (SocketKey, u16, usize)) -> bool {
        let goes_on = self.last == Some(seen);
        self.last = Some(seen);
        self.run = if goes_on { self.run.saturating_add(1) } else { 1 };
        merging.score = match self.run {
            1 => merging.score.saturating_sub(1),
            RUN_MIN => merging.score.saturating_add(RUN_MIN as u8),
            run if run > RUN_MIN => merging.score.saturating_add(1),
            _ => merging.score,
        };
        merging.score >= WORTH
    }
}

/// What is left of a slot that holds a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) key: SocketKey,
    next: Datagram,
    each: usize,
    end: usize,
}

impl Run {
    /// The datagrams of a slot; `None` if it is one, as `whole` tells it.
    pub(super) fn new(key: SocketKey, whole: &Datagram, each: Option<usize>) -> Option<Self> {
        let each = each.filter(|each| (1..whole.len).contains(each))?;
        Some(Self { key, next: Datagram { len: each, in_run: true, ..*whole }, each, end: whole.len })
    }
}

impl Iterator for Run {
    type Item = Datagram;

    fn next(&mut self) -> Option<Datagram> {
        let left = self.end.checked_sub(self.next.at).filter(|left| *left > 0)?;
        let datagram = Datagram { len: left.min(self.each), ..self.next };
        self.next.at += datagram.len;
        Some(datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::poll::Token;

    const KEY: SocketKey = SocketKey(1);

    fn whole(len: usize) -> Datagram {
        let from = "192.0.2.1:4000".parse().unwrap();
        Datagram { token: Token(7), slot: 3, at: 0, len, from, to: None, tos: 0xb8, truncated: false, in_run: false }
    }

    /// How many datagrams of these lengths, turn by turn, a socket sees before runs are worth asking for.
    fn seen_until_worth_it(turns: impl Iterator<Item = Vec<usize>>) -> Option<usize> {
        let (mut watch, mut merging, mut seen) = (RunWatch::default(), Merging::default(), 0);
        for lens in turns {
            watch.turn();
            for len in lens {
                seen += 1;
                if watch.is_worth_it(&mut merging, (KEY, 4000, len)) {
                    return Some(seen);
                }
            }
        }
        None
    }

    #[test]
    fn the_frames_of_a_video_are_worth_it_and_audio_beside_them_is_no_obstacle() {
        let frame = || [vec![80], vec![1200; 15], vec![700]].concat();
        let seen = seen_until_worth_it(std::iter::repeat_with(frame).take(100)).unwrap();
        assert!((64..200).contains(&seen), "{seen}");
    }

    #[test]
    fn packets_that_come_alone_or_differ_are_never_worth_it() {
        assert_eq!(seen_until_worth_it(std::iter::repeat_n(vec![160], 10_000)), None, "each in a turn of its own");
        let differing = || (0..32).map(|index| 100 + index % 2).collect();
        assert_eq!(seen_until_worth_it(std::iter::repeat_with(differing).take(1000)), None);
        assert_eq!(seen_until_worth_it(std::iter::repeat_n(vec![160, 160, 160], 10_000)), None);
    }

    #[test]
    fn a_socket_that_has_asked_or_must_not_is_not_watched() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for mut merging in [Merging { score: 3, is_settled: true }, Merging::NEVER] {
            let (mut watch, before) = (RunWatch::default(), merging);
            (0..1000).for_each(|_| watch.see(&mut merging, KEY, &socket, &whole(160)));
            assert_eq!(merging, before);
        }
    }

    #[test]
    fn a_slot_is_cut_into_what_was_sent() {
        let cut = |len, each| -> Option<Vec<_>> {
            let run = Run::new(KEY, &whole(len), each)?;
            Some(run.map(|datagram| (datagram.at, datagram.len)).collect())
        };
        assert_eq!(cut(500, None), None);
        assert_eq!(cut(500, Some(500)), None);
        assert_eq!(cut(500, Some(0)), None);
        assert_eq!(cut(500, Some(200)).unwrap(), [(0, 200), (200, 200), (400, 100)]);
        assert_eq!(cut(400, Some(200)).unwrap(), [(0, 200), (200, 200)]);
        let first = Run::new(KEY, &whole(500), Some(200)).unwrap().next().unwrap();
        assert_eq!(first, Datagram { len: 200, in_run: true, ..whole(500) });
    }
}
