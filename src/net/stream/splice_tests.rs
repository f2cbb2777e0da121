use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use socket2::SockRef;

use super::splice::{READ_BYTES_MAX, ROUND_BYTES_MIN};
use super::tests::{KINDS, Kind, Pair};
use super::*;
use crate::net::peer::PeerStream;
use crate::net::test_tls::wait_until;

const PLENTY: u64 = u64::MAX;
/// More than the kernel's buffers of one connection take.
const TOO_MUCH: usize = 16 << 20;

/// A client's connection and a peer's with the peer's end, which blocks.
struct Bound {
    pair: Pair,
    stream: PeerStream,
    peer: TcpStream,
}

impl Bound {
    fn new(kind: Kind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = PeerStream::accepted(listener.accept().unwrap().0).unwrap();
        let pair = Pair::new(kind);
        pair.connection.begin_data();
        Self { pair, stream, peer }
    }

    fn up(&mut self, budget: u64) -> (u64, Rest) {
        let passed = self.pair.connection.pass_to(&mut self.stream, &mut self.pair.buffers, budget);
        (passed.bytes, passed.rest.unwrap())
    }

    fn down(&mut self, budget: u64) -> (u64, Rest) {
        let Pair { connection, buffers, now, .. } = &mut self.pair;
        let passed = connection.pass_from(*now, &mut self.stream, buffers, budget);
        (passed.bytes, passed.rest.unwrap())
    }

    /// Passes until a direction has come to this rest; the bytes of it.
    fn until(&mut self, wanted: Rest, mut direction: impl FnMut(&mut Self, u64) -> (u64, Rest)) -> u64 {
        let mut total = 0;
        wait_until("rest", || {
            let (bytes, rest) = direction(self, PLENTY);
            total += bytes;
            rest == wanted
        });
        total
    }
}

#[test]
fn what_the_peer_does_not_take_is_not_read_from_the_client() {
    for kind in KINDS {
        let mut bound = Bound::new(kind);
        let mut client = bound.pair.split_client();
        let writer = std::thread::spawn(move || {
            client.write_all(&vec![7; TOO_MUCH]).unwrap();
            client.flush().unwrap();
            client
        });
        let mut passed = bound.until(Rest::Blocked, Bound::up);
        assert_eq!(bound.up(PLENTY), (0, Rest::Blocked), "and so it stays");
        let waits = bound.pair.connection.received().len();
        // One round, and the record of TLS that was partly there.
        assert!((1..=80 * 1024).contains(&waits) && !writer.is_finished(), "{kind:?}: {waits} bytes wait");
        let mut peer = bound.peer.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; TOO_MUCH];
            peer.read_exact(&mut bytes).unwrap();
            bytes.iter().all(|byte| *byte == 7)
        });
        wait_until("the rest", || {
            passed += bound.up(PLENTY).0;
            passed == TOO_MUCH as u64
        });
        assert!(reader.join().unwrap());
        writer.join().unwrap();
        assert_eq!(bound.up(PLENTY), (0, Rest::Drained));
    }
}

#[test]
fn what_the_client_does_not_take_is_not_read_from_the_peer() {
    for kind in KINDS {
        let mut bound = Bound::new(kind);
        let mut peer = bound.peer.try_clone().unwrap();
        let writer = std::thread::spawn(move || peer.write_all(&vec![9; TOO_MUCH]).unwrap());
        let mut passed = bound.until(Rest::Blocked, Bound::down);
        assert_eq!(bound.down(PLENTY), (0, Rest::Blocked), "and so it stays");
        assert!(bound.pair.connection.wants_write() && !writer.is_finished(), "{kind:?}");
        let mut client = bound.pair.split_client();
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; TOO_MUCH];
            client.read_exact(&mut bytes).unwrap();
            bytes.iter().all(|byte| *byte == 9)
        });
        wait_until("the rest", || {
            passed += bound.down(PLENTY).0;
            passed == TOO_MUCH as u64 && !bound.pair.connection.wants_write()
        });
        assert!(reader.join().unwrap());
        writer.join().unwrap();
        assert_eq!(bound.pair.connection.take_dropped(), Dropped::default(), "nothing is stale, and nothing dropped");
        assert_eq!(bound.down(PLENTY), (0, Rest::Drained));
    }
}

#[test]
fn a_direction_ends_when_the_other_side_has_everything() {
    for kind in KINDS {
        let mut bound = Bound::new(kind);
        bound.peer.write_all(b"the last words").unwrap();
        bound.peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bound.until(Rest::Ended, Bound::down), 14);
        let mut heard = Vec::new();
        bound.pair.client.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"the last words", "{kind:?}: with close_notify, or it were cut off");
        assert_eq!(bound.down(PLENTY), (0, Rest::Ended));
        // The other direction goes on.
        bound.pair.client.write_all(b"an answer").unwrap();
        bound.pair.client.flush().unwrap();
        bound.pair.client.socket().shutdown(Shutdown::Write).unwrap();
        assert_eq!(bound.until(Rest::Ended, Bound::up), 9);
        heard.clear();
        bound.peer.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"an answer");
    }
}

#[test]
fn what_is_queued_goes_first_and_a_budget_ends_a_turn() {
    for kind in KINDS {
        let mut bound = Bound::new(kind);
        bound.pair.send(Class::Control, b"response").unwrap();
        bound.peer.write_all(&[5; 50_000]).unwrap();
        wait_until("the first turn", || bound.down(1) != (0, Rest::Drained));
        bound.until(Rest::Drained, Bound::down);
        let heard = bound.pair.client.read_bytes(50_008);
        assert!(heard.starts_with(b"response") && heard[8..].iter().all(|byte| *byte == 5), "{kind:?}");
        bound.pair.client.write_all(&[6; 1000]).unwrap();
        bound.pair.client.flush().unwrap();
        wait_until("the first turn", || bound.up(1) == (1000, Rest::Budget));
    }
}

#[test]
fn a_budget_is_overdrawn_by_a_small_round_at_most() {
    for kind in KINDS {
        let mut bound = Bound::new(kind);
        bound.peer.write_all(&[9; 50_000]).unwrap();
        bound.pair.client.write_all(&[7; 50_000]).unwrap();
        assert_eq!(bound.up(0), (0, Rest::Budget), "{kind:?}");
        assert_eq!(bound.down(0), (0, Rest::Budget), "{kind:?}");
        // A record of TLS is passed whole.
        let slack = if kind == Kind::Plain { ROUND_BYTES_MIN as u64 } else { 16 * 1024 + ROUND_BYTES_MIN as u64 };
        let within = |(bytes, rest): (u64, Rest)| (1000..1000 + slack).contains(&bytes) && rest == Rest::Budget;
        wait_until("data of the client", || {
            let up = bound.up(1000);
            assert!(up.1 == Rest::Drained || within(up), "{kind:?}: {up:?}");
            up.1 == Rest::Budget
        });
        wait_until("data of the peer", || {
            let down = bound.down(1000);
            assert!(down.1 == Rest::Drained || within(down), "{kind:?}: {down:?}");
            down.1 == Rest::Budget
        });
    }
}

#[test]
fn records_of_one_byte_count_as_what_is_read() {
    /// Of header, data, type and tag.
    const RECORD_BYTES_MIN: usize = 5 + 1 + 1 + 16;
    const RECORDS: usize = 2 * READ_BYTES_MAX / RECORD_BYTES_MIN;
    for kind in [Kind::Tls13, Kind::Tls12] {
        let mut bound = Bound::new(kind);
        SockRef::from(&bound.pair.connection.stream).set_recv_buffer_size(1 << 20).unwrap();
        let mut client = bound.pair.split_client();
        let writer = std::thread::spawn(move || {
            for _ in 0..RECORDS {
                client.tls().writer().write_all(&[7]).unwrap();
                client.flush().unwrap();
            }
            client
        });
        let waiting = || bound.pair.connection.stream.peek(&mut [0; READ_BYTES_MAX + 1]);
        wait_until("more than a turn", || waiting().is_ok_and(|len| len > READ_BYTES_MAX));
        let (passed, rest) = bound.up(PLENTY);
        assert_eq!(rest, Rest::Budget, "{kind:?}");
        assert!(passed as usize <= READ_BYTES_MAX / RECORD_BYTES_MIN + 1, "{kind:?}: {passed} bytes");
        let mut all = passed;
        wait_until("the rest", || {
            all += bound.up(PLENTY).0;
            all == RECORDS as u64
        });
        writer.join().unwrap();
    }
}
