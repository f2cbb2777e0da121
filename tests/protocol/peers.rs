//! The gate to peers, seen from outside: ranges, own addresses, and IPv4 inside of IPv6 (RFC 8656 section 21.4).

use ferryd::stun::AttributeType;
use ferryd::turn::settings::PeerGroup;

use crate::harness::{Client, Setup, World};

/// The codes of CreatePermission and of ChannelBind for an address.
fn judge(setup: impl FnOnce(&mut Setup), peers: &[&str]) -> Vec<Result<(), u16>> {
    let mut world = World::with(setup);
    let judge = |peer: &&str| {
        let family = if peer.starts_with('[') { 2 } else { 1 };
        let mut client = Client::new("198.51.100.1:1000");
        client.allocate_with(&mut world, |builder| {
            builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
        });
        let permitted = client.permit(&mut world, &[peer]).result();
        let bound = client.bind(&mut world, 0x4000, peer).result();
        assert_eq!(permitted, bound, "one gate for all: {peer}");
        client.refresh(&mut world, Some(0));
        permitted
    };
    peers.iter().map(judge).collect()
}

#[test]
fn deny_wins_over_allow_also_for_ipv4_inside_of_ipv6() {
    let setup = |setup: &mut Setup| {
        setup.turn.peers.allow = vec!["64:ff9b::/96".parse().unwrap(), "9.0.0.0/8".parse().unwrap()];
        setup.turn.peers.deny = vec!["9.9.9.0/24".parse().unwrap()];
    };
    let peers = ["9.9.9.9:1", "9.9.8.9:1", "[64:ff9b::9.9.9.9]:1", "[64:ff9b::9.9.8.9]:1"];
    assert_eq!(judge(setup, &peers), [Err(403), Ok(()), Err(403), Ok(())]);
    let deny = |setup: &mut Setup| setup.turn.peers.deny = vec!["9.9.9.0/24".parse().unwrap()];
    assert_eq!(judge(deny, &peers), [Err(403), Ok(()), Err(403), Ok(())]);
}

#[test]
fn own_addresses_are_not_reached_through_nat64() {
    let own = |setup: &mut Setup| setup.turn.peers.own_addresses = vec!["8.8.8.8".parse().unwrap()];
    assert_eq!(
        judge(own, &["8.8.8.8:1", "[64:ff9b::8.8.8.8]:1", "[64:ff9b::8.8.4.4]:1"]),
        [Err(403), Err(403), Ok(())]
    );
    let relay = |setup: &mut Setup| {
        setup.turn.relay_addresses[0].advertised = Some("8.8.8.8".parse().unwrap());
        setup.turn.peers.allow = vec!["::/0".parse().unwrap()];
    };
    assert_eq!(judge(relay, &["[64:ff9b::8.8.8.8]:3478"]), [Err(403)], "though everything is allowed");
}

#[test]
fn special_ranges_are_not_reached_through_nat64_unless_they_are_allowed() {
    let peers = ["[64:ff9b::10.0.0.1]:1", "[64:ff9b::127.0.0.1]:1", "[64:ff9b::169.254.169.254]:1"];
    assert_eq!(judge(|_| {}, &peers), [Err(403); 3]);
    let allow = |setup: &mut Setup| setup.turn.peers.allow = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(judge(allow, &peers), [Ok(()), Err(403), Err(403)]);
}

#[test]
fn tunnels_and_other_forms_of_ipv4_are_refused_whatever_is_allowed() {
    // RFC 8656 section 21.4: "a TURN server MUST NOT accept Teredo or 6to4 addresses in these requests."
    let allow = |setup: &mut Setup| {
        setup.turn.peers.allow = vec!["::/0".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    };
    let peers = [
        "[2001:0:102:304::1]:1",
        "[2002:909:909::1]:1",
        "[::ffff:127.0.0.1]:1",
        "[::ffff:9.9.9.9]:1",
        "[::9.9.9.9]:1",
        "[::]:1",
        "0.0.0.0:1",
    ];
    assert_eq!(judge(allow, &peers), [Err(403); 7]);
    assert_eq!(judge(allow, &["10.0.0.1:1", "[fd00::1]:1", "[::1]:9", "127.0.0.1:9"]), [Ok(()); 4]);
}

#[test]
fn allow_only_refuses_what_is_not_allowed() {
    let allow = |setup: &mut Setup| {
        setup.turn.peers.allow = vec!["9.9.9.0/24".parse().unwrap()];
        setup.turn.peers.allow_only = true;
    };
    let peers = ["9.9.9.9:1", "9.9.8.9:1", "[64:ff9b::9.9.9.9]:1", "[64:ff9b::9.9.8.9]:1", "[2620:fe::fe]:1"];
    assert_eq!(judge(allow, &peers), [Ok(()), Err(403), Ok(()), Err(403), Err(403)]);
}

#[test]
fn a_group_of_users_has_lists_of_its_own_and_a_reload_changes_them() {
    let confined = |setup: &mut Setup, member: &str| {
        setup.turn.peers.groups = vec![PeerGroup {
            members: vec![member.parse().unwrap()],
            allow: vec!["10.7.0.0/16".parse().unwrap()],
            allow_only: true,
            ..PeerGroup::default()
        }];
    };
    let mut world = World::with(|setup| confined(setup, "guest-*"));
    let allocated = |world: &mut World, address: &str, username: &str| {
        let mut client = Client::new(address).time_limited(username);
        client.allocate(world).relay();
        client
    };
    let mut guest = allocated(&mut world, "198.51.100.1:1000", "1900000000:guest-1");
    let mut other = allocated(&mut world, "198.51.100.1:1001", "1900000000:carol");
    let (sfu, public) = ("10.7.0.1:5000", "9.9.9.9:1");
    assert_eq!(guest.permit(&mut world, &[sfu]).result(), Ok(()));
    assert_eq!(guest.bind(&mut world, 0x4000, sfu).result(), Ok(()));
    assert_eq!(guest.permit(&mut world, &[sfu, public]).result(), Err(403), "all or nothing");
    assert_eq!(guest.bind(&mut world, 0x4001, public).result(), Err(403));
    assert_eq!(other.permit(&mut world, &[public]).result(), Ok(()));
    assert_eq!(other.bind(&mut world, 0x4000, sfu).result(), Err(403), "private");
    world.reload(|setup| confined(setup, "carol"));
    assert_eq!(guest.permit(&mut world, &[public]).result(), Ok(()));
    assert_eq!(guest.bind(&mut world, 0x4000, sfu).result(), Err(403), "a refresh is judged anew");
    assert_eq!(other.permit(&mut world, &[public]).result(), Err(403));
    assert_eq!(other.bind(&mut world, 0x4001, sfu).result(), Ok(()));
}
