use super::*;
use crate::net::interfaces::own_addresses;

#[test]
fn links_and_addresses_are_those_of_this_host() {
    let mut netlink = Netlink::open().unwrap();
    let links = netlink.links().unwrap();
    let loopback = links.iter().find(|link| link.is_loopback).unwrap();
    assert_eq!((loopback.name.as_str(), loopback.is_ethernet), ("lo", false));
    let mut addresses: Vec<_> = netlink.addresses().unwrap().into_iter().map(|(_, ip)| ip).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses, own_addresses().unwrap());
    assert!(netlink.addresses().unwrap().contains(&(loopback.ifindex, Ipv4Addr::LOCALHOST.into())));
}

#[test]
fn this_host_is_behind_its_loopback_interface() {
    let mut netlink = Netlink::open().unwrap();
    let loopback = netlink.links().unwrap().into_iter().find(|link| link.is_loopback).unwrap();
    for (from, to) in [("127.0.0.1", "127.0.0.77"), ("::1", "::1")] {
        let route = netlink.route(from.parse().unwrap(), to.parse().unwrap()).unwrap();
        assert_eq!(route.map(|route| route.ifindex), Some(loopback.ifindex), "{to}");
    }
}

#[test]
fn there_is_no_way_out_to_a_group_and_to_nowhere() {
    let mut netlink = Netlink::open().unwrap();
    let from = Ipv4Addr::LOCALHOST.into();
    for to in ["255.255.255.255", "0.0.0.1"] {
        assert_eq!(netlink.route(from, to.parse().unwrap()).unwrap(), None, "{to}");
    }
}

#[test]
fn a_route_that_wraps_its_packets_is_no_way_out() {
    // struct rtmsg, and RTA_OIF.
    let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 254, 0, 0, RTN_UNICAST, 0, 0, 0, 0];
    body.extend([8, 0, libc::RTA_OIF as u8, 0, 7, 0, 0, 0]);
    assert_eq!(parse_route(&body), Some(Route { ifindex: 7, gateway: None, mtu: None }));
    // RTA_ENCAP_TYPE with LWTUNNEL_ENCAP_IP, as `ip route add ... encap ip` has it.
    body.extend([6, 0, 21, 0, 2, 0, 0, 0]);
    assert_eq!(parse_route(&body), None);
}

#[test]
fn loopback_has_no_failures_and_what_is_not_there_cannot_be_asked() {
    let mut netlink = Netlink::open().unwrap();
    let loopback = netlink.links().unwrap().into_iter().find(|link| link.is_loopback).unwrap();
    assert_eq!(netlink.failures(loopback.ifindex).unwrap(), 0);
    assert!(netlink.failures(u32::MAX >> 1).is_err());
}

#[test]
fn an_unknown_neighbour_has_no_address() {
    let mut netlink = Netlink::open().unwrap();
    let loopback = netlink.links().unwrap().into_iter().find(|link| link.is_loopback).unwrap();
    let found = netlink.neighbour(loopback.ifindex, "192.0.2.77".parse().unwrap());
    assert!(matches!(found, Ok(None)), "{found:?}");
}

/// Does something in a network of its own; needs root, and is left out without.
fn in_a_network_of_its_own(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: touches no memory; the thread alone moves.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
            work();
        }
    });
    thread.join().unwrap();
}

fn ip(arguments: &str) -> String {
    let output = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_neighbour_that_the_operator_has_written_down_stays_as_it_is() {
    in_a_network_of_its_own(|| {
        for command in [
            "link add one type veth peer name two",
            "link set one up",
            "addr add 192.0.2.1/24 dev one",
            "neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev one nud permanent",
        ] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let ifindex = netlink.links().unwrap().into_iter().find(|link| link.name == "one").unwrap().ifindex;
        let (written, other) = ("192.0.2.9".parse().unwrap(), "192.0.2.10".parse().unwrap());
        for neighbour in [written, other] {
            netlink.use_neighbour(ifindex, neighbour).unwrap();
        }
        let neighbours = ip("neigh show dev one");
        assert!(neighbours.contains("192.0.2.9 lladdr 02:00:00:00:00:09 PERMANENT"), "{neighbours}");
        assert!(neighbours.contains("192.0.2.10 "), "the other one is asked for: {neighbours}");
        assert_eq!(netlink.neighbour(ifindex, written).unwrap(), Some([2, 0, 0, 0, 0, 9]));
    });
}

#[test]
fn what_is_cut_short_is_read_as_far_as_it_is_whole() {
    let mut request = Request::new(libc::RTM_GETROUTE, 0);
    request.attribute(1, b"abc");
    request.attribute(2, b"defg");
    let bytes = request.finish(7).to_vec();
    let (kind, sequence, body, rest) = message(&bytes).unwrap();
    assert_eq!((kind, sequence, rest.len()), (libc::RTM_GETROUTE, 7, 0));
    assert_eq!(attributes(body).collect::<Vec<_>>(), [(1, &b"abc"[..]), (2, &b"defg"[..])]);
    for len in 0..bytes.len() {
        assert!(message(&bytes[..len]).is_none());
        let _ = parse_route(&bytes[..len]);
        let _ = parse_link(&bytes[..len]);
        let _ = parse_failures(&bytes[..len]);
    }
    for len in 0..body.len() {
        assert_eq!(attributes(&body[..len]).count(), usize::from(len >= 7));
    }
}
