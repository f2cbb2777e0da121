//! Ethernet frames with data, as they are sent and as they are to arrive: `struct frame` of `yardstick.c`.

use std::net::{IpAddr, SocketAddr};

use super::lab::{NETWORK_MAC, SERVER_MAC};

/// Bytes of application data; the programs know these numbers.
pub(super) const PAYLOAD_LEN: usize = 160;
pub(super) const LONG_PAYLOAD_LEN: usize = 1200;
const FRAME_LEN_MAX: usize = 1264;
const UDP: u8 = 17;
const MARK: u32 = 0xfe77_1d02;

/// `struct frame`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Frame {
    len: u32,
    partial: u16,
    unused: u16,
    bytes: [u8; FRAME_LEN_MAX],
}

// SAFETY: plain integers in C's layout, without padding, and every pattern of bits is a value.
unsafe impl aya::Pod for Frame {}

impl Frame {
    /// A frame to the server, or one from there, with number 0 of the flow `index` and, for a channel, its header.
    pub(super) fn new(from: SocketAddr, to: SocketAddr, channel: Option<u16>, index: u32, payload_len: usize) -> Self {
        let payload = payload(channel, index, payload_len);
        let udp_len = (8 + payload.len()) as u16;
        let mut frame = [SERVER_MAC, NETWORK_MAC].concat();
        let mut pseudo = u32::from(UDP) + u32::from(udp_len);
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let len = (20 + udp_len).to_be_bytes();
                let mut ip = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, UDP, 0, 0];
                ip.extend([from.octets(), to.octets()].concat());
                pseudo += sum(&ip[12..]);
                let check = !fold(sum(&ip));
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                frame.extend([0x08, 0x00]);
                frame.extend(ip);
            }
            (from, to) => {
                let octets = |ip| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                let addresses = [octets(from), octets(to)].concat();
                pseudo += sum(&addresses);
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(udp_len.to_be_bytes());
                frame.extend([UDP, 64]);
                frame.extend(addresses);
            }
        }
        let mut udp = [from.port().to_be_bytes(), to.port().to_be_bytes(), udp_len.to_be_bytes(), [0, 0]].concat();
        let check = match !fold(pseudo + sum(&udp) + sum(&payload)) {
            0 => 0xffff,
            check => check,
        };
        udp[6..].copy_from_slice(&check.to_be_bytes());
        frame.extend(udp);
        frame.extend(payload);
        let mut bytes = [0; FRAME_LEN_MAX];
        bytes[..frame.len()].copy_from_slice(&frame);
        // As it stands on the wire.
        Self { len: frame.len() as u32, partial: fold(pseudo).to_be(), unused: 0, bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

fn payload(channel: Option<u16>, index: u32, payload_len: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some(channel) = channel {
        payload.extend([channel.to_be_bytes(), (payload_len as u16).to_be_bytes()].concat());
    }
    let data_at = payload.len();
    // The programs write these in the machine's order.
    payload.extend([MARK.to_ne_bytes(), index.to_ne_bytes(), 0_u32.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat());
    payload.extend((payload.len() - data_at..payload_len).map(|at| (at * 167 + 13) as u8));
    payload
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
