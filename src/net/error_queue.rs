//! ICMP errors about datagrams that a socket sent, as the kernel keeps them in the socket's error queue.

use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use super::control::{self, Control, Name};
use crate::address::Family;

/// What one [`read_error_queue`] takes at most, so that a flood of ICMP messages cannot hold a worker.
pub const ERRORS_PER_READ: usize = 64;

/// An ICMP error that a datagram caused on its way (RFC 8656 section 11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Where the datagram was going, which is not who sent the ICMP message.
    pub to: SocketAddr,
    /// ICMP (RFC 792) or ICMPv6 (RFC 4443), which number types and codes differently.
    pub origin: Family,
    /// The type.
    pub kind: u8,
    pub code: u8,
    /// The next-hop MTU in bytes of an ICMP "fragmentation needed" (3, 4) or an ICMPv6 "packet too big" (2, 0), else 0.
    pub mtu: u32,
}

/// Reads the error queue of a relay socket until it is empty, but no more than [`ERRORS_PER_READ`] entries, and calls
/// `report` for each ICMP error; other entries, such as errors of this host itself, are passed over.
///
/// Returns the number of entries taken; if it is [`ERRORS_PER_READ`], there may be more. An entry left there keeps a
/// level-triggered poll returning, and takes its share of the socket's receive buffer.
pub fn read_error_queue(socket: &UdpSocket, mut report: impl FnMut(IcmpError)) -> io::Result<usize> {
    let mut name = Name::empty();
    let mut control = Control::empty();
    for taken in 0..ERRORS_PER_READ {
        // SAFETY: all zero is an empty message header.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = (&raw mut name).cast();
        header.msg_namelen = Name::BYTES;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = Control::BYTES as _;
        // SAFETY: name and control messages have the lengths that the header announces, and outlive the call; no room
        // is offered for the datagram itself.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(taken),
                Some(_) | None => Err(error),
            };
        }
        let Some(to) = name.parse(header.msg_namelen) else { continue };
        // SAFETY: the kernel filled the control messages of this header just now.
        unsafe {
            control::for_each(&header, |level, kind, payload| {
                let is_error = matches!(
                    (level, kind),
                    (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
                );
                if is_error && let Some(error) = control::read(payload).and_then(|error| icmp_error(to, error)) {
                    report(error);
                }
            });
        }
    }
    Ok(ERRORS_PER_READ)
}

fn icmp_error(to: SocketAddr, error: libc::sock_extended_err) -> Option<IcmpError> {
    let origin = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP => Family::V4,
        libc::SO_EE_ORIGIN_ICMP6 => Family::V6,
        _ => return None,
    };
    let mtu = match (origin, error.ee_type, error.ee_code) {
        (Family::V4, 3, 4) | (Family::V6, 2, 0) => error.ee_info,
        (Family::V4 | Family::V6, _, _) => 0,
    };
    Some(IcmpError { to, origin, kind: error.ee_type, code: error.ee_code, mtu })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use socket2::{Domain, Protocol, Socket, Type};

    use super::*;
    use crate::net::socket::{UdpOptions, open_relay, set_dont_fragment};
    use crate::net::test_support::{closed_port, wait_for_error};

    fn read_all(socket: &UdpSocket) -> Vec<IcmpError> {
        let mut errors = Vec::new();
        read_error_queue(socket, |error| errors.push(error)).unwrap();
        errors
    }

    #[test]
    fn a_closed_port_is_reported_with_the_destination_of_the_datagram() {
        for (ip, origin, kind, code) in [("127.0.0.1", Family::V4, 3, 3), ("::1", Family::V6, 1, 4)] {
            let relay = open_relay(SocketAddr::new(ip.parse().unwrap(), 0), &UdpOptions::RELAY).unwrap();
            let (_closed, to) = closed_port(ip);
            relay.send_to(b"anyone?", to).unwrap();
            wait_for_error(&relay);
            assert_eq!(read_all(&relay), [IcmpError { to, origin, kind, code, mtu: 0 }]);
            assert_eq!(read_all(&relay), []);
        }
    }

    #[test]
    fn a_packet_that_is_too_big_is_reported_also_when_the_df_bit_is_no_longer_set() {
        // The MTU of loopback is 65,536: the host shall not remember another one for ::1, which other tests use.
        for (ip, kind, code, mtu) in [("127.0.0.1", 3, 4, 1300), ("::1", 2, 0, 65_536)] {
            let relay = open_relay(SocketAddr::new(ip.parse().unwrap(), 0), &UdpOptions::RELAY).unwrap();
            let (_peer, to) = closed_port(ip);
            set_dont_fragment(&relay, true).unwrap();
            set_dont_fragment(&relay, false).unwrap();
            if let Err(error) = send_too_big(relay.local_addr().unwrap(), to, mtu) {
                // Without the privilege nothing can be proved here; CI has it.
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                eprintln!("NOT TESTED, ICMP messages need CAP_NET_RAW: {error}");
                return;
            }
            wait_for_error(&relay);
            assert_eq!(read_all(&relay), [IcmpError { to, origin: Family::of(to.ip()), kind, code, mtu }]);
        }
    }

    /// Has an ICMP message arrive as from a router on the way that forwards packets of `mtu` bytes.
    fn send_too_big(from: SocketAddr, to: SocketAddr, mtu: u32) -> io::Result<()> {
        let udp = [from.port().to_be_bytes(), to.port().to_be_bytes(), [0, 16], [0, 0]].concat();
        let (domain, protocol, mut message, packet) = match (from.ip(), to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header =
                    [&[0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0], &source.octets()[..], &destination.octets()];
                (Domain::IPV4, Protocol::ICMPV4, vec![3, 4, 0, 0], header.concat())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = [&[0x60, 0, 0, 0, 0, 16, 17, 64], &source.octets()[..], &destination.octets()];
                (Domain::IPV6, Protocol::ICMPV6, vec![2, 0, 0, 0], header.concat())
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => unreachable!("both are of one family"),
        };
        message.extend([&mtu.to_be_bytes()[..], &packet, &udp, &[0; 8]].concat());
        if from.is_ipv4() {
            // The kernel writes the checksum of ICMPv6 alone (RFC 1071).
            let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let folded = (sum & 0xFFFF) + (sum >> 16);
            message[2..4].copy_from_slice(&(!((folded & 0xFFFF) + (folded >> 16)) as u16).to_be_bytes());
        }
        let router = Socket::new(domain, Type::RAW, Some(protocol))?;
        router.send_to(&message, &SocketAddr::new(from.ip(), 0).into()).map(drop)
    }

    #[test]
    fn reading_is_bounded_and_goes_on_where_it_stopped() {
        let relay = open_relay("127.0.0.1:0".parse().unwrap(), &UdpOptions::RELAY).unwrap();
        let (_closed, to) = closed_port("127.0.0.1");
        // Linux lets every ICMP error pass on loopback; each send may report the error of the one before.
        let mut sent = 0;
        while sent < ERRORS_PER_READ + 3 {
            sent += usize::from(relay.send_to(b"anyone?", to).is_ok());
        }
        let mut total = 0;
        let mut reads = Vec::new();
        while total < sent {
            wait_for_error(&relay);
            let taken = read_error_queue(&relay, |_| total += 1).unwrap();
            assert!(taken <= ERRORS_PER_READ);
            reads.push(taken);
        }
        assert!(reads.len() > 1, "{reads:?}");
        assert_eq!(read_error_queue(&relay, |_| total += 1).unwrap(), 0);
    }

    #[test]
    fn errors_of_this_host_are_passed_over() {
        let relay = open_relay("[::1]:0".parse().unwrap(), &UdpOptions::RELAY).unwrap();
        set_dont_fragment(&relay, true).unwrap();
        // 65,527 + 8 + 40 bytes are more than the MTU of loopback, 65,536.
        let error = relay.send_to(&[0; 65527], relay.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let mut reported = 0;
        assert_eq!(read_error_queue(&relay, |_| reported += 1).unwrap(), 1);
        assert_eq!(reported, 0);
    }

    #[test]
    fn a_next_hop_mtu_is_told_for_the_two_errors_that_have_one() {
        let to = "192.0.2.1:9".parse().unwrap();
        let error = |ee_origin, ee_type, ee_code| {
            let error = libc::sock_extended_err {
                ee_errno: 0,
                ee_origin,
                ee_type,
                ee_code,
                ee_pad: 0,
                ee_info: 1280,
                ee_data: 0,
            };
            icmp_error(to, error).map(|error| error.mtu)
        };
        assert_eq!(error(libc::SO_EE_ORIGIN_ICMP, 3, 4), Some(1280));
        assert_eq!(error(libc::SO_EE_ORIGIN_ICMP6, 2, 0), Some(1280));
        assert_eq!(error(libc::SO_EE_ORIGIN_ICMP, 12, 0), Some(0));
        assert_eq!(error(libc::SO_EE_ORIGIN_ICMP6, 3, 4), Some(0));
        assert_eq!(error(libc::SO_EE_ORIGIN_LOCAL, 3, 4), None);
    }
}
