//! What ends, and that nothing of it stays behind.

use std::fs;
use std::net::UdpSocket;

use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{Config, Ferryd};
use crate::{place, wait_until};

/// Allocate and Refresh 0, so often.
const CYCLES: usize = 300;

fn short_lived(config: &mut Config) {
    config.text("relay.lifetime-default", "1s").text("relay.lifetime-max", "2s");
}

#[test]
fn an_allocation_that_is_not_refreshed_expires_and_its_port_is_closed() {
    let ferryd = Ferryd::start(short_lived);
    let (mut client, mut stream) = (Client::udp(ferryd.address()), Client::tcp(ferryd.address()));
    for client in [&mut client, &mut stream] {
        let relayed = client.allocate();
        assert!(place::on_its_host(move || UdpSocket::bind(relayed)).is_err());
        wait_until("the allocation to expire", || place::on_its_host(move || UdpSocket::bind(relayed)).is_ok());
        assert_eq!(client.refresh(2), Err(437));
        // The 5-tuple is free again.
        client.allocate();
    }
    wait_until("the record of the end", || ferryd.log().contains("reason=\"expired\""));
}

#[test]
fn an_allocation_that_is_refreshed_lives_on() {
    let ferryd = Ferryd::start(short_lived);
    let mut client = Client::udp(ferryd.address());
    let relayed = client.allocate();
    let begin = std::time::Instant::now();
    while begin.elapsed().as_secs() < 3 {
        assert_eq!(client.refresh(3600), Ok(2));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(place::on_its_host(move || UdpSocket::bind(relayed)).is_err());
}

#[test]
fn a_lifetime_of_zero_ends_the_allocation_at_once() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    let relayed = client.allocate();
    assert_eq!(client.try_allocate(), Err(437), "one allocation on one 5-tuple");
    assert_eq!(client.refresh(0), Ok(0));
    place::on_its_host(move || UdpSocket::bind(relayed)).unwrap();
    assert_eq!(client.refresh(0), Err(437));
    client.allocate();
}

#[test]
fn a_stop_ends_every_allocation_with_its_record() {
    for stop in [Ferryd::stop, Ferryd::interrupt] {
        let ferryd = Ferryd::start(|_| {});
        let mut clients = [Client::udp(ferryd.address()), Client::tcp(ferryd.address())];
        let relayed = clients.each_mut().map(Client::allocate);
        let ended = stop(ferryd);
        assert_eq!(ended.expect_success().stderr.matches("allocation ended").count(), 2, "{}", ended.stderr);
        for relayed in relayed {
            place::on_its_host(move || UdpSocket::bind(relayed)).unwrap();
        }
    }
}

#[test]
fn hundreds_of_allocations_leave_no_descriptor_behind() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", ferryd.id())).unwrap().count();
    let begin = descriptors();
    let mut client = Client::udp(ferryd.address());
    for _ in 0..CYCLES {
        client.allocate();
        assert_eq!(client.refresh(0), Ok(0));
    }
    assert_eq!(descriptors(), begin);
    // Streams, with and without a last word.
    for number in 0..CYCLES / 10 {
        for mut client in [Client::tcp(ferryd.address()), Client::tls(ferryd.address(), &certificate)] {
            client.allocate();
            if number % 2 == 0 {
                assert_eq!(client.refresh(0), Ok(0));
            }
        }
    }
    wait_until("the descriptors of the streams to close", || descriptors() == begin);
}

#[test]
fn a_reserved_port_is_redeemed_by_another_client() {
    use ferryd::stun::{AttributeType, Method};

    let ferryd = Ferryd::start(|_| {});
    let mut first = Client::udp(ferryd.address());
    let answer = first.request(Method::Allocate, |builder| {
        crate::client::udp_transport(builder);
        builder.attribute(AttributeType::EVEN_PORT, &[0x80]);
    });
    let relayed = answer.address(AttributeType::XOR_RELAYED_ADDRESS);
    assert_eq!(relayed.port() % 2, 0);
    let token = answer.message().attribute(AttributeType::RESERVATION_TOKEN).unwrap().value.to_vec();
    // On whatever worker the second one is.
    let mut second = Client::tcp(ferryd.address());
    let answer = second.request(Method::Allocate, |builder| {
        crate::client::udp_transport(builder);
        builder.attribute(AttributeType::RESERVATION_TOKEN, &token);
    });
    assert_eq!(answer.address(AttributeType::XOR_RELAYED_ADDRESS).port(), relayed.port() + 1);
    let peer = place::peer();
    let relayed = answer.address(AttributeType::XOR_RELAYED_ADDRESS);
    crate::relaying::there_and_back(&mut second, relayed, &peer, b"the odd one");
}
