use std::sync::Arc;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::*;
use crate::net::send_queue::MESSAGE_COST;
use crate::net::test_tls::{TestCertificate, client, client_config, established, handshake, wait_until};
use crate::net::tls::TlsAcceptConfig;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Tls13,
    Tls12,
}

pub(super) const KINDS: [Kind; 3] = [Kind::Plain, Kind::Tls13, Kind::Tls12];

/// The client's end, blocking.
pub(super) enum Client {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Client {
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    pub(super) fn tls(&mut self) -> &mut ClientConnection {
        match self {
            Self::Plain(_) => panic!("plain"),
            Self::Tls(stream) => &mut stream.conn,
        }
    }

    pub(super) fn read_bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.read_exact(&mut bytes).unwrap();
        bytes
    }
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

pub(super) struct Pair {
    pub(super) connection: Connection,
    pub(super) client: Client,
    pub(super) buffers: Buffers,
    pub(super) now: Instant,
}

pub(super) fn tls_pair() -> (TlsAcceptConfig, Arc<ClientConfig>, Arc<ClientConfig>) {
    let certificate = TestCertificate::new(&["turn.example"]);
    let config = |version| client_config(&[&certificate], version, &[]);
    (certificate.load(), config(&TLS13), config(&TLS12))
}

impl Pair {
    pub(super) fn new(kind: Kind) -> Self {
        Self::with_limits(kind, QueueLimits::default())
    }

    fn with_limits(kind: Kind, limits: QueueLimits) -> Self {
        let (server_config, tls13, tls12) = tls_pair();
        let tls_client = match kind {
            Kind::Plain => None,
            Kind::Tls13 => Some(client(&tls13, "turn.example")),
            Kind::Tls12 => Some(client(&tls12, "turn.example")),
        };
        let (established, client) = match tls_client {
            None => {
                let (established, stream) = established(None);
                (established, Client::Plain(stream))
            }
            Some(mut tls_client) => {
                let (established, stream) = established(Some(handshake(&server_config, &mut tls_client)));
                (established, Client::Tls(Box::new(StreamOwned::new(tls_client, stream))))
            }
        };
        let connection = Connection::new(established, limits);
        Self { connection, client, buffers: Buffers::default(), now: Instant::now() }
    }

    /// The client's end, for another thread; a dead one is left in its place.
    pub(super) fn split_client(&mut self) -> Client {
        let dead = Client::Plain(self.client.socket().try_clone().unwrap());
        std::mem::replace(&mut self.client, dead)
    }

    fn fill(&mut self) -> Fill {
        self.connection.fill(&mut self.buffers, usize::MAX, true).unwrap()
    }

    fn fill_until(&mut self, bytes: usize) {
        wait_until("bytes from the client", || {
            self.connection.fill(&mut self.buffers, usize::MAX, true).unwrap();
            self.connection.received().len() >= bytes
        });
    }

    pub(super) fn send(&mut self, class: Class, message: &[u8]) -> Result<(), SendError> {
        self.connection.send(self.now, class, message, &[], 0, &mut self.buffers)
    }

    fn flush(&mut self) -> Flush {
        self.connection.flush(self.now, &mut self.buffers).unwrap()
    }
}

/// A message that tells its length, number and class.
fn numbered(number: u32, class: Class, size: usize) -> Vec<u8> {
    let mut message = vec![if class == Class::Control { b'C' } else { b'D' }; size];
    message[..4].copy_from_slice(&(size as u32).to_be_bytes());
    message[4..8].copy_from_slice(&number.to_be_bytes());
    message
}

/// Reads one message whole and says its number and class.
fn read_numbered(client: &mut Client) -> (u32, Class) {
    let head = client.read_bytes(8);
    let size = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
    let body = client.read_bytes(size - 8);
    assert!(body.iter().all(|&byte| byte == body[0]), "framing is intact");
    let class = if body[0] == b'C' { Class::Control } else { Class::Data };
    (u32::from_be_bytes(head[4..].try_into().unwrap()), class)
}

#[test]
fn bytes_pass_in_both_directions() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        pair.client.write_all(b"from the client").unwrap();
        pair.fill_until(15);
        assert_eq!(pair.connection.received(), b"from the client", "{kind:?}");
        pair.connection.consume(5);
        assert_eq!(pair.connection.received(), b"the client");
        let now = pair.now;
        pair.connection.send(now, Class::Data, b"\x40\0\0\x01", b"x", 3, &mut pair.buffers).unwrap();
        pair.send(Class::Control, b"response").unwrap();
        assert!(pair.connection.wants_write());
        assert_eq!(pair.flush(), Flush::Drained);
        assert!(!pair.connection.wants_write());
        assert_eq!(pair.client.read_bytes(16), b"response\x40\0\0\x01x\0\0\0");
        let transport = if kind == Kind::Plain { Transport::Tcp } else { Transport::Tls };
        assert_eq!(pair.connection.five_tuple().transport, transport);
    }
}

#[test]
fn a_message_split_over_single_bytes_arrives_whole() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let message: Vec<u8> = (0..100).collect();
        for (i, byte) in message.iter().enumerate() {
            pair.client.write_all(&[*byte]).unwrap();
            if i % 3 == 0 {
                pair.fill();
            }
        }
        pair.fill_until(100);
        assert_eq!(pair.connection.received(), message, "{kind:?}");
    }
}

#[test]
fn a_record_split_over_single_bytes_is_decrypted_when_whole() {
    let mut pair = Pair::new(Kind::Tls13);
    let mut wire = Vec::new();
    pair.client.tls().writer().write_all(&[7; 50]).unwrap();
    pair.client.tls().write_tls(&mut wire).unwrap();
    for byte in wire {
        assert!(pair.connection.received().is_empty());
        pair.client.socket().write_all(&[byte]).unwrap();
        pair.fill();
    }
    pair.fill_until(50);
    assert_eq!(pair.connection.received(), [7; 50]);
}

#[test]
fn a_few_messages_leave_in_records_of_their_own() {
    let mut pair = Pair::new(Kind::Tls13);
    for number in 0..5 {
        pair.send(Class::Data, &numbered(number, Class::Data, 1000)).unwrap();
    }
    pair.flush();
    let mut header = [0; 5];
    wait_until("the record", || pair.client.socket().peek(&mut header).unwrap() == 5);
    assert_eq!(u16::from_be_bytes([header[3], header[4]]), 1_000 + 17, "one message, the content type and the tag");
    for number in 0..5 {
        assert_eq!(read_numbered(&mut pair.client), (number, Class::Data));
    }
}

#[test]
fn messages_share_a_record_when_many_wait() {
    let mut pair = Pair::new(Kind::Tls13);
    for number in 0..20 {
        pair.send(Class::Data, &numbered(number, Class::Data, 1000)).unwrap();
    }
    pair.flush();
    let mut header = [0; 5];
    wait_until("the record", || pair.client.socket().peek(&mut header).unwrap() == 5);
    assert_eq!(header[0], 23);
    let record_bytes = u16::from_be_bytes([header[3], header[4]]);
    assert_eq!(record_bytes, 16_000 + 17, "whole messages, the content type and the tag");
    for number in 0..20 {
        assert_eq!(read_numbered(&mut pair.client), (number, Class::Data));
    }
}

#[test]
fn a_message_longer_than_a_record_passes_in_both_directions() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let message = numbered(1, Class::Control, 65_555);
        std::thread::scope(|scope| {
            let (client, sent) = (&mut pair.client, &message);
            let writer = scope.spawn(move || client.write_all(sent).unwrap());
            wait_until("the message", || {
                pair.connection.fill(&mut pair.buffers, usize::MAX, true).unwrap();
                pair.connection.received().len() == sent.len()
            });
            writer.join().unwrap();
        });
        assert_eq!(pair.connection.received(), message, "{kind:?}");
        pair.send(Class::Control, &message).unwrap();
        std::thread::scope(|scope| {
            let client = &mut pair.client;
            let reader = scope.spawn(move || read_numbered(client));
            wait_until("the socket to take it", || {
                pair.connection.flush(pair.now, &mut pair.buffers).unwrap() == Flush::Drained
            });
            assert_eq!(reader.join().unwrap(), (1, Class::Control));
        });
    }
}

/// Queues messages for a client that does not read until `enough`; returns how many and which were control.
fn overwhelm(pair: &mut Pair, step: Duration, enough: fn(&Dropped) -> bool) -> (u32, Vec<u32>, Dropped) {
    let (mut number, mut control, mut dropped) = (0, Vec::new(), Dropped::default());
    while !enough(&dropped) {
        let class = if number % 500 == 0 { Class::Control } else { Class::Data };
        let size = 9 + (number as usize * 37) % 1400;
        pair.send(class, &numbered(number, class, size)).unwrap();
        if class == Class::Control {
            control.push(number);
        }
        pair.flush();
        pair.now += step;
        let more = pair.connection.take_dropped();
        dropped.full += more.full;
        dropped.aged += more.aged;
        number += 1;
        assert!(number < 1_000_000, "the kernel takes without end");
    }
    (number, control, dropped)
}

/// Reads until all of `control` and the last message have come; returns how many messages.
fn read_all(pair: &mut Pair, sent: u32, control: &[u32]) -> u32 {
    let Pair { connection, client, buffers, now } = pair;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut seen, mut seen_control, mut last) = (0, Vec::new(), [None, None]);
            while last[0].max(last[1]) != Some(sent - 1) || seen_control.len() < control.len() {
                let (number, class) = read_numbered(client);
                let lane = usize::from(class == Class::Data);
                assert!(last[lane] < Some(number), "in order");
                last[lane] = Some(number);
                seen += 1;
                if class == Class::Control {
                    seen_control.push(number);
                }
            }
            assert_eq!(seen_control, control);
            seen
        });
        wait_until("the queue to drain", || connection.flush(*now, buffers).unwrap() == Flush::Drained);
        reader.join().unwrap()
    })
}

#[test]
fn a_slow_reader_loses_the_oldest_data_and_no_control_and_framing_holds() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let (sent, control, dropped) = overwhelm(&mut pair, Duration::ZERO, |dropped| dropped.full > 300);
        assert_eq!(dropped.aged, 0);
        assert!(pair.connection.wants_write());
        let seen = read_all(&mut pair, sent, &control);
        assert_eq!(u64::from(seen) + dropped.full, u64::from(sent), "{kind:?}");
        assert!(!pair.connection.wants_write());
    }
}

#[test]
fn a_slow_reader_gets_no_stale_data() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let step = Duration::from_millis(10);
        let (sent, control, dropped) = overwhelm(&mut pair, step, |dropped| dropped.aged > 100);
        assert_eq!(dropped.full, 0, "50 messages of 500 ms do not fill the queue");
        let seen = read_all(&mut pair, sent, &control);
        let more = pair.connection.take_dropped();
        assert_eq!(u64::from(seen) + dropped.aged + more.aged, u64::from(sent), "{kind:?}");
    }
}

#[test]
fn a_client_that_asks_and_does_not_read_is_closed() {
    for kind in KINDS {
        let limits = QueueLimits { queue_bytes_max: 10_000, ..QueueLimits::default() };
        let mut pair = Pair::with_limits(kind, limits);
        let mut sent = 0u32;
        let error = loop {
            match pair.send(Class::Control, &numbered(sent, Class::Control, 500)) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            pair.flush();
        };
        assert_eq!(error, SendError::Overflow);
        assert!(sent as usize > 10_000 / (500 + MESSAGE_COST));
        assert_eq!(pair.send(Class::Control, b"more"), Err(SendError::Closed));
        assert_eq!((pair.fill(), pair.flush()), (Fill::Eof, Flush::Drained));
    }
}

#[test]
fn what_nobody_consumes_is_not_read() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        std::thread::scope(|scope| {
            let (client, bytes) = (&mut pair.client, &sent);
            scope.spawn(move || client.write_all(bytes).unwrap());
            let mut received = Vec::new();
            wait_until("a full buffer", || {
                pair.connection.fill(&mut pair.buffers, usize::MAX, false).unwrap() == Fill::Full
            });
            wait_until("all bytes", || {
                pair.connection.fill(&mut pair.buffers, 100_000, false).unwrap();
                let len = pair.connection.received().len();
                assert!(len <= RECEIVED_BYTES_MAX);
                received.extend_from_slice(&pair.connection.received()[..len.min(20_000)]);
                pair.connection.consume(20_000);
                received.len() == bytes.len()
            });
            assert!(received == *bytes, "{kind:?}");
        });
    }
}

#[test]
fn the_budget_bounds_a_fill() {
    let mut pair = Pair::new(Kind::Plain);
    pair.client.write_all(&[1; 1000]).unwrap();
    wait_until("the bytes", || pair.connection.stream.peek(&mut [0; 1000]).is_ok_and(|n| n == 1000));
    assert_eq!(pair.connection.fill(&mut pair.buffers, 600, false).unwrap(), Fill::Budget);
    assert_eq!(pair.connection.received().len(), 600);
    assert_eq!(pair.connection.fill(&mut pair.buffers, 600, false).unwrap(), Fill::Drained);
}

#[test]
fn a_client_that_half_closes_still_hears() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        pair.client.write_all(b"last words").unwrap();
        if kind != Kind::Plain {
            pair.client.tls().send_close_notify();
            pair.client.flush().unwrap();
        }
        pair.client.socket().shutdown(Shutdown::Write).unwrap();
        wait_until("the end", || pair.connection.fill(&mut pair.buffers, usize::MAX, true).unwrap() == Fill::Eof);
        assert_eq!(pair.connection.received(), b"last words", "{kind:?}");
        pair.send(Class::Control, b"answer").unwrap();
        assert_eq!(pair.flush(), Flush::Drained);
        assert_eq!(pair.client.read_bytes(6), b"answer");
    }
}

#[test]
fn a_tls_client_that_ends_without_close_notify_is_an_end_not_an_error() {
    let mut pair = Pair::new(Kind::Tls13);
    pair.client.write_all(b"bye").unwrap();
    pair.client.socket().shutdown(Shutdown::Write).unwrap();
    wait_until("the end", || pair.connection.fill(&mut pair.buffers, usize::MAX, true).unwrap() == Fill::Eof);
    assert_eq!(pair.connection.received(), b"bye");
}

#[test]
fn close_ends_cleanly() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        pair.connection.close();
        pair.connection.close();
        assert_eq!(pair.client.read(&mut [0; 10]).unwrap(), 0, "{kind:?}");
        assert!(!pair.connection.wants_write());
    }
}

#[test]
fn a_tls_violation_is_an_error_and_the_client_hears_why() {
    let mut pair = Pair::new(Kind::Tls13);
    pair.client
        .socket()
        .write_all(&[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
        .unwrap();
    let mut error = None;
    wait_until("the error", || {
        error = pair.connection.fill(&mut pair.buffers, usize::MAX, true).err();
        error.is_some()
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::InvalidData);
    pair.connection.close();
    let alert = pair.client.read(&mut [0; 10]).unwrap_err();
    assert!(alert.to_string().contains("BadRecordMac"), "{alert}");
}

#[test]
fn a_key_update_is_followed_and_answered() {
    let mut pair = Pair::new(Kind::Tls13);
    for round in 0..3u8 {
        pair.client.tls().refresh_traffic_keys().unwrap();
        pair.client.write_all(&[round; 10]).unwrap();
        pair.fill_until(10);
        assert_eq!(pair.connection.received(), [round; 10]);
        pair.connection.consume(10);
        pair.send(Class::Data, &[round; 20]).unwrap();
        pair.flush();
        assert_eq!(pair.client.read_bytes(20), [round; 20]);
    }
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        pair.client.write_all(&[1; 5000]).unwrap();
        pair.fill_until(5000);
        pair.connection.consume(5000);
        pair.connection.settle(&mut pair.buffers);
        pair.send(Class::Data, &[2; 5000]).unwrap();
        pair.flush();
        assert_eq!(pair.connection.received.capacity(), 0, "{kind:?}");
        assert_eq!(format!("{:?}", pair.connection.queue).matches("store: None").count(), 2);
    }
}

#[test]
fn received_bytes_can_be_taken_out_and_put_back() {
    let mut pair = Pair::new(Kind::Plain);
    pair.client.write_all(b"one two").unwrap();
    pair.fill_until(7);
    let mut taken = pair.connection.take_received();
    assert_eq!(taken.bytes(), b"one two");
    taken.consume(4);
    pair.connection.restore_received(taken, &mut pair.buffers);
    pair.client.write_all(b" three").unwrap();
    pair.fill_until(9);
    assert_eq!(pair.connection.received(), b"two three");
}
