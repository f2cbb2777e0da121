//! Opening sockets, with every option that the packet loop relies on.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use libc::c_int;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::headroom::spare;
pub use super::open_error::{OpenError, Purpose, Reason};
use crate::address::Family;

/// The sizes of a UDP socket's kernel buffers, in the units of `SO_RCVBUF`: the kernel charges bookkeeping to the
/// buffer as well and reserves twice as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    pub receive_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
}

impl UdpOptions {
    /// What a listener gets: the traffic of all clients of one worker.
    ///
    /// Receive: rate x 20 ms, since more would only be stale audio. 200,000 packets/s (a saturated core) x 20 ms =
    /// 4,000 packets x 832 bytes charged for one of 160 = 3.2 MiB charged; 2 MiB asked for gives 4, which is 5,041
    /// such packets (25 ms) or 1,820 of 1,200 bytes. Send: half of that, as the device empties it by itself.
    pub const LISTENER: Self = Self { receive_buffer_bytes: 2 << 20, send_buffer_bytes: 1 << 20 };

    /// What a relay socket gets: the traffic of one allocation.
    ///
    /// A burst of 200 packets of video (a key frame) x 2,304 bytes charged for one of 1,200 = 450 KiB charged; 256 KiB
    /// asked for gives 512. It is a bound, not a reservation: an idle socket holds nothing.
    pub const RELAY: Self = Self { receive_buffer_bytes: 256 << 10, send_buffer_bytes: 256 << 10 };
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self::LISTENER
    }
}

/// Opens `count` (at least one) non-blocking sockets on `address` that share its traffic by a hash of the source
/// (SO_REUSEPORT), in the order of their index in the group; port 0 gives all of them the same free port.
///
/// The first is bound without SO_REUSEPORT, so that it fails with [`Reason::InUse`] if anything else is on the port,
/// another ferryd included; the others join it afterwards. An IPv6 wildcard is of its own family only. The sockets
/// report TOS and drop counter of each datagram, on a wildcard its destination address too, and never set the DF bit.
pub fn open_udp_listeners(
    address: SocketAddr,
    count: usize,
    options: &UdpOptions,
) -> Result<Vec<UdpSocket>, OpenError> {
    let opening = Opening { purpose: Purpose::UdpListener, address };
    let first = opening.udp_socket(listener_options(address.ip()), options)?;
    opening.bind(&first, address)?;
    let first = UdpSocket::from(first);
    let bound = first.local_addr().map_err(|error| opening.failed(error))?;
    let mut group = vec![first];
    if count > 1 {
        opening.set(&group[0], &REUSE_PORT)?;
    }
    for _ in 1..count {
        let socket = opening.udp_socket(listener_options(address.ip()), options)?;
        opening.set(&socket, &REUSE_PORT)?;
        opening.bind(&socket, bound)?;
        group.push(socket.into());
    }
    Ok(group)
}

/// Makes listeners of sockets that are bound to `address` already, as [`open_udp_listeners`] makes them, and opens the
/// others of `count` beside them. The order of the group is that of binding.
pub(super) fn adopt_udp_listeners(
    bound: Vec<Socket>,
    address: SocketAddr,
    count: usize,
    options: &UdpOptions,
) -> Result<Vec<UdpSocket>, OpenError> {
    let opening = Opening { purpose: Purpose::UdpListener, address };
    let mut group = Vec::new();
    for socket in bound {
        opening.prepare(&socket, listener_options(address.ip()), options)?;
        // A daemon before may have had it merge what arrives; kernels that cannot do that refuse.
        let _ = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 0);
        if count > 1 {
            opening.set(&socket, &REUSE_PORT)?;
        }
        group.push(UdpSocket::from(socket));
    }
    while group.len() < count {
        let socket = opening.udp_socket(listener_options(address.ip()), options)?;
        opening.set(&socket, &REUSE_PORT)?;
        opening.bind(&socket, address)?;
        group.push(socket.into());
    }
    Ok(group)
}

/// Opens a non-blocking relay socket on exactly this address and port, shared with nobody.
///
/// ICMP errors about what it sends wait in its error queue (`error_queue::read_error_queue`); the TOS of each datagram is
/// reported. RFC 8656 section 14, alternate behavior for the DF bit: "the server assumes that the
/// incoming DF bit is always 0", so the host fragments what is too large.
pub fn open_relay(address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, OpenError> {
    let opening = Opening { purpose: Purpose::Relay, address };
    let socket = opening.udp_socket(relay_options(Family::of(address.ip())), options)?;
    spare(&socket).map_err(|error| opening.failed(error))?;
    opening.bind(&socket, address)?;
    Ok(socket.into())
}

/// Opens a non-blocking TCP listener that a restarted daemon can take over at once (SO_REUSEADDR); `backlog` is in
/// connections and capped by `net.core.somaxconn`.
pub fn open_tcp_listener(address: SocketAddr, backlog: i32) -> Result<TcpListener, OpenError> {
    open_tcp(Purpose::TcpListener, address, backlog)
}

pub(super) fn open_tcp(purpose: Purpose, address: SocketAddr, backlog: i32) -> Result<TcpListener, OpenError> {
    let opening = Opening { purpose, address };
    let socket = opening.socket(Type::STREAM, Protocol::TCP)?;
    opening.set(&socket, &SocketOption::on(libc::SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR"))?;
    opening.bind(&socket, address)?;
    socket.listen(backlog).map_err(|error| opening.failed(error))?;
    Ok(socket.into())
}

/// Sets or clears the DF bit of what the socket sends from now on, for a Send indication with DONT-FRAGMENT (RFC 8656
/// section 11.3); IPv6 datagrams are then never fragmented by this host.
///
/// Linux has no such control message for IPv4: flush what is queued for this socket before and after. While it is set,
/// a datagram larger than the interface's MTU fails with EMSGSIZE. It is sent whatever the host remembers of the path
/// MTU (IP_PMTUDISC_PROBE), so that each client gets the ICMP error for its own datagram.
pub fn set_dont_fragment(socket: &UdpSocket, dont_fragment: bool) -> io::Result<()> {
    let is_v6 = SockRef::from(socket).domain()? == Domain::IPV6;
    let (level, name, value) = match (is_v6, dont_fragment) {
        (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT),
        (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
    };
    set_option(socket, level, name, value)
}

/// Has a socket receive several datagrams as one where they follow each other, are of one source and of one length, but for
/// the last (UDP_GRO, udp(7)). For good: what waits merged would lose its boundaries if that were taken back.
pub fn merge(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Changes the size of a socket's receive buffer, within what the host allows.
pub(super) fn resize_receive_buffer(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    SockRef::from(socket).set_recv_buffer_size(bytes)
}

/// Gives a socket the buffers that are asked for, beyond what the host allows everybody: needs CAP_NET_ADMIN.
pub fn force_buffers(socket: &UdpSocket, options: &UdpOptions) -> io::Result<()> {
    let bytes = |bytes: usize| c_int::try_from(bytes).unwrap_or(c_int::MAX).min(c_int::MAX / 2);
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes(options.receive_buffer_bytes))?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes(options.send_buffer_bytes))
}

/// Returns the buffer sizes that a socket got, which `net.core.rmem_max` and `wmem_max` cap without CAP_NET_ADMIN.
pub fn buffer_sizes(socket: &UdpSocket) -> io::Result<UdpOptions> {
    let socket = SockRef::from(socket);
    Ok(UdpOptions {
        receive_buffer_bytes: socket.recv_buffer_size()? / 2,
        send_buffer_bytes: socket.send_buffer_size()? / 2,
    })
}

/// A socket being opened: what its errors name.
struct Opening {
    purpose: Purpose,
    address: SocketAddr,
}

impl Opening {
    fn failed(&self, error: io::Error) -> OpenError {
        OpenError::new(self.purpose, self.address, error)
    }

    fn socket(&self, kind: Type, protocol: Protocol) -> Result<Socket, OpenError> {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, kind.nonblocking(), Some(protocol)).map_err(|error| self.failed(error))?;
        if self.address.is_ipv6() {
            self.set(&socket, &SocketOption::on(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, "IPV6_V6ONLY"))?;
        }
        Ok(socket)
    }

    fn udp_socket(&self, settings: &[SocketOption], options: &UdpOptions) -> Result<Socket, OpenError> {
        let socket = self.socket(Type::DGRAM, Protocol::UDP)?;
        self.prepare(&socket, settings, options)?;
        Ok(socket)
    }

    fn prepare(&self, socket: &Socket, settings: &[SocketOption], options: &UdpOptions) -> Result<(), OpenError> {
        for setting in settings {
            self.set(socket, setting)?;
        }
        self.set_buffer(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, "SO_RCVBUF", options.receive_buffer_bytes)?;
        self.set_buffer(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, "SO_SNDBUF", options.send_buffer_bytes)
    }

    fn set_buffer(
        &self,
        socket: &Socket,
        force: c_int,
        name: c_int,
        label: &'static str,
        bytes: usize,
    ) -> Result<(), OpenError> {
        // The kernel doubles the value.
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX).min(c_int::MAX / 2);
        if set_option(socket, libc::SOL_SOCKET, force, bytes).is_ok() {
            return Ok(());
        }
        self.set(socket, &SocketOption { level: libc::SOL_SOCKET, name, value: bytes, label })
    }

    fn set(&self, socket: &impl AsFd, option: &SocketOption) -> Result<(), OpenError> {
        set_option(socket, option.level, option.name, option.value)
            .map_err(|error| OpenError::option(self.purpose, self.address, option.label, error))
    }

    fn bind(&self, socket: &Socket, address: SocketAddr) -> Result<(), OpenError> {
        socket.bind(&address.into()).map_err(|error| self.failed(error))
    }
}

/// An integer socket option and its name for people.
struct SocketOption {
    level: c_int,
    name: c_int,
    value: c_int,
    label: &'static str,
}

impl SocketOption {
    const fn on(level: c_int, name: c_int, label: &'static str) -> Self {
        Self { level, name, value: 1, label }
    }
}

const REUSE_PORT: SocketOption = SocketOption::on(libc::SOL_SOCKET, libc::SO_REUSEPORT, "SO_REUSEPORT");
const DROP_COUNTER: SocketOption = SocketOption::on(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, "SO_RXQ_OVFL");
const FRAGMENT_V4: SocketOption = SocketOption {
    level: libc::IPPROTO_IP,
    name: libc::IP_MTU_DISCOVER,
    value: libc::IP_PMTUDISC_DONT,
    label: "IP_MTU_DISCOVER",
};
/// As without path MTU discovery (IP_PMTUDISC_DONT), but that errors of "fragmentation needed" come to the socket: they
/// are about datagrams with the DF bit, which is cleared again by then (see [`set_dont_fragment`]). IPv6 tells them with
/// IPV6_PMTUDISC_DONT too.
const FRAGMENT_RELAYED_V4: SocketOption = SocketOption { value: libc::IP_PMTUDISC_OMIT, ..FRAGMENT_V4 };
const FRAGMENT_V6: SocketOption = SocketOption {
    level: libc::IPPROTO_IPV6,
    name: libc::IPV6_MTU_DISCOVER,
    value: libc::IPV6_PMTUDISC_DONT,
    label: "IPV6_MTU_DISCOVER",
};
const TOS_V4: SocketOption = SocketOption::on(libc::IPPROTO_IP, libc::IP_RECVTOS, "IP_RECVTOS");
const TOS_V6: SocketOption = SocketOption::on(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, "IPV6_RECVTCLASS");

const DESTINATION_V4: SocketOption = SocketOption::on(libc::IPPROTO_IP, libc::IP_PKTINFO, "IP_PKTINFO");
const DESTINATION_V6: SocketOption = SocketOption::on(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO");

fn listener_options(ip: IpAddr) -> &'static [SocketOption] {
    match (Family::of(ip), ip.is_unspecified()) {
        (Family::V4, false) => const { &[DROP_COUNTER, FRAGMENT_V4, TOS_V4] },
        (Family::V4, true) => const { &[DROP_COUNTER, FRAGMENT_V4, TOS_V4, DESTINATION_V4] },
        (Family::V6, false) => const { &[DROP_COUNTER, FRAGMENT_V6, TOS_V6] },
        (Family::V6, true) => const { &[DROP_COUNTER, FRAGMENT_V6, TOS_V6, DESTINATION_V6] },
    }
}

fn relay_options(family: Family) -> &'static [SocketOption] {
    match family {
        Family::V4 => {
            const { &[FRAGMENT_RELAYED_V4, TOS_V4, SocketOption::on(libc::IPPROTO_IP, libc::IP_RECVERR, "IP_RECVERR")] }
        }
        Family::V6 => {
            const { &[FRAGMENT_V6, TOS_V6, SocketOption::on(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, "IPV6_RECVERR")] }
        }
    }
}

pub(super) fn set_option(socket: &impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads size_of::<c_int>() bytes from `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::net::test_support::{has_datagram, wait_for_datagram, wait_until};

    fn listeners(address: &str, count: usize) -> Result<Vec<UdpSocket>, OpenError> {
        open_udp_listeners(address.parse().unwrap(), count, &UdpOptions::default())
    }

    fn int_option(socket: &UdpSocket, level: c_int, name: c_int) -> c_int {
        let mut value: c_int = -1;
        let mut length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: value and length outlive the call, and the length is that of the value.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
        assert_eq!(result, 0);
        value
    }

    #[test]
    fn a_group_shares_its_traffic_and_a_flow_stays_on_one_socket() {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let group = listeners(any, 4).unwrap();
            let port = group[0].local_addr().unwrap().port();
            assert!(group.iter().all(|socket| socket.local_addr().unwrap().port() == port));
            let loopback = if any.starts_with('[') { "::1" } else { "127.0.0.1" };
            let mut seen = HashMap::new();
            for _ in 0..64 {
                let client = UdpSocket::bind((loopback, 0)).unwrap();
                for _ in 0..3 {
                    client.send_to(b"x", (loopback, port)).unwrap();
                }
                let mut left = 3;
                wait_until(|| {
                    for (index, socket) in group.iter().enumerate() {
                        if let Ok((_, from)) = socket.recv_from(&mut [0; 8]) {
                            assert_eq!(*seen.entry(from).or_insert(index), index);
                            left -= 1;
                        }
                    }
                    left == 0
                });
            }
            // A socket without any of the 64 flows: 4 x 0.75^64, one in 25 million.
            assert!((0..4).all(|index| seen.values().any(|&socket| socket == index)), "{seen:?}");
        }
    }

    #[test]
    fn an_adopted_socket_merges_nothing_whatever_it_did_before() {
        let before = listeners("127.0.0.1:0", 1).unwrap().remove(0);
        merge(&before).unwrap();
        assert_eq!(int_option(&before, libc::SOL_UDP, libc::UDP_GRO), 1);
        let address = before.local_addr().unwrap();
        let group = adopt_udp_listeners(vec![before.into()], address, 1, &UdpOptions::default()).unwrap();
        assert_eq!(int_option(&group[0], libc::SOL_UDP, libc::UDP_GRO), 0);
    }

    #[test]
    fn a_port_in_use_is_detected_whoever_holds_it() {
        for (any, exact) in [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")] {
            for count in [1, 3] {
                for (first, second) in [(any, any), (any, exact), (exact, any), (exact, exact)] {
                    let group = listeners(&format!("{first}:0"), count).unwrap();
                    let second = format!("{second}:{}", group[0].local_addr().unwrap().port());
                    let error = listeners(&second, count).unwrap_err();
                    assert_eq!(error.reason, Reason::InUse);
                    let expected =
                        format!("cannot open UDP listener on {second}: the port is in use (by another ferryd?)");
                    assert_eq!(error.to_string(), expected);
                    drop(group);
                    // A process that is being started has copies for a moment, and the port is anybody's.
                    wait_until(|| listeners(&second, count).is_ok());
                }
            }
        }
    }

    #[test]
    fn a_foreign_socket_that_shares_its_port_is_detected() {
        let foreign = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        foreign.set_reuse_port(true).unwrap();
        foreign.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let address = foreign.local_addr().unwrap().as_socket().unwrap();
        let error = open_udp_listeners(address, 2, &UdpOptions::default()).unwrap_err();
        assert_eq!(error.reason, Reason::InUse);
    }

    #[test]
    fn wildcards_of_both_families_live_side_by_side() {
        let v4 = listeners("0.0.0.0:0", 2).unwrap();
        let port = v4[0].local_addr().unwrap().port();
        let v6 = listeners(&format!("[::]:{port}"), 2).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", ("127.0.0.1", port)).unwrap();
        wait_until(|| v4.iter().any(has_datagram));
        assert!(!v6.iter().any(has_datagram));
        let v4 = open_tcp_listener("0.0.0.0:0".parse().unwrap(), 16).unwrap();
        let port = v4.local_addr().unwrap().port();
        open_tcp_listener(format!("[::]:{port}").parse().unwrap(), 16).unwrap();
    }

    #[test]
    fn a_relay_port_is_shared_with_nobody() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let relay = open_relay(address.parse().unwrap(), &UdpOptions::RELAY).unwrap();
            let address = relay.local_addr().unwrap();
            let error = open_relay(address, &UdpOptions::RELAY).unwrap_err();
            assert_eq!(error.to_string(), format!("cannot open relay socket on {address}: the port is in use"));
            assert_eq!(relay.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_tcp_listener_accepts_without_waiting_and_keeps_its_port() {
        let listener = open_tcp_listener("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let error = open_tcp_listener(address, 16).unwrap_err();
        let expected = format!("cannot open TCP listener on {address}: the port is in use (by another ferryd?)");
        assert_eq!(error.to_string(), expected);
        let client = std::net::TcpStream::connect(address).unwrap();
        wait_for_datagram(&listener);
        let (server, _) = listener.accept().unwrap();
        // The server's side closes first and lingers in TIME-WAIT on the listener's port.
        drop(server);
        drop(listener);
        drop(client);
        wait_until(|| open_tcp_listener(address, 16).is_ok());
    }

    #[test]
    fn a_refused_option_is_named() {
        let opening = Opening { purpose: Purpose::Relay, address: "127.0.0.1:9".parse().unwrap() };
        let socket = opening.socket(Type::DGRAM, Protocol::UDP).unwrap();
        let error = opening.set(&socket, &SocketOption::on(libc::IPPROTO_IP, 0x7fff, "IP_NONSENSE")).unwrap_err();
        assert_eq!(error.reason, Reason::Option("IP_NONSENSE"));
        assert!(error.to_string().contains("the kernel refused IP_NONSENSE: Protocol not available"), "{error}");
    }

    #[test]
    fn buffers_have_the_sizes_asked_for_unless_the_host_caps_them() {
        let asked = UdpOptions { receive_buffer_bytes: 96 << 10, send_buffer_bytes: 48 << 10 };
        let relay = open_relay("127.0.0.1:0".parse().unwrap(), &asked).unwrap();
        assert_eq!(buffer_sizes(&relay).unwrap(), asked);
    }

    #[test]
    fn dont_fragment_is_off_until_it_is_set_and_can_be_cleared() {
        let relay = open_relay("127.0.0.1:0".parse().unwrap(), &UdpOptions::RELAY).unwrap();
        let discovery = || int_option(&relay, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
        assert_eq!(discovery(), libc::IP_PMTUDISC_OMIT);
        set_dont_fragment(&relay, true).unwrap();
        assert_eq!(discovery(), libc::IP_PMTUDISC_PROBE);
        set_dont_fragment(&relay, false).unwrap();
        assert_eq!(discovery(), libc::IP_PMTUDISC_OMIT);
    }

    #[test]
    fn dont_fragment_decides_whether_a_datagram_larger_than_the_mtu_leaves() {
        let relay = open_relay("[::1]:0".parse().unwrap(), &UdpOptions::LISTENER).unwrap();
        let peer = UdpSocket::bind("[::1]:0").unwrap();
        let to = peer.local_addr().unwrap();
        // With 48 bytes of headers more than the MTU of loopback, 65,536.
        let large = [7; 65500];
        set_dont_fragment(&relay, true).unwrap();
        assert_eq!(relay.send_to(&large, to).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        set_dont_fragment(&relay, false).unwrap();
        relay.send_to(&large, to).unwrap();
        assert_eq!(peer.recv(&mut [0; 65535]).unwrap(), large.len());
    }
}
