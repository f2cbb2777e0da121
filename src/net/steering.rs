//! Several receive queues behind one UDP port: the kernel puts each datagram into the queue of its worker and class.
//!
//! A classic BPF program chooses among the sockets of a `SO_REUSEPORT` group. It needs no privilege. It knows first bytes
//! and lengths, and what those mean is told by its [`Rule`]s. The worker is chosen by a seeded hash of source address
//! and port, so that a client reaches the same worker whatever it sends.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

use super::socket::{OpenError, UdpOptions, open_udp_listeners, resize_receive_buffer};
use crate::address::Family;

/// Queues of one class, among which a worker's clients are spread by their hash: who floods one disturbs that one.
const LARGE_CLASS_QUEUES: u32 = 2;

/// Which queue a datagram waits in. The order is that of the sockets of one worker in their group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// What no rule names.
    Rest,
    /// Little, and not to be lost.
    Few,
    /// Much: one of several sockets.
    Many,
}

/// The 16 bits that a datagram begins with, and what must follow, for a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub begins: RangeInclusive<u16>,
    pub then: Then,
    pub queue: Queue,
}

/// What must follow behind the first 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Whatever there is.
    Anything,
    /// At byte 4, this number.
    Number(u32),
    /// At byte 2, a length of what is behind byte 4, all of which is there.
    Length,
}

/// The sockets of one worker on one address.
#[derive(Debug)]
pub struct Queues {
    /// At least one.
    pub many: Vec<UdpSocket>,
    /// None where the kernel does not steer: then all is in `many`.
    pub few: Option<UdpSocket>,
    pub rest: Option<UdpSocket>,
}

impl Queues {
    /// One socket for everything.
    pub fn one(socket: UdpSocket) -> Self {
        Self { many: vec![socket], few: None, rest: None }
    }
}

/// Opens the sockets of `workers` (at least one) on `address`, each with queues of its own; datagrams that no rule names
/// wait in a buffer of `rest_buffer_bytes`.
///
/// Where the kernel refuses the program, each worker has one socket for everything, and the reason is returned as well.
pub fn open_steered(
    address: SocketAddr,
    workers: usize,
    rules: &[Rule],
    seed: u64,
    options: &UdpOptions,
    rest_buffer_bytes: usize,
) -> Result<(Vec<Queues>, Option<io::Error>), OpenError> {
    let per_worker = 2 + LARGE_CLASS_QUEUES as usize;
    let group = open_udp_listeners(address, workers * per_worker, options)?;
    let program = program(Family::of(address.ip()), workers as u32, rules, seed);
    if let Err(error) = attach(&group[0], &program) {
        drop(group);
        let plain = open_udp_listeners(address, workers, options)?;
        return Ok((plain.into_iter().map(Queues::one).collect(), Some(error)));
    }
    let mut sockets = group.into_iter();
    let queues = (0..workers).map(|_| {
        let (rest, few) = (sockets.next(), sockets.next());
        if let Some(rest) = &rest {
            // What it has already does as well.
            let _ = resize_receive_buffer(rest, rest_buffer_bytes);
        }
        Queues { many: sockets.by_ref().take(LARGE_CLASS_QUEUES as usize).collect(), few, rest }
    });
    Ok((queues.collect(), None))
}

/// The program, whose answer is the index of a socket in its group; what it cannot read goes to the first one.
///
/// The kernel runs it with the datagram's payload at offset 0; headers are read from `SKF_NET_OFF` on.
fn program(family: Family, workers: u32, rules: &[Rule], seed: u64) -> Vec<libc::sock_filter> {
    let mut code = hash(family, seed);
    // The hash is in A: its rest by the workers is the worker, and of its quotient by them the rest is the queue.
    code.extend([
        op(TAX, 0),
        op(MOD, workers),
        op(MUL, 2 + LARGE_CLASS_QUEUES),
        op(STORE, WORKER),
        op(TXA, 0),
        op(DIV, workers),
        op(MOD, LARGE_CLASS_QUEUES),
        op(ADD, 2),
        op(STORE, MANY),
    ]);
    for rule in rules {
        code.extend(block(rule));
    }
    code.extend([op(LOAD_MEMORY, WORKER), op(RETURN_A, 0)]);
    code
}

/// The steps of one rule, at whose end the next begins.
fn block(rule: &Rule) -> Vec<libc::sock_filter> {
    let mut block = Block::default();
    block.step(LOAD_HALF, 0);
    block.go_on_if(JUMP_NOT_LESS, u32::from(*rule.begins.start()));
    block.go_on_unless(JUMP_GREATER, u32::from(*rule.begins.end()));
    match rule.then {
        Then::Anything => {}
        Then::Number(number) => {
            block.step(LOAD_WORD, 4);
            block.go_on_if(JUMP_EQUAL, number);
        }
        Then::Length => {
            block.step(LOAD_HALF, 2);
            block.step(TAX, 0);
            block.step(LOAD_LENGTH, 0);
            block.step(SUB, 4);
            block.go_on_if(JUMP_NOT_LESS_X, 0);
        }
    }
    match rule.queue {
        Queue::Rest => block.step(LOAD_X, 0),
        Queue::Few => block.step(LOAD_X, 1),
        Queue::Many => block.step(LOAD_X_MEMORY, MANY),
    }
    block.step(LOAD_MEMORY, WORKER);
    block.step(ADD_X, 0);
    block.step(RETURN_A, 0);
    block.finish()
}

/// A hash of source address and port into A.
///
/// Not a strong one, but nobody sees what comes out: the seed is random, and who finds two addresses of one worker all the
/// same burdens one worker.
fn hash(family: Family, seed: u64) -> Vec<libc::sock_filter> {
    // An odd multiplier loses nothing.
    let (seed, multiplier) = (seed as u32, (seed >> 32) as u32 | 1);
    let words: &[u32] = match family {
        Family::V4 => &[12],
        Family::V6 => &[8, 12, 16, 20],
    };
    let mut code = match family {
        // The length of the IPv4 header is in its first byte. IPv6 extension headers are so rare that the number that
        // stands in place of the port may as well be another one.
        Family::V4 => vec![op(LOAD_X_HEADER, NET), op(LOAD_HALF_AT_X, NET)],
        Family::V6 => vec![op(LOAD_HALF, NET + 40)],
    };
    code.extend([op(XOR, seed), op(MUL, multiplier)]);
    for word in words {
        code.extend([op(TAX, 0), op(LOAD_WORD, NET + word), op(XOR_X, 0)]);
        // The upper half of a product depends on all bits below.
        code.extend([op(MUL, multiplier), op(TAX, 0), op(RIGHT, 15), op(XOR_X, 0)]);
    }
    code.extend([op(MUL, 0x9E37_79B1), op(TAX, 0), op(RIGHT, 16), op(XOR_X, 0)]);
    code
}

/// Steps that end with the answer or go on behind them.
#[derive(Default)]
struct Block {
    code: Vec<libc::sock_filter>,
    /// Jumps to the end, and whether they do so when they hold.
    leaving: Vec<(usize, bool)>,
}

impl Block {
    fn step(&mut self, code: u32, k: u32) {
        self.code.push(op(code, k));
    }

    fn go_on_if(&mut self, code: u32, k: u32) {
        self.leaving.push((self.code.len(), false));
        self.step(code, k);
    }

    fn go_on_unless(&mut self, code: u32, k: u32) {
        self.leaving.push((self.code.len(), true));
        self.step(code, k);
    }

    fn finish(mut self) -> Vec<libc::sock_filter> {
        let end = self.code.len();
        for (index, when_it_holds) in self.leaving {
            let distance = (end - index - 1) as u8;
            let step = &mut self.code[index];
            *(if when_it_holds { &mut step.jt } else { &mut step.jf }) = distance;
        }
        self.code
    }
}

/// Where the network header begins, for loads.
const NET: u32 = libc::SKF_NET_OFF as u32;
/// Words of the program's memory: the index of the worker's first socket, and which of its sockets [`Queue::Many`] is.
const WORKER: u32 = 0;
const MANY: u32 = 1;

const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_HALF_AT_X: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const LOAD_LENGTH: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_LEN;
const LOAD_MEMORY: u32 = libc::BPF_LD | libc::BPF_MEM;
const LOAD_X: u32 = libc::BPF_LDX | libc::BPF_IMM;
const LOAD_X_MEMORY: u32 = libc::BPF_LDX | libc::BPF_MEM;
/// Four times the lower half of a byte: the length of an IPv4 header.
const LOAD_X_HEADER: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const STORE: u32 = libc::BPF_ST;
const TAX: u32 = libc::BPF_MISC | libc::BPF_TAX;
const TXA: u32 = libc::BPF_MISC | libc::BPF_TXA;
const ADD: u32 = libc::BPF_ALU | libc::BPF_ADD;
const ADD_X: u32 = ADD | libc::BPF_X;
const SUB: u32 = libc::BPF_ALU | libc::BPF_SUB;
const MUL: u32 = libc::BPF_ALU | libc::BPF_MUL;
const DIV: u32 = libc::BPF_ALU | libc::BPF_DIV;
const MOD: u32 = libc::BPF_ALU | libc::BPF_MOD;
const XOR: u32 = libc::BPF_ALU | libc::BPF_XOR;
const XOR_X: u32 = XOR | libc::BPF_X;
const RIGHT: u32 = libc::BPF_ALU | libc::BPF_RSH;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ;
const JUMP_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT;
const JUMP_NOT_LESS: u32 = libc::BPF_JMP | libc::BPF_JGE;
const JUMP_NOT_LESS_X: u32 = JUMP_NOT_LESS | libc::BPF_X;
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

const fn op(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Gives the program to the group of a socket.
fn attach(socket: &UdpSocket, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the descriptor is borrowed for the call; the kernel copies the program, which outlives the call, and does
    // not write to it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use super::*;
    use crate::net::test_support::wait_until;

    const RULES: [Rule; 4] = [
        Rule { begins: 0x17FE..=0x17FE, then: Then::Anything, queue: Queue::Many },
        Rule { begins: 0x4000..=0x4FFF, then: Then::Length, queue: Queue::Many },
        Rule { begins: 0x0016..=0x0016, then: Then::Number(0x2112_A442), queue: Queue::Many },
        Rule { begins: 0x0008..=0x0009, then: Then::Number(0x2112_A442), queue: Queue::Few },
    ];

    fn open(address: &str, workers: usize) -> (Vec<Queues>, u16) {
        let options = UdpOptions::default();
        let (queues, refused) =
            open_steered(address.parse().unwrap(), workers, &RULES, 0x1234_5678_9ABC_DEF1, &options, 1 << 16).unwrap();
        assert!(refused.is_none(), "{refused:?}");
        let port = queues[0].many[0].local_addr().unwrap().port();
        (queues, port)
    }

    /// The worker, the queue and the number of the socket that a datagram of `bytes` is found at.
    fn arrives(queues: &[Queues], client: &UdpSocket, to: (IpAddr, u16), bytes: &[u8]) -> (usize, Queue, usize) {
        client.send_to(bytes, to).unwrap();
        let mut found = None;
        wait_until(|| {
            for (worker, queues) in queues.iter().enumerate() {
                let rest = queues.rest.iter().map(|socket| (Queue::Rest, 0, socket));
                let few = queues.few.iter().map(|socket| (Queue::Few, 0, socket));
                let many = queues.many.iter().enumerate().map(|(number, socket)| (Queue::Many, number, socket));
                for (queue, number, socket) in rest.chain(few).chain(many) {
                    let mut buffer = [0; 2048];
                    if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                        assert_eq!((&buffer[..len], from), (bytes, client.local_addr().unwrap()));
                        found = Some((worker, queue, number));
                    }
                }
            }
            found.is_some()
        });
        found.unwrap()
    }

    fn stun(message_type: u16) -> Vec<u8> {
        let mut bytes = message_type.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn each_class_has_its_queue_and_a_client_has_one_worker() {
        for (any, loopback) in [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "::1"), ("127.0.0.1:0", "127.0.0.1")] {
            let (queues, port) = open(any, 3);
            let to = (loopback.parse().unwrap(), port);
            let mut seen: HashMap<(usize, usize), u32> = HashMap::new();
            for _ in 0..60 {
                let client = UdpSocket::bind((loopback, 0)).unwrap();
                let (worker, queue, number) = arrives(&queues, &client, to, b"\x40\x00\x00\x02hi\0\0");
                assert_eq!(queue, Queue::Many);
                *seen.entry((worker, number)).or_default() += 1;
                let find = |bytes: &[u8]| arrives(&queues, &client, to, bytes);
                assert_eq!(find(b"\x4f\xff\x00\x00"), (worker, Queue::Many, number));
                assert_eq!(find(b"\x17\xfe\xfd"), (worker, Queue::Many, number), "data in DTLS");
                assert_eq!(find(b"\x16\xfe\xfd"), (worker, Queue::Rest, 0), "a handshake");
                assert_eq!(find(&stun(0x0016)), (worker, Queue::Many, number), "Send");
                assert_eq!(find(&stun(0x0008)), (worker, Queue::Few, 0), "CreatePermission");
                assert_eq!(find(&stun(0x0009)), (worker, Queue::Few, 0), "ChannelBind");
                assert_eq!(find(&stun(0x0003)), (worker, Queue::Rest, 0), "Allocate");
                assert_eq!(find(b"\x40\x00\x00\x03hi"), (worker, Queue::Rest, 0), "a length that is not there");
                assert_eq!(find(b"\x00\x16\x00\x00no cookie"), (worker, Queue::Rest, 0));
                assert_eq!(find(b"\x50\x00\x00\x00"), (worker, Queue::Rest, 0));
            }
            // A queue without any of 60 clients: 6 x (5/6)^60, one in 9000 seeds; this one is fixed, ports are not.
            assert!(seen.len() >= 5, "{seen:?}");
            let client = UdpSocket::bind((loopback, 0)).unwrap();
            for short in [&b""[..], b"\x40", b"\x40\x00", b"\x40\x00\x00", b"\x00\x16\x00\x00\x21"] {
                let (_, queue, _) = arrives(&queues, &client, to, short);
                assert_eq!(queue, Queue::Rest, "{short:?}");
            }
        }
    }

    #[test]
    fn one_worker_has_queues_as_well() {
        let (queues, port) = open("127.0.0.1:0", 1);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = ("127.0.0.1".parse().unwrap(), port);
        assert_eq!(arrives(&queues, &client, to, b"\x40\x00\x00\x00").1, Queue::Many);
        assert_eq!(arrives(&queues, &client, to, &stun(0x0001)).1, Queue::Rest);
    }

    #[test]
    fn clients_spread_evenly_whatever_differs_between_them() {
        for seed in [0, 1, 0x1234_5678_9ABC_DEF1, u64::MAX] {
            let options = UdpOptions::default();
            let address = "127.0.0.1:0".parse().unwrap();
            let (queues, _) = open_steered(address, 4, &RULES, seed, &options, 1 << 16).unwrap();
            let port = queues[0].many[0].local_addr().unwrap().port();
            let to = ("127.0.0.1".parse().unwrap(), port);
            let mut seen = [0; 4];
            for client in 0..400_u32 {
                // Half of them differ in their address alone.
                let ip = if client % 2 == 0 { IpAddr::from((0x7F00_0002 + client).to_be_bytes()) } else { to.0 };
                let port = if client % 2 == 0 { 40_000 + (seed as u16 % 1000) } else { 0 };
                let Ok(client) = UdpSocket::bind((ip, port)) else { continue };
                seen[arrives(&queues, &client, to, b"\x40\x00\x00\x00").0] += 1;
            }
            // 100 each on the average; 50 is six standard deviations away.
            assert!(seen.iter().all(|count| (50..=160).contains(count)), "{seed:x}: {seen:?}");
        }
    }

    #[test]
    fn where_the_kernel_refuses_the_program_each_worker_has_one_socket() {
        // A rule too many: the kernel takes 4096 steps.
        let rules: Vec<Rule> = std::iter::repeat_n(RULES[0].clone(), 1000).collect();
        let options = UdpOptions::default();
        let (queues, refused) = open_steered("127.0.0.1:0".parse().unwrap(), 2, &rules, 1, &options, 1 << 16).unwrap();
        assert!(refused.is_some());
        assert_eq!(queues.len(), 2);
        assert!(queues.iter().all(|it| it.many.len() == 1 && it.few.is_none() && it.rest.is_none()));
    }
}
