//! The programs against packets: what they send is compared with what the sockets would have, byte for byte but for the
//! identification.

use std::net::{IpAddr, SocketAddr};

use aya::TestRun as _;
use aya::programs::TestRunOptions;

use super::flow::{Flow, FlowRecord, Hop};
use super::test_bench::*;
use super::test_packets::{Packet, canonical};
use crate::address::{PeerAddr, RelayedAddr};

#[test]
fn data_reaches_the_peer_and_the_client() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        for len in [0, 1, 2, 3, 4, 5, 20, 160, 161, 1200, 1400] {
            let data: Vec<u8> = (0..len).map(|byte| (byte * 7) as u8).collect();
            for sent in [Some(from_client(&flow, &data)), from_firefox(&flow, &data)].into_iter().flatten() {
                bench.expect(&sent, &Expected::Packet(at_peer(&flow, &data)));
            }
            bench.expect(&from_peer(&flow, &data), &Expected::Packet(at_client(&flow, &data)));
        }
        let traffic = bench.programs.traffic(0);
        let layouts = if flow.channel.is_some() { 1 } else { 2 };
        assert_eq!((traffic.packets_to_peer, traffic.packets_to_client), (layouts * 22, 22));
        let bytes = 2 * (1 + 2 + 3 + 4 + 5 + 20 + 160 + 161 + 1200 + 1400);
        assert_eq!((traffic.bytes_to_peer, traffic.bytes_to_client), (layouts * bytes, bytes));
    }
}

/// RFC 8656 section 14: "Set the outgoing value to the incoming value"; DF as the sockets have it.
#[test]
fn dscp_and_ecn_stay_and_df_goes() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        for tos in [0x00, 0xb8, 0xb9, 0x03, 0xff] {
            for dont_fragment in [false, true] {
                let sent = Packet { tos, dont_fragment, ..from_client(&flow, b"data") };
                bench.expect(&sent, &Expected::Packet(Packet { tos, ..at_peer(&flow, b"data") }));
                let sent = Packet { tos, dont_fragment, ..from_peer(&flow, b"data") };
                bench.expect(&sent, &Expected::Packet(Packet { tos, ..at_client(&flow, b"data") }));
            }
        }
    }
}

/// RFC 8656 section 13: a router's work.
#[test]
fn the_hop_limit_is_counted_down_and_ends() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        for ttl in [255, 64, 2] {
            let sent = Packet { ttl, ..from_client(&flow, b"data") };
            bench.expect(&sent, &Expected::Packet(Packet { ttl: ttl - 1, ..at_peer(&flow, b"data") }));
        }
        for ttl in [1, 0] {
            bench.expect(&Packet { ttl, ..from_client(&flow, b"data") }, &Expected::Dropped);
            bench.expect(&Packet { ttl, ..from_peer(&flow, b"data") }, &Expected::Dropped);
        }
    }
}

#[test]
fn a_sum_of_zero_stays_none_where_the_family_allows_it() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        let is_v4 = flow.client.socket_addr().is_ipv4() && flow.peer.socket_addr().is_ipv4();
        let to_peer = Packet { no_checksum: true, ..at_peer(&flow, b"data") };
        let expected = if is_v4 { Expected::Packet(to_peer) } else { Expected::Passed };
        bench.expect(&Packet { no_checksum: true, ..from_client(&flow, b"data") }, &expected);
        let to_client = Packet { no_checksum: true, ..at_client(&flow, b"data") };
        let expected = if is_v4 { Expected::Packet(to_client) } else { Expected::Passed };
        bench.expect(&Packet { no_checksum: true, ..from_peer(&flow, b"data") }, &expected);
    }
}

/// A checksum of which nothing but the pseudo header's part is there yet looks like one in 65,536 that is complete. tc
/// cannot tell them apart and is right for both; XDP leaves it to the sockets.
#[test]
fn a_checksum_that_looks_unfinished_is_carried_rightly() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        for len in [2, 3, 22, 23, 24, 25, 1300] {
            let mut data = vec![7; len];
            for (sent, expected) in [
                (from_client as fn(&Flow, &[u8]) -> Packet, at_peer as fn(&Flow, &[u8]) -> Packet),
                (|flow, data| from_firefox(flow, data).unwrap_or_else(|| from_client(flow, data)), at_peer),
                (from_peer, at_client),
            ] {
                data[..2].fill(0);
                let word = sent(&flow, &data).word_of_pseudo_checksum();
                data[..2].copy_from_slice(&word);
                let (sent, expected) = (sent(&flow, &data), expected(&flow, &data));
                assert!(sent.looks_unfinished());
                let frame = sent.frame();
                assert_eq!(tidy(bench.tc(&frame), false), Fate::Sent(canonical(&expected.frame())), "{sent:?}");
                assert_eq!(bench.xdp(&frame), Fate::Passed);
            }
        }
    }
}

#[test]
fn what_is_unknown_or_unusual_is_passed_on_untouched() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        let sent = from_client(&flow, b"data");
        let reply = from_peer(&flow, b"data");
        bench.expect(&sent, &Expected::Packet(at_peer(&flow, b"data")));
        let other_port = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() + 1);
        let mut passed = vec![
            Packet { from: other_port(sent.from), ..sent.clone() },
            Packet { to: other_port(sent.to), ..sent.clone() },
            Packet { from: other_port(reply.from), ..reply.clone() },
            Packet { to: other_port(reply.to), ..reply.clone() },
            // Another channel, one that RFC 8656 does not know, STUN, and nothing at all.
            Packet { payload: channel_data(CHANNEL + 1, b"data"), ..sent.clone() },
            Packet { payload: channel_data(0x8000, b"data"), ..sent.clone() },
            Packet { payload: channel_data(0x0016, b"data"), ..sent.clone() },
            Packet { payload: channel_data(0x0000, b"data"), ..sent.clone() },
            Packet { payload: channel_data(0x0001, b"data"), ..sent.clone() },
            Packet { payload: Vec::new(), ..sent.clone() },
            Packet { payload: CHANNEL.to_be_bytes().to_vec(), ..sent.clone() },
        ];
        // A length that is not the datagram's: padded, and cut.
        passed.push(Packet { payload: [&sent.payload[..], &[0; 3]].concat(), ..sent.clone() });
        passed.push(Packet { payload: sent.payload[..6].to_vec(), ..sent.clone() });
        for packet in [sent, reply] {
            passed.push(Packet { is_tcp: true, ..packet.clone() });
            passed.push(Packet { more_fragments: true, ..packet.clone() });
            passed.push(Packet { fragment_offset: 8, ..packet.clone() });
            passed.push(Packet { options: true, ..packet.clone() });
            passed.push(Packet { vlan: true, ..packet.clone() });
            passed.push(Packet { bad_header_checksum: true, ..packet.clone() });
            passed.push(Packet { trailer: 3, ..packet.clone() });
            passed.push(Packet { udp_len_error: 1, ..packet.clone() });
            passed.push(Packet { udp_len_error: -1, ..packet.clone() });
            passed.push(Packet { ip_len_error: 1, ..packet.clone() });
            passed.push(Packet { ip_len_error: -1, ..packet.clone() });
            passed.push(Packet { multicast: true, ..packet });
        }
        for packet in passed.iter().filter(|packet| packet.is_possible()) {
            bench.expect(packet, &Expected::Passed);
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_passed_on() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        let clients = [Some(from_client(&flow, b"data")), from_firefox(&flow, b"dat")].into_iter().flatten();
        for frame in clients.chain([from_peer(&flow, b"data")]).map(|packet| packet.frame()) {
            for len in 14..frame.len() {
                // A test run needs whole headers of some length.
                let options = |frame| TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
                if let Ok(result) = bench.programs.tc().unwrap().test_run(options(&frame[..len])) {
                    assert_eq!(result.return_value, TC_NEXT, "{len}");
                }
                if let Ok(result) = bench.programs.xdp().unwrap().test_run(options(&frame[..len])) {
                    assert_eq!(result.return_value, XDP_PASS, "{len}");
                }
            }
        }
    }
}

#[test]
fn what_outgrows_the_way_out_is_passed_on() {
    for flow in flows() {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        bench.set_ways(0, 2, 2);
        let room = |address: SocketAddr| 600 - 8 - if address.is_ipv4() { 20 } else { 40 };
        let fits = vec![5; room(flow.peer.socket_addr())];
        bench.expect(&from_client(&flow, &fits), &Expected::Packet(at_peer(&flow, &fits)));
        bench.expect(&from_client(&flow, &[&fits[..], &[5]].concat()), &Expected::Passed);
        let to_client = room(flow.client.socket_addr());
        // A Data indication has padding.
        let fits = match flow.channel {
            Some(_) => to_client - 4,
            None => (to_client - front(flow.peer.socket_addr())) / 4 * 4,
        };
        let fits = vec![5; fits];
        bench.expect(&from_peer(&flow, &fits), &Expected::Packet(at_client(&flow, &fits)));
        bench.expect(&from_peer(&flow, &[&fits[..], &[5]].concat()), &Expected::Passed);
    }
}

#[test]
fn the_deadline_is_checked_by_the_programs() {
    for flow in [flows()[0], flows()[4]] {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        let states = std::sync::Arc::clone(&bench.programs.states);
        for (deadline, is_open) in [(0, false), (1, false), (FOREVER, true), (0, false), (FOREVER, true)] {
            states.set_deadline(0, deadline);
            let (to_peer, to_client) = (at_peer(&flow, b"data"), at_client(&flow, b"data"));
            let expected = |packet| if is_open { Expected::Packet(packet) } else { Expected::Passed };
            bench.expect(&from_client(&flow, b"data"), &expected(to_peer));
            bench.expect(&from_peer(&flow, b"data"), &expected(to_client));
        }
    }
}

#[test]
fn without_a_way_out_the_sockets_serve() {
    for flow in [flows()[0], flows()[4]] {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        bench.set_ways(0, 1, 0);
        bench.expect(&from_client(&flow, b"data"), &Expected::Packet(at_peer(&flow, b"data")));
        bench.expect(&from_peer(&flow, b"data"), &Expected::Passed);
        // One that is not written, and one beyond the map.
        for way in [9, u32::MAX] {
            bench.set_ways(0, way, 1);
            bench.expect(&from_client(&flow, b"data"), &Expected::Passed);
        }
    }
}

#[test]
fn another_interface_is_redirected_to() {
    for flow in [flows()[0], flows()[4]] {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        bench.set_ways(0, 3, 1);
        bench.expect(&from_client(&flow, b"data"), &Expected::Packet(at_peer(&flow, b"data")));
    }
}

#[test]
fn a_removed_flow_is_unknown_and_its_counters_stay() {
    for flow in [flows()[0], flows()[4]] {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        let record = FlowRecord::new(&flow).unwrap();
        bench.expect(&from_client(&flow, b"data"), &Expected::Packet(at_peer(&flow, b"data")));
        bench.programs.remove(0, &record);
        bench.expect(&from_client(&flow, b"data"), &Expected::Passed);
        bench.expect(&from_peer(&flow, b"data"), &Expected::Passed);
        assert_eq!(bench.programs.traffic(0).bytes_to_peer, 8);
        // A flow that has taken its place is not removed with it, and begins at zero.
        bench.programs.insert(1, &record).unwrap();
        bench.programs.states.set_deadline(1, FOREVER);
        bench.programs.states.set_seen(1, FOREVER, FOREVER);
        bench.set_ways(1, 1, 1);
        bench.programs.remove(0, &record);
        bench.expect(&from_client(&flow, b"data"), &Expected::Packet(at_peer(&flow, b"data")));
        assert_eq!(bench.programs.traffic(1).bytes_to_peer, 8);
        bench.programs.remove(1, &record);
        bench.programs.insert(0, &record).unwrap();
        assert_eq!(bench.programs.traffic(0).bytes_to_peer, 0);
    }
}

/// Two clients that know each other's relayed address as a peer, each by a channel or by indications.
fn calls() -> impl Iterator<Item = [Flow; 2]> {
    let (one, other) = (RELAYED4, "203.0.113.4:50002");
    let towards =
        |relayed: &str, from: &str| Hop { relayed: RelayedAddr::new(at(relayed)), from: PeerAddr::new(at(from)) };
    [(true, true), (true, false), (false, true), (false, false)].into_iter().map(move |channels| {
        let channel = |has: bool, channel: u16| has.then_some(channel);
        [
            Flow {
                hop: Some(towards(other, one)),
                channel: channel(channels.0, CHANNEL),
                ..flow(CLIENT4, SERVER4, one, other)
            },
            Flow {
                hop: Some(towards(one, other)),
                channel: channel(channels.1, 0x4777),
                ..flow(CLIENT6, SERVER6, other, one)
            },
        ]
    })
}

#[test]
fn two_clients_reach_each_other_in_one_pass() {
    for [one, other] in calls() {
        let Some(mut bench) = Bench::with(&[one, other]) else { return };
        bench.expect(&from_client(&one, b"there"), &Expected::Packet(at_client(&other, b"there")));
        bench.expect(&from_client(&other, b"and back"), &Expected::Packet(at_client(&one, b"and back")));
        let (traffic, back) = (bench.programs.traffic(0), bench.programs.traffic(1));
        assert_eq!((traffic.bytes_to_peer, traffic.bytes_to_client), (10, 16));
        assert_eq!((back.bytes_to_peer, back.bytes_to_client), (16, 10));
        // Both have to be open.
        bench.programs.states.set_deadline(1, 0);
        bench.expect(&from_client(&one, b"there"), &Expected::Passed);
        bench.expect(&from_client(&other, b"and back"), &Expected::Passed);
        bench.programs.states.set_deadline(1, FOREVER);
        bench.programs.remove(1, &FlowRecord::new(&other).unwrap());
        bench.expect(&from_client(&one, b"there"), &Expected::Passed);
    }
}

/// Whoever sends in the name of a relayed address is none.
#[test]
fn a_relayed_address_is_not_believed_from_the_network() {
    for [one, other] in calls() {
        let Some(mut bench) = Bench::with(&[one, other]) else { return };
        bench.expect(&from_peer(&one, b"spoofed"), &Expected::Passed);
        // The mark of such an entry cannot be reached by the channel's number.
        let marked = Packet { payload: channel_data(1, b"spoofed"), ..from_peer(&one, b"") };
        bench.expect(&marked, &Expected::Passed);
    }
}

#[test]
fn addresses_of_both_families_with_the_same_first_bytes_differ() {
    let v4 = flow("32.1.13.184:40000", "32.1.13.184:3478", RELAYED4, PEER4);
    let Some(mut bench) = Bench::with(&[v4]) else { return };
    let v6 = |port| SocketAddr::new(IpAddr::V6("2001:db8::".parse().unwrap()), port);
    bench.expect(&from_client(&v4, b"data"), &Expected::Packet(at_peer(&v4, b"data")));
    bench.expect(&Packet::new(v6(40000), v6(3478), &channel_data(CHANNEL, b"data")), &Expected::Passed);
}

#[test]
fn counters_read_at_once_are_those_read_one_by_one() {
    let flows: Vec<_> = (0..6).map(|channel| Flow { channel: Some(CHANNEL + channel), ..flows()[0] }).collect();
    let Some(mut bench) = Bench::with(&[]) else { return };
    // Beyond one batch, and at both ends of the map.
    let last = bench.programs.states.len() - 1;
    let indices = [0, 1, 2, last / 2, last - 1, last];
    for (index, flow) in indices.into_iter().zip(&flows) {
        bench.programs.insert(index, &FlowRecord::new(flow).unwrap()).unwrap();
        bench.programs.states.set_deadline(index, FOREVER);
        bench.programs.states.set_seen(index, FOREVER, FOREVER);
        bench.set_ways(index, 1, 1);
        let sent = from_client(flow, b"data");
        bench.expect(&sent, &Expected::Packet(at_peer(flow, b"data")));
    }
    for end in [0, 1, 3, last / 2 + 1, last + 1] {
        let mut told = Vec::new();
        bench.programs.each_traffic(end, |index, traffic| told.push((index, traffic)));
        assert!(told.iter().map(|(index, _)| *index).eq(0..end), "to {end}");
        for (index, traffic) in told {
            let packets = if indices.contains(&index) { 2 } else { 0 };
            assert_eq!((traffic.packets_to_peer, traffic.bytes_to_peer), (packets, packets * 4), "{index}");
        }
    }
    for index in indices {
        assert_eq!(bench.programs.traffic(index).packets_to_peer, 2, "{index}");
    }
}

/// Until a packet from there has been seen, whatever the daemon knows it by, nothing is sent to an end.
#[test]
fn an_end_that_has_not_been_seen_is_sent_nothing() {
    for (flow, is_xdp) in flows().into_iter().flat_map(|flow| [(flow, false), (flow, true)]) {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        bench.programs.states.set_seen(0, 0, 0);
        let (there, back) = (from_client(&flow, b"there"), from_peer(&flow, b"back"));
        let (to_peer, to_client) = (at_peer(&flow, b"there"), at_client(&flow, b"back"));
        let steps = [
            (&there, Expected::Passed),
            (&there, Expected::Passed),
            // The first one from the peer proves the way there, and is itself the sockets'.
            (&back, Expected::Passed),
            (&there, Expected::Packet(to_peer.clone())),
            (&back, Expected::Packet(to_client.clone())),
            (&there, Expected::Packet(to_peer)),
            (&back, Expected::Packet(to_client)),
        ];
        for (step, (packet, expected)) in steps.into_iter().enumerate() {
            let frame = packet.frame();
            let fate = if is_xdp { bench.xdp(&frame) } else { bench.tc(&frame) };
            assert_eq!(tidy(fate, is_xdp), expected.fate(), "step {step}, {packet:?}");
        }
        assert_eq!(bench.programs.traffic(0).packets_to_peer, 2);
    }
}

/// What keeps state of a flow on this host sees a packet of each direction before it forgets.
#[test]
fn now_and_then_a_packet_goes_by_the_sockets() {
    for flow in [flows()[0], flows()[4]] {
        let Some(mut bench) = Bench::with(&[flow]) else { return };
        for (packet, seen, sent) in [
            (from_client(&flow, b"data"), (1, FOREVER), at_peer(&flow, b"data")),
            (from_peer(&flow, b"data"), (FOREVER, 1), at_client(&flow, b"data")),
        ] {
            let frame = packet.frame();
            for _ in 0..3 {
                bench.programs.states.set_seen(0, seen.0, seen.1);
                assert_eq!(bench.tc(&frame), Fate::Passed);
                bench.expect(&packet, &Expected::Packet(sent.clone()));
            }
        }
    }
}

/// Between two clients no interface sees the peers: what counts is the other client.
#[test]
fn another_client_is_sent_nothing_before_it_has_been_seen() {
    for [one, other] in calls() {
        let Some(mut bench) = Bench::with(&[one, other]) else { return };
        bench.programs.states.set_seen(0, FOREVER, 0);
        bench.programs.states.set_seen(1, 0, 0);
        bench.expect(&from_client(&one, b"there"), &Expected::Passed);
        assert_eq!(bench.tc(&from_client(&other, b"back").frame()), Fate::Passed);
        bench.expect(&from_client(&other, b"back"), &Expected::Packet(at_client(&one, b"back")));
        bench.expect(&from_client(&one, b"there"), &Expected::Packet(at_client(&other, b"there")));
    }
}

/// What is a Send indication in another layout is the sockets', and what names another peer.
#[test]
fn any_other_indication_is_passed_on_untouched() {
    for flow in &flows()[4..] {
        let Some(mut bench) = Bench::with(&[*flow]) else { return };
        let front = front(flow.peer.socket_addr());
        for (sent, has_fingerprint) in
            [(from_client(flow, b"of 9 byte"), false), (from_firefox(flow, b"of 9 byte").unwrap(), true)]
        {
            let arrives = Expected::Packet(at_peer(flow, b"of 9 byte"));
            bench.expect(&sent, &arrives);
            let data = front..front + 9;
            for at in (0..sent.payload.len()).filter(|at| !data.contains(at)) {
                let mut other = sent.clone();
                other.payload[at] ^= 1;
                // Of the transaction ID alone nothing depends, where the address is not xored with it, nor of a sum.
                let is_id = (8..20).contains(&at) && flow.peer.socket_addr().is_ipv4();
                let is_sum = has_fingerprint && at + 4 >= sent.payload.len();
                bench.expect(&other, if is_id || is_sum { &arrives } else { &Expected::Passed });
            }
            // Lengths that do not agree, whichever is wrong, and an attribute more.
            for (at, more) in [(3, 4), (3, 0_u8.wrapping_sub(4)), (front - 1, 4), (front - 1, 0xf8)] {
                let mut other = sent.clone();
                other.payload[at] = other.payload[at].wrapping_add(more);
                bench.expect(&other, &Expected::Passed);
            }
            let mut other = sent.clone();
            other.payload.extend([0x00, 0x1a, 0, 0]);
            other.payload[3] += 4;
            bench.expect(&other, &Expected::Passed);
        }
        // ChannelData of a client without a channel.
        let channel = Flow { channel: Some(CHANNEL), ..*flow };
        bench.expect(&from_client(&channel, b"data"), &Expected::Passed);
    }
}

/// Where there is a channel the sockets serve the client's indications, which are few, and the peer's data is ChannelData.
#[test]
fn a_channel_takes_the_place_of_indications() {
    for flow in &flows()[4..] {
        let channel = Flow { channel: Some(CHANNEL), ..*flow };
        let Some(mut bench) = Bench::with(&[*flow, channel]) else { return };
        bench.expect(&from_client(&channel, b"there"), &Expected::Packet(at_peer(flow, b"there")));
        bench.expect(&from_peer(flow, b"back"), &Expected::Packet(at_client(&channel, b"back")));
        // The one before has ended, and takes nothing with it that is not its own.
        bench.programs.states.set_deadline(0, 0);
        bench.expect(&from_client(flow, b"there"), &Expected::Passed);
        bench.programs.remove(0, &FlowRecord::new(flow).unwrap());
        bench.expect(&from_client(flow, b"there"), &Expected::Passed);
        bench.expect(&from_peer(flow, b"back"), &Expected::Packet(at_client(&channel, b"back")));
    }
}

/// All of a client's 5-tuple decides, also what is not in the key of its entry.
#[test]
fn indications_to_another_address_of_the_server_are_passed_on() {
    let flow = flows()[4];
    let Some(mut bench) = Bench::with(&[flow]) else { return };
    let sent = from_client(&flow, b"data");
    bench.expect(&Packet { to: at("203.0.113.5:3478"), ..sent.clone() }, &Expected::Passed);
    bench.expect(&sent, &Expected::Packet(at_peer(&flow, b"data")));
}

/// RFC 8489 section 6: transaction IDs are "uniformly and randomly chosen".
#[test]
fn transaction_ids_of_data_indications_differ() {
    let flow = flows()[4];
    let Some(mut bench) = Bench::with(&[flow]) else { return };
    let frame = from_peer(&flow, b"data").frame();
    let mut ids = std::collections::HashSet::new();
    for round in 0..64 {
        for fate in [bench.tc(&frame), bench.xdp(&frame)] {
            let Fate::Sent(sent) = fate else { panic!("not sent") };
            assert!(ids.insert(sent[14 + 20 + 8 + 8..][..12].to_vec()), "round {round}");
        }
    }
    // Every bit of them is now 0 and now 1.
    let bits = |id: &Vec<u8>| u128::from_be_bytes([&[0; 4], &id[..]].concat().try_into().unwrap());
    let (ever, always) = ids.iter().map(bits).fold((0, u128::MAX), |(ever, always), id| (ever | id, always & id));
    assert_eq!((ever, always), ((1 << 96) - 1, 0));
}
