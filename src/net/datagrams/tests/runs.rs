//! Runs, which the kernel merges and both back ends take apart.

use super::*;
use crate::net::test_support::send_in_trains;

on_both! {
    runs_are_merged_once_they_are_seen_and_told_as_they_were_sent
    where_nothing_is_to_be_merged_runs_stay_apart
    a_socket_that_closes_within_a_run_tells_no_more_of_it
}

/// The lengths of the datagrams of a train, as a socket with UDP_SEGMENT cuts it.
const TRAIN: [usize; 9] = [500, 500, 500, 500, 500, 500, 500, 500, 7];

fn train(number: usize) -> Vec<u8> {
    (0..TRAIN.iter().sum()).map(|at: usize| (at * 7 + number) as u8).collect()
}

/// Sends trains to a socket until one arrives merged, or for so many; how many datagrams were told in runs. Each is sent
/// back with a prefix and padding.
fn pass_trains<D: Datagrams>(datagrams: &mut D, key: SocketKey, peer: &UdpSocket, trains: usize) -> usize {
    let address = datagrams.socket(key).unwrap().local_addr().unwrap();
    send_in_trains(peer, TRAIN[0]);
    let mut in_runs = 0;
    for number in 0..trains {
        let bytes = train(number);
        assert_eq!(peer.send_to(&bytes, address).unwrap(), bytes.len());
        let (mut seen, mut at) = (0, 0);
        turn_until(datagrams, |datagrams, arrival| {
            if let Some(Arrival::Datagram(datagram)) = arrival {
                let Datagram { slot, len, in_run, .. } = datagram;
                assert_eq!((len, datagram.tos, datagram.truncated), (TRAIN[seen], 0, false));
                assert!(datagrams.datagram(slot)[datagram.at..][..len] == bytes[at..at + len], "{number}: {seen}");
                let range = HEADROOM + datagram.at..HEADROOM + datagram.at + len;
                datagrams.send_framed(to(key, datagram.from), b"head", slot, range, (seen % 4) as u8);
                (seen, at, in_runs) = (seen + 1, at + len, in_runs + usize::from(in_run));
            }
            seen == TRAIN.len() && arrival.is_none()
        });
        datagrams.flush();
        let mut at = 0;
        for (seen, len) in TRAIN.into_iter().enumerate() {
            let expected = [b"head", &bytes[at..at + len], &[0; 3][..seen % 4]].concat();
            assert!(received(peer) == expected, "{number}: {seen}");
            at += len;
        }
    }
    in_runs
}

fn runs_are_merged_once_they_are_seen_and_told_as_they_were_sent<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    for ip in ["127.0.0.1", "::1"] {
        for role in [Role::Relay, Role::Listener] {
            let key = datagrams.add(TOKEN, role, relay(ip)).unwrap();
            let peer = peer(ip);
            assert_eq!(pass_trains(&mut datagrams, key, &peer, 3), 0, "they were not seen yet");
            pass_trains(&mut datagrams, key, &peer, 20);
            assert_eq!(pass_trains(&mut datagrams, key, &peer, 10), 10 * TRAIN.len(), "{ip} {role:?}");
            datagrams.remove(key);
        }
    }
    assert_eq!((datagrams.sent().sent, datagrams.sent().dropped()), (4 * 33 * TRAIN.len(), 0));
}

fn where_nothing_is_to_be_merged_runs_stay_apart<D: Datagrams>(mut datagrams: D) {
    let before = datagrams.add(TOKEN, Role::Listener, relay("127.0.0.1")).unwrap();
    datagrams.start().unwrap();
    datagrams.merge_nothing();
    let after = datagrams.add(TOKEN, Role::Relay, relay("127.0.0.1")).unwrap();
    for key in [before, after] {
        assert_eq!(pass_trains(&mut datagrams, key, &peer("127.0.0.1"), 33), 0);
    }
}

fn a_socket_that_closes_within_a_run_tells_no_more_of_it<D: Datagrams>(mut datagrams: D) {
    datagrams.start().unwrap();
    let (socket, peer) = (relay("127.0.0.1"), peer("127.0.0.1"));
    let address = socket.local_addr().unwrap();
    let key = datagrams.add(TOKEN, Role::Relay, socket).unwrap();
    pass_trains(&mut datagrams, key, &peer, 20);
    peer.send_to(&train(0), address).unwrap();
    let mut told = 0;
    turn_until(&mut datagrams, |datagrams, arrival| match arrival {
        Some(Arrival::Datagram(datagram)) => {
            assert!(datagram.in_run);
            told += 1;
            if told == 2 {
                datagrams.remove(key);
            }
            false
        }
        Some(Arrival::Closed(TOKEN)) => true,
        Some(_) | None => false,
    });
    assert_eq!(told, 2);
}
