//! Send and Data indications in the kernel path of the running binary.

use crate::client::{Client, Data};
use crate::ferryd::Ferryd;
use crate::kernel_path::{By, CHANNEL, Call, carried, session_of, start};
use crate::metrics::metric;
use crate::{place, wait_until};

/// `INDICATION_FLOWS_MAX`.
const FLOWS_MAX: usize = 16;
/// Every padding, and nothing at all.
const LENGTHS: [usize; 9] = [0, 1, 2, 3, 4, 5, 160, 1199, 1200];

fn carried_to_client(ferryd: &Ferryd) -> u64 {
    metric(ferryd, "ferryd_packets_total{direction=\"to_client\",datapath=\"kernel\"}")
}

/// The bytes of a Data indication without its transaction ID, which is checked to be another one each time.
fn told(call: &mut Call, len: usize, ids: &mut Vec<[u8; 12]>) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|byte| byte as u8 ^ 0x5a).collect();
    let mut bytes = call.raw_back(&data);
    let id = bytes[8..20].try_into().unwrap();
    assert!(!ids.contains(&id), "{id:?} is used again");
    ids.push(id);
    bytes[8..20].fill(0);
    bytes
}

#[test]
fn data_indications_of_the_kernel_are_those_of_the_sockets() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::unbound(Client::udp(ferryd.address()), By::Indications);
    call.bind();
    let mut ids = Vec::new();
    // Before the client has sent one there is no flow.
    let of_sockets = LENGTHS.map(|len| told(&mut call, len, &mut ids));
    assert_eq!(carried_to_client(&ferryd), 0);
    call.until_carried(&ferryd);
    for (len, of_sockets) in LENGTHS.into_iter().zip(of_sockets) {
        let before = carried_to_client(&ferryd);
        // One of them goes by the sockets now and then.
        wait_until("the kernel carries one", || {
            assert_eq!(told(&mut call, len, &mut ids), of_sockets, "{len} bytes");
            carried_to_client(&ferryd) > before
        });
    }
    wait_until("every packet is counted", || call.is_counted_by(&session_of(&ferryd, &call)));
}

#[test]
fn what_firefox_sends_is_carried_too() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::new(&ferryd, Client::udp(ferryd.address()), By::Indications);
    let peer = call.peer_address();
    for len in LENGTHS {
        let before = carried(&ferryd);
        let data = vec![len as u8; len];
        wait_until("the kernel carries one", || {
            call.client.send_indication(peer, &data, |builder| _ = builder.fingerprint());
            let mut buffer = [0; 2048];
            let got = call.peer.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..got], data);
            carried(&ferryd) > before
        });
    }
}

/// RFC 8656 section 12.5: "MUST use the ChannelData message if a channel has been bound".
#[test]
fn a_channel_takes_the_place_of_indications_with_its_response() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::new(&ferryd, Client::udp(ferryd.address()), By::Indications);
    for _ in 0..50 {
        call.back(b"by an indication");
    }
    call.by = By::Channel;
    call.bind();
    call.back(b"by the channel");
    call.until_carried(&ferryd);
    // The client may go on with indications as well (section 12.6).
    call.by = By::Indications;
    call.there(b"by an indication");
    wait_until("one flow is left", || metric(&ferryd, "ferryd_offload_flows") == 1);
    wait_until("every packet is counted", || call.is_counted_by(&session_of(&ferryd, &call)));
}

#[test]
fn two_clients_reach_each_other_by_whatever_each_of_them_has() {
    let Some(ferryd) = start(|_| {}) else { return };
    let [mut one, mut other] = [0; 2].map(|_| Client::udp(ferryd.address()));
    let (of_one, of_other) = (one.allocate(), other.allocate());
    one.permit(of_other).unwrap();
    other.bind_channel(CHANNEL, of_one).unwrap();
    let before = carried_to_client(&ferryd);
    wait_until("the kernel carries both ways", || {
        one.send_by_indication(of_other, b"there");
        assert_eq!(other.receive(), Data::Channel(CHANNEL, b"there".to_vec()));
        other.send_by_channel(CHANNEL, b"back");
        assert_eq!(one.receive(), Data::Indication(of_other, b"back".to_vec()));
        carried_to_client(&ferryd) >= before + 4
    });
}

#[test]
fn another_policy_takes_indications_back() {
    let Some(mut ferryd) = start(|_| {}) else { return };
    let mut call = Call::new(&ferryd, Client::udp(ferryd.address()), By::Indications);
    ferryd.reload(|config| _ = config.set("peers.allow", "[\"127.9.9.9\"]"));
    wait_until("no flow is left", || metric(&ferryd, "ferryd_offload_flows") == 0);
    call.send(b"not allowed");
    (0..2).for_each(|_| _ = call.client.bind());
    call.peer.set_nonblocking(true).unwrap();
    assert!(call.peer.recv(&mut [0; 64]).is_err(), "the peer is not allowed any more");
    let session = session_of(&ferryd, &call);
    assert!(call.is_counted_by(&session), "{session}");
}

#[test]
fn an_allocation_has_a_few_flows_of_indications_and_the_unheard_give_way() {
    let Some(ferryd) = start(|_| {}) else { return };
    let mut call = Call::unbound(Client::udp(ferryd.address()), By::Indications);
    call.bind();
    let silent: Vec<_> = (0..FLOWS_MAX + 4).map(|_| place::peer()).collect();
    for peer in &silent {
        call.client.send_by_indication(peer.local_addr().unwrap(), b"anybody there?");
    }
    // What the worker has got is dealt with before it answers.
    (0..2).for_each(|_| _ = call.client.bind());
    wait_until("the flows are there", || metric(&ferryd, "ferryd_offload_flows") == FLOWS_MAX as u64);
    call.until_carried(&ferryd);
    wait_until("one has given way", || metric(&ferryd, "ferryd_offload_flows") == FLOWS_MAX as u64);
}
