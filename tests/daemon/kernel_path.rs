//! The kernel path in the running binary, on the loopback interface, where it has to be asked for.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::admin::json;
use crate::client::{Client, Data};
use crate::ferryd::{Config, Ferryd};
use crate::metrics::{metric, with_metrics};
use crate::wait_until;

const CHANNEL: u16 = 0x4001;

/// A ferryd whose channels the kernel carries; `None`, and a loud word, where this may not be tried.
fn start(change: impl Fn(&mut Config)) -> Option<Ferryd> {
    let ferryd = Ferryd::start(|config| {
        config.text("data-path.offload", "tc").set("data-path.offload-interfaces", "[\"lo\"]");
        with_metrics(config);
        change(config);
    });
    // Whoever is root may load programs.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        assert!(ferryd.log().contains("the kernel carries open channels"), "{}", ferryd.log());
        return Some(ferryd);
    }
    eprintln!("NOT TESTED: the kernel path needs root");
    None
}

/// A client with a channel to a peer that the kernel carries.
struct Call {
    client: Client,
    peer: UdpSocket,
    relayed: SocketAddr,
    /// What the peer and the client got: packets and bytes.
    to_peer: [u64; 2],
    to_client: [u64; 2],
}

impl Call {
    fn new(ferryd: &Ferryd, client: Client) -> Self {
        let mut call = Self::unbound(client);
        call.bind();
        call.until_carried(ferryd);
        call
    }

    fn unbound(mut client: Client) -> Self {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(crate::PATIENCE)).unwrap();
        let relayed = client.allocate();
        Self { client, peer, relayed, to_peer: [0; 2], to_client: [0; 2] }
    }

    fn bind(&mut self) {
        self.client.bind_channel(CHANNEL, self.peer.local_addr().unwrap()).unwrap();
    }

    /// Sends both ways until the kernel has carried a packet: flows are made behind the success response, and it has to have
    /// seen both ends.
    fn until_carried(&mut self, ferryd: &Ferryd) {
        let before = carried(ferryd);
        wait_until("the kernel carries the channel", || {
            self.there(b"probe");
            self.back(b"probe");
            carried(ferryd) > before
        });
    }

    fn there(&mut self, data: &[u8]) {
        self.client.send_by_channel(CHANNEL, data);
        let mut buffer = vec![0; 65_536];
        let (len, from) = self.peer.recv_from(&mut buffer).expect("the peer hears the client");
        assert_eq!((&buffer[..len], from), (data, self.relayed));
        self.to_peer = [self.to_peer[0] + 1, self.to_peer[1] + len as u64];
    }

    fn back(&mut self, data: &[u8]) {
        self.peer.send_to(data, self.relayed).unwrap();
        assert_eq!(self.client.receive(), Data::Channel(CHANNEL, data.to_vec()));
        self.to_client = [self.to_client[0] + 1, self.to_client[1] + data.len() as u64];
    }

    /// Whether these are the numbers of a session or a record.
    fn is_counted_by(&self, value: &Value) -> bool {
        let fields = ["packets_to_peers", "bytes_to_peers", "packets_to_client", "bytes_to_client"];
        fields.iter().zip(self.to_peer.iter().chain(&self.to_client)).all(|(field, count)| value[field] == *count)
    }
}

fn carried(ferryd: &Ferryd) -> u64 {
    metric(ferryd, "ferryd_packets_total{direction=\"to_peer\",datapath=\"kernel\"}")
}

fn relayed(ferryd: &Ferryd, what: &str, direction: &str) -> [u64; 2] {
    ["sockets", "kernel"].map(|datapath| {
        let labels = format!("direction=\"{direction}\",transport=\"udp\",datapath=\"{datapath}\"");
        metric(ferryd, &format!("ferryd_relayed_{what}_total{{{labels}}}"))
    })
}

fn session_of(ferryd: &Ferryd, call: &Call) -> Value {
    let listing = json(ferryd, &["sessions"]);
    let relayed = call.relayed.to_string();
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
    let mut calls: Vec<_> = (0..20).map(|_| Call::new(&ferryd, Client::udp(ferryd.address()))).collect();
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
fn a_session_without_a_channel_is_on_the_sockets() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::unbound(Client::udp(ferryd.address()));
    let peer = call.peer.local_addr().unwrap();
    call.client.permit(peer).unwrap();
    call.client.send_by_indication(peer, b"by the sockets");
    call.peer.recv(&mut [0; 64]).unwrap();
    let session = session_of(&ferryd, &call);
    assert_eq!((&session["datapath"], &session["packets_to_peers"]), (&"sockets".into(), &1.into()));
}
