//! TCP and TLS as byte streams: segments, ends and what hangs on them.

use std::net::UdpSocket;
use std::time::Instant;

use ferryd::stun::{ChannelData, Class, Message, Method};

use crate::certificate::Certificate;
use crate::client::{Client, Data, binding_request};
use crate::ferryd::{Ferryd, alice};
use crate::wire::{Stream, Wire};
use crate::{PATIENCE, wait_until};

fn answers(stream: &mut Stream, requests: &[Vec<u8>]) {
    for request in requests {
        let answer = stream.receive(Instant::now() + PATIENCE).expect("an answer");
        let (answer, request) = (Message::parse(&answer).unwrap(), Message::parse(request).unwrap());
        assert_eq!((answer.method(), answer.class()), (Method::Binding, Class::Success));
        assert_eq!(answer.transaction_id(), request.transaction_id());
    }
}

#[test]
fn many_messages_in_one_segment_are_answered_in_order() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for mut stream in [Stream::plain(ferryd.address()), Stream::tls(ferryd.address(), &certificate).unwrap()] {
        let requests: Vec<_> = (0..100).map(|_| binding_request()).collect();
        stream.write(&requests.concat());
        answers(&mut stream, &requests);
    }
}

#[test]
fn one_message_over_many_segments_is_answered() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for mut stream in [Stream::plain(ferryd.address()), Stream::tls(ferryd.address(), &certificate).unwrap()] {
        let requests = [binding_request(), binding_request()];
        for byte in requests.concat() {
            stream.write(&[byte]);
        }
        answers(&mut stream, &requests);
    }
}

#[test]
fn stun_and_channel_data_in_one_segment_are_told_apart() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::tcp(ferryd.address());
    client.allocate();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
    let channel = ferryd::stun::channel_data::ChannelNumber::new(0x4000).unwrap();
    let data = [&ChannelData::header(channel, 5), &b"hello\0\0\0"[..]].concat();
    let request = binding_request();
    let Wire::Stream(stream) = &mut client.wire else { panic!("a stream") };
    stream.write(&[&data[..], &request, &data].concat());
    answers(stream, &[request]);
    for _ in 0..2 {
        let mut buffer = [0; 64];
        let length = peer.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
    }
}

#[test]
fn a_client_that_closes_its_half_hears_the_answers_to_what_it_asked() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for mut stream in [Stream::plain(ferryd.address()), Stream::tls(ferryd.address(), &certificate).unwrap()] {
        let requests: Vec<_> = (0..10).map(|_| binding_request()).collect();
        stream.write(&requests.concat());
        stream.close_half();
        answers(&mut stream, &requests);
        assert_eq!(stream.rest(), b"");
    }
}

#[test]
fn an_allocation_ends_with_its_connection_and_its_port_is_closed() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for mut client in [Client::tcp(ferryd.address()), Client::tls(ferryd.address(), &certificate)] {
        let relayed = client.allocate();
        assert!(UdpSocket::bind(relayed).is_err(), "the port is open while the connection is");
        drop(client);
        wait_until("the relay's port to close", || UdpSocket::bind(relayed).is_ok());
    }
    let log = ferryd.stop().stderr;
    assert_eq!(log.matches("allocation ended").count(), 2, "{log}");
}

#[test]
fn a_client_that_reads_nothing_holds_nobody_up() {
    let ferryd = Ferryd::start(|config| _ = config.set("workers", 1));
    let (mut slow, mut quick) = (Client::tcp(ferryd.address()), Client::tcp(ferryd.address()));
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (to_slow, to_quick) = (slow.allocate(), quick.allocate());
    for client in [&mut slow, &mut quick] {
        client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
    }
    // More than the buffers of both ends and the queue take.
    for _ in 0..1000 {
        peer.send_to(&[0; 60_000], to_slow).unwrap();
    }
    peer.send_to(b"in time", to_quick).unwrap();
    assert_eq!(quick.receive(), Data::Channel(0x4000, b"in time".to_vec()));
    // What the slow one did not take in time is dropped in whole messages, and then it goes on.
    while let Data::Channel(0x4000, payload) = slow.receive() {
        assert!(payload.len() == 60_000 && payload.iter().all(|byte| *byte == 0) || payload == b"at last");
        if payload == b"at last" {
            return;
        }
        peer.send_to(b"at last", to_slow).unwrap();
    }
    panic!("something other than channel data");
}

#[test]
fn connections_that_say_nothing_do_not_keep_others_out() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let silent: Vec<_> = (0..50).map(|_| Stream::plain(ferryd.address())).collect();
    Client::tcp(ferryd.address()).with(alice()).allocate();
    Client::tls(ferryd.address(), &Certificate::of(&ferryd.config)).allocate();
    drop(silent);
}
