//! The PROXY protocol: the words by which a proxy names its client, in front of the client's own bytes.
//!
//! Versions 1 and 2 of <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>. Nothing is guessed: who is named as
//! a proxy begins with a preamble, and nobody else may. On a stream it comes once; each datagram begins with one, which is
//! a header of version 2.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

/// What a preamble says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// The client of the proxy, as the proxy sees it; an IPv4 address in an IPv6 one is taken out.
    Client(SocketAddr),
    /// The proxy speaks for itself, as for a health check, or for a client without an address.
    Proxy,
}

/// The ends of a datagram that a proxy has passed on, as its header names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Something can be sent there; an IPv4 address in an IPv6 one is taken out, here and of the server.
    pub client: SocketAddr,
    /// Where the client has sent it.
    pub server: SocketAddr,
}

/// Not a preamble, or one that no client may be believed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// "So a 108-byte buffer is always enough to store all the line and a trailing zero" (section 2.1).
const V1_BYTES_MAX: usize = 107;
const V1_PREFIX: &[u8] = b"PROXY ";
/// The signature, version, family and length (section 2.2).
const V2_FIXED: usize = 16;
/// Addresses are 36 bytes. What follows may be a client's certificate in TLVs; 4 KiB hold any of them.
const V2_BYTES_MAX: usize = V2_FIXED + 4096;

/// A preamble as it comes in.
#[derive(Clone, Debug, Default)]
pub struct Preamble {
    bytes: Vec<u8>,
}

impl Preamble {
    /// Takes the bytes that belong to the preamble from the front of what has come, which is not empty.
    ///
    /// Returns how many those are, at least one, and what is said once it is complete. What follows is the client's. The
    /// result does not depend on how the bytes are cut. At most 4112 bytes are kept.
    pub fn take(&mut self, come: &[u8]) -> Result<(usize, Option<Announced>), Malformed> {
        for (index, byte) in come.iter().enumerate() {
            self.bytes.push(*byte);
            let is_complete = match self.bytes[0] {
                b'P' => self.is_line()?,
                _ => self.is_binary()?,
            };
            if is_complete {
                return Ok((index + 1, Some(self.parse()?)));
            }
        }
        Ok((come.len(), None))
    }

    fn is_line(&self) -> Result<bool, Malformed> {
        let known = self.bytes.len().min(V1_PREFIX.len());
        let is_complete = self.bytes.ends_with(b"\n");
        if self.bytes[..known] != V1_PREFIX[..known] || (self.bytes.len() >= V1_BYTES_MAX && !is_complete) {
            return Err(Malformed);
        }
        Ok(is_complete)
    }

    fn is_binary(&self) -> Result<bool, Malformed> {
        let known = self.bytes.len().min(v2::PROTOCOL_PREFIX.len());
        if self.bytes[..known] != v2::PROTOCOL_PREFIX[..known] {
            return Err(Malformed);
        }
        let Some(fixed) = self.bytes.get(..V2_FIXED) else { return Ok(false) };
        let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        if length > V2_BYTES_MAX {
            return Err(Malformed);
        }
        Ok(self.bytes.len() == length)
    }

    /// Reads a preamble that is complete.
    fn parse(&self) -> Result<Announced, Malformed> {
        // "the receiver must ignore anything presented before the CRLF is found", which is not always five words.
        let is_unknown = [b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r"].iter().any(|begin| self.bytes.starts_with(*begin));
        if is_unknown && self.bytes.ends_with(b"\r\n") {
            return Ok(Announced::Proxy);
        }
        if self.bytes[0] == b'P' {
            let header = v1::Header::try_from(self.bytes.as_slice()).map_err(|_| Malformed)?;
            return match header.addresses {
                v1::Addresses::Tcp4(ends) => client(ends.source_address.into(), ends.source_port),
                v1::Addresses::Tcp6(ends) => client(ends.source_address.into(), ends.source_port),
                v1::Addresses::Unknown => Err(Malformed),
            };
        }
        let header = v2::Header::try_from(self.bytes.as_slice()).map_err(|_| Malformed)?;
        match (header.command, header.protocol, header.addresses) {
            // "The receiver must accept this connection as valid and must use the real connection endpoints".
            (v2::Command::Local, ..) => Ok(Announced::Proxy),
            (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv4(ends)) => {
                client(ends.source_address.into(), ends.source_port)
            }
            (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::IPv6(ends)) => {
                client(ends.source_address.into(), ends.source_port)
            }
            // "the receiver is free to accept the connection anyway and use the real endpoint addresses".
            (v2::Command::Proxy, _, v2::Addresses::Unspecified)
            | (v2::Command::Proxy, v2::Protocol::Stream, v2::Addresses::Unix(_)) => Ok(Announced::Proxy),
            (v2::Command::Proxy, v2::Protocol::Datagram | v2::Protocol::Unspecified, _) => Err(Malformed),
        }
    }
}

/// Reads the header that a datagram begins with: returns its length, and the ends that it names; without them the proxy
/// speaks for itself, or for a client without an address. Further values (TLVs) are passed over.
pub fn parse_datagram(datagram: &[u8]) -> Result<(usize, Option<Ends>), Malformed> {
    let fixed = datagram.get(..V2_FIXED).ok_or(Malformed)?;
    let len = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if !datagram.starts_with(v2::PROTOCOL_PREFIX) || len > V2_BYTES_MAX {
        return Err(Malformed);
    }
    let header = v2::Header::try_from(datagram.get(..len).ok_or(Malformed)?).map_err(|_| Malformed)?;
    let (from, to): ((IpAddr, u16), (IpAddr, u16)) = match (header.command, header.protocol, header.addresses) {
        (v2::Command::Local, ..)
        | (v2::Command::Proxy, _, v2::Addresses::Unspecified)
        | (v2::Command::Proxy, v2::Protocol::Datagram, v2::Addresses::Unix(_)) => return Ok((len, None)),
        (v2::Command::Proxy, v2::Protocol::Datagram, v2::Addresses::IPv4(ends)) => {
            ((ends.source_address.into(), ends.source_port), (ends.destination_address.into(), ends.destination_port))
        }
        (v2::Command::Proxy, v2::Protocol::Datagram, v2::Addresses::IPv6(ends)) => {
            ((ends.source_address.into(), ends.source_port), (ends.destination_address.into(), ends.destination_port))
        }
        (v2::Command::Proxy, v2::Protocol::Stream | v2::Protocol::Unspecified, _) => return Err(Malformed),
    };
    let server = SocketAddr::new(to.0.to_canonical(), to.1);
    Ok((len, Some(Ends { client: reachable(from.0, from.1)?, server })))
}

fn client(ip: IpAddr, port: u16) -> Result<Announced, Malformed> {
    reachable(ip, port).map(Announced::Client)
}

/// A client that something can be sent to.
fn reachable(ip: IpAddr, port: u16) -> Result<SocketAddr, Malformed> {
    let ip = ip.to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast || port == 0 {
        return Err(Malformed);
    }
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announce(bytes: &[u8]) -> Result<(usize, Option<Announced>), Malformed> {
        Preamble::default().take(bytes)
    }

    fn client_of(text: &str) -> Announced {
        Announced::Client(text.parse().unwrap())
    }

    /// A preamble of version 2, by its command, family and what follows.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb];

    #[test]
    fn a_line_names_its_client_and_ends_where_it_ends() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n\x00\x01";
        assert_eq!(announce(line), Ok((line.len() - 2, Some(client_of("192.0.2.7:40000")))));
        let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n";
        assert_eq!(announce(line), Ok((line.len(), Some(client_of("[2001:db8::7]:40000")))));
        let line = b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 40000 443\r\n";
        assert_eq!(announce(line), Ok((line.len(), Some(client_of("192.0.2.7:40000")))));
        for line in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff:: ::1 65535 1\r\n"] {
            assert_eq!(announce(line), Ok((line.len(), Some(Announced::Proxy))));
        }
        // The longest there is, by the specification.
        let words = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".to_owned();
        let longest = format!("{words:<105}\r\n");
        assert_eq!(announce(longest.as_bytes()), Ok((107, Some(Announced::Proxy))));
    }

    #[test]
    fn version_2_names_its_client_and_further_values_are_passed_over() {
        let bytes = binary(1, 0x11, &V4);
        assert_eq!(announce(&bytes), Ok((28, Some(client_of("192.0.2.7:40000")))));
        let with_values = binary(1, 0x11, &[&V4[..], &[0x04, 0, 3, 0, 0, 0], &[0xea, 0, 1, 7]].concat());
        assert_eq!(announce(&with_values), Ok((38, Some(client_of("192.0.2.7:40000")))));
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[15] = 7;
        v6[32..34].copy_from_slice(&40000_u16.to_be_bytes());
        assert_eq!(announce(&binary(1, 0x21, &v6)).unwrap().1, Some(client_of("[2001:db8::7]:40000")));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_is_itself() {
        for bytes in [
            binary(0, 0x00, &[]),
            binary(0, 0x11, &V4),
            binary(1, 0x00, &[]),
            binary(1, 0x00, &[0x04, 0, 1, 0]),
            binary(1, 0x31, &[0; 216]),
        ] {
            assert_eq!(announce(&bytes), Ok((bytes.len(), Some(Announced::Proxy))));
        }
    }

    #[test]
    fn nothing_else_is_believed() {
        let mut unspecified = V4;
        unspecified[..4].fill(0);
        let mut no_port = V4;
        no_port[8..10].fill(0);
        let mut group = V4;
        group[0] = 224;
        let binaries = [
            binary(1, 0x11, &V4[..11]),
            binary(1, 0x21, &V4),
            binary(1, 0x41, &V4),
            binary(1, 0x12, &V4),
            binary(1, 0x10, &V4),
            binary(1, 0x13, &V4),
            binary(2, 0x11, &V4),
            binary(1, 0x11, &unspecified),
            binary(1, 0x11, &no_port),
            binary(1, 0x11, &group),
            binary(1, 0x11, &[0; 4097]),
        ];
        let lines: [&[u8]; 13] = [
            b"\x00\x01",
            b"\x16\x03",
            b"GET / HTTP/1.1\r\n",
            b"PROXX",
            b"PROXY\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443 1\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 40000 443\r\n",
            b"PROXY TCP4 0.0.0.0 198.51.100.1 40000 443\r\n",
            b"PROXY \xff\r\n",
        ];
        for bytes in binaries.iter().map(Vec::as_slice).chain(lines) {
            assert_eq!(announce(bytes), Err(Malformed), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(announce(format!("PROXY UNKNOWN{}", " ".repeat(200)).as_bytes()), Err(Malformed));
        // At the first byte that differs, without waiting for more.
        assert_eq!(announce(b"PX"), Err(Malformed));
        assert_eq!(announce(b"\r\n\r\n\x00\r\nQUIT\n\x31"), Ok((13, None)));
        assert_eq!(announce(b"\r\n\r\n\x00\r\nQUIX"), Err(Malformed));
    }

    fn ends(client: &str, server: &str) -> Option<Ends> {
        Some(Ends { client: client.parse().unwrap(), server: server.parse().unwrap() })
    }

    #[test]
    fn the_header_of_a_datagram_names_both_ends_and_ends_where_it_ends() {
        let v4 = ends("192.0.2.7:40000", "198.51.100.1:443");
        let bytes = [binary(1, 0x12, &V4), b"payload".to_vec()].concat();
        assert_eq!(parse_datagram(&bytes), Ok((28, v4)));
        let with_values = binary(1, 0x12, &[&V4[..], &[0x04, 0, 3, 0, 0, 0], &[0xea, 0, 1, 7]].concat());
        assert_eq!(parse_datagram(&with_values), Ok((38, v4)));
        let v6: [u8; 36] = std::array::from_fn(|at| match at {
            0 | 16 => 0x20,
            1 | 17 => 0x01,
            32 => 0x9c,
            33 => 0x40,
            34 => 0x0d,
            35 => 0x96,
            at => at as u8,
        });
        let v6_ends =
            ends("[2001:203:405:607:809:a0b:c0d:e0f]:40000", "[2001:1213:1415:1617:1819:1a1b:1c1d:1e1f]:3478");
        assert_eq!(parse_datagram(&binary(1, 0x22, &v6)), Ok((52, v6_ends)));
        let mapped = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 7], &[0; 10], &[0xff, 0xff, 198, 51, 100, 1], &V4[8..]];
        assert_eq!(parse_datagram(&binary(1, 0x22, &mapped.concat())), Ok((52, v4)));
    }

    #[test]
    fn a_proxy_of_datagrams_speaks_for_itself_in_its_checks() {
        for header in [binary(0, 0x00, &[]), binary(0, 0x12, &V4), binary(0, 0x11, &V4), binary(1, 0x00, &[])] {
            assert_eq!(parse_datagram(&header), Ok((header.len(), None)));
        }
    }

    #[test]
    fn no_datagram_is_believed_without_a_whole_header_for_datagrams() {
        let whole = binary(1, 0x12, &V4);
        let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
        let (mut no_port, mut group, mut older, mut signature) =
            (whole.clone(), whole.clone(), whole.clone(), whole.clone());
        no_port[24..26].fill(0);
        group[16] = 224;
        older[12] = 0x11;
        signature[11] = 0;
        let others = [
            no_port,
            group,
            older,
            signature,
            binary(1, 0x11, &V4),
            binary(1, 0x10, &V4),
            binary(2, 0x12, &V4),
            binary(1, 0x22, &V4),
            binary(1, 0x42, &V4),
            binary(1, 0x12, &[0; 4097]),
            b"PROXY UDP4 192.0.2.7 198.51.100.1 40000 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n".to_vec(),
            b"\x00\x01\x00\x00\x21\x12\xa4\x42".to_vec(),
        ];
        for bytes in cut.chain(others) {
            assert_eq!(parse_datagram(&bytes), Err(Malformed), "{}", String::from_utf8_lossy(&bytes));
        }
    }

    fn any_preamble() -> impl Strategy<Value = Vec<u8>> {
        let values = prop::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| {
                format!("PROXY TCP4 {} 192.0.2.1 {port} 443\r\n", std::net::Ipv4Addr::from(ip)).into_bytes()
            }),
            (any::<[u8; 36]>(), values.clone()).prop_map(|(ends, more)| binary(1, 0x21, &[&ends[..], &more].concat())),
            (0..2_u8, any::<u8>(), values.clone()).prop_map(|(command, family, rest)| binary(command, family, &rest)),
            values,
        ]
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_the_preamble_of_a_stream_is(
            header in any_preamble(), payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let datagram = [&header[..], &payload].concat();
            let parsed = parse_datagram(&datagram);
            let mut as_stream = datagram.clone();
            // The transport is all that they differ in.
            if let Some(transport) = as_stream.get_mut(13).filter(|transport| [1, 2].contains(&(**transport & 0xf))) {
                *transport ^= 3;
            }
            match (parsed, announce(&as_stream)) {
                (Ok((len, Some(ends))), told) => {
                    prop_assert_eq!(told, Ok((len, Some(Announced::Client(ends.client)))));
                }
                (Ok((len, None)), told) if datagram[12] & 0xf == 0 => {
                    prop_assert_eq!(told, Ok((len, Some(Announced::Proxy))));
                }
                (Ok((len, None)), _) => prop_assert!(len <= datagram.len()),
                (Err(Malformed), _) => {}
            }
        }

        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            preamble in any_preamble(), payload in prop::collection::vec(any::<u8>(), 0..40), cuts in any::<u64>(),
        ) {
            let bytes = [preamble, payload].concat();
            prop_assume!(!bytes.is_empty());
            let whole = announce(&bytes);
            let (mut preamble, mut begin) = (Preamble::default(), 0);
            let in_parts = loop {
                let end = (begin + 1 + (cuts.rotate_left(begin as u32) % 9) as usize).min(bytes.len());
                match preamble.take(&bytes[begin..end]) {
                    Err(Malformed) => break Err(Malformed),
                    Ok((taken, announced @ Some(_))) => break Ok((begin + taken, announced)),
                    Ok((taken, None)) => prop_assert_eq!(taken, end - begin),
                }
                begin = end;
                if begin == bytes.len() {
                    break Ok((begin, None));
                }
            };
            prop_assert_eq!(whole, in_parts);
        }
    }
}
