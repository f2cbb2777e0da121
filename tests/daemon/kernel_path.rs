//! The kernel path in the running binary, on the loopback interface, where it has to be asked for.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use ferryd::stun::{AttributeType, Method};
use serde_json::Value;

use crate::admin::json;
use crate::client::{Client, Data, User, udp_transport};
use crate::ferryd::{Config, Ferryd, offload_by};
use crate::metrics::{metric, with_metrics};
use crate::revoke::{SECRET, secret};
use crate::{mobility, place, wait_until};

pub(crate) const CHANNEL: u16 = 0x4001;

/// A ferryd whose data the kernel carries; `None`, and a loud word, where this may not be tried.
pub(crate) fn start(change: impl Fn(&mut Config)) -> Option<Ferryd> {
    let forced = std::env::var("FERRY_TEST_OFFLOAD").unwrap_or("tc".to_owned());
    let ferryd = Ferryd::start(|config| {
        offload_by(config, &forced);
        with_metrics(config);
        change(config);
    });
    // Whoever is root may load programs.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        let log = ferryd.log();
        assert!(log.contains("the kernel carries open channels"), "{log}");
        assert!(forced != "xdp" || log.contains("method=\"xdp\""), "{log}");
        return Some(ferryd);
    }
    eprintln!("NOT TESTED: the kernel path needs root");
    None
}

/// What a client reaches its peer by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Channel,
    Indications,
}

pub(crate) const BOTH: [By; 2] = [By::Channel, By::Indications];

/// A client and a peer whose data the kernel carries.
pub(crate) struct Call {
    pub(crate) client: Client,
    pub(crate) peer: UdpSocket,
    pub(crate) relayed: SocketAddr,
    pub(crate) by: By,
    /// What the peer and the client got: packets and bytes.
    to_peer: [u64; 2],
    to_client: [u64; 2],
}

impl Call {
    pub(crate) fn new(ferryd: &Ferryd, client: Client, by: By) -> Self {
        let mut call = Self::unbound(client, by);
        call.bind();
        call.until_carried(ferryd);
        call
    }

    pub(crate) fn unbound(mut client: Client, by: By) -> Self {
        let relayed = client.allocate();
        Self::at(client, relayed, by)
    }

    fn at(client: Client, relayed: SocketAddr, by: By) -> Self {
        let peer = place::peer();
        peer.set_read_timeout(Some(crate::PATIENCE)).unwrap();
        Self { client, peer, relayed, by, to_peer: [0; 2], to_client: [0; 2] }
    }

    pub(crate) fn peer_address(&self) -> SocketAddr {
        self.peer.local_addr().unwrap()
    }

    /// Opens what the call goes by.
    pub(crate) fn bind(&mut self) {
        let peer = self.peer_address();
        match self.by {
            By::Channel => self.client.bind_channel(CHANNEL, peer).unwrap(),
            By::Indications => self.client.permit(peer).unwrap(),
        }
    }

    /// Sends both ways until the kernel has carried a packet: flows are made behind the success response, or behind the
    /// first indication, and it has to have seen both ends.
    pub(crate) fn until_carried(&mut self, ferryd: &Ferryd) {
        let before = carried(ferryd);
        wait_until("the kernel carries the call", || {
            self.there(b"probe");
            self.back(b"probe");
            carried(ferryd) > before
        });
    }

    pub(crate) fn send(&mut self, data: &[u8]) {
        match self.by {
            By::Channel => self.client.send_by_channel(CHANNEL, data),
            By::Indications => self.client.send_by_indication(self.peer_address(), data),
        }
    }

    pub(crate) fn there(&mut self, data: &[u8]) {
        self.send(data);
        let mut buffer = vec![0; 65_536];
        let (len, from) = self.peer.recv_from(&mut buffer).expect("the peer hears the client");
        assert_eq!((&buffer[..len], from), (data, self.relayed));
        self.to_peer = [self.to_peer[0] + 1, self.to_peer[1] + len as u64];
    }

    pub(crate) fn back(&mut self, data: &[u8]) {
        let bytes = self.raw_back(data);
        let expected = match self.by {
            By::Channel => Data::Channel(CHANNEL, data.to_vec()),
            By::Indications => Data::Indication(self.peer_address(), data.to_vec()),
        };
        assert_eq!(Data::parse(&bytes), expected);
    }

    /// What the client gets when the peer sends this.
    pub(crate) fn raw_back(&mut self, data: &[u8]) -> Vec<u8> {
        self.peer.send_to(data, self.relayed).unwrap();
        self.to_client = [self.to_client[0] + 1, self.to_client[1] + data.len() as u64];
        self.client.next()
    }

    /// Whether these are the numbers of a session or a record.
    pub(crate) fn is_counted_by(&self, value: &Value) -> bool {
        let fields = ["packets_to_peers", "bytes_to_peers", "packets_to_client", "bytes_to_client"];
        fields.iter().zip(self.to_peer.iter().chain(&self.to_client)).all(|(field, count)| value[field] == *count)
    }
}

pub(crate) fn carried(ferryd: &Ferryd) -> u64 {
    metric(ferryd, "ferryd_packets_total{direction=\"to_peer\",datapath=\"kernel\"}")
}

fn relayed(ferryd: &Ferryd, what: &str, direction: &str) -> [u64; 2] {
    ["sockets", "kernel"].map(|datapath| {
        let labels = format!("direction=\"{direction}\",transport=\"udp\",datapath=\"{datapath}\"");
        metric(ferryd, &format!("ferryd_relayed_{what}_total{{{labels}}}"))
    })
}

pub(crate) fn session_of(ferryd: &Ferryd, call: &Call) -> Value {
    session_at(ferryd, call.relayed)
}

/// The live session with a relayed address.
fn session_at(ferryd: &Ferryd, relayed: SocketAddr) -> Value {
    let listing = json(ferryd, &["sessions"]);
    let relayed = relayed.to_string();
    let of_call = |session: &&Value| session["relayed"][0] == relayed;
    listing["sessions"].as_array().unwrap().iter().find(of_call).cloned().unwrap_or_default()
}

#[test]
fn sessions_metrics_and_records_have_what_was_on_the_wire() {
    let Some(ferryd) = start(|config| {
        let file = config.directory.join("records.jsonl");
        config.text("sessions.file", file.display());
    }) else {
        return;
    };
    let call = |index: usize| Call::new(&ferryd, Client::udp(ferryd.address()), BOTH[index % 2]);
    let mut calls: Vec<_> = (0..20).map(call).collect();
    for round in 0..50 {
        for (index, call) in calls.iter_mut().enumerate() {
            // Some are too large for a datagram of the interface and go by the sockets.
            let len = if (round + index) % 25 == 0 { 65_000 } else { (round * 31 + index * 7) % 1400 };
            call.there(&vec![round as u8; len]);
            call.back(&vec![index as u8; len / 2]);
        }
    }
    for call in &calls {
        wait_until("the session has every packet while it is live", || call.is_counted_by(&session_of(&ferryd, call)));
        let session = session_of(&ferryd, call);
        assert_eq!(session["datapath"], "kernel");
        let detail = json(&ferryd, &["session", session["id"].as_str().unwrap()]);
        assert!(call.is_counted_by(&detail), "{detail}");
    }
    let sums = |way: fn(&Call) -> [u64; 2]| -> [u64; 2] {
        [0, 1].map(|field| calls.iter().map(|call| way(call)[field]).sum())
    };
    let (to_peers, to_clients) = (sums(|call| call.to_peer), sums(|call| call.to_client));
    let check = |ferryd: &Ferryd| {
        for (direction, wire) in [("to_peers", to_peers), ("to_clients", to_clients)] {
            for (what, wire) in [("packets", wire[0]), ("bytes", wire[1])] {
                let [sockets, kernel] = relayed(ferryd, what, direction);
                assert_eq!(sockets + kernel, wire, "{what} {direction}");
                assert!(sockets > 0 && kernel > 0, "{what} {direction}: {sockets} and {kernel}");
            }
        }
    };
    check(&ferryd);
    // Half of them end: records are exact and nothing is counted back.
    for call in &mut calls[..10] {
        call.client.refresh(0).unwrap();
    }
    let file = ferryd.config.directory.join("records.jsonl");
    wait_until("the records", || fs::read_to_string(&file).unwrap_or_default().lines().count() == 10);
    let records = fs::read_to_string(&file).unwrap();
    let records: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for call in &calls[..10] {
        let relayed = call.relayed.to_string();
        let record = records.iter().find(|record| record["relayed"][0] == relayed).unwrap();
        assert!(call.is_counted_by(record) && record["datapath"] == "kernel", "{record}");
    }
    check(&ferryd);
    assert_eq!(metric(&ferryd, "ferryd_offload_flows"), 10);
}

#[test]
fn a_session_whose_peer_is_silent_is_on_the_sockets() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::unbound(Client::udp(ferryd.address()), By::Indications);
    call.bind();
    call.there(b"by the sockets");
    let session = session_of(&ferryd, &call);
    assert_eq!((&session["datapath"], &session["packets_to_peers"]), (&"sockets".into(), &1.into()));
}

/// Where the kernel path is forced on every test (FERRY_TEST_OFFLOAD), converses until it has a UDP client's channel: order
/// is kept within a data path, and not from one to the other.
pub(crate) fn settle(ferryd: &Ferryd, relayed: SocketAddr, mut converse: impl FnMut()) {
    let session = || session_at(ferryd, relayed);
    if std::env::var_os("FERRY_TEST_OFFLOAD").is_none() || session()["transport"] != "udp" {
        return;
    }
    wait_until("the kernel has the channel", || {
        converse();
        session()["datapath"] == "kernel"
    });
}

/// Neither end hears of the other any more.
pub(crate) fn assert_cut(call: &mut Call, what: &str) {
    call.send(b"too late");
    call.peer.send_to(b"too late", call.relayed).unwrap();
    // What the kernel carries has arrived by now, and what a worker has got is dealt with before it answers.
    (0..2).for_each(|_| _ = call.client.bind());
    call.peer.set_nonblocking(true).unwrap();
    let heard = call.peer.recv(&mut [0; 64]);
    assert!(heard.is_err(), "{what}: the peer hears the client");
    assert!(call.client.has_nothing_early(), "{what}: the client hears the peer");
    call.peer.set_nonblocking(false).unwrap();
}

#[test]
fn an_end_of_an_allocation_is_an_end_in_the_kernel_at_once() {
    let Some(ferryd) = start(|_| {}) else { return };
    for end in ["release", "evict", "revoke"] {
        let mut calls = BOTH.map(|by| Call::new(&ferryd, Client::udp(ferryd.address()), by));
        for call in &mut calls {
            match end {
                "release" => _ = call.client.refresh(0).unwrap(),
                "evict" => {
                    let id = session_at(&ferryd, call.relayed)["id"].as_str().unwrap().to_owned();
                    ferryd.verb(&["evict", &id]).expect_success();
                }
                _ => _ = ferryd.verb(&["revoke", "alice"]).expect_success(),
            }
            assert_cut(call, &format!("{end}, {:?}", call.by));
        }
        wait_until("no flow is left", || metric(&ferryd, "ferryd_offload_flows") == 0);
    }
}

#[test]
fn an_allocation_that_expires_takes_its_flow_with_it() {
    let Some(ferryd) = start(|config| {
        config.text("relay.lifetime-default", "2s").text("relay.lifetime-max", "2s");
    }) else {
        return;
    };
    let calls = BOTH.map(|by| Call::new(&ferryd, Client::udp(ferryd.address()), by));
    wait_until("both allocations to expire", || ferryd.log().matches("reason=\"expired\"").count() == 2);
    // Its record is written when nothing is on its way any more.
    assert_eq!(metric(&ferryd, "ferryd_offload_flows"), 0);
    for mut call in calls {
        assert_cut(&mut call, "expiry");
    }
}

/// What the limit on data has dropped: in all, and in the kernel.
fn beyond_the_rate(ferryd: &Ferryd) -> [u64; 2] {
    ["ferryd_dropped_total", "ferryd_offload_dropped_total"]
        .map(|name| metric(ferryd, &format!("{name}{{reason=\"data_rate\"}}")))
}

/// Sends so many at once and returns how many arrive, when each of them has arrived or is counted as dropped.
fn flood(ferryd: &Ferryd, call: &mut Call, count: u64) -> u64 {
    let [before, _] = beyond_the_rate(ferryd);
    for _ in 0..count {
        call.client.send_by_channel(CHANNEL, b"flood");
    }
    call.peer.set_nonblocking(true).unwrap();
    let mut arrived = 0;
    wait_until("each to arrive or to be counted", || {
        while call.peer.recv(&mut [0; 64]).is_ok() {
            arrived += 1;
        }
        let [dropped, _] = beyond_the_rate(ferryd);
        assert!(arrived + dropped - before <= count, "{arrived} and {dropped} since {before} of {count}");
        arrived + dropped - before == count
    });
    call.peer.set_nonblocking(false).unwrap();
    call.to_peer = [call.to_peer[0] + arrived, call.to_peer[1] + arrived * 5];
    arrived
}

#[test]
fn the_kernel_carries_metered_calls_at_their_rate_and_the_excess_is_counted() {
    const RATE: u64 = 50;
    let Some(mut ferryd) = start(|config| _ = config.set("limits.allocation-packets-per-second", 100_000)) else {
        return;
    };
    let mut call = Call::new(&ferryd, Client::udp(ferryd.address()), By::Channel);
    // Another rate is another store: the flow stays.
    ferryd.reload(|config| _ = config.set("limits.allocation-packets-per-second", RATE));
    wait_until("the new rate to be in force", || flood(&ferryd, &mut call, 100) < 100);
    assert_eq!(metric(&ferryd, "ferryd_offload_flows"), 1);
    let before = carried(&ferryd);
    let (began, mut sent, mut arrived) = (Instant::now(), 0, 0);
    while arrived < RATE + RATE / 2 {
        sent += 100;
        arrived += flood(&ferryd, &mut call, 100);
        let most = RATE + (began.elapsed().as_secs_f64() * RATE as f64).ceil() as u64;
        assert!(arrived <= most, "{arrived} of {sent} have arrived, at most {most} were to");
        assert!(began.elapsed() < crate::PATIENCE, "{arrived} of {sent} have arrived");
    }
    // One every 15 seconds goes by the sockets.
    assert!(carried(&ferryd) >= before + arrived * 9 / 10, "the kernel carries them");
    let [dropped, in_kernel] = beyond_the_rate(&ferryd);
    assert!(in_kernel > dropped * 9 / 10, "the kernel drops {in_kernel} of {dropped}");
    wait_until("the session has what has arrived", || call.is_counted_by(&session_of(&ferryd, &call)));
    // The other direction has buckets of its own, and what goes by the sockets takes from the same ones.
    call.back(b"the other direction");
    ferryd.reload(|config| {
        config.unset("limits.allocation-packets-per-second").set("limits.allocation-bytes-per-second", 1);
    });
    wait_until("the new rate to be in force", || flood(&ferryd, &mut call, 100) < 100);
    let [before, _] = beyond_the_rate(&ferryd);
    call.client.send_by_indication(call.peer.local_addr().unwrap(), &[0; 100]);
    wait_until("the sockets to drop it", || beyond_the_rate(&ferryd)[0] == before + 1);
    assert_eq!(metric(&ferryd, "ferryd_offload_flows"), 1);
    ferryd.reload(|config| _ = config.unset("limits.allocation-bytes-per-second"));
    wait_until("no limit to be in force", || flood(&ferryd, &mut call, 100) == 100);
    call.until_carried(&ferryd);
}

#[test]
fn a_reload_takes_back_what_a_user_shares_or_is_not_allowed_any_more() {
    let Some(mut ferryd) = start(|config| _ = config.set("auth.shared-secrets", format!("[\"{SECRET}\"]"))) else {
        return;
    };
    // Static users may be many people.
    let carol = User::minted(&secret(), 3600, Some("carol"));
    let mut call = Call::new(&ferryd, Client::udp(ferryd.address()).with(carol), By::Channel);
    ferryd.reload(|config| _ = config.set("limits.user-packets-per-second", 100_000));
    wait_until("no flow is left", || metric(&ferryd, "ferryd_offload_flows") == 0);
    let before = carried(&ferryd);
    for _ in 0..10 {
        call.there(b"metered");
        call.back(b"metered");
    }
    call.bind();
    call.there(b"metered");
    assert_eq!(carried(&ferryd), before, "the sockets meter");
    ferryd.reload(|config| _ = config.unset("limits.user-packets-per-second"));
    wait_until("the kernel to have it again, with a refresh of the channel", || {
        call.bind();
        metric(&ferryd, "ferryd_offload_flows") == 1
    });
    call.until_carried(&ferryd);
    if place::namespace().is_some() {
        // On another host it is not reached any more when its permission ends.
        return;
    }
    ferryd.reload(|config| _ = config.set("peers.allow", "[\"127.9.9.9\"]"));
    wait_until("no flow is left", || metric(&ferryd, "ferryd_offload_flows") == 0);
    call.client.send_by_channel(CHANNEL, b"not allowed");
    (0..2).for_each(|_| _ = call.client.bind());
    call.peer.set_nonblocking(true).unwrap();
    assert!(call.peer.recv(&mut [0; 64]).is_err(), "the peer is not allowed any more");
    let session = session_of(&ferryd, &call);
    assert!(call.is_counted_by(&session), "{session}");
}

#[test]
fn calls_go_on_in_the_kernel_while_the_daemon_drains_and_end_with_it() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::new(&ferryd, Client::udp(ferryd.address()), By::Channel);
    ferryd.verb(&["drain"]).expect_success();
    call.until_carried(&ferryd);
    ferryd.verb(&["drain", "--deadline", "1s"]).expect_success();
    let ended = ferryd.ended();
    let (packets, bytes) = (call.to_client[0], call.to_client[1]);
    let counted = format!("packets_to_client={packets} bytes_to_client={bytes} datapath=\"kernel\"");
    assert!(ended.stderr.contains(&counted), "{counted} is missing in:\n{}", ended.stderr);
    call.client.send_by_channel(CHANNEL, b"too late");
    call.peer.set_nonblocking(true).unwrap();
    assert!(call.peer.recv(&mut [0; 64]).is_err(), "nobody carries it");
}

#[test]
fn a_client_that_moves_takes_its_flow_along() {
    let Some(ferryd) = start(|config| _ = config.set("extensions.mobility", true).set("workers", 4)) else { return };
    for by in BOTH {
        let mut client = Client::udp(ferryd.address());
        let answer = client.request(Method::Allocate, |builder| {
            udp_transport(builder);
            builder.attribute(AttributeType::MOBILITY_TICKET, &[]);
        });
        let mut ticket = mobility::ticket(&answer);
        let mut call = Call::at(client, answer.address(AttributeType::XOR_RELAYED_ADDRESS), by);
        call.bind();
        for place in 0..4 {
            call.until_carried(&ferryd);
            let mut next = Client::udp(ferryd.address());
            ticket = mobility::ticket(&mobility::come_back(&mut next, &ticket));
            let mut left = std::mem::replace(&mut call.client, next);
            // The first that comes from there takes the allocation along.
            call.there(b"from here");
            call.back(b"and back");
            call.until_carried(&ferryd);
            std::mem::swap(&mut call.client, &mut left);
            call.send(b"from where it was");
            (0..2).for_each(|_| _ = call.client.bind());
            std::mem::swap(&mut call.client, &mut left);
            call.peer.set_nonblocking(true).unwrap();
            assert!(call.peer.recv(&mut [0; 64]).is_err(), "{by:?}, place {place}: the old address is nobody's");
            call.peer.set_nonblocking(false).unwrap();
        }
        wait_until("every packet is counted", || call.is_counted_by(&session_of(&ferryd, &call)));
    }
}

/// The privilege for buffers beyond the host's limits is one of those that workers give up.
#[test]
fn relay_sockets_have_their_buffers_all_the_same() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut client = Client::udp(ferryd.address());
    let relayed = client.allocate();
    wait_until("the relay socket has what it was to have", || {
        let sizes = sockets_of(ferryd.id()).find(|socket| socket.local_addr().is_ok_and(|address| address == relayed));
        let sizes = ferryd::net::socket::buffer_sizes(&sizes.expect("a relay socket")).unwrap();
        sizes == ferryd::net::socket::UdpOptions::RELAY
    });
}

/// Every socket of a process.
fn sockets_of(process: u32) -> impl Iterator<Item = UdpSocket> {
    // SAFETY: both calls touch no memory; what they return is a descriptor of this process, or an error.
    let process_fd = unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, process, 0) as RawFd) };
    let names = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let numbers: Vec<i32> = names
        .filter(|name| {
            let target = fs::read_link(name.as_ref().unwrap().path());
            target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        })
        .map(|name| name.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    numbers.into_iter().filter_map(move |number| {
        // SAFETY: as above.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process_fd.as_raw_fd(), number, 0) as RawFd };
        // SAFETY: a new descriptor that nobody else has.
        (fd >= 0).then(|| unsafe { UdpSocket::from_raw_fd(fd) })
    })
}

#[test]
fn an_interface_that_is_named_and_not_there_is_told() {
    let interfaces = format!("[\"{}\", \"ferry-none\"]", place::interface());
    let Some(ferryd) = start(|config| _ = config.set("data-path.offload-interfaces", &interfaces)) else { return };
    let log = ferryd.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("missing, down or no Ethernet")).collect();
    assert!(matches!(told[..], [line] if line.contains("WARN") && line.contains("\"ferry-none\"")), "{log}");
}
