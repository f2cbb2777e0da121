//! What the kernel knows of routes, interfaces and neighbours (rtnetlink).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::address::Family;

/// A gateway of another family than the route's (linux/rtnetlink.h); libc has it for glibc alone.
const RTA_VIA: u16 = 18;
/// What a route puts around its packets: MPLS, segments, another IP header (linux/rtnetlink.h).
const RTA_ENCAP_TYPE: u16 = 21;
/// A kernel that says nothing for this long says nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// Room for one datagram of a dump: the kernel fills 32 KiB at most.
const BUFFER: usize = 32 << 10;

const HEADER: usize = 16;
/// Attributes are aligned to this.
const ALIGN: usize = 4;

/// From linux/if_link.h, linux/rtnetlink.h and linux/neighbour.h, as far as libc does not have them.
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_STATS64: u16 = 23;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTAX_MTU: u16 = 2;
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const NUD_USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;
const NUD_PERMANENT: u16 = 0x80;
const NTF_USE: u8 = 0x01;
const ARPHRD_ETHER: u16 = 1;

/// A way from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) ifindex: u32,
    /// `None` where the destination itself is on the link.
    pub(super) gateway: Option<IpAddr>,
    /// What the route says of its own MTU, in bytes.
    pub(super) mtu: Option<u32>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) is_loopback: bool,
    pub(super) is_ethernet: bool,
    pub(super) mtu: u32,
    pub(super) address: Option<[u8; 6]>,
    /// What makes it a virtual one: "veth", "bridge", "vlan".
    pub(super) kind: Option<String>,
}

/// Asks, one question at a time.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = open(0, 0)?;
        let patience = libc::timeval { tv_sec: PATIENCE.as_secs() as _, tv_usec: 0 };
        // SAFETY: the descriptor is open, and the kernel reads a timeval.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const patience).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(Self { socket, sequence: 0 }) } else { Err(io::Error::last_os_error()) }
    }

    /// The way to a unicast destination outside this host; `None` where there is none, or one that packets are wrapped for.
    pub(super) fn route(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<Route>> {
        let bits = (octets(to).len() * 8) as u8;
        let mut request = Request::new(libc::RTM_GETROUTE, 0);
        // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
        request.bytes.extend([family(to), bits, bits, 0, 0, 0, 0, 0]);
        request.bytes.extend(RTM_F_LOOKUP_TABLE.to_ne_bytes());
        request.attribute(libc::RTA_DST, &octets(to));
        request.attribute(libc::RTA_SRC, &octets(from));
        let mut route = None;
        match self.ask(request, |kind, body| {
            if kind == libc::RTM_NEWROUTE {
                route = parse_route(body);
            }
        }) {
            Ok(()) => Ok(route),
            // ENETUNREACH, EHOSTUNREACH, EACCES for a prohibited one, EINVAL for a blackhole.
            Err(error) if error.raw_os_error().is_some_and(is_no_route) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every interface.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP);
        // struct ifinfomsg
        request.bytes.extend([0; 16]);
        let mut links = Vec::new();
        self.ask(request, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                links.extend(parse_link(body));
            }
        })?;
        Ok(links)
    }

    /// Packets that an interface has received or sent with an error.
    pub(super) fn failures(&mut self, ifindex: u32) -> io::Result<u64> {
        let mut request = Request::new(libc::RTM_GETLINK, 0);
        // struct ifinfomsg
        request.bytes.extend([0; 16]);
        request.bytes[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
        let mut failures = 0;
        self.ask(request, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                failures = parse_failures(body).unwrap_or(0);
            }
        })?;
        Ok(failures)
    }

    /// Every address, after the index of its interface.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut request = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP);
        // struct ifaddrmsg
        request.bytes.extend([0; 8]);
        let mut addresses = Vec::new();
        self.ask(request, |kind, body| {
            if kind == libc::RTM_NEWADDR && body.len() >= 8 {
                let ifindex = u32_at(body, 4);
                // The local end; IFA_ADDRESS is the other one of a point-to-point link.
                let find = |wanted| attributes(&body[8..]).find(|(kind, _)| *kind == wanted);
                let value = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS));
                addresses.extend(value.and_then(|(_, value)| ip(value)).map(|ip| (ifindex, ip)));
            }
        })?;
        Ok(addresses)
    }

    /// The hardware address of a neighbour that the kernel has resolved.
    pub(super) fn neighbour(&mut self, ifindex: u32, ip: IpAddr) -> io::Result<Option<[u8; 6]>> {
        let (state, address) = self.entry(ifindex, ip)?;
        Ok(address.filter(|_| state & NUD_USABLE != 0))
    }

    /// The state of a neighbour and its hardware address; one that the kernel does not know has none of either.
    fn entry(&mut self, ifindex: u32, ip: IpAddr) -> io::Result<(u16, Option<[u8; 6]>)> {
        let mut request = Request::new(libc::RTM_GETNEIGH, 0);
        request.neighbour(ifindex, ip, 0, 0);
        let mut entry = (0, None);
        let asked = self.ask(request, |kind, body| {
            if kind == libc::RTM_NEWNEIGH && body.len() >= 12 {
                let found = attributes(&body[12..]).find(|(kind, _)| *kind == libc::NDA_LLADDR);
                let address = found.and_then(|(_, value)| value.try_into().ok());
                entry = (u16::from_ne_bytes([body[8], body[9]]), address);
            }
        });
        match asked {
            Ok(()) => Ok(entry),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(entry),
            Err(error) => Err(error),
        }
    }

    /// Has the kernel resolve a neighbour, or confirm it, as for a packet of its own; needs CAP_NET_ADMIN.
    ///
    /// One that the operator has written down is left as it is: Linux takes its permanence away when it is asked to use it
    /// (since 5.16), and nobody may answer for it.
    pub(super) fn use_neighbour(&mut self, ifindex: u32, ip: IpAddr) -> io::Result<()> {
        if self.entry(ifindex, ip)?.0 & NUD_PERMANENT != 0 {
            return Ok(());
        }
        let flags = libc::NLM_F_CREATE | libc::NLM_F_ACK;
        let mut request = Request::new(libc::RTM_NEWNEIGH, flags);
        request.neighbour(ifindex, ip, 0, NTF_USE);
        self.ask(request, |_, _| {})
    }

    /// Sends a request and reads the answer to its end.
    fn ask(&mut self, mut request: Request, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        // SAFETY: the descriptor is open, and the bytes outlive the call.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let is_dump = request.flags & libc::NLM_F_DUMP as u16 == libc::NLM_F_DUMP as u16;
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = receive(&self.socket, &mut buffer, 0)?;
            let mut rest = &buffer[..len];
            while let Some((kind, sequence, body, after)) = message(rest) {
                rest = after;
                if sequence != self.sequence {
                    // Late, of a question that was given up.
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return error_of(body),
                    _ => each(kind, body),
                }
                if !is_dump {
                    return Ok(());
                }
            }
        }
    }
}

/// Tells when something about routes, addresses, interfaces or neighbours has changed.
#[derive(Debug)]
pub(super) struct Changes {
    socket: OwnedFd,
}

impl Changes {
    pub(super) fn subscribe() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_NEIGH
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        Ok(Self { socket: open(libc::SOCK_NONBLOCK, groups as u32)? })
    }

    /// Whether there was any since the last time.
    pub(super) fn take(&self) -> bool {
        let (mut buffer, mut any) = (vec![0; BUFFER], false);
        loop {
            match receive(&self.socket, &mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => any = true,
                // More than fits into its queue is a change too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(_) => return any,
            }
        }
    }
}

fn open(flags: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
    // SAFETY: creates a descriptor and touches no memory.
    let descriptor = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened above and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: all-zero bytes are a sockaddr_nl.
    let mut name: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    name.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    name.nl_groups = groups;
    let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and `name` has the length that is told.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    loop {
        // SAFETY: the descriptor is open, and the kernel writes no more than the buffer's length.
        let len = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        match usize::try_from(len) {
            Ok(len) => return Ok(len),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

fn is_no_route(errno: i32) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::ENODEV].contains(&errno)
}

/// A message under construction, behind room for its header.
struct Request {
    bytes: Vec<u8>,
    kind: u16,
    flags: u16,
}

impl Request {
    fn new(kind: u16, flags: libc::c_int) -> Self {
        Self { bytes: vec![0; HEADER], kind, flags: (flags | libc::NLM_F_REQUEST) as u16 }
    }

    /// struct ndmsg with the address: family, interface, state, flags, type.
    fn neighbour(&mut self, ifindex: u32, to: IpAddr, state: u16, flags: u8) {
        self.bytes.extend([family(to), 0, 0, 0]);
        self.bytes.extend(ifindex.to_ne_bytes());
        self.bytes.extend(state.to_ne_bytes());
        self.bytes.extend([flags, 0]);
        self.attribute(libc::NDA_DST, &octets(to));
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((ALIGN + value.len()) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// The first message: its type, its sequence number, what is behind its header, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let len = u32_at(bytes.get(..HEADER)?, 0) as usize;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    let body = bytes.get(HEADER..len)?;
    Some((kind, u32_at(bytes, 8), body, bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default()))
}

fn error_of(body: &[u8]) -> io::Result<()> {
    match body.get(..4).map(|code| u32_at(code, 0) as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The attributes in `bytes`, by type without its flags.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.get(..ALIGN)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(ALIGN..len)?;
        rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let header = body.get(..12)?;
    if ![RTN_UNICAST, RTN_LOCAL].contains(&header[7]) {
        return None;
    }
    let mut route = Route { ifindex: 0, gateway: None, mtu: None };
    for (kind, value) in attributes(&body[12..]) {
        match kind {
            libc::RTA_OIF if value.len() == 4 => route.ifindex = u32_at(value, 0),
            libc::RTA_GATEWAY => route.gateway = ip(value),
            // A gateway of the other family, behind that family's number.
            RTA_VIA => route.gateway = value.get(2..).and_then(ip),
            // The programs would send without it.
            RTA_ENCAP_TYPE => return None,
            libc::RTA_METRICS => {
                let mtu = attributes(value).find(|(kind, value)| *kind == RTAX_MTU && value.len() == 4);
                route.mtu = mtu.map(|(_, value)| u32_at(value, 0));
            }
            _ => {}
        }
    }
    (route.ifindex != 0).then_some(route)
}

fn parse_link(body: &[u8]) -> Option<Link> {
    // struct ifinfomsg: family, a byte, type, index, flags, change.
    let header = body.get(..16)?;
    let flags = u32_at(header, 8) as i32;
    let mut link = Link {
        ifindex: u32_at(header, 4),
        name: String::new(),
        is_up: flags & libc::IFF_UP != 0,
        is_loopback: flags & libc::IFF_LOOPBACK != 0,
        is_ethernet: u16::from_ne_bytes([header[2], header[3]]) == ARPHRD_ETHER,
        mtu: 0,
        address: None,
        kind: None,
    };
    for (kind, value) in attributes(&body[16..]) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU if value.len() == 4 => link.mtu = u32_at(value, 0),
            libc::IFLA_ADDRESS => link.address = value.try_into().ok(),
            IFLA_LINKINFO => {
                let found = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = found.map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link)
}

/// Of struct rtnl_link_stats64: rx_errors and tx_errors. Drops are none, as an overload has them too.
fn parse_failures(body: &[u8]) -> Option<u64> {
    let (_, value) = attributes(body.get(16..)?).find(|(kind, _)| *kind == IFLA_STATS64)?;
    let number = |index: usize| Some(u64::from_ne_bytes(value.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    Some(number(4)?.wrapping_add(number(5)?))
}

/// Up to the zero byte.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))).ok()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(ip: IpAddr) -> u8 {
    match Family::of(ip) {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// Of bytes that are there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
