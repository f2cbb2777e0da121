//! Frames for tests, built from what is in them.

use std::net::{IpAddr, SocketAddr};

const UDP: u8 = 17;
const TCP: u8 = 6;

/// A UDP datagram in an Ethernet frame, with everything that can be unusual about it.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: Vec<u8>,
    pub(super) ttl: u8,
    pub(super) tos: u8,
    pub(super) dont_fragment: bool,
    pub(super) more_fragments: bool,
    /// In units of 8 bytes.
    pub(super) fragment_offset: u16,
    pub(super) no_checksum: bool,
    pub(super) is_tcp: bool,
    /// An IPv4 option or an IPv6 extension header.
    pub(super) options: bool,
    pub(super) vlan: bool,
    pub(super) bad_header_checksum: bool,
    /// Bytes of the frame behind the IP packet.
    pub(super) trailer: usize,
    pub(super) udp_len_error: i16,
    pub(super) ip_len_error: i16,
    /// The frame goes to a group.
    pub(super) multicast: bool,
}

impl Packet {
    pub(super) fn new(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Self {
        Self {
            from,
            to,
            payload: payload.to_vec(),
            ttl: 64,
            tos: 0,
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            no_checksum: false,
            is_tcp: false,
            options: false,
            vlan: false,
            bad_header_checksum: false,
            trailer: 0,
            udp_len_error: 0,
            ip_len_error: 0,
            multicast: false,
        }
    }

    /// Whether it is no plain datagram in a plain frame.
    pub(super) fn is_unusual(&self) -> bool {
        let fragment = self.more_fragments || self.fragment_offset > 0;
        let wrong = self.bad_header_checksum || self.udp_len_error != 0 || self.ip_len_error != 0 || self.trailer > 0;
        fragment || wrong || self.is_tcp || self.options || self.vlan || self.multicast
    }

    /// Whether the family has what is unusual about it.
    pub(super) fn is_possible(&self) -> bool {
        let needs_v4 = self.more_fragments || self.fragment_offset > 0 || self.bad_header_checksum;
        self.from.is_ipv4() || !needs_v4
    }

    /// The word by which the complete checksum is the sum of the pseudo header, for an even place of the payload that is zero.
    pub(super) fn word_of_pseudo_checksum(&self) -> [u8; 2] {
        // The checksum is the complement of the sum: sum + word = !wanted.
        add(!self.sum_pseudo(), !self.sum_udp()).to_be_bytes()
    }

    /// Whether the complete checksum is the sum of the pseudo header.
    pub(super) fn looks_unfinished(&self) -> bool {
        !self.sum_udp() == self.sum_pseudo()
    }

    pub(super) fn frame(&self) -> Vec<u8> {
        // Test runs of tc look like what is sent to this host when the address is loopback's.
        let mut frame = vec![0; 12];
        frame[0] = u8::from(self.multicast);
        if self.vlan {
            frame.extend([0x81, 0x00, 0x00, 0x05]);
        }
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00]);
                let options: &[u8] = if self.options { &[1, 1, 1, 0] } else { &[] };
                let len = (20 + options.len() + 8 + self.payload.len()) as i16 + self.ip_len_error;
                let fragment =
                    u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13 | self.fragment_offset;
                let mut ip = vec![0x45 + (options.len() / 4) as u8, self.tos];
                ip.extend(len.to_be_bytes());
                ip.extend([0x12, 0x34]);
                ip.extend(fragment.to_be_bytes());
                ip.extend([self.ttl, self.protocol(), 0, 0]);
                ip.extend(from.octets());
                ip.extend(to.octets());
                ip.extend(options);
                let check = !sum(&ip) ^ u16::from(self.bad_header_checksum);
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                frame.extend(ip);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd]);
                let options: &[u8] = if self.options { &[UDP, 0, 1, 4, 0, 0, 0, 0] } else { &[] };
                frame.extend((6_u32 << 28 | u32::from(self.tos) << 20).to_be_bytes());
                let len = (options.len() + 8 + self.payload.len()) as i16 + self.ip_len_error;
                frame.extend(len.to_be_bytes());
                frame.extend([if self.options { 0 } else { self.protocol() }, self.ttl]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(options);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families: {self:?}"),
        }
        let mut udp = self.udp();
        let check = match !self.sum_udp() {
            _ if self.no_checksum => 0,
            0 => 0xffff,
            check => check,
        };
        udp[6..8].copy_from_slice(&check.to_be_bytes());
        frame.extend(udp);
        frame.extend(&self.payload);
        frame.extend(vec![0xee; self.trailer]);
        frame
    }

    fn protocol(&self) -> u8 {
        if self.is_tcp { TCP } else { UDP }
    }

    fn udp(&self) -> Vec<u8> {
        let len = (8 + self.payload.len()) as i16 + self.udp_len_error;
        [self.from.port().to_be_bytes(), self.to.port().to_be_bytes(), len.to_be_bytes(), [0, 0]].concat()
    }

    fn sum_pseudo(&self) -> u16 {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let len = (8 + self.payload.len()) as u16;
        sum(&[octets(self.from.ip()), octets(self.to.ip()), vec![0, UDP], len.to_be_bytes().to_vec()].concat())
    }

    fn sum_udp(&self) -> u16 {
        add(self.sum_pseudo(), sum(&[self.udp(), self.payload.clone()].concat()))
    }
}

/// The frame without what a sender chooses: Ethernet addresses, IPv4's identification with the checksum over it, and a Data
/// indication's transaction ID with the checksum over that. The checksums are checked here.
pub(super) fn canonical(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..12].fill(0);
    let is_v4 = frame[12..14] == [0x08, 0x00];
    if is_v4 {
        assert_eq!(sum(&frame[14..34]), 0xffff, "the header checksum is right");
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    let udp = if is_v4 { 34 } else { 54 };
    if frame.get(udp + 8..udp + 10) == Some(&[0x00, 0x17]) {
        let addresses = if is_v4 { 26..34 } else { 22..54 };
        let pseudo = [&frame[addresses], &[0, UDP], &frame[udp + 4..udp + 6]].concat();
        let has_checksum = frame[udp + 6..udp + 8] != [0, 0];
        assert!(!has_checksum || add(sum(&pseudo), sum(&frame[udp..])) == 0xffff, "the checksum is right");
        frame[udp + 6..udp + 8].fill(u8::from(has_checksum));
        let id: [u8; 12] = frame[udp + 16..udp + 28].try_into().unwrap();
        frame[udp + 16..udp + 28].fill(0);
        // An IPv6 address is xored with it.
        if frame[udp + 33] == 2 {
            frame[udp + 40..udp + 52].iter_mut().zip(id).for_each(|(byte, mask)| *byte ^= mask);
        }
    }
    frame
}

/// The ones' complement sum of 16-bit words, the last filled up with zero.
fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]);
    bytes.chunks(2).map(word).fold(0, add)
}

fn add(one: u16, other: u16) -> u16 {
    let (sum, carry) = one.overflowing_add(other);
    sum + u16::from(carry)
}
