//! Attribute types and the values that more than one message uses (RFC 8489 section 14, RFC 8656 section 18).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::header::{MAGIC_COOKIE, TransactionId};
use crate::address::Family;

/// A 16-bit attribute type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttributeType(pub u16);

impl AttributeType {
    pub const MAPPED_ADDRESS: Self = Self(0x0001);
    pub const USERNAME: Self = Self(0x0006);
    pub const MESSAGE_INTEGRITY: Self = Self(0x0008);
    pub const ERROR_CODE: Self = Self(0x0009);
    pub const UNKNOWN_ATTRIBUTES: Self = Self(0x000A);
    pub const CHANNEL_NUMBER: Self = Self(0x000C);
    pub const LIFETIME: Self = Self(0x000D);
    pub const XOR_PEER_ADDRESS: Self = Self(0x0012);
    pub const DATA: Self = Self(0x0013);
    pub const REALM: Self = Self(0x0014);
    pub const NONCE: Self = Self(0x0015);
    pub const XOR_RELAYED_ADDRESS: Self = Self(0x0016);
    pub const REQUESTED_ADDRESS_FAMILY: Self = Self(0x0017);
    pub const EVEN_PORT: Self = Self(0x0018);
    pub const REQUESTED_TRANSPORT: Self = Self(0x0019);
    pub const DONT_FRAGMENT: Self = Self(0x001A);
    pub const MESSAGE_INTEGRITY_SHA256: Self = Self(0x001C);
    pub const PASSWORD_ALGORITHM: Self = Self(0x001D);
    pub const USERHASH: Self = Self(0x001E);
    pub const XOR_MAPPED_ADDRESS: Self = Self(0x0020);
    pub const RESERVATION_TOKEN: Self = Self(0x0022);
    pub const ADDITIONAL_ADDRESS_FAMILY: Self = Self(0x8000);
    pub const ADDRESS_ERROR_CODE: Self = Self(0x8001);
    pub const PASSWORD_ALGORITHMS: Self = Self(0x8002);
    pub const ICMP: Self = Self(0x8004);
    pub const SOFTWARE: Self = Self(0x8022);
    pub const FINGERPRINT: Self = Self(0x8028);

    /// Whether a receiver that does not know the type must refuse the message (RFC 8489 section 14).
    pub fn is_comprehension_required(self) -> bool {
        self.0 < 0x8000
    }

    /// Whether the type is one that this server understands, expected in the message at hand or not.
    pub fn is_known(self) -> bool {
        matches!(
            self,
            Self::MAPPED_ADDRESS
                | Self::USERNAME
                | Self::MESSAGE_INTEGRITY
                | Self::ERROR_CODE
                | Self::UNKNOWN_ATTRIBUTES
                | Self::CHANNEL_NUMBER
                | Self::LIFETIME
                | Self::XOR_PEER_ADDRESS
                | Self::DATA
                | Self::REALM
                | Self::NONCE
                | Self::XOR_RELAYED_ADDRESS
                | Self::REQUESTED_ADDRESS_FAMILY
                | Self::EVEN_PORT
                | Self::REQUESTED_TRANSPORT
                | Self::DONT_FRAGMENT
                | Self::MESSAGE_INTEGRITY_SHA256
                | Self::PASSWORD_ALGORITHM
                | Self::USERHASH
                | Self::XOR_MAPPED_ADDRESS
                | Self::RESERVATION_TOKEN
        )
    }
}

/// One attribute as it stands in a message; `value` is without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    pub kind: AttributeType,
    pub value: &'a [u8],
}

impl Attribute<'_> {
    /// The value as a 32-bit integer (LIFETIME); `None` for another length.
    pub fn as_u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// CHANNEL-NUMBER (RFC 8656 section 18.1): two bytes, and two that are ignored.
    pub fn as_channel_number(&self) -> Option<u16> {
        let [high, low, _, _] = *self.value else { return None };
        Some(u16::from_be_bytes([high, low]))
    }

    /// A one-byte code and three bytes that are ignored (REQUESTED-TRANSPORT, the address families).
    pub fn as_code(&self) -> Option<u8> {
        let [code, _, _, _] = *self.value else { return None };
        Some(code)
    }

    /// An address family code: 0x01 or 0x02 (RFC 8656 section 18.6). The outer `None` is a malformed value.
    pub fn as_family(&self) -> Option<Option<Family>> {
        Some(match self.as_code()? {
            0x01 => Some(Family::V4),
            0x02 => Some(Family::V6),
            _ => None,
        })
    }

    /// The R bit of EVEN-PORT (RFC 8656 section 18.7).
    pub fn as_even_port(&self) -> Option<bool> {
        let [flags] = *self.value else { return None };
        Some(flags & 0x80 != 0)
    }

    /// RESERVATION-TOKEN (RFC 8656 section 18.10).
    pub fn as_token(&self) -> Option<[u8; 8]> {
        self.value.try_into().ok()
    }

    /// An XOR-ed transport address (RFC 8489 section 14.2).
    pub fn as_xor_address(&self, id: TransactionId) -> Option<SocketAddr> {
        let ([_, family, port_high, port_low], address) = self.value.split_first_chunk()?;
        let port = u16::from_be_bytes([*port_high, *port_low]) ^ COOKIE_HIGH;
        let ip = match family {
            0x01 => IpAddr::V4(Ipv4Addr::from(u32::from_be_bytes(address.try_into().ok()?) ^ MAGIC_COOKIE)),
            0x02 => IpAddr::V6(Ipv6Addr::from(u128::from_be_bytes(address.try_into().ok()?) ^ mask_v6(id))),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }
}

/// The upper half of the magic cookie, with which ports are XOR-ed.
const COOKIE_HIGH: u16 = (MAGIC_COOKIE >> 16) as u16;

fn mask_v6(id: TransactionId) -> u128 {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&id.0);
    u128::from_be_bytes(mask)
}

/// The value of an XOR-ed transport address: 8 bytes for IPv4, 20 for IPv6.
pub struct XorAddress {
    bytes: [u8; 20],
    len: usize,
}

impl XorAddress {
    /// Encodes an address for a message with this transaction id (RFC 8489 section 14.2).
    pub fn new(address: SocketAddr, id: TransactionId) -> Self {
        let mut bytes = [0; 20];
        bytes[2..4].copy_from_slice(&(address.port() ^ COOKIE_HIGH).to_be_bytes());
        let len = match address.ip() {
            IpAddr::V4(ip) => {
                bytes[1] = 0x01;
                bytes[4..8].copy_from_slice(&(u32::from(ip) ^ MAGIC_COOKIE).to_be_bytes());
                8
            }
            IpAddr::V6(ip) => {
                bytes[1] = 0x02;
                bytes[4..20].copy_from_slice(&(u128::from(ip) ^ mask_v6(id)).to_be_bytes());
                20
            }
        };
        Self { bytes, len }
    }

    /// The value without attribute header; its length is a multiple of 4.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransactionId = TransactionId([0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae]);

    fn decode(value: &[u8]) -> Option<SocketAddr> {
        Attribute { kind: AttributeType::XOR_PEER_ADDRESS, value }.as_xor_address(ID)
    }

    #[test]
    fn xor_address_is_the_one_of_rfc_5769() {
        let v4 = hex_literal::hex!("0001a147e112a643");
        assert_eq!(decode(&v4), Some("192.0.2.1:32853".parse().unwrap()));
        let v6 = hex_literal::hex!("0002a1470113a9faa5d3f179bc25f4b5bed2b9d9");
        assert_eq!(decode(&v6), Some("[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap()));
        for value in [&v4[..], &v6[..]] {
            assert_eq!(XorAddress::new(decode(value).unwrap(), ID).as_bytes(), value);
        }
    }

    #[test]
    fn xor_address_of_a_wrong_length_or_family_is_none() {
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[0, 1, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[0, 2, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[0, 3, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[0; 24]), None);
    }

    #[test]
    fn fixed_size_values_of_a_wrong_length_are_none() {
        let attribute = |value| Attribute { kind: AttributeType::LIFETIME, value };
        assert_eq!(attribute(&[0, 0, 1]).as_u32(), None);
        assert_eq!(attribute(&[0x40, 0, 0]).as_channel_number(), None);
        assert_eq!(attribute(&[0x40, 1, 7, 9]).as_channel_number(), Some(0x4001));
        assert_eq!(attribute(&[]).as_even_port(), None);
        assert_eq!(attribute(&[0x80]).as_even_port(), Some(true));
        assert_eq!(attribute(&[3, 0, 0, 0]).as_family(), Some(None));
        assert_eq!(attribute(&[2]).as_family(), None);
    }
}
