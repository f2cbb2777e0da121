//! Datagrams of one length that a client sends at once, which the kernel hands over as one where it may.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use ferryd::stun::channel_data::ChannelNumber;
use ferryd::stun::{AttributeType, ChannelData, Message, Method};

use crate::client::{Client, binding_request};
use crate::ferryd::Ferryd;
use crate::wire::Wire;
use crate::{PATIENCE, place};

const CHANNEL: u16 = 0x4001;
/// Longer than any run that a socket has to see before it asks for runs as one.
const TRAINS: u8 = 40;
const CARRIAGES: u8 = 16;

/// Sends datagrams of one length by one call (UDP_SEGMENT, udp(7)).
fn send_train(client: &Client, datagrams: &[Vec<u8>]) {
    let Wire::Udp(socket) = &client.wire else { panic!("a train is of datagrams") };
    let each = datagrams[0].len();
    assert!(datagrams.iter().all(|datagram| datagram.len() == each));
    set_segment(socket, each as i32);
    assert_eq!(socket.send(&datagrams.concat()).unwrap(), each * datagrams.len());
    set_segment(socket, 0);
}

fn set_segment(socket: &UdpSocket, each: i32) {
    let (level, bytes) = (libc::SOL_UDP, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the value is an integer of that length.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, libc::UDP_SEGMENT, (&raw const each).cast(), bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn channel_data(payload: &[u8]) -> Vec<u8> {
    [&ChannelData::header(ChannelNumber::new(CHANNEL).unwrap(), payload.len() as u16), payload].concat()
}

fn expect(peer: &UdpSocket, payload: &[u8]) {
    let mut buffer = [0; 2048];
    let len = peer.recv(&mut buffer).expect("the peer hears the client");
    assert!(buffer[..len] == *payload, "{len} bytes, {:?}", &buffer[..len.min(4)]);
}

#[test]
fn media_and_requests_arrive_one_by_one_as_they_were_sent() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    let peer = place::peer();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    client.bind_channel(CHANNEL, peer.local_addr().unwrap()).unwrap();
    for train in 0..TRAINS {
        let payloads: Vec<_> = (0..CARRIAGES).map(|carriage| [&[train, carriage], &[7; 98][..]].concat()).collect();
        send_train(&client, &payloads.iter().map(|payload| channel_data(payload)).collect::<Vec<_>>());
        payloads.iter().for_each(|payload| expect(&peer, payload));
    }

    let requests: Vec<_> = (0..8).map(|_| binding_request()).collect();
    send_train(&client, &requests);
    for request in &requests {
        let id = Message::parse(request).unwrap().transaction_id();
        assert_eq!(client.answer_to(id).code(), None);
    }

    // What is behind a request goes where the request goes.
    let (refresh, id) = client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 600));
    let payloads = [1, 2, 3].map(|number| vec![number; refresh.len() - 4]);
    let train: Vec<_> = std::iter::once(refresh).chain(payloads.iter().map(|payload| channel_data(payload))).collect();
    send_train(&client, &train);
    payloads.iter().for_each(|payload| expect(&peer, payload));
    assert_eq!(client.answer_to(id).code(), None);
    ferryd.stop().expect_success();
}
